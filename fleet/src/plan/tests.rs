#![expect(
    clippy::too_many_lines,
    clippy::wildcard_enum_match_arm,
    reason = "tables, and filters for the effects that a test is about"
)]

use std::time::Duration;

use serde_json::{Value, json};
use skyhook_crds::lease::StopReason;

use super::*;
use crate::index::Index;
use crate::testkit;

mod anew;
mod cache;
mod cordons;
mod deletion;
mod drains;
mod endings;
mod figures;
mod given_up;
mod host;
mod joining;
mod keys;
mod leases;
mod left;
mod order;
mod policies;
mod reapply;
mod reasons;
mod replaced;
mod reruns;
mod sequencing;
mod skew;
mod status;
mod taints;
mod takeover;
mod told;
mod uninstalls;
mod words;

/// A picture in the making.
#[derive(Clone)]
struct Picture {
    nodes: Vec<Value>,
    skyhooks: Vec<Value>,
    leases: Vec<Value>,
    policies: Vec<Value>,
    rollouts: Vec<Value>,
    settings: Settings,
    now: Mono,
}

const PACKAGES: &str = r#"{ "aa": { "version": "1.0.0", "image": "r/aa" } }"#;

fn packages() -> Value {
    serde_json::from_str(PACKAGES).unwrap()
}

fn skyhook(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("packages").is_none() {
        spec["packages"] = packages();
    }
    json!({
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"), "resourceVersion": "1", "generation": 1,
            "finalizers": [skyhook_crds::names::SKYHOOK_FINALIZER],
        },
        "spec": spec,
    })
}

/// The annotation of a node on which version `version` of package aa is complete.
fn complete(version: &str) -> String {
    format!(
        r#"{{"aa|{version}":{{"name":"aa","version":"{version}","image":"r/aa","stage":"config","state":"complete"}}}}"#
    )
}

fn set(object: &mut Value, path: &[&str], value: Value) {
    let mut at = object;
    for key in path {
        at = &mut at[*key];
    }
    *at = value;
}

impl Picture {
    /// One Skyhook `s` with budget 1 on three workers.
    fn new() -> Self {
        Self {
            nodes: (1..=3)
                .map(|n| testkit::node_object(&format!("worker-{n}")))
                .collect(),
            skyhooks: vec![skyhook(
                "s",
                json!({ "interruptionBudget": { "count": 1 } }),
            )],
            leases: Vec::new(),
            policies: Vec::new(),
            rollouts: Vec::new(),
            settings: Settings::default(),
            now: Mono::from_secs(1000),
        }
    }

    fn node(mut self, n: usize, path: &[&str], value: Value) -> Self {
        set(&mut self.nodes[n - 1], path, value);
        self
    }

    fn annotated(self, n: usize, key: &str, value: &str) -> Self {
        self.node(n, &["metadata", "annotations", key], json!(value))
    }

    fn skyhook(mut self, path: &[&str], value: Value) -> Self {
        set(&mut self.skyhooks[0], path, value);
        self
    }

    fn another(mut self, object: Value) -> Self {
        self.skyhooks.push(object);
        self
    }

    fn index(&self) -> Index {
        let mut index = testkit::index(&self.nodes, &self.skyhooks, &self.leases, &[]);
        for policy in &self.policies {
            let policy = serde_json::from_value(policy.clone()).unwrap();
            index.apply(crate::index::Change::Policy(Box::new(policy)), Mono::ZERO);
        }
        for rollout in &self.rollouts {
            let rollout = serde_json::from_value(rollout.clone()).unwrap();
            index.apply(crate::index::Change::Rollout(Box::new(rollout)), Mono::ZERO);
        }
        let revisions: Vec<Value> = index
            .picture
            .skyhooks()
            .values()
            .filter_map(|skyhook| {
                let checked = skyhook.checked.as_ref().ok()?;
                Some(json!({
                    "metadata": {
                        "name": checked.revision, "uid": "r", "resourceVersion": "1",
                        "labels": { "skyhook.nvidia.com/name": skyhook.name },
                        "annotations": { "skyhook.nvidia.com/owner": skyhook.uid },
                    },
                    "revision": 1,
                    "data": checked.data,
                }))
            })
            .collect();
        for revision in revisions {
            index.apply(
                crate::index::Change::Revision(Box::new(serde_json::from_value(revision).unwrap())),
                Mono::ZERO,
            );
        }
        index
    }

    fn plan_of(&self, index: &Index) -> Plan {
        let now = Now {
            mono: self.now,
            wall: Timestamp::from_second(1_700_000_000).unwrap(),
        };
        plan(&index.view(&self.settings, now))
    }

    fn plan(&self) -> Plan {
        self.plan_of(&self.index())
    }

