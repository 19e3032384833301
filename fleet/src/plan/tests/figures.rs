//! What a pass counts.

use skyhook_crds::lease::DrainState;
use skyhook_crds::stage::{Stage, State, Status};

use super::*;
use crate::plan::tallies::leases::{BlockerKind, LeaseCounts, LeasePhase};
use crate::plan::tallies::packages::PackageCounts;

fn at(second: i64) -> Option<Timestamp> {
    Some(Timestamp::from_second(second).unwrap())
}

fn lease(n: usize, more: &Value) -> Value {
    let name = format!("worker-{n}");
    let mut lease = json!({
        "metadata": {
            "name": name, "uid": format!("lease-{n}"), "resourceVersion": "1", "creationTimestamp": "1970-01-01T00:00:10Z",
        },
        "spec": {
            "node": { "name": name, "uid": format!("uid-of-{name}") },
            "skyhook": { "name": "s", "uid": "uid-of-s" }, "revision": "r", "compartment": "__default__",
        },
    });
    for (part, value) in more.as_object().cloned().unwrap_or_default() {
        for (key, value) in value.as_object().cloned().unwrap_or_default() {
            lease[&part][&key] = value;
        }
    }
    lease
}

fn records(version: &str, stage: &str, state: &str, restarts: i32) -> Value {
    let states = json!({ format!("aa|{version}"): {
        "name": "aa", "version": version, "image": "r/aa", "stage": stage, "state": state, "restarts": restarts,
    } });
    json!({ skyhook_crds::names::node_state("s"): states.to_string() })
}

fn fleet_of(picture: &Picture) -> Fleet {
    let now = Now {
        mono: picture.now,
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    plan(&picture.index().view(&picture.settings, now)).fleet
}

#[test]
fn leases_are_counted_by_phase_and_drains_by_what_holds_them_up() {
    let granted = json!({ "by": "x", "at": "1970-01-01T00:00:20Z" });
    let drains = |state: &str, causes: &[Option<&str>]| {
        let blockers = causes.iter().map(|cause| match cause {
            Some(cause) => json!({ "pod": "a/b", "reason": "it stays", "cause": cause }),
            None => json!({ "pod": "a/c", "reason": "it leaves" }),
        });
        let blockers: Vec<Value> = blockers.collect();
        json!({
            "spec": { "granted": granted, "drain": { "state": state, "blockers": blockers } },
            "status": { "phase": "AwaitingDrain", "since": "1970-01-01T00:00:30Z" },
        })
    };
    let mut broken = lease(7, &json!({}));
    broken["spec"]["revision"] = json!(7);
    let mut elsewhere = lease(8, &json!({}));
    elsewhere["spec"]["skyhook"] = json!({ "name": "gone", "uid": "uid-of-gone" });
    let budget = Some("PodDisruptionBudget");
    let picture = Picture {
        nodes: (1..=8)
            .map(|n| testkit::node_object(&format!("worker-{n}")))
            .collect(),
        leases: vec![
            lease(1, &json!({})),
            lease(2, &json!({ "spec": { "granted": granted } })),
            lease(3, &drains("Draining", &[budget, budget, None])),
            lease(4, &drains("Waiting", &[Some("NonInterruptLabels")])),
            // What the last list showed does not count any more.
            lease(5, &drains("Drained", &[budget])),
            lease(
                6,
                &json!({
                    "spec": { "granted": granted },
                    "status": { "phase": "Erroring", "since": "1970-01-01T00:00:25Z" },
                }),
            ),
            broken,
            elsewhere,
        ],
        ..Picture::new()
    };
    let picture = picture.skyhook(&["spec", "interruptionBudget"], json!({ "count": 7 }));
    let mut fleet = fleet_of(&picture);
    assert_eq!((fleet.slots_used, fleet.leases_unreadable), (8, 1));
    let counts = fleet.skyhooks.remove("s").unwrap();
    let want = LeaseCounts {
        by_phase: [
            (LeasePhase::Reserved, (1, at(10))),
            (LeasePhase::Granted, (1, at(20))),
            (LeasePhase::AwaitingDrain, (3, at(30))),
            (LeasePhase::Erroring, (1, at(25))),
        ]
        .into(),
        by_drain: [
            (DrainState::Waiting, 1),
            (DrainState::Draining, 1),
            (DrainState::Drained, 1),
        ]
        .into(),
        by_blocker: [
            (BlockerKind::PodDisruptionBudget, 1),
            (BlockerKind::NonInterruptLabels, 1),
            (BlockerKind::Other, 1),
        ]
        .into(),
    };
    assert_eq!(counts.leases, want);
    let compartment = &counts.compartments["__default__"];
    assert_eq!(
        (compartment.ceiling, compartment.used, compartment.matched),
        (7, 7, 8),
        "six leases, and the one that cannot be decoded"
    );
}

#[test]
fn packages_are_counted_on_selected_nodes_and_the_time_is_that_of_the_transition() {
    let mut nodes: Vec<Value> = (1..=4)
        .map(|n| testkit::node_object(&format!("worker-{n}")))
        .collect();
    nodes[0]["metadata"]["annotations"] = records("1.0.0", "config", "complete", 0);
    nodes[1]["metadata"]["annotations"] = records("1.0.0", "apply", "erroring", 4);
    nodes[2]["metadata"]["annotations"] = records("0.9.0", "config", "complete", 1);
    nodes[3]["metadata"]["annotations"] = records("1.0.0", "config", "complete", 9);
    nodes[3]["metadata"]["labels"] = json!({ "off": "yes" });
    let picture = Picture {
        nodes,
        ..Picture::new()
    };
    let off = json!({ "matchExpressions": [{ "key": "off", "operator": "DoesNotExist" }] });
    let picture = picture.skyhook(&["spec", "nodeSelectors"], off);
    let first = fleet_of(&picture).skyhooks["s"].clone();
    let of = |state, stage, restarts| PackageCounts {
        by_state: [(state, 1)].into(),
        by_stage: [(stage, 1)].into(),
        ended: [(stage, 1)].into(),
        restarts,
    };
    let new = PackageCounts {
        by_state: [(State::Complete, 1), (State::Erroring, 1)].into(),
        by_stage: [(Stage::Config, 1), (Stage::Apply, 1)].into(),
        ended: [(Stage::Config, 1)].into(),
        restarts: 4,
    };
    let want = [
        ("aa|0.9.0".to_owned(), of(State::Complete, Stage::Config, 1)),
        ("aa|1.0.0".to_owned(), new),
    ];
    assert_eq!(first.packages, want.into());
    assert_eq!((first.nodes, first.since), (3, None));
    let condition = |reason: &str| {
        json!([{
            "type": "skyhook.nvidia.com/Transition", "status": "False", "reason": reason, "message": "m",
            "lastTransitionTime": "1970-01-01T00:00:40Z",
        }])
    };
    for (reason, want) in [(first.status.as_str(), at(40)), ("complete", None)] {
        assert_ne!(first.status, Status::Complete);
        let picture = picture.clone();
        let picture = picture.skyhook(&["status", "conditions"], condition(reason));
        assert_eq!(fleet_of(&picture).skyhooks["s"].since, want, "{reason}");
    }
}
