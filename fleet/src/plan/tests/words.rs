//! The exact texts that people read.

use super::leases::{grant_and, granted, leased, stamp, with_package};
use super::*;
use crate::plan::reason::Withdrawal;
use skyhook_crds::installed::Stamp;

/// What the Skyhook's status says of worker-1.
fn told(picture: &Picture) -> String {
    let plan = picture.plan();
    let status = plan.effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => status.node_reasons.get("worker-1"),
        _ => None,
    });
    status.map_or_else(String::new, |reason| reason.message.clone())
}

fn working(status: Value) -> Picture {
    let mut status = status;
    status["bootID"] = json!("boot-of-worker-1");
    leased(
        stamp(Picture::new(), granted()),
        grant_and(json!({})),
        status,
    )
}

fn not_ready(picture: Picture, since: &str) -> Picture {
    let ready = json!([{ "type": "Ready", "status": "Unknown", "lastTransitionTime": since }]);
    let picture = picture.node(1, &["status", "conditions"], ready);
    // The Node is first seen at the time 0.
    Picture {
        now: Mono::from_secs(100),
        ..picture
    }
}

#[test]
fn a_clock_that_is_set_back_delays_no_word_about_a_node_that_stays_away() {
    let away = not_ready(
        working(with_package("Running", "in_progress")),
        "2030-01-01T00:00:00Z",
    );
    for (seconds, want) in [(899, "AwaitingNode"), (900, "NodeNotReturning")] {
        let now = Mono::from_secs(seconds);
        let away = Picture {
            now,
            ..away.clone()
        };
        assert_eq!(away.reason("s", "worker-1"), want, "{seconds}");
    }
}

#[test]
fn why_a_node_does_not_move() {
    let taint = |key: &str| {
        let taints = json!([{ "key": key, "effect": "NoSchedule" }]);
        Picture::new().node(1, &["spec", "taints"], taints)
    };
    let failed = |message: &str| {
        let mut status = with_package("Running", "erroring");
        for (_, package) in status["packages"].as_object_mut().unwrap() {
            package["message"] = json!(message);
        }
        working(status)
    };
    let mut booted = with_package("Running", "in_progress");
    booted["bootID"] = json!("the one before");
    let booted = leased(
        stamp(Picture::new(), granted()),
        grant_and(json!({})),
        booted,
    );
    let mut unreadable = working(with_package("Running", "in_progress"));
    unreadable.leases[0]["spec"]["node"] = json!(3);
    let running = || working(with_package("Running", "in_progress"));
    for (picture, want) in [
        (
            taint("dedicated"),
            "taint dedicated:NoSchedule is not tolerated: add it to spec.additionalTolerations",
        ),
        (
            taint("node.kubernetes.io/not-ready"),
            "the node is not Ready: it is taken when it is, or before that with a toleration of \
             node.kubernetes.io/not-ready:NoSchedule in spec.additionalTolerations",
        ),
        (
            not_ready(running(), "2023-11-14T22:13:00Z"),
            "the node is not Ready",
        ),
        (
            not_ready(running(), "2023-11-14T21:00:00Z"),
            "the node went away at 2023-11-14T21:00:00Z and did not come back: it keeps its lease and its slot; to give \
             them up: kubectl annotate interruptionlease worker-1 skyhook.nvidia.com/force-release=lease",
        ),
        (
            failed("exit code 3"),
            "package aa failed in stage config: exit code 3",
        ),
        (failed(""), "package aa failed in stage config"),
        (
            booted,
            "the node has booted anew, and its agent has not reported since: is its pod running there?",
        ),
    ] {
        assert_eq!(told(&picture), want);
    }
    let unreadable = told(&unreadable);
    let way_out = "correct it, or when nothing runs on the node, give its slot back: kubectl annotate interruptionlease \
                   worker-1 skyhook.nvidia.com/force-release=lease";
    assert!(unreadable.ends_with(way_out), "{unreadable}");
}

