//! What one replica keeps between passes: the picture, and which writes are under way or have to wait. This module is
//! pure: the caller passes the time. So the coordinator's loop and the simulated cluster use the same code.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use crate::clocks::{Backoff, Mono};
use crate::effect::{Effect, Target};
use crate::guard::{self, Broken};
use crate::index::{Change, Index};
use crate::outcome::Outcome;
use crate::picture::Tick;
use crate::plan::cache::{Cache, Counted};
use crate::plan::{Fleet, Now, Plan};
use crate::queue::{Class, Queue};
use crate::repeats::Repeats;
use crate::settings::Settings;
use crate::window::Window;

mod cool_down;

/// How long a write waits after its first refusal or failure. The time is doubled with each further refusal, up to
/// [`LONGEST_REFUSAL`].
const REFUSAL: Duration = Duration::from_secs(2);

/// One in this many slots for writes is reserved for urgent writes.
const RESERVED: usize = 4;

const LONGEST_REFUSAL: Duration = Duration::from_secs(64);

/// The bookkeeping of one replica.
#[derive(Debug)]
pub struct Session<'a> {
    index: Index,
    settings: &'a Settings,
    cache: Cache,
    /// The picture's tick in the last pass; `None` if the next pass must not be skipped.
    planned: Option<Tick>,
    /// When the last plan asked for another pass.
    plan_wakes_at: Option<Mono>,
    /// Progress of the fleet in the last pass.
    fleet: Arc<Fleet>,
    /// What the guard has counted.
    counts: guard::Counts,
    queue: Queue,
    /// For each target that waits to be written: the number of the queue that had it first.
    waits: BTreeMap<Target, u64>,
    /// Queues so far.
    queues: u64,
    /// True while nothing has changed since the effects in the queue were decided.
    is_fresh: bool,
    /// Writes under way that are not urgent.
    ordinary: usize,
    /// How many writes may be under way.
    window: Window,
    /// No write starts before this time, because the API server was too busy.
    not_before: Mono,
    repeats: Repeats,
    /// Until when repeated writes of a target wait. Writes of another content to the same target do not wait.
    paced: BTreeMap<Target, Mono>,
    retry_at: BTreeMap<Target, Mono>,
    /// For each target whose write was refused or failed: how long it waits, and when the last refusal was.
    refusals: BTreeMap<Target, (Duration, Mono)>,
}

