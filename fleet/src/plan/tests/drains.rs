//! What Nodes and Skyhooks say about drains that do not go on.

use super::leases::{effects, grant_and, granted, leased, phase, stamp, with_package};
use super::*;
use crate::events::{Subject, events};
use skyhook_crds::names;
use skyhook_crds::skyhook::SkyhookStatus;

const SINCE: &str = "2023-11-14T22:13:10Z";
const START: &str = "skyhook.nvidia.com/drainStart_s";
const BLOCKED: &str = "skyhook.nvidia.com/drainBlocked_s";

fn blocker(pod: &str, reason: &str, cause: Option<&str>) -> Value {
    json!({ "pod": pod, "reason": reason, "cause": cause })
}

fn budget(pod: &str) -> Value {
    blocker(
        pod,
        "the disruption budget web needs 2",
        Some("PodDisruptionBudget"),
    )
}

fn state(state: &str, blockers: &[Value]) -> Value {
    json!({ "state": state, "since": SINCE, "blockers": blockers })
}

fn awaiting() -> Value {
    let mut status = with_package("AwaitingDrain", "in_progress");
    status["needsDrain"] = json!(true);
    status
}

/// worker-1 drains.
fn draining(drain: &Value) -> Picture {
    let picture = stamp(Picture::new(), granted())
        .annotated(
            1,
            names::CORDON_OWNERS,
            r#"{"wasUnschedulable":false,"owners":{"s":"lease"}}"#,
        )
        .node(1, &["spec", "unschedulable"], json!(true));
    leased(picture, grant_and(json!({ "drain": drain })), awaiting())
}

/// Each of some workers drains as its drain says.
fn all_drain(drains: &[Value]) -> Picture {
    let mut picture = draining(&drains[0]).skyhook(&["spec", "interruptionBudget"], Value::Null);
    for (n, drain) in drains.iter().enumerate().skip(1) {
        let node = format!("worker-{}", n + 1);
        let mut lease = picture.leases[0].clone();
        lease["metadata"]["name"] = json!(node);
        lease["metadata"]["uid"] = json!(format!("lease-{node}"));
        lease["spec"]["node"] = json!({ "name": node, "uid": format!("uid-of-{node}") });
        lease["spec"]["drain"] = drain.clone();
        picture.leases.push(lease);
    }
    picture
}

/// The annotations about the drain that are written on worker-1.
fn written(picture: &Picture) -> (Option<Option<String>>, Option<Option<String>>) {
    let patches = picture.plan().effects.into_iter();
    let mut patches = patches.filter_map(|effect| match effect {
        Effect::PatchNode { node, patch, .. } if node == "worker-1" => Some(patch),
        _ => None,
    });
    let patch = patches.next().unwrap_or_default();
    let of = |key: &str| patch.annotations.get(key).cloned();
    (of(START), of(BLOCKED))
}

fn status(picture: &Picture) -> SkyhookStatus {
    let effects = picture.plan().effects.into_iter();
    let mut statuses = effects.filter_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(*status),
        _ => None,
    });
    statuses.next().expect("a status is written")
}

/// Reason and message of a condition.
fn condition(picture: &Picture, type_: &str) -> Option<(String, String)> {
    let conditions = status(picture).conditions.into_iter();
    let mut holds = conditions.filter(|one| one.type_ == type_ && one.status == "True");
    holds.next().map(|one| (one.reason, one.message))
}

#[test]
fn a_node_names_the_pods_that_block_its_drain() {
    let json = |pods: &str| Some(Some(pods.to_owned()));
    let since = || Some(Some(SINCE.to_owned()));
    let bare = blocker("b/bare", "no controller", Some("UnmanagedPod"));
    let scratch = blocker("a/scratch", "emptyDir", Some("EmptyDirData"));
    let webhook = blocker("default/vm", "the VM is moved", None);
    let awaited = blocker("default/train", "matches", Some("NonInterruptLabels"));
    let newer = blocker("default/new", "something else", Some("Quota"));
    let other = blocker("node/worker-2", "is not Ready", None);
    for (name, drain, want) in [
        (
            "a budget",
            state("Draining", &[budget("default/web")]),
            (
                since(),
                json(
                    r#"[{"namespace":"default","name":"web","reason":"PodDisruptionBudget","detail":"the disruption budget web needs 2"}]"#,
                ),
            ),
        ),
        (
            "several causes",
            state("Draining", &[scratch, bare, webhook.clone()]),
            (
                since(),
                json(
                    r#"[{"namespace":"a","name":"scratch","reason":"EmptyDirData","detail":"emptyDir"},{"namespace":"b","name":"bare","reason":"UnmanagedPod","detail":"no controller"}]"#,
                ),
            ),
        ),
        (
            "nobody has to act",
            state("Draining", &[webhook, newer, other]),
            (since(), None),
        ),
        ("it waits", state("Waiting", &[awaited]), (None, None)),
        ("it has ended", state("Drained", &[]), (None, None)),
        ("it has not begun", json!({}), (None, None)),
    ] {
        assert_eq!(written(&draining(&drain)), want, "{name}");
    }
}

