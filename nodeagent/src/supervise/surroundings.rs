//! The environment of a step's processes: namespaces of PID 1, no inherited file descriptors, umask, and rlimits.
#![expect(clippy::disallowed_methods, reason = "the supervisor is all shell")]

use std::fs::{self, File};
use std::io;

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{self as rlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use super::{ProcessLimit, Resource};

const NAMESPACES: [(&str, CloneFlags); 6] = [
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Enters every namespace of PID 1 that this process is not in.
pub(super) fn enter_host() -> io::Result<()> {
    // Open all files first: in the other mount namespace, `/proc` may be another file system.
    let mut open = Vec::new();
    for (name, flag) in NAMESPACES {
        let theirs = format!("/proc/1/ns/{name}");
        if fs::read_link(&theirs)? != fs::read_link(format!("/proc/self/ns/{name}"))? {
            open.push((name, File::open(&theirs)?, flag));
        }
    }
    for (name, file, flag) in open {
        setns(&file, flag)
            .map_err(|e| io::Error::other(format!("PID 1's {name} namespace: {e}")))?;
    }
    std::env::set_current_dir("/")
}

/// Closes all file descriptors except standard input, output and error.
pub(super) fn close_inherited() {
    let Ok(directory) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let inherited: Vec<i32> = directory
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in inherited {
        // The descriptor of the directory itself is closed already.
        let _closed = nix::unistd::close(fd);
    }
}

/// Sets the umask and the rlimits.
pub(super) fn reset(limits: &[ProcessLimit]) {
    umask(Mode::from_bits_truncate(0o022));
    for limit in limits {
        apply(*limit);
    }
}

fn apply(limit: ProcessLimit) {
    let resource = match limit.resource {
        Resource::As => rlimit::Resource::RLIMIT_AS,
        Resource::Core => rlimit::Resource::RLIMIT_CORE,
        Resource::Cpu => rlimit::Resource::RLIMIT_CPU,
        Resource::Data => rlimit::Resource::RLIMIT_DATA,
        Resource::Fsize => rlimit::Resource::RLIMIT_FSIZE,
        Resource::Locks => rlimit::Resource::RLIMIT_LOCKS,
        Resource::Memlock => rlimit::Resource::RLIMIT_MEMLOCK,
        Resource::Msgqueue => rlimit::Resource::RLIMIT_MSGQUEUE,
        Resource::Nice => rlimit::Resource::RLIMIT_NICE,
        Resource::Nofile => rlimit::Resource::RLIMIT_NOFILE,
        Resource::Nproc => rlimit::Resource::RLIMIT_NPROC,
        Resource::Rss => rlimit::Resource::RLIMIT_RSS,
        Resource::Rtprio => rlimit::Resource::RLIMIT_RTPRIO,
        Resource::Rttime => rlimit::Resource::RLIMIT_RTTIME,
        Resource::Sigpending => rlimit::Resource::RLIMIT_SIGPENDING,
        Resource::Stack => rlimit::Resource::RLIMIT_STACK,
    };
    if setrlimit(resource, limit.soft, limit.hard).is_err()
        && let Ok((_, hard)) = rlimit::getrlimit(resource)
    {
        // Without CAP_SYS_RESOURCE a hard limit can only be lowered: set the closest value.
        let hard = hard.min(limit.hard);
        let _set = setrlimit(resource, limit.soft.min(hard), hard);
    }
}
