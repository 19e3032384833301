//! As users run it: real kubelets and containerd, our images, `helm install`; everything that kills
//! a pod in the middle of a step, and everything that an uninstall has to leave behind.
#![expect(clippy::disallowed_methods, reason = "it waits for real time to pass")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skyhook_integration::chart;
use skyhook_integration::install::NAMESPACE;
use skyhook_integration::kubelet::KubeNode;
use skyhook_integration::real::RealCluster;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{LeaseRecorder, apply, example, scripts, wait_complete};
use skyhook_integration::skip::cluster_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

mod drain;
mod join;
mod uninstall;

/// The clean-up before an uninstall gives up on a step that does not end after a third of this. One Skyhook deletes pods.
const HURRY: &str = "cleanup.jobTimeoutSeconds=60,rbac.allowDisableEviction=true";

#[tokio::test(flavor = "multi_thread")]
async fn installed_by_helm_it_survives_what_kills_pods() -> Result<()> {
    if !cluster_can_run("installed_by_helm_it_survives_what_kills_pods").await {
        return Ok(());
    }
    let mut cluster = RealCluster::start(2).await?;
    let outcome = tokio::time::timeout(10 * MINUTE, story(&mut cluster)).await;
    let outcome = outcome.context("the story takes more than ten minutes")?;
    if let Err(error) = outcome {
        return Err(error.context(cluster.describe().await));
    }
    Ok(())
}

async fn story(cluster: &mut RealCluster) -> Result<()> {
    let image = cluster.push("shellscript").await?;
    the_commands_of_the_readme_work(cluster).await?;
    uninstall::an_uninstall_with_skyhooks_present_ends_by_itself(cluster, &image).await?;
    let providers = credential_providers(cluster).await?;
    join::taint_all(cluster).await?;
    cluster
        .install(&["--set", HURRY, "--set", &providers])
        .await?;
    join::the_coordinator_runs_on_a_tainted_node(cluster).await?;
    the_sample_completes(cluster, &image).await?;
    for node in &cluster.nodes {
        let asked = node.host.read("/asked")?;
        ensure!(asked.contains("shellscript"), "not asked for it: {asked}");
    }
    a_step_outlives_everything_around_its_agent(cluster, &image).await?;
    an_interrupt_restarts_containerd(cluster, &image).await?;
    drain::a_budget_for_pods_delays_the_drain_before_a_reboot(cluster, &image).await?;
    drain::a_drain_that_may_deletes_pods_past_their_budget(cluster, &image).await?;
    join::a_node_that_joins_tainted_is_configured_before_pods_run_there(cluster, &image).await?;
    join::a_node_that_is_registered_anew_is_not_configured_again(cluster).await?;
    uninstall::an_uninstall_leaves_nothing_of_ours(cluster, &image).await
}

/// From `helm install` to `helm uninstall`; the chart is installed again after it.
async fn the_commands_of_the_readme_work(cluster: &RealCluster) -> Result<()> {
    let package = skyhook_integration::source::source("examples/packages/shellscript");
    let name = "nvidia/skyhook-packages/shellscript";
    cluster
        .registry
        .push_folder(&package, name, "1.1.1")
        .await?;
    let repository = chart::serve(&cluster.run).await?;
    let shown = chart::seed(&cluster.plane, &repository).await?;
    for words in [
        "skyhook-sample condition met",
        "something-important:1.1.1",
        "uninstalled",
    ] {
        ensure!(shown.contains(words), "no {words:?} in:\n{shown}");
    }
    for node in &cluster.nodes {
        assert_eq!(node.host.read("/skyhook-hello-world")?, "hello world\n");
    }
    Ok(())
}

