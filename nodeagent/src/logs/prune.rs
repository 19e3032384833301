//! Limits of all step logs together. The module [`crate::logs`] enforces the limits of each file and each step.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's log handling"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::located::Located;

/// A log that was written within this time may belong to a running step.
const IN_USE: Duration = Duration::from_secs(600);
/// Maximum depth of directories below the directory of a version: steps may be in subdirectories.
const DEPTH: usize = 16;

/// Limits of the logs that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Number of versions of a package whose logs are kept: the versions that ran last.
    pub versions: usize,
    /// Maximum size in bytes of all logs of a package.
    pub package: u64,
    /// Maximum size in bytes of all logs on the host.
    pub host: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            versions: 3,
            package: 256 << 20,
            host: 1 << 30,
        }
    }
}

/// A log file of a step.
#[derive(Debug)]
pub(super) struct Log {
    /// Names of the Skyhook and of the package.
    pub(super) package: (String, String),
    pub(super) version: String,
    written: SystemTime,
    bytes: u64,
    pub(super) path: PathBuf,
}

/// Removes the oldest logs below `root` (`<root>/<Skyhook>/<package>/<version>/…`) until the rest is within the bounds.
/// Other files, and logs that a step may still write, stay. Returns the size of the remaining logs in bytes.
pub fn prune(root: &Located, bounds: Bounds, now: SystemTime) -> u64 {
    let mut logs = logs(root.path());
    logs.sort_by_key(|log| log.written);
    let is_old = |log: &Log| {
        now.duration_since(log.written)
            .is_ok_and(|age| age > IN_USE)
    };
    let mut kept_versions: BTreeMap<&(String, String), BTreeSet<&str>> = BTreeMap::new();
    let mut of_package: BTreeMap<&(String, String), u64> = BTreeMap::new();
    let mut of_host = 0;
    // From the newest to the oldest: a log stays if it fits into the bounds.
    for log in logs.iter().rev() {
        let versions = kept_versions.entry(&log.package).or_default();
        let is_known = versions.contains(log.version.as_str());
        let is_kept_version = is_known || versions.len() < bounds.versions;
        let package = of_package.entry(&log.package).or_default();
        let fits = *package + log.bytes <= bounds.package && of_host + log.bytes <= bounds.host;
        if (is_kept_version && fits) || !is_old(log) {
            versions.insert(&log.version);
            *package += log.bytes;
            of_host += log.bytes;
        } else if let Err(error) = fs::remove_file(&log.path) {
            tracing::warn!(log = %root.shown(&log.path).display(), %error, "an old log cannot be removed");
        }
    }
    remove_empty(root.path(), now, 0);
    of_host
}

/// All log files of steps below `root`.
pub(super) fn logs(root: &Path) -> Vec<Log> {
    let mut found = Vec::new();
    for (skyhook, at) in directories(root) {
        for (package, at) in directories(&at) {
            for (version, at) in directories(&at) {
                let package = (skyhook.clone(), package.clone());
                collect(&at, &package, &version, 0, &mut found);
            }
        }
    }
    found
}

fn collect(
    at: &Path,
    package: &(String, String),
    version: &str,
    depth: usize,
    found: &mut Vec<Log>,
) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() && depth < DEPTH {
            collect(&entry.path(), package, version, depth + 1, found);
        } else if metadata.is_file() && super::is_log(&entry.file_name().to_string_lossy()) {
            found.push(Log {
                package: package.clone(),
                version: version.to_owned(),
                written: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                bytes: metadata.len(),
                path: entry.path(),
            });
        }
    }
}

/// The subdirectories of a directory: name and path. Symlinks are not followed.
fn directories(at: &Path) -> Vec<(String, PathBuf)> {
    fs::read_dir(at)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .collect()
}

