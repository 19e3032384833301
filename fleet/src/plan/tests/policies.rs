//! Skyhooks that a DeploymentPolicy paces.

use super::leases::{effects, grant_and, granted, leased, stamp, with_package};
use super::*;
use skyhook_crds::installed::Stamp;
use skyhook_crds::policy::BatchState;
use skyhook_crds::rollout::{self, RolloutStateSpec};
use skyhook_crds::skyhook::{CompartmentStatus, SkyhookStatus};

mod events;
mod guard;
mod kept;
mod many;
mod moved;
mod order;
mod others;
mod refused;
mod resets;
mod said;
mod unknown;

pub(super) const STATE: &str = "state-uid";

/// Three workers, of which the first two are in compartment `gpu`.
fn paced(gpu: &Value) -> Picture {
    let gpu_label =
        |picture: Picture, n| picture.node(n, &["metadata", "labels"], json!({ "gpu": "yes" }));
    let mut picture = gpu_label(gpu_label(Picture::new(), 1), 2).skyhook(
        &["spec"],
        json!({ "deploymentPolicy": "tuned", "packages": packages() }),
    );
    let mut gpu = gpu.clone();
    gpu["name"] = json!("gpu");
    gpu["selector"] = json!({ "matchLabels": { "gpu": "yes" } });
    picture.policies = vec![json!({
        "metadata": { "name": "tuned" },
        "spec": {
            "default": { "budget": { "count": 1 }, "strategy": { "fixed": {} } },
            "compartments": [gpu],
        },
    })];
    picture
}

/// Batches of 1, 2, 4 and so on in compartment `gpu`; one failure stops it.
pub(super) fn exponential() -> Picture {
    paced(&json!({
        "budget": { "count": 2 },
        "strategy": { "exponential": { "failureThreshold": 1, "safetyLimit": 100 } },
    }))
}

/// A status as NVIDIA Skyhook leaves it: how its batches stood, by compartment.
fn left_by_nvidia(compartments: &[(&str, BatchState)]) -> Value {
    let statuses = compartments.iter().map(|(name, batch)| {
        let status = CompartmentStatus {
            batch_state: Some(batch.clone()),
            ..CompartmentStatus::default()
        };
        ((*name).to_owned(), status)
    });
    let status = SkyhookStatus {
        compartment_statuses: statuses.collect(),
        ..SkyhookStatus::default()
    };
    serde_json::to_value(status).unwrap()
}

pub(super) fn member(n: usize) -> String {
    rollout::member(&format!("uid-of-worker-{n}"))
}

/// The picture with a stored state, in which batch 3 of `gpu` is open.
pub(super) fn with_batch(mut picture: Picture, members: &[usize], more: &Value) -> Picture {
    let members: Vec<String> = members.iter().map(|n| member(*n)).collect();
    let mut gpu = json!({
        "run": 1, "batch": 3, "shown": 1, "target": members.len(), "members": members, "orderBase": 7,
    });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        gpu[key] = value;
    }
    picture.rollouts = vec![state(&picture, json!({ "gpu": gpu }))];
    picture
}

fn state(picture: &Picture, compartments: Value) -> Value {
    let index = picture.index();
    let checked = index.picture.skyhooks()["s"].checked.as_ref().unwrap();
    json!({
        "metadata": {
            "name": "s", "uid": STATE, "resourceVersion": "9",
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Skyhook", "name": "s", "uid": "uid-of-s" }],
        },
        "spec": {
            "policy": "tuned", "nextBatch": 4, "nextOrder": 8,
            "revision": {
                "name": checked.revision, "number": 1, "versions": rollout::versions(&checked.data.packages),
            },
            "compartments": compartments,
        },
    })
}

/// A lease of batch 3.
pub(super) fn in_batch(more: Value) -> Value {
    let mut spec = json!({ "compartment": "gpu", "batch": { "state": STATE, "number": 3 } });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        spec[key] = value;
    }
    spec
}

/// The picture with worker `n` complete.
fn done(picture: Picture, n: usize) -> Picture {
    let recorded = Stamp {
        lease: "earlier".into(),
        revision: picture.index().picture.skyhooks()["s"]
            .checked
            .as_ref()
            .map(|c| c.revision.clone())
            .unwrap(),
        ..Stamp::default()
    };
    picture
        .annotated(n, "skyhook.nvidia.com/stamp_s", &recorded.render())
        .annotated(n, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
}

fn written(picture: &Picture) -> Option<RolloutStateSpec> {
    picture
        .plan()
        .effects
        .into_iter()
        .find_map(|effect| match effect {
            Effect::WriteRollout { spec, .. } => Some(*spec),
            _ => None,
        })
}

fn shown(picture: &Picture) -> SkyhookStatus {
    status_of(picture.plan())
}

fn status_of(plan: Plan) -> SkyhookStatus {
    let status = plan.effects.into_iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(*status),
        _ => None,
    });
    status.expect("a status is written")
}

