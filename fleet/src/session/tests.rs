mod cool_down;

use super::*;
use crate::effect::AsOf;
use crate::plan::cause::Cause;

#[test]
fn a_write_that_is_refused_again_and_again_is_tried_less_and_less_often() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    let effect = Effect::GrantLease {
        node: "n1".into(),
        at: AsOf {
            uid: "u".into(),
            resource_version: "1".into(),
        },
        batch: None,
    };
    let refused = || Outcome::Refused {
        error: "patch interruptionlease/n1: denied".into(),
    };
    let mut now = Mono::ZERO;
    let mut waits = Vec::new();
    for _ in 0..7 {
        session.settle(&effect, refused(), now);
        let at = session.retry_at[&effect.target()];
        waits.push(at.since(now).as_secs());
        now = at;
        session.expire(now);
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 64, 64]);
    session.settle(&effect, Outcome::Done(None), now);
    session.settle(&effect, refused(), now);
    let at = session.retry_at[&effect.target()];
    assert_eq!(at.since(now).as_secs(), 2, "it had worked in between");
}

#[test]
fn a_create_that_finds_its_object_there_is_tried_less_and_less_often() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    let effect = Effect::ReserveLease {
        node: "n1".into(),
        spec: Box::default(),
    };
    let mut now = Mono::ZERO;
    let mut waits = Vec::new();
    for _ in 0..4 {
        assert_eq!(session.begin(&effect, now), Ok(()));
        session.settle(&effect, Outcome::Stale, now);
        assert_eq!(session.begin(&effect, now), Err(Held::NotYet));
        let at = session.retry_at[&effect.target()];
        waits.push(at.since(now).as_secs());
        now = at;
        session.expire(now);
    }
    assert_eq!(waits, [2, 4, 8, 16]);
    assert!(
        session.index.inflight.creates().next().is_none(),
        "it holds no slot meanwhile"
    );
}

fn node_write(node: &str, cause: Cause) -> Effect {
    Effect::PatchNode {
        node: node.into(),
        at: AsOf {
            uid: "u".into(),
            resource_version: "1".into(),
        },
        patch: crate::effect::NodePatch::default(),
        why: [cause].into(),
    }
}

fn survey(node: &str) -> Effect {
    Effect::SurveyPods {
        node: node.into(),
        lease_uid: "u".into(),
        consistent: true,
    }
}

fn reservation(node: &str) -> Effect {
    Effect::ReserveLease {
        node: node.into(),
        spec: Box::default(),
    }
}

/// What is begun now, by kind and node.
fn begun(session: &mut Session<'_>) -> Vec<Target> {
    let next = || Some(session.begin_next(Mono::ZERO)?.expect("no rule is broken"));
    std::iter::from_fn(next).map(|e| e.target()).collect()
}

#[test]
fn what_gives_back_goes_first_and_has_slots_of_its_own() {
    let settings = Settings {
        max_in_flight: 4,
        ..Settings::default()
    };
    let mut session = Session::new(&settings);
    let effects = || {
        let mut effects: Vec<Effect> = ["a", "b", "c", "d"].map(survey).into();
        effects.push(reservation("e"));
        effects.push(node_write("f", Cause::Status));
        effects
    };
    session.enqueue(effects());
    let pods = |node: &str| Target::Pods(node.into());
    assert_eq!(begun(&mut session), [pods("a"), pods("b"), pods("c")]);
    let mut more = effects();
    more.push(node_write("g", Cause::Result));
    session.enqueue(more);
    assert_eq!(begun(&mut session), [Target::Node("g".into())]);
}

#[test]
fn whose_last_write_is_longest_ago_goes_first() {
    let settings = Settings {
        max_in_flight: 2,
        ..Settings::default()
    };
    let mut session = Session::new(&settings);
    for (node, at) in [("a", 3), ("b", 1), ("c", 2)] {
        let target = Target::Pods(node.into());
        session
            .index
            .inflight
            .set_written(target, Mono::from_secs(at));
    }
    session.enqueue(["a", "b", "c"].map(survey).into());
    let first = begun(&mut session);
    assert_eq!(first, ["b", "c"].map(|node| Target::Pods(node.into())));
}

