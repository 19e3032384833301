//! Why a node does not move, in words for programs and for people.

use std::borrow::Cow;
use std::fmt;

use skyhook_crds::lease::StopReason;

/// Why a node does not move, in one word for programs: `status.nodeReasons` of a Skyhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReasonCode {
    AgentNotResponding,
    AgentTooOld,
    AutoTaintPending,
    AwaitingAgent,
    AwaitingDrain,
    AwaitingInterrupt,
    AwaitingNode,
    BatchUnderWay,
    BudgetExhausted,
    BudgetZero,
    ClusterBudgetExhausted,
    ControlPlane,
    Deleted,
    DependencyUninstalled,
    DeploymentPolicyInvalid,
    DeploymentPolicyNotFound,
    Disabled,
    DrainTimedOut,
    Draining,
    EarlierSkyhook,
    GaveUp,
    HostReplaced,
    InsufficientResources,
    NewerVersion,
    NodeIgnored,
    NodeLeased,
    NodeNotReturning,
    NodeNotSupported,
    NodeStateMalformed,
    PackageErroring,
    Paused,
    Preparing,
    ResultDoesNotMatch,
    RolloutStateRefused,
    RolloutStopped,
    Settling,
    TaintNotTolerable,
}

impl ReasonCode {
    /// All of them, in their order.
    pub const ALL: [Self; 37] = [
        Self::AgentNotResponding,
        Self::AgentTooOld,
        Self::AutoTaintPending,
        Self::AwaitingAgent,
        Self::AwaitingDrain,
        Self::AwaitingInterrupt,
        Self::AwaitingNode,
        Self::BatchUnderWay,
        Self::BudgetExhausted,
        Self::BudgetZero,
        Self::ClusterBudgetExhausted,
        Self::ControlPlane,
        Self::Deleted,
        Self::DependencyUninstalled,
        Self::DeploymentPolicyInvalid,
        Self::DeploymentPolicyNotFound,
        Self::Disabled,
        Self::DrainTimedOut,
        Self::Draining,
        Self::EarlierSkyhook,
        Self::GaveUp,
        Self::HostReplaced,
        Self::InsufficientResources,
        Self::NewerVersion,
        Self::NodeIgnored,
        Self::NodeLeased,
        Self::NodeNotReturning,
        Self::NodeNotSupported,
        Self::NodeStateMalformed,
        Self::PackageErroring,
        Self::Paused,
        Self::Preparing,
        Self::ResultDoesNotMatch,
        Self::RolloutStateRefused,
        Self::RolloutStopped,
        Self::Settling,
        Self::TaintNotTolerable,
    ];

    /// True when the node is left alone for a while, and is tried again then.
    #[must_use]
    pub const fn is_back_off(self) -> bool {
        matches!(
            self,
            Self::AgentNotResponding
                | Self::AgentTooOld
                | Self::DrainTimedOut
                | Self::ResultDoesNotMatch
        )
    }

    /// True when the node waits for something that ends without any action of a person, for example for a free slot.
    #[must_use]
    pub const fn ends_by_itself(self) -> bool {
        match self {
            Self::BatchUnderWay
            | Self::BudgetExhausted
            | Self::ClusterBudgetExhausted
            | Self::ControlPlane
            | Self::Settling => true,
            Self::AgentNotResponding
            | Self::AgentTooOld
            | Self::AutoTaintPending
            | Self::AwaitingAgent
            | Self::AwaitingDrain
            | Self::AwaitingInterrupt
            | Self::AwaitingNode
            | Self::BudgetZero
            | Self::Deleted
            | Self::DependencyUninstalled
            | Self::DeploymentPolicyInvalid
            | Self::DeploymentPolicyNotFound
            | Self::Disabled
            | Self::DrainTimedOut
            | Self::Draining
            | Self::EarlierSkyhook
            | Self::GaveUp
            | Self::HostReplaced
            | Self::InsufficientResources
            | Self::NewerVersion
            | Self::NodeIgnored
            | Self::NodeLeased
            | Self::NodeNotReturning
            | Self::NodeNotSupported
            | Self::NodeStateMalformed
            | Self::PackageErroring
            | Self::Paused
            | Self::Preparing
            | Self::ResultDoesNotMatch
            | Self::RolloutStateRefused
            | Self::RolloutStopped
            | Self::TaintNotTolerable => false,
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a node does not move.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reason {
    pub code: ReasonCode,
    /// A sentence for people.
    pub message: Cow<'static, str>,
}

impl Reason {
    /// A reason.
    #[must_use]
    pub fn new(code: ReasonCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Why a lease is deleted before an agent has accepted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    Deleting,
    Orphaned,
    OverBudget,
    NotSelected,
    Stop(StopReason),
    NewerRecord,
    RecordChanged,
    OtherRun,
    Overtaken,
    NothingToDo,
    NotInBatch,
    OrderTaken,
    OtherOrder,
    AgentNotResponding,
    /// The same, on a node that has joined the cluster lately.
    AgentNotYetThere,
}

impl fmt::Display for Withdrawal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleting => "it is being deleted",
            Self::Orphaned => "its Node or its Skyhook is gone",
            Self::OverBudget => "it does not fit the budget",
            Self::Stop(StopReason::NewRevision) => "the Skyhook has a newer revision",
            Self::Stop(StopReason::Paused) => "the Skyhook is paused",
            Self::Stop(StopReason::Disabled) => "the Skyhook is disabled",
            Self::NotSelected => "the Skyhook no longer selects the node",
            Self::Stop(StopReason::Deleted) => "the Skyhook is deleted",
            Self::Stop(StopReason::Edited) => "the node's package states were edited",
            Self::Stop(StopReason::DrainTimedOut) => "pods did not leave in time",
            Self::Stop(StopReason::AgentTooOld) => "it needs a newer agent",
            Self::Stop(StopReason::Unknown) => "a newer version told the agent to stop",
            Self::NewerRecord => "a newer version wrote the node's record",
            Self::RecordChanged => "the node's package states changed",
            Self::OtherRun => "the node's package states are of another run",
            Self::Overtaken => "the node has a newer revision",
            Self::NothingToDo => "there is nothing to do",
            Self::NotInBatch => "no open batch has the node",
            Self::OtherOrder => "the node keeps another SKYHOOK_NODE_ORDER",
            Self::OrderTaken => "another node has its SKYHOOK_NODE_ORDER",
            Self::AgentNotResponding => "the agent did not accept it in time",
            Self::AgentNotYetThere => "the node has joined lately, and its agent did not accept it",
        })
    }
}
