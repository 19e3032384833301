//! The status of large Skyhooks.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a filter for the effect that the tests are about"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use skyhook_crds::names;
use skyhook_crds::skyhook::SkyhookStatus;
use skyhook_crds::stage::Status;

use crate::effect::Effect;
use crate::index::{Change, Index, Mono};
use crate::plan::{Now, Plan, plan};
use crate::settings::Settings;
use crate::testkit;

/// A cluster with one Skyhook that selects all nodes.
struct Fleet {
    nodes: usize,
    packages: usize,
    /// What every node's lease reports of its first package, if it has one.
    failure: Option<String>,
    /// Nodes on which everything is complete, the first by name.
    complete: usize,
    status: Option<SkyhookStatus>,
}

const FLEET: Fleet = Fleet {
    nodes: 10,
    packages: 1,
    failure: None,
    complete: 0,
    status: None,
};

impl Fleet {
    fn name(n: usize) -> String {
        let (a, b) = (n / 250, n % 250);
        format!("ip-10-0-{a:03}-{b:03}.eu-central-1.compute.internal")
    }

    fn states(&self, state: &str) -> Value {
        let states = (0..self.packages).map(|n| {
            let status = json!({
                "name": name_of_package(n), "version": "1.0.0", "image": "example.com/some/registry/package",
                "stage": "config", "state": state,
            });
            (format!("{}|1.0.0", name_of_package(n)), status)
        });
        Value::Object(states.collect())
    }

    fn index(&self) -> Index {
        let packages: Map<String, Value> = (0..self.packages)
            .map(|n| {
                let package =
                    json!({ "version": "1.0.0", "image": "example.com/some/registry/package" });
                (name_of_package(n), package)
            })
            .collect();
        let skyhook = json!({
            "metadata": {
                "name": "s", "uid": "uid-of-s", "resourceVersion": "1", "generation": 2,
                "finalizers": [names::SKYHOOK_FINALIZER],
            },
            "spec": { "packages": packages },
            "status": self.status,
        });
        let mut index = testkit::index(&[], &[skyhook], &[], &[]);
        let revision = index.picture.skyhooks()["s"]
            .checked
            .as_ref()
            .unwrap()
            .revision
            .clone();
        for n in 0..self.nodes {
            let name = Self::name(n);
            let mut node = testkit::node_object(&name);
            let state = if n < self.complete {
                "complete"
            } else {
                "erroring"
            };
            node["metadata"]["annotations"] = json!({
                names::node_state("s"): self.states(state).to_string(),
            });
            let uid = format!("lease-of-{name}");
            if self.failure.is_some() {
                let stamp = json!({ "granted": uid }).to_string();
                node["metadata"]["annotations"][names::stamp("s")] = json!(stamp);
            }
            index.apply(Change::Node(decoded(node)), Mono::ZERO);
            let Some(message) = &self.failure else {
                continue;
            };
            let mut reports = self.states("complete");
            reports["package-a|1.0.0"]["state"] = json!("erroring");
            reports["package-a|1.0.0"]["message"] = json!(message);
            let lease = json!({
                "metadata": { "name": name, "uid": uid, "resourceVersion": "1" },
                "spec": {
                    "node": { "name": name, "uid": format!("uid-of-{name}") },
                    "skyhook": { "name": "s", "uid": "uid-of-s" },
                    "revision": revision,
                    "granted": { "by": "x", "at": "2026-01-01T00:00:00Z" },
                },
                "status": { "phase": "Erroring", "packages": reports },
            });
            index.apply(Change::Lease(decoded(lease)), Mono::ZERO);
        }
        index
    }
}

fn name_of_package(n: usize) -> String {
    let letter = char::from(b"abcdefgh"[n]);
    format!("package-{letter}")
}

fn decoded<T: serde::de::DeserializeOwned>(object: Value) -> Box<T> {
    Box::new(serde_json::from_value(object).unwrap())
}

fn planned(index: &Index, mono: Mono) -> Plan {
    let wall = Timestamp::from_second(1_700_000_000).unwrap();
    plan(&index.view(&Settings::default(), Now { mono, wall }))
}

const LATER: Mono = Mono::from_secs(1000);

fn status(index: &Index) -> Option<SkyhookStatus> {
    planned(index, LATER)
        .effects
        .into_iter()
        .find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => Some(*status),
            _ => None,
        })
}

fn size(status: &SkyhookStatus) -> usize {
    serde_json::to_vec(status).unwrap().len()
}

