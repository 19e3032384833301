//! Skyhooks that have to be complete on all of their nodes before later ones go on.

use super::*;
use crate::index::Change;
use crate::plan::cache::Cache;
use skyhook_crds::stage::Status;

const FIRST: &str = "skyhook.nvidia.com/nodeState_y";
const LATER: &str = "skyhook.nvidia.com/nodeState_x";
const GATE: &str = "Skyhook y goes first (sequencing: all) and is not complete on all of its nodes";
const HERE: &str = "Skyhook y goes first on this node and is not complete there";

/// Skyhook y comes first, then x. Both are for all of three workers.
fn two(sequencing: &str) -> Picture {
    let mut picture = Picture::new();
    picture.skyhooks = vec![
        skyhook("y", json!({ "priority": 1, "sequencing": sequencing })),
        skyhook("x", json!({ "priority": 2 })),
    ];
    picture
}

/// y is complete on the first `nodes` workers.
fn done(picture: Picture, nodes: usize) -> Picture {
    (1..=nodes).fold(picture, |picture, n| {
        picture.annotated(n, FIRST, &complete("1.0.0"))
    })
}

/// x on each worker: what it gets, or why it waits.
fn later(picture: &Picture) -> Vec<String> {
    let effects = picture.plan().effects;
    let status = effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { name, status, .. } if name == "x" => Some(status),
        _ => None,
    });
    let status = status.expect("x gets a status");
    let of = |n: usize| {
        let node = format!("worker-{n}");
        let is_reserved = effects.iter().any(|effect| match effect {
            Effect::ReserveLease { node: at, spec } => *at == node && spec.skyhook.name == "x",
            _ => false,
        });
        let reason = status.node_reasons.get(&node);
        match status.node_status.get(&node) {
            Some(Status::Complete) => "complete".to_owned(),
            _ if is_reserved => "reserved".to_owned(),
            _ => reason.map(|why| why.message.clone()).unwrap_or_default(),
        }
    };
    (1..=picture.nodes.len()).map(of).collect()
}

#[test]
fn a_later_skyhook_waits_for_all_nodes_or_for_each() {
    let annotated = |picture: Picture, key: &str| {
        picture.skyhook(&["metadata", "annotations"], json!({ key: "true" }))
    };
    let selected = |picture: Picture| {
        picture.skyhook(
            &["spec", "nodeSelectors"],
            json!({ "matchLabels": { "a": "b" } }),
        )
    };
    let broken = json!({ "aa": { "version": "x", "image": "r/aa" } });
    let ignored = ["metadata", "labels", skyhook_crds::names::IGNORE];
    let taint = json!([{ "key": "gpu", "effect": "NoSchedule" }]);
    for (name, picture, want) in [
        (
            "it is complete on one of them",
            done(two("all"), 1),
            [GATE, HERE, HERE],
        ),
        (
            "it is complete on all",
            done(two("all"), 3),
            ["reserved", "reserved", "reserved"],
        ),
        (
            "node: it is complete on one of them",
            done(two("node"), 1),
            ["reserved", HERE, HERE],
        ),
        (
            "only the later one says all",
            {
                let mut picture = done(two("node"), 1);
                picture.skyhooks[1]["spec"]["sequencing"] = json!("all");
                picture
            },
            ["reserved", HERE, HERE],
        ),
        (
            "it is paused",
            annotated(done(two("all"), 1), skyhook_crds::names::PAUSE),
            [GATE, HERE, HERE],
        ),
        (
            "it is disabled",
            annotated(done(two("all"), 1), skyhook_crds::names::DISABLE),
            ["reserved", "reserved", "reserved"],
        ),
        (
            "it is being deleted",
            done(two("all"), 1).skyhook(
                &["metadata", "deletionTimestamp"],
                json!("2026-01-01T00:00:00Z"),
            ),
            ["reserved", "reserved", "reserved"],
        ),
        (
            "it selects no node",
            selected(two("all")),
            ["reserved", "reserved", "reserved"],
        ),
        (
            "it selects a Windows node alone",
            selected(two("all"))
                .node(2, &["metadata", "labels", "a"], json!("b"))
                .node(
                    2,
                    &["metadata", "labels", "kubernetes.io/os"],
                    json!("windows"),
                ),
            ["reserved", "", "reserved"],
        ),
        (
            "it selects one node",
            selected(two("all")).node(2, &["metadata", "labels", "a"], json!("b")),
            [GATE, HERE, GATE],
        ),
        (
            "a node of it is ignored",
            selected(two("all"))
                .node(2, &["metadata", "labels", "a"], json!("b"))
                .node(2, &ignored, json!("true")),
            [
                GATE,
                "label skyhook.nvidia.com/ignore=true keeps every Skyhook off",
                GATE,
            ],
        ),
        (
            "a node of it is tainted",
            selected(two("all"))
                .node(2, &["metadata", "labels", "a"], json!("b"))
                .node(2, &["spec", "taints"], taint),
            [
                GATE,
                "taint gpu:NoSchedule is not tolerated: add it to spec.additionalTolerations",
                GATE,
            ],
        ),
        (
            "its spec is not valid",
            selected(two("all"))
                .node(2, &["metadata", "labels", "a"], json!("b"))
                .skyhook(&["spec", "packages"], broken.clone()),
            [GATE, HERE, GATE],
        ),
        (
            "its spec is not valid, and it selects no node",
            selected(two("all")).skyhook(&["spec", "packages"], broken),
            ["reserved", "reserved", "reserved"],
        ),
        (
            "nobody can tell which nodes it selects",
            two("all").skyhook(
                &["spec", "nodeSelectors"],
                json!({ "matchExpressions": [{ "key": "a", "operator": "Near" }] }),
            ),
            [GATE, GATE, GATE],
        ),
        (
            "its spec cannot be read at all",
            two("all").skyhook(&["spec", "packages"], json!(7)),
            ["reserved", "reserved", "reserved"],
        ),
        (
            "the later one is complete on a node",
            done(two("all"), 1).annotated(1, LATER, &complete("1.0.0")),
            ["complete", HERE, HERE],
        ),
    ] {
        assert_eq!(later(&picture), want, "{name}");
    }
}

