//! Numbers of nodes in batches, and beside them.

use super::super::leases::phase;
use super::*;
use crate::index::Change;
use skyhook_crds::installed::{Stamp, states_digest};
use skyhook_crds::skyhook::NodeOrderShown;

fn numbers(picture: &Picture) -> Vec<(String, Option<i64>)> {
    reserved(picture.plan())
}

fn reserved(plan: Plan) -> Vec<(String, Option<i64>)> {
    let effects = plan.effects.into_iter();
    let reserved = effects.filter_map(|effect| match effect {
        Effect::ReserveLease { node, spec } => Some((node, spec.order)),
        _ => None,
    });
    reserved.collect()
}

fn numbered(picture: Picture, n: usize, order: i64, picked: &str) -> Picture {
    let stamp = Stamp {
        order: Some(order),
        picked: picked.into(),
        states: states_digest(""),
        ..Stamp::default()
    };
    picture.annotated(n, "skyhook.nvidia.com/stamp_s", &stamp.render())
}

#[test]
fn a_member_that_was_picked_before_keeps_its_number() {
    let open = with_batch(exponential(), &[2, 1], &json!({}));
    let both = |one, two| {
        vec![
            ("worker-2".to_owned(), Some(two)),
            ("worker-1".to_owned(), Some(one)),
        ]
    };
    assert_eq!(numbers(&open), both(8, 7));
    assert_eq!(numbers(&numbered(open.clone(), 1, 2, "t")), both(2, 7));
    // It was complete since.
    assert_eq!(numbers(&numbered(open, 1, 2, "")), both(8, 7));
}

#[test]
fn members_are_leased_in_the_order_of_picking() {
    // Worker-2 was picked first, for example because it is older. One slot is free.
    let mut open = with_batch(exponential(), &[2, 1], &json!({}));
    open.settings.max_concurrent_nodes = Some(1);
    assert_eq!(open.reserved(), ["s/worker-2"]);
}

#[test]
fn a_batch_and_nodes_outside_of_batches_share_the_numbers() {
    // Compartment `gpu` has no batches, and the default one opens its first.
    let mixed = || paced(&json!({ "budget": { "count": 1 } }));
    let state_of = |picture: &Picture| written(picture).unwrap();
    let opened = state_of(&mixed());
    assert_eq!(opened.compartments["__default__"].order_base, 0);
    assert_eq!(opened.next_order, 1);
    assert_eq!(numbers(&mixed()), [("worker-1".to_owned(), Some(1))]);
    // A state that is made anew goes on with what the status shows. It shows no number of a state that is not stored yet.
    let status = serde_json::to_value(shown(&mixed())).unwrap();
    let again = mixed().skyhook(&["status"], status);
    assert_eq!(state_of(&again).compartments["__default__"].order_base, 0);
    // Worker-2 was complete under number 30, outside of batches.
    let done = numbered(mixed(), 2, 30, "");
    let opened = state_of(&done);
    assert_eq!(opened.compartments["__default__"].order_base, 31);
    assert_eq!(numbers(&done), [("worker-1".to_owned(), Some(32))]);
    // The states cannot be read: what the status says is the least.
    let unknown = mixed().skyhook(
        &["status"],
        json!({ "status": "in_progress", "nodeOrderOffset": 9, "nodeOrderShown": { "run": 2, "offset": 9 } }),
    );
    let (kind, why) = (crate::picture::Kind::Rollout, "forbidden".to_owned());
    let mut index = unknown.index();
    index.apply(Change::ListBegins(kind), Mono::ZERO);
    index.apply(Change::Unlistable { kind, why }, Mono::ZERO);
    let plan = || unknown.plan_of(&index);
    assert_eq!(reserved(plan()), [("worker-1".to_owned(), Some(9))]);
    let kept = NodeOrderShown { run: 2, offset: 9 };
    let status = status_of(plan());
    assert_eq!(
        (status.node_order_offset, status.node_order_shown),
        (9, Some(kept))
    );
    // A newer version wrote the state. It may have given any number.
    let mut newer = unknown;
    newer.rollouts = vec![state(&newer, json!({}))];
    newer.rollouts[0]["spec"]["format"] = json!(1);
    assert_eq!(numbers(&newer), []);
    assert_eq!(shown(&newer).node_order_shown, Some(kept));
}

