//! The statuses that people read.

use super::leases::{grant_and, granted, leased, stamp, with_package};
use super::*;
use skyhook_crds::Status;

#[test]
fn every_node_that_does_not_move_has_a_reason() {
    let two = || Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 2 }));
    for (name, picture, node, want) in [
        ("beyond the budget", two(), "worker-3", "BudgetExhausted"),
        (
            "budget 0",
            Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "percent": 0 })),
            "worker-1",
            "BudgetZero",
        ),
        (
            "paused",
            Picture::new().skyhook(
                &["metadata", "annotations"],
                json!({ "skyhook.nvidia.com/pause": "true" }),
            ),
            "worker-1",
            "Paused",
        ),
        (
            "disabled",
            Picture::new().skyhook(
                &["metadata", "annotations"],
                json!({ "skyhook.nvidia.com/disable": "true" }),
            ),
            "worker-1",
            "Disabled",
        ),
        (
            "ignored",
            Picture::new().node(
                1,
                &["metadata", "labels", skyhook_crds::names::IGNORE],
                json!("true"),
            ),
            "worker-1",
            "NodeIgnored",
        ),
        (
            "taint",
            Picture::new().node(
                1,
                &["spec", "taints"],
                json!([{ "key": "a", "effect": "PreferNoSchedule" }]),
            ),
            "worker-1",
            "TaintNotTolerable",
        ),
        (
            "malformed",
            Picture::new().annotated(1, "skyhook.nvidia.com/nodeState_s", "{"),
            "worker-1",
            "NodeStateMalformed",
        ),
        (
            "newer",
            Picture::new().annotated(1, "skyhook.nvidia.com/stamp_s", r#"{"format":2}"#),
            "worker-1",
            "NewerVersion",
        ),
        (
            "policy",
            Picture::new().skyhook(
                &["spec"],
                json!({ "deploymentPolicy": "gone", "packages": packages() }),
            ),
            "worker-1",
            "DeploymentPolicyNotFound",
        ),
    ] {
        assert_eq!(picture.reason("s", node), want, "{name}");
    }
    let behind = Picture::new().another(skyhook("t", json!({ "priority": 300 })));
    assert_eq!(behind.reason("t", "worker-1"), "EarlierSkyhook");
}

#[test]
fn a_parked_skyhook_says_why_and_the_same_status_is_not_written_again() {
    let mut picture = Picture::new().skyhook(
        &["spec", "packages"],
        json!({ "aa": { "version": "x", "image": "r" } }),
    );
    let plan = picture.plan();
    let status = plan.effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(status.clone()),
        _ => None,
    });
    let status = status.expect("a parked Skyhook gets a status");
    assert_eq!(status.status, skyhook_crds::Status::Blocked);
    let ready = status
        .conditions
        .iter()
        .find(|c| c.type_ == "Ready")
        .expect("Ready is always there");
    assert_eq!(
        (ready.reason.as_str(), ready.status.as_str()),
        ("Invalid", "False")
    );
    assert!(
        ready
            .message
            .contains("spec.packages[aa].version: error version string is invalid: x"),
        "{}",
        ready.message
    );
    picture.skyhooks[0]["status"] = serde_json::to_value(&status).unwrap();
    assert_eq!(picture.plan().effects, vec![]);
}

#[test]
fn a_node_between_two_leases_does_not_flap() {
    let picture = Picture::new();
    let mut index = picture.index();
    index.inflight.set_busy(Target::Lease("worker-1".into()));
    let plan = picture.plan_of(&index);
    let shown = plan.effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => {
            Some((status.status, status.node_status.get("worker-1").copied()))
        }
        _ => None,
    });
    let in_progress = skyhook_crds::Status::InProgress;
    assert_eq!(shown, Some((in_progress, Some(in_progress))));
}

#[test]
fn a_result_is_complete_only_at_the_revision_that_is_wanted() {
    let label = "skyhook.nvidia.com/status_s";
    for (name, spec, want) in [
        ("wanted", json!({}), Some("complete")),
        ("an older one", json!({ "revision": "s-old" }), None),
    ] {
        let picture = stamp(Picture::new(), granted());
        let done = with_package("Complete", "complete");
        let plan = leased(picture, grant_and(spec), done).plan();
        let patch = plan.effects.iter().find_map(|effect| match effect {
            Effect::PatchNode { patch, why, .. } if why.contains(&Cause::Result) => Some(patch),
            _ => None,
        });
        let patch = patch.expect("the result is taken");
        let shown = patch.labels.get(label).and_then(Option::as_deref);
        assert_eq!(shown, want, "{name}");
    }
}