/// The times of writes are forgotten after a minute. Who waits for longer than that goes first all the same.
#[test]
fn every_target_has_its_turn_however_many_there_are() {
    let settings = Settings {
        max_in_flight: 1,
        ..Settings::default()
    };
    let mut session = Session::new(&settings);
    let all: Vec<Effect> = (0..100).map(|n| survey(&format!("n{n:02}"))).collect();
    let mut served = std::collections::BTreeSet::new();
    for second in 0..100 {
        let now = Mono::from_secs(second);
        session.expire(now);
        session.enqueue(all.clone());
        let next = session.begin_next(now).expect("a slot is free");
        let next = next.expect("no rule is broken");
        session.settle(&next, Outcome::Done(None), now);
        served.insert(next.target());
    }
    assert_eq!(served.len(), 100);
}

#[test]
fn what_waited_for_a_slot_is_begun_when_there_is_one_unless_it_is_history() {
    let settings = Settings {
        max_in_flight: 1,
        ..Settings::default()
    };
    let mut session = Session::new(&settings);
    session.enqueue(vec![
        reservation("a"),
        reservation("b"),
        reservation("c"),
        node_write("gone", Cause::Status),
    ]);
    assert_eq!(begun(&mut session), [Target::Lease("a".into())]);
    let lease =
        serde_json::json!({ "metadata": { "name": "b", "uid": "u", "resourceVersion": "1" } });
    let lease = Box::new(serde_json::from_value(lease).expect("it is a lease"));
    session.take(Change::Lease(lease), Mono::ZERO);
    session.settle(&reservation("a"), Outcome::Done(None), Mono::ZERO);
    assert_eq!(begun(&mut session), [Target::Lease("c".into())]);
    session.settle(&reservation("c"), Outcome::Done(None), Mono::ZERO);
    assert_eq!(
        begun(&mut session),
        [],
        "there is no such Node in that version"
    );
}

#[test]
fn a_server_that_asks_for_patience_is_left_alone_and_not_asked_by_all_at_once() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    let all: Vec<Effect> = (0..40).map(|n| survey(&format!("n{n}"))).collect();
    session.enqueue(all.clone());
    let first = session.begin_next(Mono::ZERO).unwrap().unwrap();
    let after = Duration::from_secs(8);
    let error = "too many requests".to_owned();
    session.settle(&first, Outcome::Busy { after, error }, Mono::ZERO);
    assert_eq!(
        session.begin_next(Mono::after(after) - Duration::from_millis(1)),
        None
    );
    session.enqueue(all.clone());
    let begun = std::iter::from_fn(|| session.begin_next(Mono::after(after))).count();
    assert_eq!(begun, 6, "of half as many, two are kept for what is urgent");
    let waits = all.iter().map(|effect| spread(&effect.target(), after));
    let waits: std::collections::BTreeSet<Duration> = waits.collect();
    assert!(waits.len() > 20, "{waits:?}");
    assert!(
        waits
            .iter()
            .all(|wait| *wait >= after && *wait < after * 5 / 4)
    );
}

/// The watch may deliver the deletion of a lease before the answer to its release comes, and the answer may be lost.
#[test]
fn a_node_is_not_called_drained_once_a_list_shows_a_pod_that_has_to_leave() {
    let settings = Settings::default();
    let mut node = crate::testkit::node_object("n1");
    node["spec"]["unschedulable"] = true.into();
    node["metadata"]["annotations"] = serde_json::json!({
        skyhook_crds::names::CORDON_OWNERS: r#"{"wasUnschedulable":false,"owners":{"s":"l1"}}"#,
    });
    let skyhook = serde_json::json!({
        "metadata": { "name": "s", "uid": "s1", "resourceVersion": "1" },
        "spec": { "packages": { "aa": { "version": "1.0.0", "image": "r/aa" } } },
    });
    let lease = serde_json::json!({
        "metadata": { "name": "n1", "uid": "l1", "resourceVersion": "5" },
        "spec": {
            "node": { "name": "n1", "uid": "uid-of-n1" },
            "skyhook": { "name": "s", "uid": "s1" },
            "revision": "r",
            "drain": { "state": "Draining" },
        },
        "status": { "phase": "AwaitingDrain", "needsDrain": true },
    });
    let drained = Effect::SetDrain {
        node: "n1".into(),
        at: AsOf {
            uid: "l1".into(),
            resource_version: "5".into(),
        },
        drain: skyhook_crds::lease::Drain {
            state: skyhook_crds::lease::DrainState::Drained,
            ..skyhook_crds::lease::Drain::default()
        },
    };
    let pod = |finished| crate::pods::PodFact {
        name: "web".into(),
        uid: "p1".into(),
        controller: Some("ReplicaSet".into()),
        finished,
        ..crate::pods::PodFact::default()
    };
    for (what, pods, begins) in [
        ("no pod", vec![], true),
        ("a finished pod", vec![pod(true)], true),
        ("a pod that runs", vec![pod(false)], false),
    ] {
        let mut session = Session::new(&settings);
        session.index = crate::testkit::index(
            std::slice::from_ref(&node),
            std::slice::from_ref(&skyhook),
            std::slice::from_ref(&lease),
            &[],
        );
        session.enqueue(vec![drained.clone()]);
        let list = Change::Pods {
            node: "n1".into(),
            lease_uid: "l1".into(),
            pods,
            consistent: false,
        };
        session.take(list, Mono::from_secs(100));
        let next = session.begin_next(Mono::from_secs(100));
        let next = next.map(|next| next.expect("the next pass decides again"));
        let want = begins.then(|| drained.clone());
        assert_eq!(next, want, "{what}");
    }
}

