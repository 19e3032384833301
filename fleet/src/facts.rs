//! Slim, checked copies of what the API server holds: only what decisions need.
//!
//! An object that cannot be decoded becomes a fact that says so. It does not keep the value of an earlier version.

mod labels;
mod lease;
mod node;
mod record;
mod report;
mod skyhook;
mod stored;
mod taint;

use std::borrow::Cow;
use std::marker::PhantomData;

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::Deserialize;
use serde_json::Value;
use skyhook_crds::rollout::RolloutState;
use skyhook_crds::{DeploymentPolicy, InterruptionLease, Skyhook};

pub(crate) use labels::Texts;
pub use labels::{Labels, Wants};
pub use lease::LeaseFact;
pub use node::NodeFact;
pub(crate) use record::cordon;
pub use record::{Origin, Record};
pub use skyhook::{Checked, Deletion, Goal, Keeps, SkyhookFact};
pub use stored::{PolicyFact, RevisionFact, RolloutFact};
pub use taint::TaintDuty;

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
