//! What happens next to a lease that exists.

use super::*;
use skyhook_crds::installed::{Stamp, states_digest};

/// The picture with a lease for worker-1, of the current revision.
pub(super) fn leased(picture: Picture, spec: Value, status: Value) -> Picture {
    let index = picture.index();
    let revision = index.picture.skyhooks()["s"]
        .checked
        .as_ref()
        .map(|c| c.revision.clone())
        .unwrap_or_default();
    let mut lease = json!({
        "metadata": {
            "name": "worker-1", "uid": "lease", "resourceVersion": "5", "generation": 1,
            "finalizers": [skyhook_crds::names::LEASE_FINALIZER],
        },
        "spec": {
            "node": { "name": "worker-1", "uid": "uid-of-worker-1" },
            "skyhook": { "name": "s", "uid": "uid-of-s" },
            "revision": revision,
        },
    });
    for (key, value) in spec.as_object().cloned().unwrap_or_default() {
        set(&mut lease, &["spec", &key], value);
    }
    if !status.is_null() {
        lease["status"] = status;
    }
    Picture {
        leases: vec![lease],
        ..picture
    }
}

pub(super) fn stamp(picture: Picture, stamp: Stamp) -> Picture {
    picture.annotated(1, "skyhook.nvidia.com/stamp_s", &stamp.render())
}

pub(super) fn granted() -> Stamp {
    Stamp {
        granted: "lease".into(),
        was_ready: true,
        states: states_digest(""),
        ..Stamp::default()
    }
}

fn effects_on_worker_1(picture: &Picture) -> Vec<String> {
    effects(&picture.plan())
}

/// Effects of a plan on worker-1 and on leases, in one word each, with what distinguishes them.
pub(super) fn effects(plan: &Plan) -> Vec<String> {
    plan.effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::PatchNode { node, why, .. } if node == "worker-1" => {
                let why: Vec<String> = why.iter().map(Cause::to_string).collect();
                Some(format!("PatchNode {}", why.join("; ")))
            }
            Effect::StopLease { stop, .. } => Some(format!("StopLease {stop:?}")),
            Effect::WithdrawLease { why, .. } => Some(format!("WithdrawLease {why}")),
            Effect::GrantLease { .. }
            | Effect::ReleaseLease { .. }
            | Effect::AbandonLease { .. }
            | Effect::SurveyPods { .. }
            | Effect::ReleaseLeaseOfGoneNode { .. } => Some(effect.kind().to_owned()),
            _ => None,
        })
        .collect()
}

const GRANT: &str = r#"{ "granted": { "by": "c", "at": "t" } }"#;

pub(super) fn grant_and(more: Value) -> Value {
    let mut spec: Value = serde_json::from_str(GRANT).unwrap();
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        spec[key] = value;
    }
    spec
}

pub(super) fn phase(phase: &str) -> Value {
    json!({ "phase": phase, "bootID": "boot-of-worker-1", "machineID": "m" })
}

pub(super) fn with_package(phase_name: &str, state: &str) -> Value {
    let mut status = phase(phase_name);
    status["packages"] = json!({ "aa|1.0.0": {
        "name": "aa", "version": "1.0.0", "image": "r/aa", "stage": "config", "state": state, "restarts": 0,
    } });
    status
}

