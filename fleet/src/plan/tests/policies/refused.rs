//! Members of an open batch that may not be leased for a long time. They must not hold their batch up.

use super::kept::erroring;
use super::*;

fn not_ready(picture: Picture, n: usize) -> Picture {
    let conditions = json!([{ "type": "Ready", "status": "False" }]);
    picture.node(n, &["status", "conditions"], conditions)
}

fn control_plane(picture: Picture, n: usize) -> Picture {
    let label = skyhook_crds::names::CONTROL_PLANE;
    picture.node(n, &["metadata", "labels", label], json!(""))
}

/// Positions of the members of `gpu` that are struck by what is written.
fn struck(picture: &Picture) -> Vec<i32> {
    let state = written(picture);
    state.map_or_else(Vec::new, |state| state.compartments["gpu"].struck.clone())
}

#[test]
fn a_control_plane_node_does_not_wait_for_another_one_to_come_back() {
    let both = |picture| control_plane(control_plane(picture, 1), 3);
    // Worker-1 may not be leased while worker-3, which is in no batch, is away. Worker-2 is complete.
    let open = both(done(with_batch(exponential(), &[1, 2], &json!({})), 2));
    assert_eq!(struck(&open), Vec::<i32>::new());
    assert_eq!(struck(&not_ready(open, 3)), [0]);
    // A batch that is opened then begins with another node.
    let first = not_ready(both(exponential()), 3);
    let state = written(&first).unwrap();
    assert_eq!(state.compartments["gpu"].members, [member(2)]);
}

#[test]
fn a_control_plane_node_waits_for_the_one_before_it_in_its_batch_alone() {
    let both = |picture| control_plane(control_plane(picture, 1), 2);
    let open = both(with_batch(exponential(), &[1, 2], &json!({})));
    let leased = |status: Value| {
        let spec = in_batch(grant_and(json!({})));
        leased(stamp(open.clone(), granted()), spec, status)
    };
    assert_eq!(open.reserved(), ["s/worker-1"], "one after the other");
    // Worker-1 works, or has ended and is about to give its lease back.
    assert_eq!(
        struck(&leased(with_package("Running", "in_progress"))),
        Vec::<i32>::new()
    );
    // It has failed for good, and keeps its lease: worker-2 would wait for ever.
    let mut failed = leased(erroring(3));
    failed.rollouts[0]["spec"]["compartments"]["gpu"]["failed"] = json!([0]);
    assert_eq!(struck(&failed), [1]);
}

#[test]
fn members_do_not_wait_for_slots_that_failed_nodes_hold() {
    // The budget was lowered to one slot, and worker-1 has failed for good and holds it.
    let one = json!({
        "budget": { "count": 1 }, "strategy": { "exponential": { "failureThreshold": 1, "safetyLimit": 100 } },
    });
    let open = with_batch(paced(&one), &[1, 2], &json!({ "failed": [0] }));
    let leased = |status: Value| {
        let spec = in_batch(grant_and(json!({})));
        leased(stamp(open.clone(), granted()), spec, status)
    };
    assert_eq!(struck(&leased(erroring(3))), [1]);
    // It works again: it will end and give its slot back.
    assert_eq!(
        struck(&leased(with_package("Running", "in_progress"))),
        Vec::<i32>::new()
    );
}

#[test]
fn nodes_that_are_not_ready_take_no_slots_beside_a_policy() {
    // Worker-3 is in another compartment. It would take the second slot of `gpu`.
    let budget = json!({ "countUnavailable": true });
    let open = with_batch(exponential(), &[1, 2], &json!({}));
    let open = not_ready(open, 3).skyhook(&["spec", "interruptionBudget"], budget);
    assert_eq!(open.reserved(), ["s/worker-1", "s/worker-2"]);
}

#[test]
fn a_look_at_a_batch_says_nothing_of_the_same_number_in_another_state() {
    use crate::batches::Look;
    use crate::index::Change;
    // Worker-1 is ignored, and was struck. Worker-2 is complete.
    let ignore = skyhook_crds::names::IGNORE;
    let struck = done(
        with_batch(exponential(), &[1, 2], &json!({ "struck": [0] })),
        2,
    );
    let struck = struck.node(1, &["metadata", "labels", ignore], json!("true"));
    let is_judged = |state: &str| {
        let mut index = struck.index();
        let looks = vec![Look {
            state: state.into(),
            batch: 3,
            id: member(1),
        }];
        let skyhook = "s".to_owned();
        index.apply(Change::Left { skyhook, looks }, Mono::ZERO);
        let looked: Vec<&str> = struck
            .plan_of(&index)
            .effects
            .iter()
            .map(Effect::kind)
            .collect();
        let asks = looked.contains(&"LookForLeases");
        index.expire(Mono::ZERO);
        (asks, index.clocks().left("s").count())
    };
    assert_eq!(is_judged(STATE), (false, 1));
    assert_eq!(is_judged("an earlier one"), (true, 0));
}

#[test]
fn a_node_in_mid_run_is_picked_before_those_that_are_older() {
    // NVIDIA Skyhook has left worker-2 in the middle, without a cordon.
    let state = complete("1.0.0").replace("complete", "in_progress");
    let picture = exponential().annotated(2, "skyhook.nvidia.com/nodeState_s", &state);
    let first = written(&picture).unwrap();
    assert_eq!(first.compartments["gpu"].members, [member(2)]);
    // Its pods did not leave in time, a while ago. They may not leave the next time either.
    let timed_out = Stamp {
        drain_timed_out: "2023-11-14T20:00:00Z".into(),
        ..Stamp::default()
    };
    let mut picture = picture.annotated(2, "skyhook.nvidia.com/stamp_s", &timed_out.render());
    picture.now += picture.settings.drain_cool_down;
    let first = written(&picture).unwrap();
    assert_eq!(first.compartments["gpu"].members, [member(1)]);
}
