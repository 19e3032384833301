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

/// Asks the plugins of a host, and counts the logins for an image.
struct Asker {
    config: PluginConfig,
    plugins: Plugins,
}

impl Asker {
    fn new(config: PluginConfig) -> Self {
        let plugins = Plugins::new(Root::open("/").unwrap());
        Self { config, plugins }
    }

    async fn ask(&self, image: &str) -> Credentials {
        let environment = BTreeMap::from([("FROM_KUBELET".to_owned(), "yes".to_owned())]);
        self.plugins
            .credentials(&self.config, Some(&environment), image)
            .await
    }

    async fn logins(&self, image: &str) -> Vec<Login> {
        let matches = self.ask(image).await.matching(image).into_iter();
        matches.map(|found| found.login).collect()
    }
}

fn basic(username: &str, password: &str) -> Login {
    let (username, password) = (username.into(), password.into());
    Login::Basic { username, password }
}

#[tokio::test]
async fn a_plugin_is_asked_once_per_cache_key_and_only_for_what_it_matches() {
    // The plugin answers with its argument, its variable and its request, so that the test can check them.
    let script = r#"
read -r request
image=$(printf %s "$request" | sed 's/.*"image":"\([^"]*\)".*/\1/')
printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",'
printf '"cacheKeyType":"Registry","cacheDuration":"1h","auth":{"*.cloud.io":{"username":"%s","password":"%s"}}}' "$1-$REGION-$FROM_KUBELET" "$image"
"#;
    let (dir, config) = host(script, "0s");
    let asker = Asker::new(config);
    let want = basic("get-credentials-eu-yes", "a.cloud.io/x");
    assert_eq!(asker.logins("a.cloud.io/x").await, [want]);
    assert_eq!(asker.logins("a.cloud.io/y").await.len(), 1);
    assert_eq!(runs(&dir), 1, "cached by registry");
    asker.ask("b.cloud.io/y").await;
    assert_eq!(runs(&dir), 2, "another registry");
    assert_eq!(asker.logins("other.io/x").await, []);
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
            "credential provider cloud answered something that is not a CredentialProviderResponse",
        ),
    ];
    for (script, want) in table {
        let (_dir, mut config) = host(script, "1m");
        config.timeout = Duration::from_millis(if script.starts_with("sleep") {
            200
        } else {
            5000
        });
        let credentials = Asker::new(config).ask("a.cloud.io/x").await;
        let problems = credentials.problems("a.cloud.io/x");
        assert_eq!(problems, [format!("credential providers: {want}")]);
        assert!(!format!("{credentials:?}").contains("hunter"));
        assert!(credentials.matching("a.cloud.io/x").is_empty());
    }
}

