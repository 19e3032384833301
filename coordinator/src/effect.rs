//! What the planner wants done, as values: a target, the whole desired change, and what it was decided on.

use std::collections::BTreeMap;

use skyhook_crds::installed::{CordonRecord, PackageStates, Stamp};
use skyhook_crds::lease::{Drain, InterruptionLeaseSpec, StopReason};
use skyhook_crds::revision::RevisionData;
use skyhook_crds::skyhook::SkyhookStatus;
use skyhook_crds::stage::Status;

/// The object that an effect writes. At most one effect per target is under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Node(String),
    Skyhook(String),
    Lease(String),
    Revision(String),
}

/// An object as it was when the effect was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub uid: String,
    pub resource_version: String,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Our finalizer, and the version annotation at first sight.
    AdoptSkyhook {
        name: String,
        at: Version,
        finalizers: Vec<String>,
    },
    /// Our finalizer goes; nothing of ours is left on any node.
    ReleaseSkyhook {
        name: String,
        at: Version,
        finalizers: Vec<String>,
    },
    WriteSkyhookStatus {
        name: String,
        at: Version,
        status: Box<SkyhookStatus>,
    },
    CreateRevision {
        name: String,
        skyhook: String,
        skyhook_uid: String,
        number: i64,
        data: Box<RevisionData>,
    },
    /// A revision that is used again becomes the newest.
    RenumberRevision {
        name: String,
        at: Version,
        number: i64,
    },
    PruneRevision {
        name: String,
        at: Version,
    },
    /// Takes a slot.
    ReserveLease {
        node: String,
        spec: Box<InterruptionLeaseSpec>,
    },
    GrantLease {
        node: String,
        at: Version,
    },
    /// Sets or, with `None`, takes back the order to stop.
    StopLease {
        node: String,
        at: Version,
        stop: Option<StopReason>,
    },
    SetDrain {
        node: String,
        at: Version,
        drain: Drain,
    },
    /// Gives a slot back that no agent has accepted.
    WithdrawLease {
        node: String,
        at: Version,
        why: String,
    },
    /// Gives the slot back: the result is on the Node.
    ReleaseLease {
        node: String,
        at: Version,
    },
    /// The same, once a live GET has shown that no Node with that UID exists.
    ReleaseLeaseOfGoneNode {
        node: String,
        at: Version,
        node_uid: String,
    },
    /// Everything that has to change on one Node, in one write.
    PatchNode {
        node: String,
        at: Version,
        patch: NodePatch,
        why: String,
    },
}

/// Changes to one Node. Equal values are not written, see [`NodePatch::is_empty`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodePatch {
    /// Annotation to value; `None` removes it.
    pub annotations: BTreeMap<String, Option<String>>,
    /// Label to value; `None` removes it.
    pub labels: BTreeMap<String, Option<String>>,
    pub unschedulable: Option<bool>,
}

