//! What happens to an open batch when nodes, budgets and policies change.

use super::*;
use skyhook_crds::installed::Stamp;

/// The node is complete at the wanted revision.
fn done(picture: Picture, n: usize) -> Picture {
    let index = picture.index();
    let checked = index.picture.skyhooks()["s"].checked.as_ref().unwrap();
    let recorded = Stamp {
        lease: "earlier".into(),
        revision: checked.revision.clone(),
        ..Stamp::default()
    };
    picture
        .annotated(n, "skyhook.nvidia.com/stamp_s", &recorded.render())
        .annotated(n, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
}

fn works(picture: Picture) -> Picture {
    let spec = in_batch(grant_and(json!({})));
    let status = with_package("Running", "in_progress");
    leased(stamp(picture, granted()), spec, status)
}

#[test]
fn a_member_that_is_moved_ends_in_the_batch_that_it_began_in() {
    let moved = |picture: Picture| picture.node(1, &["metadata", "labels"], json!({}));
    let open = || with_batch(exponential(), &[1], &json!({}));
    // It works on, takes a slot in both compartments, and the one that it came into opens no batch beyond its ceiling.
    let working = works(moved(open()));
    assert_eq!(written(&working), None);
    let counts = working.plan().fleet.skyhooks["s"].compartments.clone();
    assert_eq!((counts["gpu"].used, counts["__default__"].used), (1, 1));
    // Its end counts where it began.
    let state = written(&moved(done(open(), 1))).unwrap();
    let gpu = &state.compartments["gpu"];
    assert_eq!(
        (gpu.shown, gpu.last_batch_size, gpu.last_batch_failed),
        (2, 1, false)
    );
    assert_eq!(gpu.members, [member(2)]);
    assert_eq!(state.compartments["__default__"].members, [member(3)]);
}

#[test]
fn a_member_that_is_ignored_ends_what_was_granted_and_is_left_out_otherwise() {
    let ignored = |picture: Picture, n: usize| {
        let label = json!({ "gpu": "yes", skyhook_crds::names::IGNORE: "true" });
        picture.node(n, &["metadata", "labels"], label)
    };
    let open = |struck: Value| with_batch(exponential(), &[1, 2], &json!({ "struck": struck }));
    let of_gpu =
        |picture: &Picture| written(picture).map(|state| state.compartments["gpu"].struck.clone());
    let granted = ignored(works(with_batch(exponential(), &[1], &json!({}))), 1);
    assert_eq!(
        of_gpu(&granted),
        Some(vec![]),
        "nothing but the other compartment's batch"
    );
    let waiting = ignored(done(open(json!([])), 1), 2);
    assert_eq!(of_gpu(&waiting), Some(vec![1]));
    let looks = |picture: &Picture| {
        let effects = picture.plan().effects;
        effects
            .iter()
            .any(|effect| effect.kind() == "LookForLeases")
    };
    assert!(!looks(&waiting));
    let struck = ignored(done(open(json!([1])), 1), 2);
    assert!(looks(&struck), "once it is struck");
    // It is not ignored any more, and gets no lease in this batch all the same.
    assert_eq!(done(open(json!([1])), 1).reserved(), Vec::<String>::new());
}

#[test]
fn a_ceiling_that_is_lowered_withdraws_the_youngest_reserved_lease() {
    let mut picture = with_batch(exponential(), &[1, 2], &json!({}));
    picture = leased(picture, in_batch(json!({})), json!(null));
    let mut second = picture.leases[0].clone();
    second["metadata"]["name"] = json!("worker-2");
    second["metadata"]["uid"] = json!("second");
    second["spec"]["node"] = json!({ "name": "worker-2", "uid": "uid-of-worker-2" });
    picture.leases.push(second);
    for (at, created) in ["2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z"]
        .iter()
        .enumerate()
    {
        picture.leases[at]["metadata"]["creationTimestamp"] = json!(created);
    }
    let withdrawn = |picture: &Picture| -> Vec<String> {
        let effects = picture.plan().effects.into_iter();
        effects
            .filter_map(|effect| match effect {
                Effect::WithdrawLease { node, .. } => Some(node),
                _ => None,
            })
            .collect()
    };
    assert_eq!(withdrawn(&picture), Vec::<String>::new());
    picture.policies[0]["spec"]["compartments"][0]["budget"] = json!({ "count": 1 });
    assert_eq!(withdrawn(&picture), ["worker-2"]);
}

#[test]
fn a_policy_that_comes_back_goes_on_where_it_was() {
    let stopped =
        json!({ "batch": 0, "members": [], "stopped": "2026-11-26T12:00:00Z", "shown": 2 });
    let picture = with_batch(exponential(), &[], &stopped);
    let mut gone = picture.clone();
    gone.policies.clear();
    assert_eq!(written(&gone), None, "the state is kept");
    assert_eq!(picture.reason("s", "worker-1"), "RolloutStopped");
    // A compartment that is renamed starts anew, and its old entry goes when no lease names it.
    let mut renamed = picture;
    renamed.policies[0]["spec"]["compartments"][0]["name"] = json!("gpus");
    let state = written(&renamed).unwrap();
    let names: Vec<&String> = state.compartments.keys().collect();
    assert_eq!(names, ["__default__", "gpus"]);
    assert_eq!(state.compartments["gpus"].members, [member(1)]);
    // A lease of the old name holds the first batch of the new one.
    let mut held = works(renamed);
    held.leases[0]["spec"]["batch"]["number"] = json!(2);
    let state = written(&held).unwrap();
    assert!(
        !state
            .compartments
            .get("gpus")
            .is_some_and(|gpus| gpus.is_open())
    );
    assert!(state.compartments["gpu"].stopped.is_some());
}
