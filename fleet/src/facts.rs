//! Slim, checked copies of what the API server holds: only what decisions need.
//!
//! An object that cannot be decoded becomes a fact that says so. It does not keep the value of an earlier version.

mod labels;
mod lease;
mod report;
mod stored;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde::Deserialize;
use serde_json::Value;
use skyhook_crds::installed::{self, CordonRecord, PackageStates, Stamp, StateProblem};
use skyhook_crds::lease::FORMAT;
use skyhook_crds::revision::{self, RevisionData};
use skyhook_crds::rollout::{self, RolloutState};
use skyhook_crds::skyhook::{CheckedSkyhook, SkyhookSpec, SkyhookStatus};
use skyhook_crds::{DeploymentPolicy, InterruptionLease, Skyhook, names};

pub(crate) use labels::Texts;
pub use labels::{Labels, Wants};
pub use lease::LeaseFact;
pub use stored::{PolicyFact, RevisionFact, RolloutFact};

/// A Node as the API server sends it, reduced to the fields that decisions need.
#[derive(Deserialize, Clone, Debug, Default)]
pub struct WireNode {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: WireNodeSpec,
    #[serde(default)]
    pub status: WireNodeStatus,
}

/// The part of a Node's spec that is read.
#[derive(Deserialize, Clone, Debug, Default)]
pub struct WireNodeSpec {
    #[serde(default)]
    pub unschedulable: Option<bool>,
    #[serde(default)]
    pub taints: Option<Vec<Taint>>,
}

/// The part of a Node's status that is read.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct WireNodeStatus {
    #[serde(default)]
    pub conditions: Vec<WireNodeCondition>,
    #[serde(default)]
    pub node_info: WireNodeInfo,
}

/// A Node condition.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct WireNodeCondition {
    #[serde(flatten)]
    pub condition: WireCondition,
    #[serde(default)]
    pub last_transition_time: Option<Time>,
}

/// A Node condition, without its times.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct WireCondition {
    #[serde(rename = "type", default)]
    pub type_: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

/// The part of a Node's system info that is read.
#[derive(Deserialize, Clone, Debug, Default)]
pub struct WireNodeInfo {
    #[serde(rename = "bootID", default)]
    pub boot_id: String,
    #[serde(rename = "machineID", default)]
    pub machine_id: String,
}

/// An object of kind `K` as the API server sends it. Spec and status are decoded later, so that an object that cannot
/// be decoded is still known.
#[derive(Deserialize, Debug)]
#[serde(bound = "")]
pub struct Wire<K> {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Value,
    #[serde(default)]
    pub status: Value,
    #[serde(skip)]
    pub kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Wire<K> {
    fn clone(&self) -> Self {
        Self {
            metadata: self.metadata.clone(),
            spec: self.spec.clone(),
            status: self.status.clone(),
            kind: PhantomData,
        }
    }
}

impl<K> Default for Wire<K> {
    fn default() -> Self {
        Self {
            metadata: ObjectMeta::default(),
            spec: Value::default(),
            status: Value::default(),
            kind: PhantomData,
        }
    }
}

/// A Skyhook before it is decoded.
pub type WireSkyhook = Wire<Skyhook>;
/// An `InterruptionLease` before it is decoded.
pub type WireLease = Wire<InterruptionLease>;
/// A `DeploymentPolicy` before it is decoded.
pub type WirePolicy = Wire<DeploymentPolicy>;
/// A `RolloutState` before it is decoded.
pub type WireRollout = Wire<RolloutState>;

impl<K: Resource<DynamicType = ()>> Resource for Wire<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        K::kind(dt)
    }
    fn group(dt: &()) -> Cow<'_, str> {
        K::group(dt)
    }
    fn version(dt: &()) -> Cow<'_, str> {
        K::version(dt)
    }
    fn plural(dt: &()) -> Cow<'_, str> {
        K::plural(dt)
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Resource for WireNode {
    type DynamicType = ();
    type Scope = <Node as Resource>::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        <Node as Resource>::kind(dt)
    }
    fn group(dt: &()) -> Cow<'_, str> {
        <Node as Resource>::group(dt)
    }
    fn version(dt: &()) -> Cow<'_, str> {
        <Node as Resource>::version(dt)
    }
    fn plural(dt: &()) -> Cow<'_, str> {
        <Node as Resource>::plural(dt)
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What a Node's annotations say about one Skyhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub states: Result<PackageStates, StateProblem>,
    /// Digest of the current value of the annotation `nodeState_<skyhook>`.
    pub digest: String,
    pub stamp: Option<Stamp>,
}

