//! Finds the configuration of a registry where CRI-O or Docker has it.

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use super::load::tls_of;
use super::registries_conf::{self, RegistriesConf};
use super::{HostSettings, HostsError, RegistrySettings};
use crate::no_values::without_values;
use crate::reference::Reference;
use crate::root::Root;

/// The file, and the one that counts if the first does not exist.
const FILES: [&str; 2] = [
    "/etc/containers/registries.conf",
    "/usr/share/containers/registries.conf",
];
/// The directory with further files. The later one in alphabetical order counts.
const DROP_INS: &str = "/etc/containers/registries.conf.d";
/// The directories with certificates for each host.
const CERTIFICATES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Reads the configuration for an image.
pub(crate) fn load(root: &Root, reference: &Reference) -> Result<RegistrySettings, HostsError> {
    let by_digest = reference.digest().is_some();
    let found = conf(root)?.settings(&reference.to_string(), by_digest)?;
    let mut settings = found.unwrap_or_default();
    let registry = reference.registry();
    let server = settings.server.get_or_insert_default();
    for host in settings.hosts.iter_mut().chain([server]) {
        certify(root, host, registry)?;
    }
    Ok(settings)
}

/// Reads what Docker has for a registry: its `daemon.json` and its certificates. A `daemon.json` that is not valid is passed
/// over, and is named if the pull fails.
pub(crate) fn load_docker(root: &Root, registry: &str) -> Result<RegistrySettings, HostsError> {
    let mut settings = RegistrySettings::default();
    let daemon = match read_daemon(root) {
        Ok(daemon) => daemon,
        Err(problem) => {
            settings.problems.push(problem);
            Daemon::default()
        }
    };
    if registry == "docker.io" {
        let mirrors = daemon.registry_mirrors.into_iter().map(|url| HostSettings {
            url,
            ..HostSettings::default()
        });
        settings.hosts = mirrors.collect();
    }
    let mut server = HostSettings::default();
    if daemon
        .insecure_registries
        .iter()
        .any(|it| covers(it, registry))
    {
        server.url = format!("https://{registry}");
        server.skip_verify = true;
        server.plain_fallback = true;
    }
    let server = settings.server.insert(server);
    for host in settings.hosts.iter_mut().chain([server]) {
        certify(root, host, registry)?;
    }
    Ok(settings)
}

const DAEMON: &str = "/etc/docker/daemon.json";

/// The settings of Docker that matter for pulls.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Daemon {
    /// Mirrors of Docker Hub.
    registry_mirrors: Vec<String>,
    /// Names of registries, and networks.
    insecure_registries: Vec<String>,
}

fn read_daemon(root: &Root) -> Result<Daemon, String> {
    match root.read(DAEMON) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| format!("{DAEMON}: {}", without_values(&error.to_string()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Daemon::default()),
        Err(error) => Err(format!("cannot read {DAEMON}: {error}")),
    }
}

/// Whether the entry of a list of registries is for this one.
fn covers(entry: &str, registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match (entry.parse::<IpNet>(), host.parse::<IpAddr>()) {
        (Ok(network), Ok(address)) => network.contains(&address),
        (Ok(_), Err(_)) => false,
        (Err(_), _) => entry == registry,
    }
}

/// All files, laid over each other.
fn conf(root: &Root) -> Result<RegistriesConf, HostsError> {
    let mut whole = RegistriesConf::default();
    for path in FILES.map(Path::new) {
        if let Some(conf) = read(root, path)? {
            whole = conf;
            break;
        }
    }
    let names = root.list(DROP_INS).unwrap_or_default();
    for name in names {
        let path = Path::new(DROP_INS).join(name);
        if path.extension() == Some(OsStr::new("conf"))
            && let Some(conf) = read(root, &path)?
        {
            whole.lay_over(conf);
        }
    }
    Ok(whole)
}

fn read(root: &Root, path: &Path) -> Result<Option<RegistriesConf>, HostsError> {
    match root.read_to_string(path) {
        Ok(text) => registries_conf::parse(&text, path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HostsError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Adds the certificates for the host of a server.
fn certify(root: &Root, host: &mut HostSettings, registry: &str) -> Result<(), HostsError> {
    let name = match host.url.split_once("://") {
        Some((_, name)) => name,
        None => registry,
    };
    let directory = CERTIFICATES
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|dir: &PathBuf| root.metadata(dir).is_ok_and(|it| it.is_dir()));
    if let Some(directory) = directory {
        let tls = tls_of(root, &directory)?;
        (host.ca, host.client) = (tls.ca, tls.client);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
