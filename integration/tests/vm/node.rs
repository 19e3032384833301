//! A real node: kubelet and containerd on a kernel of its own, our chart, our agent in a pod.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skyhook_integration::install::NAMESPACE;
use skyhook_integration::machine::Machine;
use skyhook_integration::real::RealCluster;
use skyhook_integration::rollout::{apply, scripts, wait_complete};
use skyhook_integration::skip::{aloud, vm_cluster_can_run};
use skyhook_integration::vm::{Image, Vm};
use skyhook_integration::wait::{MINUTE, asking_every};

#[tokio::test(flavor = "multi_thread")]
async fn a_real_node() -> Result<()> {
    if !vm_cluster_can_run("a_real_node").await {
        return Ok(());
    }
    let image = Image::debian_13().await?.with_memory(2048);
    let cluster = RealCluster::<Vm>::start_on(image, 1).await?;
    for (part, took) in &cluster.timings {
        aloud(&format!("vm: real node: {part}: {took:.1?}"));
    }
    let begin = Instant::now();
    let outcome = the_agents_pod_is_deleted_in_mid_step(&cluster).await;
    aloud(&format!(
        "vm: real node: the agent's pod is deleted in mid-step: {:.1?}",
        begin.elapsed()
    ));
    match outcome {
        Err(error) => Err(error.context(cluster.describe().await)),
        Ok(()) => Ok(()),
    }
}

/// The step goes on without its agent, and the next agent takes its result over.
async fn the_agents_pod_is_deleted_in_mid_step(cluster: &RealCluster<Vm>) -> Result<()> {
    let begin = Instant::now();
    cluster
        .install(&["--set", "controllerManager.replicas=1"])
        .await?;
    aloud(&format!(
        "vm: real node: the chart: {:.1?}",
        begin.elapsed()
    ));
    let image = cluster.push("shellscript").await?;
    let node = cluster.node("worker-1")?;
    let host = &node.host;
    let script =
        "echo begin >>/steps; while [ ! -e /steps-may-end ]; do sleep 0.2; done; echo end >>/steps";
    let manifest = scripts("long", &image, &json!({"apply.sh": script}), &json!({}));
    apply(cluster.client(), &manifest).await?;
    let begun = "grep -q begin /steps";
    let every = Duration::from_millis(500);
    asking_every(every, 5 * MINUTE, async || host.sh(begun).await).await?;
    let supervisor = node.supervisor().await?;
    let first = cluster.agent_pod("worker-1").await?;
    let cgroup = host
        .sh("cat /proc/$(pgrep -o -x skyhook-agent)/cgroup")
        .await?;
    ensure!(cgroup.contains("kubepods"), "the agent is in {cgroup}");

    let delete = ["-n", NAMESPACE, "delete", "pod", &first];
    cluster.plane.kubectl(&delete).await?;
    cluster.new_agent_pod("worker-1", &first).await?;
    let after = node.supervisor().await?;
    ensure!(
        after == supervisor,
        "{supervisor} ran the step, now {after}"
    );
    host.run(&["touch", "/steps-may-end"]).await?;
    wait_complete(cluster.client(), "long", 5 * MINUTE)
        .await
        .context("the new agent")?;
    let steps = host.read_file("/steps").await?;
    ensure!(steps == "begin\nend\n", "the step did {steps:?}");
    Ok(())
}
