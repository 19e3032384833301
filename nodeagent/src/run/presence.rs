//! The agent's state directory, and the lock that allows one agent per host.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

use crate::located::Located;

/// File in the state directory. A running agent holds a lock on it.
const LOCK: &str = "agent.lock";
/// Time between two log messages of a waiting agent.
const REMIND: Duration = Duration::from_secs(60);

/// Creates the state directory with access for root only: another user could otherwise open a file in it and lock it,
/// and the agent would wait forever.
pub(super) fn make_state_directory(state: &Located) -> io::Result<()> {
    let state = state.path();
    if let Some(parent) = state.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(state) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        Ok(()) | Err(_) => {}
    }
    // The directory may have existed before, with other permissions.
    fs::set_permissions(state, Permissions::from_mode(0o700))
}

/// Takes the lock that the agent holds until it ends: two agents on one host would run steps twice. Waits while another
/// agent still runs. This happens, for example, when the other agent's pod was deleted with force.
pub(super) async fn only_agent(state: &Located) -> anyhow::Result<File> {
    let lock = state.join(LOCK);
    let problem = || format!("{lock} cannot be locked");
    let file = open(lock.path()).with_context(problem)?;
    let mut remind_at = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error).with_context(problem),
        }
        if Instant::now() >= remind_at {
            tracing::warn!(
                %lock,
                "another process holds the agent's lock, most likely another agent; this one waits for its end \
                 (lslocks names the process)"
            );
            remind_at = Instant::now() + REMIND;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs a command as the user `nobody`. True when it succeeds.
    fn can_as_nobody(command: &str, path: &Path) -> bool {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["sh", "-c", command, "sh"])
            .arg(path)
            .output()
            .unwrap()
            .status
            .success()
    }

    #[tokio::test]
    async fn nobody_else_can_open_or_lock_what_is_below_the_state_directory() {
        if !skyhook_testkit::is_root(
            "nobody_else_can_open_or_lock_what_is_below_the_state_directory",
        ) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let open_to_all = Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open_to_all.clone()).unwrap();
        // Earlier versions created the directory with these permissions.
        let state = directory.path().join("state");
        fs::create_dir_all(state.join("images")).unwrap();
        fs::set_permissions(&state, open_to_all).unwrap();
        let files = [state.join(LOCK), state.join("images/lock")];
        for file in &files {
            fs::write(file, "").unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
            assert!(
                can_as_nobody("flock --nonblock \"$1\" true", file),
                "{file:?}"
            );
        }
        let located = Located::from(&*state);
        make_state_directory(&located).unwrap();
        let _only = only_agent(&located).await.unwrap();
        for file in &files {
            for command in ["flock --nonblock \"$1\" true", "cat \"$1\"", "stat \"$1\""] {
                assert!(!can_as_nobody(command, file), "{command} {file:?}");
            }
        }
        let mode = fs::metadata(&files[0]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_agent_waits_for_the_end_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let state = Located::from(&*directory.path().join("deep/state"));
        make_state_directory(&state).unwrap();
        let first = only_agent(&state).await.unwrap();
        let second = tokio::time::timeout(Duration::from_secs(600), only_agent(&state)).await;
        assert!(second.is_err(), "it waits, and leaves others their turn");
        drop(first);
        only_agent(&state).await.unwrap();
    }
}
