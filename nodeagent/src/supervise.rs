//! The supervisor: one process per step. It is outside the agent's cgroup, and continues when the agent ends.
//!
//! The supervisor reads the step's output, writes the logs, ends the step on SIGTERM, and writes a result file. It is
//! blocking code with one thread and no async runtime, so that it needs little memory.
//!
//! Protocol with the agent: when the supervisor has left the agent's cgroups, it writes `r` to stdout. The agent moves
//! the supervisor into a scope, sends the [`Spec`] on the supervisor's stdin, and closes stdin. Then the supervisor
//! starts the step. If the agent dies before it has sent the `Spec`, the supervisor exits. When the result is on the
//! disk, the supervisor writes `d` to stdout. Its stderr is a locked file: while the lock is held, the supervisor runs.
#![expect(clippy::disallowed_methods, reason = "the supervisor is all shell")]

use std::ffi::CString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use skyhook_oci::{Durability, Root, replace_file};

mod cgroup;
mod diagnosis;
mod masks;
mod memory;
mod output;
mod result;
mod surroundings;

pub use result::{OutOfMemory, StepResult};

pub use crate::logs::LogFile;
use crate::logs::{LogPair, Stream};
use crate::secret::Secret;
use masks::Masks;
use memory::Kills;
use output::{Output, Woken};

/// The specification of a step.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Directory for `result.json`, as seen in PID 1's mount namespace.
    pub directory: PathBuf,
    /// The same directory as the agent sees it. Used if PID 1's namespaces cannot be entered.
    pub callers_directory: PathBuf,
    /// The directory that the step sees as `/`.
    pub root: PathBuf,
    /// Whether to enter PID 1's namespaces.
    pub enter_host: bool,
    /// Absolute path of the program, as the step sees it.
    pub program: String,
    pub arguments: Vec<Secret>,
    pub environment: Vec<(String, Secret)>,
    /// Values to mask in the step's output.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// Absolute path, as the step sees it.
    pub working_directory: String,
    /// The log files. `None` means no logs.
    pub log: Option<LogFile>,
    /// Longest line in the log, in bytes. A longer line is split.
    pub buffer_limit: usize,
    pub limits: Vec<ProcessLimit>,
    /// Memory limit of the step's scope as a Kubernetes quantity, for messages. `None` means no limit.
    pub memory_limit: Option<String>,
    /// Milliseconds between SIGTERM and SIGKILL when the step is ended.
    pub grace_ms: u64,
    /// Longest time that the step may take, in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// One rlimit of the step's processes. `u64::MAX` means infinity.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimit {
    pub resource: Resource,
    pub soft: u64,
    pub hard: u64,
}

/// Names of the rlimits (`RLIMIT_…`).
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

/// Name of the result file in the step's directory.
pub const RESULT: &str = "result.json";

/// Runs the supervisor.
pub fn main() -> io::Result<()> {
    // Errors are ignored here: then the end of the agent's pod may end the step as well.
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
    // From here on SIGTERM ends the step, and the supervisor still writes a result.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGCHLD);
    let blocked = signals.thread_block();
    let spec: Spec = serde_json::from_slice(&text).map_err(|e| {
        io::Error::other(format!(
            "the specification of the step cannot be read, so it was not run: {e}"
        ))
    })?;
    drop(text);
    let entered = if spec.enter_host {
        surroundings::enter_host()
    } else {
        Ok(())
    };
    let directory = if entered.is_ok() {
        &spec.directory
    } else {
        &spec.callers_directory
    };
    let ready = blocked.map_err(io::Error::from).and(entered);
    let (mut result, output) = match ready {
        Ok(()) => {
            surroundings::reset(&spec.limits);
            run(&spec, signals)
        }
        Err(e) => {
            let problem = format!("the host's namespaces cannot be entered: {e}");
            (StepResult::failed(problem), None)
        }
    };
    result.finished_at = jiff::Timestamp::now().as_millisecond();
    let text = serde_json::to_vec(&result)?;
    write_result(&directory.join(RESULT), &text).map_err(|e| {
        let file = spec.directory.join(RESULT);
        let (file, how) = (file.display(), result.describe(None));
        io::Error::other(format!("{file} cannot be written: {e}; the step {how}"))
    })?;
    // The agent may have ended already. The next agent reads the file.
    let _told = stdout.write_all(b"d").and_then(|()| stdout.flush());
    // Processes that the step left running may still write to the pipes.
    if let Some(mut output) = output {
        output.pump_until_closed(signals);
    }
    Ok(())
}

