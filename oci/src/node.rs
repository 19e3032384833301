//! The kubelet and the container runtime of a host: which of them run, and how they are configured. What they can pull,
//! the agent must be able to pull as well.
//!
//! Everything is read anew for each pull, so no restart of the agent is needed after a change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::root::Root;

pub(crate) mod containerd;
mod kubelet;
mod process;

pub(crate) use kubelet::Kubelet;
use process::Process;

/// What runs on a host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    pub(crate) kubelet: Kubelet,
    pub(crate) runtime: Runtime,
    /// The environment variables of the container runtime.
    pub(crate) environment: BTreeMap<String, String>,
}

/// A container runtime, with its files that say where registries are. Paths are those of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// None of the known ones runs.
    #[default]
    Unknown,
    /// containerd with its `config.toml`.
    Containerd { config: PathBuf },
    /// CRI-O, which reads `registries.conf`.
    Crio,
    /// Docker with cri-dockerd, which reads `/etc/docker/certs.d`.
    Docker,
}

/// The place of containerd's configuration if its command line names no other.
const CONTAINERD: &str = "/etc/containerd/config.toml";

impl Node {
    /// Looks at the processes of the host. A host without a readable `/proc` has none.
    pub(crate) fn look(files: &Root) -> Self {
        let processes = process::find(files);
        let kubelet = Kubelet::of(files, &processes);
        let runtime = processes
            .iter()
            .filter_map(|process| Some((rank(process, &kubelet, files)?, process)))
            .max_by_key(|(rank, process)| (*rank, std::cmp::Reverse(process.pid)))
            .map(|(_, process)| process);
        Self {
            runtime: runtime.map_or(Runtime::Unknown, of_process),
            environment: runtime
                .and_then(|it| it.environment(files))
                .unwrap_or_default(),
            kubelet,
        }
    }
}

/// How surely this process is the runtime of the kubelet. `None` if it is no runtime. A host may have several: Docker
/// starts a containerd of its own, and so do k3s, RKE2 and MicroK8s.
fn rank(process: &Process, kubelet: &Kubelet, files: &Root) -> Option<u8> {
    let usual = match process.name.as_str() {
        // Docker starts this one for itself.
        "containerd" if config(process).ends_with("docker/containerd/containerd.toml") => {
            return Some(0);
        }
        "containerd" => 2,
        "crio" => 3,
        "dockerd" => 1,
        _ => return None,
    };
    let Some(endpoint) = kubelet.runtime_endpoint.as_deref() else {
        // k3s and MicroK8s run the kubelet and containerd with a configuration of their own.
        let own = process.name == "containerd" && config(process) != Path::new(CONTAINERD);
        return Some(if own { 4 } else { usual });
    };
    let socket = socket(process, files);
    Some(if is_same_socket(endpoint, &socket) {
        10
    } else {
        usual
    })
}

fn of_process(process: &Process) -> Runtime {
    match process.name.as_str() {
        "containerd" => Runtime::Containerd {
            config: config(process),
        },
        "crio" => Runtime::Crio,
        _ => Runtime::Docker,
    }
}

/// The path of containerd's configuration.
fn config(process: &Process) -> PathBuf {
    process
        .flag(&["--config", "-config", "-c"])
        .unwrap_or_else(|| CONTAINERD.to_owned())
        .into()
}

/// The socket on which the runtime listens.
fn socket(process: &Process, files: &Root) -> String {
    match process.name.as_str() {
        "containerd" => process
            .flag(&["--address", "-address", "-a"])
            .or_else(|| containerd::address(files, &config(process)))
            .unwrap_or_else(|| "/run/containerd/containerd.sock".to_owned()),
        "crio" => process
            .flag(&["--listen"])
            .unwrap_or_else(|| "/run/crio/crio.sock".to_owned()),
        // It is cri-dockerd that listens for dockerd.
        _ => "/run/cri-dockerd.sock".to_owned(),
    }
}

/// `/var/run` is a link to `/run`.
fn is_same_socket(one: &str, other: &str) -> bool {
    let path = |text: &str| {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        path.strip_prefix("/var/run/")
            .map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"))
    };
    path(one) == path(other)
}

#[cfg(test)]
mod tests;
