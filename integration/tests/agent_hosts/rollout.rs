//! Interrupts across a fleet of three hosts with workloads: one node at a time, drained first, workloads back after; and a
//! host that does not come back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use skyhook_crds::lease::{DrainState, Phase};
use skyhook_crds::{InterruptionLease, Skyhook};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::cordons::CordonRecorder;
use skyhook_integration::crash;
use skyhook_integration::install;
use skyhook_integration::rollout::{apply, skyhook, wait_complete, wait_for};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, asking_every, eventually};

const REPLICAS: usize = 6;

const WORKLOAD: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      automountServiceAccountToken: false
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      containers: [{name: main, image: none}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: default}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
";

/// Pods of the workload that run, by node; one that is being deleted still does.
async fn pods(client: kube::Client) -> Result<Vec<(String, Pod)>> {
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let list = pods.list(&ListParams::default().labels("app=web")).await?;
    Ok(list
        .items
        .into_iter()
        .filter_map(|pod| Some((pod.spec.as_ref()?.node_name.clone()?, pod)))
        .collect())
}

/// Waits until the whole workload runs and is Ready.
async fn await_workload(cluster: &Cluster) -> Result<BTreeSet<String>> {
    eventually(MINUTE, async || {
        let all = pods(cluster.client()).await?;
        let ready = all.iter().filter(|(_, pod)| {
            let conditions = pod
                .status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten());
            pod.metadata.deletion_timestamp.is_none()
                && conditions
                    .into_iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
        });
        ensure!(
            ready.count() == REPLICAS,
            "the workload is not back: {all:#?}"
        );
        Ok(all.into_iter().map(|(node, _)| node).collect())
    })
    .await
}

/// Watches leases: when one runs, its drain was over and no pod of the workload is on its node. Returns the nodes seen.
async fn watch_drains(
    client: kube::Client,
    done: Arc<tokio::sync::Notify>,
) -> Result<BTreeSet<String>> {
    let leases: Api<InterruptionLease> = Api::all(client.clone());
    let mut events = watcher::watcher(leases, watcher::Config::default()).boxed();
    let mut seen = BTreeSet::new();
    loop {
        let event = tokio::select! {
            event = events.try_next() => event?,
            () = done.notified() => return Ok(seen),
        };
        let Some(Event::Apply(lease)) = event else {
            continue;
        };
        let running = lease.status.as_ref().and_then(|s| s.phase) == Some(Phase::Running);
        if !running || lease.spec.drain.state == DrainState::NotRequested {
            continue;
        }
        let node = lease.name_any();
        ensure!(
            lease.spec.drain.state == DrainState::Drained,
            "{node} runs undrained"
        );
        let left: Vec<String> = pods(client.clone())
            .await?
            .into_iter()
            .filter(|(on, _)| *on == node)
            .map(|(_, pod)| pod.name_any())
            .collect();
        ensure!(left.is_empty(), "{node} is interrupted under {left:?}");
        seen.insert(node);
    }
}

