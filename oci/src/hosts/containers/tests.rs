#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;

use super::*;

#[test]
fn files_and_certificates_of_cri_o_are_found() {
    let host = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = host.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let root = Root::open(host.path()).unwrap();
    let load = |image: &str| load(&root, &image.parse().unwrap());
    let urls = |image: &str| {
        let settings = load(image).unwrap();
        let hosts = settings.hosts.into_iter().chain(settings.server);
        hosts.map(|it| (it.url, it.ca.len())).collect::<Vec<_>>()
    };
    let is = |url: &str, ca: usize| (url.to_owned(), ca);
    assert_eq!(urls("r.io/a:1"), [is("", 0)]);
    write(
        "usr/share/containers/registries.conf",
        "[[registry]]\nlocation = \"r.io\"\nblocked = true\n",
    );
    assert_eq!(
        load("r.io/a:1").unwrap_err().to_string(),
        "r.io is blocked by /usr/share/containers/registries.conf"
    );
    write(
        "etc/containers/registries.conf",
        "[[registry]]\nlocation = \"r.io\"\n",
    );
    assert_eq!(urls("r.io/a:1"), [is("https://r.io", 0)]);
    write(
        "etc/containers/registries.conf.d/50-mirror.conf",
        "[[registry]]\nlocation = \"r.io\"\n[[registry.mirror]]\nlocation = \"m.io:5000\"\npull-from-mirror = \"digest-only\"",
    );
    write("etc/containers/registries.conf.d/60.ignored", "[");
    write("etc/containers/certs.d/m.io:5000/ca.crt", "");
    write("etc/docker/certs.d/m.io:5000/one.crt", "");
    write("etc/docker/certs.d/m.io:5000/two.crt", "");
    write("etc/docker/certs.d/r.io/one.crt", "");
    write("etc/docker/certs.d/r.io/two.crt", "");
    let digest = format!("r.io/a@sha256:{}", "0".repeat(64));
    assert_eq!(
        urls(&digest),
        [is("https://m.io:5000", 1), is("https://r.io", 2)]
    );
    assert_eq!(urls("r.io/a:1"), [is("https://r.io", 2)]);
    // A registry that no file names has certificates as well.
    write("etc/docker/certs.d/other.io/ca.crt", "");
    assert_eq!(urls("other.io/a:1"), [is("", 1)]);
    let docker = load_docker(&root, "other.io").unwrap();
    assert_eq!(docker.server.unwrap().ca.len(), 1);
    write("etc/containers/registries.conf.d/70.conf", "[");
    let error = load("r.io/a:1").unwrap_err().to_string();
    assert!(
        error.starts_with("/etc/containers/registries.conf.d/70.conf, line 1, is not TOML"),
        "{error}"
    );
}

#[test]
fn dockers_mirrors_and_insecure_registries_are_used() {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(host.path().join("etc/docker")).unwrap();
    let write = |text: &str| fs::write(host.path().join("etc/docker/daemon.json"), text).unwrap();
    let root = Root::open(host.path()).unwrap();
    let urls = |registry: &str| {
        let settings = load_docker(&root, registry).unwrap();
        let endpoints = crate::hosts::endpoints(registry, &settings, false).unwrap();
        let urls = endpoints.iter().map(|it| it.base.to_string());
        urls.collect::<Vec<_>>()
    };
    write(
        r#"{"registry-mirrors": ["https://m.io", "http://n.io:5000/"],
        "insecure-registries": ["r.io:5000", "10.0.0.0/8"], "log-level": "warn"}"#,
    );
    let hub = [
        "https://m.io/v2",
        "http://n.io:5000/v2",
        "https://registry-1.docker.io/v2",
    ];
    let table: [(&str, &[&str]); 6] = [
        ("docker.io", &hub),
        (
            "r.io:5000",
            &["https://r.io:5000/v2", "http://r.io:5000/v2"],
        ),
        ("r.io", &["https://r.io/v2"]),
        (
            "10.1.2.3:5000",
            &["https://10.1.2.3:5000/v2", "http://10.1.2.3:5000/v2"],
        ),
        ("11.1.2.3", &["https://11.1.2.3/v2"]),
        ("other.io", &["https://other.io/v2"]),
    ];
    for (registry, want) in table {
        assert_eq!(urls(registry), want, "{registry}");
    }
    write("{");
    assert_eq!(urls("docker.io"), hub[2..]);
    let problems = load_docker(&root, "docker.io").unwrap().problems;
    assert!(
        problems[0].starts_with("/etc/docker/daemon.json: "),
        "{problems:?}"
    );
}
