//! What an uninstall leaves behind: nothing of ours.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;
use skyhook_integration::chart;
use skyhook_integration::install::NAMESPACE;
use skyhook_integration::real::RealCluster;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, wait_complete};

use super::{HURRY, MINUTE, is_cordoned, scripts};

/// With the coordinator up, which lets go of what it holds: nobody has to delete Skyhooks first.
pub(super) async fn an_uninstall_with_skyhooks_present_ends_by_itself(
    cluster: &RealCluster,
    image: &Image,
) -> Result<()> {
    cluster.install(&["--set", HURRY]).await?;
    let steps = json!({"apply.sh": "touch /present"});
    let interrupt = json!({"interrupt": {"type": "noop"}});
    let present = scripts("present", image, &steps, &interrupt);
    apply(cluster.client(), &present).await?;
    wait_complete(cluster.client(), "present", MINUTE).await?;
    let asked = Instant::now();
    cluster.uninstall().await?;
    // The clean-up takes leases from their agents by force after two thirds of its time.
    let took = asked.elapsed();
    ensure!(took < MINUTE * 2 / 3, "the uninstall took {took:?}");
    nothing_of_ours_is_left(cluster).await?;
    for node in &cluster.nodes {
        ensure!(node.host.path("/present").exists(), "it was never applied");
    }
    Ok(())
}

/// With Skyhooks present, one of them in a step that does not end on a cordoned node, and no
/// coordinator left.
pub(super) async fn an_uninstall_leaves_nothing_of_ours(
    cluster: &RealCluster,
    image: &Image,
) -> Result<()> {
    let steps = json!({"apply.sh": "sleep 3600"});
    let interrupt = json!({"interrupt": {"type": "noop"}, "gracefulShutdown": "1s"});
    apply(
        cluster.client(),
        &scripts("stuck", image, &steps, &interrupt),
    )
    .await?;
    let running = [
        "get",
        "interruptionleases",
        "-o",
        "jsonpath={.items[*].status.phase}",
    ];
    cluster
        .until(&running, MINUTE, |phases| phases.contains("Running"))
        .await?;

    let down = [
        "-n",
        NAMESPACE,
        "scale",
        "--replicas=0",
        &format!("deployment/{}", chart::COORDINATOR),
    ];
    cluster.plane.kubectl(&down).await?;
    let pods = [
        "-n",
        NAMESPACE,
        "get",
        "pods",
        "-l",
        "control-plane=controller-manager",
        "-o",
        "name",
    ];
    cluster.until(&pods, MINUTE, str::is_empty).await?;
    cluster.uninstall().await?;
    nothing_of_ours_is_left(cluster).await
}

/// Neither in the cluster nor, as far as the API knows, on its nodes.
async fn nothing_of_ours_is_left(cluster: &RealCluster) -> Result<()> {
    let ours = [
        "get",
        "crd,clusterroles,clusterrolebindings,validatingadmissionpolicies",
        "-o",
        "name",
    ];
    let left = cluster.plane.kubectl(&ours).await?;
    ensure!(!left.contains("skyhook"), "left behind:\n{left}");
    let kinds = "all,serviceaccounts,roles,rolebindings,limitranges,controllerrevisions,leases";
    let left = cluster
        .until(
            &["get", kinds, "-n", NAMESPACE, "-o", "name"],
            MINUTE,
            |left| {
                left.lines()
                    .all(|line| line == "serviceaccount/default" || line.starts_with("lease"))
            },
        )
        .await?;
    ensure!(!left.contains("operator"), "left behind:\n{left}");
    for node in &cluster.nodes {
        assert!(!is_cordoned(cluster, node.host.name()).await?);
    }
    Ok(())
}
