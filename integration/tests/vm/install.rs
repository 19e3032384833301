//! What every roll-out does: install, upgrade, restart a unit, reboot.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::{Value, json};
use skyhook_integration::machine::{Machine, invocation};
use skyhook_integration::rollout::{apply, scripts};
use skyhook_integration::source::source;
use tokio::time::sleep;

use crate::bench::Bench;

/// Each stage notes that it ran, and in which boot.
fn noting(file: &str) -> Value {
    let stages = ["apply", "config", "post_interrupt"];
    let note = |stage: &str| {
        let script = format!("echo {stage} $(cat /proc/sys/kernel/random/boot_id) >>{file}\n");
        (format!("{stage}.sh"), json!(script))
    };
    Value::Object(stages.into_iter().map(note).collect())
}

/// The stages that were noted, and the boots that they ran in.
async fn noted(bench: &Bench, file: &str) -> Result<(Vec<String>, Vec<String>)> {
    let text = bench.vm().read_file(file).await?;
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs
        .map(|(stage, boot)| (stage.to_owned(), boot.to_owned()))
        .unzip())
}

pub(crate) async fn install_and_upgrade(bench: &Bench) -> Result<()> {
    let folder = source("examples/packages/shellscript");
    let registry = &bench.cluster.registry;
    registry
        .push_folder(&folder, "skyhook-packages/shellscript", "2.0.0")
        .await?;
    let interrupt = json!({"interrupt": {"type": "service", "services": ["cron"]}});
    let mut manifest = scripts("install", &bench.shell, &noting("/install"), &interrupt);
    let first = invocation(bench.vm(), "cron").await?;
    bench.complete(&manifest).await?;
    let second = invocation(bench.vm(), "cron").await?;
    ensure!(first != second, "cron was not restarted by the install");

    manifest["spec"]["packages"]["work"]["version"] = json!("2.0.0");
    bench.complete(&manifest).await?;
    let third = invocation(bench.vm(), "cron").await?;
    ensure!(second != third, "cron was not restarted by the upgrade");
    let (stages, _) = noted(bench, "/install").await?;
    let installed = ["apply", "config", "post_interrupt"];
    // The package has no steps for an upgrade.
    let all = [&installed[..], &["config", "post_interrupt"]].concat();
    ensure!(stages == all, "{stages:?} ran");
    Ok(())
}

/// The host goes down once, comes back, and its own journal says afterwards who asked for it.
pub(crate) async fn reboot(bench: &Bench) -> Result<()> {
    let interrupt = json!({"interrupt": {"type": "reboot"}});
    let manifest = scripts("reboot", &bench.shell, &noting("/reboot"), &interrupt);
    let before = bench.vm().current()?;
    let done = bench.complete(&manifest).await?;
    let after = bench.vm().current()?;
    ensure!(after.count == before.count + 1, "{before:?} then {after:?}");
    let (stages, boots) = noted(bench, "/reboot").await?;
    ensure!(
        stages == ["apply", "config", "post_interrupt"],
        "{stages:?} ran"
    );
    let expected = [&before.id, &before.id, &after.id];
    ensure!(boots.iter().eq(expected), "{boots:?}, not {expected:?}");
    let node = Api::<Node>::all(bench.cluster.client())
        .get(bench.vm().name())
        .await?;
    let cordoned = node.spec.and_then(|spec| spec.unschedulable);
    ensure!(cordoned != Some(true), "the cordon was not given back");

    let said = bench.vm().sh("journalctl -b -1 -t skyhook -o cat").await?;
    let status = done.status.context("a status")?;
    let lease = bench.vm().name();
    for word in ["reboot", "work", &status.revision, lease] {
        ensure!(
            said.contains(word),
            "the journal does not name {word:?}: {said:?}"
        );
    }
    Ok(())
}

/// What cannot work is found before anything is touched, at every attempt.
pub(crate) async fn no_such_unit(bench: &Bench) -> Result<()> {
    let interrupt = json!({"type": "service", "services": ["cron", "no-such.service"]});
    let interrupt = json!({ "interrupt": interrupt });
    let manifest = scripts("no-such", &bench.shell, &noting("/no-such"), &interrupt);
    let before = invocation(bench.vm(), "cron").await?;
    apply(bench.cluster.client(), &manifest).await?;
    bench.until_it_says(&manifest, &["no-such.service"]).await?;
    // Past the second attempt, which comes ten seconds after the first.
    sleep(Duration::from_secs(15)).await;
    let after = invocation(bench.vm(), "cron").await?;
    ensure!(
        before == after,
        "cron was restarted beside a unit that does not exist"
    );
    Ok(())
}
