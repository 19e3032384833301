//! Nodes that join with the runtime-required taint: what a cloud's node pool, or the kubelet itself, puts there.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, Status};
use skyhook_integration::images::BUSYBOX;
use skyhook_integration::install::{NAMESPACE, apply as kubectl_apply};
use skyhook_integration::real::RealCluster;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, wait_complete, wait_for};

use super::{MINUTE, scripts};

const TAINT: &str = "skyhook.nvidia.com=runtime-required:NoSchedule";
const NEW: &str = "worker-3";

fn taint() -> Value {
    json!({ "key": "skyhook.nvidia.com", "value": "runtime-required", "effect": "NoSchedule" })
}

/// Keys of the taints of a node.
async fn keys(cluster: &RealCluster, node: &str) -> Result<String> {
    let get = ["get", "node", node, "-o", "jsonpath={.spec.taints[*].key}"];
    cluster.plane.kubectl(&get).await
}

/// Taints all nodes, so that there is no other place for the coordinator.
pub(super) async fn taint_all(cluster: &RealCluster) -> Result<()> {
    cluster
        .plane
        .kubectl(&["taint", "node", "--all", TAINT])
        .await
        .map(drop)
}

/// The chart is installed, and its pods are ready. The taint is taken off again.
pub(super) async fn the_coordinator_runs_on_a_tainted_node(cluster: &RealCluster) -> Result<()> {
    let selector = "control-plane=controller-manager";
    let shown = "jsonpath={range .items[*]}{.status.phase} {.spec.nodeName};{end}";
    let get = ["-n", NAMESPACE, "get", "pods", "-l", selector, "-o", shown];
    let pods = cluster.plane.kubectl(&get).await?;
    let mut running = pods
        .split(';')
        .filter_map(|pod| pod.strip_prefix("Running "));
    let node = running.next().unwrap_or_default();
    ensure!(!node.is_empty(), "the coordinator does not run: {pods}");
    let keys = keys(cluster, node).await?;
    ensure!(
        keys.contains("skyhook.nvidia.com"),
        "{node} has the taints {keys:?}"
    );
    let untaint = ["taint", "node", "--all", &format!("{TAINT}-")];
    cluster.plane.kubectl(&untaint).await.map(drop)
}

/// A pod waits for the new node. It ends at once if it runs before the package is there.
fn waiting() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: late, namespace: default}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {NEW}}}
  restartPolicy: Never
  # A drain for another Skyhook leaves it alone.
  tolerations: [{{key: node.kubernetes.io/unschedulable, operator: Exists}}]
  terminationGracePeriodSeconds: 1
  containers:
    - name: late
      image: {BUSYBOX}
      command: [/bin/sh, -ec, \"cat /host/joined; sleep 100000\"]
      volumeMounts: [{{name: host, mountPath: /host}}]
  volumes:
    - name: host
      hostPath: {{path: /}}
"
    )
}

pub(super) async fn a_node_that_joins_tainted_is_configured_before_pods_run_there(
    cluster: &mut RealCluster,
    image: &Image,
) -> Result<()> {
    let steps =
        json!({"apply.sh": "while [ ! -e /go ]; do sleep 0.2; done; echo joined >>/joined"});
    let mut join = scripts("join", image, &steps, &json!({}));
    join["spec"]["runtimeRequired"] = json!(true);
    apply(cluster.client(), &join).await?;
    let underway = |skyhook: &Skyhook| {
        let status = skyhook.status.as_ref();
        status.is_some_and(|s| s.status == Status::InProgress)
    };
    wait_for(cluster.client(), "join", "in progress", MINUTE, underway).await?;
    kubectl_apply(&cluster.plane, &waiting()).await?;
    let third = cluster.join_tainted(&json!([taint()])).await?;
    // The others give their slots back.
    for node in ["worker-1", "worker-2"] {
        let host = &cluster.node(node)?.host;
        host.exec(["touch", "/go"]).await?;
    }
    let state = "jsonpath={.status.phase} {.spec.nodeName}";
    let pod = ["get", "pod", "late", "-o", state];
    let begun = |skyhook: &Skyhook| {
        let status = skyhook.status.as_ref();
        let of_node = status.and_then(|s| s.node_status.get(NEW));
        of_node == Some(&Status::InProgress)
    };
    wait_for(
        cluster.client(),
        "join",
        "at work on the new node",
        MINUTE,
        begun,
    )
    .await?;
    let waits = cluster.plane.kubectl(&pod).await?;
    ensure!(waits.trim() == "Pending", "the pod did not wait: {waits}");
    let tainted = keys(cluster, NEW).await?;
    ensure!(tainted.contains("skyhook.nvidia.com"), "{tainted}");

    third.host.exec(["touch", "/go"]).await?;
    let done = wait_complete(cluster.client(), "join", 3 * MINUTE).await?;
    assert_eq!(done.status.unwrap_or_default().complete_nodes, "3/3");
    let runs = format!("Running {NEW}");
    cluster.until(&pod, MINUTE, |shown| shown == runs).await?;
    let said = cluster.plane.kubectl(&["logs", "late"]).await?;
    ensure!(said.trim() == "joined", "the pod saw {said:?}");
    ensure!(
        !keys(cluster, NEW).await?.contains("nvidia"),
        "still tainted"
    );
    // What was complete on two nodes is not forgotten on the third.
    for (name, file) in [
        ("skyhook-sample", "/skyhook-hello-world"),
        ("restart", "/containerd-steps"),
    ] {
        wait_complete(cluster.client(), name, 2 * MINUTE).await?;
        third.host.read(file)?;
    }
    Ok(())
}

/// The kubelet brings the taint again. The host knows what is installed, so the taint goes without a step.
pub(super) async fn a_node_that_is_registered_anew_is_not_configured_again(
    cluster: &RealCluster,
) -> Result<()> {
    let node = cluster.node(NEW)?;
    let steps = || node.host.read("/containerd-steps");
    let before = steps()?;
    let uid = ["get", "node", NEW, "-o", "jsonpath={.metadata.uid}"];
    let earlier = cluster.plane.kubectl(&uid).await?;
    let audit = ["get", "node", NEW, "-o", "jsonpath={.metadata.annotations}"];
    cluster.plane.kubectl(&["delete", "node", NEW]).await?;
    node.host.exec(["systemctl", "restart", "kubelet"]).await?;
    let is_new = |shown: &str| !shown.is_empty() && shown != earlier;
    cluster.until(&uid, MINUTE, is_new).await?;
    for name in ["join", "skyhook-sample", "restart"] {
        let at = names_complete(name);
        cluster
            .until(&audit, 2 * MINUTE, |shown| shown.contains(&at))
            .await?;
        wait_complete(cluster.client(), name, 2 * MINUTE).await?;
    }
    let taints = ["get", "node", NEW, "-o", "jsonpath={.spec.taints[*].key}"];
    cluster
        .until(&taints, MINUTE, |keys| !keys.contains("nvidia"))
        .await?;
    assert_eq!(node.host.read("/joined")?, "joined\n", "a step ran again");
    assert_eq!(steps()?, before, "a step ran again");
    Ok(())
}

/// What a Node says once a Skyhook is complete there, in the output of kubectl.
fn names_complete(skyhook: &str) -> String {
    let key = skyhook_crds::names::status(skyhook);
    format!("{key:?}:\"complete\"")
}