fn condition(status: &SkyhookStatus, type_: &str) -> Option<String> {
    let type_ = format!("skyhook.nvidia.com/{type_}");
    let mut all = status.conditions.iter();
    let found = all.find(|one| one.type_ == type_ && one.status == "True");
    found.map(|one| one.message.clone())
}

fn on_leases(picture: &Picture) -> Vec<String> {
    let all = effects(&picture.plan()).into_iter();
    all.filter(|effect| !effect.starts_with("PatchNode"))
        .collect()
}

#[test]
fn a_policy_that_is_missing_or_not_valid_harms_its_own_skyhooks() {
    let mut missing = exponential();
    missing.policies.clear();
    let mut invalid = exponential();
    invalid.policies[0]["spec"]["compartments"][0]["budget"] = json!({});
    for (name, picture, word, message) in [
        (
            "missing",
            missing,
            "DeploymentPolicyNotFound",
            "DeploymentPolicy \"tuned\" not found",
        ),
        (
            "not valid",
            invalid,
            "DeploymentPolicyInvalid",
            "DeploymentPolicy \"tuned\" is not valid: spec.compartments[0].budget: neither percent nor count is set: \
             set one of them",
        ),
    ] {
        let status = shown(&picture);
        assert_eq!(condition(&status, word).as_deref(), Some(message), "{name}");
        assert_eq!(picture.reason("s", "worker-1"), word, "{name}");
        // What is wrong may be a long text. It is not written on each Node.
        let on_node = status.node_reasons["worker-1"].message.clone();
        assert!(!on_node.contains("spec.compartments"), "{on_node}");
        let other = skyhook(
            "a",
            json!({ "interruptionBudget": { "count": 1 }, "priority": 1 }),
        );
        assert_eq!(picture.another(other).reserved(), ["a/worker-1"], "{name}");
    }
    assert_eq!(
        condition(&shown(&exponential()), "DeploymentPolicyNotFound"),
        None
    );
}

#[test]
fn what_was_reserved_under_a_policy_that_is_gone_is_withdrawn_and_what_was_granted_ends() {
    let gone = |spec: Value, status: Value| {
        let picture = with_batch(exponential(), &[1], &json!({}));
        let mut picture = leased(stamp(picture, granted()), spec, status);
        picture.policies.clear();
        picture
    };
    let reserved = gone(in_batch(json!({})), json!(null));
    assert_eq!(
        on_leases(&reserved),
        ["WithdrawLease it does not fit the budget"]
    );
    let works = gone(
        in_batch(grant_and(json!({}))),
        with_package("Running", "in_progress"),
    );
    assert_eq!(on_leases(&works), Vec::<String>::new());
    assert_eq!(written(&works), None);
}

#[test]
fn a_compartment_without_a_strategy_is_a_sliding_window() {
    let picture = paced(&json!({ "budget": { "count": 1 } }));
    assert_eq!(picture.reserved(), ["s/worker-1"]);
    let leases = picture.plan().effects.into_iter();
    let mut specs = leases.filter_map(|effect| match effect {
        Effect::ReserveLease { spec, .. } => Some(spec),
        _ => None,
    });
    let spec = specs.next().unwrap();
    assert_eq!((spec.compartment.as_str(), spec.batch), ("gpu", None));
    // Its slot is taken. Worker-3 is in the default compartment, which has batches.
    let taken = leased(picture, json!({ "compartment": "gpu" }), json!(null));
    assert_eq!(taken.reserved(), Vec::<String>::new());
    assert_eq!(taken.reason("s", "worker-2"), "BudgetExhausted");
    assert_eq!(taken.reason("s", "worker-3"), "BatchUnderWay");
    let statuses = shown(&taken).compartment_statuses;
    let given: Vec<(&str, i32, i32, bool)> = statuses
        .iter()
        .map(|(name, one)| {
            (
                name.as_str(),
                one.matched,
                one.ceiling,
                one.batch_state.is_some(),
            )
        })
        .collect();
    assert_eq!(given, [("__default__", 1, 1, true), ("gpu", 2, 1, false)]);
}

