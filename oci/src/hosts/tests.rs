#![expect(clippy::disallowed_methods, reason = "tests make files")]

use super::*;

fn bases(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints
        .iter()
        .map(|endpoint| endpoint.url("r.io", "team/p", "x").to_string())
        .collect()
}

#[test]
fn a_registry_without_settings_is_its_own_server() {
    let table = [
        ("r.io", false, "https://r.io"),
        ("r.io:444", true, "http://r.io:444"),
        ("docker.io", false, "https://registry-1.docker.io"),
        ("localhost.evil.io", false, "https://localhost.evil.io"),
        // containerd's table of ports: 80 is plain, none and 443 are TLS, any other one may be both.
        (
            "localhost:5000",
            false,
            "https://localhost:5000 unverified, http://localhost:5000",
        ),
        (
            "127.0.0.1:5000",
            false,
            "https://127.0.0.1:5000 unverified, http://127.0.0.1:5000",
        ),
        (
            "[::1]:5000",
            false,
            "https://[::1]:5000 unverified, http://[::1]:5000",
        ),
        ("localhost:80", false, "http://localhost"),
        ("localhost:443", false, "https://localhost unverified"),
        ("localhost", false, "https://localhost unverified"),
        ("[::1]", false, "https://[::1] unverified"),
        ("localhost:5000", true, "http://localhost:5000"),
    ];
    for (registry, insecure, want) in table {
        let got = endpoints(registry, &RegistrySettings::default(), insecure).unwrap();
        let urls = got.iter().map(|it| {
            let url = it.url(registry, "team/p", "x").to_string();
            let server = url.strip_suffix("/v2/team/p/x").unwrap();
            let verified = if it.settings.skip_verify {
                " unverified"
            } else {
                ""
            };
            format!("{server}{verified}")
        });
        assert_eq!(urls.collect::<Vec<_>>().join(", "), want, "{registry}");
    }
}

/// A registry on the machine itself that has certificates in its directory of hosts is asked with them, and as without.
#[test]
fn a_local_registry_with_settings_but_no_url_may_speak_plain_http() {
    let settings = parse("capabilities = [\"pull\"]", Path::new("/d")).unwrap();
    let got = endpoints("localhost:5000", &settings, false).unwrap();
    let urls = got
        .iter()
        .map(|it| (it.base.scheme(), it.settings.skip_verify));
    assert_eq!(urls.collect::<Vec<_>>(), [("https", true), ("http", false)]);
}

#[test]
fn hosts_toml_is_read_as_containerd_reads_it() {
    let text = r#"
server = "https://r.io"
ca = "own.crt"
[host."https://z-first.io"]
  capabilities = ["pull"]
  ca = ["a.crt", "/abs.crt"]
  client = [["c.cert", "c.key"], ["both.pem"]]
  [host."https://z-first.io".header]
    x-a = ["1", "2"]
    x-b = "3"
[host."http://plain:81/prefix"]
[host."https://over.io/api/registry"]
  override_path = true
  [host."https://over.io/api/registry".rewrite]
    "^team/(.*)" = "mirror/$1"
[host."slash.io/v2/"]
"#;
    let settings = parse(text, Path::new("/d")).unwrap();
    let first = &settings.hosts[0];
    assert_eq!(
        first.ca,
        [PathBuf::from("/d/a.crt"), PathBuf::from("/abs.crt")]
    );
    let both = (PathBuf::from("/d/both.pem"), None);
    assert_eq!(
        first.client,
        [("/d/c.cert".into(), Some("/d/c.key".into())), both]
    );
    assert_eq!(first.header["x-a"], ["1", "2"]);
    assert_eq!(
        settings.server.as_ref().unwrap().ca,
        [PathBuf::from("/d/own.crt")]
    );
    let endpoints = endpoints("r.io", &settings, false).unwrap();
    assert_eq!(
        bases(&endpoints),
        [
            "https://z-first.io/v2/team/p/x?ns=r.io",
            "http://plain:81/prefix/v2/team/p/x?ns=r.io",
            "https://over.io/api/registry/mirror/p/x?ns=r.io",
            "https://slash.io/v2/team/p/x?ns=r.io",
            "https://r.io/v2/team/p/x",
        ]
    );
    let serves: Vec<_> = endpoints
        .iter()
        .map(|it| (it.serves(false), it.serves(true)))
        .collect();
    assert_eq!(serves[0], (false, true));
    assert!(serves[1..].iter().all(|&it| it == (true, true)));
}

#[test]
fn plain_servers_with_settings_of_tls_are_asked_over_tls_first() {
    let urls = |url: &str, more: &str| {
        let text = format!("server = \"https://r.io\"\n[host.\"{url}\"]\n{more}\n");
        let settings = parse(&text, Path::new("/d")).unwrap();
        let mut found = bases(&endpoints("r.io", &settings, false).unwrap());
        assert_eq!(found.pop().unwrap(), "https://r.io/v2/team/p/x");
        let base = |url: &String| url.split("/v2").next().unwrap().to_owned();
        found.iter().map(base).collect::<Vec<_>>().join(" ")
    };
    let both = "https://m.io:5000 http://m.io:5000";
    for (url, more, want) in [
        ("http://m.io:5000", "", "http://m.io:5000"),
        ("http://m.io:5000", "skip_verify = true", both),
        ("http://m.io:5000", "ca = 'a.crt'", both),
        ("http://m.io:5000", "client = 'a.pem'", both),
        (
            "http://m.io:5000",
            "skip_verify = false",
            "http://m.io:5000",
        ),
        ("http://m.io:80", "skip_verify = true", "http://m.io"),
        ("http://m.io", "skip_verify = true", "http://m.io"),
        ("http://[::1]", "skip_verify = true", "http://[::1]"),
        (
            "http://[::1]:1",
            "skip_verify = true",
            "https://[::1]:1 http://[::1]:1",
        ),
        (
            "https://m.io:5000",
            "skip_verify = true",
            "https://m.io:5000",
        ),
    ] {
        assert_eq!(urls(url, more), want, "{url} {more}");
    }
}

