//! Gets access to a registry for one pull: with all credentials that are for the image, at the servers that have it,
//! through the proxy that the host uses.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that reads the environment"
)]

use std::path::PathBuf;
use std::sync::Arc;

use crate::auth::plugin::Plugins;
use crate::auth::{Credentials, PluginConfig};
use crate::chain;
use crate::config::PullerConfig;
use crate::hosts::{self, HostsError, RegistrySettings};
use crate::node::{Node, Runtime, containerd};
use crate::proxy::Proxies;
use crate::reference::Reference;
use crate::registry::{Net, RegistryError, Session, TrustStore};
use crate::root::Root;
use crate::store::blocking;

/// Where the settings of registries are if the runtime names no place: those of containerd and Docker, k3s, RKE2, and
/// MicroK8s.
const USUAL_DIRS: [&str; 5] = [
    "/etc/containerd/certs.d",
    "/etc/docker/certs.d",
    "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
    "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
    "/var/snap/microk8s/current/args/certs.d",
];

/// What is kept from one pull to the next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    plugins: Arc<std::sync::OnceLock<Plugins>>,
    trust: TrustStore,
}

/// What the files of the host say about one image.
struct Found {
    node: Option<Node>,
    settings: RegistrySettings,
    /// The logins of the host itself, which are tried after the pull secrets: those of the kubelet, and those in the
    /// configuration of containerd, which are tried last.
    kubelet: Credentials,
    containerd: Credentials,
}

impl Access {
    /// Opens a session. All files are read each time, because they may have changed.
    pub(crate) async fn session(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        config: &Arc<PullerConfig>,
    ) -> Result<Session, RegistryError> {
        let files = Root::or_own(config.files.as_ref()).map_err(|source| HostsError::Read {
            path: PathBuf::from("/"),
            source,
        })?;
        let found = {
            let (files, reference, config) = (files.clone(), reference.clone(), Arc::clone(config));
            blocking(move || look(&files, &reference, &config)).await?
        };
        let environment = |node: &Option<Node>| node.as_ref().map(|it| it.environment.clone());
        let proxies = Proxies::of(|name| std::env::var(name).ok()).or_else(|| {
            let environment = environment(&found.node)?;
            Proxies::of_go(|name| environment.get(name).cloned())
        });
        let name = reference.name();
        let mut credentials = credentials.clone().then(found.kubelet);
        if let Some(plugins) = plugin_config(config, found.node.as_ref()) {
            let kubelet = found.node.as_ref();
            let environment = kubelet.and_then(|node| node.kubelet.environment.as_ref());
            let runner = self.plugins.get_or_init(|| Plugins::new(files.clone()));
            let answers = runner.credentials(&plugins, environment, &name);
            credentials = credentials.then(answers.await);
        }
        let credentials = credentials.then(found.containerd);
        let insecure = config.insecure.iter().any(|it| it == reference.registry());
        let proxies = Arc::new(proxies.unwrap_or_default());
        let (reference, timeouts) = (reference.clone(), config.timeouts.clone());
        let trust = self.trust.clone();
        // It reads certificates.
        blocking(move || {
            let net = Net {
                files: &files,
                trust: &trust,
                proxies: &proxies,
                timeouts: &timeouts,
            };
            Session::open(&reference, &credentials, &found.settings, insecure, &net)
        })
        .await
    }
}

/// The plugins that the settings name, else those that the kubelet of the node is told of.
fn plugin_config(config: &PullerConfig, node: Option<&Node>) -> Option<PluginConfig> {
    if let Some(plugins) = &config.plugins {
        return Some(plugins.clone());
    }
    let (path, bin_dir) = node?.kubelet.plugins.clone()?;
    let run = config.node.as_ref()?;
    Some(PluginConfig {
        config: path,
        bin_dir,
        prefix: run.prefix.clone(),
        timeout: run.timeout,
    })
}

fn look(files: &Root, reference: &Reference, config: &PullerConfig) -> Result<Found, HostsError> {
    let registry = reference.registry();
    let mut found = Found {
        node: None,
        settings: RegistrySettings::default(),
        kubelet: Credentials::anonymous(),
        containerd: Credentials::anonymous(),
    };
    if config.node.is_some() {
        let node = Node::look(files);
        found.kubelet = node.kubelet.credentials(files);
        found.node = Some(node);
    }
    if let Some(dirs) = &config.hosts_dir {
        let dirs = containerd::paths(&dirs.to_string_lossy());
        found.settings = hosts::load(files, &dirs, registry)?;
        return Ok(found);
    }
    let usual = || USUAL_DIRS.map(PathBuf::from);
    found.settings = match found.node.as_ref().map(|node| &node.runtime) {
        None => RegistrySettings::default(),
        Some(Runtime::Unknown) => {
            let settings = hosts::load(files, &usual(), registry)?;
            match settings == RegistrySettings::default() {
                true => hosts::containers::load(files, reference)?,
                false => settings,
            }
        }
        Some(Runtime::Crio) => hosts::containers::load(files, reference)?,
        Some(Runtime::Docker) => hosts::containers::load_docker(files, registry)?,
        Some(Runtime::Containerd { config }) => {
            let (of_config, problem) = match containerd::read(files, config) {
                Ok(of_config) => (of_config, None),
                Err(error) => (containerd::Registry::default(), Some(chain(&error))),
            };
            found.containerd = of_config.credentials();
            let mut settings = match of_config.dirs.as_slice() {
                [] => match of_config.settings(registry) {
                    Some(settings) => settings,
                    None => hosts::load(files, &usual(), registry)?,
                },
                dirs => hosts::load(files, dirs, registry)?,
            };
            settings.problems.extend(problem);
            settings
        }
    };
    Ok(found)
}

#[cfg(test)]
mod tests;
