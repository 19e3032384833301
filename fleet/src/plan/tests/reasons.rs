//! The text of every reason for which a node does not move. Those that a report of an agent gives, or a problem of a node,
//! are in `words`.

use super::leases::{grant_and, granted, leased, phase, stamp};
use super::*;
use crate::effect::LiveCheck;
use crate::plan::reason::ReasonCode;
use skyhook_crds::installed::Stamp;
use skyhook_crds::names;

/// Code and text of the reason of a node in the status of a Skyhook.
fn said(effects: &[Effect], skyhook: &str, node: &str) -> (String, String) {
    let said = effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { name, status, .. } if name == skyhook => {
            status.node_reasons.get(node)
        }
        _ => None,
    });
    let said = said.map(|said| (said.reason.clone(), said.message.clone()));
    said.unwrap_or_default()
}

fn working(spec: Value, name: &str, more: Value) -> Picture {
    let mut status = phase(name);
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        status[key] = value;
    }
    leased(stamp(Picture::new(), granted()), grant_and(spec), status)
}

fn budget(budget: Value) -> Picture {
    Picture::new().skyhook(&["spec", "interruptionBudget"], budget)
}

fn annotated(key: &str) -> Picture {
    Picture::new().skyhook(&["metadata", "annotations"], json!({ key: "true" }))
}

fn control_plane(count: i32) -> Picture {
    let label = ["metadata", "labels", names::CONTROL_PLANE];
    let picture = budget(json!({ "count": count }));
    picture
        .node(1, &label, json!(""))
        .node(2, &label, json!(""))
}

#[test]
fn what_the_coordinator_waits_for() {
    let draining = |drain: Value| {
        working(
            json!({ "drain": drain }),
            "AwaitingDrain",
            json!({ "needsDrain": true }),
        )
    };
    let blocked = json!({
        "state": "Draining", "more": 2,
        "blockers": [{ "pod": "default/web", "reason": "is being evicted" }],
    });
    let replaced = Stamp {
        lease: "earlier".into(),
        host_id: "one".into(),
        ..granted()
    };
    let replaced = leased(
        stamp(Picture::new(), replaced),
        grant_and(json!({})),
        json!({ "phase": "Running", "bootID": "boot-of-worker-1", "machineID": "m", "hostID": "two" }),
    );
    let mut for_another = working(json!({}), "Running", json!({}));
    for_another = for_another.another(skyhook("t", json!({ "priority": 300 })));
    for_another.leases[0]["spec"]["skyhook"] = json!({ "name": "t", "uid": "uid-of-t" });
    let mut capped = budget(Value::Null);
    capped.settings.max_concurrent_nodes = Some(1);
    let not_ready = json!([{ "type": "Ready", "status": "False" }]);
    let late = Stamp {
        drain_timed_out: "2023-11-14T22:13:00Z".into(),
        ..Stamp::default()
    };
    let policy = json!({ "deploymentPolicy": "gone", "packages": packages() });
    let ignored = ["metadata", "labels", names::IGNORE];
    for (code, picture, node, want) in [
        (
            ReasonCode::AwaitingAgent,
            leased(
                stamp(Picture::new(), granted()),
                grant_and(json!({})),
                Value::Null,
            ),
            1,
            "the lease is granted; the node's agent has not accepted it",
        ),
        (
            ReasonCode::Preparing,
            working(json!({}), "Preparing", json!({ "message": "pulls r/aa" })),
            1,
            "pulls r/aa",
        ),
        (
            ReasonCode::AwaitingDrain,
            working(
                json!({}),
                "AwaitingDrain",
                json!({ "needsDrainReason": "aa reboots" }),
            ),
            1,
            "aa reboots",
        ),
        (
            ReasonCode::Draining,
            draining(json!({ "state": "Waiting" })),
            1,
            "waiting for pods to leave",
        ),
        (
            ReasonCode::Draining,
            draining(blocked),
            1,
            "waiting for: default/web (is being evicted), and 2 more",
        ),
        (
            ReasonCode::Draining,
            draining(json!({ "state": "Drained" })),
            1,
            "drained; the agent has not started the interrupt",
        ),
        (
            ReasonCode::AwaitingInterrupt,
            working(
                json!({}),
                "Running",
                json!({ "waitsFor": "a program inhibits the reboot" }),
            ),
            1,
            "a program inhibits the reboot",
        ),
        (
            ReasonCode::HostReplaced,
            replaced,
            1,
            "the host's disk was written anew since the last result was recorded: every package is installed again",
        ),
        (
            ReasonCode::NodeLeased,
            for_another,
            1,
            "the node is worked on for Skyhook t",
        ),
        (
            ReasonCode::BudgetExhausted,
            budget(json!({ "count": 1 })),
            2,
            "waits for a slot of the interruptionBudget",
        ),
        (
            ReasonCode::BudgetZero,
            budget(json!({ "count": 0 })),
            1,
            "interruptionBudget is 0: no node is started until it is raised",
        ),
        (
            ReasonCode::ClusterBudgetExhausted,
            capped,
            2,
            "waits for a slot of the cluster-wide budget",
        ),
        (
            ReasonCode::ControlPlane,
            control_plane(3),
            2,
            "control-plane node worker-1 is being worked on: one at a time",
        ),
        (
            ReasonCode::ControlPlane,
            control_plane(3).node(2, &["status", "conditions"], not_ready),
            1,
            "control-plane node worker-2 is not Ready",
        ),
        (
            ReasonCode::DeploymentPolicyNotFound,
            Picture::new().skyhook(&["spec"], policy),
            1,
            "deploymentPolicy \"gone\" not found",
        ),
        (
            ReasonCode::Disabled,
            annotated(names::DISABLE),
            1,
            "the Skyhook is disabled",
        ),
        (
            ReasonCode::Paused,
            annotated(names::PAUSE),
            1,
            "the Skyhook is paused",
        ),
        (
            ReasonCode::DrainTimedOut,
            Picture {
                // The objects arrive at the time 0.
                now: Mono::from_secs(100),
                ..stamp(Picture::new(), late)
            },
            1,
            "pods did not leave before the drain's deadline; the node is tried again later",
        ),
        (
            ReasonCode::NodeIgnored,
            Picture::new().node(1, &ignored, json!("true")),
            1,
            "label skyhook.nvidia.com/ignore=true keeps every Skyhook off",
        ),
        (
            ReasonCode::NodeStateMalformed,
            Picture::new().annotated(1, &names::node_state("s"), "{"),
            1,
            "annotation skyhook.nvidia.com/nodeState_s cannot be read: EOF while parsing an object at line 1 column 1; \
             delete it to have every package applied again, or correct it",
        ),
        (
            ReasonCode::PackageErroring,
            working(
                json!({}),
                "Erroring",
                json!({ "message": "the image cannot be pulled" }),
            ),
            1,
            "the image cannot be pulled",
        ),
    ] {
        let said = said(&picture.plan().effects, "s", &format!("worker-{node}"));
        assert_eq!(said, (code.to_string(), want.to_owned()));
    }
}

