//! The directories of steps on the host: which ones there are, and which steps run.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use crate::host::exec::{Supervisors, is_running};

/// The highest number of all step directories.
pub(super) fn last_step(steps: &Path) -> u64 {
    step_directories(steps)
        .iter()
        .map(|(id, _)| *id)
        .max()
        .unwrap_or(0)
}

/// Steps whose supervisor runs and has written no result.
pub(super) fn running_steps(steps: &Path) -> Vec<u64> {
    step_directories(steps)
        .into_iter()
        .filter(|(_, directory)| is_running(directory))
        .map(|(id, _)| id)
        .collect()
}

/// Number and path of each step directory.
pub(super) fn step_directories(steps: &Path) -> Vec<(u64, PathBuf)> {
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

/// Waits until these steps have ended.
pub(super) async fn await_steps(runner: &Supervisors, steps: Vec<u64>) {
    for id in steps {
        tracing::warn!(id, "waiting for a step of an earlier lease");
        while runner.is_running(id) {
            sleep(Duration::from_millis(200)).await;
        }
    }
}
