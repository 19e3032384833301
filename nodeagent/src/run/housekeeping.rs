//! Keeping the host tidy: what running steps and packages leave behind.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::agent::Agent;
use crate::host::exec::{Supervisors, is_running};

/// The highest number of a step that has a directory.
pub(super) fn last_step(steps: &Path) -> u64 {
    step_directories(steps)
        .iter()
        .map(|(id, _)| *id)
        .max()
        .unwrap_or(0)
}

/// Steps whose supervisor lives and has left no result.
pub(super) fn running_steps(steps: &Path) -> Vec<u64> {
    step_directories(steps)
        .into_iter()
        .filter(|(_, directory)| is_running(directory))
        .map(|(id, _)| id)
        .collect()
}

fn step_directories(steps: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(steps) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id = entry.file_name().to_str()?.parse().ok()?;
            Some((id, entry.path()))
        })
        .collect()
}

/// Waits until none of these steps runs any more.
pub(super) async fn await_steps(runner: &Supervisors, steps: Vec<u64>) {
    for id in steps {
        tracing::warn!(id, "a step of an earlier lease is waited for");
        while runner.is_running(id) {
            sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Agent {
    /// Removes what nothing needs any more. Best effort: it is tried again after the next lease.
    pub(super) fn keep_house(&self) {
        if let Err(error) = self.journal.prune() {
            tracing::warn!(error = %crate::stage::chain(&error), "old revisions cannot be removed");
        }
        let steps = self.host.path(&self.settings.state_dir).join("steps");
        for (id, directory) in step_directories(&steps) {
            if !is_running(&directory)
                && let Err(error) = fs::remove_dir_all(&directory)
            {
                tracing::warn!(id, %error, "a step's directory cannot be removed");
            }
        }
    }
}