/// Gives the nodes a credential provider plugin of the kubelet's, which only runs with the host's own files; the chart's
/// values for it.
async fn credential_providers(cluster: &RealCluster) -> Result<String> {
    let (config, programs) = ("/etc/kubelet-credentials.yaml", "/opt/providers");
    let provider = json!({
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [{
            "name": "cloud",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "matchImages": [cluster.registry.address().to_string()],
            "defaultCacheDuration": "1m",
        }],
    });
    let answer = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
    });
    for node in &cluster.nodes {
        node.host.write(config, &provider.to_string())?;
        let script = format!("#!/bin/sh\ncat >>/asked\necho '{answer}'\n");
        let program = format!("{programs}/cloud");
        node.host.write(&program, &script)?;
        node.host.exec(["chmod", "755", &program]).await?;
    }
    Ok(format!(
        "agent.imageCredentialProviderConfig={config},agent.imageCredentialProviderBinDir={programs}"
    ))
}

async fn the_sample_completes(cluster: &RealCluster, image: &Image) -> Result<()> {
    let recorder = LeaseRecorder::start(cluster.client()).await?;
    let mut sample = example("skyhook-sample.yaml", image, 1)?;
    let scripts = &mut sample["spec"]["packages"]["something-important"]["configMap"];
    for script in scripts
        .as_object_mut()
        .into_iter()
        .flat_map(|s| s.values_mut())
    {
        *script = json!(
            script
                .as_str()
                .unwrap_or_default()
                .replace("sleep 10", "sleep 1")
        );
    }
    apply(cluster.client(), &sample).await?;
    let done = wait_complete(cluster.client(), "skyhook-sample", 2 * MINUTE).await?;
    assert_eq!(done.status.unwrap_or_default().complete_nodes, "2/2");
    assert_eq!(recorder.most_granted()?, 1, "{:#?}", recorder.changes());
    for node in &cluster.nodes {
        assert_eq!(node.host.read("/skyhook-hello-world")?, "hello world\n");
    }
    Ok(())
}

/// One step, and in its midst: an upgrade and a rollback of the chart, each with a rolling update of
/// the agents, a forced deletion of the pod, the agent killed for lack of memory, kubelet and
/// containerd restarted.
async fn a_step_outlives_everything_around_its_agent(
    cluster: &RealCluster,
    image: &Image,
) -> Result<()> {
    let steps = json!({
        "apply.sh": "echo begin >>/steps; while [ ! -e /steps-may-end ]; do sleep 0.2; done; echo end >>/steps",
    });
    let manifest =
        json!({"nodeSelectors": {"matchLabels": {"kubernetes.io/hostname": "worker-1"}}});
    let mut long = scripts("long", image, &steps, &json!({}));
    long["spec"]["nodeSelectors"] = manifest["nodeSelectors"].clone();
    apply(cluster.client(), &long).await?;
    let node = cluster.node("worker-1")?;
    until_host(node, "grep -q begin /steps", MINUTE).await?;
    let supervisor = node.supervisor().await?;

    // The DaemonSet's pods are replaced by an upgrade of the chart, and again by a rollback.
    let first = cluster.agent_pod("worker-1").await?;
    cluster
        .install(&["--set", HURRY, "--set", "agent.logLevel=debug"])
        .await?;
    let upgraded = cluster.new_agent_pod("worker-1", &first).await?;
    assert_same(node, &supervisor, "an upgrade").await?;
    let rollback = [
        "rollback",
        chart::RELEASE,
        "--namespace",
        NAMESPACE,
        "--wait",
        "--timeout",
        "120s",
    ];
    chart::helm(&cluster.plane, &rollback).await?;
    let back = cluster.new_agent_pod("worker-1", &upgraded).await?;
    assert_same(node, &supervisor, "a rollback").await?;

    let asked = Instant::now();
    let pod = ["-n", NAMESPACE, "delete", "pod", &back];
    cluster.plane.kubectl(&pod).await?;
    let took = asked.elapsed();
    ensure!(took < MINUTE / 6, "the agent took {took:?} to end");
    let back = cluster.new_agent_pod("worker-1", &back).await?;

    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        "--force",
        "--grace-period=0",
        &back,
    ];
    cluster.plane.kubectl(&delete).await?;
    let forced = cluster.new_agent_pod("worker-1", &back).await?;
    assert_same(node, &supervisor, "a forced deletion").await?;

    starve(node).await?;
    let last = "{.status.containerStatuses[0].lastState.terminated.reason}";
    let reason = [
        "-n",
        NAMESPACE,
        "get",
        "pod",
        &forced,
        "-o",
        &format!("jsonpath={last}"),
    ];
    cluster
        .until(&reason, MINUTE, |reason| reason == "OOMKilled")
        .await?;
    assert_same(node, &supervisor, "an agent killed for lack of memory").await?;

    for unit in ["kubelet", "containerd"] {
        node.host.exec(["systemctl", "restart", unit]).await?;
        assert_same(node, &supervisor, unit).await?;
    }
    node.host.exec(["touch", "/steps-may-end"]).await?;
    wait_complete(cluster.client(), "long", 2 * MINUTE).await?;
    assert_eq!(node.host.read("/steps")?, "begin\nend\n");
    Ok(())
}

