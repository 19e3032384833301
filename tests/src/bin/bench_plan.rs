//! `make bench-plan N=10000`: the planner alone, without an API server, on N nodes of which every one holds a lease of a
//! Skyhook with four packages. With TAINTED=50, every 50th node carries the runtime-required taint. Prints `bench NAME VALUE` lines: a first pass, in which every lease is granted, and a pass
//! after one lease changed, with all agents at work.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and the environment"
)]

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use skyhook_crds::names;
use skyhook_fleet::effect::{Effect, NodePatch};
use skyhook_fleet::index::{Change, Index, Kind, Mono};
use skyhook_fleet::plan::cache::Cache;
use skyhook_fleet::plan::{Now, Plan};
use skyhook_fleet::settings::Settings;
use skyhook_tests::bench::{decoded, node_name as name};

const PACKAGES: [&str; 4] = ["drivers", "kernel", "network", "tuning"];
/// Passes that are timed; the one in the middle counts.
const TIMES: usize = 9;
const AT: Mono = Mono::from_secs(1000);

fn main() -> anyhow::Result<()> {
    let nodes = number("N", 10_000)?;
    let mut fleet = Fleet::new(nodes, number("TAINTED", 0)?)?;
    let mut cache = Cache::default();
    let (full, plan) = fleet.timed(&mut cache);
    let grants = plan.effects.iter().filter(|e| e.kind() == "GrantLease");
    println!("{} effects, {} grants", plan.effects.len(), grants.count());

    fleet.set_to_work()?;
    fleet.settle()?;
    let mut empty = Cache::default();
    let (working, _) = fleet.timed(&mut empty);
    println!("a first pass with all agents at work: {working:.1} ms");
    let (nothing, _) = fleet.timed(&mut empty);
    println!("a pass after nothing changed: {nothing:.2} ms");
    let mut times = Vec::new();
    for n in 0..TIMES {
        fleet.lease(n * nodes / TIMES, "Preparing")?;
        let (change, plan) = fleet.timed(&mut empty);
        let counted = empty.counted();
        println!(
            "one lease changed: {change:.2} ms, {} effects, {counted:?}",
            plan.effects.len()
        );
        times.push(change);
    }
    times.sort_by(f64::total_cmp);
    println!("bench plan_ms_full_{nodes} {full:.1}");
    println!("bench plan_ms_change_{nodes} {:.2}", times[TIMES / 2]);
    Ok(())
}

/// A number from the environment.
fn number(name: &str, unset: usize) -> anyhow::Result<usize> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name} has to be a number of nodes")),
        Err(_) => Ok(unset),
    }
}

/// A fleet of one Skyhook.
struct Fleet {
    index: Index,
    settings: Settings,
    nodes: BTreeMap<String, Value>,
    skyhook: Value,
    version: u64,
}