#[test]
fn why_a_lease_is_withdrawn() {
    use Withdrawal as W;
    let all = [
        (W::Deleting, "it is being deleted"),
        (W::Orphaned, "its Node or its Skyhook is gone"),
        (W::OverBudget, "it does not fit the budget"),
        (W::NotSelected, "the Skyhook no longer selects the node"),
        (
            W::Stop(StopReason::NewRevision),
            "the Skyhook has a newer revision",
        ),
        (W::Stop(StopReason::Paused), "the Skyhook is paused"),
        (W::Stop(StopReason::Disabled), "the Skyhook is disabled"),
        (W::Stop(StopReason::Deleted), "the Skyhook is deleted"),
        (
            W::Stop(StopReason::Edited),
            "the node's package states were edited",
        ),
        (
            W::Stop(StopReason::DrainTimedOut),
            "pods did not leave in time",
        ),
        (W::Stop(StopReason::AgentTooOld), "it needs a newer agent"),
        (
            W::Stop(StopReason::Unknown),
            "a newer version told the agent to stop",
        ),
        (W::NotInBatch, "no open batch has the node"),
        (W::OrderTaken, "another node has its SKYHOOK_NODE_ORDER"),
        (W::OtherOrder, "the node keeps another SKYHOOK_NODE_ORDER"),
        (W::NewerRecord, "a newer version wrote the node's record"),
        (W::RecordChanged, "the node's package states changed"),
        (W::OtherRun, "the node's package states are of another run"),
        (W::Overtaken, "the node has a newer revision"),
        (W::NothingToDo, "there is nothing to do"),
        (W::AgentNotResponding, "the agent did not accept it in time"),
        (
            W::AgentNotYetThere,
            "the node has joined lately, and its agent did not accept it",
        ),
    ];
    for (why, want) in all {
        assert_eq!(why.to_string(), want);
        // A new variant does not compile before it has a row above.
        match why {
            W::Deleting
            | W::Orphaned
            | W::OverBudget
            | W::NotSelected
            | W::Stop(
                StopReason::NewRevision
                | StopReason::Paused
                | StopReason::Disabled
                | StopReason::Deleted
                | StopReason::Edited
                | StopReason::DrainTimedOut
                | StopReason::AgentTooOld
                | StopReason::Unknown,
            )
            | W::NotInBatch
            | W::OrderTaken
            | W::OtherOrder
            | W::NewerRecord
            | W::RecordChanged
            | W::OtherRun
            | W::Overtaken
            | W::NothingToDo
            | W::AgentNotResponding
            | W::AgentNotYetThere => {}
        }
    }
}

/// The edit that is made when a roll-out goes wrong: another version, and a lower budget.
#[test]
fn no_more_nodes_stay_cordoned_than_the_budget_has_slots() {
    let cordoned = |picture: Picture, n: usize| {
        picture
            .annotated(n, "skyhook.nvidia.com/cordon_s", "true")
            .annotated(
                n,
                "skyhook.nvidia.com/cordon-owners",
                r#"{"wasUnschedulable":false,"owners":{"s":"gone"}}"#,
            )
            .node(n, &["spec", "unschedulable"], json!(true))
    };
    let all = |picture: Picture| (1..=3).fold(picture, cordoned);
    let given_back = |picture: &Picture| -> Vec<String> {
        let effects = picture.plan().effects;
        let given = effects.iter().filter_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if patch.unschedulable == Some(false) => {
                Some(node.clone())
            }
            _ => None,
        });
        given.collect()
    };
    let budget = |count: i32| {
        let budget = json!({ "count": count });
        all(Picture::new()).skyhook(&["spec", "interruptionBudget"], budget)
    };
    assert_eq!(budget(1).reserved(), ["s/worker-1"]);
    assert_eq!(given_back(&budget(1)), ["worker-2", "worker-3"]);
    assert_eq!(given_back(&budget(2)), ["worker-3"]);
    assert_eq!(given_back(&budget(3)), [""; 0]);
    // Two slots are free, but no node may take them: nodes that are not Ready count.
    let unavailable = json!({ "count": 2, "countUnavailable": true });
    let mut waiting = all(Picture::new()).skyhook(&["spec", "interruptionBudget"], unavailable);
    for n in 4..=5 {
        waiting
            .nodes
            .push(testkit::node_object(&format!("worker-{n}")));
        waiting = waiting.node(n, &["status", "conditions"], json!([]));
    }
    assert_eq!(waiting.reserved(), [""; 0]);
    assert_eq!(given_back(&waiting), ["worker-3"]);
    assert_eq!(
        told(&waiting),
        "waits for a slot of the interruptionBudget (stays cordoned)"
    );
}

