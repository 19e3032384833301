//! The events that tell people what is written.

use skyhook_crds::Status;
use skyhook_crds::skyhook::SkyhookStatus;

use super::leases::{grant_and, granted, leased, phase, stamp};
use super::*;
use crate::events::{EventFact, Subject, events, refused};
use crate::plan::reason::Withdrawal;

/// An event in one line: `!` for a warning, the kind and name of its subject, its reason, and its text.
fn line(event: EventFact) -> String {
    let subject = match event.subject {
        Subject::Skyhook { name, .. } => format!("skyhook/{name}"),
        Subject::Node { name, .. } => format!("node/{name}"),
    };
    let warning = if event.warning { "!" } else { "" };
    format!("{warning}{subject} {}: {}", event.reason, event.note)
}

/// A Skyhook whose agent works on worker-1.
fn working() -> Index {
    let picture = stamp(Picture::new(), granted());
    leased(picture, grant_and(json!({})), phase("Running")).index()
}

fn lease_at() -> AsOf {
    version("lease", "5")
}

fn patch(patch: NodePatch, why: Cause) -> Effect {
    Effect::PatchNode {
        node: "worker-1".into(),
        at: version("uid-of-worker-1", "1"),
        patch,
        why: [why].into(),
    }
}

#[test]
fn what_happens_to_a_node_is_told() {
    let node = || "worker-1".to_owned();
    let cordon = NodePatch {
        unschedulable: Some(true),
        ..NodePatch::default()
    };
    let stop = |stop| Effect::StopLease {
        node: node(),
        at: lease_at(),
        stop: Some(stop),
        revision: None,
        message: "",
    };
    let drain = |state: &str| {
        let pods = ["default/a", "default/b"];
        let mut blockers: Vec<Value> = pods
            .iter()
            .map(|pod| json!({ "pod": pod, "reason": "r", "cause": "NonInterruptLabels" }))
            .collect();
        blockers.push(json!({ "pod": "node/worker-2", "reason": "is not Ready" }));
        let drain = json!({ "state": state, "blockers": blockers, "more": 2 });
        Effect::SetDrain {
            node: node(),
            at: lease_at(),
            drain: serde_json::from_value(drain).unwrap(),
        }
    };
    let withdraw = |why| Effect::WithdrawLease {
        node: node(),
        at: lease_at(),
        why,
    };
    for (effect, want) in [
        (
            patch(NodePatch::default(), Cause::Grant),
            vec!["node/worker-1 Started: [skyhook:s] begins on node [worker-1]"],
        ),
        (
            patch(cordon, Cause::Cordon),
            vec!["node/worker-1 Interrupt: draining node [worker-1] from [skyhook:s]"],
        ),
        (
            patch(NodePatch::default(), Cause::Reapply),
            vec![
                "node/worker-1 Reboot: detected reboot, resetting node [worker-1] to be reapplied",
            ],
        ),
        (
            patch(
                NodePatch::default().status("s", Status::Complete),
                Cause::Result,
            ),
            vec!["node/worker-1 State: Skyhook [s] complete."],
        ),
        (
            patch(NodePatch::default().forget("s"), Cause::Status),
            vec![],
        ),
        (
            stop(StopReason::DrainTimedOut),
            vec![
                "!skyhook/s DrainTimeout: pods did not leave node [worker-1] in time for [skyhook:s]: the cordon is given back",
                "!node/worker-1 DrainTimeout: pods did not leave node [worker-1] in time for [skyhook:s]: the cordon is given back",
            ],
        ),
        (drain("Draining"), vec![]),
        (
            drain("Waiting"),
            vec![
                "!skyhook/s Drain: node [worker-1] waits for pods that podNonInterruptLabels of [skyhook:s] matches: default/a, default/b and 2 more",
                "!node/worker-1 Drain: node [worker-1] waits for pods that podNonInterruptLabels of [skyhook:s] matches: default/a, default/b and 2 more",
            ],
        ),
        (stop(StopReason::Paused), vec![]),
        (
            withdraw(Withdrawal::AgentNotResponding),
            vec![
                "!skyhook/s AgentNotResponding: the agent of node [worker-1] did not accept the lease of [skyhook:s]",
                "!node/worker-1 AgentNotResponding: the agent of node [worker-1] did not accept the lease of [skyhook:s]",
            ],
        ),
        (withdraw(Withdrawal::OverBudget), vec![]),
        (
            Effect::AbandonLease {
                node: node(),
                at: lease_at(),
            },
            vec![
                "!skyhook/s LeaseAbandoned: the agent of node [worker-1] did not stop, or the node did not come back, in time; [skyhook:s] goes without its result",
                "!node/worker-1 LeaseAbandoned: the agent of node [worker-1] did not stop, or the node did not come back, in time; [skyhook:s] goes without its result",
            ],
        ),
    ] {
        let told: Vec<String> = events(&working(), &effect).into_iter().map(line).collect();
        assert_eq!(told, want, "{}", effect.kind());
    }
}

