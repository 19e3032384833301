//! `make bench-scale N=50 P=4`: a real API server and etcd, the real coordinator, N agents with their real core on faked
//! hosts whose stages take no time. Prints `bench NAME VALUE` lines. `SKYHOOKS=20` rolls that many out at once;
//! `UPGRADE=0` leaves out what follows the roll-out: an upgrade, and one that fails on every node with 2 KiB of output.
//! `POLICY=1` paces the roll-out by a DeploymentPolicy with four compartments, in batches that double. Nothing follows it
//! then: a batch waits for minutes for nodes that fail.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and the environment"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde_json::{Map, Value, json};
use skyhook_crds::{DeploymentPolicy, InterruptionLease, Skyhook};
use skyhook_fleet::facts::WireSkyhook;
use skyhook_integration::controlplane::Options;
use skyhook_integration::controlplane::counters::RequestCounts;
use skyhook_integration::coordinator::Coordinator;
use skyhook_integration::programs;
use skyhook_integration::rollout::{apply, wait_complete, wait_for};
use skyhook_integration::run::Run;
use skyhook_integration::wait::eventually;
use skyhook_tests::bench::Fixture;
use skyhook_tests::crowd::{Crowd, ZONE, ZONES};
use tokio::task::JoinHandle;

const KIB: f64 = 1024.0;
/// Name of the DeploymentPolicy.
const POLICY: &str = "scale";
/// Ten thousand nodes may take a quarter of an hour.
const LONGEST: Duration = Duration::from_secs(1800);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let nodes = setting("N", 50)?;
    let packages = setting("P", 4)?;
    let skyhooks = setting("SKYHOOKS", 1)?;
    let has_policy = setting("POLICY", 0)? != 0;
    let upgrades = setting("UPGRADE", u32::from(!has_policy))? != 0;
    if has_policy && upgrades {
        bail!(
            "POLICY=1 and UPGRADE=1: nodes that fail would hold up their batches; leave one of them out"
        );
    }
    let options = Options {
        // Nodes are Ready when they are created: no second and third write for each.
        apiserver_flags: vec!["--disable-admission-plugins=TaintNodesByCondition".into()],
        ..Options::default()
    };
    let fixture = Fixture::start_with(&options).await?;
    let run = Arc::new(Run::start()?);
    programs::collect(&run)?;
    let crowd = Crowd::start(&fixture, nodes.try_into()?).await?;
    let coordinator = Coordinator::start(Arc::clone(&run), &fixture.plane, "coordinator").await?;
    if has_policy {
        create_policy(&fixture).await?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let largest = Largest::watch(fixture.client.clone());

    let before = fixture.plane.request_counts().await?;
    let cpu = coordinator.cpu_seconds()?;
    let started = Instant::now();
    for n in 0..skyhooks {
        let mut manifest = skyhook(n, packages, "1.0.0");
        if has_policy {
            manifest["spec"]["deploymentPolicy"] = json!(POLICY);
        }
        apply(fixture.client.clone(), &manifest).await?;
    }
    for n in 0..skyhooks {
        wait_complete(fixture.client.clone(), &name(n), LONGEST).await?;
    }
    let wall = started.elapsed();
    // Whatever is written late belongs to the roll-out all the same.
    until_released(&fixture).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let counts = fixture.plane.request_counts().await?.since(&before);
    let cpu = coordinator.cpu_seconds()? - cpu;
    let granted = crowd.first_grant().context("no lease was granted")?;

    let (writes, reads) = sums(&counts);
    let per_node =
        |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(nodes);
    println!("bench wall_s {:.2}", wall.as_secs_f64());
    println!("bench grant_first_ms {}", (granted - started).as_millis());
    println!("bench writes_per_node {:.2}", per_node(writes));
    println!("bench reads_per_node {:.2}", per_node(reads));
    if skyhooks == 1 {
        println!("bench coordinator_cpu_s {cpu:.2}");
    } else {
        println!("bench many_skyhooks_cpu_s {cpu:.2}");
    }
    if skyhooks == 1 && upgrades {
        upgrade(&fixture, &crowd, packages, nodes.try_into()?).await?;
    }
    let peak = coordinator.peak_rss_kib()? / KIB;
    println!("bench coordinator_peak_mib {peak:.1}");
    let (object, status) = largest.kib()?;
    println!("bench largest_object_kib {object:.1}");
    println!("bench largest_status_kib {status:.1}");
    Ok(())
}

