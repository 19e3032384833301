//! The supervisor: one process per step, outside the agent's cgroup, that outlives the agent.
//!
//! It holds the step's pipes, writes its logs, ends it when told to (SIGTERM), and leaves a result file. Plain blocking
//! code, one thread, no runtime: it has to be small.
//!
//! Protocol with the agent: it writes `r` to stdout when it has left the caller's cgroups; the agent then moves it into a
//! scope and sends the [`Spec`] on stdin, whose end starts the step. An agent that dies before leaves nothing running.
//! When the result is on disk it writes `d`. Its stderr is a file that the agent holds locked: while the lock is held, a
//! supervisor lives.
#![expect(clippy::disallowed_methods, reason = "the supervisor is all shell")]

use std::ffi::CString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, SigSet, Signal};
use serde::{Deserialize, Serialize};

mod cgroup;
mod output;
mod surroundings;

use output::Output;

/// What is run, and how.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Directory for `result.json`, as seen in PID 1's mount namespace.
    pub directory: PathBuf,
    /// Where the step's `/` is.
    pub root: PathBuf,
    /// Whether to enter PID 1's namespaces.
    pub enter_host: bool,
    /// Absolute path below `root`.
    pub program: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Below `root`.
    pub working_directory: String,
    /// Where the logs go; unset: nowhere.
    pub log: Option<LogFile>,
    /// Longest line that is logged whole, in bytes.
    pub buffer_limit: usize,
    pub limits: Vec<Limit>,
    /// How long the step may take to end when it is told to.
    pub grace_ms: u64,
    /// How long the step may take at all.
    pub timeout_ms: Option<u64>,
}

/// Log of a step: `<directory>/<step>-<time>.log` and the same with `.err`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub directory: PathBuf,
    pub step: String,
}

/// One resource limit; `u64::MAX` is infinity.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub resource: Resource,
    pub soft: u64,
    pub hard: u64,
}

/// Resource limits that are set.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// How a step ended.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct StepResult {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// Why it could not be started.
    pub error: Option<String>,
    /// It was told to end.
    pub ended: bool,
    pub timed_out: bool,
    /// End of what it printed, errors first.
    pub tail: String,
    /// Unix milliseconds.
    pub finished_at: i64,
}

impl StepResult {
    /// What went wrong, with the end of what was printed.
    #[must_use]
    pub fn describe(&self) -> String {
        let problem = match (&self.error, self.code, self.signal) {
            (Some(error), _, _) => format!("could not be run: {error}"),
            _ if self.timed_out => "took too long and was ended".to_owned(),
            _ if self.ended => "was ended: the lease was stopped".to_owned(),
            (None, Some(code), _) => format!("exited with {code}"),
            (None, None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None, None) => "ended in a way that is not known".to_owned(),
        };
        let lines: Vec<&str> = self.tail.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n");
        if tail.is_empty() {
            problem
        } else {
            format!("{problem}: {tail}")
        }
    }
}

/// Name of the result in the step's directory.
pub const RESULT: &str = "result.json";

/// Runs as a supervisor.
pub fn main() -> io::Result<()> {
    // Neither is essential: without them the step is less sheltered from the agent's end, not wrong.
    let _session = nix::unistd::setsid();
    surroundings::close_inherited();
    cgroup::leave();
    let mut stdout = io::stdout();
    stdout.write_all(b"r")?;
    stdout.flush()?;
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    if text.is_empty() {
        return Ok(());
    }
    let spec: Spec = serde_json::from_slice(&text)?;
    drop(text);
    if spec.enter_host {
        surroundings::enter_host()?;
    }
    surroundings::reset(&spec.limits);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let (mut result, output) = run(&spec, signals);
    result.finished_at = jiff::Timestamp::now().as_millisecond();
    let text = serde_json::to_vec(&result)?;
    leave(&spec.directory.join(RESULT), &text)?;
    // The agent may be gone: it finds the file.
    let _told = stdout.write_all(b"d").and_then(|()| stdout.flush());
    // Whoever the step left behind may go on to print.
    if let Some(mut output) = output {
        output.pump_until_closed(signals);
    }
    Ok(())
}

