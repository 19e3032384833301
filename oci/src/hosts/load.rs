//! Finds the configuration of a registry in containerd's directory layout.

use std::io;
use std::path::{Path, PathBuf};

use super::{HostSettings, HostsError, RegistrySettings, parse};
use crate::root::Root;

/// Reads the configuration of `registry` in `dir`: from `<registry>/hosts.toml`, where the port may also be written
/// as `_port_`, else from `_default/hosts.toml`. A directory without `hosts.toml` is read like a directory of Docker:
/// `*.crt` files are trusted authorities, and `*.cert` and `*.key` files are client certificates with their keys.
/// `dir` is a path in `root`, and so are the paths in the result.
pub(crate) fn load(
    root: &Root,
    dir: &Path,
    registry: &str,
) -> Result<RegistrySettings, HostsError> {
    let mut names = vec![registry.to_owned(), "_default".to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    for name in names {
        let dir = dir.join(name);
        let path = dir.join("hosts.toml");
        match root.read_to_string(&path) {
            Ok(text) => return parse(&text, &dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
        if root.metadata(&dir).is_ok_and(|metadata| metadata.is_dir()) {
            return certificates(root, &dir);
        }
    }
    Ok(RegistrySettings::default())
}

fn certificates(root: &Root, dir: &Path) -> Result<RegistrySettings, HostsError> {
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
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn symlinks_in_it_are_those_of_the_host() {
        let directory = tempfile::tempdir().unwrap();
        let certs_d = directory.path().join("etc/containerd/certs.d");
        fs::create_dir_all(directory.path().join("opt/registries/r.example")).unwrap();
        fs::create_dir_all(directory.path().join("etc/containerd")).unwrap();
        symlink("/opt/registries", &certs_d).unwrap();
        fs::write(
            directory.path().join("opt/hosts.toml"),
            "server = \"https://r.example\"\nca = \"/etc/pki/ca.crt\"\n\
             [host.\"https://mirror\"]\nca = \"own.crt\"\nclient = [[\"/c.pem\", \"/k.pem\"]]\n",
        )
        .unwrap();
        let link = certs_d_file(&directory, "r.example/hosts.toml");
        symlink("/opt/hosts.toml", link).unwrap();
        let root = Root::open(directory.path()).unwrap();
        let dir = Path::new("/etc/containerd/certs.d");
        let got = load(&root, dir, "r.example").unwrap();
        assert_eq!(got.server.unwrap().ca, [Path::new("/etc/pki/ca.crt")]);
        assert_eq!(got.hosts[0].ca, [dir.join("r.example/own.crt")]);
        let client = (PathBuf::from("/c.pem"), Some(PathBuf::from("/k.pem")));
        assert_eq!(got.hosts[0].client, [client]);

        fs::create_dir(certs_d_file(&directory, "docker.example")).unwrap();
        let link = certs_d_file(&directory, "docker.example/ca.crt");
        symlink("/etc/pki/ca.crt", link).unwrap();
        let docker = load(&root, dir, "docker.example").unwrap();
        assert_eq!(
            docker.server.unwrap().ca,
            [dir.join("docker.example/ca.crt")]
        );
        let none = load(&root, Path::new("/nowhere"), "r.example").unwrap();
        assert_eq!(none, RegistrySettings::default());
    }

    fn certs_d_file(directory: &tempfile::TempDir, path: &str) -> PathBuf {
        directory.path().join("opt/registries").join(path)
    }
}
