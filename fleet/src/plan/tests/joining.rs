//! Nodes that join: the taint comes before anything else. Nodes that booted without being asked to: the taint comes back.

use super::leases::{grant_and, granted, leased, stamp, with_package};
use super::taints::{AUTO, OURS, required, tainted, written, written_by};
use super::*;
use crate::events;
use crate::guard::{self, Broken};
use crate::plan::reason::{ReasonCode, Withdrawal};
use skyhook_crds::installed::{Stamp, states_digest};
use skyhook_crds::names;

mod reboots;

const NOTHING: [&str; 0] = [];
const MARK: &str = "autoTaint_skyhook.nvidia.com: true";

fn auto() -> Picture {
    required(json!({ "autoTaintNewNodes": true }))
}

fn ours() -> String {
    format!("taints [{OURS}]")
}

/// The whole write to a node: keys of annotations and labels, and types of conditions.
fn keys(picture: &Picture, index: &Index, node: &str) -> Vec<String> {
    let effects = picture.plan_of(index).effects;
    let patch = effects.into_iter().find_map(|effect| match effect {
        Effect::PatchNode {
            node: name, patch, ..
        } if name == node => Some(patch),
        _ => None,
    });
    let patch = patch.unwrap_or_default();
    let annotations = patch.annotations.into_keys();
    annotations
        .chain(patch.labels.into_keys())
        .chain(patch.conditions.into_keys())
        .collect()
}

/// Skyhook `t` is not required.
fn other() -> Value {
    skyhook("t", json!({ "priority": 300 }))
}

#[test]
fn the_taint_comes_before_anything_else() {
    let at_first = || auto().another(other());
    let foreign = ["a.example/b", names::DO_NOT_DISRUPT];
    let annotated = |key: &str| auto().annotated(1, key, "true");
    let two = auto().another(skyhook(
        "t",
        json!({ "runtimeRequired": true, "autoTaintNewNodes": true }),
    ));
    let on_skyhook =
        |key: &str| auto().skyhook(&["metadata", "annotations"], json!({ key: "true" }));
    let only = json!({ "autoTaintNewNodes": true, "packages": packages() });
    let ignored = auto().node(1, &["metadata", "labels", names::IGNORE], json!("true"));
    let windows = auto().node(
        1,
        &["metadata", "labels", "kubernetes.io/os"],
        json!("windows"),
    );
    let time = json!("2026-01-01T00:00:00Z");
    for (name, picture, tainted, reserved) in [
        ("T3a", auto(), true, false),
        ("T3b", annotated(foreign[0]), true, false),
        ("T3b: the autoscalers'", annotated(foreign[1]), true, false),
        (
            "T3c",
            annotated("nodewright.nvidia.com/version_x"),
            false,
            true,
        ),
        (
            "T3c: ours",
            annotated("skyhook.nvidia.com/version_x"),
            false,
            true,
        ),
        ("T3e", Picture::new().skyhook(&["spec"], only), false, true),
        ("T3f: paused", on_skyhook(names::PAUSE), true, false),
        ("T3f: disabled", on_skyhook(names::DISABLE), true, false),
        (
            "T3f: not valid",
            auto().skyhook(&["spec", "packages"], json!(7)),
            true,
            false,
        ),
        ("T3g", two, true, false),
        ("T3h", at_first(), true, false),
        ("T4e", ignored, false, false),
        ("a Windows node", windows, false, false),
        (
            "it is being deleted",
            auto().skyhook(&["metadata", "deletionTimestamp"], time),
            false,
            false,
        ),
    ] {
        let given = written(&picture, "worker-1");
        let want = if tainted {
            vec![ours(), MARK.to_owned()]
        } else {
            Vec::new()
        };
        assert_eq!(given, want, "{name}");
        if tainted {
            let all = keys(&picture, &picture.index(), "worker-1");
            assert_eq!(all, [AUTO], "{name}: nothing else is written");
            let reason = picture.reason("s", "worker-1");
            assert!(["", "AutoTaintPending", "Paused", "Disabled"].contains(&reason.as_str()));
        }
        let given = picture.reserved();
        let is_reserved = given.iter().any(|one| one.ends_with("/worker-1"));
        assert_eq!(is_reserved, reserved, "{name}: {given:?}");
    }
    // T3a and T3h: both Skyhooks say why.
    for skyhook in ["s", "t"] {
        assert_eq!(at_first().reason(skyhook, "worker-1"), "AutoTaintPending");
    }
    // T3a: the taint comes after those that are there.
    let after = super::taints::tainted(auto(), 1, &["x:NoSchedule"]);
    let want = [format!("taints [x:NoSchedule, {OURS}]"), MARK.to_owned()];
    assert_eq!(written(&after, "worker-1"), want);
    // T3d: a kubelet brought it.
    let there = tainted(auto(), 1, &[OURS]);
    let given = written(&there, "worker-1");
    assert!(
        given
            .iter()
            .all(|line| !line.starts_with("autoTaint") && !line.starts_with("taints")),
        "{given:?}"
    );
    assert_eq!(there.reserved(), ["s/worker-1"]);
    // T4e: the reason is the label.
    let ignored = auto().node(1, &["metadata", "labels", names::IGNORE], json!("true"));
    assert_eq!(ignored.reason("s", "worker-1"), "NodeIgnored");
}

