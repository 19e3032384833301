//! What the takeover of other implementations' records depends on.

use super::*;
use crate::effect::NodePatch;

const THEIRS: &str = "nodewright.nvidia.com/nodeState_s";

impl Replica {
    fn annotate(&mut self, key: &str, value: Option<&str>) {
        let patch = NodePatch::default().annotation(key, value.map(str::to_owned));
        self.node(|node| *node = testkit::patched(node, &patch));
    }
}

/// No node gets a lease, and worker-1 has this record.
fn recorded(value: &str) -> Picture {
    let closed = Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 }));
    closed
        .annotated(1, &names::node_state("s"), value)
        .annotated(1, &names::version("s"), "v0.13.0")
}

#[test]
fn what_is_taken_over() {
    let in_the_middle = || complete("1.0.0").replace("\"complete\"", "\"erroring\"");
    compare([
        (
            "Cell.foreign: NodeWright has written a record",
            Replica::of(&recorded(&complete("1.0.0"))),
            |replica| replica.annotate(THEIRS, Some("{}")),
        ),
        (
            "Cell.foreign: it says that the node is complete",
            Replica::of(&recorded(&in_the_middle())),
            |replica| replica.annotate(THEIRS, Some(&complete("1.0.0"))),
        ),
        (
            "Cell.foreign: the record turns out to be an early one",
            Replica::of(&recorded(&complete("1.0.0"))),
            |replica| replica.annotate(&names::version("s"), Some("v0.5.0")),
        ),
        (
            "Cell.foreign: the lease that kept a key of NodeWright is gone",
            Replica::of(&working().annotated(1, THEIRS, "{}").annotated(
                1,
                &names::node_state("s"),
                &complete("1.0.0"),
            )),
            |replica| replica.take(Change::LeaseGone("worker-1".into())),
        ),
        (
            "Cell.foreign: nobody keeps Skyhooks off the node any more",
            Replica::of(&recorded(&in_the_middle()).annotated(1, THEIRS, "{}").node(
                1,
                &["metadata", "labels", names::IGNORE],
                json!("true"),
            )),
            |replica| replica.node(|node| testkit::label(node, names::IGNORE, "false")),
        ),
    ]);
}