/// A watch that lags may still tell of a lease that ended before the node was granted to the next one.
#[test]
fn a_result_on_a_node_without_a_stamp_asks_whether_the_lease_is_still_there() {
    for (stamped, want) in [(true, None), (false, Some("lease"))] {
        let picture = if stamped {
            stamp(Picture::new(), granted())
        } else {
            Picture::new().annotated(1, "skyhook.nvidia.com/stamp_s", "nonsense")
        };
        let done = with_package("Complete", "complete");
        let plan = leased(picture, grant_and(json!({})), done).plan();
        let check = plan.effects.iter().find_map(|effect| match effect {
            Effect::PatchNode { patch, why, .. } if why.contains(&Cause::Result) => {
                Some(patch.check.lease.as_deref())
            }
            _ => None,
        });
        assert_eq!(check, Some(want), "stamped: {stamped}");
    }
}

#[test]
fn a_slot_that_changes_hands_is_no_reason_to_write_the_nodes_that_wait() {
    let waiting = |budget: Value, cap: Option<usize>| {
        let mut picture = Picture::new().skyhook(&["spec", "interruptionBudget"], budget);
        picture.settings.max_concurrent_nodes = cap;
        let plan = picture.plan();
        let patch = plan.effects.iter().find_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if node == "worker-3" => Some(patch),
            _ => None,
        });
        let annotations = &patch.expect("it is told why it waits").annotations;
        annotations["skyhook.nvidia.com/reason_s"].clone()
    };
    assert_eq!(
        waiting(json!({ "count": 1 }), None),
        waiting(json!({ "count": 2 }), None)
    );
    assert_eq!(waiting(json!(null), Some(1)), waiting(json!(null), Some(2)));
}

#[test]
fn the_skyhook_says_how_much_of_the_budget_is_in_use() {
    let plan = Picture::new().plan();
    let status = plan.effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(status),
        _ => None,
    });
    let conditions = &status.expect("a first status is written").conditions;
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    let want = "0/3 nodes complete; worker-2: waits for a slot of the interruptionBudget (BudgetExhausted) since \
                2023-11-14T22:13:20Z, and 1 more; 1 of 1 nodes of the interruptionBudget are in use";
    assert_eq!(ready.message, want);
}

#[test]
fn a_pause_leaves_complete_nodes_complete() {
    let states = "skyhook.nvidia.com/nodeState_s";
    let paused = json!({ "skyhook.nvidia.com/pause": "true" });
    let picture = Picture::new().annotated(1, states, &complete("1.0.0"));
    let plan = picture.skyhook(&["metadata", "annotations"], paused).plan();
    let status = plan.effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(status),
        _ => None,
    });
    let status = status.expect("a first status is written");
    assert_eq!(status.status, Status::Paused);
    assert_eq!(status.complete_nodes, "1/3");
    let shown: Vec<_> = status.node_status.values().copied().collect();
    assert_eq!(shown, [Status::Complete, Status::Paused, Status::Paused]);
    let ready = status
        .conditions
        .iter()
        .find(|c| c.type_ == "Ready")
        .unwrap();
    assert_eq!(ready.message, "the Skyhook is paused; 1/3 nodes complete");
}

#[test]
fn a_missing_policy_is_a_condition_until_it_is_found() {
    const TYPE: &str = "skyhook.nvidia.com/DeploymentPolicyNotFound";
    let spec = json!({ "deploymentPolicy": "slow", "packages": packages() });
    let mut picture = Picture::new().skyhook(&["spec"], spec);
    let status = |picture: &Picture, policy: Option<&str>| {
        let mut index = picture.index();
        if let Some(policy) = policy {
            let policy = serde_json::from_value(json!({ "metadata": { "name": policy } })).unwrap();
            index.apply(crate::index::Change::Policy(Box::new(policy)), Mono::ZERO);
        }
        let effects = picture.plan_of(&index).effects;
        let status = effects.into_iter().find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => Some(*status),
            _ => None,
        });
        let status = status.expect("it differs");
        let condition = status.conditions.iter().find(|c| c.type_ == TYPE);
        let said = condition.map(|c| format!("{} {}: {}", c.status, c.reason, c.message));
        (said, serde_json::to_value(&status).unwrap())
    };
    let (said, stored) = status(&picture, None);
    let want = "True DeploymentPolicyNotFound: DeploymentPolicy \"slow\" not found";
    assert_eq!(said.as_deref(), Some(want));
    picture.skyhooks[0]["status"] = stored;
    assert_eq!(status(&picture, Some("slow")).0, None);
}

