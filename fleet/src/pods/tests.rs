#![expect(clippy::too_many_lines, reason = "one table, a row per case")]

use serde_json::json;
use skyhook_crds::SkyhookSpec;
use skyhook_crds::skyhook::CheckedSkyhook;

use super::*;

fn pod(value: serde_json::Value) -> PodFact {
    let mut base = json!({
        "metadata": {
            "namespace": "default", "name": "p", "uid": "u",
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true }],
        },
        "spec": { "containers": [] },
        "status": { "phase": "Running" },
    });
    merge(&mut base, value);
    PodFact::new(serde_json::from_value(base).unwrap())
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn checked(spec: serde_json::Value) -> CheckedSkyhook {
    serde_json::from_value::<SkyhookSpec>(spec)
        .unwrap()
        .check("s")
        .unwrap()
}

fn verdict(pod: &PodFact, spec: &CheckedSkyhook, node_ready: bool) -> Verdict {
    let rules = Rules {
        wait_for: spec.pods_to_wait_for.as_ref(),
        options: &spec.drain,
        namespace: "skyhook",
        node_ready,
    };
    judge(pod, &rules)
}

#[test]
fn who_leaves() {
    let plain =
        checked(json!({ "podNonInterruptLabels": { "matchLabels": { "dontmess": "withme" } } }));
    let controller = |kind: &str| json!([{ "apiVersion": "v1", "kind": kind, "name": "o", "uid": "o", "controller": true }]);
    for (name, given, want) in [
        ("of a ReplicaSet", json!({}), Verdict::Evict),
        (
            "bare",
            json!({ "metadata": { "ownerReferences": null } }),
            Verdict::Evict,
        ),
        (
            "with an emptyDir",
            json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": {} }] } }),
            Verdict::Evict,
        ),
        (
            "pending",
            json!({ "status": { "phase": "Pending" } }),
            Verdict::Evict,
        ),
        (
            "of a DaemonSet",
            json!({ "metadata": { "ownerReferences": controller("DaemonSet") } }),
            Verdict::Stays,
        ),
        (
            "mirror",
            json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": "x" } } }),
            Verdict::Stays,
        ),
        (
            "succeeded",
            json!({ "status": { "phase": "Succeeded" } }),
            Verdict::Stays,
        ),
        (
            "failed",
            json!({ "status": { "phase": "Failed" } }),
            Verdict::Stays,
        ),
        (
            "in kube-system",
            json!({ "metadata": { "namespace": "kube-system" } }),
            Verdict::Stays,
        ),
        (
            "tolerates the unschedulable taint",
            json!({ "spec": { "tolerations": [{ "key": "node.kubernetes.io/unschedulable", "operator": "Exists" }] } }),
            Verdict::Stays,
        ),
        (
            "tolerates everything",
            json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } }),
            Verdict::Evict,
        ),
        (
            "our coordinator",
            json!({ "metadata": { "namespace": "skyhook", "labels": { "control-plane": "controller-manager" } } }),
            Verdict::Stays,
        ),
        (
            "somebody else's with that label",
            json!({ "metadata": { "labels": { "control-plane": "controller-manager" } } }),
            Verdict::Evict,
        ),
        (
            "not to be interrupted",
            json!({ "metadata": { "labels": { "dontmess": "withme" } } }),
            Verdict::WaitFor,
        ),
        (
            "not to be interrupted, finished",
            json!({ "metadata": { "labels": { "dontmess": "withme" } }, "status": { "phase": "Succeeded" } }),
            Verdict::Stays,
        ),
        (
            "terminating",
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
            Verdict::Leaving,
        ),
    ] {
        assert_eq!(verdict(&pod(given), &plain, true), want, "{name}");
    }
}

#[test]
fn an_unreachable_node_confirms_nothing() {
    let terminating = pod(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
    assert_eq!(
        verdict(&terminating, &checked(json!({})), false),
        Verdict::Stays
    );
    assert_eq!(
        verdict(&pod(json!({})), &checked(json!({})), false),
        Verdict::Evict
    );
}

#[test]
fn options_speak_kubectl() {
    let bare = pod(json!({ "metadata": { "ownerReferences": null } }));
    let scratch = pod(json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": {} }] } }));
    let careful = checked(json!({ "drain": { "force": false, "deleteEmptydirData": false } }));
    assert!(matches!(
        verdict(&bare, &careful, true),
        Verdict::Refused(_)
    ));
    assert!(matches!(
        verdict(&scratch, &careful, true),
        Verdict::Refused(_)
    ));
    let selective =
        checked(json!({ "drain": { "podSelector": { "matchLabels": { "app": "x" } } } }));
    assert_eq!(verdict(&pod(json!({})), &selective, true), Verdict::Stays);
    assert_eq!(
        verdict(
            &pod(json!({ "metadata": { "labels": { "app": "x" } } })),
            &selective,
            true
        ),
        Verdict::Evict
    );
    assert_eq!(
        checked(json!({})).drain.timeout,
        Some(std::time::Duration::from_secs(3600))
    );
    assert_eq!(
        checked(json!({ "drain": { "timeout": "0s" } }))
            .drain
            .timeout,
        None
    );
    assert_eq!(
        checked(json!({ "drain": { "gracePeriod": -1 } }))
            .drain
            .grace_period,
        None
    );
}
