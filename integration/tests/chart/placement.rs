//! Where the chart puts pods.

use super::*;

#[tokio::test]
async fn pods_go_where_they_can_work() -> Result<()> {
    if !chart_can_run("pods_go_where_they_can_work").await {
        return Ok(());
    }
    let objects = render(&["--set", "agent.nodeSelector.pool=gpu"]).await?;
    let cleanup = "skyhook-skyhook-operator-skyhook-cleanup";
    for (kind, name) in [
        ("Deployment", COORDINATOR),
        ("DaemonSet", AGENT),
        ("Job", cleanup),
    ] {
        let pod = &find(&objects, kind, name)?["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux", "{name}");
    }
    let agent = &find(&objects, "DaemonSet", AGENT)?["spec"]["template"]["spec"];
    assert_eq!(agent["nodeSelector"]["pool"], "gpu");
    ensure!(
        agent["affinity"].to_string().contains("fargate"),
        "{}",
        agent["affinity"]
    );
    let coordinator = &find(&objects, "Deployment", COORDINATOR)?["spec"]["template"]["spec"];
    assert_eq!(coordinator["priorityClassName"], "system-cluster-critical");
    let tolerations = coordinator["tolerations"]
        .as_array()
        .context("tolerations")?;
    for key in ["node.kubernetes.io/not-ready", "skyhook.nvidia.com"] {
        ensure!(
            tolerations.iter().any(|t| t["key"] == key),
            "{key} is not tolerated"
        );
    }
    let args = coordinator["containers"][0]["args"].to_string();
    ensure!(args.contains("--probe-address=[::]:8081"), "{args}");
    // With one replica a budget would never allow the drain of its node.
    let budget = find(&objects, "PodDisruptionBudget", COORDINATOR)?;
    assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    let one = render(&["--set", "controllerManager.replicas=1"]).await?;
    ensure!(one.iter().all(|o| o["kind"] != "PodDisruptionBudget"));
    Ok(())
}
