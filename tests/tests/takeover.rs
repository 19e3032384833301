//! Two coordinators on one API server, of which one is frozen and woken again and again: as late and as deposed as a
//! leader can be. The budget holds without leader election.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use skyhook_crds::Skyhook;
use skyhook_integration::coordinator::Coordinator;
use skyhook_integration::programs;
use skyhook_integration::rollout::{LeaseRecorder, is_complete, wait_complete};
use skyhook_integration::run::Run;
use skyhook_tests::bench::{Fixture, pseudo_random};

/// Hand-overs in which the old leader is woken in mid-grant.
const HAND_OVERS: u32 = 200;
const NODES: usize = 5;
const BUDGET: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_that_wakes_up_never_exceeds_the_budget() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let run = Arc::new(Run::start()?);
    programs::collect(&run)?;
    let _agents = fixture.workers(NODES, Duration::from_millis(2)).await?;
    let pair = [
        Coordinator::start(Arc::clone(&run), &fixture.plane, "coordinator-a").await?,
        Coordinator::start(Arc::clone(&run), &fixture.plane, "coordinator-b").await?,
    ];
    let recorder = LeaseRecorder::start(fixture.client.clone()).await?;
    fixture.skyhook(skyhook(0)).await?;
    let skyhooks: Api<Skyhook> = Api::all(fixture.client.clone());
    let mut random = pseudo_random(42);
    let mut version = 0;
    for round in 0..HAND_OVERS {
        let old = &pair[(round % 2) as usize];
        // Somewhere in the midst of whatever it does, it stops; the other goes on; it wakes with what it believed.
        tokio::time::sleep(Duration::from_micros(random(30_000))).await;
        old.freeze(true);
        tokio::time::sleep(Duration::from_micros(20_000 + random(60_000))).await;
        old.freeze(false);
        if is_complete(&skyhooks.get("sample").await?) {
            version += 1;
            skyhooks
                .patch(
                    "sample",
                    &PatchParams::default(),
                    &Patch::Merge(&skyhook(version)),
                )
                .await?;
        }
        ensure!(
            recorder.most_granted()? <= BUDGET,
            "round {round}: {:#?}",
            recorder.changes()
        );
    }
    let done = wait_complete(fixture.client.clone(), "sample", Duration::from_secs(60)).await?;
    ensure!(
        done.status
            .is_some_and(|s| s.complete_nodes == format!("{NODES}/{NODES}")),
        "not all nodes are complete"
    );
    let most = recorder.most_granted()?;
    ensure!(
        most <= BUDGET,
        "{most} leases were granted at once with a budget of {BUDGET}"
    );
    println!(
        "{HAND_OVERS} hand-overs, {version} roll-outs, at most {most} of {BUDGET} leases granted at once"
    );
    for coordinator in &pair {
        coordinator.check_alive()?;
    }
    Ok(())
}

fn skyhook(version: u32) -> serde_json::Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1",
        "kind": "Skyhook",
        "metadata": { "name": "sample" },
        "spec": {
            "interruptionBudget": { "count": BUDGET },
            "packages": { "something": { "version": format!("1.0.{version}"), "image": "example.com/something" } },
        },
    })
}
