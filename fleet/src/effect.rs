//! What the planner wants to be written, as values. Each effect has a target, the whole change, and the version of the
//! object that it was decided on.

mod patch;

use std::collections::BTreeSet;

use skyhook_crds::lease::{BatchRef, Drain, InterruptionLeaseSpec, StopReason};
use skyhook_crds::revision::RevisionData;
use skyhook_crds::rollout::RolloutStateSpec;
use skyhook_crds::skyhook::SkyhookStatus;

use crate::batches::Look;
use crate::facts::RolloutFact;
use crate::plan::cause::Cause;
use crate::plan::reason::Withdrawal;
pub use patch::{LiveCheck, NodePatch};

/// The object that an effect writes. At most one effect per target is under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Node(String),
    Skyhook(String),
    Lease(String),
    Revision(String),
    /// The state of a Skyhook's roll-out.
    Rollout(String),
    /// A look for the leases of members that have left, or for the state of the roll-out, of a Skyhook.
    Look(String),
    /// The list of a node's pods.
    Pods(String),
    /// `namespace/name`.
    Pod(String),
}

/// UID and resource version of an object at the time of the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsOf {
    pub uid: String,
    pub resource_version: String,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Adds our finalizer and the version annotation to a Skyhook that does not have our finalizer.
    AdoptSkyhook {
        name: String,
        at: AsOf,
        finalizers: Vec<String>,
    },
    /// Removes our finalizer from a deleted Skyhook that has no lease and no cordon left.
    ReleaseSkyhook {
        name: String,
        at: AsOf,
        finalizers: Vec<String>,
    },
    WriteSkyhookStatus {
        name: String,
        at: AsOf,
        status: Box<SkyhookStatus>,
        /// True when people and programs wait for the difference: another overall status, another generation, or the
        /// beginning of a deletion. Otherwise only details differ.
        turning: bool,
    },
    CreateRevision {
        name: String,
        skyhook: String,
        skyhook_uid: String,
        number: i64,
        data: Box<RevisionData>,
    },
    /// A revision that is used again becomes the newest.
    RenumberRevision { name: String, at: AsOf, number: i64 },
    /// Takes the owner references off a revision, so that it outlives its Skyhook.
    DisownRevision {
        name: String,
        at: AsOf,
        skyhook_uid: String,
    },
    PruneRevision {
        name: String,
        at: AsOf,
        skyhook: String,
        /// UID of the Skyhook that a revision was written for which no longer exists. The revision stays if a GET shows that
        /// this Skyhook exists.
        not_of: Option<String>,
    },
    /// Creates the lease of a node, which takes a slot of the budget.
    ReserveLease {
        node: String,
        spec: Box<InterruptionLeaseSpec>,
    },
    GrantLease {
        node: String,
        at: AsOf,
        /// Where the compartment has batches: what a GET of the roll-out's state must show right before the write.
        batch: Option<BatchCheck>,
    },
    /// Sets or, with `None`, takes back the order to stop.
    StopLease {
        node: String,
        at: AsOf,
        stop: Option<StopReason>,
        /// For `NewRevision`: the revision that the node is to be brought to instead.
        revision: Option<String>,
        /// Why, where `stop` leaves it open.
        message: &'static str,
    },
    SetDrain {
        node: String,
        at: AsOf,
        drain: Drain,
    },
    /// Deletes a lease that no agent has accepted, which gives its slot back.
    WithdrawLease {
        node: String,
        at: AsOf,
        why: Withdrawal,
    },
    /// Deletes a lease whose result is recorded on the Node, or that an administrator releases by force.
    ReleaseLease { node: String, at: AsOf },
    /// Deletes a lease whose Node no longer exists. A GET right before the write must show that no Node has that UID.
    ReleaseLeaseOfGoneNode {
        node: String,
        at: AsOf,
        node_uid: String,
    },
    /// Deletes a lease without its result: its Skyhook is deleted or disabled, and its agent did not stop in time or
    /// its node did not come back. So neither can block the deletion of a Skyhook.
    AbandonLease { node: String, at: AsOf },
    /// Creates the state of a Skyhook's roll-out, or replaces it.
    WriteRollout {
        name: String,
        skyhook_uid: String,
        /// An owner reference names the Skyhook. Not while it is being deleted: the garbage collector may be faster.
        goes_with_owner: bool,
        /// `None` to create it.
        at: Option<AsOf>,
        spec: Box<RolloutStateSpec>,
    },
    DeleteRollout {
        name: String,
        at: AsOf,
        /// UID of the Skyhook that owns it, if that is not the one in the picture. A GET right before the write must show
        /// that it is not the stored one either: the picture may be the older one.
        not_of: Option<String>,
    },
    /// Lists the leases with a consistent read, to see that members of a batch have none of this Skyhook.
    LookForLeases {
        skyhook: String,
        skyhook_uid: String,
        looks: Vec<Look>,
    },
    /// Reads the state of the roll-out, to see that none of these UIDs is the stored one. Leases of batches of such a state
    /// wait for this answer: nobody knows yet whether their failures are kept.
    LookForState {
        skyhook: String,
        states: Vec<String>,
    },
    /// Lists the pods of a node that drains.
    SurveyPods {
        node: String,
        lease_uid: String,
        /// True for a consistent list, which may be expensive for the API server. False for a list from the API
        /// server's watch cache, which may be old.
        consistent: bool,
    },
    EvictPod {
        node: String,
        lease_uid: String,
        namespace: String,
        pod: String,
        pod_uid: String,
        grace_period: Option<u32>,
        /// Deletes the pod instead of evicting it. A deletion ignores PodDisruptionBudgets.
        by_deletion: bool,
    },
    /// Everything that has to change on one Node, in one write.
    PatchNode {
        node: String,
        at: AsOf,
        patch: NodePatch,
        /// The reasons for this write.
        why: BTreeSet<Cause>,
    },
}