/// A Skyhook is disabled after it was completed on one of its nodes: this node stays complete, and the status counts it.
#[test]
fn what_is_complete_stays_complete_while_a_skyhook_is_disabled_or_paused() {
    for (annotation, overall, others) in [
        ("disable", Status::Disabled, Status::Disabled),
        ("pause", Status::Paused, Status::Paused),
    ] {
        let key = format!("skyhook.nvidia.com/{annotation}");
        let picture = Picture::new()
            .skyhook(&["metadata", "annotations"], json!({ key: "true" }))
            .annotated(
                1,
                "skyhook.nvidia.com/nodeState_s",
                &super::complete("1.0.0"),
            );
        let effects = picture.plan().effects;
        let status = effects.iter().find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => Some(status),
            _ => None,
        });
        let status = status.expect("a status is written");
        assert_eq!(status.status, overall, "{annotation}");
        assert_eq!(status.complete_nodes, "1/3", "{annotation}");
        for (node, want) in [("worker-1", Status::Complete), ("worker-2", others)] {
            let label = effects.iter().find_map(|effect| match effect {
                Effect::PatchNode {
                    node: of, patch, ..
                } if of == node => patch
                    .labels
                    .get("skyhook.nvidia.com/status_s")
                    .cloned()
                    .flatten(),
                _ => None,
            });
            assert_eq!(
                label.as_deref(),
                Some(want.as_str()),
                "{annotation}: {node}"
            );
        }
    }
}

/// Another status is written at once. Another reason for the same status waits until a second has passed.
#[test]
fn a_node_that_waits_is_written_at_most_once_a_second_for_another_reason() {
    let mut picture = Picture::new();
    let mut index = picture.index();
    let writes = |index: &Index, picture: &Picture| {
        let plan = picture.plan_of(index);
        let effects = plan.effects.into_iter();
        let mut patches = effects.filter_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if node == "worker-3" => Some(patch),
            _ => None,
        });
        (patches.next(), plan.wake_at)
    };
    let (first, _) = writes(&index, &picture);
    let first = first.expect("it is told that it waits");
    let written = testkit::patched(&index.picture.nodes()["worker-3"], &first);
    index.picture.node(written);
    let target = Target::Node("worker-3".into());
    let just_now = picture.now - Duration::from_millis(400);
    index.inflight.set_written(target.clone(), just_now);
    assert_eq!(writes(&index, &picture).0, None, "nothing has changed");
    picture.settings.max_concurrent_nodes = Some(0);
    let mut other = index.picture.skyhooks()["s"].clone();
    other.spec = std::sync::Arc::new(skyhook_crds::skyhook::SkyhookSpec {
        interruption_budget: None,
        ..(*other.spec).clone()
    });
    other.resource_version = "2".into();
    index.picture.skyhook(other.clone());
    let (write, wake_at) = writes(&index, &picture);
    assert_eq!(write, None, "the reason is another one now");
    assert_eq!(wake_at, Some(just_now + COALESCE));
    index
        .inflight
        .set_written(target.clone(), just_now - Duration::from_millis(600));
    let (write, _) = writes(&index, &picture);
    let said = write.expect("a second has passed").annotations;
    let said = said["skyhook.nvidia.com/reason_s"]
        .clone()
        .unwrap_or_default();
    assert!(said.contains("ClusterBudgetExhausted"), "{said}");
    index.inflight.set_written(target, picture.now);
    let pause = skyhook_crds::names::PAUSE.to_owned();
    other.annotations.insert(pause, "true".into());
    other.resource_version = "3".into();
    index.picture.skyhook(other);
    let (write, _) = writes(&index, &picture);
    let labels = write.expect("another status does not wait").labels;
    let label = labels["skyhook.nvidia.com/status_s"].as_deref();
    assert_eq!(label, Some("paused"));
}
