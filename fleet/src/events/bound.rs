//! Limits the number of Warning events, so that thousands of nodes that fail make only a few events: one for each of
//! the first failures, and one with the number of the others. Each Node has its own message in an annotation, and the
//! Skyhook's status has the number of nodes for each reason.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{EventFact, Subject};
use crate::clocks::Mono;

/// Most warnings of one kind that are sent within [`WHILE`].
const MOST: u32 = 10;
/// How long warnings are counted together.
const WHILE: Duration = Duration::from_secs(60);

/// Warnings that were sent lately, by the UID of their Skyhook and by their reason. The UID is empty for warnings about
/// Nodes, which are all counted together.
#[derive(Debug, Default)]
pub struct Bound(BTreeMap<(String, &'static str), Told>);

#[derive(Debug)]
struct Told {
    since: Mono,
    sent: u32,
    /// The last warning that was not sent, and how many were not sent.
    held: Option<(EventFact, u32)>,
}

impl Bound {
    /// Lets through what may be sent now.
    #[must_use]
    pub fn pass(&mut self, events: Vec<EventFact>, now: Mono) -> Vec<EventFact> {
        let mut passed = Vec::new();
        for event in events {
            if !event.warning {
                passed.push(event);
                continue;
            }
            let of = match &event.subject {
                Subject::Skyhook { uid, .. } => uid.clone(),
                Subject::Node { .. } => String::new(),
            };
            let told = self.0.entry((of, event.reason)).or_insert(Told {
                since: now,
                sent: 0,
                held: None,
            });
            if told.sent < MOST {
                told.sent += 1;
                passed.push(event);
            } else {
                let before = told.held.as_ref().map_or(0, |(_, held)| *held);
                told.held = Some((event, before + 1));
            }
        }
        passed
    }

    /// When the next summary is due, if any.
    #[must_use]
    pub fn due(&self) -> Option<Mono> {
        let held = self.0.values().filter(|told| told.held.is_some());
        held.map(|told| told.since + WHILE).min()
    }

    /// Returns events with the number of warnings that were not sent, for the kinds whose time is over.
    #[must_use]
    pub fn sum_up(&mut self, now: Mono) -> Vec<EventFact> {
        let mut sums = Vec::new();
        self.0.retain(|_, told| {
            let is_over = told.since + WHILE <= now;
            if is_over && let Some((event, held)) = told.held.take() {
                sums.extend(sum(event, held));
            }
            !is_over
        });
        sums
    }
}

/// The summary of the warnings that were not sent. There is none for Nodes, because each Node has its own message.
fn sum(event: EventFact, held: u32) -> Option<EventFact> {
    match event.subject {
        Subject::Node { .. } => None,
        Subject::Skyhook { .. } => Some(EventFact {
            note: format!(
                "{held} more within {} s: each Node says why in its annotations, and the Skyhook's status.reasons how many \
                 there are; the last one: {}",
                WHILE.as_secs(),
                event.note
            ),
            ..event
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(of: Subject, n: u32) -> EventFact {
        EventFact {
            subject: of,
            warning: true,
            reason: "PackageErroring",
            action: None,
            note: format!("node [worker-{n}]: exit code 3"),
        }
    }

    fn skyhook(name: &str) -> Subject {
        Subject::Skyhook {
            name: name.into(),
            uid: format!("uid-of-{name}"),
        }
    }

    fn node(n: u32) -> Subject {
        Subject::Node {
            name: format!("worker-{n}"),
            uid: format!("uid-of-{n}"),
        }
    }

    #[test]
    fn five_thousand_nodes_that_fail_make_a_few_events() {
        let over = Mono::after(WHILE);
        let mut bound = Bound::default();
        let mut sent = Vec::new();
        for n in 0..5000 {
            let at = Mono::from_millis(n.into());
            let both = vec![event(node(n), n), event(skyhook("s"), n)];
            sent.extend(bound.pass(both, at));
        }
        assert_eq!(sent.len(), 20);
        assert_eq!(
            bound
                .pass(vec![event(skyhook("t"), 1)], Mono::after(WHILE / 2))
                .len(),
            1
        );
        assert_eq!(bound.sum_up(over - Duration::from_millis(1)), []);
        assert_eq!(bound.due(), Some(over));
        let sums = bound.sum_up(over);
        assert_eq!(sums.len(), 1);
        let told = (&sums[0].subject, sums[0].reason);
        assert_eq!(told, (&skyhook("s"), "PackageErroring"));
        let want = "4990 more within 60 s: each Node says why in its annotations, and the Skyhook's status.reasons how many \
                    there are; the last one: node [worker-4999]: exit code 3";
        assert_eq!(sums[0].note, want);
        assert_eq!(bound.due(), None);
        let anew = bound.pass(vec![event(skyhook("s"), 1)], over);
        assert_eq!(anew.len(), 1, "it begins anew");
    }

    #[test]
    fn what_is_no_warning_passes() {
        let mut bound = Bound::default();
        for n in 0..100 {
            let good = EventFact {
                warning: false,
                ..event(skyhook("s"), n)
            };
            assert_eq!(bound.pass(vec![good.clone()], Mono::ZERO), [good]);
        }
    }
}
