//! The `InterruptionLease`: which node is being worked on now, for whom, and how far it is.
//!
//! One per Node and named after it. Creating it reserves a slot, `spec.granted` grants it, deleting it releases
//! it. The coordinator writes `spec`, the agent of that node writes `status`. [`protocol`] has the rules.

pub mod protocol;

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::installed::Stamp;
use crate::package::{Interrupt, PackageStatus};
use crate::stage::{Stage, State};

/// The newest form of leases and of revisions that this version writes and understands. It grows when an agent of an older
/// version would do something else than what a newer coordinator means. 0 is the first, and 1 has `uninstall` of packages,
/// and versions that are left behind.
pub const FORMAT: i32 = 1;

/// The right to work on one node, given by the coordinator out of the budget.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "skyhook.nvidia.com",
    version = "v1alpha1",
    kind = "InterruptionLease",
    doc = "The right to work on the node whose name it has. The coordinator writes the spec, the node's agent the status.",
    plural = "interruptionleases",
    status = "InterruptionLeaseStatus",
    derive = "PartialEq",
    printcolumn(json_path = ".spec.skyhook.name", name = "Skyhook", type_ = "string"),
    printcolumn(json_path = ".status.phase", name = "Phase", type_ = "string"),
    printcolumn(json_path = ".status.package", name = "Package", type_ = "string"),
    printcolumn(json_path = ".status.stage", name = "Stage", type_ = "string"),
    printcolumn(json_path = ".status.state", name = "State", type_ = "string"),
    printcolumn(json_path = ".status.since", name = "Since", type_ = "date"),
    printcolumn(
        json_path = ".spec.drain.state",
        name = "Drain",
        type_ = "string",
        priority = 1
    ),
    printcolumn(
        json_path = ".spec.stop.reason",
        name = "Stop",
        type_ = "string",
        priority = 1
    ),
    printcolumn(
        json_path = ".status.message",
        name = "Message",
        type_ = "string",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct InterruptionLeaseSpec {
    /// Form of the lease. An agent that does not know it does nothing under the lease.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub format: i32,
    /// The Node. An agent whose Node has another UID ignores the lease.
    pub node: NodeRef,
    /// The Skyhook that the node is worked on for.
    pub skyhook: SkyhookRef,
    /// Name of the ControllerRevision, in the namespace of the installation, that the node is brought to.
    pub revision: String,
    /// The package states in the Node's record when the lease was created.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub installed: BTreeMap<String, PackageStatus>,
    /// The Node's stamp when the lease was created: where `installed` comes from. Unset if the Node has no result of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// Interrupts that NVIDIA Skyhook has left undone on the node, by package: the package is configured and waits for
    /// its interrupt. Only for a Node that carries no result of ours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub interrupts_left: BTreeMap<String, Interrupt>,
    /// The part of the budget from which the lease takes a slot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub compartment: String,
    /// The batch that the node is worked on in, where the compartment has batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchRef>,
    /// `SKYHOOK_NODE_ORDER` of the node's steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<i64>,
    /// Set when the slot is granted. Before that, the agent does nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// How far the drain of the node is.
    #[serde(default)]
    pub drain: Drain,
    /// Set when the agent has to stop before its next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// A Node, by name and UID.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub struct NodeRef {
    pub name: String,
    pub uid: String,
}

/// A batch of a roll-out.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub struct BatchRef {
    /// UID of the `RolloutState` that opened it.
    pub state: String,
    pub number: i64,
}

/// A Skyhook, by name and UID.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub struct SkyhookRef {
    pub name: String,
    pub uid: String,
    /// The generation of the Skyhook from which the revision was made. It is in paths on the host and in the environment
    /// of steps.
    #[serde(default)]
    pub generation: i64,
}

/// Who granted the slot, and when. Only for people.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    pub by: String,
    pub at: String,
}

/// How far the drain of the node is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    #[serde(default)]
    pub state: DrainState,
    /// When the drain came into this state (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Pods that the drain waits for, and why each of them is still there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
    /// How many more pods the drain waits for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: i32,
}