impl NodePatch {
    /// True when there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.annotations.is_empty() && self.labels.is_empty() && self.unschedulable.is_none()
    }

    /// The status of a Skyhook, as annotation and label.
    #[must_use]
    pub fn status(mut self, skyhook: &str, status: Status) -> Self {
        let key = skyhook_crds::names::status(skyhook);
        self.labels
            .insert(key.clone(), Some(status.as_str().to_owned()));
        self.annotations
            .insert(key, Some(status.as_str().to_owned()));
        self
    }

    /// The package states with the stamp that knows their digest.
    #[must_use]
    pub fn states(mut self, skyhook: &str, states: &PackageStates, stamp: Stamp) -> Self {
        let value = skyhook_crds::installed::render_states(states);
        let stamp = Stamp {
            states: skyhook_crds::installed::states_digest(&value),
            ..stamp
        };
        self.annotations
            .insert(skyhook_crds::names::node_state(skyhook), Some(value));
        self.stamp(skyhook, &stamp)
    }

    /// The stamp alone.
    #[must_use]
    pub fn stamp(mut self, skyhook: &str, stamp: &Stamp) -> Self {
        self.annotations
            .insert(skyhook_crds::names::stamp(skyhook), Some(stamp.render()));
        self
    }

    /// Sets or removes an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: Option<String>) -> Self {
        self.annotations.insert(key.to_owned(), value);
        self
    }

    /// The record of who cordoned the node; an empty one is removed.
    #[must_use]
    pub fn cordon(self, record: &CordonRecord) -> Self {
        let value = (!record.owners.is_empty()).then(|| record.render());
        self.annotation(skyhook_crds::names::CORDON_OWNERS, value)
    }

    /// Leaves out what the node has already.
    #[must_use]
    pub fn reduced(
        mut self,
        annotations: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
        unschedulable: bool,
    ) -> Self {
        self.annotations
            .retain(|key, value| annotations.get(key) != value.as_ref());
        self.labels
            .retain(|key, value| labels.get(key) != value.as_ref());
        self.unschedulable = self.unschedulable.filter(|wanted| *wanted != unschedulable);
        self
    }
}

impl Effect {
    /// The object that is written.
    #[must_use]
    pub fn target(&self) -> Target {
        match self {
            Self::AdoptSkyhook { name, .. }
            | Self::ReleaseSkyhook { name, .. }
            | Self::WriteSkyhookStatus { name, .. } => Target::Skyhook(name.clone()),
            Self::CreateRevision { name, .. }
            | Self::RenumberRevision { name, .. }
            | Self::PruneRevision { name, .. } => Target::Revision(name.clone()),
            Self::ReserveLease { node, .. }
            | Self::GrantLease { node, .. }
            | Self::StopLease { node, .. }
            | Self::SetDrain { node, .. }
            | Self::WithdrawLease { node, .. }
            | Self::ReleaseLease { node, .. }
            | Self::ReleaseLeaseOfGoneNode { node, .. } => Target::Lease(node.clone()),
            Self::PatchNode { node, .. } => Target::Node(node.clone()),
        }
    }

    /// The version that the effect was decided on; `None` for a create.
    #[must_use]
    pub const fn decided_on(&self) -> Option<&Version> {
        match self {
            Self::AdoptSkyhook { at, .. }
            | Self::ReleaseSkyhook { at, .. }
            | Self::WriteSkyhookStatus { at, .. }
            | Self::RenumberRevision { at, .. }
            | Self::PruneRevision { at, .. }
            | Self::GrantLease { at, .. }
            | Self::StopLease { at, .. }
            | Self::SetDrain { at, .. }
            | Self::WithdrawLease { at, .. }
            | Self::ReleaseLease { at, .. }
            | Self::ReleaseLeaseOfGoneNode { at, .. }
            | Self::PatchNode { at, .. } => Some(at),
            Self::CreateRevision { .. } | Self::ReserveLease { .. } => None,
        }
    }

    /// One word for logs and metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AdoptSkyhook { .. } => "AdoptSkyhook",
            Self::ReleaseSkyhook { .. } => "ReleaseSkyhook",
            Self::WriteSkyhookStatus { .. } => "WriteSkyhookStatus",
            Self::CreateRevision { .. } => "CreateRevision",
            Self::RenumberRevision { .. } => "RenumberRevision",
            Self::PruneRevision { .. } => "PruneRevision",
            Self::ReserveLease { .. } => "ReserveLease",
            Self::GrantLease { .. } => "GrantLease",
            Self::StopLease { .. } => "StopLease",
            Self::SetDrain { .. } => "SetDrain",
            Self::WithdrawLease { .. } => "WithdrawLease",
            Self::ReleaseLease { .. } => "ReleaseLease",
            Self::ReleaseLeaseOfGoneNode { .. } => "ReleaseLeaseOfGoneNode",
            Self::PatchNode { .. } => "PatchNode",
        }
    }
}
