//! Taints of Nodes: which of them a Skyhook tolerates.

use k8s_openapi::api::core::v1::{Taint, Toleration};
use skyhook_crds::names;

use crate::facts::SkyhookFact;

/// Taints that say that a node is not Ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// The rule of NVIDIA Skyhook, for taints of any effect. A taint is tolerated in three cases: it is the unschedulable
/// taint; one of the Skyhook's own tolerations matches it; it is the runtime-required taint, and the Skyhook is
/// runtimeRequired.
pub(crate) fn is_tolerated(skyhook: &SkyhookFact, taint: &Taint) -> bool {
    let unschedulable = taint.key == names::UNSCHEDULABLE_TAINT && taint.effect == "NoSchedule";
    let runtime_required = skyhook.spec.runtime_required
        && taint.key == names::GROUP
        && taint.value.as_deref() == Some("runtime-required");
    unschedulable
        || runtime_required
        || skyhook
            .spec
            .additional_tolerations
            .iter()
            .any(|t| tolerates(t, taint))
}

/// Kubernetes' rule: an empty key with Exists matches all keys, an empty effect matches all effects.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The taint as kubectl shows it.
fn show(taint: &Taint) -> String {
    match taint.value.as_deref().filter(|value| !value.is_empty()) {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    }
}

/// The message about a taint that is not tolerated: what it means, and what an administrator can do.
pub(crate) fn intolerable(taint: &Taint) -> String {
    let shown = show(taint);
    if [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) {
        format!(
            "the node is not Ready: it is taken when it is, or before that with a toleration of {shown} in \
             spec.additionalTolerations"
        )
    } else {
        format!("taint {shown} is not tolerated: add it to spec.additionalTolerations")
    }
}
