//! Steps that end in ways of their own: killed for their memory, stopped by somebody, gone with the
//! power, waited for by a clock that jumps.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skyhook_integration::machine::Machine as _;
use skyhook_integration::rollout::{apply, scripts};
use skyhook_integration::wait::MINUTE;
use tokio::time::sleep;

use crate::bench::{Bench, SOON, package};

const DAY: i64 = 86_400;

/// A script that does `first` in its first run and nothing in the others; each run adds a line.
fn once(name: &str, bench: &Bench, first: &str) -> (Value, String) {
    let file = format!("/runs-{name}");
    let script = format!("echo run >>{file}; sync {file}; [ $(wc -l <{file}) -gt 1 ] || {first}\n");
    let script = json!({"apply.sh": script});
    (scripts(name, &bench.shell, &script, &json!({})), file)
}

pub(crate) async fn over_its_memory_limit(bench: &Bench) -> Result<()> {
    let script = json!({"apply.sh": "echo run >>/runs-memory\nhead -c 300M /dev/zero | tail\n"});
    let limits = json!({"resources": {
        "cpuRequest": "100m", "cpuLimit": "2", "memoryRequest": "32Mi", "memoryLimit": "64Mi",
    }});
    let manifest = scripts("memory", &bench.shell, &script, &limits);
    apply(bench.cluster.client(), &manifest).await?;
    let words = ["out of memory", "memoryLimit"];
    bench.until_it_says(&manifest, &words).await?;
    bench.until_tried_again(&manifest).await?;
    // No retry comes sooner than after ten seconds, so in this time there is one more at most.
    let runs = bench.lines("/runs-memory").await?;
    sleep(Duration::from_secs(8)).await;
    let later = bench.lines("/runs-memory").await?;
    ensure!(
        later <= runs + 1,
        "{runs} runs, and {later} after 8 seconds"
    );
    let killed = "journalctl -k -o cat --grep 'Killed process' | grep -v '(tail)' || true";
    let others = bench.vm().sh(killed).await?;
    ensure!(
        others.is_empty(),
        "more than the script's program was killed: {others}"
    );
    Ok(())
}

/// The kernel spares the memory that a step requested, in the step's cgroup and in that of all steps. Nothing is spared
/// when the steps have ended.
pub(crate) async fn memory_request(bench: &Bench) -> Result<()> {
    const ALL: &str = "/sys/fs/cgroup/skyhook.slice/memory.low";
    let script = format!(
        "own=/sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup)/memory.low\n\
         cat $own {ALL} >/memory-low\n"
    );
    let limits = json!({"resources": {
        "cpuRequest": "100m", "cpuLimit": "2", "memoryRequest": "32Mi", "memoryLimit": "64Mi",
    }});
    let script = json!({"apply.sh": script});
    let manifest = scripts("memory-request", &bench.shell, &script, &limits);
    bench.complete(&manifest).await?;
    let low = bench.vm().read_file("/memory-low").await?;
    ensure!(low == "33554432\n33554432\n", "memory.low was {low:?}");
    let ended = format!("[ ! -e {ALL} ] || grep -qx 0 {ALL}");
    let ended = bench.until(&ended, SOON).await;
    ended.context("the memory of steps that have ended is spared")?;
    Ok(())
}

pub(crate) async fn power_cut_in_mid_step(bench: &Bench) -> Result<()> {
    let (manifest, file) = once("power", bench, "sleep 600");
    apply(bench.cluster.client(), &manifest).await?;
    bench.until(&format!("grep -q run {file}"), SOON).await?;
    bench.vm().reset().await?;
    let done = bench.complete(&manifest).await?;
    let runs = bench.lines(&file).await?;
    ensure!(runs == 2, "the step ran {runs} times");
    let restarts = package(&done)?.restarts;
    ensure!(restarts == 0, "the power cut counts as {restarts} failures");
    Ok(())
}

pub(crate) async fn scope_is_stopped(bench: &Bench) -> Result<()> {
    let (manifest, file) = once("stopped", bench, "sleep 600");
    apply(bench.cluster.client(), &manifest).await?;
    bench.until(&format!("grep -q run {file}"), SOON).await?;
    bench.vm().sh("systemctl stop 'skyhook-*.scope'").await?;
    let stopped = Instant::now();
    bench
        .until_it_says(&manifest, &["stopped its scope"])
        .await?;
    bench.until_tried_again(&manifest).await?;
    let done = bench.complete(&manifest).await?;
    let took = stopped.elapsed();
    ensure!(
        took > Duration::from_secs(5),
        "it ran again after {took:?} already"
    );
    let restarts = package(&done)?.restarts;
    ensure!(restarts == 1, "it counts as {restarts} failures");
    let runs = bench.lines(&file).await?;
    ensure!(runs == 2, "the step ran {runs} times");
    Ok(())
}

pub(crate) async fn clock_set_back(bench: &Bench) -> Result<()> {
    let (manifest, file) = once("clock", bench, "exit 1");
    apply(bench.cluster.client(), &manifest).await?;
    bench.until_it_says(&manifest, &["exit"]).await?;
    ensure!(
        bench.lines(&file).await? == 1,
        "it ran again before the clock was set"
    );
    bench.vm().turn_clock(-DAY).await?;
    let ended = bench
        .until(&format!("[ $(wc -l <{file}) -gt 1 ]"), 3 * MINUTE)
        .await;
    let outcome = match ended {
        Ok(_) => bench.complete(&manifest).await.map(drop),
        Err(error) => Err(error),
    };
    bench.vm().turn_clock(DAY).await?;
    outcome
}