#[test]
fn details_are_understood_as_containerd_understands_them() {
    let urls = |registry: &str, text: &str| {
        let settings = parse(text, Path::new("/d")).unwrap();
        let found = endpoints(registry, &settings, false).unwrap();
        let urls = found
            .iter()
            .map(|it| it.url(registry, "a/b", "x").to_string());
        (urls.collect::<Vec<_>>().join(" "), found[0].serves(false))
    };
    let m = "[host.'https://m.io']\n";
    for (registry, text, want, by_tag) in [
        // A server is told the registry if it is another one.
        (
            "r.io",
            "server = 'https://r.io'",
            "https://r.io/v2/a/b/x",
            true,
        ),
        (
            "r.io",
            "server = 'https://o.io'",
            "https://o.io/v2/a/b/x?ns=r.io",
            true,
        ),
        (
            "r.io",
            "server = 'https://r.io:444'",
            "https://r.io:444/v2/a/b/x?ns=r.io",
            true,
        ),
        (
            "docker.io",
            "",
            "https://registry-1.docker.io/v2/a/b/x",
            true,
        ),
        (
            "docker.io",
            "server = 'https://registry-1.docker.io'",
            "https://registry-1.docker.io/v2/a/b/x",
            true,
        ),
        ("r.io:443", "", "https://r.io/v2/a/b/x", true),
        // Every match is replaced.
        (
            "r.io",
            &format!("{m}[host.'https://m.io'.rewrite]\n'[ab]' = 'c'"),
            "https://m.io/v2/c/c/x?ns=r.io https://r.io/v2/a/b/x",
            true,
        ),
        // Capabilities are written in any case.
        (
            "r.io",
            &format!("{m}capabilities = ['Pull']"),
            "https://m.io/v2/a/b/x?ns=r.io https://r.io/v2/a/b/x",
            false,
        ),
        (
            "r.io",
            &format!("{m}capabilities = ['Pull', 'Resolve']"),
            "https://m.io/v2/a/b/x?ns=r.io https://r.io/v2/a/b/x",
            true,
        ),
    ] {
        assert_eq!(urls(registry, text), (want.to_owned(), by_tag), "{text}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let dir = Path::new("/d");
    let error = |text: &str| parse(text, dir).unwrap_err().to_string();
    assert_eq!(
        error("server = 1"),
        "/d/hosts.toml: server must be a string"
    );
    assert_eq!(
        error("[host.\"a\"]\nca = 1"),
        "/d/hosts.toml: host.\"a\".ca must be a string or an array of strings"
    );
    // The line is not shown, because it may have a secret in it.
    let header = "server = \"x\"\n[header]\nauthorization = \"hunter2\n";
    let text = error(header);
    assert!(
        text.starts_with("/d/hosts.toml, line 3, is not TOML: ") && !text.contains("hunter2"),
        "{text}"
    );
    let url = |url: &str| {
        let host = HostSettings {
            url: url.to_owned(),
            ..HostSettings::default()
        };
        let settings = RegistrySettings {
            hosts: vec![host],
            ..RegistrySettings::default()
        };
        endpoints("r.io", &settings, false).unwrap_err().to_string()
    };
    assert_eq!(
        url("ftp://x"),
        "\"ftp://x\" is not a registry URL: only http and https are supported"
    );
    assert_eq!(
        url("https://u:p@x"),
        "\"***@x\" is not a registry URL: credentials belong in a pull secret"
    );
}

#[test]
fn directories_are_found_with_ports_defaults_and_certificates_alone() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let server = |registry: &str| {
        let root = crate::root::Root::open("/").unwrap();
        let settings = load(&root, &[dir.path().to_path_buf()], registry).unwrap();
        settings.server.map(|server| (server.url, server.ca.len()))
    };
    assert_eq!(server("r.io"), None);
    write("_default/hosts.toml", "server = \"https://default\"");
    write("a.io:5000/hosts.toml", "server = \"https://colon\"");
    write("b.io_5000_/hosts.toml", "server = \"https://underscore\"");
    write("c.io/ca.crt", "");
    assert_eq!(server("r.io"), Some(("https://default".into(), 0)));
    assert_eq!(server("a.io:5000"), Some(("https://colon".into(), 0)));
    assert_eq!(server("b.io:5000"), Some(("https://underscore".into(), 0)));
    assert_eq!(server("c.io"), Some((String::new(), 1)));
}

#[test]
fn settings_are_printed_without_their_secrets() {
    let settings = RegistrySettings {
        server: Some(HostSettings {
            url: "https://user:hunter2@r.io".to_owned(),
            header: [("Authorization".to_owned(), vec!["hunter2".to_owned()])].into(),
            ..HostSettings::default()
        }),
        ..RegistrySettings::default()
    };
    let text = format!("{settings:?}");
    assert!(
        !text.contains("hunter2") && text.contains("Authorization"),
        "{text}"
    );
}