#[test]
fn a_node_that_was_moved_takes_a_slot_in_both_compartments() {
    let picture = paced(&json!({ "budget": { "count": 1 } }));
    // The lease is of the default compartment, and its node is in `gpu` now.
    let moved = leased(
        picture,
        json!({ "compartment": "__default__" }),
        json!(null),
    );
    let statuses = moved.plan().fleet.skyhooks["s"].compartments.clone();
    assert_eq!((statuses["gpu"].used, statuses["__default__"].used), (1, 1));
    assert_eq!(moved.reserved(), Vec::<String>::new());
    let mut ended = moved;
    ended.leases[0]["spec"]["compartment"] = json!("renamed");
    let statuses = ended.plan().fleet.skyhooks["s"].compartments.clone();
    assert_eq!((statuses["gpu"].used, statuses["__default__"].used), (1, 0));
}

#[test]
fn a_batch_is_named_before_its_leases_are_created() {
    let first = exponential();
    assert_eq!(first.reserved(), Vec::<String>::new());
    let state = written(&first).unwrap();
    let named = |name: &str| state.compartments[name].members.clone();
    assert_eq!(named("gpu"), [member(1)]);
    assert_eq!(named("__default__"), [member(3)]);
    assert_eq!((state.next_batch, state.next_order), (3, 2));
    assert_eq!(first.reason("s", "worker-2"), "BatchUnderWay");

    let open = with_batch(exponential(), &[1], &json!({}));
    assert_eq!(open.reserved(), ["s/worker-1"]);
    let effects = open.plan().effects.into_iter();
    let mut specs = effects.filter_map(|effect| match effect {
        Effect::ReserveLease { spec, .. } => Some(spec),
        _ => None,
    });
    let spec = specs.next().unwrap();
    let batch = spec.batch.unwrap();
    assert_eq!((batch.state.as_str(), batch.number), (STATE, 3));
    assert_eq!(spec.order, Some(7));
}

#[test]
fn a_lease_is_granted_in_the_open_batch_alone() {
    let lease =
        |picture: Picture, spec: Value| leased(stamp(picture, granted()), spec, json!(null));
    let open = || with_batch(exponential(), &[1], &json!({}));
    let withdrawn = "WithdrawLease no open batch has the node";
    for (name, picture, want) in [
        (
            "of the batch",
            lease(open(), in_batch(json!({}))),
            "GrantLease",
        ),
        (
            "of no batch",
            lease(open(), json!({ "compartment": "gpu" })),
            withdrawn,
        ),
        (
            "of an earlier batch",
            lease(
                open(),
                in_batch(json!({ "batch": { "state": STATE, "number": 2 } })),
            ),
            withdrawn,
        ),
        (
            "its node is not a member",
            lease(
                with_batch(exponential(), &[2], &json!({})),
                in_batch(json!({})),
            ),
            withdrawn,
        ),
        (
            "its node was struck",
            lease(
                with_batch(exponential(), &[1], &json!({ "struck": [0] })),
                in_batch(json!({})),
            ),
            withdrawn,
        ),
        (
            "the compartment has stopped",
            lease(
                with_batch(exponential(), &[1], &json!({ "stopped": "t" })),
                in_batch(json!({})),
            ),
            withdrawn,
        ),
    ] {
        assert_eq!(on_leases(&picture), [want], "{name}");
    }
    // Its compartment has no strategy any more, and that batch is not open.
    let mut window = open();
    window.policies[0]["spec"]["compartments"][0]["strategy"] = json!(null);
    let earlier = in_batch(json!({ "batch": { "state": STATE, "number": 2 } }));
    assert_eq!(on_leases(&lease(window, earlier)), [withdrawn]);
    // A batch that the own copy of the state does not know: neither granted nor withdrawn.
    let newer = in_batch(json!({ "batch": { "state": STATE, "number": 4 } }));
    assert_eq!(on_leases(&lease(open(), newer)), Vec::<String>::new());
}

#[test]
fn a_compartment_that_has_stopped_says_so_and_starts_nothing() {
    let stopped = json!({
        "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let picture = with_batch(exponential(), &[], &stopped);
    assert_eq!(picture.reserved(), Vec::<String>::new());
    assert_eq!(picture.reason("s", "worker-1"), "RolloutStopped");
    let status = shown(&picture);
    assert_eq!(
        condition(&status, "RolloutStopped").as_deref(),
        Some(
            "stopped after batches that failed: gpu; to start again: kubectl skyhook deployment-policy reset s"
        )
    );
    let batch = status.compartment_statuses["gpu"]
        .batch_state
        .clone()
        .unwrap();
    assert_eq!(
        (
            batch.current_batch,
            batch.should_stop,
            batch.consecutive_failures
        ),
        (2, true, 1)
    );
}