/// T10a: the annotation of a configured taint, with its key.
#[test]
fn the_configured_taint_is_the_one_that_is_put_on() {
    let mut picture = auto();
    picture.settings.runtime_taint = "a/b=c:NoExecute".parse().unwrap();
    let want = ["taints [a/b=c:NoExecute]", "autoTaint_a.b: true"];
    assert_eq!(written(&picture, "worker-1"), want);
}

/// The watch of Nodes delivers a new worker-1 at this time.
fn joins(picture: &Picture, at: Mono) -> Index {
    let mut index = picture.index();
    let mut node = testkit::node_object("worker-1");
    node["metadata"]["uid"] = json!("another");
    let node = serde_json::from_value(node).unwrap();
    index.apply(crate::index::Change::Node(Box::new(node)), at);
    index
}

#[test]
fn a_new_node_is_told_nothing_for_two_seconds_unless_it_has_a_lease() {
    let base = Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 }));
    let at = |seconds: u64| Picture {
        now: Mono::from_secs(seconds),
        ..base.clone()
    };
    let index = joins(&base, Mono::from_secs(100));
    // T3i.
    let early = at(101);
    assert_eq!(keys(&early, &index, "worker-1"), NOTHING);
    assert_eq!(early.plan_of(&index).wake_at, Some(Mono::from_secs(102)));
    let told = keys(&at(102), &index, "worker-1");
    assert!(told.contains(&names::status("s")), "{told:?}");
    // T3j: a slot is free, so the lease is reserved, and then stamped, at once.
    let free = Picture {
        now: Mono::from_secs(101),
        ..Picture::new()
    };
    let index = joins(&free, Mono::from_secs(100));
    let reserves = free.plan_of(&index).effects;
    assert!(
        reserves.iter().any(
            |effect| matches!(effect, Effect::ReserveLease { node, .. } if node == "worker-1")
        )
    );
    let reserved = Picture {
        now: Mono::from_secs(1),
        ..leased(Picture::new(), json!({}), Value::Null)
    };
    let stamped = keys(&reserved, &reserved.index(), "worker-1");
    assert!(stamped.contains(&names::stamp("s")), "{stamped:?}");
}

#[test]
fn a_taint_that_is_refused_is_an_event_of_the_node() {
    let picture = auto();
    let index = picture.index();
    let effects = picture.plan_of(&index).effects;
    let effect = effects.iter().find(|effect| effect.kind() == "PatchNode");
    // T3k.
    let events = events::refused(&index, effect.unwrap(), "forbidden");
    let said: Vec<(bool, &str, &str)> = events
        .iter()
        .map(|event| (event.warning, event.reason, event.note.as_str()))
        .collect();
    let note = format!(
        "the taint {OURS} cannot be put on node [worker-1], and nothing is started there before: forbidden"
    );
    assert_eq!(said, [(true, "AutoTaint", note.as_str())]);
    assert!(matches!(&events[0].subject, events::Subject::Node { name, .. } if name == "worker-1"));
}

