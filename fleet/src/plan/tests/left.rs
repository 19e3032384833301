//! Nodes that a Skyhook does not select any more.

use skyhook_crds::installed::{Stamp, states_digest};
use skyhook_crds::names;

use super::leases::{grant_and, leased, phase};
use super::*;
use crate::index::Change;
use crate::plan::cache::Cache;

/// The picture, in which Skyhook `s` selects no node.
fn deselected(picture: Picture) -> Picture {
    let selector = json!({ "matchLabels": { "a": "b" } });
    picture.skyhook(&["spec", "nodeSelectors"], selector)
}

/// worker-1 as Skyhook `s` leaves it when a package fails.
fn failed(picture: &mut Picture) {
    let record = complete("1.0.0");
    let stamp = Stamp {
        lease: "earlier".into(),
        states: states_digest(&record),
        ..Stamp::default()
    };
    let conditions = [
        names::not_ready_condition("s"),
        names::erroring_condition("s"),
    ];
    let conditions = conditions.map(|type_| json!({ "type": type_, "status": "True" }));
    let node = &mut picture.nodes[0];
    node["metadata"]["labels"] = json!({ names::status("s"): "erroring", "theirs": "x" });
    node["metadata"]["annotations"] = json!({
        names::status("s"): "erroring", names::reason("s"): "{}", names::node_state("s"): record,
        names::stamp("s"): stamp.render(), names::version("s"): "v1",
    });
    let all = node["status"]["conditions"].as_array_mut().unwrap();
    all.extend(conditions);
}

/// The keys that a pass removes from worker-1.
fn removed(plan: &Plan) -> Vec<String> {
    let patch = plan.effects.iter().find_map(|effect| match effect {
        Effect::PatchNode { node, patch, .. } if node == "worker-1" => Some(patch.clone()),
        _ => None,
    });
    let patch = patch.unwrap_or_default();
    let gone = |(key, value): (&String, &Option<String>)| value.is_none().then(|| key.clone());
    let labels = patch.labels.iter().filter_map(gone);
    let annotations = patch.annotations.iter().filter_map(gone);
    let conditions = patch.conditions.iter();
    let conditions = conditions.filter(|(_, value)| value.is_none());
    let conditions = conditions.map(|(key, _)| key.clone());
    labels.chain(annotations).chain(conditions).collect()
}

fn all_of_s() -> Vec<String> {
    vec![
        names::status("s"),
        names::reason("s"),
        names::status("s"),
        names::erroring_condition("s"),
        names::not_ready_condition("s"),
    ]
}

#[test]
fn what_a_node_says_of_a_skyhook_goes_when_it_is_not_selected_any_more() {
    let invalid = json!({ "aa": { "version": "x", "image": "r" } });
    for (name, mut picture, want) in [
        ("selected", Picture::new(), false),
        ("not selected", deselected(Picture::new()), true),
        (
            "not selected, and paused",
            deselected(Picture::new()).skyhook(
                &["metadata", "annotations"],
                json!({ names::PAUSE: "true" }),
            ),
            true,
        ),
        (
            "the spec is not valid",
            deselected(Picture::new()).skyhook(&["spec", "packages"], invalid),
            false,
        ),
        (
            "being deleted",
            deselected(Picture::new()).skyhook(
                &["metadata", "deletionTimestamp"],
                json!("2026-01-01T00:00:00Z"),
            ),
            true,
        ),
        (
            "the agent still works",
            leased(
                deselected(Picture::new()),
                grant_and(json!({})),
                phase("Running"),
            ),
            false,
        ),
        (
            "deleted",
            Picture {
                skyhooks: vec![skyhook("t", json!({}))],
                ..Picture::new()
            },
            true,
        ),
    ] {
        failed(&mut picture);
        let removed = removed(&picture.plan());
        if want {
            assert_eq!(removed, all_of_s(), "{name}");
        } else {
            let stays = !removed.contains(&names::erroring_condition("s"));
            assert!(stays, "{name}: {removed:?}");
        }
    }
}

