//! What the kubelet of a host is told by its command line and its configuration.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use super::process::{Process, flag};
use crate::auth::Credentials;
use crate::root::Root;

/// Where k3s, which contains a kubelet, looks for credential provider plugins if it is told nothing else.
const K3S_PLUGINS: (&str, &str) = (
    "/var/lib/rancher/credentialprovider/config.yaml",
    "/var/lib/rancher/credentialprovider/bin",
);
/// The arguments of the kubelet that MicroK8s contains, one in each line.
const MICROK8S: &str = "/var/snap/microk8s/current/args/kubelet";
/// Programs that contain a kubelet.
const CONTAIN: [&str; 3] = ["k3s-server", "k3s-agent", "kubelite"];
const ROOT_DIR: &str = "/var/lib/kubelet";
/// The runtime of a kubelet that is told no other.
const ENDPOINT: &str = "unix:///run/containerd/containerd.sock";

/// The settings of a kubelet that matter for pulls. Paths are those of the host.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet {
    /// Its root directory, where it looks for a docker config first.
    pub(crate) root_dir: PathBuf,
    /// The configuration of the credential provider plugins, and the directory of the plugins.
    pub(crate) plugins: Option<(PathBuf, PathBuf)>,
    /// The URL of the container runtime's socket.
    pub(super) runtime_endpoint: Option<String>,
    /// Its environment variables, which its plugins inherit. `None` if they are not known.
    pub(crate) environment: Option<BTreeMap<String, String>>,
}

impl Default for Kubelet {
    fn default() -> Self {
        Self {
            root_dir: ROOT_DIR.into(),
            plugins: None,
            runtime_endpoint: None,
            environment: None,
        }
    }
}

impl Kubelet {
    pub(super) fn of(files: &Root, processes: &[Process]) -> Self {
        if let Some(process) = processes.iter().find(|it| it.name == "kubelet") {
            let mut kubelet = Self::told(files, |name| process.flag(&[name]));
            kubelet.environment = process.environment(files);
            return kubelet;
        }
        let mut kubelet = Self::contained(files);
        let process = processes.iter().find(|it| CONTAIN.contains(&&*it.name));
        kubelet.environment = process.and_then(|it| it.environment(files));
        kubelet
    }

    /// A kubelet that is a part of another program.
    fn contained(files: &Root) -> Self {
        if let Ok(text) = files.read_to_string(MICROK8S) {
            let args: Vec<String> = text
                .lines()
                .map(str::trim)
                .filter(|line| line.starts_with('-'))
                .map(expanded)
                .collect();
            return Self::told(files, |name| flag(&args, &[name]));
        }
        let (config, bin_dir) = K3S_PLUGINS;
        let plugins = files
            .exists(config)
            .then(|| (config.into(), bin_dir.into()));
        Self {
            plugins,
            ..Self::default()
        }
    }

    fn told(files: &Root, flag: impl Fn(&str) -> Option<String>) -> Self {
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "camelCase")]
        struct Configuration {
            container_runtime_endpoint: Option<String>,
        }
        let configuration: Configuration = flag("--config")
            .and_then(|path| files.read_to_string(path).ok())
            .and_then(|text| serde_yaml_ng::from_str(&text).ok())
            .unwrap_or_default();
        let path = |name: &str| flag(name).filter(|it| !it.is_empty()).map(PathBuf::from);
        Self {
            root_dir: path("--root-dir").unwrap_or_else(|| ROOT_DIR.into()),
            plugins: path("--image-credential-provider-config")
                .zip(path("--image-credential-provider-bin-dir")),
            runtime_endpoint: flag("--container-runtime-endpoint")
                .or(configuration.container_runtime_endpoint)
                .filter(|it| !it.is_empty())
                .or_else(|| Some(ENDPOINT.to_owned())),
            environment: None,
        }
    }
}

/// A line of a file of MicroK8s with its variables replaced.
fn expanded(line: &str) -> String {
    line.replace("${SNAP_DATA}", "/var/snap/microk8s/current")
        .replace("$SNAP_DATA", "/var/snap/microk8s/current")
        .replace("${SNAP_COMMON}", "/var/snap/microk8s/common")
        .replace("$SNAP_COMMON", "/var/snap/microk8s/common")
        .replace("${SNAP}", "/snap/microk8s/current")
        .replace("$SNAP", "/snap/microk8s/current")
}

/// Where the kubelet looks for a docker config, after its root directory.
const JSON_DIRS: [&str; 2] = ["/root/.docker", "/.docker"];
/// Where the kubelet looks for a docker config in the old form, after its root directory.
const OLD_DIRS: [&str; 2] = ["/root", "/"];

impl Kubelet {
    /// The logins of the node: those of the first docker config that can be used.
    pub(crate) fn credentials(&self, files: &Root) -> Credentials {
        let home = self.environment.as_ref().and_then(|it| it.get("HOME"));
        let home = home.filter(|it| !it.is_empty());
        let json = home.map(|home| PathBuf::from(home).join(".docker"));
        let json = json.into_iter().chain(JSON_DIRS.map(PathBuf::from));
        let json = [self.root_dir.clone()].into_iter().chain(json);
        let old = home.map(PathBuf::from).into_iter();
        let old = old.chain(OLD_DIRS.map(PathBuf::from));
        let old = [self.root_dir.clone()].into_iter().chain(old);
        let paths = json.map(|dir| dir.join("config.json"));
        let paths: Vec<PathBuf> = paths.chain(old.map(|dir| dir.join(".dockercfg"))).collect();
        let mut unusable = Credentials::anonymous();
        for path in paths {
            let source = path.display().to_string();
            let bytes = match files.read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    unusable = unusable.merge(Credentials::unusable(&source, error.to_string()));
                    continue;
                }
            };
            match Credentials::from_docker_config(&bytes) {
                Ok(credentials) => return unusable.merge(credentials.from_source(&source)),
                Err(error) => {
                    unusable = unusable.merge(Credentials::unusable(&source, error.to_string()));
                }
            }
        }
        unusable
    }
}
