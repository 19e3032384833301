//! Readiness and liveness probes: the agent's loop answers on a socket. No answer means that the loop hangs. The agent
//! does nothing for this while no probe asks.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::UnixListener;

use crate::located::Located;

/// Name of the socket in the state directory.
const SOCKET: &str = "probe.sock";
/// How long the loop may take to answer. A write of the journal to a slow disk can delay the answer.
const PATIENCE: Duration = Duration::from_secs(8);
const REACHED: &[u8] = b"reached";
const NOT_YET: &[u8] = b"not yet";

/// The socket for probes.
#[derive(Debug)]
pub(super) struct Probes {
    listener: UnixListener,
    path: PathBuf,
}

impl Probes {
    /// Creates the socket. Removes the socket of an earlier agent first.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        // Earlier versions used the file `ready` instead of the socket.
        for old in [state.join(SOCKET), state.join("ready")] {
            match fs::remove_file(&old) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        let (_directory, address) = address(state)?;
        Ok(Self {
            listener: UnixListener::bind(address)?,
            path: state.join(SOCKET),
        })
    }

    /// Waits for the next connection of a probe.
    pub(super) async fn asked(&self) -> io::Result<tokio::net::UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let _removed = fs::remove_file(&self.path);
    }
}

/// Answers a probe with whether the API was reached. An error does not matter: the probe has ended already.
pub(super) fn answer(stream: tokio::net::UnixStream, reached: bool) {
    let text = if reached { REACHED } else { NOT_YET };
    let _sent = stream
        .into_std()
        .and_then(|mut stream| stream.write_all(text));
}

/// Readiness: the agent runs, its loop does not hang, and its watch has reached the API.
pub(super) fn ready(state: &Located) -> anyhow::Result<()> {
    match ask(state.path(), PATIENCE) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("the agent has not reached the API yet"),
        Err(e) if is_timeout(&e) => Err(hangs(e)),
        Err(e) => Err(e).with_context(|| format!("no agent answers in {state}")),
    }
}

/// Liveness: fails only when an agent runs and its loop hangs. Succeeds while the agent starts, waits for the end of
/// another agent, or cannot reach the API.
pub(super) fn live(state: &Path) -> anyhow::Result<()> {
    match ask(state, PATIENCE) {
        Err(e) if is_timeout(&e) => Err(hangs(e)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// True for a timeout: the socket accepts connections, but the loop does not answer.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn hangs(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!(
        "the agent's loop has not answered for {} s: it hangs",
        PATIENCE.as_secs()
    ))
}

fn ask(state: &Path, patience: Duration) -> io::Result<bool> {
    let (_directory, address) = address(state)?;
    let mut stream = UnixStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer == REACHED)
}

/// A path to the socket that is short enough for a socket address.
fn address(state: &Path) -> io::Result<(File, PathBuf)> {
    let directory = File::open(state)?;
    let address = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    Ok((directory, address.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer of the loop, and whether it counts as hanging. With `None` the loop never answers.
    async fn probed(state: &Path, reached: Option<bool>) -> (Result<bool, io::ErrorKind>, bool) {
        let probes = Probes::open(state).unwrap();
        let at = state.to_owned();
        let mut probe = tokio::task::spawn_blocking(move || {
            let asked = ask(&at, Duration::from_millis(300));
            let hangs = asked.as_ref().is_err_and(is_timeout);
            (asked.map_err(|e| e.kind()), hangs)
        });
        loop {
            tokio::select! {
                outcome = &mut probe => return outcome.unwrap(),
                Ok(stream) = probes.asked(), if reached.is_some() => {
                    answer(stream, reached.unwrap_or_default());
                }
            }
        }
    }

    #[tokio::test]
    async fn a_loop_that_hangs_is_red_and_nothing_else_is_for_liveness() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        assert_eq!(probed(state, Some(true)).await, (Ok(true), false));
        // The agent has not reached the API.
        assert_eq!(probed(state, Some(false)).await, (Ok(false), false));
        assert_eq!(
            probed(state, None).await,
            (Err(io::ErrorKind::WouldBlock), true)
        );
    }

    #[tokio::test]
    async fn no_agent_is_not_ready_and_does_not_hang() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let located = Located::from(state);
        let never = ready(&located).unwrap_err().to_string();
        assert!(never.starts_with("no agent answers in"), "{never}");
        live(state).unwrap();
        // A killed agent leaves its socket, and an earlier version a file.
        std::mem::forget(Probes::open(state).unwrap().listener_only());
        fs::write(state.join("ready"), "7").unwrap();
        assert!(ready(&located).is_err());
        live(state).unwrap();
        drop(Probes::open(state).unwrap());
        assert!(!state.join("ready").exists() && !state.join(SOCKET).exists());
    }

    impl Probes {
        fn listener_only(self) -> PathBuf {
            let path = self.path.clone();
            let aside = path.with_extension("aside");
            fs::rename(&path, &aside).unwrap();
            drop(self);
            fs::rename(&aside, &path).unwrap();
            path
        }
    }

    #[tokio::test]
    async fn a_state_directory_with_a_long_name_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("x".repeat(200));
        fs::create_dir(&state).unwrap();
        assert_eq!(probed(&state, Some(true)).await, (Ok(true), false));
    }
}
