//! `make bench-scale N=50 P=4`: a real API server and etcd, the real coordinator, N agents with their real core on faked
//! hosts whose stages take no time. Prints `bench NAME VALUE` lines.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and the environment"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kube::api::{Api, ListParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use serde_json::{Map, Value, json};
use skyhook_crds::{InterruptionLease, Skyhook};
use skyhook_integration::coordinator::Coordinator;
use skyhook_integration::programs;
use skyhook_integration::rollout::{apply, wait_complete};
use skyhook_integration::run::Run;
use skyhook_tests::bench::Fixture;
use skyhook_tests::coreagent::{CoreAgent, FakeHost, HostScript};

const KIB: f64 = 1024.0;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let nodes = setting("N", 50)?;
    let packages = setting("P", 4)?;
    let fixture = Fixture::start().await?;
    let run = Arc::new(Run::start()?);
    programs::collect(&run)?;
    let mut agents = Vec::new();
    for n in 0..nodes {
        let name = format!("worker-{n:04}");
        let uid = fixture.node(&name, &[]).await?;
        let host = FakeHost::new(&name, HostScript::default());
        agents.push(CoreAgent::start(fixture.client.clone(), &name, &uid, &host));
    }
    let coordinator = Coordinator::start(Arc::clone(&run), &fixture.plane, "coordinator").await?;
    tokio::time::sleep(Duration::from_secs(5)).await;

    let before = fixture.plane.request_counts().await?;
    let cpu = coordinator.cpu_seconds()?;
    let started = Instant::now();
    apply(fixture.client.clone(), &skyhook(packages)).await?;
    wait_complete(fixture.client.clone(), "scale", Duration::from_secs(1800)).await?;
    let wall = started.elapsed();
    let largest = largest_object(&fixture).await?;
    // Whatever is written late belongs to the roll-out all the same.
    until_released(&fixture).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let counts = fixture.plane.request_counts().await?.since(&before);

    let mut writes = 0;
    let mut reads = 0;
    for ((verb, what), count) in &counts.0 {
        println!("{count:>8}  {verb} {what}");
        match verb.as_str() {
            _ if what == "events" => {}
            "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" => writes += count,
            "GET" | "LIST" => reads += count,
            _ => {}
        }
    }
    let per_node =
        |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(nodes);
    println!("bench wall_s {:.2}", wall.as_secs_f64());
    println!("bench writes_per_node {:.2}", per_node(writes));
    println!("bench reads_per_node {:.2}", per_node(reads));
    println!(
        "bench coordinator_cpu_s {:.2}",
        coordinator.cpu_seconds()? - cpu
    );
    println!(
        "bench coordinator_peak_mib {:.1}",
        coordinator.peak_rss_kib()? / KIB
    );
    println!("bench largest_object_kib {largest:.1}");
    Ok(())
}

fn setting(name: &str, default: u32) -> anyhow::Result<u32> {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .with_context(|| format!("{name}={value} is not a number")),
        Err(_) => Ok(default),
    }
}

fn skyhook(packages: u32) -> Value {
    let packages: Map<String, Value> = (0..packages)
        .map(|n| {
            (
                format!(
                    "package-{}",
                    char::from(b'a' + u8::try_from(n % 26).unwrap_or(0))
                ),
                json!({ "version": "1.0.0", "image": "example.com/noop" }),
            )
        })
        .collect();
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": "scale" },
        "spec": { "packages": packages },
    })
}

async fn until_released(fixture: &Fixture) -> anyhow::Result<()> {
    let leases: Api<InterruptionLease> = Api::all(fixture.client.clone());
    while !leases.list(&ListParams::default()).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The largest of what we write, as JSON, in KiB.
async fn largest_object(fixture: &Fixture) -> anyhow::Result<f64> {
    let skyhooks: Api<DynamicObject> =
        Api::all_with(fixture.client.clone(), &ApiResource::erase::<Skyhook>(&()));
    let mut largest = 0;
    for object in skyhooks.list(&ListParams::default()).await?.items {
        largest = largest.max(serde_json::to_vec(&object)?.len());
    }
    Ok(f64::from(u32::try_from(largest)?) / KIB)
}
