//! Delays writes that are repeated because somebody undoes them: a controller removes our labels, a GitOps tool removes
//! the finalizer, a reboot daemon uncordons a node. The first repeat is made at once. Each further repeat waits twice
//! as long as the one before. So such a conflict costs one write in some minutes, and not hundreds of writes per
//! second.
//!
//! Only a write of the same content to the same object is a repeat. A write of another content, for example a result,
//! does not wait.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use skyhook_crds::names;
use skyhook_crds::skyhook::NodeReason;

use crate::effect::{Effect, NodePatch, Target};
use crate::index::Mono;

/// How long the second repeat waits; doubled each time, up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// Contents that are remembered of one object.
const REMEMBERED: usize = 8;

/// What was written lately.
#[derive(Debug, Default)]
pub struct Repeats(BTreeMap<Target, Vec<Repeat>>);

#[derive(Debug, PartialEq, Eq)]
struct Repeat {
    content: u64,
    /// How often it was written again.
    times: u32,
    at: Mono,
}

impl Repeat {
    /// How long the next repeat waits.
    fn interval(&self) -> Duration {
        match self.times {
            0 => Duration::ZERO,
            times => FIRST
                .saturating_mul(1_u32 << (times - 1).min(16))
                .min(LONGEST),
        }
    }

    /// From this time on, the next write of the content counts as the first one again.
    fn forgotten(&self) -> Mono {
        self.at + 2 * self.interval() + 10 * FIRST
    }
}

impl Repeats {
    /// Until when a write has to wait because it is a repeat; `None` if it may be made now.
    #[must_use]
    pub fn wait(&self, effect: &Effect, now: Mono) -> Option<Mono> {
        let content = content(effect)?;
        let known = self.0.get(&effect.target())?;
        let repeat = known.iter().find(|repeat| repeat.content == content)?;
        let next = repeat.at + repeat.interval();
        (next > now && repeat.forgotten() > now).then_some(next)
    }

    /// A write was made.
    pub fn wrote(&mut self, effect: &Effect, now: Mono) {
        let Some(content) = content(effect) else {
            return;
        };
        let known = self.0.entry(effect.target()).or_default();
        known.retain(|repeat| repeat.forgotten() > now);
        match known.iter_mut().find(|repeat| repeat.content == content) {
            Some(repeat) => {
                repeat.times = repeat.times.saturating_add(1);
                repeat.at = now;
            }
            None => {
                if known.len() >= REMEMBERED {
                    known.remove(0);
                }
                let (times, at) = (0, now);
                known.push(Repeat { content, times, at });
            }
        }
    }

    /// Forgets contents that were not written again for a long time.
    pub fn expire(&mut self, now: Mono) {
        self.0.retain(|_, known| {
            known.retain(|repeat| repeat.forgotten() > now);
            !known.is_empty()
        });
    }
}

/// A digest of the written content; `None` for effects that nobody else undoes.
fn content(effect: &Effect) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    match effect {
        Effect::PatchNode { patch, .. } => node(patch, &mut hasher),
        Effect::AdoptSkyhook { finalizers, .. } => finalizers.hash(&mut hasher),
        Effect::WriteSkyhookStatus { status, .. } => {
            serde_json::to_string(status).ok()?.hash(&mut hasher);
        }
        Effect::WriteRollout { spec, .. } => {
            serde_json::to_string(spec).ok()?.hash(&mut hasher);
        }
        Effect::CreateRevision { .. } => {}
        Effect::ReleaseSkyhook { .. }
        | Effect::RenumberRevision { .. }
        | Effect::DisownRevision { .. }
        | Effect::PruneRevision { .. }
        | Effect::DeleteRollout { .. }
        | Effect::LookForLeases { .. }
        | Effect::LookForState { .. }
        | Effect::ReserveLease { .. }
        | Effect::GrantLease { .. }
        | Effect::StopLease { .. }
        | Effect::SetDrain { .. }
        | Effect::WithdrawLease { .. }
        | Effect::ReleaseLease { .. }
        | Effect::ReleaseLeaseOfGoneNode { .. }
        | Effect::AbandonLease { .. }
        | Effect::SurveyPods { .. }
        | Effect::EvictPod { .. } => return None,
    }
    Some(hasher.finish())
}