#[test]
fn an_invalid_skyhook_holds_up_those_that_come_after_it_on_its_nodes() {
    let later = || skyhook("t", json!({ "priority": 300 }));
    let broken = json!({ "aa": { "version": "x", "image": "r" } });
    let invalid = || Picture::new().skyhook(&["spec", "packages"], broken.clone());
    let pair = || invalid().another(later());
    assert_eq!(pair().reserved(), [""; 0]);
    assert_eq!(pair().reason("t", "worker-1"), "EarlierSkyhook");
    let elsewhere = json!({ "matchLabels": { "a": "b" } });
    let apart = pair().skyhook(&["spec", "nodeSelectors"], elsewhere);
    assert_eq!(apart.reserved().len(), 3, "it is not for these nodes");
    let disabled = json!({ "skyhook.nvidia.com/disable": "true" });
    let out = pair().skyhook(&["metadata", "annotations"], disabled);
    assert_eq!(out.reserved().len(), 3, "it is disabled");
    let earlier = invalid().another(skyhook("a", json!({ "priority": 100 })));
    assert_eq!(earlier.reserved().len(), 3, "those before it go on");
}

/// A finished agent on worker-1. The kubelet has not reported the boot that the agent ran in.
fn ended_in_another_boot() -> Picture {
    let mut done = with_package("Complete", "complete");
    done["bootID"] = json!("another boot");
    leased(stamp(Picture::new(), granted()), grant_and(json!({})), done)
}

/// The result is not recorded before the node is back. Until then, only the status says what the lease waits for.
#[test]
fn a_node_that_ended_and_went_away_is_told_to_be_erroring() {
    let status = |picture: &Picture| {
        let label = picture
            .plan()
            .effects
            .into_iter()
            .find_map(|effect| match effect {
                Effect::PatchNode { patch, .. } => {
                    patch.labels.get("skyhook.nvidia.com/status_s").cloned()
                }
                _ => None,
            });
        label.flatten().unwrap_or_default()
    };
    for (name, done) in [
        ("not Ready", working(with_package("Complete", "complete"))),
        ("another boot", ended_in_another_boot()),
    ] {
        let young = not_ready(done.clone(), "2023-11-14T22:13:00Z");
        assert_eq!(status(&young), "in_progress", "{name}");
        assert_eq!(told(&young), "the node is not Ready", "{name}");
        assert_eq!(young.reason("s", "worker-1"), "AwaitingNode", "{name}");
        let old = not_ready(done, "2023-11-14T21:00:00Z");
        assert_eq!(status(&old), "erroring", "{name}");
        assert!(
            told(&old).starts_with("the node went away at 2023-11-14T21:00:00Z"),
            "{name}"
        );
        assert_eq!(old.reason("s", "worker-1"), "NodeNotReturning", "{name}");
    }
    let ready = ended_in_another_boot();
    assert_eq!(status(&ready), "in_progress");
    assert_eq!(
        told(&ready),
        "the kubelet has not reported the boot that the agent runs in"
    );
}

/// The result cannot be recorded over a record that this version does not understand.
#[test]
fn a_leased_node_with_a_newer_record_says_so() {
    let newer = Stamp {
        format: 7,
        ..granted()
    };
    for phase in ["Running", "Complete"] {
        let status = json!({ "phase": phase, "bootID": "boot-of-worker-1", "machineID": "m" });
        let picture = leased(
            stamp(Picture::new(), newer.clone()),
            grant_and(json!({})),
            status,
        );
        assert_eq!(picture.reason("s", "worker-1"), "NewerVersion", "{phase}");
        let want = "the node's record was written by a newer version (form 7, this one knows 1): upgrade the coordinator, \
                    or delete the node's annotation skyhook.nvidia.com/stamp_s to have its packages applied again";
        assert_eq!(told(&picture), want, "{phase}");
        let writes = picture
            .plan()
            .effects
            .into_iter()
            .any(|effect| match effect {
                Effect::PatchNode { node, patch, .. } => {
                    node == "worker-1"
                        && patch
                            .annotations
                            .contains_key("skyhook.nvidia.com/reason_s")
                }
                _ => false,
            });
        assert!(writes, "{phase}: the Node says it as well");
    }
}

