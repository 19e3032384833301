use serde_json::{Value, json};

use super::*;

fn decoded<T: serde::de::DeserializeOwned>(value: Value) -> Box<T> {
    Box::new(serde_json::from_value(value).unwrap())
}

fn node(version: &str) -> Change {
    Change::Node(decoded(
        json!({ "metadata": { "name": "n", "uid": "u", "resourceVersion": version } }),
    ))
}

fn lease(uid: &str) -> Change {
    Change::Lease(decoded(json!({
        "metadata": { "name": "n", "uid": uid, "resourceVersion": "1" },
        "spec": { "node": { "name": "n", "uid": "u" }, "skyhook": { "name": "s", "uid": "s" }, "revision": "r" },
    })))
}

fn synced() -> Index {
    let mut index = Index::default();
    for kind in Kind::NEEDED {
        index.apply(Change::Synced(kind), Mono::ZERO);
    }
    index
}

#[test]
fn half_a_list_is_no_picture() {
    let mut index = synced();
    assert!(index.is_synced());
    index.apply(Change::ListBegins(Kind::Lease), Mono::ZERO);
    index.apply(lease("one"), Mono::ZERO);
    assert!(!index.is_synced(), "another lease may follow in the list");
    index.apply(Change::Synced(Kind::Lease), Mono::ZERO);
    assert!(index.is_synced());
}

#[test]
fn what_a_list_leaves_out_is_gone() {
    let mut index = synced();
    index.apply(node("1"), Mono::ZERO);
    index.apply(lease("one"), Mono::ZERO);
    for kind in [Kind::Node, Kind::Lease] {
        index.apply(Change::ListBegins(kind), Mono::ZERO);
        index.apply(Change::Synced(kind), Mono::ZERO);
    }
    assert!(index.picture.nodes().is_empty() && index.picture.leases().is_empty());
}

#[test]
fn a_create_that_was_undone_while_the_watch_was_broken_takes_no_slot() {
    let reserve = Effect::ReserveLease {
        node: "n".into(),
        spec: Box::default(),
    };
    for (name, answered, list_began, want) in [
        ("answered before the list", Some(1), 2, false),
        ("answered while the list was read", Some(2), 2, true),
        ("not answered", None, 2, true),
    ] {
        let mut index = synced();
        index.begins(&reserve);
        if let Some(at) = answered {
            index.is_done(&reserve, None, Mono::from_secs(at));
        }
        index.apply(Change::ListBegins(Kind::Lease), Mono::from_secs(list_began));
        index.apply(Change::Synced(Kind::Lease), Mono::from_secs(list_began));
        assert_eq!(index.inflight.creating("n").is_some(), want, "{name}");
    }
}

#[test]
fn older_versions_are_left_alone() {
    let mut index = synced();
    index.apply(node("10"), Mono::ZERO);
    assert!(!index.apply(node("9"), Mono::ZERO), "numbers, not text");
    assert_eq!(index.picture.nodes()["n"].resource_version, "10");
    assert!(
        !index.apply(node("11"), Mono::ZERO),
        "a heartbeat changes nothing that decisions need"
    );
    assert_eq!(index.picture.nodes()["n"].resource_version, "11");
}

#[test]
fn a_write_is_settled_when_the_watch_has_moved_on() {
    let mut index = synced();
    index.apply(lease("one"), Mono::ZERO);
    let at = crate::effect::AsOf {
        uid: "one".into(),
        resource_version: "1".into(),
    };
    let target = Target::Lease("n".into());
    let grant = Effect::GrantLease {
        node: "n".into(),
        at,
        batch: None,
    };
    index.is_done(&grant, None, Mono::ZERO);
    assert!(index.is_unsettled(&target));
    index.apply(lease("one"), Mono::ZERO);
    assert!(index.is_unsettled(&target), "the same version again");
    let mut newer = lease("one");
    if let Change::Lease(object) = &mut newer {
        object.metadata.resource_version = Some("2".into());
    }
    index.apply(newer, Mono::ZERO);
    assert!(!index.is_unsettled(&target));
}

#[test]
fn a_lease_that_was_removed_is_not_removed_again() {
    let target = Target::Lease("n".into());
    let removed = |uid: &str| Effect::WithdrawLease {
        node: "n".into(),
        at: crate::effect::AsOf {
            uid: uid.into(),
            resource_version: "0".into(),
        },
        why: crate::plan::reason::Withdrawal::Deleting,
    };
    let mut index = synced();
    index.apply(lease("one"), Mono::ZERO);
    index.is_done(&removed("one"), None, Mono::ZERO);
    // The watch still delivers the last versions of the lease.
    index.apply(lease("one"), Mono::ZERO);
    assert!(index.is_unsettled(&target));
    index.apply(lease("two"), Mono::ZERO);
    assert!(!index.is_unsettled(&target), "the next one is another");
    index.is_done(&removed("two"), None, Mono::ZERO);
    index.apply(Change::LeaseGone("n".into()), Mono::ZERO);
    assert!(!index.is_unsettled(&target));
}

#[test]
fn a_lease_stays_whose_node_turns_out_to_be_there() {
    let target = Target::Lease("n".into());
    let release = Effect::ReleaseLeaseOfGoneNode {
        node: "n".into(),
        at: crate::effect::AsOf {
            uid: "one".into(),
            resource_version: "1".into(),
        },
        node_uid: "u".into(),
    };
    let mut index = synced();
    index.apply(lease("one"), Mono::ZERO);
    index.begins(&release);
    index.ends(&release);
    index.is_done(&release, Some(node("1")), Mono::ZERO);
    assert!(!index.is_unsettled(&target), "it was not deleted");
    index.is_done(&release, None, Mono::ZERO);
    assert!(index.is_unsettled(&target), "it was deleted");
}

#[test]
fn a_state_that_was_deleted_does_not_come_back_with_the_answer_to_a_write() {
    let state = |version: &str| {
        let state = serde_json::json!({
            "metadata": { "name": "s", "uid": "u", "resourceVersion": version }, "spec": {},
        });
        Change::Rollout(Box::new(serde_json::from_value(state).unwrap()))
    };
    let mut index = synced();
    index.apply(state("1"), Mono::ZERO);
    assert!(!index.has_lost(&state("2")));
    index.apply(Change::RolloutGone("s".into()), Mono::ZERO);
    assert!(index.has_lost(&state("2")));
}
