#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;

use super::*;

fn of(text: &str) -> Registry {
    registry(&text.parse().unwrap())
}

/// The forms that containerd's documentation has, in our words.
#[test]
fn the_directories_are_found_in_every_version_of_the_file() {
    let table = [
        (
            "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'",
            vec!["/etc/containerd/certs.d", "/etc/docker/certs.d"],
        ),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"",
            vec!["/etc/containerd/certs.d"],
        ),
        (
            "[plugins.cri.registry]\nconfig_path = \" /a : /b:\"",
            vec!["/a", "/b"],
        ),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]",
            vec![],
        ),
        ("[plugins.cri.registry]\nconfig_path = 1", vec![]),
        ("", vec![]),
    ];
    for (text, want) in table {
        let dirs = of(text).dirs;
        assert_eq!(
            dirs,
            want.iter().map(PathBuf::from).collect::<Vec<_>>(),
            "{text}"
        );
    }
}

#[test]
fn mirrors_logins_and_certificates_of_old_files_are_used() {
    let registry = of(r#"
version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
  endpoint = ["https://mirror.example", "http://plain.example:5000/hub"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]
  endpoint = ["https://any.example"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.example".tls]
  ca_file = "/etc/ca.pem"
  cert_file = "/etc/cert.pem"
  key_file = "/etc/key.pem"
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example:5000".tls]
  insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example:5000".auth]
  username = "user"
  password = "hunter2"
[plugins."io.containerd.grpc.v1.cri".registry.configs."t.example".auth]
  auth = "dTpw"
"#);
    let hub = registry.settings("docker.io").unwrap();
    let urls: Vec<_> = hub.hosts.iter().map(|it| it.url.as_str()).collect();
    assert_eq!(
        urls,
        ["https://mirror.example", "http://plain.example:5000/hub"]
    );
    assert_eq!(hub.hosts[0].ca, [Path::new("/etc/ca.pem")]);
    let pair = ("/etc/cert.pem".into(), Some("/etc/key.pem".into()));
    assert_eq!(hub.hosts[0].client, [pair]);
    let own = registry.settings("r.example:5000").unwrap();
    assert_eq!(own.hosts[0].url, "https://any.example");
    assert!(own.server.unwrap().skip_verify);
    let credentials = registry.credentials();
    for (name, want) in [
        ("r.example:5000/a", 1),
        ("t.example/a", 1),
        ("x.example/a", 0),
    ] {
        let found = credentials.matching(name);
        assert_eq!(found.len(), want, "{name}");
        assert!(
            found
                .iter()
                .all(|it| &*it.source == "the configuration of containerd")
        );
    }
    assert!(!format!("{registry:?}{credentials:?}").contains("hunter2"));
    assert_eq!(of("").settings("r.example"), None);
}

#[test]
fn imported_files_are_laid_over_the_first() {
    let host = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = host.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let section = |path: &str| {
        format!("[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{path}\"\n")
    };
    let main = format!(
        "version = 2\nimports = [\"conf.d/*.toml\", \"/opt/more.toml\", \"/missing.toml\"]\n{}\n[grpc]\naddress = \"/run/x.sock\"\n",
        section("/first")
    );
    write("etc/containerd/config.toml", &main);
    let root = Root::open(host.path()).unwrap();
    let path = Path::new("/etc/containerd/config.toml");
    let dirs = || read(&root, path).unwrap().dirs;
    assert_eq!(dirs(), [Path::new("/first")]);
    assert_eq!(address(&root, path).unwrap(), "/run/x.sock");
    write("etc/containerd/conf.d/10.toml", &section("/second"));
    write("etc/containerd/conf.d/README", "[");
    assert_eq!(dirs(), [Path::new("/second")]);
    // A file that imports the first one again does not hang.
    let more = format!(
        "imports = [\"/etc/containerd/config.toml\"]\n{}",
        section("/third")
    );
    write("opt/more.toml", &more);
    assert_eq!(dirs(), [Path::new("/third")]);
    write("opt/more.toml", "[");
    let error = read(&root, path).unwrap_err().to_string();
    assert!(
        error.starts_with("/opt/more.toml, line 1, is not TOML"),
        "{error}"
    );
    assert_eq!(
        read(&root, Path::new("/nowhere")).unwrap(),
        Registry::default()
    );
}

#[test]
fn endpoints_of_old_files_are_asked_as_containerd_asks_them() {
    let urls = |endpoints: &str| {
        let registry = of(&format!(
            "[plugins.cri.registry.mirrors.\"r.example:5000\"]\nendpoint = [{endpoints}]\n"
        ));
        let settings = registry.settings("r.example:5000").unwrap();
        let found = crate::hosts::endpoints("r.example:5000", &settings, false).unwrap();
        let urls = found.iter().map(|it| {
            let mut url = it.url("r.example:5000", "a", "x");
            url.set_query(None);
            url.to_string()
        });
        assert_eq!(found.iter().filter(|it| it.is_origin).count(), 1);
        urls.collect::<Vec<_>>().join(" ")
    };
    let own = "https://r.example:5000/v2/a/x";
    for (endpoints, want) in [
        ("", own.to_owned()),
        (
            "'https://m.example'",
            format!("https://m.example/v2/a/x {own}"),
        ),
        // A path is the whole path.
        (
            "'https://m.example/hub'",
            format!("https://m.example/hub/a/x {own}"),
        ),
        (
            "'https://m.example/v2/hub'",
            format!("https://m.example/v2/hub/a/x {own}"),
        ),
        // Without a scheme.
        ("'m.example'", format!("https://m.example/v2/a/x {own}")),
        (
            "'localhost:5000'",
            format!("http://localhost:5000/v2/a/x {own}"),
        ),
        ("'127.0.0.1'", format!("http://127.0.0.1/v2/a/x {own}")),
        ("'[::1]'", format!("http://[::1]/v2/a/x {own}")),
        // The registry itself, in the order that the administrator has chosen.
        (
            "'http://r.example:5000'",
            "http://r.example:5000/v2/a/x".to_owned(),
        ),
        (
            "'http://r.example:5000', 'https://m.example'",
            "http://r.example:5000/v2/a/x https://m.example/v2/a/x".to_owned(),
        ),
    ] {
        assert_eq!(urls(endpoints), want, "{endpoints}");
    }
}
