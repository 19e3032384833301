//! A program that the harness runs: in a process group of its own, its output in a file, and dead
//! when the harness is.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::run::{Leftover, Run};
use crate::wait::{MINUTE, eventually};

/// A running program. Dropping it kills its whole process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    /// Held while a signal is sent and while the process is reaped, so that no signal goes to a
    /// number that was given to somebody else.
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts `command` with its output appended to `<scratch>/<name>.log`.
    pub fn spawn(run: &Run, name: &str, command: &Command) -> Result<Self> {
        let log = run.scratch().join(format!("{name}.log"));
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut wrapped = Command::new("setpriv");
        wrapped
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program());
        wrapped.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        wrapped
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let mut child = spawn_from_lasting_thread(wrapped)
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        let pid = child.id();
        run.record(Leftover::Process(pid))?;

        let reaped = Arc::new(Mutex::new(false));
        let (report, exit) = watch::channel(None);
        let flag = Arc::clone(&reaped);
        std::thread::spawn(move || {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(as_pid(pid)), flags) == Err(nix::errno::Errno::EINTR) {}
            let mut reaped = flag.lock().unwrap_or_else(PoisonError::into_inner);
            *reaped = true;
            if let Ok(status) = child.wait() {
                report.send_replace(Some(status));
            }
        });
        Ok(Self {
            name: name.to_owned(),
            pid,
            log,
            reaped,
            exit,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The file that its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Resolves when it has ended.
    pub async fn exited(&self) -> Result<ExitStatus> {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await;
        status
            .ok()
            .and_then(|status| *status)
            .with_context(|| format!("{} was lost", self.name))
    }

    /// Fails with the end of its log if it has ended.
    pub fn check_alive(&self) -> Result<()> {
        match self.exit_status() {
            None => Ok(()),
            Some(status) => {
                bail!(
                    "{} ended with {status}:\n{}",
                    self.name,
                    tail(&self.log, 20)
                )
            }
        }
    }

    /// Waits until somebody listens at `address`; fails at once when the program ends.
    pub async fn wait_listening(&self, address: SocketAddr) -> Result<()> {
        let listening = eventually(MINUTE, async || {
            TcpStream::connect(address)
                .await
                .map(drop)
                .with_context(|| format!("{}: {address}: see {}", self.name, self.log.display()))
        });
        let mut exit = self.exit.clone();
        tokio::select! {
            listening = listening => listening,
            _ = exit.wait_for(Option::is_some) => self.check_alive(),
        }
    }

    /// Sends `signal` to the program alone; nothing happens once it has ended.
    pub fn signal(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped && let Err(error) = kill(as_pid(self.pid), signal) {
            eprintln!("cannot signal {}: {error}", self.name);
        }
    }

    /// SIGTERM, and SIGKILL to the whole group after `grace`.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        match tokio::time::timeout(grace, self.exited()).await {
            Ok(status) => status,
            Err(_) => self.kill().await,
        }
    }

    /// SIGKILL to the whole group.
    pub async fn kill(&self) -> Result<ExitStatus> {
        self.kill_group();
        self.exited().await
    }

    fn kill_group(&self) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*reaped && let Err(error) = killpg(as_pid(self.pid), Signal::SIGKILL) {
            eprintln!("cannot kill {}: {error}", self.name);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
        for _ in 0..200 {
            if self.exit_status().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} (process {}) does not die", self.name, self.pid);
    }
}

fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("process numbers fit in pid_t"))
}

type Job = (Command, Sender<std::io::Result<std::process::Child>>);

/// The parent-death signal is sent when the *thread* that forked ends, and a runtime's worker
/// threads end before the process does.
fn spawn_from_lasting_thread(command: Command) -> Result<std::process::Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                if reply.send(command.spawn()).is_err() {
                    eprintln!("nobody waits for {command:?}");
                }
            }
        });
        Mutex::new(jobs)
    });
    let (reply, answer) = channel();
    let jobs = spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    jobs.send((command, reply))
        .ok()
        .context("the spawner thread is gone")?;
    Ok(answer.recv().context("the spawner thread is gone")??)
}

/// Runs a command to its end and returns its standard output; a failure carries what it printed.
pub async fn output(command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command
        .output()
        .await
        .with_context(|| format!("cannot run {shown}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{shown} ended with {}:\n{}{}",
            output.status,
            stdout,
            stderr
        );
    }
    Ok(stdout)
}

/// [`output`] of a program and its arguments.
pub async fn sh<const N: usize>(program: &str, args: [&str; N]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    output(command).await
}

/// The last `lines` lines of a file, or why there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<_> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}
