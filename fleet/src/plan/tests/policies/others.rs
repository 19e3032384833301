//! Batches, and what others do to their nodes: compartments that match the same ones, and other Skyhooks.

use super::*;
use crate::batches::Look;
use crate::index::Change;

/// Compartments `gpu` and `zone` have half of their nodes at once, and both match worker-1. `gpu` matches `gpus` nodes, `zone`
/// matches two.
fn tied(gpus: usize) -> Picture {
    let half = json!({ "budget": { "percent": 50 }, "strategy": { "exponential": {} } });
    let mut picture = paced(&half);
    let mut zone = half;
    zone["name"] = json!("zone");
    zone["selector"] = json!({ "matchLabels": { "zone": "a" } });
    let compartments = picture.policies[0]["spec"]["compartments"].as_array_mut();
    compartments.unwrap().push(zone);
    picture.nodes = (1..=gpus + 1)
        .map(|n| testkit::node_object(&format!("worker-{n}")))
        .collect();
    let last = gpus + 1;
    for n in 2..=gpus {
        picture = picture.node(n, &["metadata", "labels"], json!({ "gpu": "yes" }));
    }
    picture
        .node(
            1,
            &["metadata", "labels"],
            json!({ "gpu": "yes", "zone": "a" }),
        )
        .node(last, &["metadata", "labels"], json!({ "zone": "a" }))
}

#[test]
fn a_tie_that_flips_is_like_a_label_that_moves_the_node() {
    let works = |picture: Picture| {
        let spec = in_batch(grant_and(json!({})));
        leased(
            stamp(picture, granted()),
            spec,
            with_package("Running", "in_progress"),
        )
    };
    let used = |picture: &Picture| {
        let counts = picture.plan().fleet.skyhooks["s"].compartments.clone();
        (counts["gpu"].used, counts["zone"].used)
    };
    let members = |state: &RolloutStateSpec, compartment: &str| {
        let state = state.compartments.get(compartment);
        state.map_or_else(Vec::new, |state| state.members.clone())
    };
    // One of two nodes at once in both: the name decides, and worker-1 is in `gpu`. Worker-3 is alone in `zone`.
    let before = works(with_batch(tied(2), &[1], &json!({})));
    assert_eq!(used(&before), (1, 0));
    let state = written(&before).unwrap();
    assert_eq!(
        (members(&state, "gpu"), members(&state, "zone")),
        (vec![member(1)], vec![member(3)])
    );
    // Two of four nodes in `gpu`: `zone` has the smaller ceiling now. Worker-1 takes the only slot there as well, so worker-5
    // has to wait, and `gpu` opens nothing before worker-1 has ended.
    let flipped = || with_batch(tied(4), &[1], &json!({}));
    let after = works(flipped());
    assert_eq!(used(&after), (1, 1));
    assert_eq!(written(&after), None);
    assert_eq!(on_leases(&after), Vec::<String>::new());
    // Its end counts in the batch that it began in. Three nodes are left in `gpu`, of which one may be worked on at once.
    let state = written(&done(flipped(), 1)).unwrap();
    let gpu = &state.compartments["gpu"];
    assert_eq!((gpu.shown, gpu.last_batch_size), (2, 1));
    assert_eq!(gpu.members, [member(2)]);
    assert_eq!(members(&state, "zone"), [member(5)]);
}

#[test]
fn a_member_that_another_skyhook_has_leased_is_left_out_and_taken_later() {
    let other = skyhook("t", json!({ "interruptionBudget": { "count": 1 } }));
    let lease_of_other = json!({ "skyhook": { "name": "t", "uid": "uid-of-t" } });
    // Worker-2 is complete, and worker-1 is leased for the other one.
    let open = |struck: Value| {
        let open = with_batch(exponential(), &[1, 2], &json!({ "struck": struck }));
        done(open, 2).another(other.clone())
    };
    let held = |struck: Value| leased(open(struck), lease_of_other.clone(), json!(null));
    let struck = written(&held(json!([]))).unwrap();
    assert_eq!(struck.compartments["gpu"].struck, [0]);
    // A look has shown that nobody has leased it in this batch: the batch has had one node.
    let held = held(json!([0]));
    let mut index = held.index();
    let looks = vec![Look {
        state: STATE.into(),
        batch: 3,
        id: member(1),
    }];
    let skyhook = "s".to_owned();
    index.apply(Change::Left { skyhook, looks }, Mono::ZERO);
    let mut effects = held.plan_of(&index).effects.into_iter();
    let judged = effects.find_map(|effect| match effect {
        Effect::WriteRollout { name, spec, .. } if name == "s" => Some(*spec),
        _ => None,
    });
    let gpu = &judged.unwrap().compartments["gpu"];
    assert_eq!((gpu.batch, gpu.shown, gpu.last_batch_size), (0, 2, 1));
    // The other one has given it back.
    let mut free = open(json!([]));
    let judged = json!({ "batch": 0, "members": [], "shown": 2, "lastBatchSize": 1 });
    free.rollouts = with_batch(free.clone(), &[], &judged).rollouts;
    let state = written(&free).unwrap();
    assert_eq!(state.compartments["gpu"].members, [member(1)]);
}