/// Leaves the result, when the disk is full as soon as there is room: a step that is done is not to be run again.
fn leave(file: &Path, text: &[u8]) -> io::Result<()> {
    loop {
        match crate::atomic::write(file, text) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                std::thread::sleep(Duration::from_secs(1));
            }
            other => return other,
        }
    }
}

fn run(spec: &Spec, signals: SigSet) -> (StepResult, Option<Output>) {
    match start(spec) {
        Ok(mut child) => match Output::of(&mut child, spec) {
            Ok(mut output) => {
                let result = watch(spec, &mut child, &mut output, signals);
                (result, Some(output))
            }
            Err(e) => {
                end(&mut child, Duration::ZERO);
                (failed(format!("logs cannot be written: {e}")), None)
            }
        },
        Err(e) => (failed(format!("{}: {e}", spec.program)), None),
    }
}

fn failed(error: String) -> StepResult {
    StepResult {
        error: Some(error),
        ..StepResult::default()
    }
}

fn start(spec: &Spec) -> io::Result<Child> {
    let inside = Path::new(&spec.working_directory);
    let directory = spec.root.join(inside.strip_prefix("/").unwrap_or(inside));
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .env_clear()
        .envs(spec.environment.iter().map(|(k, v)| (k, v)))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let root = (spec.root != Path::new("/"))
        .then(|| CString::new(spec.root.as_os_str().as_encoded_bytes()))
        .transpose()?;
    before_exec(&mut command, root);
    command.spawn()
}

/// Changes the root (after the working directory, which stays inside), and gives all signals their default in the child.
#[expect(
    unsafe_code,
    reason = "pre_exec: only chroot, sigaction and sigprocmask are called, all are async-signal-safe and allocate nothing"
)]
fn before_exec(command: &mut Command, root: Option<CString>) {
    let hook = move || {
        if let Some(root) = &root {
            nix::unistd::chroot(root.as_c_str())?;
        }
        for signal in Signal::iterator() {
            // SIGKILL and SIGSTOP cannot be changed, and need not be.
            let _before = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    unsafe {
        command.pre_exec(hook);
    }
}

fn watch(spec: &Spec, child: &mut Child, output: &mut Output, signals: SigSet) -> StepResult {
    let deadline = spec
        .timeout_ms
        .map(|ms| Instant::now() + Duration::from_millis(ms));
    let mut result = StepResult::default();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) => {}
            Err(e) => {
                result.error = Some(format!("cannot be waited for: {e}"));
                break None;
            }
        }
        let now = Instant::now();
        let late = deadline.is_some_and(|deadline| deadline <= now);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        if late || output.pump(signals, left) == output::Woken::ToEnd {
            result.timed_out = late;
            result.ended = !late;
            break output.while_pumping(|| end(child, Duration::from_millis(spec.grace_ms)));
        }
    };
    output.drain();
    take_status(&mut result, status);
    result.tail = output.tail();
    result
}

fn take_status(result: &mut StepResult, status: Option<ExitStatus>) {
    result.code = status.and_then(|s| s.code());
    result.signal = status.and_then(|s| s.signal());
}

/// Ends the whole process tree: SIGTERM, and SIGKILL to what is left after `grace`.
fn end(child: &mut Child, grace: Duration) -> Option<ExitStatus> {
    let tree = cgroup::Tree::of(child.id());
    tree.signal(Signal::SIGTERM);
    let deadline = Instant::now() + grace;
    let mut killed_at = None;
    let mut status = None;
    loop {
        status = status.or_else(|| child.try_wait().ok().flatten());
        let left = tree.is_alive() || status.is_none();
        let now = Instant::now();
        match killed_at {
            _ if !left => return status,
            None if now >= deadline => {
                tree.signal(Signal::SIGKILL);
                killed_at = Some(now);
            }
            // A process in uninterruptible sleep cannot be waited for for ever.
            Some(at) if now >= at + Duration::from_secs(10) => return status,
            None | Some(_) => {
                if killed_at.is_some() {
                    tree.signal(Signal::SIGKILL);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
