//! What the log says about writes: one line per second with what was written, and warnings about writes that fail, for
//! each object at most one per minute.

use std::collections::BTreeMap;
use std::time::Duration;

use skyhook_fleet::effect::{Effect, Target};
use skyhook_fleet::index::Mono;

/// How often the line about what was written is logged.
const EVERY: Duration = Duration::from_secs(1);
/// How long no second warning about the same object is logged.
const QUIET: Duration = Duration::from_secs(60);

/// What was written since the last line, and what was warned of.
#[derive(Debug, Default)]
pub struct Report {
    written: BTreeMap<&'static str, usize>,
    /// When the first of them was written.
    since: Option<Mono>,
    warned: BTreeMap<Target, Mono>,
}

impl Report {
    /// An effect was written.
    pub fn wrote(&mut self, effect: &Effect, now: Mono) {
        // This only reads.
        if matches!(effect, Effect::SurveyPods { .. }) {
            return;
        }
        *self.written.entry(effect.kind()).or_default() += 1;
        self.since.get_or_insert(now);
    }

    /// When the next line is due.
    #[must_use]
    pub fn due(&self) -> Option<Mono> {
        self.since.map(|since| since + EVERY)
    }

    /// What was written since the last line, if a line is due.
    pub fn sum_up(&mut self, now: Mono) -> Option<String> {
        self.due().filter(|due| *due <= now)?;
        self.since = None;
        let written = std::mem::take(&mut self.written).into_iter();
        let parts: Vec<String> = written
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        Some(parts.join(", "))
    }

    /// True when a failed write of this object is to be warned of. This is the case once a minute.
    pub fn is_to_be_warned_of(&mut self, target: &Target, now: Mono) -> bool {
        self.warned.retain(|_, at| *at + QUIET > now);
        if self.warned.contains_key(target) {
            return false;
        }
        self.warned.insert(target.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use skyhook_fleet::effect::AsOf;

    use super::*;

    fn at() -> AsOf {
        AsOf {
            uid: "u".into(),
            resource_version: "1".into(),
        }
    }

    fn grant(node: &str) -> Effect {
        Effect::GrantLease {
            node: node.into(),
            at: at(),
            batch: None,
        }
    }

    #[test]
    fn a_second_of_writes_is_one_line() {
        let mut report = Report::default();
        let (first, second) = (Mono::from_secs(10), Mono::from_secs(11));
        assert_eq!((report.due(), report.sum_up(second)), (None, None));
        for node in ["a", "b"] {
            report.wrote(&grant(node), first);
            report.wrote(
                &Effect::SurveyPods {
                    node: node.into(),
                    lease_uid: "u".into(),
                    consistent: true,
                },
                first,
            );
        }
        let node = Effect::PatchNode {
            node: "a".into(),
            at: at(),
            patch: skyhook_fleet::effect::NodePatch::default(),
            why: [].into(),
        };
        report.wrote(&node, second);
        assert_eq!(report.due(), Some(second));
        assert_eq!(report.sum_up(first), None);
        let line = report.sum_up(second);
        assert_eq!(line.as_deref(), Some("2 GrantLease, 1 PatchNode"));
        assert_eq!(report.sum_up(Mono::from_secs(20)), None, "nothing since");
    }

    #[test]
    fn a_write_that_fails_again_and_again_is_warned_of_once_a_minute() {
        let mut report = Report::default();
        let mut warned = |node: &str, seconds| {
            report.is_to_be_warned_of(&Target::Node(node.into()), Mono::from_secs(seconds))
        };
        assert!(warned("a", 0));
        assert!(!warned("a", 2) && !warned("a", 59));
        assert!(warned("b", 59), "another object");
        assert!(warned("a", 60));
    }
}