/// Four compartments, in which nothing but the strategy bounds the batches: 1, 2, 4 and so on.
async fn create_policy(fixture: &Fixture) -> anyhow::Result<()> {
    let strategy = json!({ "exponential": { "initialBatch": 1, "growthFactor": 2 } });
    let budget = json!({ "percent": 100 });
    let compartment = |zone: &&str| {
        json!({
            "name": zone, "selector": { "matchLabels": { ZONE: zone } }, "budget": budget, "strategy": strategy,
        })
    };
    let policy = serde_json::from_value(json!({
        "metadata": { "name": POLICY },
        "spec": {
            "default": { "budget": budget, "strategy": strategy },
            "compartments": ZONES.iter().map(compartment).collect::<Vec<_>>(),
        },
    }))?;
    let policies: Api<DeploymentPolicy> = Api::all(fixture.client.clone());
    policies.create(&PostParams::default(), &policy).await?;
    Ok(())
}

/// A new version, and in the midst of it another one that fails everywhere and says much.
async fn upgrade(
    fixture: &Fixture,
    crowd: &Crowd,
    packages: u32,
    nodes: usize,
) -> anyhow::Result<()> {
    let begin = async |version: &str| {
        let applied = apply(fixture.client.clone(), &skyhook(0, packages, version)).await?;
        let generation = applied.metadata.generation.unwrap_or_default();
        let is_seen = |skyhook: &Skyhook| {
            let status = skyhook.status.as_ref();
            status.is_some_and(|status| status.observed_generation >= generation)
        };
        let client = fixture.client.clone();
        wait_for(
            client,
            &name(0),
            "the new version is seen",
            LONGEST,
            is_seen,
        )
        .await
    };
    begin("1.1.0").await?;
    crowd.change(|script| {
        script.output = "x".repeat(2048);
        script.failures.insert("package-a".to_owned(), u32::MAX);
    });
    begin("1.2.0").await?;
    let started = Instant::now();
    eventually(LONGEST, async || {
        let erroring = crowd.erroring();
        ensure!(erroring >= nodes, "{erroring} of {nodes} nodes fail");
        Ok(())
    })
    .await?;
    println!(
        "bench all_erroring_s {:.2}",
        started.elapsed().as_secs_f64()
    );
    // What is shown of it is paced.
    tokio::time::sleep(Duration::from_secs(10)).await;
    Ok(())
}

/// The largest Skyhook, and the largest status, that was ever stored, as JSON.
struct Largest {
    object: Arc<AtomicUsize>,
    status: Arc<AtomicUsize>,
    watch: Option<JoinHandle<()>>,
}

impl Drop for Largest {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

impl Largest {
    fn watch(client: kube::Client) -> Self {
        let mut largest = Self {
            object: Arc::default(),
            status: Arc::default(),
            watch: None,
        };
        let (object, status) = (Arc::clone(&largest.object), Arc::clone(&largest.status));
        largest.watch = Some(tokio::spawn(async move {
            let api: Api<WireSkyhook> = Api::all(client);
            let events = watcher::watcher(api, watcher::Config::default());
            let mut events = events.default_backoff().boxed();
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(skyhook) | Event::InitApply(skyhook)) = event {
                    let shown = size(&skyhook.status);
                    let all = size(&skyhook.metadata) + size(&skyhook.spec) + shown;
                    object.fetch_max(all, Ordering::Relaxed);
                    status.fetch_max(shown, Ordering::Relaxed);
                }
            }
        }));
        largest
    }

    fn kib(&self) -> anyhow::Result<(f64, f64)> {
        let kib = |size: &AtomicUsize| -> anyhow::Result<f64> {
            Ok(f64::from(u32::try_from(size.load(Ordering::Relaxed))?) / KIB)
        };
        Ok((kib(&self.object)?, kib(&self.status)?))
    }
}

fn size(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |bytes| bytes.len())
}

/// Writes and reads, without events; prints all.
fn sums(counts: &RequestCounts) -> (u64, u64) {
    let (mut writes, mut reads) = (0, 0);
    for ((verb, what), count) in &counts.0 {
        println!("{count:>8}  {verb} {what}");
        match verb.as_str() {
            _ if what == "events" => {}
            "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" => writes += count,
            "GET" | "LIST" => reads += count,
            _ => {}
        }
    }
    (writes, reads)
}

fn setting(name: &str, default: u32) -> anyhow::Result<u32> {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .with_context(|| format!("{name}={value} is not a number")),
        Err(_) => Ok(default),
    }
}

fn name(n: u32) -> String {
    format!("scale-{n:02}")
}

fn skyhook(n: u32, packages: u32, version: &str) -> Value {
    let letter = |n: u32| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    let package = |n: u32| {
        let package = json!({ "version": version, "image": "example.com/noop" });
        (format!("package-{}", letter(n)), package)
    };
    let packages: Map<String, Value> = (0..packages).map(package).collect();
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": name(n) },
        "spec": { "packages": packages },
    })
}

async fn until_released(fixture: &Fixture) -> anyhow::Result<()> {
    let leases: Api<InterruptionLease> = Api::all(fixture.client.clone());
    while !leases.list(&ListParams::default()).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