impl Record {
    /// True when somebody other than the coordinator changed the package states.
    #[must_use]
    pub fn is_edited(&self) -> bool {
        self.stamp
            .as_ref()
            .is_some_and(|stamp| !stamp.states.is_empty() && stamp.states != self.digest)
    }
}

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
    /// Only the annotations with the prefix `skyhook.nvidia.com/`.
    pub annotations: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub boot_id: String,
    pub machine_id: String,
    pub ready: bool,
    /// When `ready` last changed.
    pub ready_since: Option<Timestamp>,
    /// Only the conditions with the prefix `skyhook.nvidia.com/`.
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
        let annotations: BTreeMap<String, String> = node
            .metadata
            .annotations
            .unwrap_or_default()
            .into_iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .collect();
        let skyhooks = annotations.keys().filter_map(|key| {
            key.strip_prefix(&prefix)?
                .split_once('_')
                .and_then(|(kind, skyhook)| {
                    matches!(kind, "nodeState" | "stamp").then(|| skyhook.to_owned())
                })
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
            .partition(|c| c.condition.type_.starts_with(&prefix));
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

    /// The record of a Skyhook on this node; an empty record when the Skyhook was never there.
    #[must_use]
    pub fn record(&self, skyhook: &str) -> &Record {
        static NEVER_THERE: LazyLock<Record> = LazyLock::new(|| record(&BTreeMap::new(), ""));
        let record = self.records.get(skyhook);
        record.map_or(&NEVER_THERE, |record| record)
    }
}

/// The owners in our annotation, and in addition the cordons of NVIDIA Skyhook, which does not write that annotation.
fn cordon(annotations: &BTreeMap<String, String>) -> CordonRecord {
    let mut cordon = CordonRecord::parse(annotations.get(names::CORDON_OWNERS).map(String::as_str));
    let prefix = names::cordon("");
    for skyhook in annotations
        .keys()
        .filter_map(|key| key.strip_prefix(&prefix))
    {
        cordon.owners.entry(skyhook.to_owned()).or_default();
    }
    cordon
}

fn record(annotations: &BTreeMap<String, String>, skyhook: &str) -> Record {
    let key = names::node_state(skyhook);
    let value = annotations.get(&key).map(String::as_str);
    Record {
        states: installed::parse_states(&key, value),
        digest: installed::states_digest(value.unwrap_or_default()),
        stamp: Stamp::parse(annotations.get(&names::stamp(skyhook)).map(String::as_str)),
    }
}

/// A Skyhook.
#[derive(Clone, Debug)]
pub struct SkyhookFact {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub deleting: bool,
    pub finalizers: Vec<String>,
    pub annotations: BTreeMap<String, String>,
    pub spec: Arc<SkyhookSpec>,
    /// The checked spec with its revision, or why the spec is not valid. A Skyhook whose spec is not valid is *parked*:
    /// it is not rolled out.
    pub checked: Result<Arc<Checked>, String>,
    /// Selects the nodes that a parked Skyhook is for. `None` when the Skyhook is not parked, or when its selector
    /// cannot be read either.
    pub(crate) parked_over: Option<Wants>,
    /// Selects the nodes that the Skyhook is for. `None` when its spec is not valid.
    pub(crate) selector: Option<Wants>,
    pub status: Option<SkyhookStatus>,
}

/// A spec that can be rolled out.
#[derive(Clone, Debug)]
pub struct Checked {
    pub spec: CheckedSkyhook,
    pub revision: String,
    pub data: RevisionData,
}

impl SkyhookFact {
    /// The slim copy of a Skyhook.
    #[must_use]
    pub fn new(object: WireSkyhook) -> Self {
        let metadata = object.metadata;
        let name = metadata.name.unwrap_or_default();
        let uid = metadata.uid.unwrap_or_default();
        let decoded: Result<SkyhookSpec, String> =
            serde_json::from_value(object.spec).map_err(|e| format!("spec cannot be read: {e}"));
        let checked = decoded.as_ref().map_err(Clone::clone).and_then(|spec| {
            let checked = spec.check(&name).map_err(|e| e.to_string())?;
            let data = RevisionData {
                format: FORMAT,
                packages: checked.packages.clone(),
                serial: spec.serial,
            };
            let revision = revision::name(&name, &uid, &data);
            Ok(Arc::new(Checked {
                spec: checked,
                revision,
                data,
            }))
        });
        let parked_over = match (&checked, &decoded) {
            (Err(_), Ok(spec)) => spec.node_selector().ok().map(Wants::from),
            (Ok(_), _) | (_, Err(_)) => None,
        };
        let selector = checked.as_ref().ok().map(|c| c.spec.node_selector.clone());
        Self {
            parked_over,
            selector: selector.map(Wants::from),
            resource_version: metadata.resource_version.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            spec: Arc::new(decoded.unwrap_or_default()),
            checked,
            status: serde_json::from_value(object.status).ok(),
            name,
            uid,
        }
    }

    /// True when the Skyhook has our finalizer, so that it is not gone before its leases and cordons are.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        let mut finalizers = self.finalizers.iter();
        finalizers.any(|finalizer| finalizer == names::SKYHOOK_FINALIZER)
    }

    /// The keys of the packages' configuration that changed last, as NVIDIA Skyhook noted them in the status.
    #[must_use]
    pub fn config_updates(&self) -> &BTreeMap<String, Vec<String>> {
        static NONE: BTreeMap<String, Vec<String>> = BTreeMap::new();
        self.status
            .as_ref()
            .map_or(&NONE, |status| &status.config_updates)
    }

    /// True when the annotation asks for a pause.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.annotations
            .get(names::PAUSE)
            .is_some_and(|value| value == "true")
    }

    /// True when the annotation takes the Skyhook out of the roll-out.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.annotations
            .get(names::DISABLE)
            .is_some_and(|value| value == "true")
    }

    /// True when the Skyhook is parked and is for this node. Nobody can tell then whether the node is complete, so
    /// Skyhooks that come later on the node wait.
    #[must_use]
    pub fn is_parked_over(&self, node: &NodeFact) -> bool {
        self.parked_over
            .as_ref()
            .is_some_and(|selector| node.labels.are_selected(selector))
    }

    /// True when the Skyhook selects the node. A parked Skyhook selects no node.
    #[must_use]
    pub fn selects(&self, node: &NodeFact) -> bool {
        self.selector
            .as_ref()
            .is_some_and(|selector| node.labels.are_selected(selector))
    }
}
