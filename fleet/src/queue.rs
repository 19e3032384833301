//! The effects that are decided and not started yet, and the order in which they are started. Effects that give
//! something back to users always go first. Effects that only display something go last.

use std::collections::{BTreeMap, VecDeque};

use crate::effect::Effect;
use crate::plan::cause::Cause;

/// Kinds of effects in the order in which they are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Results, releases, cordons that are given back, and orders to stop.
    GiveBack,
    /// Writes that let a node with a slot go on, and writes about a Skyhook that people and programs wait for.
    GoOn,
    /// Lists and evictions of pods.
    Drain,
    /// Leases of further nodes.
    Reserve,
    /// Status and progress on Nodes, details in the status of Skyhooks, and the removal of old revisions.
    Display,
}

impl Class {
    const ALL: [Self; 5] = [
        Self::GiveBack,
        Self::GoOn,
        Self::Drain,
        Self::Reserve,
        Self::Display,
    ];

    /// The class of an effect.
    #[must_use]
    pub fn of(effect: &Effect) -> Self {
        match effect {
            Effect::ReleaseLease { .. }
            | Effect::WithdrawLease { .. }
            | Effect::AbandonLease { .. }
            | Effect::ReleaseLeaseOfGoneNode { .. }
            | Effect::StopLease { .. }
            | Effect::ReleaseSkyhook { .. } => Self::GiveBack,
            Effect::GrantLease { .. }
            | Effect::SetDrain { .. }
            | Effect::AdoptSkyhook { .. }
            | Effect::CreateRevision { .. }
            | Effect::RenumberRevision { .. }
            | Effect::DisownRevision { .. }
            | Effect::WriteRollout { .. }
            | Effect::LookForLeases { .. }
            | Effect::LookForState { .. }
            | Effect::WriteSkyhookStatus { turning: true, .. } => Self::GoOn,
            Effect::SurveyPods { .. } | Effect::EvictPod { .. } => Self::Drain,
            Effect::ReserveLease { .. } => Self::Reserve,
            Effect::PruneRevision { .. }
            | Effect::DeleteRollout { .. }
            | Effect::WriteSkyhookStatus { turning: false, .. } => Self::Display,
            Effect::PatchNode { why, .. } => {
                let classes = why.iter().map(|cause| Self::of_node(*cause));
                classes.min().unwrap_or(Self::Display)
            }
        }
    }

    const fn of_node(cause: Cause) -> Self {
        match cause {
            Cause::Result
            | Cause::ResultBesideEdit
            | Cause::CordonWithoutOwner
            | Cause::CordonNotNeeded
            | Cause::Uncordoned
            | Cause::Untaint => Self::GiveBack,
            Cause::AutoTaint
            | Cause::Protect
            | Cause::Grant
            | Cause::Cordon
            | Cause::Adopted
            | Cause::Reapply => Self::GoOn,
            Cause::Progress | Cause::Status => Self::Display,
        }
    }

    /// True for the classes that a part of the slots for writes is reserved for.
    #[must_use]
    pub const fn is_urgent(self) -> bool {
        matches!(self, Self::GiveBack | Self::GoOn)
    }
}

/// Effects of one plan that wait to be started.
#[derive(Debug, Default)]
pub struct Queue(BTreeMap<Class, VecDeque<Effect>>);

impl Queue {
    /// Queues effects in their order, each in its class.
    #[must_use]
    pub fn new(effects: Vec<Effect>) -> Self {
        let mut classes: BTreeMap<Class, VecDeque<Effect>> = BTreeMap::new();
        for effect in effects {
            classes
                .entry(Class::of(&effect))
                .or_default()
                .push_back(effect);
        }
        Self(classes)
    }

    /// How many effects wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(VecDeque::len).sum()
    }

    /// True when no effect waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next effect, of the first class that may start one.
    pub fn next(&mut self, may_start: impl Fn(Class) -> bool) -> Option<Effect> {
        Class::ALL
            .into_iter()
            .filter(|class| may_start(*class))
            .find_map(|class| self.0.get_mut(&class)?.pop_front())
    }
}
