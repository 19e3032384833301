//! What one replica keeps between passes: the picture, and which writes are under way or have to wait. Pure: the loop
//! feeds it the time, and whatever drives it instead gets the same bookkeeping.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use skyhook_crds::lease::StopReason;

use crate::clocks::{Backoff, Mono};
use crate::effect::{Effect, Target};
use crate::guard::{self, Broken};
use crate::index::{Change, Index};
use crate::outcome::Outcome;
use crate::picture::Tick;
use crate::plan::cache::{Cache, Counted};
use crate::plan::reason::{Withdrawal, Word};
use crate::plan::{Fleet, Now, Plan};
use crate::queue::{Class, Queue};
use crate::settings::Settings;

/// How long a write waits that was refused once; doubled each time, up to [`LONGEST_REFUSAL`].
const REFUSAL: Duration = Duration::from_secs(2);

/// One in so many slots for writes is kept for those that are urgent.
const RESERVED: usize = 4;

const LONGEST_REFUSAL: Duration = Duration::from_secs(64);

/// The bookkeeping of one replica.
#[derive(Debug)]
pub struct Session<'a> {
    index: Index,
    settings: &'a Settings,
    cache: Cache,
    /// The state of the picture that the last pass saw; `None` when the next pass is not to be left out.
    planned: Option<Tick>,
    /// When the last pass wanted to be woken.
    wake_at: Option<Mono>,
    /// How far the fleet was in the last pass.
    fleet: Arc<Fleet>,
    /// What the guard has counted.
    counts: guard::Counts,
    queue: Queue,
    /// True until something changed since the queue was decided.
    is_fresh: bool,
    /// Writes under way that are not urgent.
    ordinary: usize,
    /// Until when the API server has asked for patience.
    not_before: Mono,
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
    Refused(#[from] Broken),
}

