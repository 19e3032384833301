//! Finding a registry's directory in containerd's layout.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that reads hosts.toml"
)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{HostSettings, HostsError, RegistrySettings, parse};

/// Reads what `dir` has for `registry`: `<registry>/hosts.toml`, also with the port written as
/// `_port_`, else `_default/hosts.toml`. A directory without that file is read as Docker's: `*.crt`
/// to trust, `*.cert` with `*.key` to show.
pub(crate) fn load(dir: &Path, registry: &str) -> Result<RegistrySettings, HostsError> {
    let mut names = vec![registry.to_owned(), "_default".to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    for name in names {
        let dir = dir.join(name);
        let path = dir.join("hosts.toml");
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
        if dir.is_dir() {
            return certificates(&dir);
        }
    }
    Ok(RegistrySettings::default())
}

fn certificates(dir: &Path) -> Result<RegistrySettings, HostsError> {
    let failed = |source| HostsError::Read {
        path: dir.to_path_buf(),
        source,
    };
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(failed)?;
    files.sort();
    let with = |extension: &str| {
        let matches = |file: &&PathBuf| file.extension().is_some_and(|it| it == extension);
        files.iter().filter(matches).cloned().collect::<Vec<_>>()
    };
    let client = with("cert").into_iter().map(|file| {
        let key = file.with_extension("key");
        (file, Some(key))
    });
    let server = HostSettings {
        ca: with("crt"),
        client: client.collect(),
        ..Default::default()
    };
    Ok(RegistrySettings {
        server: Some(server),
        hosts: Vec::new(),
    })
}