#[test]
fn before_an_agent_accepts() {
    let base = Picture::new;
    let paused = json!({ "skyhook.nvidia.com/pause": "true" });
    for (name, picture, want) in [
        (
            "reserved",
            leased(base(), json!({}), json!(null)),
            vec!["PatchNode grant"],
        ),
        (
            "stamped",
            leased(stamp(base(), granted()), json!({}), json!(null)),
            vec!["GrantLease"],
        ),
        (
            "stamped for another lease",
            leased(
                stamp(
                    base(),
                    Stamp {
                        granted: "older".into(),
                        ..granted()
                    },
                ),
                json!({}),
                json!(null),
            ),
            vec!["PatchNode grant"],
        ),
        (
            "the record changed",
            leased(
                base().annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("0.1.0")),
                json!({}),
                json!(null),
            ),
            vec!["WithdrawLease the node's package states changed"],
        ),
        (
            "the record is of another run",
            leased(
                stamp(
                    base(),
                    Stamp {
                        lease: "another".into(),
                        states: states_digest(""),
                        ..Stamp::default()
                    },
                ),
                json!({}),
                json!(null),
            ),
            vec!["WithdrawLease the node's package states are of another run"],
        ),
        (
            "nothing to do",
            {
                let installed: Value = serde_json::from_str(&complete("1.0.0")).unwrap();
                let picture =
                    base().annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"));
                leased(picture, json!({ "installed": installed }), json!(null))
            },
            vec!["WithdrawLease there is nothing to do", "PatchNode status"],
        ),
        (
            "paused",
            leased(
                base().skyhook(&["metadata", "annotations"], paused),
                json!({}),
                json!(null),
            ),
            vec!["WithdrawLease the Skyhook is paused"],
        ),
        (
            "another revision",
            leased(base(), json!({ "revision": "s-old" }), json!(null)),
            vec!["WithdrawLease the Skyhook has a newer revision"],
        ),
        (
            "another node under the name",
            leased(
                base(),
                json!({ "node": { "name": "worker-1", "uid": "gone" } }),
                json!(null),
            ),
            vec!["WithdrawLease its Node or its Skyhook is gone"],
        ),
        (
            "another Skyhook under the name",
            leased(
                base(),
                json!({ "skyhook": { "name": "s", "uid": "gone" } }),
                json!(null),
            ),
            vec!["WithdrawLease its Node or its Skyhook is gone"],
        ),
        (
            "the budget shrank",
            leased(
                base().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 })),
                json!({}),
                json!(null),
            ),
            vec!["WithdrawLease it does not fit the budget"],
        ),
        (
            "granted, and the agent has time",
            leased(stamp(base(), granted()), grant_and(json!({})), json!(null)),
            vec![],
        ),
        (
            "granted, the budget shrank",
            leased(
                stamp(
                    base().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 })),
                    granted(),
                ),
                grant_and(json!({})),
                json!(null),
            ),
            vec![],
        ),
    ] {
        let mut picture = picture;
        // The lease is seen at time zero: still within the time that an agent has.
        picture.now = Mono::from_secs(60);
        let got = effects_on_worker_1(&picture);
        let got: Vec<&str> = got
            .iter()
            .map(String::as_str)
            .filter(|e| *e != "PatchNode status")
            .collect();
        let want: Vec<&str> = want
            .into_iter()
            .filter(|e| *e != "PatchNode status")
            .collect();
        assert_eq!(got, want, "{name}");
    }
    let late = leased(stamp(base(), granted()), grant_and(json!({})), json!(null));
    assert_eq!(
        effects_on_worker_1(&late)[0],
        "WithdrawLease the agent did not accept it in time",
        "after the deadline"
    );
}

