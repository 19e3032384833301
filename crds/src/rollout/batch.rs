//! One compartment's batches: opening one, keeping what failed in it, judging it, and the size of the next.
//!
//! ```text
//!            open                   latch (any number of times)
//! (none) ───────────► open batch ─────────────────────────────► open batch
//!    ▲                    │
//!    │ judge, or close    │ judge: a failure too many
//!    └────────────────────┴──────────────────────────────► stopped, until a reset
//! ```

use super::{CompartmentState, RolloutStateSpec};
use crate::policy::{Growth, Pace};

/// What a pass has counted of a compartment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes in the compartment.
    pub matched: usize,
    /// Those that are complete at the wanted revision.
    pub complete: usize,
    /// Those that have failed for good.
    pub failed: usize,
}

impl Counts {
    /// Percent of nodes that have ended, rounded down.
    #[must_use]
    pub fn progress(&self) -> u32 {
        let ended = self.complete + self.failed;
        let percent = (ended * 100).checked_div(self.matched).unwrap_or_default();
        u32::try_from(percent).unwrap_or(100).min(100)
    }
}

/// Room for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many nodes of the compartment may be worked on at once.
    pub ceiling: usize,
    /// How many are free of those, and of what all compartments share.
    pub free: usize,
    /// Nodes that could be members.
    pub candidates: usize,
}

/// The size of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// What the strategy asks for, below the ceiling.
    pub target: usize,
    /// How many members there can be now.
    pub members: usize,
}

impl Size {
    /// True when slots that others hold made the batch smaller than its strategy asks.
    #[must_use]
    pub const fn is_cut(&self, room: &Room) -> bool {
        self.members < self.target && self.members < room.candidates
    }
}

impl CompartmentState {
    /// One that nothing has happened to yet.
    #[must_use]
    pub fn new(run: i32) -> Self {
        Self {
            run,
            shown: 1,
            ..Self::default()
        }
    }

