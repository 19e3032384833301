//! Which events follow from an effect.

use serde_json::json;
use skyhook_crds::policy::BatchState;
use skyhook_crds::skyhook::CompartmentStatus;

use skyhook_crds::skyhook::SkyhookStatus;

use super::*;
use crate::testkit;

/// The conditions of a status, and its compartments that have stopped.
fn status(conditions: &[(&str, &str)], stopped: &[&str]) -> SkyhookStatus {
    let condition = |(type_, message): &(&str, &str)| {
        json!({
            "type": format!("skyhook.nvidia.com/{type_}"), "status": "True", "reason": type_, "message": message,
            "lastTransitionTime": "2026-11-26T12:00:00Z",
        })
    };
    let conditions = conditions.iter().map(condition);
    let compartments = stopped.iter().map(|name| {
        let batch = BatchState {
            should_stop: true,
            ..BatchState::default()
        };
        let status = CompartmentStatus {
            batch_state: Some(batch),
            ..CompartmentStatus::default()
        };
        ((*name).to_owned(), status)
    });
    SkyhookStatus {
        conditions: conditions
            .map(|one| serde_json::from_value(one).unwrap())
            .collect(),
        compartment_statuses: compartments.collect(),
        ..SkyhookStatus::default()
    }
}

#[test]
fn what_is_new_about_a_policy_is_told() {
    let invalid = |message| status(&[("DeploymentPolicyInvalid", message)], &[]);
    let stopped = |names: &[&str]| {
        let message = names.join(", ");
        status(&[("RolloutStopped", &message)], names)
    };
    let none = || status(&[], &[]);
    for (what, old, new, told) in [
        (
            "the first mistake",
            none(),
            invalid("a"),
            vec!["DeploymentPolicyInvalid a"],
        ),
        ("the same one", invalid("a"), invalid("a"), vec![]),
        (
            "another mistake",
            invalid("a"),
            invalid("b"),
            vec!["DeploymentPolicyInvalid b"],
        ),
        ("it was corrected", invalid("a"), none(), vec![]),
        (
            "one has stopped",
            none(),
            stopped(&["x"]),
            vec!["RolloutStopped x"],
        ),
        (
            "a second one has stopped",
            stopped(&["x"]),
            stopped(&["w", "x"]),
            vec!["RolloutStopped w, x"],
        ),
        (
            "one was reset",
            stopped(&["w", "x"]),
            stopped(&["x"]),
            vec![],
        ),
    ] {
        let subject = Subject::Skyhook {
            name: "s".into(),
            uid: "u".into(),
        };
        let events = of_status(&subject, &old, &new);
        let given: Vec<String> = events
            .iter()
            .map(|event| format!("{} {}", event.reason, event.note))
            .collect();
        assert_eq!(given, told, "{what}");
    }
}

#[test]
fn a_node_that_fails_is_told_to_its_skyhook_whatever_the_status_lists() {
    let skyhook = json!({ "metadata": { "name": "s", "uid": "uid-of-s", "resourceVersion": "1" } });
    let index = testkit::index(&[testkit::node_object("worker-1")], &[skyhook], &[], &[]);
    for (code, reason) in [
        ("PackageErroring", "PackageErroring"),
        ("NodeNotReturning", "NodeNotReturning"),
    ] {
        let why = json!({ "reason": code, "message": "exit code 3", "since": "t" });
        let effect = Effect::PatchNode {
            node: "worker-1".into(),
            at: crate::plan::version("uid-of-worker-1", "1"),
            patch: NodePatch::default()
                .status("s", Status::Erroring)
                .annotation(&names::reason("s"), Some(why.to_string())),
            why: [Cause::Status].into(),
        };
        let told: Vec<_> = events(&index, &effect)
            .into_iter()
            .map(|event| (event.subject, event.reason, event.note))
            .collect();
        let node = Subject::Node {
            name: "worker-1".into(),
            uid: "uid-of-worker-1".into(),
        };
        let skyhook = Subject::Skyhook {
            name: "s".into(),
            uid: "uid-of-s".into(),
        };
        let want = [
            (node, reason, "[skyhook:s] exit code 3".to_owned()),
            (skyhook, reason, "node [worker-1]: exit code 3".to_owned()),
        ];
        assert_eq!(told, want);
    }
}

/// A package gives up while its node is erroring already: the reason alone changes.
#[test]
fn that_a_package_has_given_up_is_told_once() {
    let skyhook = json!({ "metadata": { "name": "s", "uid": "uid-of-s", "resourceVersion": "1" } });
    let reason =
        |code: &str| json!({ "reason": code, "message": "3 attempts", "since": "t" }).to_string();
    for (name, before, stage, after, becomes_erroring, want) in [
        (
            "after failures",
            Some("PackageErroring"),
            "config",
            "GaveUp",
            false,
            Some(("GaveUp", None)),
        ),
        (
            "at the first failure",
            None,
            "config",
            "GaveUp",
            true,
            Some(("GaveUp", None)),
        ),
        (
            "it says the same",
            Some("GaveUp"),
            "config",
            "GaveUp",
            false,
            None,
        ),
        (
            "an interrupt",
            Some("PackageErroring"),
            "interrupt",
            "GaveUp",
            false,
            Some(("Interrupt", Some("RestartLimitExceeded"))),
        ),
        (
            "it fails again after a rerun",
            Some("GaveUp"),
            "config",
            "PackageErroring",
            false,
            None,
        ),
    ] {
        let mut node = testkit::node_object("worker-1");
        if let Some(before) = before {
            node["metadata"]["annotations"] = json!({ names::reason("s"): reason(before) });
        }
        let lease = json!({
            "metadata": { "name": "worker-1", "uid": "lease", "resourceVersion": "1" },
            "spec": {
                "node": { "name": "worker-1", "uid": "uid-of-worker-1" },
                "skyhook": { "name": "s", "uid": "uid-of-s" }, "revision": "r",
            },
            "status": {
                "phase": "Erroring", "parked": { "package": "aa", "stage": stage, "attempts": 3 },
            },
        });
        let index = testkit::index(&[node], std::slice::from_ref(&skyhook), &[lease], &[]);
        let mut patch = NodePatch::default().annotation(&names::reason("s"), Some(reason(after)));
        if becomes_erroring {
            patch = patch.status("s", Status::Erroring);
        }
        let effect = Effect::PatchNode {
            node: "worker-1".into(),
            at: crate::plan::version("uid-of-worker-1", "1"),
            patch,
            why: [Cause::Status].into(),
        };
        let told: Vec<_> = events(&index, &effect)
            .into_iter()
            .map(|event| (event.warning, event.reason, event.action))
            .collect();
        // On the Node and on the Skyhook.
        let want: Vec<_> = want
            .into_iter()
            .flat_map(|(reason, action)| [(true, reason, action); 2])
            .collect();
        assert_eq!(told, want, "{name}");
    }
}
