//! What one replica keeps between passes: the picture, and which writes are under way or have to wait. Pure: the loop
//! feeds it the time, and whatever drives it instead gets the same bookkeeping.

use std::collections::BTreeMap;
use std::time::Duration;

use skyhook_crds::lease::StopReason;

use crate::apply::Outcome;
use crate::config::Settings;
use crate::effect::{Effect, Target};
use crate::guard::{self, Broken};
use crate::index::{Backoff, Change, Index, Mono};
use crate::plan::reason::{Withdrawal, Word};
use crate::plan::{self, Now, Plan, View};

/// How long a write waits that was refused once; doubled each time, up to [`LONGEST_REFUSAL`].
const REFUSAL: Duration = Duration::from_secs(2);

const LONGEST_REFUSAL: Duration = Duration::from_secs(64);

/// The bookkeeping of one replica.
#[derive(Debug)]
pub struct Session<'a> {
    pub index: Index,
    settings: &'a Settings,
    /// What the guard has counted of the picture as it stands.
    counts: Option<guard::Counts>,
    retry_at: BTreeMap<Target, Mono>,
    /// How long the last refusal of a target's write was waited on, and when that was.
    refusals: BTreeMap<Target, (Duration, Mono)>,
}

/// Why an effect is not carried out now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    #[error("the last attempt asked for patience")]
    NotYet,
    #[error(transparent)]
    Broken(#[from] Broken),
}

impl<'a> Session<'a> {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(settings: &'a Settings) -> Self {
        Self {
            index: Index::default(),
            settings,
            counts: None,
            retry_at: BTreeMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    /// Takes a change in. Says whether anything that decisions depend on changed.
    pub fn take(&mut self, change: Change, now: Mono) -> bool {
        self.counts = None;
        self.index.apply(change, now)
    }

    /// Decides. What has to wait before it is tried again asks to be woken as well.
    #[must_use]
    pub fn plan(&self, now: Now) -> Plan {
        let mut plan = plan::plan(&View {
            index: &self.index,
            settings: self.settings,
            now,
        });
        plan.wake_at = self.retry_at.values().copied().chain(plan.wake_at).min();
        plan
    }

    /// Marks the effect's target as being written, or says why the effect is dropped.
    pub fn begin(&mut self, effect: &Effect, now: Mono) -> Result<(), Held> {
        let target = effect.target();
        if self.retry_at.get(&target).is_some_and(|at| *at > now) {
            return Err(Held::NotYet);
        }
        guard::check_counted(&self.index, &mut self.counts, self.settings, effect)?;
        self.retry_at.remove(&target);
        self.index.busy.insert(target);
        if let Effect::ReserveLease { node, spec } = effect {
            self.index
                .creating
                .insert(node.clone(), spec.skyhook.uid.clone());
            self.counts = None;
        }
        Ok(())
    }

    /// Takes in what came of an effect.
    pub fn settle(&mut self, effect: &Effect, outcome: Outcome, now: Mono) {
        self.counts = None;
        let target = effect.target();
        self.index.busy.remove(&target);
        match outcome {
            Outcome::Done(change) => {
                self.refusals.remove(&target);
                self.index.written.insert(target.clone(), now);
                match change {
                    // The watch may have said meanwhile that the object is gone: nothing would ever say so again.
                    Some(change) if self.index.has_lost(&change) => {}
                    Some(change) => {
                        self.index.apply(change, now);
                    }
                    None => self.index.lags(target, effect, now),
                }
                if let Some((node, uid)) = removes(effect) {
                    self.index.has_removed(node, uid, now);
                }
                if let Some((node, backoff)) = self.cool_down(effect, now) {
                    self.index.backoff.insert(node, backoff);
                }
            }
            // A create waits for no version of its object: what is there already may never be delivered.
            Outcome::Stale if is_create(effect) => self.put_off_longer(effect, now),
            Outcome::Stale => self.index.refused(effect, now),
            Outcome::Retry { after, .. } => self.put_off(effect, now, after),
            Outcome::Refused { .. } => self.put_off_longer(effect, now),
        }
    }

    /// Each time for twice as long as the time before.
    fn put_off_longer(&mut self, effect: &Effect, now: Mono) {
        let target = effect.target();
        let after = match self.refusals.get(&target) {
            Some((before, _)) => (*before * 2).min(LONGEST_REFUSAL),
            None => REFUSAL,
        };
        self.refusals.insert(target, (after, now));
        self.put_off(effect, now, after);
    }

    fn put_off(&mut self, effect: &Effect, now: Mono, after: Duration) {
        let target = effect.target();
        self.index.refused(effect, now);
        self.index.stale.remove(&target);
        self.retry_at.insert(target, now + after);
    }

    /// Nodes that did not do their part are left alone for a while, so that others get their turn.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only two kinds leave a node alone"
    )]
    fn cool_down(&self, effect: &Effect, now: Mono) -> Option<(String, Backoff)> {
        match effect {
            Effect::WithdrawLease { node, why, .. } if *why == Withdrawal::AgentNotResponding => {
                let backoff = Backoff {
                    until: now + self.settings.agent_backoff,
                    word: Word::AgentNotResponding,
                    message: "the node's agent did not accept the lease in time: is its pod running there?",
                };
                Some((node.clone(), backoff))
            }
            Effect::ReleaseLease { node, .. } => {
                let lease = self.index.leases.get(node)?.lease.as_ref().ok()?;
                let timed_out = lease.spec.stop.as_ref()?.reason == StopReason::DrainTimedOut;
                let backoff = Backoff {
                    until: now + self.settings.drain_cool_down,
                    word: Word::DrainTimedOut,
                    message: "pods did not leave before the drain's deadline; the node is tried again later",
                };
                timed_out.then(|| (node.clone(), backoff))
            }
            _ => None,
        }
    }

