//! The processes of a host that matter here: the kubelet, and container runtimes.

use std::collections::BTreeMap;
use std::io::Read as _;

use rustix::fs::{AtFlags, Mode, readlinkat, statat};

use crate::root::Root;

/// Programs that are, contain or start a kubelet or a container runtime.
const NAMES: [&str; 7] = [
    "kubelet",
    "containerd",
    "crio",
    "dockerd",
    // These contain a kubelet: k3s, and MicroK8s.
    "k3s-server",
    "k3s-agent",
    "kubelite",
];
/// No command line and no environment is longer than this in practice.
const MAX: u64 = 4 << 20;

/// A process of the host.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
    /// The command line, without the program.
    args: Vec<String>,
}

/// What is in the names of the control groups of containers: of Kubernetes, Docker, Podman and containerd.
const CONTAINERS: [&str; 4] = ["kubepods", "docker-", "libpod-", "cri-containerd-"];

/// The processes with known names that belong to the host's root user, outside of containers. A name alone says
/// nothing: every user can give it to a program.
pub(super) fn find(files: &Root) -> Vec<Process> {
    let Ok(names) = files.list("/proc") else {
        return Vec::new();
    };
    let pids = names.iter().filter_map(|name| name.to_str()?.parse().ok());
    let mut found: Vec<Process> = pids.filter_map(|pid| read(files, pid)).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Reads a process. `None` if it has another name, has ended, belongs to another user, or runs in a container.
fn read(files: &Root, pid: u32) -> Option<Process> {
    let text = |file: &str| {
        let bytes = content(files, pid, file)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let name = text("comm")?.trim().to_owned();
    if !NAMES.contains(&name.as_str()) {
        return None;
    }
    let status = text("status")?;
    let is_of_host = is_of_root(&status)
        && !has_inner_number(&status)
        && !is_in_container(&text("cgroup")?)
        && !changes_user(files, pid)?
        && user_namespace(files, pid)? == user_namespace(files, 1)?;
    if !is_of_host {
        tracing::debug!(
            pid,
            name,
            "this process does not belong to the root user of the host: it is not asked"
        );
        return None;
    }
    let args = strings(&content(files, pid, "cmdline")?).skip(1).collect();
    Some(Process { pid, name, args })
}

/// Whether the real, the effective, the saved and the file system's user are root.
fn is_of_root(status: &str) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    users.is_some_and(|users| users.split_whitespace().eq(["0"; 4]))
}

/// Whether the process is in a PID namespace of its own, and so has more than one number: it belongs to a container.
fn has_inner_number(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
}

/// Containers can share the PID namespace of the host. Their control groups tell them apart.
fn is_in_container(groups: &str) -> bool {
    CONTAINERS.iter().any(|part| groups.contains(part))
}

/// Whether the program becomes root whoever starts it, as sudo does. Then its name and its arguments are those of any
/// user. The kernel follows this link to the very file that runs, also into other mount namespaces.
fn changes_user(files: &Root, pid: u32) -> Option<bool> {
    let link = files.entry_itself(format!("/proc/{pid}/exe")).ok()?;
    let program = statat(link.dir(), link.name(), AtFlags::empty()).ok()?;
    Some(Mode::from_raw_mode(program.st_mode).intersects(Mode::SUID | Mode::SGID))
}

/// The name of the process's user namespace. In a namespace of its own, every user can be root. The mount namespace
/// says nothing, because programs from snaps have one of their own.
fn user_namespace(files: &Root, pid: u32) -> Option<Vec<u8>> {
    let link = files.entry_itself(format!("/proc/{pid}/ns/user")).ok()?;
    let name = readlinkat(link.dir(), link.name(), Vec::new()).ok()?;
    Some(name.into_bytes())
}

fn content(files: &Root, pid: u32, file: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = files.open_file(format!("/proc/{pid}/{file}")).ok()?;
    file.take(MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Texts with a NUL byte after each.
fn strings(bytes: &[u8]) -> impl Iterator<Item = String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let texts = bytes.split(|&byte| byte == 0);
    texts.map(|text| String::from_utf8_lossy(text).into_owned())
}

impl Process {
    /// The last value of a flag with one of these names, written as `--flag=value` or as `--flag value`.
    pub(super) fn flag(&self, names: &[&str]) -> Option<String> {
        flag(&self.args, names)
    }

    /// The environment that the process was started with. `None` if it cannot be read.
    pub(super) fn environment(&self, files: &Root) -> Option<BTreeMap<String, String>> {
        let bytes = content(files, self.pid, "environ")?;
        let variables = strings(&bytes).filter_map(|text| {
            let (name, value) = text.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Some(variables.collect())
    }
}

/// The last value of a flag in a command line.
pub(super) fn flag(args: &[String], names: &[&str]) -> Option<String> {
    let mut value = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.split_once('=') {
            Some((name, text)) if names.contains(&name) => value = Some(text.to_owned()),
            None if names.contains(&arg.as_str()) => value = args.next().cloned(),
            Some(_) | None => {}
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_in_both_forms_and_the_last_one_counts() {
        for (line, want) in [
            ("--config=/a", Some("/a")),
            ("--config /a", Some("/a")),
            ("-c /a --log-level debug", Some("/a")),
            ("--config=/a --v=4 --config /b", Some("/b")),
            ("--config-dir=/a", None),
            ("--config", None),
            ("", None),
        ] {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(flag(&args, &["--config", "-c"]).as_deref(), want, "{line}");
        }
    }
}
