//! Names of labels, annotations, taints, finalizers, conditions and field managers.
//!
//! The prefix is NVIDIA Skyhook's, because manifests, dashboards and other tools use it.

/// API group of every custom resource, and prefix of every label and annotation.
pub const GROUP: &str = "skyhook.nvidia.com";
/// The prefix that NodeWright, the successor of NVIDIA Skyhook, uses instead of [`GROUP`].
pub const SUCCESSOR: &str = "nodewright.nvidia.com";

/// Finalizer of a Skyhook: its cordons are given back before it goes.
pub const SKYHOOK_FINALIZER: &str = "skyhook.nvidia.com/skyhook";
/// Finalizer of an `InterruptionLease`: a slot is free only when the node's result is on record.
pub const LEASE_FINALIZER: &str = "skyhook.nvidia.com/interruption";

/// Annotation on a Skyhook: `"true"` pauses it at the next step boundary.
pub const PAUSE: &str = "skyhook.nvidia.com/pause";
/// Annotation on a Skyhook: `"true"` takes it out of the roll-out.
pub const DISABLE: &str = "skyhook.nvidia.com/disable";
/// Annotation on a Skyhook: the coordinator's version when it first saw the object.
pub const VERSION: &str = "skyhook.nvidia.com/version";
/// Label on a Node: `"true"` keeps every Skyhook away from it.
pub const IGNORE: &str = "skyhook.nvidia.com/ignore";
/// Annotation on a lease, with the lease's UID as its value: an administrator gives the slot back by force.
pub const FORCE_RELEASE: &str = "skyhook.nvidia.com/force-release";
/// Annotation on a Node: who cordoned it, and what was there before (JSON, [`crate::installed::CordonRecord`]).
pub const CORDON_OWNERS: &str = "skyhook.nvidia.com/cordon-owners";
/// Annotation on a Node: `"true"` when the node was cordoned as the runtime-required taint was taken off. It is there as
/// long as the node is cordoned.
pub const RUNTIME_REQUIRED_CORDON: &str = "skyhook.nvidia.com/runtimeRequiredCordon";
/// Annotation on a Node: `"true"` keeps the cluster autoscaler from removing the node.
pub const SCALE_DOWN_DISABLED: &str = "cluster-autoscaler.kubernetes.io/scale-down-disabled";
/// Annotation on a Node: `"true"` keeps Karpenter from removing the node.
pub const DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";
/// Annotations that keep autoscalers from removing a node.
pub const PROTECTIONS: [&str; 2] = [SCALE_DOWN_DISABLED, DO_NOT_DISRUPT];
/// Label on ControllerRevisions and leases: the Skyhook's name, which is never too long for a label value
/// ([`MAX_SKYHOOK_NAME`]).
pub const REVISION_OF: &str = "skyhook.nvidia.com/name";
/// Annotation on ControllerRevisions, and on RolloutStates of Skyhooks that are being deleted: UID of the Skyhook that it was
/// written for. There is no owner reference: the garbage collector would delete what is still needed, in a foreground
/// deletion even before the Skyhook.
pub const WRITTEN_FOR: &str = "skyhook.nvidia.com/owner";
/// Label on leases: the compartment of a DeploymentPolicy that the lease counts in.
pub const COMPARTMENT: &str = "skyhook.nvidia.com/compartment";
/// Label on leases: the number of the batch that the lease belongs to.
pub const BATCH: &str = "skyhook.nvidia.com/batch";

/// Field manager of every write that the coordinator makes.
pub const COORDINATOR: &str = "skyhook-coordinator";
/// Field manager of every write that an agent makes.
pub const AGENT: &str = "skyhook-agent";

/// The label every control-plane node carries.
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// Labels of which each marks a node whose loss may stop the control plane: that label, its old name, and that of nodes
/// which run etcd alone.
pub const CONTROL_PLANE_LABELS: [&str; 3] = [
    CONTROL_PLANE,
    "node-role.kubernetes.io/master",
    "node-role.kubernetes.io/etcd",
];
/// Taint of a cordoned node.
pub const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Longest Skyhook name for which every annotation key stays within the 63 characters that a name part may have.
pub const MAX_SKYHOOK_NAME: usize = 63 - "nodeState_".len();

/// True for a text that Kubernetes takes as the value of a label and that is not empty.
#[must_use]
pub fn is_label_value(text: &str) -> bool {
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    bytes.len() <= 63 && outer(bytes.first()) && outer(bytes.last()) && bytes.iter().all(inner)
}

/// True for a text that Kubernetes takes as the key of a label: a name, or a DNS subdomain and a name.
#[must_use]
pub fn is_label_key(text: &str) -> bool {
    let Some((prefix, name)) = text.split_once('/') else {
        return is_label_value(text);
    };
    let outer = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        let ends_well = ends
            .into_iter()
            .all(|end| end.is_some_and(|end| outer(*end)));
        ends_well && bytes.iter().all(|byte| outer(*byte) || *byte == b'-')
    };
    prefix.len() <= 253 && prefix.split('.').all(is_part) && is_label_value(name)
}

/// Annotation on a Node: package states, see [`crate::installed`].
#[must_use]
pub fn node_state(skyhook: &str) -> String {
    format!("{GROUP}/nodeState_{skyhook}")
}

/// Annotation and label on a Node: status of the Skyhook there.
#[must_use]
pub fn status(skyhook: &str) -> String {
    format!("{GROUP}/status_{skyhook}")
}

/// Annotation on a Node: `"true"` while the Skyhook holds a cordon.
#[must_use]
pub fn cordon(skyhook: &str) -> String {
    format!("{GROUP}/cordon_{skyhook}")
}