fn manifest(name: &str, image: &skyhook_integration::registry::Image, interrupt: &Value) -> Value {
    skyhook(
        name,
        "sleeper",
        image,
        1,
        &json!({ "interrupt": interrupt }),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_are_interrupted_one_at_a_time() -> Result<()> {
    if !hosts_can_run("three_hosts_are_interrupted_one_at_a_time").await {
        return Ok(());
    }
    let mut setup = Setup::hosts(3);
    setup.plane.controller_manager = true;
    setup.plane.scheduler = true;
    // The harness says itself, and sooner, that a node is gone.
    setup.plane.controller_manager_flags =
        vec!["--controllers=*,-node-lifecycle-controller".to_owned()];
    setup.coordinator = false;
    let mut cluster = Cluster::start(setup).await?;
    cluster
        .start_coordinator(&["--node-return-timeout=3s"])
        .await?;
    let image = cluster.push("sleeper").await?;
    install::apply(&cluster.plane, WORKLOAD).await?;
    let spread = await_workload(&cluster).await?;
    ensure!(spread.len() == 3, "the workload is on {spread:?} alone");

    let done = Arc::new(tokio::sync::Notify::new());
    let drains = tokio::spawn(watch_drains(cluster.client(), Arc::clone(&done)));
    let cordons = CordonRecorder::start(cluster.client()).await?;
    let first: Vec<_> = cluster
        .workers
        .iter()
        .map(|w| w.host.current())
        .collect::<Result<_>>()?;
    for (name, interrupt) in [
        ("restart", json!({"type": "service", "services": ["cron"]})),
        ("reboot", json!({"type": "reboot"})),
    ] {
        let begin = Instant::now();
        apply(cluster.client(), &manifest(name, &image, &interrupt)).await?;
        wait_complete(cluster.client(), name, 3 * MINUTE)
            .await
            .with_context(|| cluster.logs())?;
        await_workload(&cluster).await?;
        eprintln!("{name} of three hosts: {:?}", begin.elapsed());
    }
    ensure!(
        cordons.most()? == 1,
        "{} nodes cordoned at once",
        cordons.most()?
    );
    for (worker, before) in cluster.workers.iter().zip(first) {
        let node = worker.host.name();
        let spans = cordons.spans(node);
        ensure!(
            spans.len() == 2 && spans.iter().all(|(_, end)| end.is_some()),
            "{node} was cordoned {} times: {spans:?}",
            spans.len()
        );
        let after = worker.host.current()?;
        ensure!(
            after.count == before.count + 1,
            "{node}: {before:?} then {after:?}"
        );
    }
    done.notify_one();
    let drained = drains.await??;
    ensure!(
        drained.len() == 3,
        "only {drained:?} were seen drained and running"
    );
    lost_host(&cluster, &image, &cordons).await
}

/// A host goes down for its reboot and stays away: it says so, keeps its slot, and goes on when it is back.
async fn lost_host(
    cluster: &Cluster,
    image: &skyhook_integration::registry::Image,
    cordons: &CordonRecorder,
) -> Result<()> {
    let reboot = json!({"type": "reboot"});
    apply(cluster.client(), &manifest("lost", image, &reboot)).await?;
    let leases: Api<InterruptionLease> = Api::all(cluster.client());
    let node = asking_every(Duration::from_millis(5), MINUTE, async || {
        let asked = cluster.workers.iter().find(|w| {
            let run = crash::journal(&w.host).map(|journal| journal["run"].clone());
            run.is_ok_and(|run| run["ended"].is_null() && !run["wave"]["rebootAsked"].is_null())
        });
        Ok(asked.context("nothing reboots")?.host.name().to_owned())
    })
    .await
    .with_context(|| cluster.logs())?;
    let host = &cluster.worker(&node)?.host;
    host.kill().await?;
    let lost = |s: &Skyhook| {
        s.status
            .as_ref()
            .and_then(|s| s.node_reasons.get(&node))
            .is_some_and(|r| {
                r.reason == "NodeNotReturning" && r.message.contains("keeps its lease and its slot")
            })
    };
    wait_for(cluster.client(), "lost", "not returning", 2 * MINUTE, lost)
        .await
        .with_context(|| cluster.logs())?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let held: Vec<String> = leases
        .list(&ListParams::default())
        .await?
        .iter()
        .map(kube::ResourceExt::name_any)
        .collect();
    ensure!(
        held == [node.clone()],
        "leases of {held:?} while {node} is away"
    );
    host.boot().await?;
    wait_complete(cluster.client(), "lost", 3 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let boots = host.current()?.count;
    ensure!(boots == 1, "it was rebooted {} times more", boots - 1);
    ensure!(
        cordons.most()? == 1,
        "{} nodes cordoned at once",
        cordons.most()?
    );
    await_workload(cluster).await.map(drop)
}