    /// Forgets what no longer holds anything back.
    pub fn expire(&mut self, now: Mono) {
        self.index
            .stale
            .retain(|_, (_, since)| *since + plan::STALE > now);
        self.index.backoff.retain(|_, backoff| backoff.until > now);
        let (leases, stale) = (&self.index.leases, plan::STALE);
        self.index.removed.retain(|node, (uid, since)| {
            leases.get(node).is_some_and(|lease| lease.uid == *uid) && *since + stale > now
        });
        self.index.drains.retain(|node, watch| {
            leases
                .get(node)
                .is_some_and(|lease| lease.uid == watch.lease_uid)
        });
        self.retry_at.retain(|_, at| *at > now);
        self.refusals
            .retain(|_, (_, at)| *at + 2 * LONGEST_REFUSAL > now);
        self.index
            .written
            .retain(|_, at| *at + plan::REMEMBERED > now);
    }
}

const fn is_create(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::CreateRevision { .. } | Effect::ReserveLease { .. }
    )
}

/// The lease that an effect removes: node and UID.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others leave every lease where it is"
)]
fn removes(effect: &Effect) -> Option<(&str, &str)> {
    match effect {
        Effect::WithdrawLease { node, at, .. }
        | Effect::ReleaseLease { node, at }
        | Effect::ReleaseLeaseOfGoneNode { node, at, .. }
        | Effect::AbandonLease { node, at } => Some((node, &at.uid)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Version;

    #[test]
    fn a_write_that_is_refused_again_and_again_is_tried_less_and_less_often() {
        let settings = Settings::default();
        let mut session = Session::new(&settings);
        let effect = Effect::GrantLease {
            node: "n1".into(),
            at: Version {
                uid: "u".into(),
                resource_version: "1".into(),
            },
        };
        let refused = || Outcome::Refused {
            error: "patch interruptionlease/n1: denied".into(),
        };
        let mut now = Mono::ZERO;
        let mut waits = Vec::new();
        for _ in 0..7 {
            session.settle(&effect, refused(), now);
            let at = session.retry_at[&effect.target()];
            waits.push((at - now).as_secs());
            now = at;
            session.expire(now);
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 64]);
        session.settle(&effect, Outcome::Done(None), now);
        session.settle(&effect, refused(), now);
        let at = session.retry_at[&effect.target()];
        assert_eq!((at - now).as_secs(), 2, "it had worked in between");
    }

    #[test]
    fn a_create_that_finds_its_object_there_is_tried_less_and_less_often() {
        let settings = Settings::default();
        let mut session = Session::new(&settings);
        let effect = Effect::ReserveLease {
            node: "n1".into(),
            spec: Box::default(),
        };
        let mut now = Mono::ZERO;
        let mut waits = Vec::new();
        for _ in 0..4 {
            assert_eq!(session.begin(&effect, now), Ok(()));
            session.settle(&effect, Outcome::Stale, now);
            assert_eq!(session.begin(&effect, now), Err(Held::NotYet));
            let at = session.retry_at[&effect.target()];
            waits.push((at - now).as_secs());
            now = at;
            session.expire(now);
        }
        assert_eq!(waits, [2, 4, 8, 16]);
        assert!(
            session.index.creating.is_empty(),
            "it holds no slot meanwhile"
        );
    }
}
