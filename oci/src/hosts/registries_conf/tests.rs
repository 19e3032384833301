use super::*;

/// The URLs that an image is asked for at, in order.
fn urls(text: &str, name: &str, by_digest: bool) -> Result<Vec<String>, String> {
    let conf = parse(text, Path::new("/r.conf")).map_err(|error| error.to_string())?;
    let settings = conf
        .settings(name, by_digest)
        .map_err(|error| error.to_string())?;
    let (registry, repository) = name.split_once('/').unwrap();
    let endpoints =
        super::super::endpoints(registry, &settings.unwrap_or_default(), false).unwrap();
    Ok(endpoints
        .iter()
        .map(|it| it.url(registry, repository, "x").to_string())
        .collect())
}

/// The example in containers-registries.conf(5), in our words.
const EXAMPLE: &str = r#"
unqualified-search-registries = ["example.com"]
short-name-mode = "enforcing"

[[registry]]
prefix = "example.com/foo"
insecure = false
blocked = false
location = "internal-registry-for-example.com/bar"

[[registry.mirror]]
location = "example-mirror-0.local/mirror-for-foo"

[[registry.mirror]]
location = "example-mirror-1.local/mirrors/foo"
insecure = true

[[registry]]
location = "registry.com"

[[registry.mirror]]
location = "mirror.registry.com"

[aliases]
"fedora" = "registry.fedoraproject.org/fedora"
"#;

#[test]
fn the_documented_example_is_read() {
    let got = urls(EXAMPLE, "example.com/foo/image", false).unwrap();
    assert_eq!(
        got,
        [
            "https://example-mirror-0.local/v2/mirror-for-foo/image/x",
            "https://example-mirror-1.local/v2/mirrors/foo/image/x",
            "http://example-mirror-1.local/v2/mirrors/foo/image/x",
            "https://internal-registry-for-example.com/v2/bar/image/x",
        ]
    );
    let got = urls(EXAMPLE, "registry.com/team/image", false).unwrap();
    assert_eq!(
        got,
        [
            "https://mirror.registry.com/v2/team/image/x",
            "https://registry.com/v2/team/image/x",
        ]
    );
    let got = urls(EXAMPLE, "other.com/image", false).unwrap();
    assert_eq!(got, ["https://other.com/v2/image/x"]);
}

#[test]
fn prefixes_match_as_cri_o_matches_them() {
    let text = |prefix: &str, location: &str| {
        format!("[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{location}\"\n")
    };
    let table = [
        ("r.io", "l.io", "r.io/a", "https://l.io/v2/a/x"),
        ("r.io/", "l.io/", "r.io/a", "https://l.io/v2/a/x"),
        ("r.io/a", "l.io/b", "r.io/a", "https://l.io/v2/b/x"),
        ("r.io/a", "l.io/b", "r.io/ab", "https://r.io/v2/ab/x"),
        ("r.io/a", "l.io", "r.io/a/b", "https://l.io/v2/b/x"),
        (
            "r.io",
            "l.io:5000/q",
            "r.io/a",
            "https://l.io:5000/v2/q/a/x",
        ),
        ("r.io", "l.io", "r.io.evil/a", "https://r.io.evil/v2/a/x"),
        ("r.io", "l.io", "r.io:5000/a", "https://l.io:5000/v2/a/x"),
        (
            "r.io",
            "docker.io/q",
            "r.io/a",
            "https://registry-1.docker.io/v2/q/a/x",
        ),
        ("r.io", "", "r.io/a", "https://r.io/v2/a/x"),
        ("", "r.io", "r.io/a", "https://r.io/v2/a/x"),
        ("*.r.io", "l.io/q", "b.r.io/a", "https://l.io/v2/q/a/x"),
        ("*.r.io", "l.io", "c.b.r.io/a", "https://l.io/v2/a/x"),
        ("*.r.io", "", "b.r.io/a", "https://b.r.io/v2/a/x"),
        ("*.r.io", "l.io", "r.io/a", "https://r.io/v2/a/x"),
        ("*.r.io", "l.io", "x.io/b.r.io", "https://x.io/v2/b.r.io/x"),
    ];
    for (prefix, location, name, want) in table {
        let got = urls(&text(prefix, location), name, false).unwrap();
        assert_eq!(got, [want], "{prefix} -> {location}: {name}");
    }
    let both = text("r.io", "short") + &text("r.io/a", "long") + &text("r", "shorter");
    assert_eq!(
        urls(&both, "r.io/a/b", false).unwrap(),
        ["https://long/v2/b/x"]
    );
}

