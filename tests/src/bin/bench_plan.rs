//! `make bench-plan N=10000`: the planner alone, without an API server, on N nodes of which every one holds a lease of a
//! Skyhook with four packages. Prints `bench NAME VALUE` lines.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and the environment"
)]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use skyhook_crds::names;
use skyhook_fleet::effect::Effect;
use skyhook_fleet::index::{Change, Index, Kind, Mono};
use skyhook_fleet::plan::{Now, plan};
use skyhook_fleet::settings::Settings;

const PACKAGES: [&str; 4] = ["drivers", "kernel", "network", "tuning"];

fn main() -> anyhow::Result<()> {
    let nodes: usize = match std::env::var("N") {
        Ok(text) => text.parse().context("N is a number of nodes")?,
        Err(_) => 10_000,
    };
    let settings = Settings::default();
    let mut index = picture(nodes)?;
    let (full, effects) = timed(&index, &settings);
    let grants = effects
        .iter()
        .filter(|effect| effect.kind() == "GrantLease");
    println!("{} effects, {} grants", effects.len(), grants.count());
    println!("bench plan_ms_full_{nodes} {full:.1}");
    index.apply(Change::Lease(decoded(lease(&index, 0)?)?), Mono::ZERO);
    let (change, _) = timed(&index, &settings);
    println!("bench plan_ms_change_{nodes} {change:.1}");
    Ok(())
}

/// A first pass over a picture, in milliseconds.
fn timed(index: &Index, settings: &Settings) -> (f64, Vec<Effect>) {
    let now = Now {
        mono: Duration::from_secs(1000),
        wall: Timestamp::UNIX_EPOCH,
    };
    let view = index.view(settings, now);
    let started = Instant::now();
    let effects = plan(&view).effects;
    (started.elapsed().as_secs_f64() * 1e3, effects)
}

fn picture(nodes: usize) -> anyhow::Result<Index> {
    let mut index = Index::default();
    let mut packages = Map::new();
    for name in PACKAGES {
        let package = json!({ "version": "1.0.0", "image": format!("example.com/{name}") });
        packages.insert(name.to_owned(), package);
    }
    let skyhook = json!({
        "metadata": {
            "name": "scale", "uid": "uid-scale", "resourceVersion": "1", "generation": 1,
            "finalizers": [names::SKYHOOK_FINALIZER],
        },
        "spec": { "packages": packages },
    });
    index.apply(Change::Skyhook(decoded(skyhook)?), Mono::ZERO);
    for n in 0..nodes {
        let name = name(n);
        let stamp = json!({ "granted": format!("lease-{name}") }).to_string();
        let node = json!({
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1",
                "annotations": { names::stamp("scale"): stamp },
            },
            "status": {
                "nodeInfo": { "bootID": "boot" },
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        index.apply(Change::Node(decoded(node)?), Mono::ZERO);
        let lease = lease(&index, n)?;
        index.apply(Change::Lease(decoded(lease)?), Mono::ZERO);
    }
    for kind in [
        Kind::Node,
        Kind::Skyhook,
        Kind::Lease,
        Kind::Revision,
        Kind::Policy,
    ] {
        index.apply(Change::Synced(kind), Mono::ZERO);
    }
    Ok(index)
}

/// The lease of a node, reserved and not granted.
fn lease(index: &Index, n: usize) -> anyhow::Result<Value> {
    let skyhook = index
        .picture()
        .skyhooks()
        .get("scale")
        .context("the Skyhook is there")?;
    let checked = skyhook
        .checked
        .as_ref()
        .map_err(|e| anyhow::anyhow!("{e}"))?;
    let name = name(n);
    Ok(json!({
        "metadata": { "name": name, "uid": format!("lease-{name}"), "resourceVersion": "1" },
        "spec": {
            "node": { "name": name, "uid": format!("uid-{name}") },
            "skyhook": { "name": "scale", "uid": "uid-scale" },
            "revision": checked.revision,
        },
    }))
}

fn name(n: usize) -> String {
    format!(
        "ip-10-0-{:03}-{:03}.eu-central-1.compute.internal",
        n / 250,
        n % 250
    )
}

fn decoded<T: DeserializeOwned>(object: Value) -> anyhow::Result<Box<T>> {
    Ok(Box::new(serde_json::from_value(object)?))
}
