//! What is written and not delivered yet, for one node and its lease.

use serde_json::json;

use super::*;
use crate::effect::AsOf;
use crate::facts::{LeaseFact, NodeFact};
use crate::testkit;

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u32) -> Mono {
    Mono::ZERO + SECOND * seconds
}

fn as_of(uid: &str, version: &str) -> AsOf {
    AsOf {
        uid: uid.into(),
        resource_version: version.into(),
    }
}

fn lease(uid: &str, version: &str) -> LeaseFact {
    let lease = json!({
        "metadata": { "name": "n", "uid": uid, "resourceVersion": version },
        "spec": { "node": { "name": "n", "uid": "u" }, "skyhook": { "name": "s", "uid": "s" }, "revision": "r" },
    });
    LeaseFact::new(serde_json::from_value(lease).unwrap())
}

fn node(version: &str) -> NodeFact {
    NodeFact {
        resource_version: version.into(),
        ..testkit::node("n")
    }
}

fn reserve() -> Effect {
    Effect::ReserveLease {
        node: "n".into(),
        spec: Box::default(),
    }
}

fn grant(uid: &str, version: &str) -> Effect {
    Effect::GrantLease {
        node: "n".into(),
        at: as_of(uid, version),
        batch: None,
    }
}

fn target() -> Target {
    Target::Lease("n".into())
}

#[test]
fn a_target_is_busy_from_the_start_of_a_write_to_its_end() {
    let mut inflight = Inflight::default();
    let effect = grant("one", "1");
    assert!(!inflight.ends(&target()), "it was not under way");
    inflight.begins(&effect);
    assert!(inflight.is_busy(&target()) && inflight.is_unsettled(&target()));
    assert_eq!(inflight.under_way(), 1);
    assert!(!inflight.is_unsettled(&Target::Node("n".into())));
    assert!(inflight.ends(&target()));
    assert!(!inflight.is_unsettled(&target()));
    assert_eq!(inflight.under_way(), 0);
}

#[test]
fn a_create_takes_a_slot_until_it_fails_or_is_delivered() {
    let begun = || {
        let mut inflight = Inflight::default();
        inflight.begins(&reserve());
        assert_eq!(inflight.creating("n"), Some(""));
        inflight.ends(&target());
        inflight
    };
    let mut picture = Picture::default();
    let mut refused = begun();
    refused.is_refused(&reserve(), &picture, at(1));
    assert_eq!(refused.creating("n"), None);
    let mut answered = begun();
    answered.awaits(&reserve(), &picture, at(1));
    answered.expire(at(1) + 2 * STALE);
    assert_eq!(answered.creates().count(), 1, "however long it takes");
    answered.saw(&picture.lease(lease("one", "1")), at(20));
    assert_eq!(answered.creates().count(), 0);
}

#[test]
fn a_write_without_an_answer_waits_for_the_watch_but_not_for_ever() {
    let mut picture = Picture::default();
    picture.lease(lease("one", "1"));
    let awaiting = |picture: &Picture| {
        let mut inflight = Inflight::default();
        inflight.awaits(&grant("one", "1"), picture, at(1));
        inflight
    };
    let mut inflight = awaiting(&picture);
    inflight.expire(at(1) + STALE - SECOND);
    assert!(inflight.is_unsettled(&target()));
    assert_eq!(inflight.patience_ends().min(), Some(at(1) + STALE));
    inflight.expire(at(1) + STALE);
    assert!(!inflight.is_unsettled(&target()), "the watch lags too long");

    let mut inflight = awaiting(&picture);
    inflight.saw(&picture.lease(lease("one", "1")), at(2));
    assert!(inflight.is_unsettled(&target()), "the version written over");
    inflight.saw(&picture.lease(lease("one", "2")), at(2));
    assert!(!inflight.is_unsettled(&target()));

    let faster = awaiting(&picture);
    assert!(
        !faster.is_unsettled(&target()),
        "the watch was faster than the answer"
    );
}

