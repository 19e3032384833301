//! Where a roll-out in batches stands: what has to outlive the nodes that it is about.
//!
//! How many slots are taken and how far a roll-out is are counted in every pass. A batch cannot be: which nodes are in it,
//! and which of them failed, must not be forgotten when such a node is deleted. A canary that kills its host would
//! otherwise be tried on the next node, and on the next. So one object per Skyhook names the members of each open batch and
//! the failures that were seen.
//!
//! Every change of it is one write of the whole object, on the version that was read. Whoever loses reads again.
//!
//! [`batch`] has the rules of one compartment, [`reset`] those by which people and versions start one anew.

pub mod batch;
pub mod reset;

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::installed::hex;
use crate::package::Package;

/// The form that this version writes.
pub const FORMAT: i32 = 0;

/// Where the roll-out of the Skyhook of the same name stands. Only the coordinator writes it; it is not for editing.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "skyhook.nvidia.com",
    version = "v1alpha1",
    kind = "RolloutState",
    plural = "rolloutstates",
    doc = "Where a roll-out in batches stands. The coordinator writes it; it is not for editing.",
    derive = "PartialEq",
    printcolumn(json_path = ".spec.policy", name = "Policy", type_ = "string"),
    printcolumn(json_path = ".spec.revision.name", name = "Revision", type_ = "string"),
    printcolumn(
        json_path = ".metadata.creationTimestamp",
        name = "Age",
        type_ = "date"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStateSpec {
    /// Form of the object. One that a coordinator does not know it neither uses nor writes over.
    #[serde(default)]
    pub format: i32,
    /// The DeploymentPolicy that the numbers belong to.
    pub policy: String,
    /// The Skyhook's generation when it was seen to name that policy. An older copy of the Skyhook does not count.
    #[serde(default)]
    pub policy_generation: i64,
    /// The revision that is rolled out.
    pub revision: RolloutRevision,
    /// Number of the next batch, over all compartments; none is used twice.
    pub next_batch: i64,
    /// The next `SKYHOOK_NODE_ORDER`.
    pub next_order: i64,
    /// Grows whenever somebody starts the numbers of `next_order` anew.
    #[serde(default)]
    pub order_run: i32,
    /// By the name of the compartment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub compartments: BTreeMap<String, CompartmentState>,
}

/// A revision, as far as it can start a roll-out anew.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRevision {
    /// Name of the ControllerRevision.
    pub name: String,
    /// Its number.
    pub number: i64,
    /// Digest over the names and versions of its packages: a change of configuration leaves it as it is.
    pub versions: String,
}

/// Where one compartment stands.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CompartmentState {
    /// Grows with every reset.
    pub run: i32,
    /// Number of the open batch, which the leases of its members carry; 0 when none is open.
    #[serde(default)]
    pub batch: i64,
    /// The number of the batch for people: 1 after a reset, one more with every judgement.
    pub shown: i32,
    /// How many nodes the strategy wanted in the open batch, below the ceiling.
    #[serde(default)]
    pub target: i32,
    /// True when the open batch has fewer members than `target` because others held the slots.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// The size from which that of the next batch follows; 0 before the first judgement.
    #[serde(default)]
    pub base: i32,
    /// Nodes of the open batch, in the order in which they were picked. Each is the beginning of the SHA-256 of its Node's
    /// UID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub members: Vec<String>,
    /// `SKYHOOK_NODE_ORDER` of the first member; the others follow.
    #[serde(default)]
    pub order_base: i64,
    /// Positions in `members` of those that failed, in rising order. What is here stays, also when the node is deleted or
    /// recovers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub failed: Vec<i32>,
    /// Positions in `members` of those that could not be leased when all others had ended. They get no lease in this batch
    /// any more, so that one last look can show that they have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub struck: Vec<i32>,
    /// Failed batches in a row.
    #[serde(default)]
    pub consecutive_failures: i32,
    /// Nodes of the last batch that ended, one way or the other.
    #[serde(default)]
    pub last_batch_size: i32,
    /// True when it was judged a failure.
    #[serde(default)]
    pub last_batch_failed: bool,
    /// Since when no further batch is opened (RFC 3339), until somebody resets the compartment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// What stands for a Node in a batch: made from its UID, so that a Node registered anew under the name is not a member.
#[must_use]
pub fn member(node_uid: &str) -> String {
    hex(&Sha256::digest(node_uid.as_bytes())[..5])
}

/// Digest over the names and versions of packages.
#[must_use]
pub fn versions(packages: &BTreeMap<String, Package>) -> String {
    let mut hash = Sha256::new();
    for package in packages.values() {
        hash.update(package.key().as_bytes());
        hash.update([0]);
    }
    hex(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests;