#[test]
fn an_offset_of_zero_in_the_status_starts_the_numbers_anew() {
    let judged = json!({ "batch": 0, "members": [], "shown": 2, "lastBatchSize": 1 });
    let mut picture = with_batch(exponential(), &[], &judged);
    let mut status = shown(&picture);
    // Both compartments open a batch of one: 8 and 9 are given now.
    let first = NodeOrderShown { run: 0, offset: 10 };
    assert_eq!(
        (status.node_order_offset, status.node_order_shown),
        (10, Some(first))
    );
    let put = |picture: &mut Picture, status: &SkyhookStatus| {
        picture.skyhooks[0]["status"] = serde_json::to_value(status).unwrap();
    };
    // Somebody writes an old copy back.
    status.node_order_offset = 6;
    put(&mut picture, &status);
    assert_eq!(written(&picture).unwrap().order_run, 0);
    assert_eq!(shown(&picture).node_order_offset, 10);
    // Worker-3 has a number of this run, and the next one follows it.
    status.node_order_offset = 0;
    put(&mut picture, &status);
    let kept = numbered(picture.clone(), 3, 4, "t");
    assert_eq!(written(&kept).unwrap().next_order, 5);
    let state = written(&picture).unwrap();
    assert_eq!((state.order_run, state.next_order), (1, 0));
    // The edit stays until it is obeyed, and is obeyed once.
    picture.now += Duration::from_secs(60);
    let effects = picture.plan().effects;
    let is_over = |effect: &Effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => status.node_order_offset != 0,
        _ => false,
    };
    assert!(!effects.iter().any(is_over), "{effects:#?}");
    picture.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
    let opened = written(&picture).unwrap();
    assert_eq!((opened.order_run, opened.next_order), (1, 2));
    let again = NodeOrderShown { run: 1, offset: 2 };
    assert_eq!(shown(&picture).node_order_shown, Some(again));
}

#[test]
fn the_next_batch_waits_for_slots_that_become_free_in_a_moment() {
    // Worker-1 is complete, and its lease is still there. The ceiling is one.
    let picture = paced(&json!({ "budget": { "count": 1 }, "strategy": { "fixed": {} } }));
    let picture = with_batch(picture, &[1], &json!({}));
    let states = complete("1.0.0");
    let revision = picture.index().picture.skyhooks()["s"]
        .checked
        .as_ref()
        .map(|checked| checked.revision.clone())
        .unwrap();
    let recorded = |lease: &str| {
        let stamp = Stamp {
            lease: lease.into(),
            revision: revision.clone(),
            states: states_digest(&states),
            ..Stamp::default()
        };
        let picture = picture.clone();
        let picture = picture.annotated(1, "skyhook.nvidia.com/stamp_s", &stamp.render());
        picture.annotated(1, "skyhook.nvidia.com/nodeState_s", &states)
    };
    let picture = recorded("earlier");
    let ended = leased(
        recorded("lease"),
        in_batch(grant_and(json!({}))),
        with_package("Complete", "complete"),
    );
    let batch_of = |picture: &Picture| {
        let state = written(picture).unwrap();
        let gpu = &state.compartments["gpu"];
        (gpu.shown, gpu.members.clone())
    };
    assert_eq!(
        batch_of(&ended),
        (1, vec![member(1)]),
        "neither judged nor opened"
    );
    assert_eq!(on_leases(&ended), ["ReleaseLease"]);
    assert_eq!(batch_of(&picture), (2, vec![member(2)]));
    // The node is complete by an earlier lease. Its agent has ended under this one, and the host is rebooting: nobody knows
    // when that lease is released.
    let mut away = phase("Stopped");
    away["bootID"] = json!("an earlier boot");
    let other = in_batch(grant_and(json!({ "revision": "another" })));
    assert_eq!(batch_of(&leased(picture.clone(), other, away)), (2, vec![]));
    // Between the last lease and the next one, the roll-out goes on all the same, also while a new revision is taken in.
    assert_eq!(shown(&picture).status, skyhook_crds::Status::InProgress);
    let mut earlier = picture;
    earlier.rollouts[0]["spec"]["revision"]["number"] = json!(0);
    assert_eq!(batch_of(&earlier), (1, vec![member(1)]));
    assert_eq!(shown(&earlier).status, skyhook_crds::Status::InProgress);
}

#[test]
fn a_state_that_is_made_anew_goes_on_with_the_numbers() {
    let mut picture = with_batch(exponential(), &[], &json!({ "batch": 0, "members": [] }));
    let status = shown(&picture);
    picture.skyhooks[0]["status"] = serde_json::to_value(&status).unwrap();
    picture.rollouts.clear();
    let state = written(&picture).unwrap();
    assert_eq!(
        state.compartments["gpu"].order_base,
        status.node_order_offset
    );
    // NVIDIA Skyhook left an offset, and no word of ours.
    let adopted = exponential().skyhook(
        &["status"],
        json!({ "status": "in_progress", "nodeOrderOffset": 5 }),
    );
    let opened = written(&adopted).unwrap();
    assert_eq!(opened.next_order, 7);
}