/// What is told when the status of Skyhook `s` changes.
fn change(old: Option<SkyhookStatus>, new: SkyhookStatus) -> Vec<String> {
    let mut picture = Picture::new();
    if let Some(old) = old {
        picture = picture.skyhook(&["status"], serde_json::to_value(old).unwrap());
    }
    let effect = Effect::WriteSkyhookStatus {
        name: "s".into(),
        at: version("uid-of-s", "1"),
        status: Box::new(new),
        turning: true,
    };
    let told = events(&picture.index(), &effect);
    told.into_iter().map(line).collect()
}

#[test]
fn what_lasts_is_told_when_it_begins_and_not_again() {
    let ready = |reason: &str, message: &str| {
        let ready = json!([{
            "type": "Ready", "status": "False", "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
        SkyhookStatus {
            status: Status::Blocked,
            conditions: serde_json::from_value(ready).unwrap(),
            ..SkyhookStatus::default()
        }
    };
    let mut zero = ready("Waiting", "0/3");
    let reason = json!({ "nodes": 3, "since": "t", "examples": [] });
    zero.reasons = [(
        "BudgetZero".to_owned(),
        serde_json::from_value(reason).unwrap(),
    )]
    .into();
    let fine = || ready("Progressing", "1/3");
    for (name, old, new, want) in [
        ("nothing new", fine(), fine(), None),
        (
            "refused agents",
            fine(),
            ready("AgentsRefused", "no"),
            Some("!skyhook/s AgentsRefused: no"),
        ),
        (
            "refused for another reason",
            ready("AgentsRefused", "no"),
            ready("AgentsRefused", "quota"),
            None,
        ),
        (
            "blocked",
            fine(),
            ready("Blocked", "b"),
            Some("!skyhook/s Blocked: b"),
        ),
        (
            "an invalid spec",
            fine(),
            ready("Invalid", "typo"),
            Some("!skyhook/s Invalid: typo"),
        ),
        (
            "another mistake in it",
            ready("Invalid", "typo"),
            ready("Invalid", "name"),
            Some("!skyhook/s Invalid: name"),
        ),
        (
            "the same mistake",
            ready("Invalid", "typo"),
            ready("Invalid", "typo"),
            None,
        ),
        (
            "a budget of 0",
            fine(),
            zero.clone(),
            Some(
                "!skyhook/s BudgetZero: interruptionBudget is 0: no node is started until it is raised",
            ),
        ),
        ("it stays 0", zero.clone(), zero, None),
    ] {
        let want: Vec<String> = want.into_iter().map(str::to_owned).collect();
        assert_eq!(change(Some(old), new), want, "{name}");
    }
    let first = SkyhookStatus {
        status: Status::InProgress,
        ..SkyhookStatus::default()
    };
    let want = "skyhook/s State: Skyhook transitioned [unknown] -> [in_progress]";
    assert_eq!(change(None, first), [want]);
}

#[test]
fn a_refused_write_is_told_to_the_object_that_does_not_move() {
    let index = working();
    let revision = index.picture.revisions().keys().next().cloned().unwrap();
    let create = Effect::CreateRevision {
        name: "s-new".into(),
        skyhook: "s".into(),
        skyhook_uid: "uid-of-s".into(),
        number: 2,
        data: Box::default(),
    };
    let prune = Effect::PruneRevision {
        name: revision,
        at: version("r", "1"),
        skyhook: "s".into(),
        not_of: None,
    };
    let grant = Effect::GrantLease {
        node: "worker-1".into(),
        at: lease_at(),
        batch: None,
    };
    let evict = Effect::EvictPod {
        node: "worker-1".into(),
        lease_uid: "lease".into(),
        namespace: "default".into(),
        pod: "web".into(),
        pod_uid: "u".into(),
        grace_period: None,
        by_deletion: false,
    };
    for (effect, want) in [
        (create, Some("skyhook/s")),
        (prune, Some("skyhook/s")),
        (grant, Some("node/worker-1")),
        (
            patch(NodePatch::default(), Cause::Status),
            Some("node/worker-1"),
        ),
        (evict, None),
    ] {
        let told = refused(&index, &effect, "denied by a webhook");
        let told: Vec<String> = told.into_iter().map(line).collect();
        let text = "WriteRefused: the API server refuses what the coordinator has to write; it is tried again: denied by \
                    a webhook";
        let want = want.map(|subject| format!("!{subject} {text}"));
        assert_eq!(told, Vec::from_iter(want), "{}", effect.kind());
    }
}
