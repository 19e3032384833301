//! Nodes on which a package has used up its attempts, or requests more than the node has.

use super::leases::{effects, grant_and, granted, leased, stamp, with_package};
use super::*;
use skyhook_crds::names;

/// The status of an agent under whose lease the package aa has given up.
fn given_up(phase: &str, needs_drain: bool) -> Value {
    let mut status = with_package(phase, "erroring");
    status["needsDrain"] = json!(needs_drain);
    status["packages"]["aa|1.0.0"]["message"] = json!("gave up, too");
    status["parked"] = json!({
        "package": "aa", "version": "1.0.0", "stage": "config", "attempts": 3, "since": "t",
        "message": "gave up after 3 attempts. The last attempt said: exit code 3",
    });
    status
}

fn working(picture: Picture, spec: Value, status: Value) -> Picture {
    leased(stamp(picture, granted()), grant_and(spec), status)
}

/// The picture, with worker-1 cordoned for its lease.
fn cordoned() -> Picture {
    Picture::new()
        .annotated(1, &names::cordon("s"), "true")
        .annotated(
            1,
            names::CORDON_OWNERS,
            r#"{"wasUnschedulable":false,"owners":{"s":"lease"}}"#,
        )
        .node(1, &["spec", "unschedulable"], json!(true))
}

fn status_of(picture: &Picture) -> skyhook_crds::skyhook::SkyhookStatus {
    let effects = picture.plan().effects.into_iter();
    let mut statuses = effects.filter_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(*status),
        _ => None,
    });
    statuses.next().expect("a status is written")
}

#[test]
fn the_node_is_erroring_and_says_what_was_tried() {
    for phase in ["Erroring", "Running"] {
        let picture = working(
            Picture::new(),
            json!({}),
            given_up(phase, phase == "Running"),
        );
        let status = status_of(&picture);
        let reason = &status.node_reasons["worker-1"];
        assert_eq!(reason.reason, "GaveUp", "{phase}");
        assert_eq!(
            reason.message,
            "package aa in stage config: gave up after 3 attempts. The last attempt said: exit code 3",
            "{phase}"
        );
        let shown = status.node_status["worker-1"];
        assert_eq!(shown, skyhook_crds::Status::Erroring, "{phase}");
        assert_eq!(status.status, skyhook_crds::Status::Erroring, "{phase}");
        assert_eq!(status.reasons["GaveUp"].nodes, 1, "{phase}");
    }
}

#[test]
fn it_keeps_its_slot_and_others_go_on_within_the_budget() {
    for (budget, want) in [(1, vec![]), (2, vec!["s/worker-2"])] {
        let picture =
            Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": budget }));
        let picture = working(picture, json!({}), given_up("Erroring", false));
        assert_eq!(picture.reserved(), want, "{budget}");
        assert_eq!(effects(&picture.plan()), ["PatchNode progress; status"]);
        if budget == 1 {
            let status = status_of(&picture);
            assert_eq!(status.node_reasons["worker-1"].reason, "GaveUp");
            assert_eq!(status.node_reasons["worker-2"].reason, "BudgetExhausted");
            let mut conditions = status.conditions.iter();
            let ready = conditions.find(|condition| condition.type_ == "Ready");
            let ready = ready.expect("it is there");
            assert!(
                ready.message.contains("gave up after 3 attempts"),
                "{ready:?}"
            );
        }
    }
}

