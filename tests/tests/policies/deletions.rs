//! Nodes and Skyhooks that are deleted in mid-batch.

use super::*;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use skyhook_crds::lease::Phase;
use skyhook_crds::lease::protocol;
use skyhook_crds::{InterruptionLease, RolloutState};
use skyhook_integration::wait::{MINUTE, eventually};

/// Two nodes at a time, of which one may fail.
async fn pairs(world: &World, name: &str) -> Result<()> {
    let strategy = json!({ "fixed": {
        "initialBatch": 2, "batchThreshold": 50, "failureThreshold": 1, "safetyLimit": 100,
    } });
    let spec = json!({ "default": { "budget": { "count": 2 }, "strategy": strategy } });
    policy(world, name, spec).await
}

/// Waits until a package is being installed on a node.
async fn works(world: &World, node: &str) -> Result<()> {
    let works = |lease: Option<&InterruptionLease>| {
        lease.is_some_and(|lease| protocol::phase(lease) == Some(Phase::Running))
    };
    world.lease_until(node, "it works", works).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_deleted_in_mid_batch_counts_as_failed() -> Result<()> {
    let (mut world, recorder) = start().await?;
    nodes(&mut world, "deleted", 1..=4, &[]).await?;
    pairs(&world, "deleted-policy").await?;
    world
        .apply("deleted", "deleted", paced("deleted-policy", "1.0.0"))
        .await?;
    works(&world, "deleted-1").await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.delete("deleted-1", &DeleteParams::default()).await?;
    // One of two is enough for this policy, so the next batch follows.
    let is_judged = |skyhook: &Skyhook| {
        let batch = batch(skyhook, "__default__");
        let last = (batch.last_batch_size, batch.last_batch_failed);
        batch.current_batch == 2 && last == (2, false)
    };
    world
        .skyhook_until("deleted", "the batch has two nodes", is_judged)
        .await?;
    let done = world.complete("deleted").await?;
    let status = of(&done, "__default__");
    ensure!((status.matched, status.completed) == (3, 3), "{status:?}");
    // The record would have seen a node of the second batch that is granted while one of the first still works.
    kept(&recorder, "deleted", &[("__default__", 2, &[2, 2])])?;
    world.coordinator.stop().await
}

/// In a deletion in the foreground the garbage collector deletes what the Skyhook owns first. This cluster has none, so the
/// test does its part.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_in_the_foreground_ends_although_its_state_goes_first() -> Result<()> {
    let (mut world, recorder) = start().await?;
    nodes(&mut world, "foreground", 1..=3, &[]).await?;
    pairs(&world, "foreground-policy").await?;
    world
        .apply(
            "foreground",
            "foreground",
            paced("foreground-policy", "1.0.0"),
        )
        .await?;
    works(&world, "foreground-1").await?;
    let skyhooks: Api<Skyhook> = Api::all(world.client.clone());
    let states: Api<RolloutState> = Api::all(world.client.clone());
    let foreground = DeleteParams::foreground();
    skyhooks.delete("foreground", &foreground).await?;
    let now = DeleteParams::default();
    states.delete("foreground", &now).await?;
    for node in ["foreground-1", "foreground-2", "foreground-3"] {
        world
            .lease_until(node, "released", |lease| lease.is_none())
            .await?;
    }
    eventually(MINUTE, async || {
        let skyhook = skyhooks.get("foreground").await?;
        let left = skyhook.finalizers();
        ensure!(left == ["foregroundDeletion"], "finalizers: {left:?}");
        Ok(())
    })
    .await?;
    let state = states.get_opt("foreground").await?;
    ensure!(state.is_none(), "it was made anew: {state:#?}");
    let without = json!({ "metadata": { "finalizers": null } });
    skyhooks
        .patch(
            "foreground",
            &PatchParams::default(),
            &Patch::Merge(&without),
        )
        .await?;
    let left = skyhooks.get_opt("foreground").await?;
    ensure!(left.is_none(), "{left:#?}");
    kept(&recorder, "foreground", &[("__default__", 2, &[2])])?;
    world.coordinator.stop().await
}