async fn an_interrupt_restarts_containerd(cluster: &RealCluster, image: &Image) -> Result<()> {
    let mut before = Vec::new();
    for node in &cluster.nodes {
        before.push(main_pid(node, "containerd").await?);
    }
    let steps = json!({
        "apply.sh": "echo apply >>/containerd-steps",
        "post_interrupt.sh": "echo post-interrupt >>/containerd-steps",
    });
    let interrupt = json!({"interrupt": {"type": "service", "services": ["containerd"]}});
    let restart = scripts("restart", image, &steps, &interrupt);
    apply(cluster.client(), &restart).await?;
    wait_complete(cluster.client(), "restart", 3 * MINUTE).await?;
    for (node, before) in cluster.nodes.iter().zip(before) {
        assert_eq!(
            node.host.read("/containerd-steps")?,
            "apply\npost-interrupt\n"
        );
        assert_ne!(
            main_pid(node, "containerd").await?,
            before,
            "containerd was not restarted"
        );
        assert!(!is_cordoned(cluster, node.host.name()).await?);
    }
    Ok(())
}

async fn is_cordoned(cluster: &RealCluster, node: &str) -> Result<bool> {
    let get = ["get", "node", node, "-o", "jsonpath={.spec.unschedulable}"];
    Ok(cluster.plane.kubectl(&get).await?.trim() == "true")
}

async fn assert_same(node: &KubeNode, pid: &str, after: &str) -> Result<()> {
    let now = node
        .supervisor()
        .await
        .with_context(|| format!("after {after}"))?;
    ensure!(
        now == pid,
        "after {after} the step's supervisor is {now}, not {pid}"
    );
    Ok(())
}

async fn main_pid(node: &KubeNode, unit: &str) -> Result<String> {
    let show = ["systemctl", "show", "--property=MainPID", "--value", unit];
    Ok(node.host.exec(show).await?.trim().to_owned())
}

/// Has something else in the agent's cgroup take more memory than the cgroup may have. The agent is
/// made the first to be killed, as it is on a node whose kubelet may set scores.
async fn starve(node: &KubeNode) -> Result<()> {
    let script = "pid=$(pgrep -f '^/usr/bin/skyhook-agent run'); echo 1000 >/proc/$pid/oom_score_adj
        group=$(sed -n 's/^[0-9]*:memory://p' /proc/$pid/cgroup)
        dir=/sys/fs/cgroup/memory$group
        if [ ! -d $dir ]; then dir=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup); fi
        sh -c \"echo \\$\\$ >$dir/cgroup.procs; exec dd if=/dev/zero of=/dev/null bs=400M count=1\" || true";
    node.host.sh(script).await.map(drop)
}

async fn until_host(node: &KubeNode, test: &str, within: Duration) -> Result<()> {
    eventually(within, async || node.host.sh(test).await)
        .await
        .with_context(|| format!("{}: {test}", node.host.name()))
        .map(drop)
}