/// Writes the result. Waits while the disk is full, because without a result the step would run again.
fn write_result(file: &Path, text: &[u8]) -> io::Result<()> {
    loop {
        match replace_file(file, text, Durability::PowerCut) {
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
    // Open the logs before the step starts. The step runs even if they cannot be opened.
    let (mut log, log_problem) = match create_log(spec) {
        Ok(log) => (log, None),
        Err(e) => (None, Some(e.to_string())),
    };
    let kills = Kills::now();
    let (mut result, output) = match start(spec) {
        Ok(mut child) => {
            let masks = Rc::new(Masks::of(&spec.secrets));
            let mut output = Output::of(&mut child, spec.buffer_limit, log, &masks);
            let mut result = watch(spec, &mut child, &mut output, signals);
            result.mask_problem = masks.problem();
            (result, Some(output))
        }
        Err(e) => {
            let problem = diagnosis::explain(&e, spec);
            if let Some(log) = &mut log {
                log.line(Stream::Err, problem.as_bytes());
            }
            (StepResult::failed(problem), None)
        }
    };
    result.out_of_memory = kills.since(spec.memory_limit.as_deref());
    result.log_problem = log_problem.or_else(|| output.as_ref().and_then(Output::log_problem));
    (result, output)
}

fn create_log(spec: &Spec) -> io::Result<Option<LogPair>> {
    let create = |log| LogPair::create(log, jiff::Timestamp::now());
    spec.log.as_ref().map(create).transpose()
}

fn start(spec: &Spec) -> io::Result<Child> {
    let directory = Root::open(&spec.root)?.locate(&spec.working_directory)?;
    let mut command = Command::new(&spec.program);
    command
        .args(spec.arguments.iter().map(Secret::reveal))
        .env_clear()
        .envs(spec.environment.iter().map(|(k, v)| (k, v.reveal())))
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

/// In the child process: resets `oom_score_adj`, changes the root directory (the working directory is inside already),
/// and resets all signal handlers.
#[expect(
    unsafe_code,
    reason = "pre_exec: only open, write, close, chroot, sigaction and sigprocmask are called, all are async-signal-safe and allocate nothing"
)]
fn before_exec(command: &mut Command, root: Option<CString>) {
    let hook = move || {
        // An error is ignored. The supervisor keeps the agent's protection from the OOM killer: it must report the
        // result.
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        if let Ok(file) = open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
            let _written = nix::unistd::write(&file, b"0");
        }
        if let Some(root) = &root {
            nix::unistd::chroot(root.as_c_str())?;
        }
        for signal in Signal::iterator() {
            // Handlers of SIGKILL and SIGSTOP cannot be changed.
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
    let begun = Instant::now();
    // A deadline that is too large for `Instant` means no deadline.
    let deadline = spec
        .timeout_ms
        .and_then(|ms| begun.checked_add(Duration::from_millis(ms)));
    let mut result = StepResult::default();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                result.ended = is_ended_with_scope(status, output, signals);
                break Some(status);
            }
            Ok(None) => {}
            Err(e) => {
                result.error = Some(format!("its end cannot be waited for: {e}"));
                break None;
            }
        }
        let now = Instant::now();
        let late = deadline.is_some_and(|deadline| deadline <= now);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        if late || output.pump(signals, left) == Woken::ToEnd {
            // The step may have exited by itself at the same moment.
            if let Ok(Some(status)) = child.try_wait() {
                result.ended = !late && status.signal() == Some(Signal::SIGTERM as i32);
                break Some(status);
            }
            result.timed_out = late;
            result.ended = !late;
            break end(child, output, Duration::from_millis(spec.grace_ms));
        }
    };
    result.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    output.drain();
    result.code = status.and_then(|s| s.code());
    result.signal = status.and_then(|s| s.signal());
    result.tail = output.tail();
    result
}

/// True when the step and the supervisor both got SIGTERM, because systemd stopped the whole scope. The supervisor may
/// get its signal after the step has ended, so this waits a short time for it.
fn is_ended_with_scope(status: ExitStatus, output: &mut Output, signals: SigSet) -> bool {
    if status.signal() != Some(Signal::SIGTERM as i32) {
        return false;
    }
    let until = Instant::now() + Duration::from_millis(100);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        if output.pump(signals, Some(left)) == Woken::ToEnd {
            return true;
        }
    }
}

/// Ends all processes of the step: sends SIGTERM and, after `grace`, SIGKILL. Reads the output meanwhile.
fn end(child: &mut Child, output: &mut Output, grace: Duration) -> Option<ExitStatus> {
    let tree = cgroup::Tree::of(child.id());
    tree.signal(Signal::SIGTERM);
    let deadline = Instant::now().checked_add(grace);
    let mut killed_at = None;
    let mut status = None;
    loop {
        status = status.or_else(|| child.try_wait().ok().flatten());
        let left = tree.is_alive() || status.is_none();
        let now = Instant::now();
        match killed_at {
            _ if !left => return status,
            None if deadline.is_some_and(|deadline| deadline <= now) => {
                tree.signal(Signal::SIGKILL);
                killed_at = Some(now);
            }
            // A process in uninterruptible sleep may never end.
            Some(at) if now >= at + Duration::from_secs(10) => return status,
            None | Some(_) => {
                if killed_at.is_some() {
                    tree.signal(Signal::SIGKILL);
                }
                output.take_for(Duration::from_millis(20));
            }
        }
    }
}
