//! Whole roll-outs on real hosts: the budget holds, crashes change nothing, failures say what and
//! where.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, SkyhookStatus, Status, names};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::host::Host;
use skyhook_integration::rollout::{
    LeaseRecorder, apply, example, skyhook, wait_complete, wait_for,
};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

/// Adds the logs of everything to a failure.
fn with_logs<T>(cluster: &Cluster, result: Result<T>) -> Result<T> {
    result.with_context(|| cluster.logs())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_reaches_three_hosts_one_at_a_time() -> Result<()> {
    if !hosts_can_run("the_sample_reaches_three_hosts_one_at_a_time").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(3)).await?;
    let image = cluster.push("shellscript").await?;
    let recorder = LeaseRecorder::start(cluster.client()).await?;
    let mut sample = example("skyhook-sample.yaml", &image, 1)?;
    quicken(&mut sample);
    apply(cluster.client(), &sample).await?;
    let done = wait_complete(cluster.client(), "skyhook-sample", 2 * MINUTE).await;
    let done = with_logs(&cluster, done)?;

    assert_eq!(recorder.most_granted()?, 1, "{:#?}", recorder.changes());
    let changes = recorder.changes();
    for worker in &cluster.workers {
        let name = worker.host.name();
        let of_node = changes.iter().filter(|change| change.node == name);
        let grants = of_node.filter(|change| change.what == "granted").count();
        assert_eq!(
            grants, 1,
            "{name} was granted its slot {grants} times: {changes:#?}"
        );
        assert_eq!(
            worker.host.read("/skyhook-hello-world")?,
            "hello world\n",
            "{name}"
        );
    }
    let status = done.status.context("a complete Skyhook has a status")?;
    assert_eq!(status.complete_nodes, "3/3");
    assert_eq!(status.nodes_in_progress, 0);
    let expected = cluster
        .workers
        .iter()
        .map(|w| (w.host.name().to_owned(), Status::Complete));
    assert_eq!(status.node_status, expected.collect());
    Ok(())
}

