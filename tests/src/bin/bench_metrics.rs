//! `make bench-metrics N=10000`: a scrape of a coordinator with N nodes and five Skyhooks of four packages each, in the
//! middle of an upgrade, with leases on a tenth of the nodes. Prints `bench NAME VALUE` lines.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and the environment"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use skyhook_coordinator::metrics::{Metrics, Pass};
use skyhook_crds::names;
use skyhook_fleet::index::{Change, Index, Kind, Mono};
use skyhook_fleet::plan::Now;
use skyhook_fleet::plan::cache::Cache;
use skyhook_fleet::session::HeldBack;
use skyhook_fleet::settings::Settings;
use skyhook_tests::bench::{decoded, node_name as name};

const SKYHOOKS: usize = 5;
const PACKAGES: [&str; 4] = ["drivers", "kernel", "network", "tuning"];
/// Scrapes and passes that are timed; the one in the middle counts.
const TIMES: usize = 9;
const AT: Mono = Mono::from_secs(1000);

fn main() -> anyhow::Result<()> {
    let nodes = match std::env::var("N") {
        Ok(text) => text.parse().context("N has to be a number of nodes")?,
        Err(_) => 10_000,
    };
    let mut index = fleet(nodes)?;
    let settings = Settings::default();
    let mut cache = Cache::default();
    let now = Now {
        mono: AT,
        wall: Timestamp::UNIX_EPOCH,
    };
    let _first = cache.plan(&index.view(&settings, now));
    let mut passes = Vec::new();
    let mut counts = Arc::default();
    for n in 0..TIMES {
        index.apply(Change::Lease(decoded(lease(n, n + 2))?), AT);
        let view = index.view(&settings, now);
        let started = Instant::now();
        counts = Arc::new(cache.plan(&view).fleet);
        passes.push(milliseconds(started));
    }
    let metrics = Metrics::new(true);
    metrics.passed(
        Pass {
            fleet: counts,
            held_back: HeldBack::default(),
            lag: Duration::ZERO,
        },
        Timestamp::UNIX_EPOCH,
    );
    let mut scrapes = Vec::new();
    let mut bytes = 0;
    for _ in 0..TIMES {
        let started = Instant::now();
        let text = metrics.text(Timestamp::UNIX_EPOCH);
        scrapes.push(milliseconds(started));
        ensure!(text.contains("skyhook_node_target_count{skyhook_name=\"scale-4\"}"));
        bytes = text.len();
    }
    println!(
        "a pass while everything is still to be written: {:.2} ms",
        median(passes)
    );
    println!("bench scrape_kib {}", bytes.div_ceil(1024));
    println!("bench scrape_ms {:.2}", median(scrapes));
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn fleet(nodes: usize) -> anyhow::Result<Index> {
    let mut index = Index::default();
    for n in 0..SKYHOOKS {
        let name = format!("scale-{n}");
        let packages = PACKAGES.map(|package| {
            let spec = json!({ "version": "2.0.0", "image": format!("example.com/{package}") });
            (package.to_owned(), spec)
        });
        let packages: Map<String, Value> = packages.into_iter().collect();
        let skyhook = json!({
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1", "generation": 1,
                "finalizers": [names::SKYHOOK_FINALIZER],
            },
            "spec": { "packages": packages, "interruptionBudget": { "percent": 10 } },
        });
        index.apply(Change::Skyhook(decoded(skyhook)?), AT);
    }
    for n in 0..nodes {
        index.apply(Change::Node(decoded(node(n))?), AT);
        if n % 10 == 0 {
            index.apply(Change::Lease(decoded(lease(n, 1))?), AT);
        }
    }
    for kind in Kind::ALL {
        index.apply(Change::Synced(kind), AT);
    }
    Ok(index)
}

/// Nodes are of three versions of packages, in several stages.
fn node(n: usize) -> Value {
    let version = ["1.0.0", "1.1.0", "2.0.0"][n % 3];
    let (stage, state) = [("config", "complete"), ("apply", "erroring")][usize::from(n % 50 == 1)];
    let states = PACKAGES.map(|package| {
        let entry = json!({
            "name": package, "version": version, "image": format!("example.com/{package}"), "stage": stage, "state": state,
            "restarts": n % 7,
        });
        (format!("{package}|{version}"), entry)
    });
    let states: Map<String, Value> = states.into_iter().collect();
    let states = Value::from(states).to_string();
    let annotations = (0..SKYHOOKS).map(|of| {
        let key = names::node_state(&format!("scale-{of}"));
        (key, json!(states))
    });
    let annotations: Map<String, Value> = annotations.collect();
    json!({
        "metadata": {
            "name": name(n), "uid": format!("uid-{}", name(n)), "resourceVersion": "1", "annotations": annotations,
        },
        "status": {
            "nodeInfo": { "bootID": "boot" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn lease(n: usize, version: usize) -> Value {
    let name = name(n);
    json!({
        "metadata": { "name": name, "uid": format!("lease-{name}"), "resourceVersion": version.to_string() },
        "spec": {
            "node": { "name": name, "uid": format!("uid-{name}") },
            "skyhook": { "name": "scale-0", "uid": "uid-scale-0" },
            "revision": "r", "granted": { "by": "x", "at": "1970-01-01T00:00:00Z" },
        },
        "status": {
            "phase": "Preparing", "needsDrain": false, "bootID": "boot", "machineID": "m", "packages": {},
            "since": "1970-01-01T00:00:00Z",
        },
    })
}