/// How many effects are decided and not carried out yet, by what holds them back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldBack {
    /// They wait for a slot for writes.
    pub queued: usize,
    /// The last attempt was refused or failed.
    pub refused: usize,
    /// They would repeat a write that somebody undoes.
    pub repeated: usize,
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
    /// A session with an empty picture.
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
            waits: BTreeMap::new(),
            queues: 0,
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

    /// The index of this session.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// Starts from an index that exists already.
    pub fn start_from(&mut self, index: Index) {
        self.index = index;
        self.cache = Cache::default();
        self.planned = None;
        self.counts = guard::Counts::default();
        self.is_fresh = true;
    }

    /// Takes a change in. Returns true when a decision may depend on it.
    pub fn take(&mut self, change: Change, now: Mono) -> bool {
        self.is_fresh = false;
        // The effects in the queue were decided on the Skyhooks as they were before, and on complete lists.
        if matches!(
            change,
            Change::Skyhook(_) | Change::SkyhookGone(_) | Change::ListBegins(_)
        ) {
            self.queue = Queue::default();
        }
        self.index.apply(change, now)
    }

    /// Makes a pass: makes a plan, and replaces the queue with its effects. Does nothing if nothing has changed since
    /// the last pass and nothing is due. Returns true if a plan was made.
    pub fn pass(&mut self, now: Now) -> bool {
        let is_due = self.wake_at(now.mono).is_some_and(|at| at <= now.mono);
        self.expire(now.mono);
        let seen = self.index.picture().changed();
        if self.planned == Some(seen) && !is_due {
            return false;
        }
        // Thousands of effects may wait that the plan decides anew. They are not kept beside the new ones.
        self.queue = Queue::default();
        let plan = self.plan(now);
        self.enqueue(plan.effects);
        self.plan_wakes_at = plan.wake_at;
        self.fleet = Arc::new(plan.fleet);
        self.planned = Some(seen);
        true
    }

    /// When the next pass is due at the latest: at the time that the last plan asked for, or when a write that waits
    /// may be tried again.
    #[must_use]
    pub fn wake_at(&self, now: Mono) -> Option<Mono> {
        let waits = self.retry_at.values().chain(self.paced.values()).copied();
        let waits = waits.chain((self.not_before > now).then_some(self.not_before));
        waits.chain(self.plan_wakes_at).min()
    }

    /// Empties the queue, because another replica leads.
    pub fn rest(&mut self, now: Mono) {
        self.expire(now);
        self.enqueue(Vec::new());
    }

    /// Progress of the fleet in the last pass.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        Arc::clone(&self.fleet)
    }

    /// What is decided and not carried out yet.
    #[must_use]
    pub fn held_back(&self) -> HeldBack {
        HeldBack {
            queued: self.queue.len(),
            refused: self.retry_at.len(),
            repeated: self.paced.len(),
        }
    }

    /// How many results the last pass computed anew.
    #[must_use]
    pub const fn counted(&self) -> Counted {
        self.cache.counted()
    }

    /// Makes a plan.
    #[must_use]
    pub fn plan(&mut self, now: Now) -> Plan {
        self.cache.plan(&self.index.view(self.settings, now))
    }

    /// Replaces the queue with other effects. Within a class, the effect goes first whose target waits for the longest
    /// time. Of targets that wait equally long, the one goes first that was not written for the longest time.
    pub fn enqueue(&mut self, mut effects: Vec<Effect>) {
        self.queues += 1;
        let mut waited = std::mem::take(&mut self.waits);
        for target in effects.iter().map(Effect::target) {
            let since = waited.remove(&target).unwrap_or(self.queues);
            self.waits.insert(target, since);
        }
        effects.sort_by_cached_key(|effect| {
            let target = effect.target();
            let since = self.waits.get(&target).copied();
            (since, self.index.inflight.written(&target))
        });
        self.queue = Queue::new(effects);
        self.is_fresh = true;
        self.planned = None;
        self.counts.a_pass_was_made();
    }

    /// Starts the next effect, if there is a free slot for it. If the picture has changed since the decision, an effect
    /// is started only while the picture holds the version of the object that the effect was decided on.
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
                // The next pass decides about it again.
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
        self.waits.remove(&target);
        self.index.begins(effect);
        self.ordinary += usize::from(!Class::of(effect).is_urgent());
        // The watch may deliver the deletion before the answer comes, and the answer may be lost. Then no lease says any
        // more why it was released.
        if matches!(effect, Effect::ReleaseLease { .. })
            && let Some((node, backoff)) = self.cool_down(effect, now)
        {
            self.index.back_off(node, backoff);
        }
        Ok(())
    }

    /// Takes in the result of an effect.
    pub fn settle(&mut self, effect: &Effect, outcome: Outcome, now: Mono) {
        self.is_fresh = false;
        let target = effect.target();
        if self.index.ends(effect) && !Class::of(effect).is_urgent() {
            self.ordinary = self.ordinary.saturating_sub(1);
        }
        if let Effect::WriteRollout { name: skyhook, .. } = effect {
            match &outcome {
                Outcome::Done(_) => self.index.wrote_state(skyhook, None),
                Outcome::Refused { error } => self.index.wrote_state(skyhook, Some(error)),
                Outcome::Stale | Outcome::Retry { .. } | Outcome::Busy { .. } => {}
            }
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
            // After a conflict, a create does not wait for the watch: the watch may never deliver the object that
            // exists already.
            Outcome::Stale if is_create(effect) => self.put_off_longer(effect, now),
            Outcome::Stale => self.index.is_refused(effect, true, now),
            Outcome::Retry { .. } => {
                let after = self.longer(&target, now);
                self.put_off(effect, now, spread(&target, after));
            }
            Outcome::Busy { after, .. } => {
                self.not_before = self.not_before.max(now + after);
                self.window.narrow(now);
                self.put_off(effect, now, spread(&target, after));
            }
            Outcome::Refused { .. } => self.put_off_longer(effect, now),
        }
    }

    /// Lets the target's next write wait, each time twice as long as before.
    fn put_off_longer(&mut self, effect: &Effect, now: Mono) {
        let after = self.longer(&effect.target(), now);
        self.put_off(effect, now, after);
    }

    /// How long a target waits that has failed again: twice as long as before.
    fn longer(&mut self, target: &Target, now: Mono) -> Duration {
        let after = match self.refusals.get(target) {
            Some((before, _)) => (*before * 2).min(LONGEST_REFUSAL),
            None => REFUSAL,
        };
        self.refusals.insert(target.clone(), (after, now));
        after
    }

    fn put_off(&mut self, effect: &Effect, now: Mono, after: Duration) {
        let target = effect.target();
        self.index.is_refused(effect, false, now);
        self.retry_at.insert(target, now + after);
    }

    /// The back-off for a node that is left alone for a while after its lease has gone. Other nodes get their turn
    /// meanwhile.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only two kinds leave a node alone"
    )]
    fn cool_down(&mut self, effect: &Effect, now: Mono) -> Option<(String, Backoff)> {
        match effect {
            Effect::WithdrawLease { node, why, .. } => {
                let backoff = cool_down::after_withdrawal(*why, self.settings, now)?;
                Some((node.clone(), backoff))
            }
            Effect::ReleaseLease { node, .. } => {
                let backoff = cool_down::after(&mut self.index, self.settings, node, now)?;
                Some((node.clone(), backoff))
            }
            _ => None,
        }
    }

    /// Forgets entries whose time is over.
    pub fn expire(&mut self, now: Mono) {
        self.index.expire(now);
        self.retry_at.retain(|_, at| *at > now);
        self.paced.retain(|_, at| *at > now);
        self.repeats.expire(now);
        self.refusals
            .retain(|_, (_, at)| *at + 2 * LONGEST_REFUSAL > now);
    }
}

/// Makes a delay up to a quarter longer, depending on the target, so that writes that failed together are not repeated
/// together.
fn spread(target: &Target, after: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    target.hash(&mut hasher);
    let part = u32::try_from(hasher.finish() % 256).unwrap_or_default();
    after + after / 1024 * part
}

const fn is_create(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::CreateRevision { .. }
            | Effect::ReserveLease { .. }
            | Effect::WriteRollout { at: None, .. }
    )
}

#[cfg(test)]
mod tests;
