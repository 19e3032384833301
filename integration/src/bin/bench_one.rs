//! `make bench-one`: one node, a package whose steps do nothing. Prints `bench NAME VALUE` lines.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::controlplane::Options;
use skyhook_integration::controlplane::counters::{AuditCounts, RequestCounts};
use skyhook_integration::process::sh;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::source::source;

/// Long enough for the last write of a roll-out, and for an idle cluster to show that it is idle.
const QUIET: Duration = Duration::from_secs(5);
const ROUNDS: usize = 5;
const MIB: f64 = 1024.0 * 1024.0;

#[tokio::main]
async fn main() -> Result<()> {
    let plane = Options {
        audit: true,
        fsync: true,
        ..Options::default()
    };
    let cluster = Cluster::start(Setup {
        plane,
        ..Setup::hosts(1)
    })
    .await?;
    tokio::time::sleep(QUIET).await;

    let idle = measure_idle(&cluster).await?;
    let mut times = Vec::new();
    let mut requests = Vec::new();
    for round in 0..ROUNDS {
        // A Skyhook and an image of its own each round: the node has seen neither.
        let name = format!("bench-{round}");
        let image = push_variant(&cluster, round).await?;
        let manifest = skyhook(&name, "noop", &image, 1, &json!({}));
        let before = (
            cluster.plane.request_counts().await?,
            cluster.plane.audit_counts()?,
        );
        let started = Instant::now();
        apply(cluster.client(), &manifest).await?;
        let done = wait_complete(cluster.client(), &name, Duration::from_secs(60)).await;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        if let Err(error) = done {
            eprintln!("{}", cluster.logs());
            return Err(error);
        }
        tokio::time::sleep(QUIET).await;
        let after = (
            cluster.plane.request_counts().await?,
            cluster.plane.audit_counts()?,
        );
        requests.push(Requests::between(&before, &after));
        eprintln!(
            "round {round}: {:.0} ms, {:#?}",
            times[round], requests[round].by_verb
        );
    }
    let first = times.first().copied().context("there are rounds")?;
    times.sort_by(f64::total_cmp);
    requests.sort_by_key(|requests| requests.ours);
    let middle = requests.get(ROUNDS / 2).context("there are rounds")?;
    println!("bench one_node_ms {:.0}", times[ROUNDS / 2]);
    println!("bench one_node_first_ms {first:.0}");
    println!("bench one_node_requests {}", middle.ours);
    println!("bench one_node_events {}", middle.events);
    println!("bench one_node_watches {}", middle.watches);
    println!("bench one_node_requests_all_users {}", middle.in_metrics);
    println!("bench idle_requests_per_minute {idle:.0}");
    let coordinator = cluster
        .coordinator
        .as_ref()
        .context("the set-up starts one")?;
    println!(
        "bench coordinator_rss_mib {:.1}",
        coordinator.rss()? as f64 / MIB
    );
    let worker = cluster.workers.first().context("the set-up has one")?;
    println!(
        "bench agent_rss_mib {:.1}",
        worker.agent.rss().await? as f64 / MIB
    );
    Ok(())
}

/// The package that does nothing, in a layer that was never pulled before.
async fn push_variant(cluster: &Cluster, round: usize) -> Result<Image> {
    let package = source("integration/fixtures/packages/noop");
    let folder = cluster.run.scratch().join(format!("noop-{round}"));
    let (from, to) = (package.to_string_lossy(), folder.to_string_lossy());
    sh("cp", ["-a", &from, &to]).await?;
    std::fs::write(folder.join("README"), format!("round {round}"))?;
    cluster
        .registry
        .push_folder(&folder, &format!("noop-{round}"), "1.0.0")
        .await
}

/// Requests of one roll-out.
#[derive(Debug)]
struct Requests {
    /// Of coordinator and agent, but events and watches.
    ours: u64,
    events: u64,
    watches: u64,
    /// What the API server's metrics say of our kinds, Nodes, revisions and events, whoever asked:
    /// the harness itself adds its apply and its own watch.
    in_metrics: u64,
    by_verb: BTreeMap<String, u64>,
}

impl Requests {
    fn between(
        before: &(RequestCounts, AuditCounts),
        after: &(RequestCounts, AuditCounts),
    ) -> Self {
        let ours = after
            .1
            .since(&before.1)
            .of(|user| user.starts_with("system:serviceaccount:skyhook:"));
        let mut result = Self {
            ours: 0,
            events: 0,
            watches: 0,
            in_metrics: 0,
            by_verb: BTreeMap::new(),
        };
        for (key, count) in &ours.0 {
            let who = key.user.rsplit(':').next().unwrap_or_default();
            let text = format!("{who} {} {}", key.verb, key.resource);
            result.by_verb.insert(text, *count);
            if key.verb == "watch" {
                result.watches += count;
            } else if key.resource == "events" {
                result.events += count;
            } else {
                result.ours += count;
            }
        }
        const KINDS: [&str; 6] = [
            "skyhooks",
            "interruptionleases",
            "deploymentpolicies",
            "nodes",
            "controllerrevisions",
            "events",
        ];
        for ((_, resource), count) in &after.0.since(&before.0).0 {
            if KINDS.contains(&resource.split('/').next().unwrap_or_default()) {
                result.in_metrics += count;
            }
        }
        result
    }
}

/// Requests of ours per minute when there is nothing to do.
async fn measure_idle(cluster: &Cluster) -> Result<f64> {
    let before = cluster.plane.audit_counts()?;
    let window = Duration::from_secs(20);
    tokio::time::sleep(window).await;
    let ours = cluster
        .plane
        .audit_counts()?
        .since(&before)
        .of(|user| user.starts_with("system:serviceaccount:skyhook:"));
    eprintln!("idle for {window:?}: {:?}", ours.0);
    Ok(ours.total() as f64 * 60.0 / window.as_secs_f64())
}