#[test]
fn while_the_agent_works() {
    let base = || stamp(Picture::new(), granted());
    let annotate = |picture: Picture, key: &str| {
        picture.skyhook(&["metadata", "annotations"], json!({ key: "true" }))
    };
    let stop = |reason: &str| grant_and(json!({ "stop": { "reason": reason, "since": "t" } }));
    for (name, picture, want) in [
        (
            "working",
            leased(base(), grant_and(json!({})), phase("Accepted")),
            vec![],
        ),
        (
            "progress",
            leased(
                base(),
                grant_and(json!({})),
                with_package("Running", "in_progress"),
            ),
            vec!["PatchNode progress"],
        ),
        (
            "paused",
            leased(
                annotate(base(), "skyhook.nvidia.com/pause"),
                grant_and(json!({})),
                phase("Accepted"),
            ),
            vec!["StopLease Some(Paused)"],
        ),
        (
            "resumed",
            leased(base(), stop("Paused"), phase("Accepted")),
            vec!["StopLease None"],
        ),
        (
            "disabled while paused",
            leased(
                annotate(base(), "skyhook.nvidia.com/disable"),
                stop("Paused"),
                phase("Accepted"),
            ),
            vec!["StopLease Some(Disabled)"],
        ),
        (
            "another revision",
            leased(
                base(),
                grant_and(json!({ "revision": "s-old" })),
                phase("Accepted"),
            ),
            vec!["StopLease Some(NewRevision)"],
        ),
        (
            "another revision while paused",
            leased(
                annotate(base(), "skyhook.nvidia.com/pause"),
                grant_and(json!({ "revision": "s-old" })),
                phase("Accepted"),
            ),
            vec!["StopLease Some(Paused)"],
        ),
        (
            "an order stands",
            leased(base(), stop("NewRevision"), phase("Accepted")),
            vec![],
        ),
        (
            "deselected",
            leased(
                base().skyhook(
                    &["spec", "nodeSelectors"],
                    json!({ "matchLabels": { "a": "b" } }),
                ),
                grant_and(json!({})),
                phase("Accepted"),
            ),
            vec!["StopLease Some(Deleted)"],
        ),
        (
            "edited",
            leased(
                base().annotated(1, "skyhook.nvidia.com/nodeState_s", "{}"),
                grant_and(json!({})),
                with_package("Running", "in_progress"),
            ),
            vec!["StopLease Some(Edited)"],
        ),
        (
            "the Skyhook is gone",
            leased(
                base(),
                grant_and(json!({ "skyhook": { "name": "gone", "uid": "g" } })),
                phase("Accepted"),
            ),
            vec!["StopLease Some(Deleted)"],
        ),
        (
            "the node is gone",
            leased(
                base(),
                grant_and(json!({ "node": { "name": "worker-1", "uid": "gone" } })),
                phase("Accepted"),
            ),
            vec!["ReleaseLeaseOfGoneNode"],
        ),
        (
            "it asks for a drain",
            leased(
                base(),
                grant_and(json!({})),
                json!({ "phase": "Preparing", "needsDrain": true }),
            ),
            vec!["PatchNode cordon"],
        ),
        (
            "told to go, and does not",
            leased(
                annotate(base(), "skyhook.nvidia.com/disable"),
                stop("Disabled"),
                phase("Running"),
            ),
            vec!["AbandonLease"],
        ),
    ] {
        let got = effects_on_worker_1(&picture);
        let got: Vec<String> = got
            .into_iter()
            .map(|e| e.replace("; status", "").replace("status; ", ""))
            .filter(|e| e != "PatchNode status")
            .collect();
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn when_the_agent_is_done() {
    let base = || stamp(Picture::new(), granted());
    let done = || with_package("Complete", "complete");
    let recorded = Stamp {
        lease: "lease".into(),
        revision: Picture::new().index().picture.skyhooks()["s"]
            .checked
            .as_ref()
            .map(|c| c.revision.clone())
            .unwrap(),
        states: states_digest(&complete("1.0.0")),
        ..Stamp::default()
    };
    let mut other_boot = done();
    other_boot["bootID"] = json!("another");
    for (name, picture, want) in [
        (
            "its result is taken",
            leased(base(), grant_and(json!({})), done()),
            vec!["PatchNode result"],
        ),
        (
            "the kubelet is behind",
            leased(base(), grant_and(json!({})), other_boot),
            vec![],
        ),
        (
            "the node is not Ready again",
            leased(
                base().node(
                    1,
                    &["status", "conditions"],
                    json!([{ "type": "Ready", "status": "Unknown" }]),
                ),
                grant_and(json!({})),
                done(),
            ),
            vec![],
        ),
        (
            "it never was Ready",
            leased(
                stamp(
                    Picture::new(),
                    Stamp {
                        was_ready: false,
                        ..granted()
                    },
                )
                .node(
                    1,
                    &["status", "conditions"],
                    json!([{ "type": "Ready", "status": "False" }]),
                ),
                grant_and(json!({})),
                done(),
            ),
            vec!["PatchNode result"],
        ),
        (
            "somebody edited the record",
            leased(
                base().annotated(1, "skyhook.nvidia.com/nodeState_s", "{}"),
                grant_and(json!({})),
                done(),
            ),
            vec!["PatchNode result beside an edit"],
        ),
        (
            "the Node is ahead of the leases",
            leased(
                stamp(
                    Picture::new(),
                    Stamp {
                        granted: "later".into(),
                        lease: "later".into(),
                        ..granted()
                    },
                ),
                grant_and(json!({})),
                done(),
            ),
            vec![],
        ),
        (
            "a newer version wrote the record",
            leased(
                Picture::new().annotated(
                    1,
                    "skyhook.nvidia.com/stamp_s",
                    r#"{"format":2,"granted":"lease"}"#,
                ),
                grant_and(json!({})),
                done(),
            ),
            vec![],
        ),
        (
            "it is on record",
            leased(
                stamp(Picture::new(), recorded.clone()).annotated(
                    1,
                    "skyhook.nvidia.com/nodeState_s",
                    &complete("1.0.0"),
                ),
                grant_and(json!({})),
                done(),
            ),
            vec!["ReleaseLease"],
        ),
    ] {
        let got: Vec<String> = effects_on_worker_1(&picture)
            .into_iter()
            .filter(|e| e != "PatchNode status")
            .collect();
        assert_eq!(got, want, "{name}");
    }
}
