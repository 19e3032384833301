//! The Skyhook: what administrators apply, and what they read back.

mod drain;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use kube::core::Selector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admission::words;
use crate::field::{FieldErrors, Problems};
use crate::graph;
use crate::names;
use crate::package::{Package, PackageStatus, is_valid_name};
use crate::policy::BatchState;
use crate::selector;
use crate::stage::Status;
pub use drain::{CheckedDrain, DrainConfig};

/// Packages, and the nodes that they are for.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "skyhook.nvidia.com",
    version = "v1alpha1",
    kind = "Skyhook",
    doc = "Packages, and the nodes that they are for.",
    plural = "skyhooks",
    status = "SkyhookStatus",
    derive = "PartialEq",
    printcolumn(json_path = ".status.status", name = "Status", type_ = "string"),
    printcolumn(json_path = ".spec.priority", name = "Priority", type_ = "integer"),
    printcolumn(
        json_path = ".metadata.creationTimestamp",
        name = "Age",
        type_ = "date"
    ),
    printcolumn(
        json_path = ".status.nodesInProgress",
        name = "Nodes In-Progress",
        type_ = "integer"
    ),
    printcolumn(
        json_path = ".status.completeNodes",
        name = "Complete Nodes",
        type_ = "string"
    ),
    printcolumn(json_path = ".status.packageList", name = "Packages", type_ = "string"),
    printcolumn(
        json_path = ".spec.deploymentPolicy",
        name = "Policy",
        type_ = "string"
    ),
    printcolumn(
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        name = "Reason",
        type_ = "string",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SkyhookSpec {
    /// Work on one package at a time on each node, in the order of dependencies, then of names.
    #[serde(default)]
    pub serial: bool,
    /// Has no effect. It is accepted so that older manifests work. To pause, set the annotation
    /// skyhook.nvidia.com/pause to "true".
    #[serde(default)]
    pub pause: bool,
    /// Selects pods that must not be interrupted. A node is interrupted only after these pods have finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_non_interrupt_labels: Option<LabelSelector>,
    /// Selects the nodes that the packages are for. If it is empty, they are for all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selectors: Option<LabelSelector>,
    /// Name of the DeploymentPolicy that says how fast the roll-out is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub deployment_policy: String,
    /// Settings for this Skyhook that replace those of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_policy_options: Option<DeploymentPolicyOptions>,
    /// How many nodes may be worked on at the same time. Without it and without deploymentPolicy, all of them may. It
    /// cannot be set together with deploymentPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption_budget: Option<InterruptionBudget>,
    /// The packages, by name.
    #[serde(default)]
    pub packages: BTreeMap<String, Package>,
    /// Tolerations: a node gets the packages although it has taints that match them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_tolerations: Vec<Toleration>,
    /// Nodes join the cluster with a taint, and it is removed from a node when all Skyhooks with this field are complete
    /// there. The taint is skyhook.nvidia.com=runtime-required:NoSchedule, unless the coordinator is configured with another
    /// one (--runtime-required-taint). This Skyhook tolerates it.
    #[serde(default)]
    pub runtime_required: bool,
    /// Put that taint on nodes that no Skyhook has worked on yet. Has an effect only together with runtimeRequired.
    #[serde(default)]
    pub auto_taint_new_nodes: bool,
    /// Cordon a node when that taint is removed from it. The node stays cordoned until somebody uncordons it.
    #[serde(default)]
    pub runtime_required_cordon_after: bool,
    /// How nodes are drained before they are interrupted. The fields have the names of options of `kubectl drain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_config: Option<DrainConfig>,
    /// What Skyhooks that come later in the order wait for: with `node`, each node waits until this Skyhook is complete
    /// there; with `all`, every node waits until this Skyhook is complete on all nodes that it selects.
    #[serde(default)]
    pub sequencing: Sequencing,
    /// Order of the Skyhooks on each node. The lowest number goes first; if numbers are equal, the first name.
    #[serde(default = "default_priority")]
    #[schemars(range(min = 1))]
    pub priority: i32,
}

fn default_priority() -> i32 {
    200
}

/// What Skyhooks that come later wait for.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "camelCase")]
pub enum Sequencing {
    /// Each node waits until this Skyhook is complete there.
    #[default]
    Node,
    /// Every node waits until this Skyhook is complete on all nodes that it selects.
    All,
}

/// Settings of one Skyhook that replace those of its DeploymentPolicy.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentPolicyOptions {
    /// Start again with the first batch size when a roll-out is complete and when a package's version changes. Unset: as
    /// the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_batch_state_on_completion: Option<bool>,
}

/// How many nodes may be worked on at the same time. Set percent or count, not both.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InterruptionBudget {
    /// Percentage of the selected nodes, rounded down, but at least one node. With 0, no node is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<i32>,
    /// Number of nodes. With 0, no node is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub count: Option<i32>,
    /// Selected nodes that are not Ready for other reasons count as nodes that are being worked on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub count_unavailable: bool,
}

