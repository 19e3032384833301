//! Two Skyhooks with priorities on real hosts, and a drain that a PodDisruptionBudget holds up for a while.
#![expect(clippy::disallowed_methods, reason = "tests are shell")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skyhook_crds::{InterruptionLease, Skyhook, Status};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::rollout::{
    LeaseChange, LeaseRecorder, apply, skyhook, wait_complete, wait_for,
};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::MINUTE;

/// The first interrupts every host; the second only writes to it.
const FIRST: &str = "first";
const SECOND: &str = "second";
const WORKERS: [&str; 3] = ["worker-1", "worker-2", "worker-3"];

#[tokio::test(flavor = "multi_thread")]
async fn order_and_budget_hold_while_a_disruption_budget_holds_a_drain_up() -> Result<()> {
    if !hosts_can_run("order_and_budget_hold_while_a_disruption_budget_holds_a_drain_up").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(3)).await?;
    let result = play(&cluster).await;
    result.with_context(|| cluster.logs())
}

async fn play(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    protected_pod(cluster, "worker-2").await?;
    let recorder = LeaseRecorder::start(client.clone()).await?;
    let interrupt = json!({"interrupt": {"type": "service", "services": ["cron"]}});
    let sleeper = cluster.push("sleeper").await?;
    let noop = cluster.push("noop").await?;
    // The one that goes first has the later name, and is created later.
    for (name, priority, manifest) in [
        (SECOND, 200, skyhook(SECOND, "noop", &noop, 1, &json!({}))),
        (
            FIRST,
            100,
            skyhook(FIRST, "sleeper", &sleeper, 1, &interrupt),
        ),
    ] {
        let mut manifest = manifest;
        manifest["spec"]["priority"] = json!(priority);
        // Both are there before either may start.
        manifest["metadata"]["annotations"] = json!({"skyhook.nvidia.com/pause": "true"});
        apply(client.clone(), &manifest)
            .await
            .with_context(|| name.to_owned())?;
    }
    for name in [SECOND, FIRST] {
        let resume = ["annotate", "skyhook", name, "skyhook.nvidia.com/pause-"];
        cluster.plane.kubectl(&resume).await?;
    }

    held_up(cluster).await?;
    let given_way = Instant::now();
    give_way(cluster).await?;
    for name in [FIRST, SECOND] {
        wait_complete(client.clone(), name, 2 * MINUTE).await?;
    }

    let changes = recorder.changes();
    let most = recorder.most_granted()?;
    ensure!(most <= 2, "{most} leases at once: {changes:#?}");
    for name in [FIRST, SECOND] {
        let most = most_at_once(&changes, name);
        ensure!(most == 1, "{name}: {most} at once: {changes:#?}");
    }
    in_order(&changes)?;
    let ran = changes
        .iter()
        .find(|c| c.node == "worker-2" && c.skyhook == FIRST && c.what == "Running")
        .context("worker-2 was never interrupted")?;
    ensure!(
        ran.at > given_way,
        "worker-2 was interrupted while its pod was protected"
    );
    for worker in &cluster.workers {
        let host = &worker.host;
        let log = host.read("/var/lib/sleeper/log")?;
        let applied = log.lines().filter(|line| *line == "apply begin").count();
        ensure!(applied == 1, "{}: {log}", host.name());
        let node = Api::<Node>::all(client.clone()).get(host.name()).await?;
        let cordoned = node.spec.and_then(|spec| spec.unschedulable);
        ensure!(cordoned != Some(true), "{} is cordoned", host.name());
    }
    Ok(())
}

