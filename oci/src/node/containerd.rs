//! containerd's `config.toml`: where its files about registries are, and what old versions have about registries in
//! this file itself.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::auth::{Credentials, Login};
use crate::hosts::{HostSettings, HostsError, RegistrySettings, is_loopback};
use crate::root::Root;

/// The names of the plugin with the section `registry`: of versions 3, 2 and 1 of the file.
const PLUGINS: [&str; 3] = [
    "io.containerd.cri.v1.images",
    "io.containerd.grpc.v1.cri",
    "cri",
];
/// The highest number of files that import each other.
const MAX_FILES: usize = 100;

/// The section `registry`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Registry {
    /// Directories with a `<registry>/hosts.toml` per registry. The first one that has a registry counts for it.
    pub(crate) dirs: Vec<PathBuf>,
    mirrors: BTreeMap<String, Vec<String>>,
    configs: BTreeMap<String, Config>,
}

/// TLS and a login for a host.
#[derive(Debug, Clone, Default, PartialEq)]
struct Config {
    ca: Option<PathBuf>,
    client: Option<(PathBuf, Option<PathBuf>)>,
    skip_verify: bool,
    login: Option<Login>,
}

/// Reads the section from the file at `path` and from the files that it imports. A host without the file uses
/// containerd's defaults.
pub(crate) fn read(files: &Root, path: &Path) -> Result<Registry, HostsError> {
    Ok(registry(&document(files, path)?))
}

/// The socket that the file names.
pub(super) fn address(files: &Root, path: &Path) -> Option<String> {
    let document = document(files, path).ok()?;
    let address = document.get("grpc")?.get("address")?.as_str()?;
    (!address.is_empty()).then(|| address.to_owned())
}

/// The file, with those that it imports laid over it.
fn document(files: &Root, path: &Path) -> Result<Table, HostsError> {
    let mut whole = Table::new();
    let mut pending = vec![path.to_path_buf()];
    let mut known: Vec<PathBuf> = Vec::new();
    while let Some(path) = pending.pop() {
        if known.contains(&path) || known.len() >= MAX_FILES {
            continue;
        }
        let text = match files.read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(HostsError::Read { path, source }),
        };
        let table: Table = text
            .parse()
            .map_err(|error| HostsError::toml(&path, &text, &error))?;
        let imports = table.get("imports").and_then(Value::as_array);
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut imported: Vec<PathBuf> = imports
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .flat_map(|pattern| expand(files, &dir.join(pattern)))
            .collect();
        imported.reverse();
        pending.extend(imported);
        lay_over(&mut whole, table);
        known.push(path);
    }
    Ok(whole)
}

/// The files that a path with `*` in its last part stands for.
fn expand(files: &Root, pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().and_then(|name| name.to_str());
    let (Some(name), Some(dir)) = (name, pattern.parent()) else {
        return Vec::new();
    };
    let Some((before, after)) = name.split_once('*') else {
        return vec![pattern.to_path_buf()];
    };
    let names = files.list(dir).unwrap_or_default();
    names
        .iter()
        .filter_map(|name| name.to_str())
        .filter(|name| {
            name.len() >= before.len() + after.len()
                && name.starts_with(before)
                && name.ends_with(after)
        })
        .map(|name| dir.join(name))
        .collect()
}