impl Drain {
    /// Pods that an administrator has to do something about before the drain can end.
    pub fn blocking(&self) -> impl Iterator<Item = (&Blocker, BlockCause)> {
        let blockers = self.blockers.iter();
        let blockers = blockers.filter(|_| self.state == DrainState::Draining);
        blockers.filter_map(|one| Some((one, one.cause.filter(|cause| cause.blocks())?)))
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// States of a drain.
#[derive(
    Serialize,
    Deserialize,
    JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub enum DrainState {
    /// The node is not cordoned for this lease.
    #[default]
    NotRequested,
    /// The node is cordoned. Pods that must not be interrupted still run there.
    Waiting,
    /// Pods are being evicted.
    Draining,
    /// Every pod that has to leave has left. The agent may interrupt the host.
    Drained,
    /// One of a later version. It is only read: this version writes none, and the schema has none.
    #[serde(other, skip_serializing)]
    #[schemars(skip)]
    Unknown,
}

/// What keeps a drain from its end: a pod that has to leave the node, or another node.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub struct Blocker {
    /// The pod, as `namespace/name`. The form `node/NAME` names another control-plane node
    /// that is not Ready: until it is, no other control-plane node is called drained.
    pub pod: String,
    /// For people: why the pod is still there, or what is waited for.
    pub reason: String,
    /// What keeps the pod there, where it is one of the known causes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<BlockCause>,
}

/// What keeps a pod on a node that drains.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum BlockCause {
    /// A PodDisruptionBudget does not allow to evict the pod now.
    PodDisruptionBudget,
    /// No controller would replace the pod, and `force` is false.
    UnmanagedPod,
    /// The pod would lose its emptyDir, and `deleteEmptyDirData` is false.
    EmptyDirData,
    /// The pod matches podNonInterruptLabels.
    NonInterruptLabels,
    /// One of a later version. It is only read: this version writes none, and the schema has none.
    #[serde(other, skip_serializing)]
    #[schemars(skip)]
    Unknown,
}

impl BlockCause {
    /// The word in the JSON, which is that of NodeWright.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::UnmanagedPod => "UnmanagedPod",
            Self::EmptyDirData => "EmptyDirData",
            Self::NonInterruptLabels => "NonInterruptLabels",
            Self::Unknown => "Unknown",
        }
    }

    /// True for what an administrator can change. The others end by themselves.
    #[must_use]
    pub const fn blocks(self) -> bool {
        match self {
            Self::PodDisruptionBudget | Self::UnmanagedPod | Self::EmptyDirData => true,
            Self::NonInterruptLabels | Self::Unknown => false,
        }
    }
}

/// Why the agent must stop, and since when.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub reason: StopReason,
    /// RFC 3339.
    pub since: String,
    /// For `NewRevision`: the revision to which the node will be brought instead. The agent ends a running step of a
    /// package if the step would run with something else in that revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// For people: why, where `reason` leaves it open.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Why an agent has to stop before its next step.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum StopReason {
    /// The packages of the Skyhook have changed.
    NewRevision,
    /// The Skyhook is paused. The agent waits. The lease, its slot and the cordon stay.
    Paused,
    Disabled,
    /// The Skyhook or the lease is being deleted, or the Skyhook no longer selects the node.
    Deleted,
    /// Somebody has edited the package states of the node.
    Edited,
    DrainTimedOut,
    /// The lease, or its revision, has a form that the agent does not know: it does nothing under it.
    AgentTooOld,
    /// One of a later version: the agent stops. It is only read: this version writes none, and the schema has none.
    #[serde(other, skip_serializing)]
    #[schemars(skip)]
    Unknown,
}