fn node(patch: &NodePatch, hasher: &mut DefaultHasher) {
    patch.labels.hash(hasher);
    patch.unschedulable.hash(hasher);
    let taints = patch.taints.iter().flatten();
    let taints = taints.map(|taint| (&taint.key, &taint.value, &taint.effect));
    taints.collect::<Vec<_>>().hash(hasher);
    let reason = names::reason("");
    for (key, value) in &patch.annotations {
        key.hash(hasher);
        if key.starts_with(&reason) {
            // The time in a reason differs in each write.
            let said = value.as_deref().map(serde_json::from_str::<NodeReason>);
            let said = said.and_then(Result::ok);
            said.map(|said| (said.reason, said.message)).hash(hasher);
        } else {
            value.hash(hasher);
        }
    }
    for (name, condition) in &patch.conditions {
        let said = condition.as_ref().map(|c| (&c.status, &c.reason));
        (name, said).hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::AsOf;

    fn patch(node: &str, label: &str, since: &str) -> Effect {
        saying(node, label, "works", since)
    }

    fn saying(node: &str, label: &str, message: &str, since: &str) -> Effect {
        let why = format!(r#"{{"reason":"Code","message":"{message}","since":"{since}"}}"#);
        let mut patch = NodePatch::default().annotation(&names::reason("s"), Some(why));
        patch.labels.insert("status".into(), Some(label.into()));
        Effect::PatchNode {
            node: node.into(),
            at: AsOf {
                uid: "u".into(),
                // Each time over another version.
                resource_version: since.into(),
            },
            patch,
            why: [].into(),
        }
    }

    /// Makes a write whenever it may be made, for so long; says at which seconds.
    fn fight(repeats: &mut Repeats, from: u64, seconds: u64) -> Vec<u64> {
        let mut made = Vec::new();
        for ms in (from * 1000..(from + seconds) * 1000).step_by(100) {
            let now = Mono::from_millis(ms);
            let effect = patch("n", "complete", &ms.to_string());
            repeats.expire(now);
            if repeats.wait(&effect, now).is_none() {
                repeats.wrote(&effect, now);
                made.push(ms / 1000);
            }
        }
        made
    }

    #[test]
    fn what_is_taken_back_again_and_again_is_written_less_and_less_often() {
        let mut repeats = Repeats::default();
        let made = fight(&mut repeats, 0, 2000);
        assert_eq!(
            made,
            [
                0, 0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111, 1411, 1711
            ]
        );
        assert_eq!(
            fight(&mut repeats, 3000, 2).len(),
            3,
            "after a long peace it begins anew"
        );
    }

    #[test]
    fn what_is_written_for_the_first_time_does_not_wait() {
        let mut repeats = Repeats::default();
        fight(&mut repeats, 0, 60);
        let now = Mono::from_secs(60);
        for (name, effect, waits) in [
            (
                "the same, whenever its reason began",
                patch("n", "complete", "x"),
                true,
            ),
            (
                "another reason",
                saying("n", "complete", "waits", "x"),
                false,
            ),
            ("another label", patch("n", "erroring", "x"), false),
            ("another node", patch("m", "complete", "x"), false),
        ] {
            assert_eq!(repeats.wait(&effect, now).is_some(), waits, "{name}");
        }
    }

    #[test]
    fn there_and_back_is_a_repeat_as_well() {
        let mut repeats = Repeats::default();
        let mut made = 0;
        for ms in (0..60_000).step_by(100) {
            let now = Mono::from_millis(ms);
            for label in ["paused", "in_progress"] {
                let effect = patch("n", label, "x");
                if repeats.wait(&effect, now).is_none() {
                    repeats.wrote(&effect, now);
                    made += 1;
                }
            }
        }
        assert_eq!(made, 14, "two contents, seven times each in a minute");
    }

    #[test]
    fn what_only_we_write_is_not_counted() {
        let mut repeats = Repeats::default();
        let survey = Effect::SurveyPods {
            node: "n".into(),
            lease_uid: "u".into(),
            consistent: true,
        };
        for _ in 0..10 {
            repeats.wrote(&survey, Mono::ZERO);
            assert_eq!(repeats.wait(&survey, Mono::ZERO), None);
        }
    }
}
