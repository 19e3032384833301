//! Conditions: set without touching the time when nothing changed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// A condition as the planner wants it; the time is added when it is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub type_: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
}

impl Wanted {
    /// A condition that holds, or does not.
    #[must_use]
    pub fn new(type_: &str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        Self {
            type_: type_.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// Merges what is wanted into what is there. `lastTransitionTime` moves only when the status does, conditions of other
/// types stay where they are.
#[must_use]
pub fn merge(
    current: &[Condition],
    wanted: &[Wanted],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let mut merged = current.to_vec();
    for want in wanted {
        let status = if want.status { "True" } else { "False" };
        let condition = Condition {
            type_: want.type_.clone(),
            status: status.to_owned(),
            reason: want.reason.clone(),
            message: want.message.clone(),
            observed_generation: Some(generation),
            last_transition_time: Time(now),
        };
        match merged.iter_mut().find(|c| c.type_ == want.type_) {
            Some(there) => {
                let last_transition_time = if there.status == status {
                    there.last_transition_time.clone()
                } else {
                    condition.last_transition_time.clone()
                };
                *there = Condition {
                    last_transition_time,
                    ..condition
                };
            }
            None => merged.push(condition),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn time_moves_with_the_status_only() {
        let first = merge(
            &[],
            &[Wanted::new("Ready", false, "Progressing", "0/2")],
            1,
            at(10),
        );
        let same = merge(
            &first,
            &[Wanted::new("Ready", false, "Progressing", "1/2")],
            2,
            at(20),
        );
        assert_eq!(same[0].last_transition_time, Time(at(10)));
        assert_eq!(
            (same[0].message.as_str(), same[0].observed_generation),
            ("1/2", Some(2))
        );
        let flipped = merge(
            &same,
            &[Wanted::new("Ready", true, "Complete", "2/2")],
            2,
            at(30),
        );
        assert_eq!(flipped[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn merging_the_same_again_changes_nothing() {
        let wanted = [Wanted::new("Ready", true, "Complete", "")];
        let first = merge(&[], &wanted, 1, at(10));
        assert_eq!(merge(&first, &wanted, 1, at(99)), first);
    }
}
