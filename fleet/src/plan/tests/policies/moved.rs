//! Members of an open batch whose labels have moved them to another compartment.

use super::*;

/// The picture with worker-1, a member of batch 3 of `gpu`, moved to the default compartment.
fn moved(mut picture: Picture) -> Picture {
    picture.nodes[0]["metadata"]["labels"]
        .as_object_mut()
        .unwrap()
        .remove("gpu");
    picture
}

#[test]
fn a_member_that_was_moved_is_leased_in_the_compartment_of_its_batch() {
    let open = moved(with_batch(exponential(), &[1], &json!({})));
    let effects = open.plan().effects.into_iter();
    let mut specs = effects.filter_map(|effect| match effect {
        Effect::ReserveLease { node, spec } if node == "worker-1" => Some(spec),
        _ => None,
    });
    let spec = specs.next().expect("worker-1 is leased");
    let batch = spec.batch.as_ref().map(|batch| batch.number);
    assert_eq!((spec.compartment.as_str(), batch), ("gpu", Some(3)));
    // That lease is granted, and not withdrawn.
    let reserved = leased(
        stamp(open, granted()),
        serde_json::to_value(&spec).unwrap(),
        json!(null),
    );
    assert_eq!(on_leases(&reserved), ["GrantLease"]);
}

#[test]
fn a_member_that_was_moved_is_taken_into_no_second_batch() {
    // Worker-1 is the only node of the default compartment that is not complete, and has no lease yet.
    let open = moved(done(with_batch(exponential(), &[1], &json!({})), 3));
    assert_eq!(written(&open), None);
    assert_eq!(open.reserved(), ["s/worker-1"]);
    // Its batch was judged: it is a node like any other.
    let mut judged = open;
    let gpu = json!({ "run": 1, "batch": 0, "shown": 2 });
    judged.rollouts[0]["spec"]["compartments"]["gpu"] = gpu;
    let state = written(&judged).unwrap();
    assert_eq!(state.compartments["__default__"].members, [member(1)]);
}

#[test]
fn a_member_that_was_moved_needs_a_slot_in_both_compartments() {
    // Worker-3 holds the only slot of the default compartment, where worker-1 is now.
    let open = moved(with_batch(exponential(), &[1], &json!({})));
    let mut taken = leased(open, json!({ "compartment": "__default__" }), json!(null));
    set(
        &mut taken.leases[0],
        &["metadata", "name"],
        json!("worker-3"),
    );
    let node = json!({ "name": "worker-3", "uid": "uid-of-worker-3" });
    set(&mut taken.leases[0], &["spec", "node"], node);
    assert_eq!(taken.reserved(), Vec::<String>::new());
    assert_eq!(taken.reason("s", "worker-1"), "BudgetExhausted");
}

#[test]
fn members_of_an_open_batch_come_before_nodes_of_a_sliding_window() {
    // `gpu` has no strategy. Worker-3 is a member of the open batch of the default compartment. One slot for all.
    let mut picture = with_batch(
        paced(&json!({ "budget": { "count": 2 } })),
        &[3],
        &json!({}),
    );
    let compartments = &mut picture.rollouts[0]["spec"]["compartments"];
    *compartments = json!({ "__default__": compartments["gpu"] });
    assert_eq!(
        picture.reserved(),
        ["s/worker-3", "s/worker-1", "s/worker-2"]
    );
    picture.settings.max_concurrent_nodes = Some(1);
    assert_eq!(picture.reserved(), ["s/worker-3"]);
    assert_eq!(picture.reason("s", "worker-1"), "ClusterBudgetExhausted");
    assert_eq!(picture.reason("s", "worker-3"), "");
}
