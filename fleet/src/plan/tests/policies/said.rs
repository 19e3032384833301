//! What the status says about compartments that open no batch.

use super::*;

fn ready(picture: &Picture) -> String {
    let status = shown(picture);
    let mut all = status.conditions.iter().filter(|one| one.type_ == "Ready");
    all.next()
        .map(|one| one.message.clone())
        .unwrap_or_default()
}

/// A lease of `gpu` for worker `n`, of an earlier batch, whose package has failed for good.
fn failed(mut picture: Picture, n: usize) -> Picture {
    let spec = in_batch(grant_and(
        json!({ "batch": { "state": STATE, "number": 2 } }),
    ));
    let lease = leased(picture.clone(), spec, super::kept::erroring(3)).leases;
    let mut lease = lease[0].clone();
    let name = format!("worker-{n}");
    lease["metadata"]["name"] = json!(name);
    lease["spec"]["node"] = json!({ "name": name, "uid": format!("uid-of-{name}") });
    picture.leases.push(lease);
    picture
}

fn between_batches() -> Picture {
    let judged = json!({ "batch": 0, "members": [], "shown": 2 });
    with_batch(exponential(), &[], &judged)
}

#[test]
fn who_holds_the_slots_of_a_compartment_and_who_of_them_has_failed() {
    // Three nodes in `gpu`, and two slots. Two nodes failed and keep them.
    let mut picture = between_batches();
    picture = picture.node(3, &["metadata", "labels"], json!({ "gpu": "yes" }));
    let full = failed(failed(picture, 1), 2);
    let message = "compartment gpu has no free slot: 2 of 2 are held, 2 of them by nodes that failed: worker-1, worker-2";
    let ready = ready(&full);
    assert!(ready.contains(message), "{ready}");
}

#[test]
fn a_compartment_that_waits_for_the_cluster_wide_budget_says_so() {
    let mut picture = between_batches();
    picture.settings.max_concurrent_nodes = Some(0);
    let message =
        "compartment gpu waits for a slot: 0 of 0 nodes of the cluster-wide budget are in use";
    let ready = ready(&picture);
    assert!(ready.contains(message), "{ready}");
    assert!(!ready.contains("has no free slot"), "{ready}");
}

#[test]
fn a_stop_in_a_compartment_that_the_policy_no_longer_paces_is_not_told() {
    // A lease still names `gpu`, so its entry is still in the state.
    let stopped = json!({
        "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let picture = failed(with_batch(exponential(), &[], &stopped), 1);
    let told = |picture: &Picture| condition(&shown(picture), "RolloutStopped").is_some();
    assert!(told(&picture));
    let mut window = picture.clone();
    window.policies[0]["spec"]["compartments"][0]["strategy"] = json!(null);
    assert!(!told(&window), "it has no strategy");
    let mut renamed = picture.clone();
    renamed.policies[0]["spec"]["compartments"][0]["name"] = json!("other");
    assert!(!told(&renamed), "it has another name");
    let mut missing = picture;
    missing.policies.clear();
    assert!(told(&missing), "nobody knows");
}
