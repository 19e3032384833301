//! The pods of one node while it is drained: which pods have to leave, which pods the drain waits for, and which pods
//! stay.
//!
//! The rules are those of `kubectl drain` for DaemonSet, mirror and finished pods, and NVIDIA Skyhook's for
//! pods in kube-system and pods that tolerate the unschedulable taint.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};
use skyhook_crds::names;
use skyhook_crds::skyhook::CheckedDrain;

/// What decisions need of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodFact {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub finished: bool,
    pub mirror: bool,
    /// Kind of the controller that will replace it.
    pub controller: Option<String>,
    pub tolerates_unschedulable: bool,
    pub has_empty_dir: bool,
    /// The deletion timestamp, if the pod is being deleted.
    pub deleting: Option<Timestamp>,
}

impl PodFact {
    /// The slim copy of a pod.
    #[must_use]
    pub fn new(pod: Pod) -> Self {
        let metadata = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let phase = pod
            .status
            .and_then(|status| status.phase)
            .unwrap_or_default();
        let tolerations = spec.tolerations.unwrap_or_default();
        Self {
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            finished: matches!(phase.as_str(), "Succeeded" | "Failed"),
            mirror: metadata
                .annotations
                .is_some_and(|a| a.contains_key("kubernetes.io/config.mirror")),
            controller: metadata
                .owner_references
                .unwrap_or_default()
                .into_iter()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.kind),
            tolerates_unschedulable: tolerations
                .iter()
                .any(|t| t.key.as_deref() == Some(names::UNSCHEDULABLE_TAINT)),
            has_empty_dir: spec
                .volumes
                .unwrap_or_default()
                .iter()
                .any(|volume| volume.empty_dir.is_some()),
            deleting: metadata.deletion_timestamp.map(|t| t.0),
        }
    }

    /// `namespace/name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What a drain does about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pod stays, and does not keep the node from being interrupted.
    Stays,
    /// The pod must not be interrupted: the drain waits until the pod has finished, for any length of time.
    WaitFor,
    Evict,
    /// The pod is being deleted already.
    Leaving,
    /// The pod has to leave, but the drain options do not allow to evict it.
    Refused(&'static str),
}

/// How a drain is to be done, for one Skyhook.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    pub wait_for: Option<&'a Selector>,
    pub options: &'a CheckedDrain,
    /// Namespace of the installation: the coordinator's own pods there are never evicted.
    pub namespace: &'a str,
    /// False if the kubelet does not answer. It will not confirm then that a pod has ended, so the drain does not wait
    /// for pods that are being deleted.
    pub node_ready: bool,
}

/// Label of the coordinator's pods.
const COORDINATOR_LABEL: (&str, &str) = ("control-plane", "controller-manager");

/// Judges one pod.
#[must_use]
pub fn judge(pod: &PodFact, rules: &Rules<'_>) -> Verdict {
    if pod.finished || pod.mirror {
        return Verdict::Stays;
    }
    if rules
        .wait_for
        .is_some_and(|selector| selector.matches(&pod.labels))
    {
        return Verdict::WaitFor;
    }
    let own = pod.namespace == rules.namespace
        && pod
            .labels
            .get(COORDINATOR_LABEL.0)
            .is_some_and(|value| value == COORDINATOR_LABEL.1);
    if own
        || pod.controller.as_deref() == Some("DaemonSet")
        || pod.tolerates_unschedulable
        || pod.namespace == "kube-system"
        || !rules.options.pod_selector.matches(&pod.labels)
    {
        return Verdict::Stays;
    }
    if pod.deleting.is_some() {
        return if rules.node_ready {
            Verdict::Leaving
        } else {
            Verdict::Stays
        };
    }
    if pod.controller.is_none() && !rules.options.force {
        return Verdict::Refused(
            "no controller will replace it: set spec.drain.force, or delete it",
        );
    }
    if pod.has_empty_dir && !rules.options.delete_emptydir_data {
        return Verdict::Refused(
            "it would lose its emptyDir: set spec.drain.deleteEmptydirData, or delete it",
        );
    }
    Verdict::Evict
}

#[cfg(test)]
mod tests;
