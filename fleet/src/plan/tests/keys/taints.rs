//! What decisions about taints depend on.

use super::super::taints::{AUTO, OURS, required, tainted};
use super::*;

/// Skyhook `t`, which is not rolled out where `s` has not been.
fn other(spec: Value) -> Value {
    let mut spec = spec;
    spec["priority"] = json!(300);
    skyhook("t", spec)
}

impl Replica {
    fn skyhook(&mut self, mut object: Value) {
        object["metadata"]["resourceVersion"] = json!("9");
        object["metadata"]["generation"] = json!(2);
        let object = serde_json::from_value(object).unwrap();
        self.take(Change::Skyhook(Box::new(object)));
    }
}

/// A node that nobody has worked on joins.
fn joins(replica: &mut Replica) {
    replica.passes(10);
    replica.node(|node| {
        node.uid = "another".into();
        node.annotations.clear();
    });
}

/// All of `s` is installed on worker-1, which carries the taint.
fn kept(another: Value) -> Picture {
    let picture = tainted(required(json!({})), 1, &[OURS]).another(another);
    let key = names::node_state("s");
    (1..=3).fold(picture, |picture, n| {
        picture.annotated(n, &key, &complete("1.0.0"))
    })
}

#[test]
fn what_is_decided_about_taints() {
    let closed = || Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 }));
    let needs = || other(json!({ "runtimeRequired": true }));
    let unreadable =
        || other(json!({ "runtimeRequired": true, "nodeSelectors": { "matchLabels": 7 } }));
    let nobody = || {
        let elsewhere = json!({ "nodeSelectors": { "matchLabels": { "a": "b" } } });
        tainted(required(elsewhere), 1, &[OURS])
    };
    compare([
        (
            "CellKey.pending: a Skyhook wants new nodes tainted",
            Replica::with(&closed(), joins),
            |replica| {
                let spec = json!({ "runtimeRequired": true, "autoTaintNewNodes": true });
                replica.skyhook(other(spec));
            },
        ),
        (
            "TaintBits.is_open: the node is ignored from now on",
            Replica::with(
                &closed().skyhook(
                    &["spec"],
                    json!({
                        "runtimeRequired": true, "autoTaintNewNodes": true, "packages": packages(),
                        "interruptionBudget": { "count": 0 },
                    }),
                ),
                |_| {},
            ),
            |replica| {
                joins(replica);
                replica.node(|node| testkit::label(node, names::IGNORE, "true"));
            },
        ),
        (
            "Cell.required: the Skyhook that held the taint does not require it any more",
            Replica::of(&kept(needs())),
            |replica| replica.skyhook(other(json!({}))),
        ),
        (
            "Cell.required: the Skyhook that held the taint is gone",
            Replica::of(&kept(needs())),
            |replica| replica.take(Change::SkyhookGone("t".into())),
        ),
        (
            "SkyhookFact.taint: its nodeSelectors can be read",
            Replica::of(&kept(unreadable())),
            |replica| {
                let elsewhere = json!({ "matchLabels": { "a": "b" } });
                let spec = json!({ "runtimeRequired": true, "nodeSelectors": elsewhere });
                replica.skyhook(other(spec));
            },
        ),
        (
            "TaintBits.put_by_us: the annotation says so",
            Replica::of(&nobody()),
            |replica| {
                replica.node(|node| {
                    node.annotations.insert(AUTO.into(), "true".into());
                });
            },
        ),
        (
            "Cell.not_host: the node is a Windows node",
            Replica::of(&closed()),
            |replica| {
                replica.node(|node| testkit::label(node, "kubernetes.io/os", "windows"));
            },
        ),
    ]);
}
