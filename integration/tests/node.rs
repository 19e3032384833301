//! The harness's part of the kubelet: Nodes and pods say what is true of the host.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::host::Host;
use skyhook_integration::install::install;
use skyhook_integration::network::Network;
use skyhook_integration::node::{ENDS_AFTER, NodeOptions, NodePlayer};
use skyhook_integration::rootfs::Rootfs;
use skyhook_integration::run::Run;
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_and_its_pods_follow_the_host() -> Result<()> {
    if !hosts_can_run("a_node_and_its_pods_follow_the_host").await {
        return Ok(());
    }
    let run = Arc::new(Run::start()?);
    let network = Network::create(Arc::clone(&run)).await?;
    let options = Options {
        address: network.gateway(),
        ..Options::default()
    };
    let plane = ControlPlane::start(Arc::clone(&run), &options).await?;
    install(&plane).await?;
    let rootfs = Rootfs::locate().await?;
    let name = "worker-1";
    let host = Host::create(Arc::clone(&run), &network, &rootfs, 0, name, run.scratch()).await?;
    let host = Arc::new(host);
    let first = host.boot().await?;
    let options = NodeOptions {
        grace: Duration::from_secs(1),
        ..NodeOptions::default()
    };
    let client = plane.client();
    let player = NodePlayer::register(client.clone(), Arc::clone(&host), options).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    assert_eq!(seen(&nodes).await?, ("True".to_owned(), first.id.clone()));
    assert!(
        nodes
            .get(name)
            .await?
            .spec
            .and_then(|spec| spec.taints)
            .unwrap_or_default()
            .is_empty()
    );

    let second = host.reboot().await?;
    until(&nodes, ("True", &second.id)).await?;
    player.withhold_ready(true);
    until(&nodes, ("False", &second.id)).await?;
    player.withhold_ready(false);
    until(&nodes, ("True", &second.id)).await?;

    let pods: Api<Pod> = Api::namespaced(client, "default");
    for (pod, ends) in [("quick", "0"), ("stubborn", "never")] {
        let pod = json!({
            "metadata": {"name": pod, "annotations": {ENDS_AFTER: ends}},
            "spec": {
                "nodeName": name,
                "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "none"}],
            },
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
    }
    host.cut_off().await?;
    until(&nodes, ("Unknown", &second.id)).await?;
    for pod in ["quick", "stubborn"] {
        pods.delete(pod, &Default::default()).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    pods.get("quick")
        .await
        .context("a pod ended on a host that nobody could reach")?;
    host.reconnect().await?;
    until(&nodes, ("True", &second.id)).await?;
    eventually(MINUTE, async || {
        let pod = pods.get_opt("quick").await?;
        ensure!(
            pod.is_none(),
            "a deleted pod is still there after its host came back"
        );
        Ok(())
    })
    .await?;
    let left = pods.get("stubborn").await?;
    assert!(left.metadata.deletion_timestamp.is_some());
    Ok(())
}

/// Ready and boot ID, as the Node has them.
async fn seen(nodes: &Api<Node>) -> Result<(String, String)> {
    let status = nodes.get("worker-1").await?.status.context("status")?;
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions
        .into_iter()
        .find(|one| one.type_ == "Ready")
        .context("Ready")?;
    Ok((ready.status, status.node_info.context("nodeInfo")?.boot_id))
}

async fn until(nodes: &Api<Node>, want: (&str, &str)) -> Result<()> {
    eventually(MINUTE, async || {
        let (ready, boot) = seen(nodes).await?;
        let is = (ready.as_str(), boot.as_str());
        ensure!(is == want, "the node is {is:?}, not {want:?}");
        Ok(())
    })
    .await
}