impl InterruptionBudget {
    /// Slots for `nodes` selected nodes. Percent rounds down, at least one; an explicit 0 gives none.
    #[must_use]
    pub fn slots(&self, nodes: usize) -> usize {
        match (self.count, self.percent) {
            (Some(count), _) => usize::try_from(count).unwrap_or(0).min(nodes),
            (None, Some(percent)) => {
                let percent = usize::try_from(percent).unwrap_or(0).min(100);
                if percent == 0 {
                    0
                } else {
                    (nodes * percent / 100).max(1).min(nodes)
                }
            }
            (None, None) => nodes,
        }
    }
}

/// How far the roll-out of a Skyhook is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SkyhookStatus {
    /// Generation of the spec that this status is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Package states by node. The maps by node have a limited size. The worst nodes come first, and nodesOmitted says how
    /// many nodes are left out. A node is in all of these maps or in none. The Nodes' annotations and labels tell about
    /// every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub node_state: BTreeMap<String, BTreeMap<String, PackageStatus>>,
    /// Status by node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub node_status: BTreeMap<String, Status>,
    /// Why a node makes no progress, and since when. Complete nodes have no entry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub node_reasons: BTreeMap<String, NodeReason>,
    /// Number of selected nodes that are in the maps by node.
    #[serde(default)]
    pub nodes_listed: i32,
    /// Number of selected nodes that are left out of the maps by node.
    #[serde(default)]
    pub nodes_omitted: i32,
    /// Why nodes make no progress, and how many nodes have each reason. All selected nodes count.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub reasons: BTreeMap<String, ReasonSummary>,
    /// How many nodes have any version of a package, by package. All nodes count, whether they are selected or not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub installed: BTreeMap<String, i32>,
    /// Number of packages that are left out of installed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub installed_omitted: i32,
    /// Number of nodes whose package states cannot be read. They do not count in installed.
    #[serde(default)]
    pub installed_unreadable: i32,
    /// Written by NVIDIA Skyhook only. It is removed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub node_boot_ids: BTreeMap<String, String>,
    /// When a node was first picked (RFC 3339), until it is complete.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub node_priority: BTreeMap<String, String>,
    /// The `SKYHOOK_NODE_ORDER` that the next node gets. Writing 0 here starts the numbers anew, as far as no node holds
    /// one.
    #[serde(default)]
    pub node_order_offset: i64,
    /// What nodeOrderOffset was when the coordinator wrote it, where the roll-out has a RolloutState.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_order_shown: Option<NodeOrderShown>,
    /// Keys of configMap that changed last, by package. Written by NVIDIA Skyhook only. It is removed when every node has a
    /// result.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_updates: BTreeMap<String, Vec<String>>,
    /// Progress by compartment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub compartment_statuses: BTreeMap<String, CompartmentStatus>,
    /// Status of all selected nodes together.
    #[serde(default)]
    pub status: Status,
    /// The condition Ready says how far the roll-out is and what it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Number of nodes that are in progress or erroring.
    #[serde(default)]
    pub nodes_in_progress: i32,
    /// Number of complete nodes, and of selected nodes: "2/3".
    #[serde(default = "default_complete_nodes")]
    pub complete_nodes: String,
    /// Packages with their versions: "a:1.0.0,b:2.0.0".
    #[serde(default)]
    pub package_list: String,
    /// Name of the ControllerRevision that is rolled out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
}

fn default_complete_nodes() -> String {
    "0/0".to_owned()
}

impl Default for SkyhookStatus {
    fn default() -> Self {
        Self {
            observed_generation: 0,
            node_state: BTreeMap::new(),
            node_status: BTreeMap::new(),
            node_reasons: BTreeMap::new(),
            nodes_listed: 0,
            nodes_omitted: 0,
            reasons: BTreeMap::new(),
            installed: BTreeMap::new(),
            installed_omitted: 0,
            installed_unreadable: 0,
            node_boot_ids: BTreeMap::new(),
            node_priority: BTreeMap::new(),
            node_order_offset: 0,
            node_order_shown: None,
            config_updates: BTreeMap::new(),
            compartment_statuses: BTreeMap::new(),
            status: Status::Unknown,
            conditions: Vec::new(),
            nodes_in_progress: 0,
            complete_nodes: default_complete_nodes(),
            package_list: String::new(),
            revision: String::new(),
        }
    }
}

/// Why a node makes no progress.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeReason {
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Since when the reason holds (RFC 3339).
    pub since: String,
}

/// The nodes that make no progress for one reason.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReasonSummary {
    /// How many nodes have the reason.
    pub nodes: i32,
    /// Since when any node has it (RFC 3339).
    pub since: String,
    /// Names of a few of these nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// What the coordinator wrote into nodeOrderOffset: unlike it, somebody edited nodeOrderOffset.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeOrderShown {
    /// How often the numbers were started anew.
    pub run: i32,
    pub offset: i64,
}