/// The sample sleeps for people to see something; the test has seen enough after a second.
fn quicken(sample: &mut Value) {
    let map = &mut sample["spec"]["packages"]["something-important"]["configMap"];
    for script in map
        .as_object_mut()
        .into_iter()
        .flat_map(serde_json::Map::values_mut)
    {
        *script = json!(
            script
                .as_str()
                .unwrap_or_default()
                .replace("sleep 10", "sleep 1")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_the_middle_of_a_step_loses_nothing() -> Result<()> {
    if !hosts_can_run("an_agent_killed_in_the_middle_of_a_step_loses_nothing").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let worker = cluster.worker("worker-1")?;
    let image = cluster.push("sleeper").await?;
    let package = json!({"env": [{"name": "SLEEP_LEN", "value": "4"}]});
    apply(
        cluster.client(),
        &skyhook("sleepy", "sleeper", &image, 1, &package),
    )
    .await?;

    with_logs(&cluster, wait_for_log(&worker.host, "apply begin").await)?;
    let before = worker.agent.pid().await?;
    worker.agent.kill().await?;
    // Once more, while the new one finds its way.
    wait_for_agent(&cluster, before).await?;
    worker.agent.kill().await?;
    // And in a step whose result falls into the time when no agent runs.
    with_logs(&cluster, wait_for_log(&worker.host, "config begin").await)?;
    worker.agent.stop().await?;
    with_logs(&cluster, wait_for_log(&worker.host, "config end 0").await)?;
    worker.agent.start().await?;

    with_logs(
        &cluster,
        wait_complete(cluster.client(), "sleepy", MINUTE).await,
    )?;
    assert_eq!(steps(&worker.host)?, ONCE, "{}", cluster.logs());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_again_and_again_changes_nothing() -> Result<()> {
    if !hosts_can_run("a_coordinator_killed_again_and_again_changes_nothing").await {
        return Ok(());
    }
    let mut cluster = Cluster::start(Setup::hosts(3)).await?;
    let image = cluster.push("sleeper").await?;
    let recorder = LeaseRecorder::start(cluster.client()).await?;
    let package = json!({"env": [{"name": "SLEEP_LEN", "value": "1"}]});
    apply(
        cluster.client(),
        &skyhook("sleepy", "sleeper", &image, 2, &package),
    )
    .await?;
    // Before it saw anything, between reserve and grant, in steps, at results: the delays differ.
    for delay in [10, 120, 300, 450, 700, 1100, 1600, 2200, 350, 900] {
        tokio::time::sleep(Duration::from_millis(delay)).await;
        cluster.restart_coordinator().await?;
    }
    with_logs(
        &cluster,
        wait_complete(cluster.client(), "sleepy", 2 * MINUTE).await,
    )?;
    // Never more, and both slots were used: the record does count.
    assert_eq!(recorder.most_granted()?, 2, "{:#?}", recorder.changes());
    for worker in &cluster.workers {
        assert_eq!(steps(&worker.host)?, ONCE, "{}", worker.host.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_and_where_and_since_when() -> Result<()> {
    if !hosts_can_run("failures_say_what_and_where_and_since_when").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(2)).await?;
    let failing = cluster.push("failing").await?;
    let broken = skyhook("broken-step", "failing", &failing, 1, &json!({}));
    apply(cluster.client(), &broken).await?;
    let words = [
        "failing",
        "apply",
        "step break",
        "exited with 7",
        "flux capacitor",
    ];
    let (status, node) = explained(&cluster, "broken-step", &words).await?;
    assert_eq!(status.status, Status::Erroring);
    // One slot, and the node that fails keeps it.
    assert_eq!(status.nodes_in_progress, 1);
    assert_eq!(
        condition(&node, &names::erroring_condition("broken-step"))?,
        "True"
    );
    warned(
        &cluster,
        &["broken-step", "flux capacitor", &node.name_any()],
    )
    .await?;

    let disable = [
        "annotate",
        "skyhook",
        "broken-step",
        "skyhook.nvidia.com/disable=true",
    ];
    cluster.plane.kubectl(&disable).await?;
    let mut wrong = cluster.push("noop").await?;
    wrong.repository += "-that-does-not-exist";
    let wrong = skyhook("wrong-image", "noop", &wrong, 1, &json!({}));
    apply(cluster.client(), &wrong).await?;
    let words = ["noop", "that-does-not-exist", "cannot be pulled"];
    let (status, node) = explained(&cluster, "wrong-image", &words).await?;
    assert_eq!(status.nodes_in_progress, 1);
    assert_eq!(
        condition(&node, &names::not_ready_condition("wrong-image"))?,
        "True"
    );
    Ok(())
}

/// Waits until the Skyhook's status names `words` as the reason of a node that was started, and says since
/// when. Returns that status and that Node, whose own record says the same: it is another write.
async fn explained(cluster: &Cluster, name: &str, words: &[&str]) -> Result<(SkyhookStatus, Node)> {
    let culprit = |status: &SkyhookStatus| {
        let mut reasons = status.node_reasons.iter();
        let named =
            reasons.find(|(_, reason)| words.iter().all(|word| reason.message.contains(word)));
        named.map(|(node, reason)| (node.clone(), reason.since.clone()))
    };
    let (skyhooks, nodes) = (
        Api::<Skyhook>::all(cluster.client()),
        Api::<Node>::all(cluster.client()),
    );
    let found = eventually(MINUTE, async || {
        let status = skyhooks.get(name).await?.status.context("no status")?;
        let (node, since) = culprit(&status)
            .with_context(|| format!("no reason with {words:?} in {:#?}", status.node_reasons))?;
        let node = nodes.get(&node).await?;
        let recorded = node.annotations().get(&names::status(name));
        let shown = status.node_status.get(&node.name_any());
        let (recorded, shown) = (recorded.map(String::as_str), shown.map(|one| one.as_str()));
        ensure!(
            recorded == shown,
            "the Node says {recorded:?}, the Skyhook {shown:?}"
        );
        Ok((status, node, since))
    });
    let (status, node, since) = with_logs(cluster, found.await)?;
    since.parse::<jiff::Timestamp>().context(since)?;
    Ok((status, node))
}

/// The status of a Node's condition, which says since when.
fn condition(node: &Node, type_: &str) -> Result<String> {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let found = conditions
        .into_iter()
        .flatten()
        .find(|one| one.type_ == type_);
    let found = found.with_context(|| format!("the node has no condition {type_}"))?;
    found
        .last_transition_time
        .as_ref()
        .context("it does not say since when")?;
    Ok(found.status.clone())
}

/// Waits for a Warning event that has all of `words`.
async fn warned(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let list = [
        "get",
        "events",
        "-A",
        "--field-selector=type=Warning",
        "-o",
        "json",
    ];
    eventually(MINUTE, async || {
        let events = cluster.plane.kubectl(&list).await?;
        let events: Value = serde_json::from_str(&events)?;
        let mut each = events["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(Value::to_string);
        ensure!(
            each.any(|event| words.iter().all(|word| event.contains(word))),
            "no Warning event names {words:?}: {events}"
        );
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_an_agent_is_named_and_the_others_go_on() -> Result<()> {
    if !hosts_can_run("a_node_without_an_agent_is_named_and_the_others_go_on").await {
        return Ok(());
    }
    let mut cluster = Cluster::start(Setup {
        coordinator: false,
        ..Setup::hosts(1)
    })
    .await?;
    // Sorts before the real one, so that it is picked first.
    let ghost = json!({"metadata": {"name": "ghost", "labels": {"kubernetes.io/os": "linux"}}});
    let nodes: Api<Node> = Api::all(cluster.client());
    nodes
        .create(&PostParams::default(), &serde_json::from_value(ghost)?)
        .await?;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let ready = kube::api::Patch::Strategic(ready);
    nodes
        .patch_status("ghost", &Default::default(), &ready)
        .await?;
    let untaint = kube::api::Patch::Merge(json!({"spec": {"taints": []}}));
    nodes.patch("ghost", &Default::default(), &untaint).await?;
    cluster.start_coordinator(&["--accept-timeout=3s"]).await?;

    let image = cluster.push("noop").await?;
    apply(
        cluster.client(),
        &skyhook("everywhere", "noop", &image, 1, &json!({})),
    )
    .await?;
    let says = |skyhook: &Skyhook| {
        let status = skyhook.status.as_ref();
        status.is_some_and(|status| {
            let ghost = status.node_reasons.get("ghost").map(serde_json::to_string);
            let named = matches!(ghost, Some(Ok(text)) if text.contains("AgentNotResponding"));
            named && status.node_status.get("worker-1") == Some(&Status::Complete)
        })
    };
    let what = "ghost: AgentNotResponding, worker-1: complete";
    let found = wait_for(cluster.client(), "everywhere", what, MINUTE, says).await;
    with_logs(&cluster, found)?;
    Ok(())
}

const ONCE: &[&str] = &[
    "apply begin",
    "apply end 0",
    "apply-check begin",
    "apply-check end 0",
    "config begin",
    "config end 0",
    "config-check begin",
    "config-check end 0",
];

/// What the sleeper's steps wrote down, in order.
fn steps(host: &Host) -> Result<Vec<String>> {
    Ok(host
        .read("/var/lib/sleeper/log")?
        .lines()
        .map(str::to_owned)
        .collect())
}

async fn wait_for_log(host: &Host, line: &str) -> Result<()> {
    eventually(MINUTE, async || {
        let lines = steps(host)?;
        ensure!(
            lines.iter().any(|one| one == line),
            "{}: no step wrote {line:?}: {lines:?}",
            host.name()
        );
        Ok(())
    })
    .await
}

async fn wait_for_agent(cluster: &Cluster, not: u32) -> Result<()> {
    let worker = cluster.worker("worker-1")?;
    eventually(MINUTE, async || {
        let pid = worker.agent.pid().await?;
        ensure!(pid != 0 && pid != not, "no new agent: {}", cluster.logs());
        Ok(())
    })
    .await
}