impl Fleet {
    /// Every node has a lease that is reserved and stamped; one of so many is tainted, of 0 none.
    fn new(nodes: usize, tainted: usize) -> anyhow::Result<Self> {
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
            "spec": { "packages": packages, "runtimeRequired": tainted > 0 },
        });
        let taint = json!({ "key": names::GROUP, "effect": "NoSchedule" });
        let mut fleet = Self {
            index: Index::default(),
            settings: Settings::default(),
            nodes: BTreeMap::new(),
            skyhook: skyhook.clone(),
            version: 1,
        };
        fleet.apply(Change::Skyhook(decoded(skyhook)?));
        let checked = fleet.checked()?;
        fleet.apply(Change::Revision(decoded(json!({
            "metadata": {
                "name": checked.revision, "uid": "r", "resourceVersion": "1",
                "ownerReferences": [{ "apiVersion": "x", "kind": "Skyhook", "name": "scale", "uid": "uid-scale" }],
            },
            "revision": 1,
            "data": checked.data,
        }))?));
        for n in 0..nodes {
            let name = name(n);
            let stamp = json!({ "granted": format!("lease-{name}") }).to_string();
            let is_tainted = tainted > 0 && n.is_multiple_of(tainted);
            let taints: Vec<&Value> = Some(&taint).filter(|_| is_tainted).into_iter().collect();
            let node = json!({
                "spec": { "taints": taints },
                "metadata": {
                    "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1",
                    "annotations": { names::stamp("scale"): stamp }, "labels": {},
                },
                "status": {
                    "nodeInfo": { "bootID": "boot" },
                    "conditions": [{ "type": "Ready", "status": "True" }],
                },
            });
            fleet.apply(Change::Node(decoded(node.clone())?));
            fleet.nodes.insert(name, node);
            fleet.lease(n, "")?;
        }
        for kind in [
            Kind::Node,
            Kind::Skyhook,
            Kind::Lease,
            Kind::Revision,
            Kind::Policy,
        ] {
            fleet.apply(Change::Synced(kind));
        }
        Ok(fleet)
    }

    fn apply(&mut self, change: Change) {
        self.index.apply(change, AT);
    }

    fn checked(&self) -> anyhow::Result<std::sync::Arc<skyhook_fleet::facts::Checked>> {
        let skyhook = self.index.picture().skyhooks().get("scale");
        let checked = skyhook.context("the Skyhook is there")?.checked.as_ref();
        Ok(checked.map_err(|e| anyhow::anyhow!("{e}"))?.clone())
    }

    /// A pass, and how many milliseconds it takes.
    fn timed(&self, cache: &mut Cache) -> (f64, Plan) {
        let view = self.index.view(&self.settings, now());
        let started = Instant::now();
        let plan = cache.plan(&view);
        (started.elapsed().as_secs_f64() * 1e3, plan)
    }

    /// The lease of a node in a new version: granted, and its agent in a phase, unless that is empty.
    fn lease(&mut self, n: usize, phase: &str) -> anyhow::Result<()> {
        let revision = self.checked()?.revision.clone();
        self.version += 1;
        let name = name(n);
        let mut lease = json!({
            "metadata": {
                "name": name, "uid": format!("lease-{name}"), "resourceVersion": self.version.to_string(),
            },
            "spec": {
                "node": { "name": name, "uid": format!("uid-{name}") },
                "skyhook": { "name": "scale", "uid": "uid-scale" },
                "revision": revision,
            },
        });
        if !phase.is_empty() {
            lease["spec"]["granted"] = json!({ "by": "x", "at": "2026-01-01T00:00:00Z" });
            lease["status"] = json!({ "phase": phase, "needsDrain": false, "bootID": "boot", "machineID": "m", "packages": {} });
        }
        self.apply(Change::Lease(decoded(lease)?));
        Ok(())
    }

    fn set_to_work(&mut self) -> anyhow::Result<()> {
        (0..self.nodes.len()).try_for_each(|n| self.lease(n, "Preparing"))
    }

    /// Writes what is planned until nothing is left to write.
    fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..100 {
            let (_, plan) = self.timed(&mut Cache::default());
            if plan.effects.is_empty() {
                return Ok(());
            }
            for effect in plan.effects {
                self.write(effect)?;
            }
        }
        anyhow::bail!("there is always something more to write");
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "nothing else is written in a fleet at work"
    )]
    fn write(&mut self, effect: Effect) -> anyhow::Result<()> {
        self.version += 1;
        match effect {
            Effect::PatchNode { node, patch, .. } => {
                let object = self.nodes.get_mut(&node).context("it is known")?;
                write_node(object, &patch, self.version);
                let change = Change::Node(decoded(object.clone())?);
                self.apply(change);
            }
            Effect::WriteSkyhookStatus { status, .. } => {
                self.skyhook["status"] = json!(status);
                self.skyhook["metadata"]["resourceVersion"] = json!(self.version.to_string());
                self.apply(Change::Skyhook(decoded(self.skyhook.clone())?));
            }
            other => anyhow::bail!("unexpected: {other:?}"),
        }
        Ok(())
    }
}

fn write_node(object: &mut Value, patch: &NodePatch, version: u64) {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    for (part, changes) in [
        ("annotations", &patch.annotations),
        ("labels", &patch.labels),
    ] {
        for (key, value) in changes {
            object["metadata"][part][key] = json!(value);
        }
        if let Some(part) = object["metadata"][part].as_object_mut() {
            part.retain(|_, value| !value.is_null());
        }
    }
    let conditions = patch.conditions.values().flatten().map(|c| {
        json!({ "type": c.type_, "status": c.status, "reason": c.reason, "message": c.message })
    });
    let ready = json!({ "type": "Ready", "status": "True" });
    if !patch.conditions.is_empty() {
        object["status"]["conditions"] = conditions.chain([ready]).collect();
    }
}

fn now() -> Now {
    Now {
        mono: AT,
        wall: Timestamp::UNIX_EPOCH,
    }
}