#[test]
fn what_is_left_over_is_removed_once_and_the_record_stays() {
    let mut picture = deselected(Picture::new());
    failed(&mut picture);
    let mut index = picture.index();
    let mut cache = Cache::default();
    let now = Now {
        mono: picture.now,
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    for effect in cache.plan(&index.view(&picture.settings, now)).effects {
        if let Effect::PatchNode { node, patch, .. } = effect {
            let node = testkit::patched(&index.picture.nodes()[&node], &patch);
            index.picture.node(node);
        }
    }
    let node = &index.picture.nodes()["worker-1"];
    let keys: Vec<&str> = node.annotations.keys().map(String::as_str).collect();
    let kept = [
        names::node_state("s"),
        names::stamp("s"),
        names::version("s"),
    ];
    assert_eq!(keys, kept);
    assert_eq!(node.labels.iter().collect::<Vec<_>>(), [("theirs", "x")]);
    assert_eq!(node.conditions, []);
    let again = cache.plan(&index.view(&picture.settings, now));
    assert_eq!(removed(&again), Vec::<String>::new());
    // When it is selected again, work goes on.
    let mut object = picture.skyhooks[0].clone();
    object["spec"]["nodeSelectors"] = json!(null);
    object["metadata"]["resourceVersion"] = json!("2");
    let object = serde_json::from_value(object).unwrap();
    index.apply(Change::Skyhook(Box::new(object)), Mono::ZERO);
    let plan = cache.plan(&index.view(&picture.settings, now));
    let mut effects = plan.effects.iter();
    let is_reserved =
        |effect: &Effect| matches!(effect, Effect::ReserveLease { node, .. } if node == "worker-1");
    assert!(effects.any(is_reserved), "{:?}", plan.effects);
}

#[test]
fn a_lease_of_a_node_that_is_not_selected_any_more_says_so() {
    let said = |picture: &Picture| {
        let effects = picture.plan().effects;
        effects.into_iter().find_map(|effect| match effect {
            Effect::StopLease { stop, message, .. } => Some(format!("{stop:?} {message}")),
            Effect::WithdrawLease { why, .. } => Some(why.to_string()),
            _ => None,
        })
    };
    let deleting = |picture: Picture| {
        picture.skyhook(
            &["metadata", "deletionTimestamp"],
            json!("2026-01-01T00:00:00Z"),
        )
    };
    let works = |picture| leased(picture, grant_and(json!({})), phase("Running"));
    let reserved = |picture| leased(picture, json!({}), json!(null));
    let not_selected = "the Skyhook no longer selects the node";
    for (picture, want) in [
        (
            works(deselected(Picture::new())),
            format!("Some(Deleted) {not_selected}"),
        ),
        (works(deleting(Picture::new())), "Some(Deleted) ".to_owned()),
        (
            reserved(deselected(Picture::new())),
            not_selected.to_owned(),
        ),
        (
            reserved(deleting(Picture::new())),
            "the Skyhook is deleted".to_owned(),
        ),
    ] {
        assert_eq!(said(&picture), Some(want));
    }
}

/// What a Node says of Skyhook `s` and of others, with this record.
fn telling(record: &str, stamp: &Stamp) -> Picture {
    let mut picture = Picture::new();
    picture.nodes.truncate(1);
    let node = &mut picture.nodes[0];
    node["metadata"]["labels"] = json!({
        names::status("s"): "erroring", names::status("ss"): "complete", "skyhook.nvidia.com/later_s": "x",
    });
    node["metadata"]["annotations"] = json!({
        names::status("s"): "erroring", names::reason("s"): "{}", names::version("s"): "v1",
        names::node_state("s"): record, names::stamp("s"): stamp.render(), "skyhook.nvidia.com/later_s": "x",
        names::status("ss"): "complete", names::node_state("ss"): "{}", names::auto_taint("s"): "false",
    });
    picture
}

#[test]
fn of_a_deleted_skyhook_a_node_says_only_what_stays_on_the_host() {
    let stamp = Stamp {
        lease: "earlier".into(),
        ..Stamp::default()
    };
    let newer = Stamp {
        format: 99,
        ..stamp.clone()
    };
    let elsewhere = Stamp {
        node_machine_id: "another".into(),
        ..stamp.clone()
    };
    let there = complete("1.0.0");
    let of_record = [
        names::node_state("s"),
        names::stamp("s"),
        names::version("s"),
    ];
    for (name, record, stamp, stays) in [
        ("packages are there", there.as_str(), &stamp, true),
        ("nothing is there", "{}", &stamp, false),
        (
            "they were on another machine",
            there.as_str(),
            &elsewhere,
            false,
        ),
        ("nobody can read it", "{", &stamp, false),
        (
            "a newer version wrote it",
            &there.replace("config", "quarantine"),
            &stamp,
            true,
        ),
        ("or its stamp", "{}", &newer, true),
    ] {
        for is_there in [true, false] {
            let mut picture = telling(record, stamp).another(skyhook("ss", json!({})));
            let at = json!("2026-01-01T00:00:00Z");
            if is_there {
                picture = picture.skyhook(&["metadata", "deletionTimestamp"], at);
            } else {
                picture.skyhooks.remove(0);
            }
            let mut index = picture.index();
            let plan = picture.plan_of(&index);
            let released = |plan: &Plan| {
                let mut effects = plan.effects.iter();
                effects.any(|effect| matches!(effect, Effect::ReleaseSkyhook { .. }))
            };
            assert!(!released(&plan), "{name}: it is not clean");
            let removed = removed(&plan);
            for key in &of_record {
                assert_eq!(removed.contains(key), !stays, "{name}: {key}");
            }
            for key in [
                names::status("s"),
                names::reason("s"),
                "skyhook.nvidia.com/later_s".to_owned(),
            ] {
                assert!(removed.contains(&key), "{name}: {key}");
            }
            for key in [
                names::status("ss"),
                names::node_state("ss"),
                names::auto_taint("s"),
            ] {
                assert!(!removed.contains(&key), "{name}: {key}");
            }
            let patch = plan.effects.iter().find_map(|effect| match effect {
                Effect::PatchNode { patch, .. } => Some(patch.clone()),
                _ => None,
            });
            let cleaned = testkit::patched(&index.picture.nodes()["worker-1"], &patch.unwrap());
            index.picture.edit_node("worker-1", |node| *node = cleaned);
            let plan = picture.plan_of(&index);
            assert_eq!(released(&plan), is_there, "{name}: it is clean");
        }
    }
}