/// The agent says that it needs no drain any more: the lease says so first, then the cordon goes.
#[test]
fn a_drain_that_nobody_needs_any_more_ends() {
    let drains =
        |state: &str| json!({ "drain": { "state": state, "since": "2023-11-14T22:13:00Z" } });
    // Whether the drain's state is reset, and whether the node is uncordoned.
    for (name, spec, status, want) in [
        (
            "it drains",
            drains("Draining"),
            given_up("Erroring", false),
            (true, false),
        ),
        (
            "it is drained",
            drains("Drained"),
            given_up("Erroring", false),
            (true, false),
        ),
        (
            "the lease says so",
            json!({}),
            given_up("Erroring", false),
            (false, true),
        ),
        (
            "the agent has taken the drain",
            drains("Drained"),
            given_up("Running", true),
            (false, false),
        ),
        (
            "the agent is stopped: the result gives the cordon back",
            json!({
                "drain": { "state": "Draining", "since": "t" },
                "stop": { "reason": "Paused", "since": "t" },
            }),
            given_up("Erroring", false),
            (false, false),
        ),
    ] {
        let mut picture = working(cordoned(), spec.clone(), status);
        if spec.get("stop").is_some() {
            picture = picture.skyhook(&["metadata", "annotations", names::PAUSE], json!("true"));
        }
        let effects = picture.plan().effects;
        let is_reset = effects.iter().any(|effect| match effect {
            Effect::SetDrain { drain, .. } => *drain == skyhook_crds::lease::Drain::default(),
            _ => false,
        });
        let is_uncordoned = effects.iter().any(|effect| match effect {
            Effect::PatchNode { patch, why, .. } => {
                assert!(
                    patch.unschedulable.is_none() || why.contains(&Cause::CordonNotNeeded),
                    "{name}: {why:?}"
                );
                patch.unschedulable == Some(false)
            }
            _ => false,
        });
        assert_eq!((is_reset, is_uncordoned), want, "{name}");
        let index = picture.index();
        for effect in &effects {
            assert_eq!(
                crate::guard::check(&index, &picture.settings, effect),
                Ok(()),
                "{name}"
            );
        }
    }
    let settled = working(Picture::new(), json!({}), given_up("Erroring", false));
    let effects = settled.plan().effects;
    assert!(!effects.iter().any(|effect| effect.kind() == "SetDrain"));
}

#[test]
fn a_rerun_stops_the_lease_and_a_new_one_comes_first() {
    let rerun = json!({ "aa|1.0.0": {
        "name": "aa", "version": "1.0.0", "image": "r/aa", "stage": "config", "state": "in_progress",
    } });
    let edited =
        |picture: Picture| picture.annotated(1, &names::node_state("s"), &rerun.to_string());
    let asked = edited(working(
        Picture::new(),
        json!({}),
        given_up("Erroring", false),
    ));
    assert!(effects(&asked.plan()).contains(&"StopLease Some(Edited)".to_owned()));
    let mut stopped = given_up("Stopped", false);
    stopped.as_object_mut().expect("it is one").remove("parked");
    let spec = json!({ "stop": { "reason": "Edited", "since": "t" } });
    let ended = edited(working(cordoned(), spec, stopped));
    let effects = ended.plan().effects;
    let patch = effects.iter().find_map(|effect| match effect {
        Effect::PatchNode {
            node, patch, why, ..
        } if node == "worker-1" => Some((patch, why)),
        _ => None,
    });
    let (patch, why) = patch.expect("the result is recorded");
    assert!(why.contains(&Cause::ResultBesideEdit));
    // The edit stays, and so does the cordon: the host may be between an interrupt and what comes after it.
    assert!(!patch.annotations.contains_key(&names::node_state("s")));
    assert_eq!(patch.unschedulable, None);
    assert!(!patch.annotations.contains_key(names::CORDON_OWNERS));
}

#[test]
fn a_package_that_requests_more_than_the_node_has_is_the_reason() {
    let mut lacks = with_package("Preparing", "in_progress");
    lacks["packages"]["aa|1.0.0"]["lacks"] = json!("requests cpu 10, and the node has 2");
    lacks["packages"]["aa|1.0.0"]["pending"] = json!(true);
    let status = status_of(&working(Picture::new(), json!({}), lacks));
    let reason = &status.node_reasons["worker-1"];
    assert_eq!(
        (&*reason.reason, &*reason.message),
        (
            "InsufficientResources",
            "package aa requests cpu 10, and the node has 2"
        )
    );
    let shown = status.node_status["worker-1"];
    assert_eq!(shown, skyhook_crds::Status::InProgress);
}