/// What the agent reports.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InterruptionLeaseStatus {
    /// The newest form of leases and revisions that the agent knows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub format: i32,
    /// The generation of the lease that the agent had seen when it wrote this.
    #[serde(default)]
    pub observed_generation: i64,
    /// How far the agent is. Unset until it has accepted the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Whether a step of any package has begun under the lease. If the node is lost from then on, its batch has failed
    /// there. Unset by agents that do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<bool>,
    /// Whether the node has to be drained for an interrupt. Unset until the agent has read the revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_drain: Option<bool>,
    /// For people: which packages need which interrupt.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub needs_drain_reason: String,
    /// The host's boot ID (`/proc/sys/kernel/random/boot_id`).
    #[serde(rename = "bootID", default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// The host's machine ID (`/etc/machine-id`).
    #[serde(
        rename = "machineID",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub machine_id: String,
    /// A random ID that the agent wrote to the host's disk when it first started there. If the ID changes and the machine
    /// ID does not, the host was installed anew.
    #[serde(rename = "hostID", default, skip_serializing_if = "String::is_empty")]
    pub host_id: String,
    /// Boot ID of the last boot of the host that Skyhook did not ask for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub epoch: String,
    /// How often each package that is not complete has asked for a reboot, by `name|version`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reboots: BTreeMap<String, u32>,
    /// For people: what a due interrupt waits for, for example a running step, or a program that inhibits a reboot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
    /// Set while a package is parked: it has used up its attempts, and the agent does not try it again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Parked>,
    /// Version of the agent that wrote this.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    /// How many bytes Skyhook used on the host's disk when the agent accepted the lease: images, copies of packages,
    /// logs, the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<i64>,
    /// Every package that is on the node, was there, or has to be installed there, by `name|version`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, PackageReport>,
    /// For people: the package that the agent works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// When phase, package, stage or state last changed (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// For people: what the agent does or waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How far the agent is with a lease.
///
/// ```text
/// Accepted ─► Preparing ─┬─► AwaitingDrain ─► Running ⇄ Erroring ─► Complete
///                        └──────────────────► Running
/// any of these, told to stop ─► Stopped
/// ```
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum Phase {
    /// The agent has accepted the lease and has done nothing yet.
    Accepted,
    /// Images are pulled and unpacked. Packages that need no interrupt are installed.
    Preparing,
    /// Packages that need an interrupt wait until the node is drained.
    AwaitingDrain,
    /// Packages that need an interrupt are installed, and the host is interrupted. The agent ends this without asking
    /// again.
    Running,
    /// A package failed and is tried again.
    Erroring,
    /// Every package of the revision is complete.
    Complete,
    /// The agent has stopped, as it was told to. It does nothing more under this lease.
    Stopped,
    /// One of a later version: the agent still works. It is only read: this version writes none, and the schema has none.
    #[serde(other, skip_serializing)]
    #[schemars(skip)]
    Unknown,
}

impl Phase {
    /// True when the agent does nothing more under the lease.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Stopped)
    }
}

/// A package that has used up its attempts. It waits until somebody runs it again or changes it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Parked {
    /// Name of the package.
    pub package: String,
    #[serde(default)]
    pub version: String,
    /// The stage that has failed.
    pub stage: Stage,
    /// How often the stage was tried.
    pub attempts: i32,
    /// When the last attempt failed (RFC 3339).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub since: String,
    /// For people: what the last attempt said, and who can go on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What the agent reports of one package.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PackageReport {
    pub name: String,
    pub version: String,
    pub image: String,
    #[serde(
        rename = "containerSHA",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub container_sha: Option<String>,
    pub stage: Stage,
    pub state: State,
    #[serde(default)]
    pub restarts: i32,
    /// True while no step of this version has begun: nothing of it is on the host, and the Node's record does not list it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// True for a version that stays on the host, and of which nothing runs: its package's `uninstall.enabled` is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_behind: bool,
    /// Digest of the image manifest that was unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// What the package requests and the node does not have, for people. Nothing of the package starts meanwhile.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lacks: String,
    /// For people: why the package makes no progress.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When stage or state last changed (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

impl PackageReport {
    /// True for a package that has failed and is tried again, or has given up.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.state == State::Erroring && !self.left_behind
    }

    /// The part that goes to the Node's annotation and the Skyhook's status.
    #[must_use]
    pub fn status(&self) -> PackageStatus {
        PackageStatus {
            name: self.name.clone(),
            version: self.version.clone(),
            image: self.image.clone(),
            container_sha: self.container_sha.clone(),
            stage: self.stage,
            state: self.state,
            restarts: self.restarts,
        }
    }
}

#[cfg(test)]
mod tests;