#[test]
fn mirrors_may_be_for_digests_or_tags_alone() {
    let table = [
        ("", "", true, true),
        ("mirror-by-digest-only = true", "", false, true),
        ("", "pull-from-mirror = \"all\"", true, true),
        ("", "pull-from-mirror = \"digest-only\"", false, true),
        ("", "pull-from-mirror = \"tag-only\"", true, false),
    ];
    for (registry, mirror, by_tag, by_digest) in table {
        let text = format!(
            "[[registry]]\nlocation = \"r.io\"\n{registry}\n[[registry.mirror]]\nlocation = \"m.io\"\n{mirror}\n"
        );
        for (is_digest, want) in [(false, by_tag), (true, by_digest)] {
            let got = urls(&text, "r.io/a", is_digest).unwrap();
            assert_eq!(got.len() == 2, want, "{registry} {mirror} {is_digest}");
        }
    }
}

#[test]
fn blocked_and_insecure_registries_of_both_versions() {
    let blocked = "[[registry]]\nprefix = \"r.io/bad\"\nblocked = true\n";
    let error = urls(blocked, "r.io/bad/a", false).unwrap_err();
    assert_eq!(error, "r.io/bad is blocked by /r.conf");
    assert!(urls(blocked, "r.io/good/a", false).is_ok());
    let old = "[registries.search]\nregistries = ['docker.io']\n[registries.insecure]\nregistries = ['i.io']\n\
               [registries.block]\nregistries = ['b.io']\n";
    assert_eq!(
        urls(old, "i.io/a", false).unwrap(),
        ["https://i.io/v2/a/x", "http://i.io/v2/a/x"]
    );
    assert_eq!(
        urls(old, "b.io/a", false).unwrap_err(),
        "b.io is blocked by /r.conf"
    );
}

#[test]
fn a_later_file_replaces_a_registry_with_the_same_prefix() {
    let parse = |text: &str| parse(text, Path::new("/r.conf")).unwrap();
    let mut conf = parse(
        "[[registry]]\nlocation = \"r.io\"\nblocked = true\n[[registry]]\nlocation = \"s.io\"",
    );
    conf.lay_over(parse(
        "[[registry]]\nprefix = \"r.io\"\nlocation = \"l.io\"",
    ));
    let server = |name: &str| {
        let settings = conf.settings(name, false).unwrap().unwrap();
        settings.server.unwrap().url
    };
    assert_eq!(server("r.io/a"), "https://l.io");
    assert_eq!(server("s.io/a"), "https://s.io");
}

#[test]
fn what_is_wrong_is_named() {
    for (text, want) in [
        (
            "[[registry]]",
            "registry.location must be the name of a registry",
        ),
        (
            "[[registry]]\nlocation = \"https://r.io\"",
            "registry \"https://r.io\" must be written without a scheme",
        ),
        (
            "[[registry]]\nlocation = \"r.io\"\n[[registry.mirror]]\n",
            "registry \"r.io\": mirror.location must be",
        ),
        (
            "[[registry]]\nlocation = \"r.io\"\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"never\"",
            "mirror.pull-from-mirror must be all, digest-only or tag-only",
        ),
        ("[[registry]]\nlocation = 1", "line 2, is not TOML"),
    ] {
        let error = urls(text, "r.io/a", false).unwrap_err();
        assert!(
            error.starts_with("/r.conf") && error.contains(want),
            "{error}"
        );
    }
}

#[test]
fn values_of_a_wrong_type_are_not_in_messages() {
    let text = "[[registry]]\nlocation = \"r.io\"\ninsecure = \"hunter2\"\n";
    let error = urls(text, "r.io/a", false).unwrap_err();
    assert_eq!(error, "/r.conf, line 3, is not TOML: expected a boolean");
}

#[test]
fn a_prefix_may_have_a_tag_or_a_digest() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let by_digest = format!("r.io/a@{digest}");
    let both = format!("r.io/a:1@{digest}");
    for (prefix, reference, blocked) in [
        ("r.io/a:1", "r.io/a:1", true),
        ("r.io/a:1", "r.io/a:12", false),
        ("r.io/a:1", both.as_str(), true),
        ("r.io/a", "r.io/a:1", true),
        ("r.io/a", by_digest.as_str(), true),
        (by_digest.as_str(), by_digest.as_str(), true),
        ("r.io/a", "r.io/ab:1", false),
        ("*.io/a:1", "r.io/a:1", true),
    ] {
        let text = format!("[[registry]]\nlocation = \"{prefix}\"\nblocked = true\n");
        let conf = parse(&text, Path::new("/r.conf")).unwrap();
        let settings = conf.settings(reference, reference.contains('@'));
        let is_blocked = matches!(settings, Err(HostsError::Blocked { .. }));
        assert_eq!(is_blocked, blocked, "{prefix} {reference}: {settings:?}");
    }
    // The tag is no part of the name on the server.
    for (location, want) in [("l.io/b", "b"), ("l.io:5000/b", "b"), ("r.io/a:1", "a")] {
        let text = format!("[[registry]]\nprefix = \"r.io/a:1\"\nlocation = \"{location}\"\n");
        let conf = parse(&text, Path::new("/r.conf")).unwrap();
        let server = conf
            .settings("r.io/a:1", false)
            .unwrap()
            .unwrap()
            .server
            .unwrap();
        assert_eq!(server.repository.as_deref(), Some(want), "{location}");
    }
}