/// The drain of worker-2 stands still and names the pod; the first Skyhook goes nowhere else, the second goes on where
/// the first is done and nowhere else.
async fn held_up(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let named = |skyhook: &Skyhook| {
        let reasons = skyhook.status.as_ref().map(|status| &status.node_reasons);
        let held = reasons.and_then(|reasons| reasons.get("worker-2"));
        held.is_some_and(|held| {
            held.message.contains("default/web") && held.message.contains("disruption budget")
        })
    };
    let what = "worker-2 waits for default/web and its disruption budget";
    let first = wait_for(client.clone(), FIRST, what, MINUTE, named).await?;
    ensure!(statuses(&first, Status::Complete) == ["worker-1"]);
    ensure!(statuses(&first, Status::InProgress) == ["worker-2"]);
    let lease = Api::<InterruptionLease>::all(client.clone())
        .get("worker-2")
        .await?;
    let blockers = lease.spec.drain.blockers;
    ensure!(
        blockers.iter().any(|blocker| blocker.pod == "default/web"),
        "{blockers:?}"
    );

    let on_first = |skyhook: &Skyhook| statuses(skyhook, Status::Complete) == ["worker-1"];
    let what = "complete on worker-1";
    let second = wait_for(client.clone(), SECOND, what, MINUTE, on_first).await?;
    ensure!(statuses(&second, Status::InProgress).is_empty());
    // It stays so: the budget tries again and again, and the other nodes are not touched.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for name in [FIRST, SECOND] {
        let now = Api::<Skyhook>::all(client.clone()).get(name).await?;
        ensure!(
            statuses(&now, Status::Complete) == ["worker-1"],
            "{name}: {:?}",
            now.status
        );
    }
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let pod = pods.get("web").await.context("the protected pod is gone")?;
    ensure!(pod.metadata.deletion_timestamp.is_none());
    Ok(())
}

/// Names of the nodes with this status.
fn statuses(skyhook: &Skyhook, want: Status) -> Vec<&str> {
    let nodes = skyhook.status.iter().flat_map(|status| &status.node_status);
    nodes
        .filter(|(_, status)| **status == want)
        .map(|(node, _)| node.as_str())
        .collect()
}

/// The most leases of a Skyhook that were granted at once.
fn most_at_once(changes: &[LeaseChange], skyhook: &str) -> usize {
    let mut held: BTreeMap<&str, bool> = BTreeMap::new();
    let mut most = 0;
    for change in changes.iter().filter(|change| change.skyhook == skyhook) {
        let granted = !matches!(change.what.as_str(), "reserved" | "released");
        held.insert(&change.node, granted);
        most = most.max(held.values().filter(|granted| **granted).count());
    }
    most
}

/// Nodes were taken by name, and on each the first Skyhook was through before the second came.
fn in_order(changes: &[LeaseChange]) -> Result<()> {
    let position = |node: &str, skyhook: &str, what: &str| {
        let found = changes
            .iter()
            .position(|c| c.node == node && c.skyhook == skyhook && c.what == what);
        found.with_context(|| format!("{skyhook} was never {what} on {node}: {changes:#?}"))
    };
    for skyhook in [FIRST, SECOND] {
        let granted: Vec<&str> = changes
            .iter()
            .filter(|c| c.skyhook == skyhook && c.what == "granted")
            .map(|c| c.node.as_str())
            .collect();
        ensure!(granted == WORKERS, "{skyhook}: {granted:?}: {changes:#?}");
    }
    for node in WORKERS {
        let through = position(node, FIRST, "released")?;
        let began = position(node, SECOND, "reserved")?;
        ensure!(through < began, "{node}: {changes:#?}");
    }
    Ok(())
}

/// A pod of some workload, and a budget that lets none of its pods go.
async fn protected_pod(cluster: &Cluster, node: &str) -> Result<()> {
    let client = cluster.client();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod = json!({
        "metadata": {
            "name": "web", "labels": {"app": "web"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "web", "controller": true,
            }],
        },
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "none"}],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client, "default");
    let budget = json!({
        "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    });
    budgets
        .create(&PostParams::default(), &serde_json::from_value(budget)?)
        .await?;
    allow(&budgets, 0).await
}

async fn give_way(cluster: &Cluster) -> Result<()> {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(cluster.client(), "default");
    allow(&budgets, 1).await
}

/// What the disruption controller, which does not run here, would find.
async fn allow(budgets: &Api<PodDisruptionBudget>, disruptions: u32) -> Result<()> {
    let generation = budgets.get("web").await?.metadata.generation;
    let status: Value = json!({"status": {
        "observedGeneration": generation, "disruptionsAllowed": disruptions,
        "currentHealthy": 1 + disruptions, "desiredHealthy": 1, "expectedPods": 1 + disruptions,
    }});
    budgets
        .patch_status("web", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}
