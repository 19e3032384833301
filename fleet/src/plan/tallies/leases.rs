//! Leases by phase, and drains by state and by what holds them up.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::{BlockCause, DrainState, Phase, protocol};

use crate::plan::cache::{LeaseBits, NodeCell};
use crate::plan::scan::Order;

/// Where a lease is, from its creation on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeasePhase {
    /// It takes a slot and is not granted.
    Reserved,
    /// The agent has not accepted it.
    Granted,
    Accepted,
    Preparing,
    AwaitingDrain,
    Running,
    Erroring,
    Complete,
    Stopped,
    Unknown,
}

impl LeasePhase {
    /// All of them, in their order.
    pub const ALL: [Self; 10] = [
        Self::Reserved,
        Self::Granted,
        Self::Accepted,
        Self::Preparing,
        Self::AwaitingDrain,
        Self::Running,
        Self::Erroring,
        Self::Complete,
        Self::Stopped,
        Self::Unknown,
    ];

    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "Reserved",
            Self::Granted => "Granted",
            Self::Accepted => "Accepted",
            Self::Preparing => "Preparing",
            Self::AwaitingDrain => "AwaitingDrain",
            Self::Running => "Running",
            Self::Erroring => "Erroring",
            Self::Complete => "Complete",
            Self::Stopped => "Stopped",
            Self::Unknown => "Unknown",
        }
    }

    fn of(lease: &InterruptionLease) -> Self {
        match (protocol::phase(lease), &lease.spec.granted) {
            (None, None) => Self::Reserved,
            (None, Some(_)) => Self::Granted,
            (Some(Phase::Accepted), _) => Self::Accepted,
            (Some(Phase::Preparing), _) => Self::Preparing,
            (Some(Phase::AwaitingDrain), _) => Self::AwaitingDrain,
            (Some(Phase::Running), _) => Self::Running,
            (Some(Phase::Erroring), _) => Self::Erroring,
            (Some(Phase::Complete), _) => Self::Complete,
            (Some(Phase::Stopped), _) => Self::Stopped,
            (Some(Phase::Unknown), _) => Self::Unknown,
        }
    }
}

/// What keeps a pod on a node that drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockerKind {
    PodDisruptionBudget,
    UnmanagedPod,
    EmptyDirData,
    NonInterruptLabels,
    /// The pod is leaving, its eviction is tried again, or another control-plane node is not Ready.
    Other,
}

impl BlockerKind {
    /// All of them, in their order.
    pub const ALL: [Self; 5] = [
        Self::PodDisruptionBudget,
        Self::UnmanagedPod,
        Self::EmptyDirData,
        Self::NonInterruptLabels,
        Self::Other,
    ];

    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodDisruptionBudget => BlockCause::PodDisruptionBudget.as_str(),
            Self::UnmanagedPod => BlockCause::UnmanagedPod.as_str(),
            Self::EmptyDirData => BlockCause::EmptyDirData.as_str(),
            Self::NonInterruptLabels => BlockCause::NonInterruptLabels.as_str(),
            Self::Other => "Other",
        }
    }

    const fn of(cause: Option<BlockCause>) -> Self {
        match cause {
            Some(BlockCause::PodDisruptionBudget) => Self::PodDisruptionBudget,
            Some(BlockCause::UnmanagedPod) => Self::UnmanagedPod,
            Some(BlockCause::EmptyDirData) => Self::EmptyDirData,
            Some(BlockCause::NonInterruptLabels) => Self::NonInterruptLabels,
            Some(BlockCause::Unknown) | None => Self::Other,
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What a lease contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) struct Bits {
    phase: LeasePhase,
    /// Since when it is in this phase, package, stage and state, in Unix seconds.
    since: Option<i64>,
    drain: DrainState,
    /// Kinds of what holds the drain up, one bit each.
    blockers: u8,
}

impl Bits {
    pub(in crate::plan) fn of(lease: &InterruptionLease) -> Self {
        let phase = LeasePhase::of(lease);
        let created = lease.metadata.creation_timestamp.as_ref();
        let granted = lease.spec.granted.as_ref();
        let status = lease.status.as_ref();
        let at = |text: &str| text.parse().ok().map(Timestamp::as_second);
        let since = match phase {
            LeasePhase::Reserved => created.map(|time| time.0.as_second()),
            LeasePhase::Granted => granted.and_then(|granted| at(&granted.at)),
            LeasePhase::Accepted
            | LeasePhase::Preparing
            | LeasePhase::AwaitingDrain
            | LeasePhase::Running
            | LeasePhase::Erroring
            | LeasePhase::Complete
            | LeasePhase::Stopped
            | LeasePhase::Unknown => status.and_then(|status| at(status.since.as_deref()?)),
        };
        let drain = &lease.spec.drain;
        let kinds = drain.blockers.iter();
        let kinds = kinds.map(|one| BlockerKind::of(one.cause).bit());
        let is_held_up = matches!(drain.state, DrainState::Waiting | DrainState::Draining);
        Self {
            phase,
            since,
            drain: drain.state,
            blockers: kinds.filter(|_| is_held_up).fold(0, |all, one| all | one),
        }
    }
}

/// The leases of one Skyhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// How many are in a phase, and since when the one is in it that waits for the longest time.
    pub by_phase: BTreeMap<LeasePhase, (usize, Option<Timestamp>)>,
    /// Nodes that drain, by state of the drain: Waiting, Draining or Drained.
    pub by_drain: BTreeMap<DrainState, usize>,
    /// Nodes whose drain is held up, by kind of what does it. A node counts once for each kind.
    pub by_blocker: BTreeMap<BlockerKind, usize>,
}

impl LeaseCounts {
    fn add(&mut self, bits: Bits) {
        let since = bits.since.and_then(|at| Timestamp::from_second(at).ok());
        let entry = self.by_phase.entry(bits.phase).or_default();
        entry.0 += 1;
        entry.1 = entry.1.into_iter().chain(since).min();
        match bits.drain {
            DrainState::Waiting | DrainState::Draining | DrainState::Drained => {
                *self.by_drain.entry(bits.drain).or_default() += 1;
            }
            DrainState::NotRequested | DrainState::Unknown => {}
        }
        for kind in BlockerKind::ALL {
            if bits.blockers & kind.bit() != 0 {
                *self.by_blocker.entry(kind).or_default() += 1;
            }
        }
    }
}

/// Counts the leases by the number of their Skyhook's UID. Leases that cannot be decoded are counted beside them.
pub(in crate::plan) fn count(
    order: &Order<'_>,
    nodes: &[NodeCell],
) -> (BTreeMap<u32, LeaseCounts>, usize) {
    let mut counts: BTreeMap<u32, LeaseCounts> = BTreeMap::new();
    let mut unreadable = 0;
    for (_, id) in order {
        match nodes[id.index()].lease {
            Some(LeaseBits::Readable {
                skyhook_uid, bits, ..
            }) => counts.entry(skyhook_uid).or_default().add(bits),
            Some(LeaseBits::Unreadable) => unreadable += 1,
            None => {}
        }
    }
    (counts, unreadable)
}