/// Removes empty directories that have not changed for a while.
fn remove_empty(at: &Path, now: SystemTime, depth: usize) {
    for (_, directory) in directories(at) {
        let changed = fs::symlink_metadata(&directory).and_then(|m| m.modified());
        if depth < DEPTH {
            remove_empty(&directory, now, depth + 1);
        }
        let is_old = changed.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > IN_USE));
        if is_old {
            // This fails for a directory that is not empty.
            let _removed = fs::remove_dir(&directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    struct Logs(tempfile::TempDir);

    impl Logs {
        /// Creates a log of `bytes` bytes with an mtime of `days` days after 1970-01-01.
        fn put(&self, path: &str, bytes: usize, days: u32) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![b'x'; bytes]).unwrap();
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + DAY * days)
                .unwrap();
        }

        /// Removes old logs at a time of `days` days after 1970-01-01, and returns the names of the remaining files.
        fn left(&self, bounds: Bounds, days: u32) -> Vec<String> {
            let now = SystemTime::UNIX_EPOCH + DAY * days;
            let bytes = prune(&self.0.path().into(), bounds, now);
            let mut left = Vec::new();
            let mut open = vec![self.0.path().to_owned()];
            let mut sum = 0;
            while let Some(at) = open.pop() {
                for entry in fs::read_dir(at).unwrap().flatten() {
                    if entry.file_type().unwrap().is_dir() {
                        open.push(entry.path());
                    } else {
                        let name = entry.path();
                        let name = name.strip_prefix(self.0.path()).unwrap();
                        let name = name.to_string_lossy().into_owned();
                        if super::super::is_log(&name) {
                            sum += entry.metadata().unwrap().len();
                        }
                        left.push(name);
                    }
                }
            }
            assert_eq!(bytes, sum);
            left.sort();
            left
        }
    }

    fn log(path: &str, n: u32) -> String {
        format!("{path}/a.sh-2024-05-01-0000{n:02}.log")
    }

    #[test]
    fn the_newest_logs_that_fit_stay() {
        let bounds = Bounds {
            versions: 2,
            package: 100,
            host: 150,
        };
        /// Directory, bytes and day of a log.
        type File = (&'static str, usize, u32);
        let rows: [(&str, &[File], &[usize]); 5] = [
            ("within", &[("s/p/1", 50, 1), ("s/p/1", 50, 2)], &[0, 1]),
            (
                "versions",
                &[("s/p/1", 1, 3), ("s/p/2", 1, 1), ("s/p/3", 1, 2)],
                &[0, 2],
            ),
            (
                "a package",
                &[("s/p/1", 60, 1), ("s/p/1/deep", 60, 2), ("s/q/1", 60, 1)],
                &[1, 2],
            ),
            (
                "the host",
                &[("s/p/1", 60, 1), ("s/q/1", 60, 2), ("t/p/1", 60, 3)],
                &[1, 2],
            ),
            // These logs were written in the last minutes: a step may still write them.
            ("in use", &[("s/p/1", 90, 9), ("s/p/1", 90, 9)], &[0, 1]),
        ];
        for (name, files, want) in rows {
            let logs = Logs(tempfile::tempdir().unwrap());
            for (n, (path, bytes, days)) in (0..).zip(files) {
                logs.put(&log(path, n), *bytes, *days);
            }
            let days = if name == "in use" { 9 } else { 10 };
            let mut want: Vec<String> = want
                .iter()
                .map(|n| log(files[*n].0, u32::try_from(*n).unwrap()))
                .collect();
            want.sort();
            assert_eq!(logs.left(bounds, days), want, "{name}");
        }
    }

    #[test]
    fn what_is_no_log_stays_and_empty_directories_go() {
        let logs = Logs(tempfile::tempdir().unwrap());
        let none = Bounds {
            versions: 0,
            package: 0,
            host: 0,
        };
        logs.put("s/p/1/notes.txt", 10, 1);
        logs.put(&log("s/p/1", 1), 10, 1);
        logs.put(&format!("{}.err", log("s/q/1/deep", 1)), 10, 1);
        // The mtime of the directories is now, so prune at a time after now.
        let days = u32::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400);
        assert_eq!(logs.left(none, days.unwrap() + 2), ["s/p/1/notes.txt"]);
        assert!(logs.0.path().join("s/p/1").exists());
        assert!(!logs.0.path().join("s/q").exists());
    }
}
