//! Step logs: two files per run of a step. The logs of the newest five runs are kept. Only root and its group can read
//! them.
//!
//! The package and the mode (stage) that a step belongs to are extended attributes of its files. Neither their names nor
//! their lines, which are those of NVIDIA Skyhook, say them: two packages may have the same `config.json`.
#![expect(clippy::disallowed_methods, reason = "this is the shell's log writing")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

mod prune;
mod runs;

pub use prune::{Bounds, prune};
pub use runs::{Line, Named, Reader, Run, Selected, Wish, find, select};

/// The extended attributes of a log file that hold the package and the mode of its step.
const PACKAGE: &str = "user.skyhook.package";
const MODE: &str = "user.skyhook.mode";

/// Number of runs of a step whose logs are kept.
const KEPT: usize = 5;
/// Maximum size in bytes of all logs of earlier runs of a step.
const KEPT_BYTES: u64 = 128 << 20;
/// Maximum size of a log file in bytes: a step that prints without end must not fill the disk.
const LARGEST: u64 = 32 << 20;

/// The log files of a step: `<directory>/<step>-<time>.log`, and the same name with `.err` added.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub directory: PathBuf,
    pub step: String,
    /// Name of the package in the Skyhook.
    #[serde(default)]
    pub package: String,
    /// Name of the mode in `config.json` that the step belongs to.
    #[serde(default)]
    pub mode: String,
}

/// The pipe from which a line was read.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Out,
    Err,
}

/// The files of one run: `<step>-<UTC time>.log` for stdout, and the same name with `.err` added for stderr.
#[derive(Debug)]
pub struct LogPair {
    out: Bounded,
    err: Bounded,
    /// Local time that is written at the start of each line.
    stamp: String,
}

#[derive(Debug)]
struct Bounded {
    file: BufWriter<File>,
    written: u64,
    is_full: bool,
    /// The error of the first line that could not be written.
    problem: Option<io::Error>,
}

impl LogPair {
    /// Opens the files of a run that starts at `time`, and removes the files of old runs.
    pub fn create(log: &LogFile, time: Timestamp) -> io::Result<Self> {
        let time = time.strftime("%Y-%m-%d-%H%M%S");
        let base = log.directory.join(format!("{}-{time}.log", log.step));
        let directory = base.parent().unwrap_or(&log.directory);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)?;
        let pair = Self {
            out: Bounded::open(&base)?,
            err: Bounded::open(&with_err(&base))?,
            stamp: local_time(),
        };
        for file in [&pair.out, &pair.err] {
            // Not every file system has extended attributes. Without them, package and mode are not known later.
            for (name, value) in [(PACKAGE, &log.package), (MODE, &log.mode)] {
                let (file, value) = (file.file.get_ref(), value.as_bytes());
                let _marked = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
            }
        }
        // An error is ignored: the next run tries again.
        let _rotated = rotate(directory, &step_name(&log.step));
        Ok(pair)
    }

    /// Writes a line. If the line cannot be written, it is lost: a full disk must not end the step.
    pub fn line(&mut self, stream: Stream, line: &[u8]) {
        let (file, mark) = match stream {
            Stream::Out => (&mut self.out, "[out]"),
            Stream::Err => (&mut self.err, "[err]"),
        };
        file.line(mark, &self.stamp, line);
    }

    /// Updates the time for the next lines.
    pub fn stamp(&mut self) {
        self.stamp = local_time();
    }

    /// Writes all buffered lines to the files.
    pub fn flush(&mut self) {
        for file in [&mut self.out, &mut self.err] {
            let flushed = file.file.flush();
            file.note(flushed);
        }
    }

    /// Why the log is not complete; `None` if all lines were written.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let problem = self.out.problem.as_ref().or(self.err.problem.as_ref());
        problem.map(ToString::to_string)
    }
}

impl Bounded {
    /// Opens the file, which must be a regular one: a named pipe would block the supervisor.
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            let message = format!("{} is not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let written = metadata.len();
        Ok(Self {
            file: BufWriter::with_capacity(16 << 10, file),
            written,
            is_full: written >= LARGEST,
            problem: None,
        })
    }

    fn note(&mut self, written: io::Result<()>) {
        if let Err(problem) = written {
            self.problem.get_or_insert(problem);
        }
    }

    fn line(&mut self, mark: &str, stamp: &str, line: &[u8]) {
        if self.is_full {
            return;
        }
        let written = self
            .file
            .write_all(mark.as_bytes())
            .and_then(|()| self.file.write_all(stamp.as_bytes()))
            .and_then(|()| self.file.write_all(b" "))
            .and_then(|()| self.file.write_all(line))
            .and_then(|()| self.file.write_all(b"\n"));
        self.written += (mark.len() + stamp.len() + line.len() + 2) as u64;
        let is_written = written.is_ok();
        self.note(written);
        if is_written && self.written >= LARGEST {
            let _noted = writeln!(
                self.file,
                "{mark}{stamp} (the log ends here: a log file has at most {} MiB)",
                LARGEST >> 20
            );
            self.is_full = true;
        }
    }
}

fn local_time() -> String {
    jiff::Zoned::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6f")
        .to_string()
}

fn with_err(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".err");
    PathBuf::from(name)
}

