//! Starts supervisors, finds those that an earlier agent started, and ends their steps.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's process handling"
)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, flock};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::limits;
use super::systemd::{Bus, ScopeLimits, SystemdError};
use crate::supervise::{RESULT, Spec, StepResult};
use crate::text::{last_lines, plain};

/// How long a supervisor may take until it says that it is ready.
const READY: Duration = Duration::from_secs(20);
/// When a supervisor has died: how long the remaining processes of its step may run before they get SIGTERM, and the
/// minimum time between SIGTERM and SIGKILL.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(30);
/// After the grace period of its step: how many milliseconds a supervisor may take to write the result.
const LAST_WORDS_MS: u64 = 10_000;
/// File in a step's directory that says that the supervisor got its specification.
const HANDED_OVER: &str = "handed-over";
/// File in a step's directory with its grace period in milliseconds, when that is longer than [`ORPHAN_PATIENCE`].
const GRACE: &str = "grace-ms";
/// File in a step's directory for the standard error of the supervisor. The supervisor holds a lock on it while it
/// runs.
const SUPERVISOR_LOG: &str = "supervisor.log";
/// How many lines and bytes of a supervisor's own log are put into a message.
const LOG_LINES: usize = 5;
const LOG_BYTES: usize = 1024;

/// Why a step could not be started or found.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("step {id}: {action} failed")]
    Io {
        id: u64,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("step {id}: its scope cannot be started")]
    Scope {
        id: u64,
        #[source]
        source: SystemdError,
    },
    #[error("step {id}: the supervisor did not get ready: {problem}")]
    NotReady { id: u64, problem: String },
}

/// How a step ended, as far as the agent knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepEnd {
    Finished(StepResult),
    /// The supervisor and its scope are gone, and there is no result.
    Lost {
        /// Why there is no result, as a message.
        problem: String,
    },
    /// The earlier agent died before it had started the step.
    NotStarted,
}

/// A step for [`Supervisors::run`].
#[derive(Clone, Debug)]
pub struct StepRequest {
    pub id: u64,
    /// Package and mode. The label is a part of the scope's name.
    pub label: String,
    pub spec: Spec,
    pub limits: ScopeLimits,
}

/// Starts and finds the supervisors of steps. Each runs in a transient scope of systemd. Without a bus (no systemd),
/// each runs in its own session.
#[derive(Debug)]
pub struct Supervisors {
    bus: Option<Rc<Bus>>,
    /// The directory with one subdirectory per step, as this process sees it.
    steps: PathBuf,
    /// The same directory, as a process in the mount namespace of PID 1 sees it.
    host_steps: PathBuf,
}

impl Supervisors {
    #[must_use]
    pub fn new(bus: Option<Rc<Bus>>, steps: PathBuf, host_steps: PathBuf) -> Self {
        Self {
            bus,
            steps,
            host_steps,
        }
    }

    /// The directory with one subdirectory per step, as this process sees it.
    #[must_use]
    pub fn steps(&self) -> &Path {
        &self.steps
    }

    /// True while the supervisor of the step runs and has written no result.
    #[must_use]
    pub fn is_running(&self, id: u64) -> bool {
        is_running(&self.steps.join(format!("{id:08}")))
    }

