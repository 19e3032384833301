//! Facts about Nodes.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::jiff::Timestamp;
use skyhook_crds::installed::CordonRecord;
use skyhook_crds::{names, rollout};

use super::record::{cordon, record};
use super::{Labels, Record, WireCondition, WireNode};

/// A Node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFact {
    pub name: String,
    pub uid: String,
    /// What stands for the Node in a batch.
    pub member: String,
    pub created: Option<Timestamp>,
    pub resource_version: String,
    pub labels: Labels,
    /// Only the annotations that we, NVIDIA Skyhook or NodeWright write, and those that protect a node from autoscalers.
    pub annotations: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub boot_id: String,
    pub machine_id: String,
    pub ready: bool,
    /// When `ready` last changed.
    pub ready_since: Option<Timestamp>,
    /// Only the conditions with the prefix `skyhook.nvidia.com/` or `nodewright.nvidia.com/`.
    pub conditions: Vec<WireCondition>,
    /// By name of the Skyhook. Boxed, because a map has room for eleven values at least, and most nodes have one.
    pub records: BTreeMap<String, Box<Record>>,
    pub cordon: CordonRecord,
}

impl NodeFact {
    /// The slim copy of a Node.
    #[must_use]
    pub fn new(node: WireNode) -> Self {
        let prefix = format!("{}/", names::GROUP);
        let theirs = format!("{}/", names::SUCCESSOR);
        let annotations: BTreeMap<String, String> = node
            .metadata
            .annotations
            .unwrap_or_default()
            .into_iter()
            .filter(|(key, _)| names::is_mark(key) || names::PROTECTIONS.contains(&key.as_str()))
            .collect();
        let skyhooks = annotations.keys().filter_map(|key| {
            let name = key.strip_prefix(&prefix).or(key.strip_prefix(&theirs))?;
            let (kind, skyhook) = name.split_once('_')?;
            matches!(kind, "nodeState" | "stamp").then(|| skyhook.to_owned())
        });
        let records = skyhooks
            .map(|skyhook| {
                let record = Box::new(record(&annotations, &skyhook));
                (skyhook, record)
            })
            .collect();
        let (ours, others): (Vec<_>, Vec<_>) = node
            .status
            .conditions
            .into_iter()
            .partition(|c| names::is_mark(&c.condition.type_));
        let ready = others.into_iter().find(|c| c.condition.type_ == "Ready");
        let uid = node.metadata.uid.unwrap_or_default();
        Self {
            name: node.metadata.name.unwrap_or_default(),
            member: rollout::member(&uid),
            uid,
            created: node.metadata.creation_timestamp.map(|time| time.0),
            resource_version: node.metadata.resource_version.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default().into(),
            taints: node.spec.taints.unwrap_or_default(),
            unschedulable: node.spec.unschedulable.unwrap_or(false),
            boot_id: node.status.node_info.boot_id,
            machine_id: node.status.node_info.machine_id,
            ready: ready.as_ref().is_some_and(|c| c.condition.status == "True"),
            ready_since: ready
                .and_then(|c| c.last_transition_time)
                .map(|time| time.0),
            conditions: ours.into_iter().map(|c| c.condition).collect(),
            records,
            cordon: cordon(&annotations),
            annotations,
        }
    }

    /// True for a node that runs the control plane or a part of it, for example etcd alone.
    #[must_use]
    pub fn is_control_plane(&self) -> bool {
        let mut labels = names::CONTROL_PLANE_LABELS.iter();
        labels.any(|label| self.labels.contains_key(label))
    }

    /// True for a node that carries no annotation of ours, NVIDIA Skyhook's or NodeWright's: nobody has worked on it.
    #[must_use]
    pub fn is_new(&self) -> bool {
        !self.annotations.keys().any(|key| names::is_mark(key))
    }

    /// False for what is no host that an agent can work on: Windows nodes, and nodes without a machine of their own
    /// (virtual-kubelet, Fargate).
    #[must_use]
    pub fn is_host(&self) -> bool {
        let is = |key: &str, value: &str| self.labels.get(key) == Some(value);
        let linux = self.labels.get("kubernetes.io/os");
        linux.is_none_or(|os| os == "linux")
            && !is("type", "virtual-kubelet")
            && !is("eks.amazonaws.com/compute-type", "fargate")
    }

    /// True while an administrator keeps every Skyhook off the node.
    #[must_use]
    pub fn is_ignored(&self) -> bool {
        let theirs = names::successor(names::IGNORE);
        [names::IGNORE, &theirs]
            .iter()
            .any(|key| self.labels.get(key) == Some("true"))
    }

    /// The record of a Skyhook on this node; an empty record when the Skyhook was never there.
    #[must_use]
    pub fn record(&self, skyhook: &str) -> &Record {
        static NEVER_THERE: LazyLock<Record> = LazyLock::new(|| record(&BTreeMap::new(), ""));
        let record = self.records.get(skyhook);
        record.map_or(&NEVER_THERE, |record| record)
    }
}