/// Values of `over` replace those in `table`. Tables are merged.
fn lay_over(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(own)), Value::Table(over)) => lay_over(own, over),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// The section `registry` of the document. Values of a wrong type are left out.
pub(crate) fn registry(document: &Table) -> Registry {
    let plugins = document.get("plugins");
    let section = PLUGINS
        .iter()
        .filter_map(|name| plugins?.get(name)?.get("registry")?.as_table())
        .next();
    let Some(section) = section else {
        return Registry::default();
    };
    let text = |value: &Value, key: &str| {
        let text = value.get(key)?.as_str()?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    let tables = |key: &str| {
        let table = section.get(key).and_then(Value::as_table);
        table.into_iter().flatten()
    };
    let dirs = section
        .get("config_path")
        .and_then(Value::as_str)
        .unwrap_or("");
    Registry {
        dirs: paths(dirs),
        mirrors: tables("mirrors")
            .map(|(name, mirror)| {
                let endpoints = mirror.get("endpoint").and_then(Value::as_array);
                let endpoints = endpoints.into_iter().flatten().filter_map(Value::as_str);
                (name.clone(), endpoints.map(str::to_owned).collect())
            })
            .collect(),
        configs: tables("configs")
            .map(|(name, config)| {
                let tls = |key: &str| text(config.get("tls")?, key).map(PathBuf::from);
                let skip_verify = config.get("tls").and_then(|tls| {
                    let skip = tls.get("insecure_skip_verify")?;
                    skip.as_bool()
                });
                let config = Config {
                    ca: tls("ca_file"),
                    client: tls("cert_file").map(|file| (file, tls("key_file"))),
                    skip_verify: skip_verify.unwrap_or_default(),
                    login: config.get("auth").and_then(login),
                };
                (name.clone(), config)
            })
            .collect(),
    }
}

/// Directories, separated by colons.
pub(crate) fn paths(text: &str) -> Vec<PathBuf> {
    let parts = text.split(':').map(str::trim);
    parts
        .filter(|part| !part.is_empty())
        .map(PathBuf::from)
        .collect()
}

fn login(auth: &Value) -> Option<Login> {
    let json = serde_json::to_vec(&serde_json::json!({"auths": {"r": auth}})).ok()?;
    let found = Credentials::from_docker_config(&json).ok()?.matching("r/x");
    found.into_iter().next().map(|found| found.login)
}

impl Registry {
    /// The logins, with the hosts that they are for. A login for a host may be written with a scheme.
    pub(crate) fn credentials(&self) -> Credentials {
        let logins = self.configs.iter().filter_map(|(host, config)| {
            let login = config.login.clone()?;
            Some((host.clone(), login))
        });
        Credentials::from_logins(logins).from_source("the configuration of containerd")
    }

    /// The servers of a registry. `None` if the file has nothing about it.
    pub(crate) fn settings(&self, registry: &str) -> Option<RegistrySettings> {
        let mirrors = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let server = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let own = self.config(registry).or_else(|| self.config(server));
        if mirrors.is_none() && own.is_none() {
            return None;
        }
        let mut settings = RegistrySettings {
            server: own.map(tls),
            ..RegistrySettings::default()
        };
        for url in mirrors.into_iter().flatten() {
            let (scheme, rest) = match url.split_once("://") {
                Some((scheme, rest)) => (scheme, rest),
                None if is_loopback(without_port(url)) => ("http", url.as_str()),
                None => ("https", url.as_str()),
            };
            let host = rest.split('/').next().unwrap_or(rest);
            settings.has_own_server |= host == registry;
            settings.hosts.push(HostSettings {
                url: format!("{scheme}://{rest}"),
                // containerd adds nothing to a path.
                override_path: rest.contains('/'),
                ..self.config(host).map(tls).unwrap_or_default()
            });
        }
        Some(settings)
    }

    fn config(&self, host: &str) -> Option<&Config> {
        self.configs.get(host)
    }
}

/// The host of `host:port/path`.
fn without_port(url: &str) -> &str {
    let host = url.split('/').next().unwrap_or(url);
    match host.rsplit_once(':') {
        // The colons of an IPv6 address without a port are within brackets.
        Some((host, port)) if !port.ends_with(']') => host,
        _ => host,
    }
}

fn tls(config: &Config) -> HostSettings {
    HostSettings {
        ca: config.ca.iter().cloned().collect(),
        client: config.client.iter().cloned().collect(),
        skip_verify: config.skip_verify,
        ..HostSettings::default()
    }
}

#[cfg(test)]
mod tests;
