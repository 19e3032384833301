//! Death at an exact point: the agent writes its journal before every effect, so each replacement of that file is one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::Worker;
use crate::host::Host;
use crate::wait::{MINUTE, eventually};

/// The agent's journal on a host.
pub const JOURNAL: &str = "/var/lib/skyhook-agent/journal";

/// What has been written of a host's journal.
#[derive(Debug)]
pub struct Writes {
    journal: PathBuf,
    last: Option<(u64, i64, i64)>,
}

impl Writes {
    /// Counts from now on.
    pub fn of(host: &Host) -> Self {
        let journal = host.path(JOURNAL);
        let last = identity(&journal);
        Self { journal, last }
    }

    /// Returns right after the `n`th write; false when `done` says first that there is none.
    pub async fn wait(&mut self, n: usize, done: impl Fn() -> bool) -> bool {
        let mut seen = 0;
        loop {
            let now = identity(&self.journal);
            if now != self.last {
                self.last = now;
                seen += 1;
                if seen == n {
                    return true;
                }
            }
            if done() {
                return false;
            }
            // A write takes a millisecond at least: none is missed.
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
    }
}

/// Kills the agent right after its `n`th write from now; false when that never came. An agent that a reboot has started anew
/// meanwhile is killed as soon as it is found.
pub async fn kill_after(worker: &Worker, n: usize, done: impl Fn() -> bool) -> Result<bool> {
    let mut writes = Writes::of(&worker.host);
    let pid = worker.agent.pid().await?;
    let outside = outer_pid(&worker.host, pid).context("the agent's process")?;
    if !writes.wait(n, done).await {
        return Ok(false);
    }
    if kill(Pid::from_raw(outside), Signal::SIGKILL).is_ok() {
        return Ok(true);
    }
    eventually(MINUTE, async || {
        let inside = worker.agent.pid().await?;
        let outside = outer_pid(&worker.host, inside).context("the agent's process")?;
        Ok(kill(Pid::from_raw(outside), Signal::SIGKILL)?)
    })
    .await?;
    Ok(true)
}

/// Content of a host's journal, on or off.
pub fn journal(host: &Host) -> Result<Value> {
    let text = host.read(JOURNAL)?;
    let (_, body) = text.split_once('\n').context("the journal has one line")?;
    Ok(serde_json::from_str(body)?)
}

/// Inode and time of a file: another one after each rename.
fn identity(path: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// The process of this machine that is `inside` on the host.
pub fn outer_pid(host: &Host, inside: u32) -> Option<i32> {
    let leader = host.current().ok()?.leader;
    let namespace = std::fs::read_link(format!("/proc/{leader}/ns/pid")).ok()?;
    std::fs::read_dir("/proc").ok()?.find_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        if std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()? != namespace {
            return None;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|l| l.starts_with("NSpid:"))?;
        let innermost: u32 = line.split_whitespace().last()?.parse().ok()?;
        (innermost == inside).then_some(pid)
    })
}
