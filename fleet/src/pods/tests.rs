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
            "our coordinator",
            json!({ "metadata": { "namespace": "skyhook", "labels": { "control-plane": "controller-manager" } } }),
            Verdict::Stays,
        ),
        (
            "our agent",
            json!({ "metadata": { "namespace": "skyhook", "labels": { "app.kubernetes.io/component": "agent" } } }),
            Verdict::Stays,
        ),
        (
            "somebody else's agent",
            json!({ "metadata": { "labels": { "app.kubernetes.io/component": "agent" } } }),
            Verdict::Evict,
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
            "not to be interrupted, in kube-system",
            json!({ "metadata": { "namespace": "kube-system", "labels": { "dontmess": "withme" } } }),
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
fn the_toleration_of_a_cordoned_node_follows_the_rule_of_the_scheduler() {
    let cordoned = names::UNSCHEDULABLE_TAINT;
    for (name, toleration, want) in [
        (
            "everything",
            json!({ "operator": "Exists" }),
            Verdict::Stays,
        ),
        (
            "the key",
            json!({ "key": cordoned, "operator": "Exists" }),
            Verdict::Stays,
        ),
        (
            "no value",
            json!({ "key": cordoned, "operator": "Equal", "value": "" }),
            Verdict::Stays,
        ),
        ("no operator", json!({ "key": cordoned }), Verdict::Stays),
        (
            "another value",
            json!({ "key": cordoned, "operator": "Equal", "value": "x" }),
            Verdict::Evict,
        ),
        (
            "another effect",
            json!({ "key": cordoned, "operator": "Exists", "effect": "NoExecute" }),
            Verdict::Evict,
        ),
        (
            "its effect",
            json!({ "key": cordoned, "operator": "Exists", "effect": "NoSchedule" }),
            Verdict::Stays,
        ),
        (
            "any effect",
            json!({ "key": cordoned, "operator": "Exists", "effect": "" }),
            Verdict::Stays,
        ),
        (
            "an operator that is not known",
            json!({ "key": cordoned, "operator": "Gt", "value": "1" }),
            Verdict::Evict,
        ),
        (
            "another key",
            json!({ "key": "node.kubernetes.io/not-ready", "operator": "Exists" }),
            Verdict::Evict,
        ),
    ] {
        let pod = pod(json!({ "spec": { "tolerations": [toleration] } }));
        let given = verdict(&pod, &checked(json!({})), true);
        assert_eq!(given, want, "{name}");
    }
}

#[test]
fn options_decide_who_leaves() {
    let bare = json!({ "metadata": { "ownerReferences": null } });
    let scratch = json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": {} }] } });
    let both = json!({
        "metadata": { "ownerReferences": null }, "spec": { "volumes": [{ "name": "v", "emptyDir": {} }] },
    });
    let terminating = json!({ "metadata": {
        "ownerReferences": null, "deletionTimestamp": "2026-01-01T00:00:00Z",
    } });
    let owner = json!([{ "apiVersion": "v1", "kind": "DaemonSet", "name": "o", "uid": "o", "controller": true }]);
    let of_daemon_set = json!({ "metadata": { "ownerReferences": owner } });
    let kept_by_its_controller = json!({
        "metadata": { "ownerReferences": owner },
        "spec": { "tolerations": [
            { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute" },
            { "key": names::UNSCHEDULABLE_TAINT, "operator": "Exists", "effect": "NoSchedule" },
        ] },
    });
    let agent = json!({ "metadata": {
        "namespace": "skyhook", "ownerReferences": owner, "labels": { "app.kubernetes.io/component": "agent" },
    } });
    let chosen = json!({ "metadata": { "labels": { "app": "x" } } });
    let careful = json!({ "force": false, "deleteEmptyDirData": false });
    let thorough = json!({ "ignoreDaemonSets": false });
    let selective = json!({ "force": false, "podSelector": { "matchLabels": { "app": "x" } } });
    for (name, given, config, want) in [
        (
            "bare",
            &bare,
            &careful,
            Verdict::Refused(BlockCause::UnmanagedPod),
        ),
        (
            "with an emptyDir",
            &scratch,
            &careful,
            Verdict::Refused(BlockCause::EmptyDirData),
        ),
        (
            "bare and with an emptyDir",
            &both,
            &careful,
            Verdict::Refused(BlockCause::UnmanagedPod),
        ),
        (
            "terminating and bare",
            &terminating,
            &careful,
            Verdict::Leaving,
        ),
        ("of a DaemonSet", &of_daemon_set, &thorough, Verdict::Evict),
        (
            "of a DaemonSet, as its controller makes it",
            &kept_by_its_controller,
            &thorough,
            Verdict::Stays,
        ),
        ("our agent", &agent, &thorough, Verdict::Stays),
        ("not selected, and bare", &bare, &selective, Verdict::Stays),
        ("selected", &chosen, &selective, Verdict::Evict),
    ] {
        let spec = checked(json!({ "drainConfig": config }));
        assert_eq!(verdict(&pod(given.clone()), &spec, true), want, "{name}");
    }
}
