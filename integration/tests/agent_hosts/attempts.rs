//! A package that uses up its attempts on a real host, and what brings it back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, Status, names};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, scripts, wait_complete, wait_for};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::MINUTE;

const NAME: &str = "hangs";
/// The check hangs on the host that has this file.
const CHECK: &str = "#!/bin/bash\necho try >>/tries\nwhile [ -e /hang ]; do sleep 0.2; done\n";
const ATTEMPTS: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(3);

fn manifest(image: &Image, budget: u32) -> Value {
    let files = json!({
        "apply.sh": "#!/bin/bash\necho applied >>/applied\n",
        "apply_check.sh": CHECK,
    });
    let limits = json!({
        "stageTimeout": format!("{}s", TIMEOUT.as_secs()),
        "maxAttempts": ATTEMPTS,
        "gracefulShutdown": "1s",
    });
    let mut manifest = scripts(NAME, image, &files, &limits);
    manifest["spec"]["interruptionBudget"] = json!({ "count": budget });
    manifest
}

fn reason(skyhook: &Skyhook, node: &str) -> (String, String) {
    let status = skyhook.status.as_ref();
    let reason = status.and_then(|status| status.node_reasons.get(node));
    reason
        .map(|reason| (reason.reason.clone(), reason.message.clone()))
        .unwrap_or_default()
}

fn status(skyhook: &Skyhook, node: &str) -> Option<Status> {
    skyhook.status.as_ref()?.node_status.get(node).copied()
}

/// The check of a package hangs. At budget 1 the roll-out stands still with the reason, at budget 2 it goes on elsewhere,
/// and a rerun as of the command line of NVIDIA Skyhook brings the package back.
#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_hangs_is_given_up_until_it_is_run_again() -> Result<()> {
    if !hosts_can_run("a_package_that_hangs_is_given_up_until_it_is_run_again").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(2)).await?;
    let image = cluster.push("shellscript").await?;
    let client = cluster.client();
    let host = &cluster.worker("worker-1")?.host;
    host.sh("touch /hang").await?;

    let begin = Instant::now();
    apply(client.clone(), &manifest(&image, 1)).await?;
    let gave_up = |s: &Skyhook| reason(s, "worker-1").0 == "GaveUp";
    let stands = wait_for(client.clone(), NAME, "given up", MINUTE, gave_up)
        .await
        .with_context(|| cluster.logs())?;
    let attempts = u32::try_from(ATTEMPTS)?;
    ensure!(
        begin.elapsed() >= attempts * TIMEOUT,
        "given up after {:?}",
        begin.elapsed()
    );
    let said = reason(&stands, "worker-1").1;
    // The Skyhook has the beginning of it, the Node all.
    for part in ["gave up after 2 attempts", "rerun work --skyhook hangs"] {
        ensure!(said.contains(part), "{said} does not say {part}");
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get("worker-1").await?;
    let annotations = node.metadata.annotations.unwrap_or_default();
    let said = &annotations[&names::reason(NAME)];
    for part in ["stageTimeout", "apply_check.sh"] {
        ensure!(said.contains(part), "{said} does not say {part}");
    }
    ensure!(status(&stands, "worker-1") == Some(Status::Erroring));
    // Longer than the longest delay before another attempt would be.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let waits = |s: &Skyhook| {
        gave_up(s)
            && reason(s, "worker-2").0 == "BudgetExhausted"
            && status(s, "worker-2") == Some(Status::Waiting)
    };
    wait_for(
        client.clone(),
        NAME,
        "standing still",
        Duration::from_secs(5),
        waits,
    )
    .await
    .with_context(|| cluster.logs())?;
    let tries = host.read("/tries")?.lines().count();
    ensure!(tries == ATTEMPTS, "{tries} tries");

    apply(client.clone(), &manifest(&image, 2)).await?;
    let elsewhere = |s: &Skyhook| gave_up(s) && status(s, "worker-2") == Some(Status::Complete);
    wait_for(
        client.clone(),
        NAME,
        "complete on worker-2",
        MINUTE,
        elsewhere,
    )
    .await
    .with_context(|| cluster.logs())?;

    // As `package rerun work --stage apply` writes it.
    host.sh("rm /hang").await?;
    let node = nodes.get("worker-1").await?;
    let key = names::node_state(NAME);
    let annotations = node.metadata.annotations.unwrap_or_default();
    let mut states: Value = serde_json::from_str(&annotations[&key])?;
    let entry = &mut states[format!("work|{}", image.version)];
    ensure!(entry["state"] == "erroring", "{entry}");
    entry["stage"] = json!("apply");
    entry["state"] = json!("in_progress");
    let patch = json!({ "metadata": { "annotations": { key: states.to_string() } } });
    nodes
        .patch("worker-1", &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    wait_complete(client, NAME, MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let tries = host.read("/tries")?.lines().count();
    ensure!(tries == ATTEMPTS + 1, "{tries} tries");
    Ok(())
}

/// A package requests more than the node has: it waits with the reason, another one goes on, and a smaller request ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_requests_more_than_the_node_has_waits() -> Result<()> {
    if !hosts_can_run("a_package_that_requests_more_than_the_node_has_waits").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("shellscript").await?;
    let client = cluster.client();
    let host = &cluster.worker("worker-1")?.host;
    let manifest = |cpu: &str| {
        let package = |name: &str, more: Value| {
            let mut package = json!({
                "version": image.version, "image": image.repository,
                "configMap": { "apply.sh": format!("#!/bin/bash\necho {name} >>/applied\n") },
            });
            if !more.is_null() {
                package["resources"] = more;
            }
            package
        };
        let large = json!({
            "cpuRequest": cpu, "cpuLimit": cpu, "memoryRequest": "64Mi", "memoryLimit": "512Mi",
        });
        json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": "large" },
            "spec": { "packages": { "large": package("large", large), "small": package("small", Value::Null) } },
        })
    };
    apply(client.clone(), &manifest("10")).await?;
    let waits = |s: &Skyhook| {
        let (code, message) = reason(s, "worker-1");
        let is_done = host
            .read("/applied")
            .is_ok_and(|applied| applied == "small\n");
        is_done && code == "InsufficientResources" && message.contains("requests cpu 10")
    };
    wait_for(client.clone(), "large", "waiting", MINUTE, waits)
        .await
        .with_context(|| cluster.logs())?;
    apply(client.clone(), &manifest("1")).await?;
    wait_complete(client, "large", MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    assert_eq!(host.read("/applied")?, "small\nlarge\n");
    Ok(())
}
