//! A cgroup of its own for each host, in every hierarchy of this machine.
//!
//! Without it the systemds of all hosts would share one tree and end each other's units; with it a
//! host can be frozen and cut off from power as a whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::{Leftover, Run};

/// The same name in every hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    dirs: Vec<PathBuf>,
    unified: Option<PathBuf>,
    freezer: Option<PathBuf>,
}

impl Cgroup {
    pub(super) fn create(run: &Run, name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mut cgroup = Self {
            dirs: Vec::new(),
            unified: None,
            freezer: None,
        };
        for (controllers, parent) in hierarchies(&mounts, &own) {
            let dir = parent.join(name);
            run.record(Leftover::Cgroup(&dir))?;
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            match controllers.as_str() {
                "" => cgroup.unified = Some(dir.clone()),
                "freezer" => cgroup.freezer = Some(dir.clone()),
                _ => {}
            }
            // A cpuset takes no process before it has processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if controllers.contains("cpuset") {
                    fs::write(dir.join(file), fs::read(parent.join(file))?)?;
                }
            }
            cgroup.dirs.push(dir);
        }
        Ok(cgroup)
    }

    pub(super) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        if let Some(dir) = &self.unified {
            let value = if frozen { "1" } else { "0" };
            return write(&dir.join("cgroup.freeze"), value);
        }
        let dir = self
            .freezer
            .as_ref()
            .context("this machine has no cgroup freezer")?;
        write(
            &dir.join("freezer.state"),
            if frozen { "FROZEN" } else { "THAWED" },
        )
    }

    /// Ends everything inside at once, where the kernel can (5.14 and later).
    pub(super) fn kill(&self) -> Result<()> {
        let Some(file) = self.unified.as_ref().map(|dir| dir.join("cgroup.kill")) else {
            return Ok(());
        };
        if file.exists() {
            write(&file, "1")
        } else {
            Ok(())
        }
    }
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value} to {}", file.display()))
}

/// Each mounted hierarchy: its controllers (none for the unified one), and the directory to make
/// a child in. That is our own cgroup, so that limits on the harness hold for its hosts, but for
/// the unified hierarchy, where a cgroup with processes cannot hand controllers on.
fn hierarchies(mounts: &str, own: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let (mut left, mut right) = (left.split(' ').skip(4), right.split(' '));
            let (point, kind, options) = (left.next()?, right.next()?, right.nth(1)?);
            let wanted = if controllers.is_empty() {
                "cgroup2"
            } else {
                "cgroup"
            };
            let has = |name: &str| options.split(',').any(|option| option == name);
            (kind == wanted
                && controllers
                    .split(',')
                    .all(|name| name.is_empty() || has(name)))
            .then(|| PathBuf::from(point))
        });
        if let Some(point) = mount {
            let relative = if controllers.is_empty() {
                ""
            } else {
                path.trim_start_matches('/')
            };
            let name = controllers.trim_start_matches("name=").to_owned();
            found.push((name, point.join(relative)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_on_hybrid_and_on_unified_machines() {
        let hybrid = "30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let got = hierarchies(hybrid, "3:name=systemd:/\n1:cpu:/jobs/7\n0::/\n");
        let want = [
            ("systemd", "/sys/fs/cgroup/systemd/"),
            ("cpu", "/sys/fs/cgroup/cpu/jobs/7"),
            ("", "/sys/fs/cgroup/unified/"),
        ];
        let want: Vec<_> = want
            .map(|(name, dir)| (name.to_owned(), PathBuf::from(dir)))
            .into();
        assert_eq!(got, want);

        let unified = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let got = hierarchies(unified, "0::/user.slice/session-1.scope\n");
        assert_eq!(got, [(String::new(), PathBuf::from("/sys/fs/cgroup/"))]);
    }
}
