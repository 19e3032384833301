use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn durations_are_read_as_go_writes_them() {
    let table = [
        ("12h", Some(43_200_000)),
        ("1h30m0s", Some(5_400_000)),
        ("1.5s", Some(1500)),
        ("300ms", Some(300)),
        ("0", Some(0)),
        ("", None),
        ("5", None),
        ("1x", None),
        ("-1s", None),
    ];
    for (text, want) in table {
        assert_eq!(go_duration(text), want.map(Duration::from_millis), "{text}");
    }
}

/// A host with one plugin: a shell script that counts its runs.
fn host(script: &str, cache: &str) -> (tempfile::TempDir, PluginConfig) {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
         - name: cloud\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
         matchImages: ['*.cloud.io', 'r.io/team']\n  defaultCacheDuration: {cache}\n  \
         args: [get-credentials]\n  env: [{{name: REGION, value: eu}}]\n"
    );
    std::fs::write(dir.path().join("config.yaml"), config).unwrap();
    let bin = dir.path().join("cloud");
    let runs = dir.path().join("runs");
    std::fs::write(
        &bin,
        format!("#!/bin/sh\necho run >> {}\n{script}", runs.display()),
    )
    .unwrap();
    std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = PluginConfig {
        config: dir.path().join("config.yaml"),
        bin_dir: dir.path().to_path_buf(),
        prefix: vec!["/usr/bin/env".into()],
        timeout: Duration::from_secs(5),
    };
    (dir, config)
}

fn runs(dir: &tempfile::TempDir) -> usize {
    std::fs::read_to_string(dir.path().join("runs")).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn a_plugin_is_asked_once_per_cache_key_and_only_for_what_it_matches() {
    // The plugin answers with its argument, its variable and its request, so that the test can check them.
    let script = r#"
read -r request
image=$(printf %s "$request" | sed 's/.*"image":"\([^"]*\)".*/\1/')
printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",'
printf '"cacheKeyType":"Registry","cacheDuration":"1h","auth":{"*.cloud.io":{"username":"%s","password":"%s"}}}' "$1-$REGION" "$image"
"#;
    let (dir, config) = host(script, "0s");
    let plugins = Plugins::new(config, None);
    let found = plugins
        .credentials("a.cloud.io/x")
        .await
        .matching("a.cloud.io/x");
    let want = Login::Basic {
        username: "get-credentials-eu".into(),
        password: "a.cloud.io/x".into(),
    };
    assert_eq!(found, [want]);
    assert_eq!(
        plugins
            .credentials("a.cloud.io/y")
            .await
            .matching("a.cloud.io/y")
            .len(),
        1
    );
    assert_eq!(runs(&dir), 1, "cached by registry");
    plugins.credentials("b.cloud.io/y").await;
    assert_eq!(runs(&dir), 2, "another registry");
    assert_eq!(
        plugins
            .credentials("other.io/x")
            .await
            .matching("other.io/x"),
        []
    );
    assert_eq!(runs(&dir), 2, "no match, not run");
}

#[tokio::test]
async fn a_plugin_that_fails_hangs_or_talks_nonsense_is_passed_over() {
    let table = [
        (
            "exit 3",
            "credential provider cloud ended with exit status: 3",
        ),
        (
            "sleep 60",
            "credential provider cloud did not answer within 0 s",
        ),
        (
            "echo '{\"password\": \"hunter2\"}'",
            "credential provider cloud answered something that is not a v1 response",
        ),
    ];
    for (script, want) in table {
        let (_dir, mut config) = host(script, "1m");
        config.timeout = Duration::from_millis(if script.starts_with("sleep") {
            200
        } else {
            5000
        });
        let plugins = Plugins::new(config, None);
        let error = plugins
            .ask(&plugins.providers().unwrap()[0], "a.cloud.io/x")
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), want);
        assert!(!format!("{error:?}").contains("hunter"));
        assert_eq!(
            plugins
                .credentials("a.cloud.io/x")
                .await
                .matching("a.cloud.io/x"),
            []
        );
    }
}

/// The kubelet may be configured after the agent has started. A configuration of an unknown version must not prevent
/// a pull.
#[tokio::test]
async fn the_configuration_is_read_for_each_image() {
    let answer = r#"printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","auth":{"a.cloud.io":{"username":"u","password":"p"}}}'"#;
    let (_dir, config) = host(answer, "0s");
    let (file, plugins) = (config.config.clone(), Plugins::new(config, None));
    let found = async || {
        plugins
            .credentials("a.cloud.io/x")
            .await
            .matching("a.cloud.io/x")
    };
    let whole = std::fs::read_to_string(&file).unwrap();
    assert_eq!(found().await.len(), 1);
    let old = whole.replace("k8s.io/v1\n", "k8s.io/v1beta1\n");
    for text in [&old, "kind: Something\n", "{"] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(found().await, [], "{text}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(found().await, []);
    std::fs::write(&file, whole).unwrap();
    assert_eq!(found().await.len(), 1);
}

/// In a pod, the files of the host are below a mount point, which users do not know.
#[test]
fn the_configuration_of_a_host_is_read_and_named_as_the_host_has_it() {
    const PATH: &str = "/etc/kubernetes/providers";
    let (host, config) = host("", "1h");
    let at = |path: &str| host.path().join(path.trim_start_matches('/'));
    std::fs::create_dir_all(at(PATH)).unwrap();
    let plugins = |path: &str| {
        let config = PluginConfig {
            config: path.into(),
            ..config.clone()
        };
        Plugins::new(config, Some(Root::open_host(host.path()).unwrap()))
    };
    assert_eq!(plugins("/config.yaml").providers().unwrap().len(), 1);
    std::os::unix::fs::symlink("/config.yaml", at(PATH).join("cloud.yaml")).unwrap();
    std::fs::write(at(PATH).join("notes.txt"), "{").unwrap();
    assert_eq!(plugins(PATH).providers().unwrap().len(), 1);
    std::fs::write(at(PATH).join("wrong.json"), "{}").unwrap();
    for (path, want) in [
        (PATH, "/etc/kubernetes/providers/wrong.json: missing field"),
        ("/nowhere", "cannot read /nowhere: No such file"),
    ] {
        let error = chain(&plugins(path).providers().unwrap_err());
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let provider = |line: &str| {
        format!(
            "kind: CredentialProviderConfig\nproviders:\n- {{name: a, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [], defaultCacheDuration: 1h, {line}}}"
        )
    };
    assert!(parse(&provider("args: []")).is_ok());
    let table = [
        (
            "kind: Other\nproviders: []".to_owned(),
            "kind is \"Other\", must be CredentialProviderConfig",
        ),
        (
            provider("").replace("name: a", "name: ../a"),
            "provider name \"../a\" is not the name of a file",
        ),
        (
            provider("").replace("1h", "soon"),
            "provider a: defaultCacheDuration is not a duration",
        ),
        (
            provider("").replace("io/v1,", "io/v1alpha1,"),
            "provider a has apiVersion \"credentialprovider.kubelet.k8s.io/v1alpha1\", only \"credentialprovider.kubelet.k8s.io/v1\" is supported",
        ),
    ];
    for (text, want) in table {
        assert_eq!(parse(&text).unwrap_err(), want);
    }
}