impl<'a> Session<'a> {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(settings: &'a Settings) -> Self {
        Self {
            index: Index::default(),
            settings,
            cache: Cache::default(),
            planned: None,
            wake_at: None,
            fleet: Arc::default(),
            counts: guard::Counts::default(),
            queue: Queue::default(),
            is_fresh: true,
            ordinary: 0,
            not_before: Mono::ZERO,
            retry_at: BTreeMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    /// What is known.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// Goes on from what is known already.
    pub fn start_from(&mut self, index: Index) {
        self.index = index;
        self.cache = Cache::default();
        self.planned = None;
        self.counts = guard::Counts::default();
        self.is_fresh = true;
    }

    /// Takes a change in. Says whether anything that decisions depend on changed.
    pub fn take(&mut self, change: Change, now: Mono) -> bool {
        self.is_fresh = false;
        // What is decided stands on what its Skyhook asks for, and on whole lists.
        if matches!(
            change,
            Change::Skyhook(_) | Change::SkyhookGone(_) | Change::ListBegins(_)
        ) {
            self.queue = Queue::default();
        }
        self.index.apply(change, now)
    }

    /// A pass: decides, and queues what is decided in place of what was decided before. Says when to look again. Does
    /// nothing while nothing has changed since the pass before and nothing is due.
    pub fn pass(&mut self, now: Now) -> Option<Mono> {
        self.expire(now.mono);
        let seen = self.index.picture().changed();
        let is_due = self.wake_at.is_some_and(|at| at <= now.mono);
        if self.planned == Some(seen) && !is_due {
            return self.wake_at;
        }
        let plan = self.plan(now);
        self.enqueue(plan.effects);
        self.wake_at = plan.wake_at;
        self.fleet = Arc::new(plan.fleet);
        self.planned = Some(seen);
        self.wake_at
    }

    /// Forgets what is decided: another replica leads.
    pub fn rest(&mut self, now: Mono) {
        self.expire(now);
        self.enqueue(Vec::new());
    }

    /// How far the fleet was in the last pass.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet)
    }

    /// What the last pass computed anew.
    #[must_use]
    pub const fn counted(&self) -> Counted {
        self.cache.counted()
    }

    /// Decides. What has to wait before it is tried again asks to be woken as well.
    #[must_use]
    pub fn plan(&mut self, now: Now) -> Plan {
        let mut plan = self.cache.plan(&self.index.view(self.settings, now));
        let patience = (self.not_before > now.mono).then_some(self.not_before);
        let waits = self.retry_at.values().copied().chain(patience);
        plan.wake_at = waits.chain(plan.wake_at).min();
        plan
    }

    /// Queues what was decided, in place of what was decided before. Of equals, the one goes first whose target has not been
    /// written for longest.
    pub fn enqueue(&mut self, mut effects: Vec<Effect>) {
        effects.sort_by_cached_key(|effect| self.index.inflight.written(&effect.target()));
        self.queue = Queue::new(effects);
        self.is_fresh = true;
        self.planned = None;
        self.counts.a_pass_was_made();
    }

    /// Begins the next effect that may be under way beside those that are. What was decided on a picture that has changed
    /// since is begun while the version that it was decided on is still the one that is held.
    pub fn begin_next(&mut self, now: Mono) -> Option<Result<Effect, (Effect, Broken)>> {
        if now < self.not_before {
            return None;
        }
        loop {
            let most = self.settings.max_in_flight;
            let (busy, ordinary) = (self.index.inflight.under_way(), self.ordinary);
            let may_start = |class: Class| {
                busy < most && (class.is_urgent() || ordinary < most - most / RESERVED)
            };
            let effect = self.queue.next(may_start)?;
            if !self.is_fresh && !self.index.still_holds(&effect) {
                self.planned = None;
                continue;
            }
            match self.begin(&effect, now) {
                Ok(()) => return Some(Ok(effect)),
                Err(Held::Refused(rule)) if self.is_fresh => return Some(Err((effect, rule))),
                // The next plan thinks of it again.
                Err(Held::Refused(_) | Held::NotYet) => self.planned = None,
            }
        }
    }

    /// Marks the effect's target as being written, or says why the effect is dropped.
    pub fn begin(&mut self, effect: &Effect, now: Mono) -> Result<(), Held> {
        let target = effect.target();
        if self.retry_at.get(&target).is_some_and(|at| *at > now) {
            return Err(Held::NotYet);
        }
        guard::check_counted(&self.index, &mut self.counts, self.settings, effect)?;
        self.retry_at.remove(&target);
        self.index.begins(effect);
        self.ordinary += usize::from(!Class::of(effect).is_urgent());
        Ok(())
    }

    /// Takes in what came of an effect.
    pub fn settle(&mut self, effect: &Effect, outcome: Outcome, now: Mono) {
        self.is_fresh = false;
        let target = effect.target();
        if self.index.ends(effect) && !Class::of(effect).is_urgent() {
            self.ordinary = self.ordinary.saturating_sub(1);
        }
        match outcome {
            Outcome::Done(answer) => {
                self.refusals.remove(&target);
                self.index.is_done(effect, answer, now);
                if let Some((node, backoff)) = self.cool_down(effect, now) {
                    self.index.back_off(node, backoff);
                }
            }
            // A create waits for no version of its object: what is there already may never be delivered.
            Outcome::Stale if is_create(effect) => self.put_off_longer(effect, now),
            Outcome::Stale => self.index.is_refused(effect, true, now),
            Outcome::Retry { after, .. } => self.put_off(effect, now, spread(&target, after)),
            Outcome::Busy { after, .. } => {
                self.not_before = self.not_before.max(now + after);
                self.put_off(effect, now, spread(&target, after));
            }
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
        self.index.is_refused(effect, false, now);
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
                let lease = self.index.picture.leases().get(node)?.lease.as_ref().ok()?;
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
        self.index.expire(now);
        self.retry_at.retain(|_, at| *at > now);
        self.refusals
            .retain(|_, (_, at)| *at + 2 * LONGEST_REFUSAL > now);
    }
}

/// Up to a quarter longer, by what is written: what failed together does not come back together.
fn spread(target: &Target, after: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    target.hash(&mut hasher);
    let part = u32::try_from(hasher.finish() % 256).unwrap_or_default();
    after + after / 1024 * part
}

const fn is_create(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::CreateRevision { .. } | Effect::ReserveLease { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::AsOf;
    use crate::plan::cause::Cause;

    #[test]
    fn a_write_that_is_refused_again_and_again_is_tried_less_and_less_often() {
        let settings = Settings::default();
        let mut session = Session::new(&settings);
        let effect = Effect::GrantLease {
            node: "n1".into(),
            at: AsOf {
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
            session.index.inflight.creates().next().is_none(),
            "it holds no slot meanwhile"
        );
    }

    fn node_write(node: &str, cause: Cause) -> Effect {
        Effect::PatchNode {
            node: node.into(),
            at: AsOf {
                uid: "u".into(),
                resource_version: "1".into(),
            },
            patch: crate::effect::NodePatch::default(),
            why: [cause].into(),
        }
    }

    fn survey(node: &str) -> Effect {
        Effect::SurveyPods {
            node: node.into(),
            lease_uid: "u".into(),
        }
    }

    fn reservation(node: &str) -> Effect {
        Effect::ReserveLease {
            node: node.into(),
            spec: Box::default(),
        }
    }

    /// What is begun now, by kind and node.
    fn begun(session: &mut Session<'_>) -> Vec<Target> {
        let next = || Some(session.begin_next(Mono::ZERO)?.expect("no rule is broken"));
        std::iter::from_fn(next).map(|e| e.target()).collect()
    }

    #[test]
    fn what_gives_back_goes_first_and_has_slots_of_its_own() {
        let settings = Settings {
            max_in_flight: 4,
            ..Settings::default()
        };
        let mut session = Session::new(&settings);
        let effects = || {
            let mut effects: Vec<Effect> = ["a", "b", "c", "d"].map(survey).into();
            effects.push(reservation("e"));
            effects.push(node_write("f", Cause::Status));
            effects
        };
        session.enqueue(effects());
        let pods = |node: &str| Target::Pods(node.into());
        assert_eq!(begun(&mut session), [pods("a"), pods("b"), pods("c")]);
        let mut more = effects();
        more.push(node_write("g", Cause::Result));
        session.enqueue(more);
        assert_eq!(begun(&mut session), [Target::Node("g".into())]);
    }

    #[test]
    fn whose_last_write_is_longest_ago_goes_first() {
        let settings = Settings {
            max_in_flight: 2,
            ..Settings::default()
        };
        let mut session = Session::new(&settings);
        for (node, at) in [("a", 3), ("b", 1), ("c", 2)] {
            let target = Target::Pods(node.into());
            session
                .index
                .inflight
                .set_written(target, Mono::from_secs(at));
        }
        session.enqueue(["a", "b", "c"].map(survey).into());
        let first = begun(&mut session);
        assert_eq!(first, ["b", "c"].map(|node| Target::Pods(node.into())));
    }

    #[test]
    fn what_waited_for_a_slot_is_begun_when_there_is_one_unless_it_is_history() {
        let settings = Settings {
            max_in_flight: 1,
            ..Settings::default()
        };
        let mut session = Session::new(&settings);
        session.enqueue(vec![
            reservation("a"),
            reservation("b"),
            reservation("c"),
            node_write("gone", Cause::Status),
        ]);
        assert_eq!(begun(&mut session), [Target::Lease("a".into())]);
        let lease =
            serde_json::json!({ "metadata": { "name": "b", "uid": "u", "resourceVersion": "1" } });
        let lease = Box::new(serde_json::from_value(lease).expect("it is a lease"));
        session.take(Change::Lease(lease), Mono::ZERO);
        session.settle(&reservation("a"), Outcome::Done(None), Mono::ZERO);
        assert_eq!(begun(&mut session), [Target::Lease("c".into())]);
        session.settle(&reservation("c"), Outcome::Done(None), Mono::ZERO);
        assert_eq!(
            begun(&mut session),
            [],
            "there is no such Node in that version"
        );
    }

    #[test]
    fn a_server_that_asks_for_patience_is_left_alone_and_not_asked_by_all_at_once() {
        let settings = Settings::default();
        let mut session = Session::new(&settings);
        let all: Vec<Effect> = (0..40).map(|n| survey(&format!("n{n}"))).collect();
        session.enqueue(all.clone());
        let first = session.begin_next(Mono::ZERO).unwrap().unwrap();
        let after = Duration::from_secs(8);
        let error = "too many requests".to_owned();
        session.settle(&first, Outcome::Busy { after, error }, Mono::ZERO);
        assert_eq!(session.begin_next(after - Duration::from_millis(1)), None);
        session.enqueue(all.clone());
        assert!(session.begin_next(after).is_some());
        let waits = all.iter().map(|effect| spread(&effect.target(), after));
        let waits: std::collections::BTreeSet<Duration> = waits.collect();
        assert!(waits.len() > 20, "{waits:?}");
        assert!(
            waits
                .iter()
                .all(|wait| *wait >= after && *wait < after * 5 / 4)
        );
    }
}
