//! Nodes that carry more, or less, than the picture of a Skyhook says.

use skyhook_crds::installed::{Stamp, states_digest};

use super::leases::{leased, stamp};
use super::*;
use crate::index::Change;

/// worker-1 is complete; its result is of `revision`, taken on a machine that the Node called `machine`.
fn recorded(revision: &str, machine: &str) -> Picture {
    let stamped = Stamp {
        lease: "earlier".into(),
        revision: revision.to_owned(),
        machine_id: "m".into(),
        node_machine_id: machine.to_owned(),
        states: states_digest(&complete("1.0.0")),
        ..Stamp::default()
    };
    let picture = stamp(Picture::new(), stamped);
    picture.annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
}

fn current() -> String {
    let index = Picture::new().index();
    let checked = index.picture.skyhooks()["s"].checked.as_ref();
    checked.map(|c| c.revision.clone()).unwrap()
}

#[test]
fn a_machine_that_took_a_complete_node_over_is_noticed() {
    for (name, picture, want) in [
        (
            "the same machine",
            recorded(&current(), "m"),
            vec!["s/worker-2"],
        ),
        (
            "another",
            recorded(&current(), "before"),
            vec!["s/worker-1"],
        ),
        (
            "recorded before the Node's machine was",
            recorded(&current(), ""),
            vec!["s/worker-2"],
        ),
        (
            "a Node that does not say",
            recorded(&current(), "m").node(1, &["status", "nodeInfo"], json!({ "bootID": "b" })),
            vec!["s/worker-2"],
        ),
    ] {
        assert_eq!(picture.reserved(), want, "{name}");
    }
}

/// The record of the machine before names a package that has to go, and nothing else can be done on the node.
#[test]
fn a_record_of_another_machine_is_corrected_under_a_lease() {
    let gone = json!({
        "version": "1.0.0", "image": "r/aa", "uninstall": { "enabled": true, "apply": true },
    });
    let waits = json!({ "version": "1.0.0", "image": "r/bb", "dependsOn": { "aa": "1.0.0" } });
    for (name, packages) in [
        ("alone", json!({ "aa": gone })),
        (
            "with one that waits for it",
            json!({ "aa": gone, "bb": waits }),
        ),
        ("removed from the spec", json!({})),
    ] {
        let picture = recorded("s-other", "before").skyhook(&["spec", "packages"], packages);
        assert_eq!(picture.reserved(), ["s/worker-1"], "{name}");
    }
}