/// While the API server has no room, nothing is written at all.
#[test]
fn no_second_write_begins_before_the_time_that_the_first_answer_asked_for() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    session.enqueue((0..40).map(|n| survey(&format!("n{n}"))).collect());
    let first = session.begin_next(Mono::ZERO).unwrap().unwrap();
    let busy = |after| Outcome::Busy {
        after,
        error: "connection refused".into(),
    };
    session.settle(&first, busy(Duration::from_secs(2)), Mono::ZERO);
    // A shorter wait that is asked for later does not end the longer one.
    session.settle(&first, busy(Duration::from_secs(1)), Mono::ZERO);
    let held = HeldBack {
        queued: 39,
        refused: 1,
        repeated: 0,
    };
    assert_eq!(session.held_back(), held);
    for millis in (0..2_000).step_by(100) {
        let now = Mono::after(Duration::from_millis(millis));
        assert_eq!(session.begin_next(now), None, "after {millis} ms");
    }
    assert!(session.begin_next(Mono::from_secs(2)).is_some());
}

#[test]
fn a_write_that_fails_again_and_again_is_tried_less_and_less_often_and_holds_up_no_other() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    let effect = survey("n1");
    let mut now = Mono::ZERO;
    for seconds in [2, 4, 8, 16, 32, 64, 64] {
        let error = "failed calling webhook".to_owned();
        session.settle(&effect, Outcome::Retry { error }, now);
        let at = session.retry_at[&effect.target()];
        let least = Duration::from_secs(seconds);
        let waits = at.since(now);
        assert!(
            waits >= least && waits < least * 5 / 4,
            "{waits:?} for {seconds} s"
        );
        assert_eq!(session.begin(&effect, now), Err(Held::NotYet));
        assert_eq!(session.begin(&survey("n2"), now), Ok(()), "another object");
        session.settle(&survey("n2"), Outcome::Done(None), now);
        now = at;
        session.expire(now);
    }
}

/// However many leases are to be reserved, the first one that can be granted is granted before the last one is reserved.
#[test]
fn the_first_grant_does_not_wait_for_the_last_reservation() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    let reservations: Vec<Effect> = (0..1_000)
        .map(|n| reservation(&format!("n{n:04}")))
        .collect();
    session.enqueue(reservations.clone());
    let mut reserved = 0;
    while let Some(Ok(effect)) = session.begin_next(Mono::ZERO) {
        session.settle(&effect, Outcome::Done(None), Mono::ZERO);
        reserved += 1;
        if reserved == 10 {
            break;
        }
    }
    // The next pass: the watch has delivered the first lease, and its Node can be stamped.
    let mut effects = reservations[10..].to_vec();
    effects.push(node_write("n0000", Cause::Grant));
    session.enqueue(effects);
    let first = session.begin_next(Mono::ZERO).expect("something begins");
    assert_eq!(
        first.expect("no rule is broken").target(),
        Target::Node("n0000".into())
    );
    let left = std::iter::from_fn(|| session.begin_next(Mono::ZERO));
    let left: Vec<Target> = left
        .map(|next| next.expect("no rule is broken").target())
        .collect();
    assert!(!left.is_empty() && left.len() < 20, "{left:?}");
    assert!(
        left.iter().all(|target| matches!(target, Target::Lease(_))),
        "{left:?}"
    );
}
