use super::*;
use crate::testing::{node, object, record};

fn texts(skyhook: &str, nodes: Vec<Node>) -> (String, Vec<String>) {
    let all = Targets::of(skyhook, nodes);
    (all.summary(skyhook), all.warnings)
}

#[test]
fn nodes_with_a_record_are_reset() {
    let two = record("aa 1 apply complete, bb 2 config complete");
    let newer = r#"{"format":99}"#;
    let nodes = vec![
        node("worker-2", &[("nodeState_s", &two)], &[]),
        node("worker-1", &[("nodeState_s", "{}")], &[]),
        node("worker-3", &[("nodeState_s", "no JSON")], &[]),
        node("worker-4", &[("nodeState_other", &two)], &[]),
        node(
            "worker-5",
            &[("nodeState_s", &two), ("stamp_s", newer)],
            &[],
        ),
    ];
    let (summary, warnings) = texts("s", nodes);
    let want = "\
Skyhook: s
Nodes to reset (3):
  - worker-1 (0 packages)
  - worker-2 (2 packages)
  - worker-3 (the record cannot be read)
";
    assert_eq!(summary, want);
    let warning = "Warning: node \"worker-5\" is left out: a newer version of Skyhook wrote its record; use the plugin of that \
                   version";
    assert_eq!(warnings, [warning]);
}

/// Everything that a node may carry, of two Skyhooks.
fn full(unschedulable: bool) -> Node {
    let keys = [
        "nodeState_s",
        "status_s",
        "version_s",
        "cordon_s",
        "stamp_s",
        "reason_s",
        "drainStart_s",
        "drainBlocked_s",
        "autoTaint_s",
        "nodeState_s2",
        "cordon_s2",
        "status_s2",
        "cordon-owners",
        "runtimeRequiredCordon",
    ];
    let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (*key, "{}")).collect();
    let labels = [
        ("status_s", "complete"),
        ("status_s2", "complete"),
        ("ignore", "true"),
    ];
    let mut node = node("n", &pairs, &labels);
    node.spec = Some(object(json!({ "unschedulable": unschedulable })));
    node
}

#[test]
fn a_reset_removes_what_is_the_skyhooks_and_nothing_else() {
    let key = |name: &str| format!("skyhook.nvidia.com/{name}");
    for (unschedulable, cordon) in [(false, true), (true, false)] {
        let patch = forget(&full(unschedulable), "s").unwrap();
        let mut keys = vec![
            "drainBlocked_s",
            "drainStart_s",
            "nodeState_s",
            "status_s",
            "version_s",
        ];
        if cordon {
            keys.insert(0, "cordon_s");
        }
        let annotations: Map<String, Value> =
            keys.iter().map(|name| (key(name), Value::Null)).collect();
        let want = json!({ "metadata": {
            "annotations": annotations, "labels": { key("status_s"): null },
        } });
        assert_eq!(patch, want, "unschedulable: {unschedulable}");
    }
    assert_eq!(
        forget(&node("n", &[("nodeState_s2", "{}")], &[]), "s"),
        None
    );
}

#[test]
fn a_reset_of_a_node_removes_the_record_alone() {
    let want = json!({ "metadata": { "annotations": { "skyhook.nvidia.com/nodeState_s": null } } });
    assert_eq!(forget_record(&full(true), "s"), Some(want));
    assert_eq!(forget_record(&node("n", &[], &[]), "s"), None);
}
