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
    let dirs = [dir.to_path_buf()];
    let got = load(&root, &dirs, "r.example").unwrap();
    assert_eq!(got.server.unwrap().ca, [Path::new("/etc/pki/ca.crt")]);
    assert_eq!(got.hosts[0].ca, [dir.join("r.example/own.crt")]);
    let client = (PathBuf::from("/c.pem"), Some(PathBuf::from("/k.pem")));
    assert_eq!(got.hosts[0].client, [client]);

    fs::create_dir(certs_d_file(&directory, "docker.example")).unwrap();
    let link = certs_d_file(&directory, "docker.example/ca.crt");
    symlink("/etc/pki/ca.crt", link).unwrap();
    let docker = load(&root, &dirs, "docker.example").unwrap();
    assert_eq!(
        docker.server.unwrap().ca,
        [dir.join("docker.example/ca.crt")]
    );
    let none = load(&root, &["/nowhere".into()], "r.example").unwrap();
    assert_eq!(none, RegistrySettings::default());
}

fn certs_d_file(directory: &tempfile::TempDir, path: &str) -> PathBuf {
    directory.path().join("opt/registries").join(path)
}

/// The first directory that has the registry, or a default, counts for it.
#[test]
fn the_first_directory_with_the_registry_counts() {
    let directory = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("a/one.example/hosts.toml", "server = \"https://one-a\"");
    write("b/one.example/hosts.toml", "server = \"https://one-b\"");
    write(
        "b/two.example_5000_/hosts.toml",
        "server = \"https://two-b\"",
    );
    write("b/_default/hosts.toml", "server = \"https://default-b\"");
    write("c/three.example/hosts.toml", "server = \"https://three-c\"");
    let root = Root::open(directory.path()).unwrap();
    let dirs = ["/a", "/b", "/c"].map(PathBuf::from);
    for (registry, want) in [
        ("one.example", "https://one-a"),
        ("two.example:5000", "https://two-b"),
        ("three.example", "https://default-b"),
    ] {
        let settings = load(&root, &dirs, registry).unwrap();
        assert_eq!(settings.server.unwrap().url, want, "{registry}");
    }
}

/// containerd pulls without a file that it cannot use.
#[test]
fn a_hosts_toml_that_is_not_valid_is_passed_over_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("r.example");
    fs::create_dir(&dir).unwrap();
    for name in ["ca.crt", "alone.cert", "client.cert", "client.key"] {
        fs::write(dir.join(name), "").unwrap();
    }
    let root = Root::open(directory.path()).unwrap();
    for (text, want) in [
        ("", None),
        (
            "server = 1",
            Some("/r.example/hosts.toml: server must be a string"),
        ),
        ("[", Some("/r.example/hosts.toml, line 1, is not TOML: ")),
        (
            "[host.\"ftp://x\"]",
            Some("\"ftp://x\" is not a registry URL: only http and https are supported"),
        ),
    ] {
        fs::write(dir.join("hosts.toml"), text).unwrap();
        let settings = load(&root, &["/".into()], "r.example").unwrap();
        let server = settings.server.unwrap();
        let file = |name: &str| Path::new("/r.example").join(name);
        assert_eq!(server.ca, [file("ca.crt")]);
        let pair = (file("client.cert"), Some(file("client.key")));
        assert_eq!(server.client, [(file("alone.cert"), None), pair]);
        match want {
            None => assert!(settings.problems.is_empty()),
            Some(want) => assert!(
                settings.problems[0].starts_with(want),
                "{:?}",
                settings.problems
            ),
        }
    }
}