#[test]
fn what_a_node_says_about_a_drain_goes_when_the_drain_does() {
    let told = |picture: Picture| {
        picture
            .annotated(1, START, SINCE)
            .annotated(1, BLOCKED, "[]")
    };
    let web = [budget("default/web")];
    let said = written(&draining(&state("Draining", &web))).1.flatten();
    let gone = (Some(None), Some(None));
    let stopped = |reason: &str| {
        let stop = json!({ "stop": { "reason": reason, "since": SINCE }, "drain": state("Draining", &web) });
        leased(
            stamp(Picture::new(), granted()),
            grant_and(stop),
            phase("Stopped"),
        )
    };
    let deselected = |picture: Picture| {
        picture.skyhook(
            &["spec", "nodeSelectors"],
            json!({ "matchLabels": { "a": "b" } }),
        )
    };
    let edited = stamp(
        Picture::new().annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("0.9.0")),
        granted(),
    );
    let edited = leased(edited, grant_and(json!({})), phase("Stopped"));
    for (name, picture, want) in [
        (
            "it goes on as before",
            draining(&state("Draining", &web)).annotated(1, BLOCKED, said.as_deref().unwrap()),
            (Some(Some(SINCE.to_owned())), None),
        ),
        (
            "the budget gives way",
            told(draining(&state("Draining", &[]))),
            (None, Some(None)),
        ),
        (
            "every pod has left",
            told(draining(&state("Drained", &[]))),
            gone.clone(),
        ),
        (
            "a pod came that must not be interrupted",
            told(draining(&state("Waiting", &[]))),
            gone.clone(),
        ),
        (
            "it took too long",
            told(stopped("DrainTimedOut")),
            gone.clone(),
        ),
        ("the record was edited", told(edited), gone.clone()),
        (
            "the Skyhook no longer selects the node, and its agent has stopped",
            told(deselected(stopped("Deleted"))),
            gone.clone(),
        ),
        (
            "the Skyhook no longer selects the node, and the lease is gone",
            told(deselected(Picture::new())),
            gone.clone(),
        ),
        (
            "the Skyhook does not exist any more",
            told(Picture {
                skyhooks: Vec::new(),
                ..Picture::new()
            }),
            gone.clone(),
        ),
        (
            "an administrator gave the slot back by force",
            told(Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 }))),
            gone,
        ),
    ] {
        assert_eq!(written(&picture), want, "{name}");
    }
}

/// The name part of an annotation has at most 63 characters.
#[test]
fn a_long_name_leaves_out_what_does_not_fit() {
    for (length, want) in [
        (50, vec!["drainBlocked_", "drainStart_"]),
        (51, vec!["drainStart_"]),
        (52, vec!["drainStart_"]),
        (53, vec![]),
    ] {
        let name = "s".repeat(length);
        let mut picture = draining(&state("Draining", &[budget("default/web")]));
        set(&mut picture.skyhooks[0], &["metadata", "name"], json!(name));
        let lease = &mut picture.leases[0];
        set(lease, &["spec", "skyhook", "name"], json!(name));
        let effects = picture.plan().effects;
        let patch = effects.iter().find_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if node == "worker-1" => Some(patch),
            _ => None,
        });
        let keys = &patch.expect("the status is written").annotations;
        assert!(keys.contains_key(&names::status(&name)), "{length}");
        let is_long = |key: &&String| key.split('/').any(|part| part.len() > 63);
        assert_eq!(keys.keys().find(is_long), None, "{length}");
        let drains = keys.keys().filter_map(|key| {
            let name = key.strip_prefix("skyhook.nvidia.com/")?;
            let kind = name.trim_end_matches('s');
            kind.starts_with("drain").then_some(kind)
        });
        assert_eq!(drains.collect::<Vec<_>>(), want, "{length}");
    }
}

