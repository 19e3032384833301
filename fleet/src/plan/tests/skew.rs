//! Agents, records and revisions of another version.

use super::leases::{effects, grant_and, granted, leased, phase, stamp, with_package};
use super::*;
use skyhook_crds::installed::Stamp;

fn on_worker_1(picture: &Picture) -> Vec<String> {
    let got = effects(&picture.plan()).into_iter();
    got.map(|effect| effect.replace("; status", ""))
        .filter(|effect| effect != "PatchNode status")
        .collect()
}

/// A lease that needs an agent of form 1.
fn beyond(status: Value) -> Picture {
    let picture = stamp(Picture::new(), granted());
    leased(picture, grant_and(json!({ "format": 1 })), status)
}

fn of_form(mut status: Value, form: i32) -> Value {
    status["format"] = json!(form);
    status
}

#[test]
fn an_agent_that_is_too_old_is_stopped_and_nothing_is_recorded() {
    let stopped = |status: Value| {
        let mut picture = beyond(status);
        set(
            &mut picture.leases[0],
            &["spec", "stop"],
            json!({ "reason": "AgentTooOld", "since": "t" }),
        );
        picture
    };
    for (name, picture, want) in [
        (
            "it says so",
            beyond(with_package("Erroring", "complete")),
            vec!["StopLease Some(AgentTooOld)"],
        ),
        (
            "it knows the form",
            beyond(of_form(with_package("Running", "in_progress"), 1)),
            vec!["PatchNode progress"],
        ),
        (
            "it was told to stop, and has not yet",
            stopped(with_package("Erroring", "complete")),
            vec![],
        ),
        (
            "it has stopped",
            stopped(with_package("Stopped", "complete")),
            vec!["ReleaseLease"],
        ),
    ] {
        assert_eq!(on_worker_1(&picture), want, "{name}");
    }
    let picture = beyond(phase("Erroring"));
    assert_eq!(picture.reason("s", "worker-1"), "AgentTooOld");
}

#[test]
fn what_a_newer_agent_reports_is_not_written_to_the_node() {
    let report = |phase_name: &str| {
        let mut status = with_package(phase_name, "in_progress");
        status["packages"]["aa|1.0.0"]["stage"] = json!("quarantine");
        leased(
            stamp(Picture::new(), granted()),
            grant_and(json!({})),
            status,
        )
    };
    for phase_name in ["Running", "Complete", "Stopped"] {
        assert_eq!(
            on_worker_1(&report(phase_name)),
            Vec::<String>::new(),
            "{phase_name}"
        );
    }
    let mut later = report("Running");
    later.leases[0]["status"]["phase"] = json!("Uninstalling");
    assert_eq!(on_worker_1(&later), Vec::<String>::new(), "it works");
    assert!(
        later.index().picture.leases()["worker-1"].lease.is_ok(),
        "it can be read, so that it can be stopped"
    );
}

#[test]
fn what_a_newer_version_wrote_is_left_alone() {
    let stage = complete("1.0.0").replace("config", "quarantine");
    let recorded = Stamp {
        lease: "earlier".into(),
        revision: "s-later".into(),
        ..Stamp::default()
    };
    let state = "skyhook.nvidia.com/nodeState_s";
    let by_stage = Picture::new().annotated(1, state, &stage);
    assert_eq!(by_stage.reserved(), ["s/worker-2"]);
    assert_eq!(by_stage.reason("s", "worker-1"), "NewerVersion");

    let by_revision = stamp(Picture::new(), recorded).annotated(1, state, &complete("1.0.0"));
    let mut index = by_revision.index();
    let revision = json!({
        "metadata": {
            "name": "s-later", "uid": "r", "resourceVersion": "1",
            "labels": { "skyhook.nvidia.com/name": "s" },
            "annotations": { "skyhook.nvidia.com/owner": "uid-of-s" },
        },
        "revision": 1,
        "data": { "format": 2, "packages": "in another form" },
    });
    let revision = serde_json::from_value(revision).unwrap();
    index.apply(
        crate::index::Change::Revision(Box::new(revision)),
        Mono::ZERO,
    );
    let plan = by_revision.plan_of(&index);
    let reserved = plan.effects.iter().filter_map(|effect| match effect {
        Effect::ReserveLease { node, .. } => Some(node.as_str()),
        _ => None,
    });
    assert_eq!(reserved.collect::<Vec<_>>(), ["worker-2"]);
}
