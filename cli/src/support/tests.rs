//! Tests of what the archive holds.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::*;
use crate::testing::{lease, object};

#[test]
fn the_archive_holds_everything_masked_and_says_what_it_lacks() {
    let skyhook = json!({
        "metadata": { "name": "gpu", "managedFields": [] },
        "spec": { "packages": { "p": { "env": [{ "name": "DB_PASSWORD", "value": "hunter2-hunter2" }] } } },
    });
    let gathered = Gathered {
        objects: [("rolloutstates", vec![]), ("skyhooks", vec![skyhook])].into(),
        texts: [
            ("logs/agents/n.log", "one\nit is hunter2-hunter2\n"),
            ("versions.txt", "kubectl-skyhook v1\n"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into(),
        missing: vec!["nodes: forbidden, token=abc".to_owned()],
    };
    let files = bundle(gathered, Timestamp::from_second(1_795_773_600).unwrap());
    let skyhooks = "\
- metadata:
    name: gpu
  spec:
    packages:
      p:
        env:
        - name: DB_PASSWORD
          value: '***'
";
    let about = "\
Skyhook, 2026-11-27T10:00:00Z

What there is:
  objects/rolloutstates.yaml: 0
  objects/skyhooks.yaml: 1
  logs/agents/n.log: 2 lines
  versions.txt: 1 lines

What could not be had:
  nodes: forbidden, token=***

Secrets were not read. Values of env, keys of configMap, and parts of texts that look like secrets are ***. Look through the \
                 files before you give them away.
";
    let want = [
        ("README.txt", about),
        ("logs/agents/n.log", "one\nit is ***\n"),
        ("objects/rolloutstates.yaml", "[]\n"),
        ("objects/skyhooks.yaml", skyhooks),
        ("versions.txt", "kubectl-skyhook v1\n"),
    ];
    let want = want.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(files, want.into());
}

#[test]
fn an_archive_that_lacks_nothing_says_so() {
    let files = bundle(Gathered::default(), Timestamp::UNIX_EPOCH);
    let about = &files[ABOUT];
    assert!(
        about.contains("\nEverything that was asked for could be had.\n"),
        "{about}"
    );
    let name = default_file(Timestamp::from_second(1_795_773_600).unwrap());
    assert_eq!(
        name.to_str(),
        Some("skyhook-support-20261127-100000.tar.gz")
    );
}

#[test]
fn of_a_node_what_skyhook_looks_at_is_kept() {
    let node: Node = object(json!({
        "metadata": {
            "name": "n", "uid": "u", "resourceVersion": "7",
            "labels": {
                "skyhook.nvidia.com/status_s": "complete", "node-role.kubernetes.io/gpu": "", "pool": "a", "zone": "z",
                "secret": "x",
            },
            "annotations": {
                "skyhook.nvidia.com/nodeState_s": "{}", "nodewright.nvidia.com/nodeState_s": "{}",
                "karpenter.sh/do-not-disrupt": "true", "example.com/note": "x",
            },
        },
        "spec": { "unschedulable": true, "taints": [{ "key": "t", "effect": "NoSchedule" }], "podCIDR": "10.0.0.0/24" },
        "status": {
            "allocatable": { "cpu": "2" }, "images": [{ "names": ["i"] }], "addresses": [{ "type": "Hostname", "address": "n" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    }));
    let selecting = [json!({
        "spec": {
            "nodeSelectors": { "matchLabels": { "pool": "a" } },
            "compartments": [{ "selector": { "matchExpressions": [{ "key": "zone", "operator": "Exists" }] } }],
        },
    })];
    let keys = nodes::selected_by(&selecting);
    assert_eq!(keys, BTreeSet::from(["pool".to_owned(), "zone".to_owned()]));
    let want = json!({
        "metadata": {
            "name": "n", "uid": "u", "resourceVersion": "7", "creationTimestamp": null,
            "labels": {
                "skyhook.nvidia.com/status_s": "complete", "node-role.kubernetes.io/gpu": "", "pool": "a", "zone": "z",
            },
            "annotations": {
                "skyhook.nvidia.com/nodeState_s": "{}", "nodewright.nvidia.com/nodeState_s": "{}",
                "karpenter.sh/do-not-disrupt": "true",
            },
        },
        "spec": { "unschedulable": true, "taints": [{ "key": "t", "effect": "NoSchedule" }] },
        "status": {
            "allocatable": { "cpu": "2" }, "conditions": [{ "type": "Ready", "status": "True" }], "nodeInfo": null,
        },
    });
    assert_eq!(nodes::reduced(&node, &keys), want);
}

#[test]
fn agents_of_nodes_that_are_worked_on_are_asked_first() {
    let nodes = ["a", "b", "c", "d"].map(|name| crate::testing::node(name, &[], &[]));
    let pod = |node: &str, state: Value| -> Pod {
        object(json!({
            "metadata": { "name": format!("agent-{node}") }, "spec": { "nodeName": node, "containers": [] },
            "status": { "containerStatuses": [{
                "name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state,
            }] },
        }))
    };
    let running = || json!({ "running": {} });
    let waiting = json!({ "waiting": { "reason": "ImagePullBackOff" } });
    let pods = [
        pod("a", running()),
        pod("b", running()),
        pod("c", waiting),
        pod("d", running()),
    ];
    let leases = [lease("d", "s", &json!({}), &json!(null))];
    let chosen = |patterns: &[&str], most| {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        nodes::chosen(&nodes, &leases, &pods, &patterns, most).unwrap()
    };
    assert_eq!(chosen(&[], 10), ["d", "c", "a", "b"]);
    assert_eq!(chosen(&[], 2), ["d", "c"]);
    assert_eq!(chosen(&["[ab]", "d"], 1), ["a", "b", "d"]);
}