#[test]
fn a_skyhook_says_which_drains_are_blocked_by_what() {
    let web = || state("Draining", &[budget("default/web")]);
    let bare = || {
        let bare = blocker("default/bare", "no controller", Some("UnmanagedPod"));
        state("Draining", &[bare])
    };
    let held = |type_: &str, reason: &str, message: &str| {
        Some((type_.to_owned(), reason.to_owned(), message.to_owned()))
    };
    let webhook = blocker("default/vm", "the VM is moved", None);
    let train = blocker("default/train", "matches", Some("NonInterruptLabels"));
    let many: Vec<Value> = (0..10).map(|n| budget(&format!("default/a-{n}"))).collect();
    let paused = |picture: Picture| {
        picture.skyhook(
            &["metadata", "annotations"],
            json!({ names::PAUSE: "true" }),
        )
    };
    for (name, picture, want) in [
        (
            "a budget",
            draining(&web()),
            held(
                "DrainBlocked",
                "PodDisruptionBudget",
                "1/3 nodes blocked draining (worker-1); default/web on worker-1: the disruption budget web needs 2",
            ),
        ),
        (
            "two causes on two nodes",
            all_drain(&[web(), bare()]),
            held(
                "DrainBlocked",
                "MultipleCauses",
                "2/3 nodes blocked draining (worker-1, worker-2); default/web on worker-1: the disruption budget web needs 2; default/bare on worker-2: no controller",
            ),
        ),
        (
            "a webhook moves the pod itself",
            draining(&state("Draining", &[webhook])),
            None,
        ),
        (
            "it is paused meanwhile",
            paused(draining(&web())),
            held(
                "DrainBlocked",
                "PodDisruptionBudget",
                "1/3 nodes blocked draining (worker-1); default/web on worker-1: the disruption budget web needs 2",
            ),
        ),
        (
            "more pods than are named",
            all_drain(&[state("Draining", &many), web(), web()]),
            held(
                "DrainBlocked",
                "PodDisruptionBudget",
                &format!(
                    "3/3 nodes blocked draining (worker-1, worker-2, worker-3); {}",
                    (0..10)
                        .map(|n| format!(
                            "default/a-{n} on worker-1: the disruption budget web needs 2"
                        ))
                        .collect::<Vec<_>>()
                        .join("; ")
                ),
            ),
        ),
        (
            "pods that must not be interrupted",
            all_drain(&[state("Waiting", std::slice::from_ref(&train)), json!({})]),
            held(
                "Blocked",
                "NonInterruptPodsRunning",
                "1/3 nodes wait for pods that podNonInterruptLabels matches (worker-1); default/train on worker-1",
            ),
        ),
        ("every pod has left", draining(&state("Drained", &[])), None),
    ] {
        let conditions = ["DrainBlocked", "Blocked"].into_iter();
        let mut holds = conditions.filter_map(|type_| {
            let (reason, message) = condition(&picture, type_)?;
            Some((type_.to_owned(), reason, message))
        });
        assert_eq!(holds.next(), want, "{name}");
        assert_eq!(holds.next(), None, "{name}");
    }
}

#[test]
fn a_condition_about_a_drain_is_removed_when_it_no_longer_holds() {
    let web = state("Draining", &[budget("default/web")]);
    let before = status(&draining(&web));
    let types = |status: &SkyhookStatus| {
        let types = status.conditions.iter().map(|one| one.type_.clone());
        types.collect::<Vec<_>>()
    };
    assert!(types(&before).contains(&"DrainBlocked".to_owned()));
    let mut after = draining(&state("Draining", &[]));
    after = after.skyhook(&["status"], serde_json::to_value(&before).unwrap());
    assert!(!types(&status(&after)).contains(&"DrainBlocked".to_owned()));
}

/// Pods come and go while a drain goes on, and another replica may lead.
#[test]
fn a_drain_is_told_once_to_be_blocked() {
    let set = |drain: &Value| Effect::SetDrain {
        node: "worker-1".into(),
        at: version("lease", "5"),
        drain: serde_json::from_value(drain.clone()).unwrap(),
    };
    let web = || state("Draining", &[budget("default/web")]);
    let free = || state("Draining", &[]);
    let told = |index: &Index, drain: &Value| -> Vec<(String, String)> {
        let told = events(index, &set(drain)).into_iter();
        let told = told.map(|event| {
            let of = match event.subject {
                Subject::Skyhook { name, .. } | Subject::Node { name, .. } => name,
            };
            assert!(event.warning && event.reason == "DrainBlocked", "{of}");
            (of, event.note)
        });
        told.collect()
    };
    let note = "node [worker-1] cannot be drained for [skyhook:s]: default/web: the disruption budget web needs 2";
    let both = ["s", "worker-1"].map(|of| (of.to_owned(), note.to_owned()));
    let mut index = draining(&free()).index();
    assert_eq!(told(&index, &free()), []);
    assert_eq!(told(&index, &web()), both);
    // The watch delivers this drain, then one that nothing blocks any more.
    for (version, drain) in [("6", web()), ("7", free())] {
        let mut lease = draining(&drain).leases.remove(0);
        lease["metadata"]["resourceVersion"] = json!(version);
        let lease = serde_json::from_value(lease).unwrap();
        index.apply(crate::index::Change::Lease(Box::new(lease)), Mono::ZERO);
        assert_eq!(told(&index, &web()), [], "{version}");
    }
    // Another replica finds it blocked.
    assert_eq!(told(&draining(&web()).index(), &web()), []);
    // A new drain is told.
    let mut later = web();
    later["since"] = json!("2026-01-01T01:00:00Z");
    let mut lease = draining(&later).leases.remove(0);
    lease["metadata"]["resourceVersion"] = json!("8");
    lease["spec"]["drain"]["blockers"] = json!([]);
    let lease = serde_json::from_value(lease).unwrap();
    index.apply(crate::index::Change::Lease(Box::new(lease)), Mono::ZERO);
    assert_eq!(told(&index, &later), both);
}

