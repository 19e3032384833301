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
/// to trust, `*.cert` with `*.key` to show. Absolute paths in it start at `root`.
pub(crate) fn load(
    dir: &Path,
    registry: &str,
    root: &Path,
) -> Result<RegistrySettings, HostsError> {
    let mut settings = read(dir, registry)?;
    for host in settings.hosts.iter_mut().chain(&mut settings.server) {
        let pairs = host.client.iter_mut();
        let client = pairs.flat_map(|(cert, key)| std::iter::once(cert).chain(key));
        for path in host.ca.iter_mut().chain(client) {
            if path.is_absolute() && !path.starts_with(root) {
                *path = root.join(path.strip_prefix("/").unwrap_or(path));
            }
        }
    }
    Ok(settings)
}

fn read(dir: &Path, registry: &str) -> Result<RegistrySettings, HostsError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_start_at_the_root_of_the_host() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/containerd/certs.d");
        fs::create_dir_all(dir.join("r.example")).unwrap();
        fs::write(
            dir.join("r.example/hosts.toml"),
            "server = \"https://r.example\"\nca = \"/etc/pki/ca.crt\"\n\
             [host.\"https://mirror\"]\nca = \"own.crt\"\nclient = [[\"/c.pem\", \"/k.pem\"]]\n",
        )
        .unwrap();
        let got = load(&dir, "r.example", root.path()).unwrap();
        let at = |path: &str| root.path().join(path);
        assert_eq!(got.server.unwrap().ca, [at("etc/pki/ca.crt")]);
        assert_eq!(got.hosts[0].ca, [dir.join("r.example/own.crt")]);
        assert_eq!(got.hosts[0].client, [(at("c.pem"), Some(at("k.pem")))]);
        let here = load(&dir, "r.example", Path::new("/")).unwrap();
        assert_eq!(here.server.unwrap().ca, [Path::new("/etc/pki/ca.crt")]);
    }
}
