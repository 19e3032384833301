//! Finds the configuration of a registry in containerd's directory layout.

use std::io;
use std::path::{Path, PathBuf};

use super::{HostSettings, HostsError, RegistrySettings, endpoints, parse};
use crate::chain::chain;
use crate::root::Root;

/// Reads the configuration of `registry` from the first of `dirs` that has one: from `<registry>/hosts.toml`, where the
/// port may also be written as `_port_`, else from `_default/hosts.toml`. A directory whose `hosts.toml` is missing,
/// empty or not valid is read like a directory of Docker: `*.crt` files are trusted authorities, and `*.cert` and `*.key`
/// files are client certificates with their keys. `dirs` are paths in `root`, and so are the paths in the result.
pub(crate) fn load(
    root: &Root,
    dirs: &[PathBuf],
    registry: &str,
) -> Result<RegistrySettings, HostsError> {
    let mut names = vec![registry.to_owned(), "_default".to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    let places = dirs
        .iter()
        .flat_map(|dir| names.iter().map(|name| dir.join(name)));
    for dir in places {
        if root.metadata(&dir).is_ok_and(|metadata| metadata.is_dir()) {
            return directory(root, &dir, registry);
        }
    }
    Ok(RegistrySettings::default())
}

/// Reads the directory of a registry. containerd goes on without a `hosts.toml` that is not valid, so it is only named if
/// the pull fails.
fn directory(root: &Root, dir: &Path, registry: &str) -> Result<RegistrySettings, HostsError> {
    let path = dir.join("hosts.toml");
    let text = match root.read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(HostsError::Read { path, source }),
    };
    if text.is_empty() {
        return certificates(root, dir);
    }
    let settings = parse(&text, dir).and_then(|settings| {
        endpoints(registry, &settings, false)?;
        Ok(settings)
    });
    settings.or_else(|error| {
        let problem = chain(&error);
        tracing::warn!(problem, "a hosts.toml cannot be used: pulling without it");
        let mut settings = certificates(root, dir)?;
        settings.problems.push(problem);
        Ok(settings)
    })
}

/// Reads the certificates in a directory of Docker's form.
fn certificates(root: &Root, dir: &Path) -> Result<RegistrySettings, HostsError> {
    Ok(RegistrySettings {
        server: Some(tls_of(root, dir)?),
        ..RegistrySettings::default()
    })
}

/// The certificates in a directory of Docker's form, as settings of a server without a URL.
pub(super) fn tls_of(root: &Root, dir: &Path) -> Result<HostSettings, HostsError> {
    let names = root.list(dir).map_err(|source| HostsError::Read {
        path: dir.to_path_buf(),
        source,
    })?;
    let files: Vec<PathBuf> = names.into_iter().map(|name| dir.join(name)).collect();
    let with = |extension: &str| {
        let matches = |file: &&PathBuf| file.extension().is_some_and(|it| it == extension);
        files.iter().filter(matches).cloned().collect::<Vec<_>>()
    };
    let client = with("cert").into_iter().map(|file| {
        // Without a file for it, the key is in the file of the certificate.
        let key = file.with_extension("key");
        let key = files.contains(&key).then_some(key);
        (file, key)
    });
    Ok(HostSettings {
        ca: with("crt"),
        client: client.collect(),
        ..HostSettings::default()
    })
}

#[cfg(test)]
mod tests;
