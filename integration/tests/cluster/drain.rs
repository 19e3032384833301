//! Drains of real pods: one waits for their budget, one is allowed to go past it.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skyhook_integration::images::BUSYBOX;
use skyhook_integration::install::apply as kubectl_apply;
use skyhook_integration::real::RealCluster;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, wait_complete};

use super::{MINUTE, is_cordoned, scripts};

/// A workload that may not lose its only pod: the drain waits and says for whom, until there are two.
pub(super) async fn a_budget_for_pods_delays_the_drain_before_a_reboot(
    cluster: &RealCluster,
    image: &Image,
) -> Result<()> {
    kubectl_apply(&cluster.plane, &workload()).await?;
    cluster
        .plane
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .await?;
    let node_of_pod = [
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[0].spec.nodeName}",
    ];
    let busy = cluster.plane.kubectl(&node_of_pod).await?;
    let node = cluster.node(busy.trim())?;
    let boot = node.host.current()?;
    let steps = json!({"apply.sh": "echo apply >>/reboot-steps", "post_interrupt.sh": "echo post >>/reboot-steps"});
    let interrupt = json!({"interrupt": {"type": "reboot"}});
    let mut reboot = scripts("reboot", image, &steps, &interrupt);
    reboot["spec"]["nodeSelectors"] =
        json!({"matchLabels": {"kubernetes.io/hostname": busy.trim()}});
    apply(cluster.client(), &reboot).await?;

    let blockers = [
        "get",
        "interruptionlease",
        busy.trim(),
        "-o",
        "jsonpath={.spec.drain.blockers}",
    ];
    let is_named = |said: &str| said.contains("web-") && said.contains("disruption budget");
    cluster.until(&blockers, MINUTE, is_named).await?;
    ensure!(
        is_cordoned(cluster, busy.trim()).await?,
        "drained without a cordon"
    );
    let condition =
        "jsonpath={.status.conditions[?(@.type==\"DrainBlocked\")]['reason','message']}";
    let condition = ["get", "skyhook", "reboot", "-o", condition];
    // The budget has the name of the workload as well.
    let words = [
        "PodDisruptionBudget",
        "1/1 nodes blocked draining",
        "default/web-",
        "disruption budget web",
    ];
    let says_all = |said: &str| words.iter().all(|word| said.contains(word));
    cluster.until(&condition, MINUTE, says_all).await?;
    cluster
        .plane
        .kubectl(&["scale", "deployment/web", "--replicas=2"])
        .await?;

    wait_complete(cluster.client(), "reboot", 4 * MINUTE).await?;
    let now = node.host.current()?;
    assert_eq!(now.count, boot.count + 1, "one reboot");
    assert_eq!(node.host.read("/reboot-steps")?, "apply\npost\n");
    assert!(!is_cordoned(cluster, busy.trim()).await?);
    let left = cluster.plane.kubectl(&condition).await?;
    ensure!(left.trim().is_empty(), "DrainBlocked is left: {left}");
    let web = cluster
        .plane
        .kubectl(&["get", "pods", "-l", "app=web", "-o", "wide"])
        .await?;
    ensure!(
        !web.contains(busy.trim()),
        "the pod was not evicted:\n{web}"
    );
    Ok(())
}

/// `drainConfig.disableEviction` as of kubectl: the pod goes although its budget allows no eviction, and the chart's rights
/// suffice for that.
pub(super) async fn a_drain_that_may_deletes_pods_past_their_budget(
    cluster: &RealCluster,
    image: &Image,
) -> Result<()> {
    let scale = ["scale", "deployment/web", "--replicas=1"];
    cluster.plane.kubectl(&scale).await?;
    let pods = ["get", "pods", "-l", "app=web", "-o"];
    let spec = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName};{end}";
    let one = [&pods[..], &[spec]].concat();
    let shown = cluster
        .until(&one, MINUTE, |shown| shown.matches(';').count() == 1)
        .await?;
    let (pod, node) = shown
        .trim_end_matches(';')
        .split_once(' ')
        .context("a pod on a node")?;
    let interrupt = json!({"interrupt": {"type": "service", "services": ["cron"]}});
    let mut manifest = scripts("delete", image, &json!({}), &interrupt);
    manifest["spec"]["nodeSelectors"] = json!({"matchLabels": {"kubernetes.io/hostname": node}});
    manifest["spec"]["drainConfig"] = json!({"disableEviction": true});
    apply(cluster.client(), &manifest).await?;
    wait_complete(cluster.client(), "delete", MINUTE).await?;
    let left = cluster
        .plane
        .kubectl(&[&pods[..], &["name"]].concat())
        .await?;
    ensure!(!left.contains(pod), "{pod} was not deleted: {left}");
    let gone = ["delete", "deployment/web", "poddisruptionbudget/web"];
    cluster.plane.kubectl(&gone).await.map(drop)
}

fn workload() -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: default}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: {BUSYBOX}
          command: [/bin/sleep, \"100000\"]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: web, namespace: default}}
spec:
  minAvailable: 1
  selector: {{matchLabels: {{app: web}}}}
"
    )
}
