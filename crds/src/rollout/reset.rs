//! When a compartment starts anew: a completed roll-out, a new version of a package, another policy, or somebody who
//! resets it in the Skyhook's status, as `kubectl skyhook deployment-policy reset` does.
//!
//! That command writes `currentBatch: 1` over the batch state in the status, in a merge patch that names no version. Its
//! copy may be old, other fields of the batch state stay as they are, and the coordinator may write the status at the same
//! time. So the coordinator keeps two things beside each batch state that it publishes: the `run` that it shows, and a
//! digest of it as it was `published`. A batch state that is unlike its digest was edited; the run says whether the reset
//! that was asked for has been obeyed already.

use sha2::{Digest as _, Sha256};

use super::{CompartmentState, RolloutRevision, RolloutStateSpec};
use crate::installed::hex;
use crate::policy::BatchState;
use crate::skyhook::{CompartmentStatus, SkyhookStatus};

/// What a compartment's part of the status asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing: it is as it was published.
    Nothing,
    /// A reset that has not been obeyed yet.
    Reset,
    /// Nothing that has not been done: publish it again.
    Publish,
    /// The status shows a later run than the state: the own copy of the state is old. Write neither.
    StateIsOld,
}

/// Digest of a batch state as it is published. [`BatchState`] must not get another field: a version that does not know it
/// would compute another digest, take every batch state for edited, and start all compartments anew.
#[must_use]
pub fn digest(batch: &BatchState) -> String {
    let json = serde_json::to_vec(batch).unwrap_or_default();
    hex(&Sha256::digest(json)[..8])
}

/// What the status of a compartment asks for, when its state is at run `run`.
#[must_use]
pub fn asked(status: &CompartmentStatus, run: i32) -> Asked {
    let Some(shown) = status.run else {
        // Another program wrote the status anew.
        return Asked::Publish;
    };
    let batch = status.batch_state.clone().unwrap_or_default();
    let is_edited = status.published.as_deref() != Some(digest(&batch).as_str());
    judge(shown, run, is_edited)
}

/// What the status of a Skyhook asks for about the numbers of its nodes, when its state is at run `run` of them.
///
/// Only an offset of 0 asks for a reset. Any other one that was not published is an old copy: a program that resets the
/// batches writes back the whole status that it read.
#[must_use]
pub fn asked_of_order(status: &SkyhookStatus, run: i32) -> Asked {
    let Some(shown) = status.node_order_shown else {
        return Asked::Publish;
    };
    let is_edited = status.node_order_offset == 0 && shown.offset > 0;
    judge(shown.run, run, is_edited)
}

const fn judge(shown: i32, run: i32, is_edited: bool) -> Asked {
    if shown > run {
        Asked::StateIsOld
    } else if shown < run {
        Asked::Publish
    } else if is_edited {
        Asked::Reset
    } else {
        Asked::Nothing
    }
}

impl CompartmentState {
    /// Starts anew. Leases of the batch that was open carry its number and belong to no judgement any more.
    pub fn reset(&mut self) {
        *self = Self::new(self.run.saturating_add(1));
    }

    /// What the Skyhook's status shows of it.
    #[must_use]
    pub fn shown(&self, complete: usize, failed: usize) -> BatchState {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        BatchState {
            current_batch: self.shown,
            consecutive_failures: self.consecutive_failures,
            completed_nodes: number(complete),
            failed_nodes: number(failed),
            should_stop: self.stopped.is_some(),
            last_batch_size: self.last_batch_size,
            last_batch_failed: self.last_batch_failed,
        }
    }

    /// Takes over what NVIDIA Skyhook has left in the status: how it paced on, but no members.
    #[must_use]
    pub fn imported(batch: &BatchState, now: &str) -> Self {
        Self {
            // A reset is asked for by setting the number to 1. So it must not be 1 while there is something to reset.
            shown: batch.current_batch.max(1 + i32::from(batch.should_stop)),
            base: batch.last_batch_size.max(0),
            consecutive_failures: batch.consecutive_failures.max(0),
            last_batch_size: batch.last_batch_size.max(0),
            last_batch_failed: batch.last_batch_failed,
            stopped: batch.should_stop.then(|| now.to_owned()),
            ..Self::new(1)
        }
    }
}

impl RolloutStateSpec {
    /// Starts every compartment anew.
    pub fn reset(&mut self) {
        for state in self.compartments.values_mut() {
            state.reset();
        }
    }

    /// Starts the numbers of nodes anew, as far as no node holds one: `least` is one more than the greatest that is held.
    /// Members of open batches hold theirs, also before they have a lease.
    pub fn reset_order(&mut self, least: i64) {
        let open = self.compartments.values().filter(|state| state.is_open());
        let after = open.map(|state| state.order(state.members.len()));
        self.order_run = self.order_run.saturating_add(1);
        self.next_order = after.chain([least]).max().unwrap_or_default();
    }

    /// Takes in the revision that is wanted now. A new version of a package starts every compartment anew if `resets`; a
    /// change of configuration does not. A revision with a smaller number comes from an old copy of the Skyhook and changes
    /// nothing. Says whether anything changed.
    pub fn follow(&mut self, wanted: &RolloutRevision, resets: bool) -> bool {
        if wanted.number <= self.revision.number {
            return false;
        }
        if resets && wanted.versions != self.revision.versions {
            self.reset();
        }
        self.revision = wanted.clone();
        true
    }

    /// Takes in the policy that the Skyhook names at this generation. The numbers of another one say nothing: every
    /// compartment starts anew. An old copy of the Skyhook changes nothing. Says whether anything changed.
    pub fn follow_policy(&mut self, policy: &str, generation: i64) -> bool {
        if self.policy == policy || generation <= self.policy_generation {
            return false;
        }
        self.reset();
        policy.clone_into(&mut self.policy);
        self.policy_generation = generation;
        true
    }
}