/// The conditions that name nodes, and the sentence of Ready when agents cannot be created.
#[test]
fn what_the_conditions_of_a_skyhook_say() {
    let picture = Picture::new()
        .node(
            1,
            &["spec", "taints"],
            json!([{ "key": "gpu", "effect": "NoSchedule" }]),
        )
        .node(
            2,
            &["metadata", "labels", skyhook_crds::names::IGNORE],
            json!("true"),
        )
        .annotated(3, "skyhook.nvidia.com/nodeState_s", "{");
    let said = |index: &Index| {
        let effects = picture.plan_of(index).effects;
        let status = effects.into_iter().find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => Some(*status),
            _ => None,
        });
        let status = status.expect("a status is written");
        let line = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            let type_ = c.type_.trim_start_matches("skyhook.nvidia.com/");
            format!("{type_} {}: {}", c.status, c.message)
        };
        let mut lines: Vec<String> = status.conditions.iter().map(line).collect();
        lines.retain(|line| !line.starts_with("Ready"));
        lines.sort();
        (lines, status)
    };
    let mut index = picture.index();
    let (lines, status) = said(&index);
    assert_eq!(
        lines,
        [
            "NodeStateMalformed True: nodeState annotation cannot be parsed on 1 node(s): worker-3",
            "NodesIgnored True: Node [worker-2] has ignore label set. Skipping.",
            "TaintNotTolerable True: Node [worker-1] has taints that are not tolerable. Skipping.",
        ]
    );
    let mut stored = index.picture.skyhooks()["s"].clone();
    stored.status = Some(status);
    stored.resource_version = "2".into();
    index.picture.skyhook(stored);
    for n in 1..=3 {
        let name = format!("worker-{n}");
        let mut node = testkit::node(&name);
        node.resource_version = "2".into();
        index.picture.node(node);
    }
    let (mut lines, status) = said(&index);
    lines.retain(|line| !line.starts_with("Transition"));
    assert_eq!(
        lines,
        [
            "NodesIgnored False: No nodes have ignore label set.",
            "TaintNotTolerable False: All nodes have tolerable taints.",
        ]
    );
    let ready = |status: &skyhook_crds::skyhook::SkyhookStatus| {
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        let ready = ready.expect("Ready is always there");
        format!("{}: {}", ready.reason, ready.message)
    };
    assert_eq!(
        ready(&status),
        "Progressing: 0/3 nodes complete; worker-2: waits for a slot of the interruptionBudget (BudgetExhausted) since \
         2023-11-14T22:13:20Z, and 1 more; 1 of 1 nodes of the interruptionBudget are in use"
    );
    let why = "pods cannot be created: the quota is used up".to_owned();
    index.apply(crate::index::Change::AgentsRefused(Some(why)), Mono::ZERO);
    let (_, status) = said(&index);
    assert_eq!(
        ready(&status),
        "AgentsRefused: pods cannot be created: the quota is used up"
    );
}

#[test]
fn one_record_that_cannot_be_read_harms_one_node() {
    let key = "skyhook.nvidia.com/nodeState_s";
    let condition = |picture: &Picture| {
        let effects = picture.plan().effects.into_iter();
        let mut statuses = effects.filter_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => Some(*status),
            _ => None,
        });
        let conditions = statuses.next().expect("a status is written").conditions;
        let mut conditions = conditions.into_iter();
        let found = conditions.find(|one| one.type_.ends_with("NodeStateMalformed"));
        found.map(|one| (one.type_, one.status, one.reason, one.message))
    };
    let one = Picture::new().annotated(1, key, "{");
    assert_eq!(one.reserved(), ["s/worker-2"]);
    let mut many = Picture::new();
    many.nodes = (1..=7)
        .map(|n| testkit::node_object(&format!("worker-with-a-name-{n}")))
        .collect();
    for n in 1..=7 {
        many = many.annotated(n, key, "{");
    }
    // What an earlier version wrote goes.
    let earlier = json!([{
        "type": "skyhook.nvidia.com/NodeStateMalformed", "status": "True", "reason": "NodeStateMalformed",
        "message": "m", "lastTransitionTime": "2026-11-26T12:00:00Z",
    }]);
    let healed = Picture::new().skyhook(&["status"], json!({ "conditions": earlier }));
    let want = |message: &str| {
        let words = ["NodeStateMalformed", "True", "ParseError", message];
        let [type_, status, reason, message] = words.map(str::to_owned);
        Some((type_, status, reason, message))
    };
    for (picture, want) in [
        (
            &one,
            want("nodeState annotation cannot be parsed on 1 node(s): worker-1"),
        ),
        (
            &many,
            want(
                "nodeState annotation cannot be parsed on 7 node(s): worker-wit..., worker-wit..., worker-wit..., \
                 worker-wit..., worker-wit... and 2 more",
            ),
        ),
        (&healed, None),
    ] {
        assert_eq!(condition(picture), want);
    }
}