/// What the stored state of a roll-out must say before a lease is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchCheck {
    /// Name of the state, which is that of its Skyhook.
    pub skyhook: String,
    pub compartment: String,
    pub batch: BatchRef,
    /// What stands for the node.
    pub member: String,
}

impl BatchCheck {
    /// True when the state, as a fresh GET shows it, allows the grant.
    #[must_use]
    pub fn holds(&self, live: &RolloutFact) -> bool {
        let spec = live.spec.as_ref().ok();
        let state = spec.and_then(|spec| spec.compartments.get(&self.compartment));
        live.uid == self.batch.state
            && state.is_some_and(|state| state.may_lease(self.batch.number, &self.member))
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
            | Self::DisownRevision { name, .. }
            | Self::PruneRevision { name, .. } => Target::Revision(name.clone()),
            Self::WriteRollout { name, .. } | Self::DeleteRollout { name, .. } => {
                Target::Rollout(name.clone())
            }
            Self::LookForLeases { skyhook, .. } | Self::LookForState { skyhook, .. } => {
                Target::Look(skyhook.clone())
            }
            Self::ReserveLease { node, .. }
            | Self::GrantLease { node, .. }
            | Self::StopLease { node, .. }
            | Self::SetDrain { node, .. }
            | Self::WithdrawLease { node, .. }
            | Self::ReleaseLease { node, .. }
            | Self::AbandonLease { node, .. }
            | Self::ReleaseLeaseOfGoneNode { node, .. } => Target::Lease(node.clone()),
            Self::SurveyPods { node, .. } => Target::Pods(node.clone()),
            Self::EvictPod { namespace, pod, .. } => Target::Pod(format!("{namespace}/{pod}")),
            Self::PatchNode { node, .. } => Target::Node(node.clone()),
        }
    }

    /// The version that the effect was decided on; `None` for a create.
    #[must_use]
    pub const fn decided_on(&self) -> Option<&AsOf> {
        match self {
            Self::AdoptSkyhook { at, .. }
            | Self::ReleaseSkyhook { at, .. }
            | Self::WriteSkyhookStatus { at, .. }
            | Self::RenumberRevision { at, .. }
            | Self::DisownRevision { at, .. }
            | Self::PruneRevision { at, .. }
            | Self::DeleteRollout { at, .. }
            | Self::GrantLease { at, .. }
            | Self::StopLease { at, .. }
            | Self::SetDrain { at, .. }
            | Self::WithdrawLease { at, .. }
            | Self::ReleaseLease { at, .. }
            | Self::ReleaseLeaseOfGoneNode { at, .. }
            | Self::AbandonLease { at, .. }
            | Self::PatchNode { at, .. } => Some(at),
            Self::WriteRollout { at, .. } => at.as_ref(),
            Self::CreateRevision { .. }
            | Self::ReserveLease { .. }
            | Self::LookForLeases { .. }
            | Self::LookForState { .. }
            | Self::SurveyPods { .. }
            | Self::EvictPod { .. } => None,
        }
    }

    /// The lease that the effect deletes: the name of its node, and the lease's UID.
    #[must_use]
    pub fn removes(&self) -> Option<(&str, &str)> {
        match self {
            Self::WithdrawLease { node, at, .. }
            | Self::ReleaseLease { node, at }
            | Self::ReleaseLeaseOfGoneNode { node, at, .. }
            | Self::AbandonLease { node, at } => Some((node, &at.uid)),
            Self::AdoptSkyhook { .. }
            | Self::ReleaseSkyhook { .. }
            | Self::WriteSkyhookStatus { .. }
            | Self::CreateRevision { .. }
            | Self::RenumberRevision { .. }
            | Self::DisownRevision { .. }
            | Self::PruneRevision { .. }
            | Self::WriteRollout { .. }
            | Self::DeleteRollout { .. }
            | Self::LookForLeases { .. }
            | Self::LookForState { .. }
            | Self::ReserveLease { .. }
            | Self::GrantLease { .. }
            | Self::StopLease { .. }
            | Self::SetDrain { .. }
            | Self::SurveyPods { .. }
            | Self::EvictPod { .. }
            | Self::PatchNode { .. } => None,
        }
    }

    /// One word for logs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AdoptSkyhook { .. } => "AdoptSkyhook",
            Self::ReleaseSkyhook { .. } => "ReleaseSkyhook",
            Self::WriteSkyhookStatus { .. } => "WriteSkyhookStatus",
            Self::CreateRevision { .. } => "CreateRevision",
            Self::RenumberRevision { .. } => "RenumberRevision",
            Self::DisownRevision { .. } => "DisownRevision",
            Self::PruneRevision { .. } => "PruneRevision",
            Self::WriteRollout { .. } => "WriteRollout",
            Self::DeleteRollout { .. } => "DeleteRollout",
            Self::LookForLeases { .. } => "LookForLeases",
            Self::LookForState { .. } => "LookForState",
            Self::ReserveLease { .. } => "ReserveLease",
            Self::GrantLease { .. } => "GrantLease",
            Self::StopLease { .. } => "StopLease",
            Self::SetDrain { .. } => "SetDrain",
            Self::WithdrawLease { .. } => "WithdrawLease",
            Self::ReleaseLease { .. } => "ReleaseLease",
            Self::ReleaseLeaseOfGoneNode { .. } => "ReleaseLeaseOfGoneNode",
            Self::AbandonLease { .. } => "AbandonLease",
            Self::SurveyPods { .. } => "SurveyPods",
            Self::EvictPod { .. } => "EvictPod",
            Self::PatchNode { .. } => "PatchNode",
        }
    }
}
