//! How nodes are drained: the options, and what they mean.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{InvalidSkyhook, selector};
use crate::duration::GoDuration;

/// How a node is drained. If no field is set, every pod is evicted, with these exceptions: pods of DaemonSets, mirror pods,
/// finished pods, pods in kube-system, and pods that tolerate the taint of cordoned nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DrainOptions {
    /// How long pods may take to leave, from the time when all pods of podNonInterruptLabels have finished. The default is
    /// 1h; with 0s there is no limit. After that time, the node is uncordoned and tried again later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// Grace period of evicted pods, in seconds. If it is unset or negative, each pod has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<i64>,
    /// Evict also pods that no controller replaces. The default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// Evict also pods with an emptyDir volume, whose data is lost then. The default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_emptydir_data: Option<bool>,
    /// Delete pods and do not evict them. PodDisruptionBudgets have no effect then. The default is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_eviction: Option<bool>,
    /// Only pods that match have to leave. If it is unset, all pods have to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// Drain options after the checks, defaults filled in.
#[derive(Clone, Debug)]
pub struct CheckedDrain {
    /// `None` never gives up.
    pub timeout: Option<Duration>,
    pub grace_period: Option<u32>,
    pub force: bool,
    pub delete_emptydir_data: bool,
    pub disable_eviction: bool,
    pub pod_selector: Selector,
}

impl CheckedDrain {
    pub(super) fn new(options: &DrainOptions) -> Result<Self, InvalidSkyhook> {
        let timeout = match &options.timeout {
            Some(timeout) => timeout.value()?,
            None => Duration::from_secs(3600),
        };
        Ok(Self {
            timeout: (!timeout.is_zero()).then_some(timeout),
            grace_period: options
                .grace_period
                .and_then(|seconds| u32::try_from(seconds).ok()),
            force: options.force.unwrap_or(true),
            delete_emptydir_data: options.delete_emptydir_data.unwrap_or(true),
            disable_eviction: options.disable_eviction.unwrap_or(false),
            pod_selector: selector(options.pod_selector.as_ref())
                .map_err(|e| InvalidSkyhook::DrainPodSelector(e.to_string()))?,
        })
    }
}
