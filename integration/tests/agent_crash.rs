//! The agent is killed after each of its journal writes, enumerated: every effect is performed right after one.
#![expect(clippy::disallowed_methods, reason = "tests are shell")]

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::crash::kill_after;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::source::source;
use skyhook_integration::wait::{MINUTE, eventually};

/// Applies, kills the agent after its `n`th write, and waits for the end; false when there was no such write.
async fn once(cluster: &Cluster, manifest: &Value, n: usize) -> Result<bool> {
    let worker = cluster.worker("worker-1")?;
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    let finished = std::sync::atomic::AtomicBool::new(false);
    let done = || finished.load(std::sync::atomic::Ordering::Acquire);
    let roll_out = async {
        apply(cluster.client(), manifest).await?;
        let end = wait_complete(cluster.client(), name, MINUTE).await;
        finished.store(true, std::sync::atomic::Ordering::Release);
        end.map(drop)
    };
    let (killed, end) = tokio::join!(kill_after(worker, n, done), roll_out);
    end.with_context(|| format!("{name}, killed after write {n}: {}", cluster.logs()))?;
    let killed = killed?;
    eventually(MINUTE, async || {
        ensure!(
            worker.agent.pid().await? != 0,
            "the agent does not come back"
        );
        Ok(())
    })
    .await?;
    Ok(killed)
}

/// Every stage began and ended, in order, and no two at once; one whose end was not known ran again.
fn check(log: &str, stages: &[&str]) -> Result<()> {
    ensure!(!log.contains("OVERLAP"), "two steps at once: {log}");
    let mut last = 0;
    for line in log.lines() {
        let (mode, what) = line.split_once(' ').context("a line of the log")?;
        let at = stages
            .iter()
            .position(|s| *s == mode)
            .with_context(|| format!("{mode} was not asked for: {log}"))?;
        ensure!(at == last || at == last + 1, "{mode} out of order: {log}");
        ensure!(what == "begin" || what == "end 0", "{line}: {log}");
        last = at;
    }
    let ends = |mode: &str| {
        log.lines()
            .filter(|l| *l == format!("{mode} end 0"))
            .count()
    };
    for mode in stages {
        ensure!(ends(mode) == 1, "{mode} ran {} times: {log}", ends(mode));
    }
    Ok(())
}

fn manifest(n: usize, image: &Image, version: &str) -> Value {
    let mut manifest = skyhook(&format!("crash-{n}"), "sleeper", image, 1, &json!({}));
    manifest["spec"]["packages"]["sleeper"]["version"] = json!(version);
    manifest
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_effect_of_an_install_and_an_upgrade() -> Result<()> {
    if !hosts_can_run("killed_at_every_effect_of_an_install_and_an_upgrade").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("sleeper").await?;
    let folder = source("integration/fixtures/packages/sleeper");
    cluster
        .registry
        .push_folder(&folder, "skyhook-packages/sleeper", "2.0.0")
        .await?;
    let host = &cluster.worker("worker-1")?.host;
    let mut killed = 0;
    for n in 1.. {
        host.sh("rm -f /var/lib/sleeper/log").await?;
        let installing = once(&cluster, &manifest(n, &image, "1.0.0"), n).await?;
        let log = host.read("/var/lib/sleeper/log")?;
        check(&log, &["apply", "apply-check", "config", "config-check"])
            .with_context(|| format!("install, killed after write {n}: {}", cluster.logs()))?;
        host.sh("rm -f /var/lib/sleeper/log").await?;
        let upgrading = once(&cluster, &manifest(n, &image, "2.0.0"), n).await?;
        let log = host.read("/var/lib/sleeper/log")?;
        check(
            &log,
            &["upgrade", "upgrade-check", "config", "config-check"],
        )
        .with_context(|| format!("upgrade, killed after write {n}: {}", cluster.logs()))?;
        killed += usize::from(installing) + usize::from(upgrading);
        if !installing && !upgrading {
            break;
        }
    }
    ensure!(killed > 10, "only {killed} writes were seen");
    eprintln!("killed after each of {killed} journal writes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_packages_in_a_graph() -> Result<()> {
    if !hosts_can_run("sixty_four_packages_in_a_graph").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("noop").await?;
    let name = |n: usize| {
        format!(
            "p{}x",
            char::from(b'a' + u8::try_from(n / 10).unwrap_or(0)).to_string() + &n.to_string()
        )
    };
    let packages: serde_json::Map<String, Value> = (0..64)
        .map(|n| {
            let mut package = json!({"version": image.version, "image": image.repository});
            if n % 10 > 0 {
                package["dependsOn"] = json!({ name(n - 1): image.version });
            }
            (name(n), package)
        })
        .collect();
    let mut manifest = skyhook("graph", "x", &image, 1, &json!({}));
    manifest["spec"]["packages"] = Value::Object(packages);
    let begin = Instant::now();
    apply(cluster.client(), &manifest).await?;
    wait_complete(cluster.client(), "graph", 5 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    eprintln!("64 packages took {:?}", begin.elapsed());
    Ok(())
}