#[test]
fn a_refused_write_is_decided_again_at_once_only_if_it_need_not_wait_for_the_watch() {
    let mut picture = Picture::default();
    picture.lease(lease("one", "1"));
    let mut inflight = Inflight::default();
    inflight.is_refused(&grant("one", "1"), &picture, at(1));
    assert!(inflight.is_unsettled(&target()));
    inflight.is_settled(&target());
    assert!(!inflight.is_unsettled(&target()));
}

#[test]
fn a_deleted_lease_is_not_decided_on_while_the_watch_still_shows_it() {
    let removed = || {
        let mut picture = Picture::default();
        picture.lease(lease("one", "1"));
        let mut inflight = Inflight::default();
        inflight.has_removed("n", "one", &picture, at(1));
        assert!(inflight.is_unsettled(&target()));
        (picture, inflight)
    };
    let (mut picture, mut inflight) = removed();
    inflight.saw(&picture.lease(lease("one", "2")), at(2));
    assert!(inflight.is_unsettled(&target()), "an earlier version of it");
    inflight.saw(&picture.lease(lease("two", "3")), at(2));
    assert!(!inflight.is_unsettled(&target()), "the next one");

    let (mut picture, mut inflight) = removed();
    inflight.saw(&picture.lease_gone("n"), at(2));
    assert!(!inflight.is_unsettled(&target()));

    let (_, mut inflight) = removed();
    inflight.expire(at(1) + STALE);
    assert!(!inflight.is_unsettled(&target()), "the watch lags too long");

    let mut other = Inflight::default();
    other.has_removed("n", "two", &picture, at(1));
    assert!(!other.is_unsettled(&target()), "it was delivered before");
}

#[test]
fn a_complete_list_ends_all_waiting_for_leases_that_are_not_in_it() {
    let mut picture = Picture::default();
    picture.lease(lease("one", "1"));
    let mut inflight = Inflight::default();
    inflight.awaits(&grant("one", "1"), &picture, at(1));
    inflight.has_removed("n", "one", &picture, at(1));
    inflight.saw(&picture.list_begins(Kind::Lease), at(2));
    assert!(inflight.is_unsettled(&target()), "the list has just begun");
    inflight.saw(&picture.is_listed(Kind::Lease), at(3));
    assert!(!inflight.is_unsettled(&target()));
}

#[test]
fn the_list_of_another_kind_says_nothing_about_leases() {
    let mut picture = Picture::default();
    picture.lease(lease("one", "1"));
    picture.node(node("1"));
    let mut inflight = Inflight::default();
    inflight.begins(&reserve());
    inflight.awaits(&reserve(), &picture, at(1));
    inflight.has_removed("n", "one", &picture, at(1));
    inflight.saw(&picture.list_begins(Kind::Node), at(2));
    inflight.saw(&picture.is_listed(Kind::Node), at(3));
    assert_eq!(inflight.creates().count(), 1);
    assert!(inflight.is_unsettled(&target()));
}

#[test]
fn the_time_of_a_write_is_remembered_for_a_while() {
    let mut inflight = Inflight::default();
    let target = Target::Node("n".into());
    inflight.is_done(target.clone(), at(1));
    inflight.expire(at(1) + REMEMBERED - SECOND);
    assert_eq!(inflight.written(&target), Some(at(1)));
    inflight.expire(at(1) + REMEMBERED);
    assert_eq!(inflight.written(&target), None);
}

#[test]
fn the_lag_is_that_of_the_oldest_write_that_no_watch_has_delivered() {
    let mut inflight = Inflight::default();
    let mut picture = Picture::default();
    assert_eq!(inflight.lag(at(1)), Duration::ZERO);
    inflight.begins(&reserve());
    assert_eq!(inflight.lag(at(1)), Duration::ZERO, "nothing is confirmed");
    inflight.awaits(&reserve(), &picture, at(1));
    assert_eq!(inflight.lag(at(3)), 2 * SECOND);
    assert_eq!(inflight.lag(at(60)), STALE);
    inflight.saw(&picture.lease(lease("one", "1")), at(4));
    assert_eq!(inflight.lag(at(4)), Duration::ZERO);
}