#[test]
fn the_worst_status_is_bounded_and_its_counts_are_exact() {
    let fleet = Fleet {
        nodes: 10_000,
        packages: 8,
        failure: Some("\"no such file\"\n".repeat(140)),
        ..FLEET
    };
    let index = fleet.index();
    let status = status(&index).expect("a first status is written");
    let bytes = size(&status);
    let limit = 128 * 1024;
    assert!(bytes <= limit && bytes > limit * 9 / 10, "{bytes}");
    assert_eq!(status.complete_nodes, "0/10000");
    assert_eq!(status.nodes_in_progress, 10_000);
    assert_eq!(status.reasons["PackageErroring"].nodes, 10_000);
    let all: BTreeMap<String, i32> = (0..8).map(|n| (name_of_package(n), 10_000)).collect();
    assert_eq!(status.installed, all);
    let names: BTreeSet<&String> = status.node_status.keys().collect();
    assert_eq!(names, status.node_state.keys().collect());
    assert_eq!(names, status.node_reasons.keys().collect());
    let listed = i32::try_from(names.len()).unwrap();
    assert_eq!(
        (status.nodes_listed, status.nodes_omitted),
        (listed, 10_000 - listed)
    );
    let longest = status.node_reasons.values().map(|r| r.message.len()).max();
    assert_eq!(longest, Some(256));
}

#[test]
fn the_worst_nodes_are_listed_and_complete_ones_when_all_fit() {
    for (name, nodes, complete, listed) in [
        ("all fit", 50, 20, 50),
        ("the complete ones do not", 3000, 2990, 10),
    ] {
        let fleet = Fleet {
            nodes,
            complete,
            packages: 4,
            ..FLEET
        };
        let status = status(&fleet.index()).expect("a first status is written");
        assert_eq!(status.nodes_listed, listed, "{name}");
        assert_eq!(status.complete_nodes, format!("{complete}/{nodes}"));
        let open = |status: &&Status| **status != Status::Complete;
        let open = status.node_status.values().filter(open).count();
        assert_eq!(open, nodes - complete, "{name}");
    }
}

#[test]
fn another_generation_is_written_at_once_and_detail_at_a_pace() {
    let mut fleet = Fleet {
        nodes: 500,
        ..FLEET
    };
    fleet.status = status(&fleet.index());
    let target = crate::effect::Target::Skyhook("s".into());
    let class = |index: &Index| {
        let effects = planned(index, LATER).effects;
        let written = effects.iter().find(|e| e.kind() == "WriteSkyhookStatus");
        written.map(crate::queue::Class::of)
    };
    let is_written = |index: &Index| class(index).is_some();
    let mut index = fleet.index();
    assert!(!is_written(&index), "it is as it should be");
    let status = fleet.status.as_mut().unwrap();
    status.complete_nodes = "1/500".into();
    index = fleet.index();
    assert_eq!(
        class(&index),
        Some(crate::queue::Class::Display),
        "nobody has written it lately"
    );
    index
        .inflight
        .set_written(target.clone(), LATER - Duration::from_secs(2));
    assert!(!is_written(&index), "500 nodes are written every 5 s");
    let status = fleet.status.as_mut().unwrap();
    status.observed_generation = 1;
    index = fleet.index();
    index
        .inflight
        .set_written(target.clone(), LATER - Duration::from_millis(1));
    assert_eq!(
        class(&index),
        Some(crate::queue::Class::GoOn),
        "people wait for the generation"
    );
    index.inflight.set_busy(target);
    assert!(!is_written(&index));
}

#[test]
fn what_another_implementation_kept_by_node_goes() {
    let mut fleet = Fleet { ..FLEET };
    fleet.status = Some(SkyhookStatus {
        node_boot_ids: [("gone".to_owned(), "boot".to_owned())].into(),
        node_priority: [("gone", "t"), (&Fleet::name(1), "t")]
            .map(|(name, at)| (name.to_owned(), at.to_owned()))
            .into(),
        config_updates: [("package-a".to_owned(), vec!["key".to_owned()])].into(),
        ..SkyhookStatus::default()
    });
    let status = status(&fleet.index()).expect("it differs");
    assert_eq!(status.node_boot_ids, BTreeMap::new());
    assert_eq!(
        status.node_priority,
        [(Fleet::name(1), "t".to_owned())].into()
    );
    assert_eq!(
        status.config_updates.len(),
        1,
        "nodes without a result of ours may depend on it"
    );
}

#[test]
fn names_in_conditions_are_few() {
    let fleet = Fleet { nodes: 40, ..FLEET };
    let mut index = fleet.index();
    for n in 0..40 {
        index.picture.edit_node(&Fleet::name(n), |node| {
            testkit::label(node, names::IGNORE, "true");
        });
    }
    let status = status(&index).expect("a first status is written");
    let message = |type_: &str| {
        let condition = status.conditions.iter().find(|c| c.type_ == type_);
        condition.map(|c| c.message.clone()).unwrap_or_default()
    };
    let ignored = message("skyhook.nvidia.com/NodesIgnored");
    assert!(
        ignored.contains(" and 30 more] has ignore label"),
        "{ignored}"
    );
    let ready = message("Ready");
    let want = "0/40 nodes complete; ip-10-0-000-000.eu-central-1.compute.internal: label \
                skyhook.nvidia.com/ignore=true keeps every Skyhook off (NodeIgnored) since 2023-11-14T22:13:20Z, and 39 more";
    assert_eq!(ready, want);
}
