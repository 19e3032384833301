//! The processes of a host that matter here: the kubelet, and container runtimes.

use std::collections::BTreeMap;
use std::io::Read as _;

use crate::root::Root;

/// Programs that are, contain or start a kubelet or a container runtime.
const NAMES: [&str; 4] = ["kubelet", "containerd", "crio", "dockerd"];
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

/// The processes with known names, outside of containers.
pub(super) fn find(files: &Root) -> Vec<Process> {
    let Ok(names) = files.list("/proc") else {
        return Vec::new();
    };
    let pids = names.iter().filter_map(|name| name.to_str()?.parse().ok());
    let mut found: Vec<Process> = pids.filter_map(|pid| read(files, pid)).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// Reads a process. `None` if it has another name, has ended, or runs in a container.
fn read(files: &Root, pid: u32) -> Option<Process> {
    let text = |file: &str| content(files, pid, file);
    let name = String::from_utf8(text("comm")?).ok()?.trim().to_owned();
    if !NAMES.contains(&name.as_str()) {
        return None;
    }
    // A process in a PID namespace of its own has more than one number: it belongs to a container.
    let status = String::from_utf8_lossy(&text("status")?).into_owned();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    if numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1) {
        return None;
    }
    let args = strings(&text("cmdline")?).skip(1).collect();
    Some(Process { pid, name, args })
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

    /// The environment that the process was started with. Empty if it cannot be read.
    pub(super) fn environment(&self, files: &Root) -> BTreeMap<String, String> {
        let bytes = content(files, self.pid, "environ").unwrap_or_default();
        strings(&bytes)
            .filter_map(|text| {
                let (name, value) = text.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect()
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
