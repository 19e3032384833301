//! The pods of one node while it is drained: which pods have to leave, which pods the drain waits for, and which pods
//! stay.
//!
//! The rules are those of `kubectl drain` for DaemonSet, mirror and finished pods, Kubernetes' own for pods that tolerate
//! the taint of cordoned nodes, and NVIDIA Skyhook's for pods in kube-system.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};
use skyhook_crds::lease::BlockCause;
use skyhook_crds::names;
use skyhook_crds::skyhook::CheckedDrain;

use crate::taints;

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
    /// The scheduler would also put it on a cordoned node.
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
        let cordoned = Taint {
            key: names::UNSCHEDULABLE_TAINT.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
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
                .any(|toleration| taints::tolerates(toleration, &cordoned)),
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
    Refused(BlockCause),
}

/// How a drain is to be done, for one Skyhook.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    pub wait_for: Option<&'a Selector>,
    pub options: &'a CheckedDrain,
    /// Namespace of the installation: the pods of the coordinator and of the agents there are never evicted.
    pub namespace: &'a str,
    /// False if the kubelet does not answer. It will not confirm then that a pod has ended, so the drain does not wait
    /// for pods that are being deleted.
    pub node_ready: bool,
}

/// Labels of the coordinator's pods and of the agents' pods.
const OWN_LABELS: [(&str, &str); 2] = [
    ("control-plane", "controller-manager"),
    ("app.kubernetes.io/component", "agent"),
];

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
    let has = |label: &(&str, &str)| {
        pod.labels
            .get(label.0)
            .is_some_and(|value| value == label.1)
    };
    let own = pod.namespace == rules.namespace && OWN_LABELS.iter().any(has);
    let of_daemon_set = pod.controller.as_deref() == Some("DaemonSet");
    if own
        || pod.tolerates_unschedulable
        || (of_daemon_set && rules.options.ignore_daemon_sets)
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
        return Verdict::Refused(BlockCause::UnmanagedPod);
    }
    if pod.has_empty_dir && !rules.options.delete_empty_dir_data {
        return Verdict::Refused(BlockCause::EmptyDirData);
    }
    Verdict::Evict
}

/// Why the API server did not evict a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub by: RefusedBy,
    /// What it said, for people.
    pub text: String,
}

/// Who did not let a pod be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    DisruptionBudget,
    Webhook,
    Server,
}

#[cfg(test)]
mod tests;