/// The deadline of a drain that a budget blocks.
#[test]
fn a_blocked_drain_ends_at_its_deadline() {
    let config = json!({ "timeout": "5s" });
    let late = draining(&state("Draining", &[budget("default/web")]));
    let late = late.skyhook(&["spec", "drainConfig"], config);
    assert!(effects(&late.plan()).contains(&"StopLease Some(DrainTimedOut)".to_owned()));
    let stop = json!({ "reason": "DrainTimedOut", "since": SINCE });
    let mut stopped = late
        .annotated(1, names::cordon("s").as_str(), "true")
        .annotated(1, START, SINCE)
        .annotated(1, BLOCKED, "[]");
    stopped.leases[0]["spec"]["stop"] = stop;
    stopped.leases[0]["status"] = with_package("Stopped", "in_progress");
    let effects = stopped.plan().effects.into_iter();
    let mut results = effects.filter_map(|effect| match effect {
        Effect::PatchNode { patch, why, .. } if why.contains(&Cause::Result) => Some(patch),
        _ => None,
    });
    let patch = results.next().expect("the result is recorded");
    assert_eq!(patch.unschedulable, Some(false));
    for key in [
        START,
        BLOCKED,
        names::CORDON_OWNERS,
        "skyhook.nvidia.com/cordon_s",
    ] {
        assert_eq!(patch.annotations.get(key), Some(&None), "{key}");
    }
}

/// A node that somebody else cordoned is drained at once, and the guard lets it pass.
#[test]
fn a_cordon_of_somebody_else_is_enough_for_a_drain() {
    let mut status = with_package("AwaitingDrain", "in_progress");
    status["needsDrain"] = json!(true);
    let picture = stamp(Picture::new(), granted()).node(1, &["spec", "unschedulable"], json!(true));
    let picture = leased(picture, grant_and(json!({})), status);
    let index = picture.index();
    let effects = picture.plan_of(&index).effects;
    let patch = effects.iter().find_map(|effect| match effect {
        Effect::PatchNode { patch, why, .. } if why.contains(&Cause::Cordon) => Some(patch),
        _ => None,
    });
    let patch = patch.expect("the owner is recorded");
    assert_eq!(patch.unschedulable, None);
    assert!(!patch.annotations.contains_key(&names::cordon("s")));
    let cordoned = testkit::patched(&index.picture.nodes()["worker-1"], patch);
    assert!(cordoned.cordon.was_unschedulable);
    let mut index = picture.index();
    index.picture.node(cordoned);
    let drained = Effect::SetDrain {
        node: "worker-1".into(),
        at: version("lease", "5"),
        drain: skyhook_crds::lease::Drain {
            state: skyhook_crds::lease::DrainState::Drained,
            ..Default::default()
        },
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
    for effect in [drained, evict] {
        let checked = crate::guard::check(&index, &picture.settings, &effect);
        assert_eq!(checked, Ok(()), "{}", effect.kind());
    }
}

/// A lease was abandoned in the middle of a drain, while the spec of its Skyhook was not valid.
#[test]
fn a_skyhook_that_is_not_valid_leaves_no_drain_behind() {
    let left = |picture: &Picture| {
        let effects = picture.plan().effects.into_iter();
        let mut patches = effects.filter_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if node == "worker-1" => Some(patch),
            _ => None,
        });
        let patch = patches.next().unwrap_or_default();
        [START, BLOCKED].map(|key| patch.annotations.get(key) == Some(&None))
    };
    let marked = |picture: Picture| {
        let picture = picture.skyhook(&["spec", "packages", "aa", "version"], json!("none"));
        picture
            .annotated(1, START, SINCE)
            .annotated(1, BLOCKED, "[]")
    };
    assert_eq!(left(&marked(Picture::new())), [true, true]);
    let leased = draining(&state("Draining", &[]));
    assert_eq!(left(&marked(leased)), [false, false]);
}