    /// Nodes that get a lease, as `skyhook/node`.
    fn reserved(&self) -> Vec<String> {
        let plan = self.plan();
        plan.effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::ReserveLease { node, spec } => {
                    Some(format!("{}/{node}", spec.skyhook.name))
                }
                _ => None,
            })
            .collect()
    }

    /// Reason of a node in the Skyhook's status.
    fn reason(&self, skyhook: &str, node: &str) -> String {
        self.plan()
            .effects
            .iter()
            .find_map(|effect| match effect {
                Effect::WriteSkyhookStatus { name, status, .. } if name == skyhook => Some(
                    status
                        .node_reasons
                        .get(node)
                        .map(|r| r.reason.clone())
                        .unwrap_or_default(),
                ),
                _ => None,
            })
            .unwrap_or_default()
    }
}

#[test]
fn nothing_is_decided_before_everything_was_listed() {
    let index = Index::default();
    assert_eq!(Picture::new().plan_of(&index), Plan::default());
}

#[test]
fn slots_are_counted_once_however_many_leases_there_are() {
    let mut picture = Picture::new().skyhook(&["spec", "interruptionBudget"], json!(null));
    picture.nodes = (0..40)
        .map(|n| testkit::node_object(&format!("worker-{n}")))
        .collect();
    let index = picture.index();
    let effects = picture.plan_of(&index).effects;
    picture.leases = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::ReserveLease { node, spec } => Some(json!({
                "metadata": { "name": node, "uid": format!("lease-{node}"), "resourceVersion": "1" },
                "spec": spec,
            })),
            _ => None,
        })
        .collect();
    for n in 0..40 {
        let stamp = format!(r#"{{"granted":"lease-worker-{n}"}}"#);
        picture = picture.annotated(n + 1, "skyhook.nvidia.com/stamp_s", &stamp);
    }
    let index = picture.index();
    ledger::counted::take();
    let plan = picture.plan_of(&index);
    assert_eq!(ledger::counted::take(), 1);
    let grants = plan.effects.iter().map(Effect::kind);
    assert_eq!(grants.filter(|kind| *kind == "GrantLease").count(), 40);
}

#[test]
fn a_skyhook_is_taken_in_before_its_nodes_are() {
    let picture = Picture::new().skyhook(&["metadata", "finalizers"], json!([]));
    let index = testkit::index(&picture.nodes, &picture.skyhooks, &[], &[]);
    let kinds: Vec<&str> = picture
        .plan_of(&index)
        .effects
        .iter()
        .map(Effect::kind)
        .collect();
    assert!(
        kinds.contains(&"AdoptSkyhook") && kinds.contains(&"CreateRevision"),
        "{kinds:?}"
    );
    assert!(
        !kinds.contains(&"ReserveLease"),
        "the revision is not there yet: {kinds:?}"
    );
}

