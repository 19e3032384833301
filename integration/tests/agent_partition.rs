//! The API server goes away in the middle of a stage: what may go on goes on, and the results arrive later.
#![expect(clippy::disallowed_methods, reason = "tests are shell")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_cut_off_finishes_what_it_began() -> Result<()> {
    if !hosts_can_run("a_host_that_is_cut_off_finishes_what_it_began").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("sleeper").await?;
    let host = &cluster.worker("worker-1")?.host;
    let env = json!({"env": [{"name": "SLEEP_LEN", "value": "3"}]});
    apply(
        cluster.client(),
        &skyhook("away", "sleeper", &image, 1, &env),
    )
    .await?;
    until(&cluster, "apply begin").await?;
    host.cut_off().await?;
    until(&cluster, "config-check end 0").await?;
    host.reconnect().await?;
    wait_complete(cluster.client(), "away", 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let log = host.read("/var/lib/sleeper/log")?;
    assert_eq!(log.lines().count(), 8, "{log}");
    Ok(())
}

async fn until(cluster: &Cluster, line: &str) -> Result<()> {
    let host = &cluster.worker("worker-1")?.host;
    eventually(2 * MINUTE, async || {
        let log = host.read("/var/lib/sleeper/log")?;
        ensure!(log.lines().any(|l| l == line), "{line} never came: {log}");
        Ok(())
    })
    .await
    .with_context(|| cluster.logs())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_and_a_clean_stop_while_a_step_goes_on() -> Result<()> {
    if !hosts_can_run("readiness_and_a_clean_stop_while_a_step_goes_on").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("sleeper").await?;
    let worker = cluster.worker("worker-1")?;
    let probe = || worker.host.exec(["/opt/skyhook/skyhook-agent", "ready"]);
    eventually(MINUTE, async || probe().await)
        .await
        .with_context(|| format!("never ready: {}", cluster.logs()))?;
    let env = json!({"env": [{"name": "SLEEP_LEN", "value": "4"}]});
    apply(
        cluster.client(),
        &skyhook("stopped", "sleeper", &image, 1, &env),
    )
    .await?;
    until(&cluster, "apply begin").await?;
    let begin = Instant::now();
    worker.agent.stop().await?;
    ensure!(begin.elapsed() < Duration::from_secs(3), "a slow stop");
    ensure!(probe().await.is_err(), "ready without an agent");
    until(&cluster, "apply end 0").await?;
    let log = worker.host.read("/var/lib/sleeper/log")?;
    ensure!(!log.contains("apply-check"), "nobody could start it: {log}");
    worker.agent.start().await?;
    wait_complete(cluster.client(), "stopped", MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    Ok(())
}
