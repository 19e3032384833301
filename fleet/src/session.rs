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
use crate::repeats::Repeats;
use crate::settings::Settings;
use crate::window::Window;

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
    plan_wakes_at: Option<Mono>,
    /// How far the fleet was in the last pass.
    fleet: Arc<Fleet>,
    /// What the guard has counted.
    counts: guard::Counts,
    queue: Queue,
    /// True until something changed since the queue was decided.
    is_fresh: bool,
    /// Writes under way that are not urgent.
    ordinary: usize,
    /// How many writes may be under way.
    window: Window,
    /// Until when the API server has asked for patience.
    not_before: Mono,
    repeats: Repeats,
    /// Until when writes wait that somebody takes back again and again. Others of the same object do not.
    paced: BTreeMap<Target, Mono>,
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
            plan_wakes_at: None,
            fleet: Arc::default(),
            counts: guard::Counts::default(),
            queue: Queue::default(),
            is_fresh: true,
            ordinary: 0,
            window: Window::new(settings.max_in_flight),
            not_before: Mono::ZERO,
            repeats: Repeats::default(),
            paced: BTreeMap::new(),
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

    /// A pass: decides, and queues what is decided in place of what was decided before. Does nothing while nothing has
    /// changed since the pass before and nothing is due.
    pub fn pass(&mut self, now: Now) {
        let is_due = self.wake_at(now.mono).is_some_and(|at| at <= now.mono);
        self.expire(now.mono);
        let seen = self.index.picture().changed();
        if self.planned == Some(seen) && !is_due {
            return;
        }
        let plan = self.plan(now);
        self.enqueue(plan.effects);
        self.plan_wakes_at = plan.wake_at;
        self.fleet = Arc::new(plan.fleet);
        self.planned = Some(seen);
    }

    /// When to decide again at the latest: as the last plan says, and when what has to wait may be tried again.
    #[must_use]
    pub fn wake_at(&self, now: Mono) -> Option<Mono> {
        let waits = self.retry_at.values().chain(self.paced.values()).copied();
        let waits = waits.chain((self.not_before > now).then_some(self.not_before));
        waits.chain(self.plan_wakes_at).min()
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

    /// Decides.
    #[must_use]
    pub fn plan(&mut self, now: Now) -> Plan {
        self.cache.plan(&self.index.view(self.settings, now))
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
            let most = self.window.size();
            let is_narrowed = most < self.settings.max_in_flight;
            let kept = (most / RESERVED).max(usize::from(is_narrowed));
            let (busy, ordinary) = (self.index.inflight.under_way(), self.ordinary);
            let may_start =
                |class: Class| busy < most && (class.is_urgent() || ordinary < most - kept);
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
        if let Some(until) = self.repeats.wait(effect, now) {
            self.paced.insert(target, until);
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
                self.window.widen();
                self.repeats.wrote(effect, now);
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
                self.window.narrow(now);
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
        self.paced.retain(|_, at| *at > now);
        self.repeats.expire(now);
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
mod tests;