#[test]
fn a_skyhook_that_waits_for_all_nodes_of_another_says_so() {
    let plan = done(two("all"), 1).plan();
    let shown = plan.effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { name, status, .. } if name == "x" => {
            Some((status.status, status.complete_nodes.clone()))
        }
        _ => None,
    });
    assert_eq!(shown, Some((Status::Waiting, "0/3".to_owned())));
}

#[test]
fn of_several_the_first_is_waited_for() {
    let labels = ["metadata", "labels", "a"];
    let mut picture = two("all").another(skyhook(
        "z",
        json!({ "priority": 3, "nodeSelectors": { "matchLabels": { "a": "z" } } }),
    ));
    picture.skyhooks[1]["spec"]["sequencing"] = json!("all");
    for (n, selected) in [(0, "y"), (1, "x")] {
        picture.skyhooks[n]["spec"]["nodeSelectors"] = json!({ "matchLabels": { "a": selected } });
    }
    let picture = picture
        .node(1, &labels, json!("y"))
        .node(2, &labels, json!("x"))
        .node(3, &labels, json!("z"));
    let why = |picture: &Picture| {
        let effects = picture.plan().effects;
        let status = effects.into_iter().find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { name, status, .. } if name == "z" => Some(status),
            _ => None,
        });
        let reasons = status.expect("z gets a status").node_reasons;
        reasons.get("worker-3").map(|why| why.message.clone())
    };
    assert_eq!(why(&picture).as_deref(), Some(GATE));
    let second = why(&done(picture, 1));
    assert_eq!(second, Some(GATE.replace("Skyhook y", "Skyhook x")));
}

#[test]
fn a_lease_that_is_held_goes_on_and_none_is_added() {
    let mut picture = done(two("all"), 2);
    let skyhooks = picture.index();
    let checked = skyhooks.picture.skyhooks()["x"].checked.clone().unwrap();
    picture.leases = vec![json!({
        "metadata": { "name": "worker-1", "uid": "lease", "resourceVersion": "5" },
        "spec": {
            "node": { "name": "worker-1", "uid": "uid-of-worker-1" },
            "skyhook": { "name": "x", "uid": "uid-of-x" },
            "revision": checked.revision,
        },
    })];
    let stopped = picture.plan().effects.into_iter().filter(|effect| {
        matches!(
            effect,
            Effect::StopLease { .. } | Effect::WithdrawLease { .. }
        )
    });
    assert_eq!(stopped.collect::<Vec<_>>(), []);
    assert_eq!(picture.reserved(), ["y/worker-3"]);
}

/// The cache knows a standing only by its key.
#[test]
fn what_opens_and_closes_the_gate_changes_every_node() {
    let now = Now {
        mono: Mono::from_secs(1000),
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    let reserved = |plan: &Plan| {
        let effects = plan.effects.iter().filter_map(|effect| match effect {
            Effect::ReserveLease { node, spec } if spec.skyhook.name == "x" => Some(node.clone()),
            _ => None,
        });
        effects.collect::<Vec<_>>()
    };
    let picture = done(two("all"), 2);
    let mut index = picture.index();
    let mut cache = Cache::default();
    let mut step = |index: &Index, name: &str, want: &[&str]| {
        let view = index.view(&picture.settings, now);
        let (kept, anew) = (cache.plan(&view), plan(&view));
        assert_eq!(kept, anew, "{name}");
        assert_eq!(reserved(&kept), want, "{name}");
    };
    step(&index, "y is not complete on worker-3", &[]);
    let with = |sequencing: &str, version: &str| {
        let mut object = two(sequencing).skyhooks.remove(0);
        object["metadata"]["resourceVersion"] = json!(version);
        Change::Skyhook(Box::new(serde_json::from_value(object).unwrap()))
    };
    index.apply(with("node", "2"), now.mono);
    step(&index, "node", &["worker-1", "worker-2"]);
    index.apply(with("all", "3"), now.mono);
    step(&index, "all again", &[]);
    let record = NodePatch::default().annotation(FIRST, Some(complete("1.0.0")));
    let third = testkit::patched(&index.picture.nodes()["worker-3"], &record);
    index.picture.node(third);
    let all = ["worker-1", "worker-2", "worker-3"];
    step(&index, "y is complete everywhere", &all);
    index.picture.node(testkit::node("worker-4"));
    step(&index, "a node joins that y selects", &[]);
}