/// The kubelet may be configured after the agent has started. A configuration of an unknown version must not prevent
/// a pull.
#[tokio::test]
async fn the_configuration_is_read_for_each_image() {
    let answer = r#"printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","auth":{"a.cloud.io":{"username":"u","password":"p"}}}'"#;
    let (_dir, config) = host(answer, "0s");
    let (file, asker) = (config.config.clone(), Asker::new(config));
    let found = async || asker.logins("a.cloud.io/x").await;
    let whole = std::fs::read_to_string(&file).unwrap();
    assert_eq!(found().await.len(), 1);
    let old = whole.replace("k8s.io/v1\n  match", "k8s.io/v0\n  match");
    for text in [&old, "kind: Something\n", "{"] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(found().await, [], "{text}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(found().await, []);
    std::fs::write(&file, whole).unwrap();
    assert_eq!(found().await.len(), 1);
}

/// A plugin speaks the version that its configuration names.
#[tokio::test]
async fn every_version_of_the_protocol_is_spoken() {
    let script = r#"
version=$(sed 's/.*"apiVersion":"\([^"]*\)".*/\1/')
printf '{"kind":"CredentialProviderResponse","apiVersion":"%s","cacheKeyType":"Global","cacheDuration":null,"auth":{"a.cloud.io":{"username":"u","password":"%s"}}}' "$version" "$version"
"#;
    for version in API_VERSIONS {
        let (dir, config) = host(script, "1h");
        let text = std::fs::read_to_string(&config.config).unwrap();
        let text = text.replace(API_VERSIONS[0], version);
        std::fs::write(&config.config, text).unwrap();
        let asker = Asker::new(config);
        for image in ["a.cloud.io/x", "b.cloud.io/x"] {
            asker.ask(image).await;
        }
        assert_eq!(asker.logins("a.cloud.io/x").await, [basic("u", version)]);
        assert_eq!(runs(&dir), 1, "one answer for all images");
    }
}

/// A duration of zero means that the answer must not be kept.
#[tokio::test]
async fn answers_are_kept_as_long_as_the_plugin_says() {
    for (answered, by_default, want) in [
        ("\"0s\"", "1h", 2),
        ("null", "0s", 2),
        ("\"1h\"", "0s", 1),
        ("null", "1h", 1),
    ] {
        let script = format!(
            "printf '{{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"{}\",\
             \"cacheKeyType\":\"Image\",\"cacheDuration\":{answered},\"auth\":null}}'",
            API_VERSIONS[0]
        );
        let (dir, config) = host(&script, by_default);
        let asker = Asker::new(config);
        for _ in 0..2 {
            assert!(asker.ask("a.cloud.io/x").await.all_problems().is_empty());
        }
        assert_eq!(runs(&dir), want, "{answered} {by_default}");
    }
}

/// One plugin that is too old, or is not valid, must not take the others with it.
#[tokio::test]
async fn a_plugin_that_cannot_be_used_harms_itself_alone() {
    let answer = r#"printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image","auth":{"a.cloud.io":{"username":"u","password":"p"}}}'"#;
    let (_dir, config) = host(answer, "0s");
    let good = std::fs::read_to_string(&config.config).unwrap();
    let (head, provider) = good.split_at(good.find("- name").unwrap());
    let table = [
        (
            provider.replace("kubelet.k8s.io/v1\n", "kubelet.k8s.io/v2\n"),
            "credential provider cloud cannot be used: its apiVersion \"credentialprovider.kubelet.k8s.io/v2\" is none of",
        ),
        (
            provider.replace("name: cloud", "name: ../cloud"),
            "credential provider ../cloud cannot be used: \"../cloud\" is not the name of a file",
        ),
        (
            provider.replace("0s", "soon"),
            "credential provider cloud cannot be used: its defaultCacheDuration is not a duration",
        ),
        (
            format!(
                "{provider}  tokenAttributes: {{requireServiceAccount: true, serviceAccountTokenAudience: a}}\n"
            ),
            "credential provider cloud cannot be used: it needs the token of a pod's service account",
        ),
        ("- name: cloud\n".to_owned(), "missing field"),
        ("- name: [cloud]\n".to_owned(), "providers[0]: "),
    ];
    for (bad, want) in table {
        std::fs::write(&config.config, format!("{head}{bad}{provider}")).unwrap();
        let credentials = Asker::new(config.clone()).ask("a.cloud.io/x").await;
        let problems = credentials.problems("a.cloud.io/x");
        assert!(problems[0].contains(want), "{problems:?}");
        let matches = credentials.matching("a.cloud.io/x");
        assert_eq!(matches.len(), 1, "{bad}");
        assert_eq!(&*matches[0].source, "credential provider cloud");
    }
}

/// In a pod, the files of the host are below a mount point, which users do not know.
#[test]
fn the_configuration_of_a_host_is_read_and_named_as_the_host_has_it() {
    const PATH: &str = "/etc/kubernetes/providers";
    let (host, _config) = host("", "1h");
    let at = |path: &str| host.path().join(path.trim_start_matches('/'));
    std::fs::create_dir_all(at(PATH)).unwrap();
    let plugins = Plugins::new(Root::open_host(host.path()).unwrap());
    let count = |path: &str| plugins.providers(Path::new(path)).iter().flatten().count();
    assert_eq!(count("/config.yaml"), 1);
    std::os::unix::fs::symlink("/config.yaml", at(PATH).join("cloud.yaml")).unwrap();
    std::fs::write(at(PATH).join("notes.txt"), "{").unwrap();
    assert_eq!(count(PATH), 1);
    std::fs::write(at(PATH).join("wrong.json"), "{}").unwrap();
    assert_eq!(count(PATH), 1, "the other file is still used");
    for (path, want) in [
        (PATH, "/etc/kubernetes/providers/wrong.json: missing field"),
        ("/nowhere", "cannot read /nowhere: No such file"),
    ] {
        let providers = plugins.providers(Path::new(path));
        let error = providers.into_iter().find_map(Result::err).unwrap();
        let error = chain(&error);
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn values_of_a_wrong_type_are_not_in_messages() {
    let head = "kind: CredentialProviderConfig\nproviders:";
    for (text, want) in [
        (
            format!("{head} hunter2"),
            "expected a sequence at line 2 column 12",
        ),
        (
            format!("{head}\n- hunter2"),
            "providers[0]: expected struct Provider",
        ),
        (
            format!("{head}\n- name: a\n  env: hunter2"),
            "/p.yaml: providers[0]: expected a sequence",
        ),
    ] {
        let message = match parse(&text, Path::new("/p.yaml")) {
            Ok(mut providers) => providers.remove(0).unwrap_err().to_string(),
            Err(message) => message,
        };
        assert!(
            message.ends_with(want) && !message.contains("hunter2"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn plugins_get_no_variable_of_this_process_if_those_of_the_kubelet_are_known() {
    // cargo sets this variable for tests.
    let script = r#"
printf '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",'
printf '"cacheKeyType":"Image","auth":{"*.cloud.io":{"username":"%s","password":"%s"}}}' "${CARGO_MANIFEST_DIR:+known}" "$HOME-$REGION"
"#;
    let (_dir, config) = host(script, "0s");
    let plugins = Plugins::new(Root::open("/").unwrap());
    let kubelet = BTreeMap::from([("HOME".to_owned(), "/kubelet".to_owned())]);
    let own = std::env::var("HOME").unwrap_or_default();
    for (environment, want) in [
        (Some(&kubelet), basic("", "/kubelet-eu")),
        (None, basic("known", &format!("{own}-eu"))),
    ] {
        let found = plugins.credentials(&config, environment, "a.cloud.io/x");
        let found = found.await.matching("a.cloud.io/x").remove(0).login;
        assert!(found == want, "{environment:?}");
    }
}
