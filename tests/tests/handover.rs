//! Two replicas that stand for election on a real API server: neither a pause of it nor a replica whose clock is ahead
//! moves the leadership; a leader that is asked to stop hands over in seconds, one that is frozen is replaced when its
//! Lease has run out, and changes nothing when it wakes.

#![expect(
    clippy::disallowed_methods,
    reason = "how long a hand-over takes is what is measured"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use skyhook_coordinator::leadership::Leadership;
use skyhook_crds::Skyhook;
use skyhook_integration::coordinator::Coordinator;
use skyhook_integration::install::NAMESPACE;
use skyhook_integration::programs;
use skyhook_integration::rollout::{LeaseRecorder, wait_complete, wait_for};
use skyhook_integration::run::Run;
use skyhook_integration::wait::{MINUTE, asking_every};
use skyhook_tests::bench::Fixture;

/// An orderly hand-over is a matter of one write and one watch event; the rest is for a busy machine.
const ORDERLY: Duration = Duration::from_secs(5);
/// A leader that says nothing is believed for 15 s.
const RUN_OUT: Duration = Duration::from_secs(30);
/// A pause of the API server, as its restart or a change of etcd's leader makes one.
const PAUSE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_and_a_frozen_one_is_replaced() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let run = Arc::new(Run::start()?);
    programs::collect(&run)?;
    let _agents = fixture.workers(3, Duration::from_millis(400)).await?;
    let start = async |name: &str| {
        let run = Arc::clone(&run);
        Coordinator::start_with(run, &fixture.plane, name, &["--leader-election"]).await
    };
    let recorder = LeaseRecorder::start(fixture.client.clone()).await?;
    let first = start("coordinator-a").await?;
    leads(&fixture, "coordinator-a", MINUTE).await?;
    let second = start("coordinator-b").await?;

    fixture.skyhook(skyhook(0)).await?;
    let some_are_complete = async || {
        let some = |skyhook: &Skyhook| {
            let status = skyhook.status.as_ref();
            status.is_some_and(|status| matches!(&*status.complete_nodes, "1/3" | "2/3"))
        };
        let client = fixture.client.clone();
        wait_for(client, "sample", "some nodes complete", MINUTE, some).await
    };
    some_are_complete().await?;
    let clock = || Timestamp::now() + SignedDuration::from_hours(1);
    let ahead = Leadership::stand(
        fixture.client.clone(),
        NAMESPACE,
        "coordinator-ahead",
        clock,
    );
    fixture.plane.freeze_apiserver(true);
    tokio::time::sleep(PAUSE).await;
    fixture.plane.freeze_apiserver(false);
    let since = Instant::now();
    while since.elapsed() < 2 * PAUSE {
        leads(&fixture, "coordinator-a", Duration::ZERO).await?;
        ensure!(!ahead.leads(), "the replica whose clock is ahead leads");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ahead.resign().await;
    let stopped = Instant::now();
    first.stop().await?;
    leads(&fixture, "coordinator-b", ORDERLY).await?;
    let orderly = stopped.elapsed();
    wait_complete(fixture.client.clone(), "sample", MINUTE).await?;

    // The next leader is frozen in the midst of a roll-out, and wakes when another has long taken over.
    let third = start("coordinator-c").await?;
    let skyhooks: Api<Skyhook> = Api::all(fixture.client.clone());
    let change = Patch::Merge(skyhook(1));
    let params = PatchParams::default();
    skyhooks.patch("sample", &params, &change).await?;
    some_are_complete().await?;
    let frozen = Instant::now();
    second.freeze(true);
    leads(&fixture, "coordinator-c", RUN_OUT).await?;
    let abrupt = frozen.elapsed();
    second.freeze(false);
    wait_complete(fixture.client.clone(), "sample", MINUTE).await?;
    leads(&fixture, "coordinator-c", Duration::ZERO).await?;
    let most = recorder.most_granted()?;
    ensure!(most == 1, "{most} at once: {:#?}", recorder.changes());
    for replica in [&second, &third] {
        replica.check_alive()?;
    }
    println!("handed over in {orderly:.1?} when asked to stop, in {abrupt:.1?} when frozen");
    Ok(())
}

/// Waits until this replica holds the Lease.
async fn leads(fixture: &Fixture, who: &str, within: Duration) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(fixture.client.clone(), NAMESPACE);
    asking_every(Duration::from_millis(20), within, async || {
        let lease = leases.get_opt("skyhook-coordinator").await?;
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        ensure!(
            holder.as_deref() == Some(who),
            "{who} does not lead, {holder:?} does"
        );
        Ok(())
    })
    .await
}

fn skyhook(version: u32) -> serde_json::Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1",
        "kind": "Skyhook",
        "metadata": { "name": "sample" },
        "spec": {
            "interruptionBudget": { "count": 1 },
            "packages": { "something": { "version": format!("1.0.{version}"), "image": "example.com/something" } },
        },
    })
}
