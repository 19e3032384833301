//! One run of the harness on this machine: what it made, and the promise that it goes away again.
//!
//! Whatever outlives a process (mounts, network namespaces, links, cgroups, directories) and every
//! process itself is recorded in a journal before or as it comes to be. `clean.sh` undoes a
//! journal. It is run by [`Run`]'s drop; by a watcher process when this one dies without a drop (a
//! signal, an abort); and for leftovers of a run whose watcher died too, when the next run starts.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What one start of the harness made. Share it by `Arc`; the last one dropped cleans up.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    scratch: PathBuf,
    journal: Mutex<File>,
    /// Closing it tells the watcher that this process is gone.
    _watch: ChildStdin,
}

/// Something that outlives the process that made it.
#[derive(Debug, Clone, Copy)]
pub enum Leftover<'a> {
    Process(u32),
    Cgroup(&'a Path),
    Mount(&'a Path),
    Netns(&'a str),
    Link(&'a str),
    Tree(&'a Path),
    /// A kernel setting below `/proc/sys`, with the value to go back to.
    Sysctl(&'a str, &'a str),
}

impl Run {
    /// Cleans up after runs that died, then opens a new one.
    pub fn start() -> Result<Self> {
        let base = state_dir();
        fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
        clean_stale(&base);
        let pid = std::process::id();
        let born = start_time(pid).context("/proc has no start time of this process")?;
        let name = format!("{pid}-{born}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = base.join(&name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("clean.sh"), include_str!("clean.sh"))?;
        let journal = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("journal"))?;
        let watch = start_watcher(&dir)?;
        let scratch = std::env::temp_dir().join(format!("skyhook-run-{name}"));
        let run = Self {
            dir,
            scratch,
            journal: Mutex::new(journal),
            _watch: watch,
        };
        run.record(Leftover::Tree(&run.scratch))?;
        fs::create_dir_all(&run.scratch)?;
        Ok(run)
    }

    /// A directory for this run's files; it is removed with the run.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Promises that `what` will be taken away. Call it before making anything but a process.
    pub fn record(&self, what: Leftover<'_>) -> Result<()> {
        let line = match what {
            Leftover::Process(pid) => match start_time(pid) {
                Some(born) => format!("process {pid} {born}\n"),
                // It has already ended.
                None => return Ok(()),
            },
            Leftover::Cgroup(path) => format!("cgroup {}\n", path.display()),
            Leftover::Mount(path) => format!("mount {}\n", path.display()),
            Leftover::Netns(name) => format!("netns {name}\n"),
            Leftover::Link(name) => format!("link {name}\n"),
            Leftover::Tree(path) => format!("tree {}\n", path.display()),
            Leftover::Sysctl(name, value) => format!("sysctl {name} {value}\n"),
        };
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal
            .write_all(line.as_bytes())
            .context("cannot write the run's journal")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::env::var_os("SKYHOOK_KEEP").is_some() {
            eprintln!(
                "SKYHOOK_KEEP is set: files stay in {}",
                self.scratch.display()
            );
            if let Ok(text) = fs::read_to_string(self.dir.join("journal")) {
                let kept: Vec<_> = text
                    .lines()
                    .filter(|line| !line.starts_with("tree "))
                    .collect();
                if let Err(error) = fs::write(self.dir.join("journal"), kept.join("\n") + "\n") {
                    eprintln!("cannot rewrite the journal: {error}");
                }
            }
        }
        clean(&self.dir);
    }
}

/// Where runs are recorded: lost at a reboot, as is everything that they record but files.
fn state_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        PathBuf::from("/run/skyhook-harness")
    } else {
        std::env::temp_dir().join(format!("skyhook-harness-{}", nix::unistd::getuid()))
    }
}

/// The watcher reads until the harness is gone, in a session of its own so that Ctrl-C spares it.
fn start_watcher(dir: &Path) -> Result<ChildStdin> {
    let mut watcher = Command::new("setsid")
        .args([
            "sh",
            "-c",
            "cat >/dev/null; exec sh \"$1/clean.sh\" \"$1\"",
            "watcher",
        ])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("cannot start the clean-up watcher (setsid, sh)")?;
    let stdin = watcher.stdin.take().context("the watcher has no stdin")?;
    std::thread::spawn(move || {
        if let Err(error) = watcher.wait() {
            eprintln!("clean-up watcher: {error}");
        }
    });
    Ok(stdin)
}

fn clean_stale(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        let pid = parts.next().and_then(|pid| pid.parse().ok());
        let born: Option<u64> = parts.next().and_then(|born| born.parse().ok());
        let (Some(pid), Some(born)) = (pid, born) else {
            continue;
        };
        if start_time(pid) != Some(born) {
            eprintln!("cleaning up after run {name}, which died");
            clean(&entry.path());
        }
    }
}

fn clean(dir: &Path) {
    let script = dir.join("clean.sh");
    match Command::new("sh")
        .arg(&script)
        .arg(dir)
        .current_dir("/")
        .status()
    {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("{} ended with {status}", script.display()),
        Err(error) => eprintln!("cannot run {}: {error}", script.display()),
    }
}

/// When process `pid` started, in clock ticks since boot; None when there is none.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces and parentheses itself.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_run_kills_what_it_recorded_and_nothing_else() {
        let run = Run::start().expect("run starts");
        let spawn = || {
            Command::new("sleep")
                .arg("600")
                .process_group(0)
                .spawn()
                .expect("sleep")
        };
        let (mut ours, mut foreign) = (spawn(), spawn());
        run.record(Leftover::Process(ours.id())).expect("journal");
        let stale = format!("process {} 1\n", foreign.id());
        run.journal
            .lock()
            .expect("lock")
            .write_all(stale.as_bytes())
            .expect("journal");
        let (dir, scratch) = (run.dir.clone(), run.scratch.clone());
        drop(run);

        assert!(!ours.wait().expect("wait").success());
        assert_eq!(
            foreign.try_wait().expect("wait"),
            None,
            "a foreign process was killed"
        );
        assert!(!dir.exists() && !scratch.exists());
        foreign.kill().expect("kill");
        foreign.wait().expect("wait");
    }
}
