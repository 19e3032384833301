//! `make bench-interrupt`: what an interrupt costs a node beyond the interrupt. Prints `bench NAME VALUE` lines.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::DrainState;
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::controlplane::Options;
use skyhook_integration::rollout::{apply, skyhook, wait_complete};

const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);
const UNIT: &str = "cron";

#[tokio::main]
async fn main() -> Result<()> {
    let plane = Options {
        fsync: true,
        ..Options::default()
    };
    let cluster = Cluster::start(Setup {
        plane,
        ..Setup::hosts(1)
    })
    .await?;
    let own = restart_ms(&cluster).await?;
    let mut drained = Vec::new();
    let mut back = Vec::new();
    for round in 0..ROUNDS {
        drained.push(drained_to_uncordoned(&cluster, round).await? - own);
    }
    for round in 0..ROUNDS {
        back.push(back_to_released(&cluster, round).await?);
    }
    println!("bench service_restart_ms {own:.0}");
    println!("bench drained_to_uncordoned_ms {:.0}", median(drained));
    println!("bench back_to_released_ms {:.0}", median(back));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    eprintln!("{values:.0?}");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// What systemd itself takes to restart the unit.
async fn restart_ms(cluster: &Cluster) -> Result<f64> {
    let host = &cluster.worker("worker-1")?.host;
    let script = format!(
        "a=$(date +%s%N); for i in 1 2 3 4 5; do systemctl daemon-reload; systemctl reset-failed; systemctl restart {UNIT}; done; echo $(( ($(date +%s%N) - a) / 5000 ))"
    );
    Ok(host.sh(&script).await?.trim().parse::<f64>()? / 1000.0)
}

/// From the moment that the lease says `Drained` to that when the Node is schedulable again.
async fn drained_to_uncordoned(cluster: &Cluster, round: usize) -> Result<f64> {
    let image = cluster.push("noop").await?;
    let interrupt = json!({"interrupt": {"type": "service", "services": [UNIT]}});
    let name = format!("restart-{round}");
    let client = cluster.client();
    let drained = tokio::spawn(until_lease(client.clone(), |lease| {
        lease.is_some_and(|l| l.spec.drain.state == DrainState::Drained)
    }));
    let node = tokio::spawn(until_schedulable_again(client.clone()));
    apply(
        client.clone(),
        &skyhook(&name, "noop", &image, 1, &interrupt),
    )
    .await?;
    let from = drained.await??;
    let to = node.await??;
    finish(cluster, &name).await?;
    Ok(to.duration_since(from).as_secs_f64() * 1000.0)
}

/// From the moment that the host's services run again to that when the lease is gone.
async fn back_to_released(cluster: &Cluster, round: usize) -> Result<f64> {
    let image = cluster.push("noop").await?;
    let name = format!("reboot-{round}");
    let client = cluster.client();
    let host = &cluster.worker("worker-1")?.host;
    let before = host.current()?;
    let mut seen = false;
    let gone = tokio::spawn(until_lease(client.clone(), move |lease| {
        seen |= lease.is_some();
        seen && lease.is_none()
    }));
    let interrupt = json!({"interrupt": {"type": "reboot"}});
    apply(
        client.clone(),
        &skyhook(&name, "noop", &image, 1, &interrupt),
    )
    .await?;
    host.wait_up(before.count).await?;
    let back = Instant::now();
    gone.await??;
    let took = ms(back);
    finish(cluster, &name).await?;
    Ok(took)
}

async fn finish(cluster: &Cluster, name: &str) -> Result<()> {
    wait_complete(cluster.client(), name, PATIENCE)
        .await
        .with_context(|| cluster.logs())?;
    Ok(())
}

/// When the lease of the one node, or that there is none, first satisfies `is_it`.
async fn until_lease(
    client: kube::Client,
    mut is_it: impl FnMut(Option<&InterruptionLease>) -> bool,
) -> Result<Instant> {
    let leases: Api<InterruptionLease> = Api::all(client);
    let mut events = watcher::watcher(leases, watcher::Config::default()).boxed();
    let watched = async {
        while let Some(event) = events.try_next().await? {
            let found = match &event {
                Event::Apply(lease) | Event::InitApply(lease) => is_it(Some(lease)),
                Event::Delete(_) => is_it(None),
                Event::Init | Event::InitDone => false,
            };
            if found {
                return Ok(Instant::now());
            }
        }
        anyhow::bail!("the watch of leases ended")
    };
    tokio::time::timeout(PATIENCE, watched)
        .await
        .context("the lease")?
}

/// When the one node is schedulable after it was not.
async fn until_schedulable_again(client: kube::Client) -> Result<Instant> {
    let nodes: Api<Node> = Api::all(client);
    let mut events = watcher::watcher(nodes, watcher::Config::default()).boxed();
    let watched = async {
        let mut cordoned = false;
        while let Some(event) = events.try_next().await? {
            let (Event::Apply(node) | Event::InitApply(node)) = event else {
                continue;
            };
            let now = node.spec.and_then(|s| s.unschedulable) == Some(true);
            if cordoned && !now {
                return Ok(Instant::now());
            }
            cordoned = now;
        }
        anyhow::bail!("the watch of nodes ended")
    };
    tokio::time::timeout(PATIENCE, watched)
        .await
        .context("the node")?
}