#[test]
fn a_node_waits_for_the_skyhooks_before_it() {
    let pair = Picture::new().another(skyhook("t", json!({ "priority": 300 })));
    let want = "Skyhook s goes first on this node and is not complete there";
    let (code, message) = said(&pair.plan().effects, "t", "worker-1");
    assert_eq!((code.as_str(), message.as_str()), ("EarlierSkyhook", want));
}

#[test]
fn a_skyhook_that_is_just_taken_in_says_what_is_written_first() {
    let picture = Picture::new();
    let unstored = testkit::index(&picture.nodes, &picture.skyhooks, &[], &[]);
    let effects = picture.plan_of(&unstored).effects;
    let (code, message) = said(&effects, "s", "worker-1");
    let want = ("Settling", "the revision is being written");
    assert_eq!((code.as_str(), message.as_str()), want);
    let message = admit_refusal_of(&picture.skyhook(&["metadata", "finalizers"], json!([])));
    assert_eq!(message, "the Skyhook's finalizer is being written");
}

#[test]
fn a_node_with_a_result_of_a_revision_that_is_newer_waits_for_the_watch() {
    let newer = Stamp {
        lease: "earlier".into(),
        revision: "s-newer".into(),
        ..Stamp::default()
    };
    let picture = stamp(Picture::new(), newer);
    let mut index = picture.index();
    let stored = json!({
        "metadata": { "name": "s-newer", "uid": "r2", "resourceVersion": "1" },
        "revision": 2, "data": null,
    });
    let stored = serde_json::from_value(stored).unwrap();
    index.apply(crate::index::Change::Revision(Box::new(stored)), Mono::ZERO);
    let (code, message) = said(&picture.plan_of(&index).effects, "s", "worker-1");
    let want = "the node has a result of a newer revision than is known here: the watch of the Skyhook is behind";
    assert_eq!((code.as_str(), message.as_str()), ("Settling", want));
}

#[test]
fn a_lease_that_is_being_created_for_another_skyhook_is_a_reason() {
    let picture = Picture::new().another(skyhook("t", json!({ "priority": 300 })));
    let mut index = picture.index();
    let mut spec = skyhook_crds::lease::InterruptionLeaseSpec::default();
    spec.skyhook.uid = "uid-of-t".into();
    index.begins(&Effect::ReserveLease {
        node: "worker-1".into(),
        spec: Box::new(spec),
    });
    let (code, message) = said(&picture.plan_of(&index).effects, "s", "worker-1");
    let want = "a lease of the node is being created for another Skyhook";
    assert_eq!((code.as_str(), message.as_str()), ("NodeLeased", want));
}

/// What is said while nobody may get a lease of Skyhook `s`; the status is not written in the same pass as the finalizer.
fn admit_refusal_of(picture: &Picture) -> String {
    let effects = picture.plan().effects;
    let reason = effects.iter().find_map(|effect| match effect {
        Effect::PatchNode { node, patch, .. } if node == "worker-1" => {
            let reason = patch.annotations.get(&names::reason("s"))?.as_ref()?;
            serde_json::from_str::<skyhook_crds::skyhook::NodeReason>(reason).ok()
        }
        _ => None,
    });
    reason.map_or_else(String::new, |reason| reason.message)
}

/// The lease that the Node names may be one that another replica has granted, and that this replica's watch has not
/// delivered yet.
#[test]
fn a_node_that_names_an_unseen_lease_is_told_nothing_before_a_get_has_shown_that_the_lease_is_gone()
{
    let asked = |picture: Picture| {
        let effects = picture.plan().effects;
        let patches = effects.into_iter().find_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if node == "worker-1" => Some(patch),
            _ => None,
        });
        patches.map(|patch| {
            (
                patch.labels["skyhook.nvidia.com/status_s"].clone(),
                patch.check,
            )
        })
    };
    let waiting = || Some("waiting".to_owned());
    let full = || budget(json!({ "count": 0 }));
    assert_eq!(
        asked(full()),
        Some((waiting(), LiveCheck::default())),
        "no GET for a Node that names no lease"
    );
    let check = LiveCheck {
        not_for: ["s".to_owned()].into(),
        ..LiveCheck::default()
    };
    assert_eq!(asked(stamp(full(), granted())), Some((waiting(), check)));
}