    /// True while a batch is under way.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.batch != 0
    }

    /// The position of a node, by [`super::member`], in the open batch.
    #[must_use]
    pub fn position(&self, member: &str) -> Option<usize> {
        self.members.iter().position(|one| one == member)
    }

    /// `SKYHOOK_NODE_ORDER` of the member at a position.
    #[must_use]
    pub fn order(&self, position: usize) -> i64 {
        self.order_base
            .saturating_add(i64::try_from(position).unwrap_or(i64::MAX))
    }

    /// True when the failure of the member at `position` is kept.
    #[must_use]
    pub fn has_failed(&self, position: usize) -> bool {
        contains(&self.failed, position)
    }

    /// Keeps that the member at `position` failed. Says whether that is new.
    pub fn latch(&mut self, position: usize) -> bool {
        position < self.members.len() && insert(&mut self.failed, position)
    }

    /// True when the member at `position` gets no lease in this batch any more.
    #[must_use]
    pub fn is_struck(&self, position: usize) -> bool {
        contains(&self.struck, position)
    }

    /// Gives the member at `position` no lease in this batch any more. Says whether that is new.
    pub fn strike(&mut self, position: usize) -> bool {
        position < self.members.len() && insert(&mut self.struck, position)
    }

    /// True when the open batch is this one and may lease a node, by [`super::member`].
    #[must_use]
    pub fn may_lease(&self, batch: i64, member: &str) -> bool {
        let position = self.position(member);
        self.batch == batch
            && self.is_open()
            && self.stopped.is_none()
            && position.is_some_and(|position| !self.is_struck(position))
    }

    /// Judges the open batch, in which `complete` members succeeded, and closes it.
    ///
    /// Members that left without an end are not counted. The thresholds are those of the policy as it is now.
    pub fn judge(&mut self, pace: &Pace, complete: usize, counts: &Counts, now: &str) {
        let ok = i64::try_from(complete).unwrap_or(i64::MAX / 200);
        let size = ok + i64::try_from(self.failed.len()).unwrap_or(i64::MAX / 200);
        if size == 0 {
            self.close();
            return;
        }
        let success = ok * 100 / size;
        self.last_batch_failed = success < i64::from(pace.batch_threshold);
        self.last_batch_size = i32::try_from(size).unwrap_or(i32::MAX);
        self.base = if self.cut {
            self.target
        } else {
            self.last_batch_size
        };
        self.consecutive_failures = if self.last_batch_failed {
            self.consecutive_failures.saturating_add(1)
        } else {
            0
        };
        self.shown = self.shown.saturating_add(1);
        let limit = pace
            .failure_threshold
            .map(|limit| i64::from(self.consecutive_failures) >= i64::from(limit));
        if limit == Some(true) && counts.progress() < pace.safety_limit && self.stopped.is_none() {
            self.stopped = Some(now.to_owned());
        }
        self.close();
    }

    /// Closes the open batch without a judgement: all its members left before any of them ended.
    pub fn close(&mut self) {
        self.batch = 0;
        self.cut = false;
        self.members.clear();
        self.failed.clear();
        self.struck.clear();
    }

    /// The size of the batch that could be opened now. No members: none can.
    #[must_use]
    pub fn next_size(&self, pace: &Pace, counts: &Counts, room: &Room) -> Size {
        let shrinks = self.last_batch_failed && counts.progress() < pace.safety_limit;
        let base = u32::try_from(self.base).unwrap_or_default();
        let asked = match pace.growth {
            Growth::Fixed => pace.initial_batch,
            Growth::Linear { .. } | Growth::Exponential { .. } if base == 0 => pace.initial_batch,
            Growth::Linear { delta } if shrinks => base.saturating_sub(delta).max(1),
            Growth::Linear { delta } => base.saturating_add(delta),
            Growth::Exponential { factor } if shrinks => (base / factor.max(1)).max(1),
            Growth::Exponential { factor } => base.saturating_mul(factor),
        };
        let asked = usize::try_from(asked).unwrap_or(usize::MAX);
        let target = asked.min(room.ceiling);
        let stopped = self.stopped.is_some();
        Size {
            target,
            members: if stopped {
                0
            } else {
                target.min(room.free).min(room.candidates)
            },
        }
    }
}

impl RolloutStateSpec {
    /// Opens a batch of `members` in a compartment that has none open. Says its number.
    ///
    /// `least_order` is one more than the greatest `SKYHOOK_NODE_ORDER` that a node has. Compartments without batches give
    /// orders as well, and those are not counted in the state.
    pub fn open(
        &mut self,
        compartment: &str,
        members: Vec<String>,
        size: Size,
        room: &Room,
        least_order: i64,
    ) -> i64 {
        let number = self.next_batch;
        let order = self.next_order.max(least_order);
        let count = i64::try_from(members.len()).unwrap_or(i64::MAX);
        self.next_batch = number.saturating_add(1);
        self.next_order = order.saturating_add(count);
        let state = self
            .compartments
            .entry(compartment.to_owned())
            .or_insert_with(|| CompartmentState::new(1));
        state.batch = number;
        state.target = i32::try_from(size.target).unwrap_or(i32::MAX);
        state.cut = size.is_cut(room);
        state.members = members;
        state.order_base = order;
        state.failed = Vec::new();
        state.struck = Vec::new();
        number
    }
}

/// True when `position` is in the rising `positions`.
fn contains(positions: &[i32], position: usize) -> bool {
    i32::try_from(position).is_ok_and(|position| positions.binary_search(&position).is_ok())
}

/// Adds `position` to the rising `positions`. Says whether it was not there.
fn insert(positions: &mut Vec<i32>, position: usize) -> bool {
    let Ok(position) = i32::try_from(position) else {
        return false;
    };
    match positions.binary_search(&position) {
        Ok(_) => false,
        Err(place) => {
            positions.insert(place, position);
            true
        }
    }
}