    async fn start(&self, request: &StepRequest) -> Result<Child, ExecError> {
        let id = request.id;
        let failed = |action| move |source| ExecError::Io { id, action, source };
        let directory = self.directory(id).0;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(failed("creating its directory"))?;
        let lock = open_lock(&directory).map_err(failed("opening its lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("locking"))?;
        let grace = request.spec.grace_ms;
        if Duration::from_millis(grace) > ORPHAN_PATIENCE {
            fs::write(directory.join(GRACE), grace.to_string())
                .map_err(failed("noting its grace period"))?;
        }
        let mut child = Command::new("/proc/self/exe")
            .arg0("skyhook-supervisor")
            .arg("supervise")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(lock)
            .spawn()
            .map_err(failed("starting its supervisor"))?;
        let pid = child.id().unwrap_or(0);
        fs::write(directory.join("pid"), identity(pid)).map_err(failed("noting its pid"))?;
        if let Err(e) = self.hand_over(&mut child, pid, request).await {
            // The supervisor also ends when its stdin is closed without a specification.
            let _ended = child.start_kill();
            return Err(e);
        }
        Ok(child)
    }

    async fn hand_over(
        &self,
        child: &mut Child,
        pid: u32,
        request: &StepRequest,
    ) -> Result<(), ExecError> {
        let id = request.id;
        let directory = self.directory(id).0;
        let not_ready = |problem: String| {
            let problem = with_log(&directory, &problem);
            ExecError::NotReady { id, problem }
        };
        let mut spec = request.spec.clone();
        spec.callers_directory.clone_from(&directory);
        let stdout = child
            .stdout
            .as_mut()
            .ok_or_else(|| not_ready("there is no pipe to it".into()))?;
        match timeout(READY, stdout.read_u8()).await {
            Ok(Ok(b'r')) => {}
            Ok(Ok(other)) => return Err(not_ready(format!("it answered {other:#x}"))),
            Ok(Err(e)) => return Err(not_ready(e.to_string())),
            Err(_) => return Err(not_ready("it did not answer in time".into())),
        }
        if let Some(bus) = &self.bus {
            let name = scope_name(id, &request.label);
            let description = format!("Skyhook step {}", request.label);
            let limits = ScopeLimits {
                stop_timeout: Some(stop_timeout(spec.grace_ms)),
                ..request.limits
            };
            bus.start_scope(&name, &description, pid, limits)
                .await
                .map_err(|source| ExecError::Scope { id, source })?;
            await_scope(pid, &name).await.map_err(not_ready)?;
            spec.memory_limit = request.limits.memory_max.map(limits::quantity);
        }
        let text = serde_json::to_vec(&spec).map_err(|e| not_ready(e.to_string()))?;
        fs::write(directory.join(HANDED_OVER), b"").map_err(|source| ExecError::Io {
            id,
            action: "noting that it starts",
            source,
        })?;
        let mut stdin = child
            .stdin
            .take()
            .ok_or_else(|| not_ready("there is no pipe to it".into()))?;
        let sent = async {
            stdin.write_all(&text).await?;
            stdin.shutdown().await
        };
        sent.await.map_err(|e| not_ready(e.to_string()))
    }

    /// Waits until no process of the step is left.
    async fn await_what_is_left(&self, id: u64, label: &str) {
        let directory = self.directory(id).0;
        if let Some(bus) = &self.bus {
            await_orphans(bus, &scope_name(id, label), grace(&directory)).await;
        }
    }

    /// Called when the supervisor died without a result. Waits for the remaining processes of the step.
    async fn lost(&self, id: u64, label: &str) -> StepEnd {
        self.await_what_is_left(id, label).await;
        let directory = self.directory(id).0;
        let problem = with_log(&directory, "its supervisor was killed and left no result");
        StepEnd::Lost { problem }
    }
}

/// How many microseconds a scope may take to stop: the grace period of the step, and some time for the supervisor to
/// send SIGKILL and to write the result.
fn stop_timeout(grace_ms: u64) -> u64 {
    grace_ms
        .saturating_add(LAST_WORDS_MS)
        .saturating_mul(1000)
        // The largest value means infinity to systemd.
        .min(u64::MAX - 1)
}

/// Waits until a scope without a supervisor is empty. Processes that do not end get SIGTERM, and after `grace`
/// SIGKILL.
async fn await_orphans(bus: &Bus, scope: &str, grace: Duration) {
    let begin = Instant::now();
    let mut terminated_at = None;
    let mut is_logged = false;
    loop {
        // Count the processes instead of reading the scope's state: if the process died while systemd started the
        // scope, the scope stays active without processes.
        let count = match bus.count_processes(scope).await {
            Ok(count) => count,
            // The step may still run and must not run twice: wait until systemd answers.
            Err(error) => {
                if !is_logged {
                    tracing::warn!(scope, %error, "systemd does not answer which processes of a step are left: asking again");
                    is_logged = true;
                }
                sleep(ORPHAN_PATIENCE / 30).await;
                continue;
            }
        };
        if count == 0 {
            // An error does not matter: systemd has removed most scopes by now.
            let _stopped = bus.stop(scope).await;
            return;
        }
        if !is_logged {
            tracing::warn!(
                scope,
                count,
                "the supervisor of a step has died: waiting for the processes of the step"
            );
            is_logged = true;
        }
        let signal = orphan_signal(
            begin.elapsed(),
            terminated_at.map(|at: Instant| at.elapsed()),
            grace,
        );
        if let Some(signal) = signal {
            terminated_at.get_or_insert_with(Instant::now);
            // An error does not matter: the processes may have ended by now.
            let _killed = bus.kill(scope, signal as i32).await;
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// The signal to send to the processes of a scope. `dead` is the time since the death of its supervisor, and `ending` is
/// the time since the processes got SIGTERM.
fn orphan_signal(dead: Duration, ending: Option<Duration>, grace: Duration) -> Option<Signal> {
    match ending {
        None if dead <= ORPHAN_PATIENCE => None,
        None => Some(Signal::SIGTERM),
        Some(ending) if ending > grace.max(ORPHAN_PATIENCE) => Some(Signal::SIGKILL),
        Some(_) => None,
    }
}

/// The grace period of the step whose directory this is.
fn grace(directory: &Path) -> Duration {
    let noted = fs::read_to_string(directory.join(GRACE)).ok();
    let noted = noted.and_then(|ms| ms.trim().parse().ok());
    noted.map_or(ORPHAN_PATIENCE, Duration::from_millis)
}

/// The problem, with the last lines of the supervisor's own log if there are any.
fn with_log(directory: &Path, problem: &str) -> String {
    let log = fs::read(directory.join(SUPERVISOR_LOG)).unwrap_or_default();
    let end = &log[log.len().saturating_sub(8 * LOG_BYTES)..];
    let end = plain(&String::from_utf8_lossy(end));
    match last_lines(&end, LOG_LINES, LOG_BYTES) {
        end if end.is_empty() => problem.to_owned(),
        end => format!("{problem}: {end}"),
    }
}

impl Supervisors {
    /// Runs a step to its end.
    pub async fn run(&self, request: StepRequest) -> Result<StepEnd, ExecError> {
        let mut child = self.start(&request).await?;
        let directory = self.directory(request.id).0;
        // The supervisor writes `d` when the step is done. If the supervisor dies, the pipe ends.
        if let Some(stdout) = &mut child.stdout {
            let _done = stdout.read_u8().await;
        }
        let result = read_result(&directory, request.id)?;
        // The supervisor may go on to read the output of processes that the step left running. Reap it when it ends.
        tokio::task::spawn_local(async move {
            let _status = child.wait().await;
        });
        match result {
            Some(result) => Ok(StepEnd::Finished(result)),
            None => Ok(self.lost(request.id, &request.label).await),
        }
    }

    /// Waits for the end of a step that an earlier agent started.
    pub async fn adopt(&self, id: u64, label: &str) -> Result<StepEnd, ExecError> {
        let directory = self.directory(id).0;
        loop {
            if let Some(result) = read_result(&directory, id)? {
                return Ok(StepEnd::Finished(result));
            }
            if !directory.exists() || !is_locked(&directory) {
                // The supervisor may have ended between the two checks.
                return match read_result(&directory, id)? {
                    Some(result) => Ok(StepEnd::Finished(result)),
                    None if directory.join(HANDED_OVER).exists() => Ok(self.lost(id, label).await),
                    None => {
                        self.await_what_is_left(id, label).await;
                        Ok(StepEnd::NotStarted)
                    }
                };
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Tells the supervisor of a step to end it.
    pub fn end(&self, id: u64) {
        let directory = self.directory(id).0;
        let Ok(noted) = fs::read_to_string(directory.join("pid")) else {
            return;
        };
        let pid = noted.split(' ').next().and_then(|pid| pid.parse().ok());
        if let Some(pid) = pid
            && is_locked(&directory)
            && identity(pid) == noted
            && let Ok(pid) = i32::try_from(pid)
        {
            // An error does not matter: the supervisor may have ended by now.
            let _sent = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// The directory of a step, as this process and as the supervisor see it.
    #[must_use]
    pub fn directory(&self, id: u64) -> (PathBuf, PathBuf) {
        let name = format!("{id:08}");
        (self.steps.join(&name), self.host_steps.join(name))
    }
}

/// Name of a step's scope.
#[must_use]
pub fn scope_name(id: u64, label: &str) -> String {
    format!("skyhook-{id}-{label}.scope")
}

fn open_lock(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(directory.join(SUPERVISOR_LOG))
}

/// True while a supervisor holds the lock. An earlier agent may have started the supervisor.
fn is_locked(directory: &Path) -> bool {
    open_lock(directory)
        .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
}

/// True while the supervisor runs and has written no result.
#[must_use]
pub fn is_running(directory: &Path) -> bool {
    !directory.join(RESULT).exists() && is_locked(directory)
}

fn read_result(directory: &Path, id: u64) -> Result<Option<StepResult>, ExecError> {
    let failed = |source| ExecError::Io {
        id,
        action: "reading its result",
        source,
    };
    match fs::read(directory.join(RESULT)) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| failed(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Pid and start time of a process: together they are unique until the next boot.
fn identity(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name in parentheses may contain spaces. The start time is the 20th field after it.
    let started = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19))
        .unwrap_or("-");
    format!("{pid} {started}")
}

/// Waits until systemd has moved the process into the scope. The reply to `StartTransientUnit` comes earlier.
async fn await_scope(pid: u32, name: &str) -> Result<(), String> {
    let deadline = Instant::now() + READY;
    loop {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if cgroups.lines().any(|line| line.ends_with(name)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("it was not moved into {name}"));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_get_the_grace_of_their_step() {
        let seconds = Duration::from_secs;
        let signal = |gone, told: Option<u64>, grace| {
            orphan_signal(seconds(gone), told.map(seconds), seconds(grace))
        };
        assert_eq!(signal(30, None, 600), None);
        assert_eq!(signal(31, None, 600), Some(Signal::SIGTERM));
        // SIGTERM is sent once only: some programs skip their cleanup when they get a second SIGTERM.
        assert_eq!(signal(60, Some(29), 600), None);
        assert_eq!(signal(630, Some(600), 600), None);
        assert_eq!(signal(632, Some(601), 600), Some(Signal::SIGKILL));
        assert_eq!(signal(62, Some(31), 5), Some(Signal::SIGKILL));
    }

    #[test]
    fn what_a_supervisor_said_last_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(with_log(path, "gone"), "gone");
        let text = format!("{}\n\x1b[31mlast\x1b[0m words\n", "x".repeat(100_000));
        fs::write(path.join(SUPERVISOR_LOG), text).unwrap();
        let told = with_log(path, "gone");
        assert!(
            told.starts_with("gone: xx") && told.ends_with("x\nlast words"),
            "{told}"
        );
        assert!(told.len() <= "gone: ".len() + LOG_BYTES);
    }

    #[test]
    fn a_scope_stops_after_the_grace_period_of_its_step() {
        assert_eq!(stop_timeout(30_000), 40_000_000);
        assert_eq!(stop_timeout(u64::MAX), u64::MAX - 1);
    }

    #[test]
    fn grace_is_found_by_another_agent() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(grace(directory.path()), ORPHAN_PATIENCE);
        fs::write(directory.path().join(GRACE), "600000").unwrap();
        assert_eq!(grace(directory.path()), Duration::from_secs(600));
    }
}
