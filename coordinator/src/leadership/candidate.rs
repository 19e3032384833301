//! What one replica knows of the Lease that elects the leader, and what it may write to it. Pure: the time is an
//! argument.
//!
//! As in client-go, each replica measures on its own monotonic clock how long ago it last saw the Lease change. The
//! times that are written in the Lease come from the clocks of other machines and are for people: nothing is decided
//! from them.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

/// How long a leader that does not renew the Lease is still taken for the leader.
pub(super) const DURATION: Duration = Duration::from_secs(15);
const DURATION_SECONDS: i32 = 15;

/// Time since the replica started.
type Mono = Duration;

/// One replica that stands for election.
#[derive(Debug)]
pub(super) struct Candidate {
    identity: String,
    /// The Lease as it was last seen, and when it was first seen like that.
    seen: Option<(LeaseSpec, Mono)>,
}

impl Candidate {
    pub(super) fn new(identity: &str) -> Self {
        Self {
            identity: identity.to_owned(),
            seen: None,
        }
    }

    /// Takes in what the API server holds.
    pub(super) fn sees(&mut self, spec: &LeaseSpec, now: Mono) {
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != spec) {
            self.seen = Some((spec.clone(), now));
        }
    }

    /// The Lease is gone.
    pub(super) fn sees_none(&mut self) {
        self.seen = None;
    }

    /// What to write in order to lead, or to go on leading; `None` while another replica may lead.
    pub(super) fn bid(&self, now: Mono, wall: Timestamp) -> Option<LeaseSpec> {
        let Some((seen, since)) = &self.seen else {
            return Some(self.claim(&LeaseSpec::default(), wall));
        };
        let holder = seen.holder_identity.as_deref().unwrap_or_default();
        let is_ours = holder == self.identity;
        if !is_ours && !holder.is_empty() && now < *since + duration(seen) {
            return None;
        }
        Some(self.claim(seen, wall))
    }

    /// What to write so that another replica may lead at once; `None` when this one does not hold the Lease.
    pub(super) fn resignation(&self, wall: Timestamp) -> Option<LeaseSpec> {
        let (seen, _) = self.seen.as_ref()?;
        (seen.holder_identity.as_deref() == Some(&self.identity)).then(|| LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(MicroTime(wall)),
            ..seen.clone()
        })
    }

    fn claim(&self, there: &LeaseSpec, wall: Timestamp) -> LeaseSpec {
        let is_ours = there.holder_identity.as_deref() == Some(&self.identity);
        let transitions = there.lease_transitions.unwrap_or_default();
        LeaseSpec {
            acquire_time: if is_ours {
                there.acquire_time.clone()
            } else {
                Some(MicroTime(wall))
            },
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            lease_transitions: Some(if is_ours {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            renew_time: Some(MicroTime(wall)),
            ..there.clone()
        }
    }
}

/// How long the holder is taken for the leader without a renewal. The Lease itself says this, because the holder may be
/// another version of this program.
fn duration(spec: &LeaseSpec) -> Duration {
    spec.lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(DURATION, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn held(by: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(MicroTime(wall(renewed))),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn who_may_bid() {
        let seconds = Duration::from_secs;
        // Who holds it, when that was first seen, when the bid is made, the bidder's wall clock then, whether it may.
        for (holder, seen, now, clock, may) in [
            ("", 0, 0, 0, true),
            ("a", 0, 0, 0, true),
            ("b", 0, 14, 14, false),
            ("b", 0, 15, 15, true),
            ("b", 100, 114, 0, false),
            // A clock that is wrong, in either direction, changes nothing.
            ("b", 0, 14, HOUR, false),
            ("b", 0, 15, -HOUR, true),
        ] {
            let mut candidate = Candidate::new("a");
            candidate.sees(&held(holder, 0), seconds(seen));
            let bid = candidate.bid(seconds(now), wall(clock));
            assert_eq!(bid.is_some(), may, "{holder} {seen} {now} {clock}");
        }
    }

    #[test]
    fn a_holder_is_silent_only_since_the_lease_last_changed() {
        let mut candidate = Candidate::new("a");
        for second in 0..60 {
            // The holder's clock is an hour slow. Only the change of the Lease counts.
            candidate.sees(
                &held("b", -HOUR + i64::try_from(second / 10).unwrap()),
                Duration::from_secs(second),
            );
            assert_eq!(candidate.bid(Duration::from_secs(second), wall(0)), None);
        }
        assert_eq!(candidate.bid(Duration::from_secs(64), wall(0)), None);
        assert!(candidate.bid(Duration::from_secs(65), wall(0)).is_some());
    }

    #[test]
    fn what_is_written() {
        let mut candidate = Candidate::new("a");
        let first = candidate.bid(Mono::ZERO, wall(7)).unwrap();
        let want = LeaseSpec {
            acquire_time: Some(MicroTime(wall(7))),
            lease_transitions: Some(1),
            ..held("a", 7)
        };
        assert_eq!(first, want);
        candidate.sees(&first, Mono::ZERO);
        let renewed = candidate.bid(Mono::ZERO, wall(9)).unwrap();
        let want = LeaseSpec {
            renew_time: Some(MicroTime(wall(9))),
            ..want
        };
        assert_eq!(renewed, want);
        candidate.sees(&renewed, Mono::ZERO);
        let resigned = candidate.resignation(wall(10)).unwrap();
        assert_eq!(resigned.holder_identity.as_deref(), Some(""));
        candidate.sees(&resigned, Mono::ZERO);
        assert_eq!(candidate.resignation(wall(11)), None);
        let mut other = Candidate::new("b");
        other.sees(&resigned, Mono::ZERO);
        let taken = other.bid(Mono::ZERO, wall(12)).unwrap();
        assert_eq!(taken.lease_transitions, Some(2));
        assert_eq!(taken.acquire_time, Some(MicroTime(wall(12))));
    }
}
