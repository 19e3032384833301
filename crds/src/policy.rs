//! The DeploymentPolicy: how fast Skyhooks are rolled out, by groups of nodes.

mod check;
mod compartments;

pub use check::{Ceiling, CheckedCompartment, CheckedPolicy, Growth, MOST_COMPARTMENTS, Pace};
pub use compartments::{CompartmentId, Compartments, Matches};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Says how fast the Skyhooks that name it are rolled out.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "skyhook.nvidia.com",
    version = "v1alpha1",
    kind = "DeploymentPolicy",
    doc = "Says how fast the Skyhooks that name it are rolled out.",
    plural = "deploymentpolicies",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentPolicySpec {
    /// For nodes that no compartment matches.
    pub default: DefaultCompartment,
    /// Groups of nodes with a pace of their own. A node that several match is in the most cautious of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub compartments: Vec<Compartment>,
    /// Start again with the first batch size when a roll-out is complete and when a package's version changes: true when
    /// unset. A Skyhook can say otherwise for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_batch_state_on_completion: Option<bool>,
}

/// The compartment of nodes that no other one matches, and of a Skyhook without a policy.
pub const DEFAULT_COMPARTMENT: &str = "__default__";

/// Budget and strategy for nodes that no compartment matches.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DefaultCompartment {
    pub budget: Budget,
    pub strategy: Strategy,
}

/// A group of nodes, selected by their labels.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Compartment {
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    pub selector: LabelSelector,
    pub budget: Budget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
}

/// How many nodes of a compartment may be worked on at the same time. Set either percent or count.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Percentage of the compartment's nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<i32>,
    /// Number of nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub count: Option<i32>,
}

/// How large the batches are. Set exactly one of the three fields.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Strategy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<FixedStrategy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear: Option<LinearStrategy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exponential: Option<ExponentialStrategy>,
}

/// Every batch has the same size.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FixedStrategy {
    /// Number of nodes in each batch.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub initial_batch: i32,
    /// Percentage of a batch that has to succeed. With fewer nodes, the batch has failed.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 100))]
    pub batch_threshold: i32,
    /// The roll-out stops after so many failed batches, one after the other. If it is unset, failures never stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub failure_threshold: Option<i32>,
    /// Once this percentage of the nodes is complete, failures do not slow the roll-out down or stop it any more.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 100))]
    pub safety_limit: i32,
}

/// Batches grow by a number of nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LinearStrategy {
    /// Number of nodes in the first batch.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub initial_batch: i32,
    /// After a batch that succeeded, the next one has so many nodes more. After one that failed, it has so many fewer.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub delta: i32,
    /// Percentage of a batch that has to succeed. With fewer nodes, the batch has failed.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 100))]
    pub batch_threshold: i32,
    /// The roll-out stops after so many failed batches, one after the other. If it is unset, failures never stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub failure_threshold: Option<i32>,
    /// Once this percentage of the nodes is complete, failures do not slow the roll-out down or stop it any more.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 100))]
    pub safety_limit: i32,
}

/// Batches grow by a factor.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExponentialStrategy {
    /// Number of nodes in the first batch.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub initial_batch: i32,
    /// After a batch that succeeded, the size of the next one is multiplied by this. After one that failed, it is divided
    /// by this.
    #[serde(default = "two")]
    #[schemars(range(min = 2))]
    pub growth_factor: i32,
    /// Percentage of a batch that has to succeed. With fewer nodes, the batch has failed.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 100))]
    pub batch_threshold: i32,
    /// The roll-out stops after so many failed batches, one after the other. If it is unset, failures never stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub failure_threshold: Option<i32>,
    /// Once this percentage of the nodes is complete, failures do not slow the roll-out down or stop it any more.
    #[serde(default = "fifty")]
    #[schemars(range(min = 1, max = 100))]
    pub safety_limit: i32,
}

const fn one() -> i32 {
    1
}

const fn two() -> i32 {
    2
}

const fn fifty() -> i32 {
    50
}

const fn hundred() -> i32 {
    100
}

/// How far the batches of a compartment are. Numbers that are 0 are left out.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchState {
    #[serde(skip_serializing_if = "is_default")]
    pub current_batch: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub consecutive_failures: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub completed_nodes: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub failed_nodes: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub should_stop: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub last_batch_size: i32,
    #[serde(skip_serializing_if = "is_default")]
    pub last_batch_failed: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