#[test]
fn the_guard_lets_nothing_come_before_the_taint() {
    let ours = OURS.parse::<crate::taints::RuntimeTaint>().unwrap().taint();
    let mark = |key: &str| NodePatch::default().annotation(key, Some("complete".into()));
    let status = names::status("t");
    let with_taint = NodePatch {
        taints: Some(vec![ours]),
        ..mark(&status)
    };
    let grant = [Cause::Grant, Cause::Status];
    let ignored = auto().node(1, &["metadata", "labels", names::IGNORE], json!("true"));
    let known = auto().annotated(1, &names::status("s"), "complete");
    for (name, picture, patch, why, want) in [
        (
            "a status",
            auto(),
            mark(&status),
            &grant[1..],
            Err(Broken::FirstMark),
        ),
        ("with the taint", auto(), with_taint, &grant[1..], Ok(())),
        ("a grant", auto(), mark(&status), &grant, Ok(())),
        (
            "nobody wants the taint",
            required(json!({})),
            mark(&status),
            &grant[1..],
            Ok(()),
        ),
        ("ignored", ignored, mark(&status), &grant[1..], Ok(())),
        ("not new", known, mark(&status), &grant[1..], Ok(())),
        (
            "tainted",
            tainted(auto(), 1, &[OURS]),
            mark(&status),
            &grant[1..],
            Ok(()),
        ),
        (
            "somebody else's annotation",
            auto(),
            mark(names::DO_NOT_DISRUPT),
            &grant[1..],
            Ok(()),
        ),
        (
            "a removal",
            auto(),
            NodePatch::default().annotation(&status, None),
            &grant[1..],
            Ok(()),
        ),
    ] {
        let effect = Effect::PatchNode {
            node: "worker-1".into(),
            at: version("uid-of-worker-1", "1"),
            patch,
            why: why.iter().copied().collect(),
        };
        let given = guard::check(&picture.index(), &picture.settings, &effect);
        assert_eq!(given, want, "{name}");
    }
}

/// All packages have to go, and none of them was ever there: the first write to the node takes its taint off.
#[test]
fn a_node_that_joins_tainted_where_nothing_is_to_be_done_loses_its_taint_at_once() {
    let going = json!({ "aa": {
        "version": "1.0.0", "image": "example.com/aa", "uninstall": { "enabled": true, "apply": true },
    } });
    let picture = tainted(auto(), 1, &[OURS]).skyhook(&["spec", "packages"], going);
    let index = picture.index();
    let mut untainted = false;
    for effect in picture.plan_of(&index).effects {
        let given = guard::check(&index, &picture.settings, &effect);
        assert_eq!(given, Ok(()), "{effect:?}");
        if let Effect::PatchNode { node, patch, .. } = &effect {
            untainted |= node == "worker-1" && patch.taints == Some(Vec::new());
        }
    }
    assert!(untainted);
}

/// R1: how long a node is left alone whose agent has not accepted a lease.
#[test]
fn a_node_that_has_just_joined_is_tried_again_soon() {
    for (created, want) in [
        ("2023-11-14T22:10:20Z", Withdrawal::AgentNotYetThere),
        ("2023-11-14T22:02:20Z", Withdrawal::AgentNotResponding),
        ("", Withdrawal::AgentNotResponding),
    ] {
        let picture = leased(
            stamp(Picture::new(), granted()),
            grant_and(json!({})),
            Value::Null,
        );
        let picture = if created.is_empty() {
            picture
        } else {
            picture.node(1, &["metadata", "creationTimestamp"], json!(created))
        };
        let effects = picture.plan().effects;
        let why = effects.iter().find_map(|effect| match effect {
            Effect::WithdrawLease { why, .. } => Some(*why),
            _ => None,
        });
        assert_eq!(why, Some(want), "{created}");
    }
}

#[test]
fn what_is_pending_says_which_taint() {
    let picture = auto();
    let effects = picture.plan().effects;
    let said = effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => status.node_reasons.get("worker-1").cloned(),
        _ => None,
    });
    let said = said.unwrap();
    let want = format!("the taint {OURS} is put on the node before anything else is written there");
    assert_eq!(
        (said.reason, said.message),
        (ReasonCode::AutoTaintPending.to_string(), want)
    );
    let index = picture.index();
    assert_eq!(
        written_by(&picture, &index, "worker-2"),
        [ours(), MARK.to_owned()]
    );
}