/// What is planned for worker-1 when its result is of a revision with this number; the Skyhook's own has number 1.
fn with_result_of(number: i64, lease: bool) -> Vec<String> {
    let picture = recorded("s-other", "m")
        .annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("2.0.0"))
        .annotated(
            1,
            "skyhook.nvidia.com/stamp_s",
            &Stamp {
                lease: "earlier".into(),
                revision: "s-other".into(),
                states: states_digest(&complete("2.0.0")),
                ..Stamp::default()
            }
            .render(),
        );
    let picture = if lease {
        let installed: Value = serde_json::from_str(&complete("2.0.0")).unwrap();
        let stamp = json!({ "lease": "earlier", "revision": "s-other" });
        let spec = json!({ "installed": installed, "stamp": stamp });
        leased(picture, spec, json!(null))
    } else {
        picture
    };
    let mut index = picture.index();
    let mut data =
        serde_json::to_value(&index.picture.skyhooks()["s"].checked.as_ref().unwrap().data)
            .unwrap();
    data["packages"]["aa"]["version"] = json!("2.0.0");
    let other = json!({
        "metadata": {
            "name": "s-other", "uid": "o", "resourceVersion": "1",
            "labels": { "skyhook.nvidia.com/name": "s" },
            "annotations": { "skyhook.nvidia.com/owner": "uid-of-s" },
        },
        "revision": number, "data": data,
    });
    let other = Box::new(serde_json::from_value(other).unwrap());
    index.apply(Change::Revision(other), Mono::ZERO);
    let plan = picture.plan_of(&index);
    plan.effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::ReserveLease { node, .. } if node == "worker-1" => Some("reserved".to_owned()),
            Effect::WithdrawLease { why, .. } => Some(why.to_string()),
            Effect::PatchNode { node, why, .. }
                if node == "worker-1" && why.contains(&Cause::Grant) =>
            {
                Some("stamped".to_owned())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_revision_that_the_node_is_past_is_not_brought_back() {
    for (name, number, lease, want) in [
        ("the result is older", 0, false, vec!["reserved"]),
        (
            "the result is newer: the picture of the Skyhook lags",
            2,
            false,
            vec![],
        ),
        ("a lease over an older result", 0, true, vec!["stamped"]),
        (
            "a lease over a newer result",
            2,
            true,
            vec!["the node has a newer revision"],
        ),
    ] {
        assert_eq!(with_result_of(number, lease), want, "{name}");
    }
}

/// What worker-1 gets when NVIDIA Skyhook left package aa configured on it, and noted these changed keys: the interrupts
/// that its lease names; `None` if it gets no lease.
fn left_configured(updates: &[&str], result: bool) -> Option<Vec<String>> {
    let package = json!({ "aa": {
        "version": "1.0.0", "image": "r/aa", "interrupt": { "type": "reboot" },
        "configMap": { "cron.conf": "x", "motd": "y" },
        "configInterrupts": { "cron*": { "type": "service", "services": ["cron"] } },
    } });
    let mut picture = Picture::new()
        .annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
        .skyhook(&["spec", "packages"], package)
        .skyhook(
            &["status"],
            json!({ "status": "in_progress", "configUpdates": { "aa": updates } }),
        );
    if result {
        let index = picture.index();
        let checked = index.picture.skyhooks()["s"].checked.as_ref();
        let stamped = Stamp {
            lease: "earlier".into(),
            revision: checked.unwrap().revision.clone(),
            states: states_digest(&complete("1.0.0")),
            ..Stamp::default()
        };
        picture = stamp(picture, stamped);
    }
    let effects = picture.plan().effects;
    effects.iter().find_map(|effect| match effect {
        Effect::ReserveLease { node, spec } if node == "worker-1" => {
            let left = spec.interrupts_left.iter();
            Some(
                left.map(|(package, left)| format!("{package} {:?}", left.kind))
                    .collect(),
            )
        }
        _ => None,
    })
}

#[test]
fn a_node_that_nvidia_skyhook_left_before_an_interrupt_is_not_taken_for_complete() {
    for (name, updates, result, want) in [
        ("its own interrupt", vec![], false, Some("aa Reboot")),
        (
            "the one of a key that changed",
            vec!["cron.conf"],
            false,
            Some("aa Service"),
        ),
        ("a key that needs none", vec!["motd"], false, None),
        ("a result of ours says so", vec![], true, None),
    ] {
        let left = left_configured(&updates, result).map(|left| left.join("; "));
        assert_eq!(left.as_deref(), want, "{name}");
    }
}

#[test]
fn a_change_of_what_nvidia_skyhook_noted_is_seen() {
    let package =
        json!({ "aa": { "version": "1.0.0", "image": "r/aa", "interrupt": { "type": "reboot" } } });
    let status =
        |updates: Value| json!({ "status": "complete", "configUpdates": { "aa": updates } });
    let picture = Picture::new()
        .annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
        .skyhook(&["spec", "packages"], package)
        .skyhook(&["status"], status(json!(["motd"])));
    let mut index = picture.index();
    let mut cache = Cache::default();
    let now = Now {
        mono: picture.now,
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    let leased = |plan: &Plan| {
        let mut effects = plan.effects.iter();
        effects
            .any(|effect| matches!(effect, Effect::ReserveLease { node, .. } if node == "worker-1"))
    };
    assert!(!leased(&cache.plan(&index.view(&picture.settings, now))));
    let mut object = picture.skyhooks[0].clone();
    set(&mut object, &["status"], status(json!([])));
    set(&mut object, &["metadata", "resourceVersion"], json!("2"));
    index.apply(
        Change::Skyhook(Box::new(serde_json::from_value(object).unwrap())),
        Mono::ZERO,
    );
    assert!(leased(&cache.plan(&index.view(&picture.settings, now))));
}
