//! Two versions side by side, as in every rolling update and roll-back: each program is replaced in the middle of a step,
//! the other one stays what it was.
#![expect(clippy::disallowed_methods, reason = "tests are shell")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skyhook_integration::agent::UNIT;
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::host::Host;
use skyhook_integration::programs::{self, AGENT, COORDINATOR};
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::skip::{hosts_can_run, skipped};
use skyhook_integration::wait::{MINUTE, eventually};

const LOG: &str = "/var/lib/sleeper/log";

/// Who is replaced by what, in the order of an update and of a roll-back.
const SWAPS: [(&str, Version); 4] = [
    (COORDINATOR, Version::This),
    (AGENT, Version::This),
    (COORDINATOR, Version::Previous),
    (AGENT, Version::Previous),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Previous,
    This,
}

/// Where the programs of each version are.
struct Programs {
    this: PathBuf,
    previous: PathBuf,
}

impl Programs {
    /// Puts a program of that version where the cluster starts it from. One that runs goes on.
    fn install(&self, cluster: &Cluster, program: &str, version: Version) -> Result<()> {
        let from = match version {
            Version::Previous => &self.previous,
            Version::This => &self.this,
        };
        let bin = cluster.run.scratch().join("bin");
        let new = bin.join(format!("{program}.new"));
        std::fs::copy(from.join(program), &new)?;
        std::fs::rename(new, bin.join(program))?;
        Ok(())
    }
}

/// Copies what the cluster was started with, before it is replaced.
fn keep(cluster: &Cluster, to: &Path) -> Result<()> {
    for program in [AGENT, COORDINATOR] {
        let from = cluster.run.scratch().join("bin").join(program);
        std::fs::copy(from, to.join(program))?;
    }
    Ok(())
}

fn count(host: &Host, line: &str) -> usize {
    let log = host.read(LOG).unwrap_or_default();
    log.lines().filter(|l| *l == line).count()
}

async fn restart_agent(host: &Host) -> Result<()> {
    host.exec(["systemctl", "restart", UNIT]).await.map(drop)
}

/// Rolls a Skyhook out on all hosts, and does `meanwhile` while the step of one runs.
async fn roll_out(
    cluster: &mut Cluster,
    image: &Image,
    number: usize,
    meanwhile: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let name = format!("skew-{number}");
    let more = json!({
        "env": [{"name": "SLEEP_LEN", "value": "2"}],
        "configMap": {"number": number.to_string()},
        "interrupt": {"type": "service", "services": ["cron"]},
    });
    let manifest = skyhook(&name, "sleeper", image, 1, &more);
    apply(cluster.client(), &manifest).await?;
    eventually(MINUTE, async || {
        let begun = count(&cluster.worker("worker-1")?.host, "apply begin");
        ensure!(begun >= number, "no step began: {}", cluster.logs());
        Ok(())
    })
    .await?;
    meanwhile(cluster).await?;
    wait_complete(cluster.client(), &name, 2 * MINUTE)
        .await
        .with_context(|| format!("{name}: {}", cluster.logs()))?;
    for worker in &cluster.workers {
        for mode in ["apply", "config", "post-interrupt"] {
            let (begun, ended) = (
                count(&worker.host, &format!("{mode} begin")),
                count(&worker.host, &format!("{mode} end 0")),
            );
            ensure!(
                (begun, ended) == (number, number),
                "{mode} on {} began {begun} times and ended {ended} times, {number} expected: {}",
                worker.host.name(),
                cluster.logs()
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbouring_versions_work_together() -> Result<()> {
    let test = "neighbouring_versions_work_together";
    if !hosts_can_run(test).await {
        return Ok(());
    }
    let Some(previous) = programs::previous().await? else {
        skipped(test, "this clone does not have the previous version");
        return Ok(());
    };
    let mut setup = Setup::hosts(2);
    setup.agents = false;
    setup.coordinator = false;
    let mut cluster = Cluster::start(setup).await?;
    let image = cluster.push("sleeper").await?;
    let this = tempfile::tempdir()?;
    keep(&cluster, this.path())?;
    let programs = Programs {
        this: this.path().to_owned(),
        previous,
    };
    for program in [AGENT, COORDINATOR] {
        let differs = std::fs::read(programs.this.join(program))?
            != std::fs::read(programs.previous.join(program))?;
        ensure!(differs, "both versions of {program} are the same file");
        programs.install(&cluster, program, Version::Previous)?;
    }
    cluster.start_coordinator(&[]).await?;
    for worker in &cluster.workers {
        worker.agent.start().await?;
    }
    roll_out(&mut cluster, &image, 1, async |_| Ok(())).await?;
    for (number, (program, version)) in (2..).zip(SWAPS) {
        let swap = async |cluster: &mut Cluster| {
            programs.install(cluster, program, version)?;
            if program == COORDINATOR {
                return cluster.restart_coordinator().await;
            }
            for worker in &cluster.workers {
                restart_agent(&worker.host).await?;
            }
            Ok(())
        };
        roll_out(&mut cluster, &image, number, swap)
            .await
            .with_context(|| format!("{program} replaced by that of {version:?}"))?;
        eprintln!("{program} replaced by that of {version:?} in mid-step: complete, nothing twice");
    }
    Ok(())
}