/// Progress in one compartment.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CompartmentStatus {
    /// Selected nodes in the compartment.
    pub matched: i32,
    /// How many of them may be worked on at the same time.
    pub ceiling: i32,
    pub in_progress: i32,
    pub completed: i32,
    /// Completed nodes in percent of all.
    pub progress_percent: i32,
    /// Where its batches stand. Writing `{currentBatch: 1}` here starts the compartment anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_state: Option<BatchState>,
    /// How often the compartment was started anew, as batchState shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<i32>,
    /// Digest of batchState as the coordinator wrote it: unlike it, somebody edited batchState.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
}

/// A Skyhook's spec after the checks: what the roll-out works with.
#[derive(Clone, Debug)]
pub struct CheckedSkyhook {
    pub packages: BTreeMap<String, Package>,
    pub node_selector: Selector,
    /// `None` when no pod has to be waited for.
    pub pods_to_wait_for: Option<Selector>,
    pub drain: CheckedDrain,
}

impl SkyhookSpec {
    /// Finds everything that is wrong. An object that was stored without the rules of the API server
    /// ([`admission`](crate::admission)) is parked if it is not valid. The sizes that the API server bounds do not matter here.
    pub fn check(&self, name: &str) -> Result<CheckedSkyhook, FieldErrors> {
        let mut problems = Problems::default();
        if name.len() > names::MAX_SKYHOOK_NAME {
            problems.add(
                "metadata.name",
                format!(
                    "it has {} characters: above {} the node annotations that carry the name are not valid",
                    name.len(),
                    names::MAX_SKYHOOK_NAME
                ),
            );
        }
        problems.within(self.priority, 1..=i32::MAX, "spec.priority");
        self.check_budget(&mut problems);
        let node_selector = self.check_node_selector(&mut problems);
        let path = "spec.podNonInterruptLabels";
        let pods = checked_selector(self.pod_non_interrupt_labels.as_ref(), path, &mut problems);
        let pods_to_wait_for = (!pods.selects_all()).then_some(pods);
        let drain = self.drain_config.clone().unwrap_or_default();
        let drain = CheckedDrain::new(&drain, &mut problems);
        self.check_names(&mut problems);
        graph::check(&self.packages, &mut problems);
        let mut packages = BTreeMap::new();
        for (key, package) in &self.packages {
            match package.normalised(key) {
                Ok(package) => {
                    packages.insert(key.clone(), package);
                }
                Err(errors) => problems.extend(errors),
            }
        }
        problems.or(CheckedSkyhook {
            packages,
            node_selector,
            pods_to_wait_for,
            drain,
        })
    }

    fn check_budget(&self, problems: &mut Problems) {
        let Some(budget) = &self.interruption_budget else {
            return;
        };
        let path = "spec.interruptionBudget";
        if budget.percent.is_some() && budget.count.is_some() {
            problems.add(path, words::BUDGET);
        }
        if !self.deployment_policy.is_empty()
            && (budget.percent.is_some() || budget.count.is_some())
        {
            problems.add("spec.deploymentPolicy", words::POLICY_AND_BUDGET);
        }
        for (given, field, most) in [
            (budget.percent, "percent", 100),
            (budget.count, "count", i32::MAX),
        ] {
            if let Some(value) = given {
                problems.within(value, 0..=most, &format!("{path}.{field}"));
            }
        }
    }

    fn check_names(&self, problems: &mut Problems) {
        let path = "spec.packages";
        let keys = self.packages.keys();
        let wrong: Vec<&String> = keys.filter(|key| !is_valid_name(key)).collect();
        if !wrong.is_empty() {
            problems.add(path, words::with(words::PACKAGE_NAME, &wrong));
        }
        let differs = |(key, package): &(&String, &Package)| {
            !package.name.is_empty() && package.name != **key
        };
        let differing = self.packages.iter().filter(differs);
        let differing: Vec<&String> = differing.map(|(key, _)| key).collect();
        if !differing.is_empty() {
            problems.add(path, words::with(words::NAME_DIFFERS, &differing));
        }
    }

    /// The nodes that it is for. Other mistakes in the spec make no difference.
    pub fn node_selector(&self) -> Result<Selector, FieldErrors> {
        let mut problems = Problems::default();
        let selector = self.check_node_selector(&mut problems);
        problems.or(selector)
    }

    fn check_node_selector(&self, problems: &mut Problems) -> Selector {
        checked_selector(self.node_selectors.as_ref(), "spec.nodeSelectors", problems)
    }

    /// `a:1.0.0,b:2.0.0`, the order of names.
    #[must_use]
    pub fn package_list(&self) -> String {
        let list: BTreeSet<String> = self
            .packages
            .iter()
            .map(|(name, p)| format!("{name}:{}", p.version))
            .collect();
        list.into_iter().collect::<Vec<_>>().join(",")
    }
}

fn checked_selector(
    given: Option<&LabelSelector>,
    path: &str,
    problems: &mut Problems,
) -> Selector {
    given.map_or_else(Selector::default, |given| {
        selector::check(given, path, problems)
    })
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(n: &i32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests;