/// Annotation on a Node: the coordinator's version at first touch.
#[must_use]
pub fn version(skyhook: &str) -> String {
    format!("{GROUP}/version_{skyhook}")
}

/// Annotation on a Node: which lease and revision the package states come from ([`crate::installed::Stamp`]).
#[must_use]
pub fn stamp(skyhook: &str) -> String {
    format!("{GROUP}/stamp_{skyhook}")
}

/// Annotation on a Node: why the Skyhook does not move there, and since when ([`crate::skyhook::NodeReason`]).
#[must_use]
pub fn reason(skyhook: &str) -> String {
    format!("{GROUP}/reason_{skyhook}")
}

/// Annotation on a Node: `"true"` when the taint with this key is ours, `"false"` when it was and is gone. A `/` in the
/// key becomes a dot.
#[must_use]
pub fn auto_taint(key: &str) -> String {
    format!("{GROUP}/autoTaint_{}", key.replace('/', "."))
}

/// Longest key of a taint for which [`auto_taint`] stays within the 63 characters that a name part may have.
pub const MAX_TAINT_KEY: usize = 63 - "autoTaint_".len();

/// Annotation on a Node: since when it drains for the Skyhook (RFC 3339). `None` when the Skyhook's name is too long for
/// such an annotation.
#[must_use]
pub fn drain_start(skyhook: &str) -> Option<String> {
    within_limit("drainStart_", skyhook)
}

/// Annotation on a Node: the pods that keep it from being drained for the Skyhook (JSON). `None` when the Skyhook's name is
/// too long for such an annotation.
#[must_use]
pub fn drain_blocked(skyhook: &str) -> Option<String> {
    within_limit("drainBlocked_", skyhook)
}

fn within_limit(kind: &str, skyhook: &str) -> Option<String> {
    (kind.len() + skyhook.len() <= 63).then(|| format!("{GROUP}/{kind}{skyhook}"))
}

/// The same label or annotation with NodeWright's prefix.
#[must_use]
pub fn successor(key: &str) -> String {
    let name = key.strip_prefix(GROUP).unwrap_or(key);
    format!("{SUCCESSOR}{name}")
}

/// True for the labels and annotations that we, NVIDIA Skyhook or NodeWright write.
#[must_use]
pub fn is_mark(key: &str) -> bool {
    [GROUP, SUCCESSOR].iter().any(|prefix| {
        let name = key.strip_prefix(prefix);
        name.is_some_and(|name| name.starts_with('/'))
    })
}

/// Type of the Node condition that says whether the Skyhook is complete there.
#[must_use]
pub fn not_ready_condition(skyhook: &str) -> String {
    format!("{GROUP}/{skyhook}/NotReady")
}

/// Name of the Skyhook that one of our Node conditions is about; `None` for any other condition.
#[must_use]
pub fn skyhook_of_condition(type_: &str) -> Option<&str> {
    let name = type_.strip_prefix(GROUP)?.strip_prefix('/')?;
    let ends = ["/NotReady", "/Erroring"];
    ends.iter().find_map(|end| name.strip_suffix(end))
}

/// Type of the Node condition that says whether a package of the Skyhook fails there.
#[must_use]
pub fn erroring_condition(skyhook: &str) -> String {
    format!("{GROUP}/{skyhook}/Erroring")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_annotation_has_a_longer_name_than_kubernetes_takes() {
        let name = |key: &str| key.split_once('/').map(|(_, name)| name.len());
        for (length, start, blocked) in [
            (50, Some(61), Some(63)),
            (51, Some(62), None),
            (52, Some(63), None),
            (53, None, None),
        ] {
            let skyhook = "a".repeat(length);
            let given = [drain_start(&skyhook), drain_blocked(&skyhook)];
            let given = given.map(|key| key.and_then(|key| name(&key)));
            assert_eq!(given, [start, blocked], "{length}");
        }
        let longest = "a".repeat(MAX_TAINT_KEY);
        assert_eq!(name(&auto_taint(&longest)), Some(63));
        let ours = "skyhook.nvidia.com/autoTaint_a.b";
        assert_eq!(auto_taint("a/b"), ours);
        let theirs = "nodewright.nvidia.com/autoTaint_a.b";
        assert_eq!(successor(ours), theirs);
        for (key, want) in [
            (ours, true),
            (theirs, true),
            ("skyhook.nvidia.com", false),
            ("skyhook.nvidia.company/a", false),
            (DO_NOT_DISRUPT, false),
        ] {
            assert_eq!(is_mark(key), want, "{key}");
        }
    }

    #[test]
    fn only_what_kubernetes_takes_is_a_key_of_a_label() {
        let prefix = "a".repeat(253);
        for good in [
            "gpu",
            "A.b_c",
            "nvidia.com/gpu",
            "a-1.b/c",
            &format!("{prefix}/c"),
        ] {
            assert!(is_label_key(good), "{good}");
        }
        for bad in [
            "",
            "/gpu",
            "nvidia.com/",
            "Nvidia.com/gpu",
            "a..b/c",
            "-a/c",
            "a/b/c",
            "a b",
            &format!("{prefix}a/c"),
        ] {
            assert!(!is_label_key(bad), "{bad}");
        }
    }

    #[test]
    fn only_what_kubernetes_takes_is_a_value_of_a_label() {
        let longest = "a".repeat(63);
        for good in ["a", "gpu-a100", "A.b_c", longest.as_str()] {
            assert!(is_label_value(good), "{good}");
        }
        let longer = "a".repeat(64);
        for bad in [
            "",
            "__default__",
            "-a",
            "a-",
            "a b",
            "\u{e9}",
            longer.as_str(),
        ] {
            assert!(!is_label_value(bad), "{bad}");
        }
    }
}