#[test]
fn who_gets_a_lease() {
    let toleration = json!([{ "key": "gpu", "operator": "Exists" }]);
    let taint = json!([{ "key": "gpu", "value": "yes", "effect": "NoExecute" }]);
    let control_plane = |picture: Picture, n| {
        picture.node(
            n,
            &["metadata", "labels", skyhook_crds::names::CONTROL_PLANE],
            json!(""),
        )
    };
    let not_ready = json!([{ "type": "Ready", "status": "False" }]);
    let stamped = |picture: Picture, n| {
        picture.annotated(n, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
    };
    for (name, picture, want) in [
        ("budget 1", Picture::new(), vec!["s/worker-1"]),
        (
            "no budget",
            Picture::new().skyhook(&["spec", "interruptionBudget"], json!(null)),
            vec!["s/worker-1", "s/worker-2", "s/worker-3"],
        ),
        (
            "67 percent",
            Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "percent": 67 })),
            vec!["s/worker-1", "s/worker-2"],
        ),
        ("budget 0", Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 })), vec![]),
        (
            "cluster-wide cap",
            {
                let mut picture = Picture::new().skyhook(&["spec", "interruptionBudget"], json!(null));
                picture.settings.max_concurrent_nodes = Some(2);
                picture
            },
            vec!["s/worker-1", "s/worker-2"],
        ),
        (
            "one that is not Ready counts where asked",
            Picture::new()
                .skyhook(&["spec", "interruptionBudget"], json!({ "count": 1, "countUnavailable": true }))
                .node(3, &["status", "conditions"], not_ready.clone()),
            vec![],
        ),
        (
            "one that is not Ready does not count otherwise",
            Picture::new().node(3, &["status", "conditions"], not_ready.clone()),
            vec!["s/worker-1"],
        ),
        (
            "selector",
            Picture::new()
                .skyhook(&["spec", "nodeSelectors"], json!({ "matchLabels": { "pick": "me" } }))
                .node(2, &["metadata", "labels", "pick"], json!("me")),
            vec!["s/worker-2"],
        ),
        (
            "ignored",
            Picture::new().node(1, &["metadata", "labels", skyhook_crds::names::IGNORE], json!("true")),
            vec!["s/worker-2"],
        ),
        ("tainted", Picture::new().node(1, &["spec", "taints"], taint.clone()), vec!["s/worker-2"]),
        (
            "tolerated",
            Picture::new().node(1, &["spec", "taints"], taint).skyhook(&["spec", "additionalTolerations"], toleration),
            vec!["s/worker-1"],
        ),
        (
            "cordoned by somebody",
            Picture::new().node(
                1,
                &["spec"],
                json!({ "unschedulable": true, "taints": [{ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }] }),
            ),
            vec!["s/worker-1"],
        ),
        (
            "runtime-required taint, not required",
            Picture::new().node(
                1,
                &["spec", "taints"],
                json!([{ "key": "skyhook.nvidia.com", "value": "runtime-required", "effect": "NoSchedule" }]),
            ),
            vec!["s/worker-2"],
        ),
        (
            "runtime-required taint, required",
            Picture::new()
                .node(
                    1,
                    &["spec", "taints"],
                    json!([{ "key": "skyhook.nvidia.com", "value": "runtime-required", "effect": "NoSchedule" }]),
                )
                .skyhook(&["spec", "runtimeRequired"], json!(true)),
            vec!["s/worker-1"],
        ),
        (
            "paused",
            Picture::new().skyhook(&["metadata", "annotations"], json!({ "skyhook.nvidia.com/pause": "true" })),
            vec![],
        ),
        (
            "disabled",
            Picture::new().skyhook(&["metadata", "annotations"], json!({ "skyhook.nvidia.com/disable": "true" })),
            vec![],
        ),
        (
            "being deleted",
            Picture::new().skyhook(&["metadata", "deletionTimestamp"], json!("2026-01-01T00:00:00Z")),
            vec![],
        ),
        (
            "without our finalizer",
            Picture::new().skyhook(&["metadata", "finalizers"], json!(["another.example/finalizer"])),
            vec![],
        ),
        (
            "an invalid Skyhook does not stop those before it",
            Picture::new()
                .skyhook(&["spec", "packages"], json!({ "aa": { "version": "x", "image": "r" } }))
                .another(skyhook("t", json!({ "priority": 100 }))),
            vec!["t/worker-1", "t/worker-2", "t/worker-3"],
        ),
        (
            "an undecodable Skyhook does not stop another",
            Picture::new()
                .skyhook(&["spec", "packages"], json!("nonsense"))
                .another(skyhook("t", json!({ "interruptionBudget": { "count": 1 } }))),
            vec!["t/worker-1"],
        ),
        (
            "a missing policy stops its own",
            Picture::new()
                .skyhook(&["spec"], json!({ "deploymentPolicy": "gone", "packages": packages() }))
                .another(skyhook("t", json!({ "interruptionBudget": { "count": 1 }, "nodeSelectors": { "matchLabels": { "a": "b" } } })))
                .node(2, &["metadata", "labels", "a"], json!("b")),
            vec![],
        ),
        (
            "malformed package states stop that node",
            Picture::new().annotated(1, "skyhook.nvidia.com/nodeState_s", "{"),
            vec!["s/worker-2"],
        ),
        (
            "lower priority goes first on every node",
            Picture::new().another(skyhook("a", json!({ "priority": 300 }))),
            vec!["s/worker-1"],
        ),
        (
            "same priority goes by name",
            Picture::new().another(skyhook("a", json!({}))),
            vec!["a/worker-1", "a/worker-2", "a/worker-3"],
        ),
        (
            "order is per node",
            stamped(Picture::new(), 2).another(skyhook("t", json!({ "priority": 300 }))),
            vec!["s/worker-1", "t/worker-2"],
        ),
        (
            "a disabled one does not hold later ones up",
            Picture::new()
                .skyhook(&["metadata", "annotations"], json!({ "skyhook.nvidia.com/disable": "true" }))
                .another(skyhook("t", json!({ "interruptionBudget": { "count": 1 } }))),
            vec!["t/worker-1"],
        ),
        (
            "a paused one does",
            Picture::new()
                .skyhook(&["metadata", "annotations"], json!({ "skyhook.nvidia.com/pause": "true" }))
                .another(skyhook("t", json!({ "interruptionBudget": { "count": 1 } }))),
            vec![],
        ),
        (
            "complete under NVIDIA Skyhook stays untouched",
            stamped(stamped(stamped(Picture::new(), 1), 2), 3),
            vec![],
        ),
        (
            "another version there",
            Picture::new().annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("0.9.0")),
            vec!["s/worker-1"],
        ),
        (
            "control-plane nodes one at a time",
            control_plane(control_plane(Picture::new(), 1), 2).skyhook(&["spec", "interruptionBudget"], json!(null)),
            vec!["s/worker-1", "s/worker-3"],
        ),
        (
            "and only while the others are Ready",
            control_plane(control_plane(Picture::new(), 1), 2)
                .node(2, &["status", "conditions"], not_ready)
                .skyhook(&["spec", "interruptionBudget"], json!(null)),
            vec!["s/worker-2", "s/worker-3"],
        ),
        (
            "own node last",
            {
                let mut picture = Picture::new();
                picture.settings.node_name = Some("worker-1".into());
                picture
            },
            vec!["s/worker-2"],
        ),
    ] {
        assert_eq!(picture.reserved(), want, "{name}");
    }
}
