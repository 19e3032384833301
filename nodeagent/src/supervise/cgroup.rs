//! cgroups: the supervisor leaves those of the agent, and finds all processes of the step.
#![expect(clippy::disallowed_methods, reason = "the supervisor is all shell")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use skyhook_oci::Root;

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The cgroup that is mounted at the mount point.
    root: String,
    point: PathBuf,
    /// Mount options of a version 1 hierarchy; `None` for version 2.
    options: Option<Vec<String>>,
}

/// Leaves the agent's cgroup in every version 1 hierarchy except systemd's own. systemd moves the processes of a scope
/// in some hierarchies only, and the container runtime uses the others to find and kill the pod's processes. Errors are
/// ignored: a hierarchy that is read-only cannot be used by the container runtime either.
pub(super) fn leave() {
    let Ok(mounts) = fs::read_to_string("/proc/1/mountinfo") else {
        return;
    };
    // In its own cgroup namespace, a process sees its own cgroup as the root: then its real cgroup is not known.
    let sees_all = matches!(
        (fs::read_link("/proc/self/ns/cgroup"), fs::read_link("/proc/1/ns/cgroup")),
        (Ok(own), Ok(host)) if own == host
    );
    let own = if sees_all {
        fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
    } else {
        String::new()
    };
    let Ok(host) = Root::open("/proc/1/root") else {
        return;
    };
    for mount in parse_mounts(&mounts) {
        if is_to_leave(&mount, &own) {
            let processes = host.entry(mount.point.join("cgroup.procs"));
            let _left = processes
                .and_then(|file| file.open_to_write())
                .and_then(|mut file| file.write_all(b"0"));
        }
    }
}

/// True when the process has to leave its cgroup in this hierarchy. False for version 2, for systemd's own hierarchy,
/// and when the process is in the root cgroup already: each move is slow, because it waits for all CPUs.
fn is_to_leave(mount: &Mount, own: &str) -> bool {
    let Some(options) = &mount.options else {
        return false;
    };
    if options.iter().any(|o| o == "name=systemd") {
        return false;
    }
    let at = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_this = controllers
            .split(',')
            .any(|c| !c.is_empty() && options.iter().any(|o| o == c));
        is_this.then_some(path)
    });
    at != Some("/")
}

/// All processes of a step.
pub(super) enum Tree {
    /// The file `cgroup.procs` of the step's scope.
    Scope(PathBuf),
    /// Without a scope: the step's process group.
    Group(Pid),
}

impl Tree {
    pub(super) fn of(child: u32) -> Self {
        scope().map_or_else(
            || Self::Group(Pid::from_raw(i32::try_from(child).unwrap_or(i32::MAX))),
            Self::Scope,
        )
    }

    /// Sends a signal to all processes except the supervisor itself.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Scope(file) => {
                for pid in others(file) {
                    // An error does not matter: the process may have ended by now.
                    let _sent = kill(pid, signal);
                    let _woken = kill(pid, Signal::SIGCONT);
                }
            }
            Self::Group(group) => {
                let _sent = killpg(*group, signal);
            }
        }
    }

    /// True while a process other than the supervisor is left. Zombies count as well.
    pub(super) fn is_alive(&self) -> bool {
        match self {
            Self::Scope(file) => !others(file).is_empty(),
            Self::Group(group) => killpg(*group, None).is_ok(),
        }
    }
}

fn others(file: &Path) -> Vec<Pid> {
    let own = nix::unistd::getpid();
    fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != own)
        .collect()
}

fn scope() -> Option<PathBuf> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    find_scope(&cgroups, &parse_mounts(&mounts))
        .map(|directory| directory.join("cgroup.procs"))
        .filter(|file| file.exists())
}

/// cgroup directories of the supervisor's own scope that may have the counters of its memory.
pub(super) fn memory_directories() -> Vec<PathBuf> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let cgroups = read("/proc/self/cgroup");
    let mounts = parse_mounts(&read("/proc/self/mountinfo"));
    scopes(&cgroups, &mounts)
        .filter(|(controllers, _)| {
            controllers.is_empty() || controllers.split(',').any(|c| c == "memory")
        })
        .map(|(_, directory)| directory)
        .collect()
}

/// cgroup directory of the scope of a process. `cgroups` is the content of `/proc/PID/cgroup`.
fn find_scope(cgroups: &str, mounts: &[Mount]) -> Option<PathBuf> {
    scopes(cgroups, mounts)
        .map(|(_, directory)| directory)
        .next()
}

/// For each hierarchy in which the process is in a step's scope: the controllers of the hierarchy, and the scope's
/// directory. `cgroups` is the content of `/proc/PID/cgroup`.
fn scopes<'a>(
    cgroups: &'a str,
    mounts: &'a [Mount],
) -> impl Iterator<Item = (&'a str, PathBuf)> + 'a {
    cgroups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let name = path.rsplit('/').next()?;
        if !(name.starts_with("skyhook-") && name.ends_with(".scope")) {
            return None;
        }
        let mount = mounts.iter().find(|mount| match &mount.options {
            None => controllers.is_empty(),
            Some(options) => controllers
                .split(',')
                .any(|c| options.iter().any(|o| o == c)),
        })?;
        let inside = path.strip_prefix(mount.root.trim_end_matches('/'))?;
        Some((
            controllers,
            mount.point.join(inside.trim_start_matches('/')),
        ))
    })
}

fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, point) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1)?);
            let options = match kind {
                "cgroup2" => None,
                "cgroup" => Some(options.split(',').map(str::to_owned).collect()),
                _ => return None,
            };
            Some(Mount {
                root: root.to_owned(),
                point: point.into(),
                options,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 20 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
31 20 0:27 /machine.slice/w.scope /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 20 0:28 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
33 20 0:29 / /proc rw - proc proc rw
";

    #[test]
    fn only_hierarchies_that_hold_the_process_are_left() {
        let mounts = parse_mounts(MOUNTS);
        let left = |own: &str| -> Vec<&Path> {
            mounts
                .iter()
                .filter(|m| is_to_leave(m, own))
                .map(|m| m.point.as_path())
                .collect()
        };
        let memory = [Path::new("/sys/fs/cgroup/memory")];
        assert_eq!(
            left("12:memory:/kubepods/x\n1:name=systemd:/x\n0::/x\n"),
            memory
        );
        assert!(left("12:memory:/\n1:name=systemd:/x\n").is_empty());
        // The own cgroups are not known: leave all hierarchies.
        assert_eq!(left(""), memory);
    }

    #[test]
    fn the_scope_is_found_in_the_hierarchy_that_systemd_moves() {
        let mounts = parse_mounts(MOUNTS);
        assert_eq!(mounts.len(), 3);
        for (cgroups, want) in [
            (
                "12:memory:/\n1:name=systemd:/machine.slice/w.scope/system.slice/skyhook-1-a.scope\n0::/x\n",
                Some("/sys/fs/cgroup/systemd/system.slice/skyhook-1-a.scope"),
            ),
            (
                "0::/system.slice/skyhook-1-a.scope\n",
                Some("/sys/fs/cgroup/unified/system.slice/skyhook-1-a.scope"),
            ),
            ("0::/system.slice/ssh.service\n", None),
            ("", None),
        ] {
            assert_eq!(
                find_scope(cgroups, &mounts),
                want.map(PathBuf::from),
                "{cgroups}"
            );
        }
    }
}