fn step_name(step: &str) -> String {
    Path::new(step).file_name().map_or_else(
        || step.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Removes the logs of old runs of a step. Another process may remove files at the same time.
fn rotate(directory: &Path, step: &str) -> io::Result<()> {
    let prefix = format!("{step}-");
    let mut logs: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_log_of(&name, &prefix) {
            let path = entry.path();
            let errors = fs::metadata(with_err(&path)).map_or(0, |m| m.len());
            match entry.metadata().and_then(|m| Ok((m.modified()?, m.len()))) {
                Ok((time, bytes)) => logs.push((time, path, bytes + errors)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    // If two mtimes are equal, the names decide, because they contain the time.
    logs.sort();
    let mut bytes = 0;
    let is_kept = |(_, _, size): &&(SystemTime, PathBuf, u64)| {
        bytes += size;
        bytes <= KEPT_BYTES
    };
    let kept = logs.iter().rev().take(KEPT).take_while(is_kept).count();
    // The newest log is that of the run that starts now: always keep it.
    let old = logs.len().saturating_sub(kept.max(1));
    for (_, log, _) in logs.drain(..old) {
        for file in [with_err(&log), log] {
            if let Err(e) = fs::remove_file(file)
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(e);
            }
        }
    }
    Ok(())
}

/// True for names such as `<prefix>2024-05-01-120000.log`. The prefix alone is not enough: the logs of a step `a.sh-b`
/// start with the prefix `a.sh-` too.
fn is_log_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .and_then(|rest| rest.strip_suffix(".log"))
        .is_some_and(|time| {
            time.len() == 17 && time.bytes().all(|b| b.is_ascii_digit() || b == b'-')
        })
}

/// True for the name of a log file of any step.
fn is_log(name: &str) -> bool {
    let log = name.strip_suffix(".err").unwrap_or(name);
    // Length of `-2024-05-01-120000.log`.
    let at = log.len().saturating_sub(22);
    log.get(at..).is_some_and(|end| is_log_of(end, "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_go_together_and_other_steps_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for second in 0..8 {
            for end in ["log", "log.err"] {
                fs::write(path(&format!("a.sh-2024-05-01-12000{second}.{end}")), "x").unwrap();
            }
        }
        fs::write(path("a.sh-b-2024-05-01-120000.log"), "x").unwrap();
        rotate(directory.path(), "a.sh").unwrap();
        let mut left: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left.len(), 2 * KEPT + 1, "{left:?}");
        assert!(left.contains(&"a.sh-b-2024-05-01-120000.log".to_owned()));
        assert!(!left.contains(&"a.sh-2024-05-01-120002.log.err".to_owned()));
    }

    #[test]
    fn of_runs_that_print_a_lot_fewer_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for second in 0..4 {
            for end in ["log", "log.err"] {
                let name = format!("a.sh-2024-05-01-12000{second}.{end}");
                let file = File::create(path(&name)).unwrap();
                // A sparse file, which needs no space on the disk.
                file.set_len(KEPT_BYTES / 5).unwrap();
                let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
                file.set_modified(time).unwrap();
            }
        }
        rotate(directory.path(), "a.sh").unwrap();
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 4, "two runs of two files");
        assert!(path("a.sh-2024-05-01-120003.log.err").exists());
    }

    #[test]
    fn names_of_logs() {
        for (name, want) in [
            ("a.sh-2024-05-01-120000.log", true),
            ("a.sh-2024-05-01-120000.log.err", true),
            ("ä-2024-05-01-120000.log", true),
            ("a.sh.log", false),
            ("2024-05-01-120000.log", false),
            ("a.sh-2024-05-01-120000.log.gz", false),
            ("", false),
        ] {
            assert_eq!(is_log(name), want, "{name}");
        }
    }

    #[test]
    fn old_logs_that_cannot_be_removed_do_not_keep_a_new_one_from_being_written() {
        let directory = tempfile::tempdir().unwrap();
        for second in 0..8 {
            let name = format!("a.sh-2024-05-01-12000{second}.log");
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let log = LogFile {
            directory: directory.path().to_owned(),
            step: "a.sh".into(),
            package: "a".into(),
            mode: "apply".into(),
        };
        let pair = LogPair::create(&log, Timestamp::now()).unwrap();
        assert_eq!(pair.problem(), None);
    }

    #[test]
    fn a_named_pipe_or_a_symlink_in_the_place_of_a_log_is_an_error() {
        let log = |directory: &Path| LogFile {
            directory: directory.to_owned(),
            step: "a.sh".into(),
            package: "a".into(),
            mode: "apply".into(),
        };
        let time = Timestamp::UNIX_EPOCH;
        for kind in ["pipe", "symlink"] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("a.sh-1970-01-01-000000.log");
            if kind == "pipe" {
                let mode = rustix::fs::Mode::RUSR;
                rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
            } else {
                std::os::unix::fs::symlink("/dev/null", &path).unwrap();
            }
            let log = log(directory.path());
            let (sender, receiver) = std::sync::mpsc::channel();
            std::thread::spawn(move || sender.send(LogPair::create(&log, time).is_err()));
            let refused = receiver.recv_timeout(std::time::Duration::from_secs(10));
            assert_eq!(refused, Ok(true), "{kind}");
        }
    }

    #[test]
    fn lines_are_marked() {
        let directory = tempfile::tempdir().unwrap();
        let log = LogFile {
            directory: directory.path().to_owned(),
            step: "nested/a.sh".into(),
            package: "a".into(),
            mode: "apply".into(),
        };
        let mut pair = LogPair::create(&log, Timestamp::now()).unwrap();
        pair.line(Stream::Out, b"hello");
        pair.line(Stream::Err, b"oops");
        pair.flush();
        let nested = directory.path().join("nested");
        let read = |suffix: &str| {
            let file = fs::read_dir(&nested)
                .unwrap()
                .map(|e| e.unwrap().path())
                .find(|p| p.to_string_lossy().ends_with(suffix))
                .unwrap();
            fs::read_to_string(file).unwrap()
        };
        assert!(read(".log").starts_with("[out]2"));
        assert!(read(".log").ends_with(" hello\n"));
        assert!(read(".err").ends_with(" oops\n") && read(".err").starts_with("[err]"));
    }
}
