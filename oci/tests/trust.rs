//! Client certificates, and secrets that must not be in the logs.

use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skyhook_oci::{Credentials, Limits, PluginConfig, PullerConfig, Reference, chain};
use skyhook_testkit::again;

use crate::host::{Host, configured, hasty, login};
use crate::image::Image;
use crate::liar::{Answer, Liar, Request};
use crate::support::{Layout, Registry, file, issue_strangers_certificate, tools};

#[tokio::test]
async fn a_registry_that_wants_a_client_certificate_gets_it() {
    if !tools(&["docker-registry", "skopeo", "umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (registry, layout) = (Registry::mutual(dir.path()), Layout::new());
    layout.new_image("1", "amd64");
    layout.layer("1", |root| {
        file(root, "skyhook-package/config.json", "{}", 0o644);
    });
    // skopeo wants a directory with NAME.cert and NAME.key.
    let certificates = dir.path().join("skopeo");
    fs::create_dir(&certificates).unwrap();
    for (from, to) in [("client.pem", "client.cert"), ("client.key", "client.key")] {
        fs::copy(dir.path().join(from), certificates.join(to)).unwrap();
    }
    let name = format!("{}/team/p:1", registry.host());
    let certificates = format!("--dest-cert-dir={}", certificates.display());
    layout.push("1", &name, &[&certificates]);

    let reference: Reference = name.parse().unwrap();
    let pull = async |client: &str| {
        let hosts = dir.path().join("certs.d").join(registry.host());
        fs::create_dir_all(&hosts).unwrap();
        let toml = format!(
            "server = \"https://{}\"\nca = \"{}/ca.crt\"\n{client}",
            registry.host(),
            dir.path().display()
        );
        fs::write(hosts.join("hosts.toml"), toml).unwrap();
        let config = PullerConfig {
            hosts_dir: Some(dir.path().join("certs.d")),
            ..hasty()
        };
        let host = Host::with(config, Limits::default());
        let pulled = host
            .puller
            .pull(&reference, &Credentials::anonymous())
            .await;
        (host, pulled)
    };
    let (host, refused) = pull("").await;
    let text = chain(&refused.unwrap_err());
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    host.assert_nothing_pulled().await;
    let ours = format!(
        "client = [[\"{0}/client.pem\", \"{0}/client.key\"]]\n",
        dir.path().display()
    );
    let (host, pulled) = pull(&ours).await;
    host.unpack(&pulled.unwrap().manifest_digest).await.unwrap();

    // The server says which authorities it accepts. The certificate of one of them is sent, wherever it stands.
    let strangers = dir.path().join("strangers");
    fs::create_dir(&strangers).unwrap();
    issue_strangers_certificate(&strangers);
    let both = format!(
        "client = [[\"{1}/stranger.pem\", \"{1}/stranger.key\"], [\"{0}/client.pem\", \"{0}/client.key\"]]\n",
        dir.path().display(),
        strangers.display(),
    );
    let (host, pulled) = pull(&both).await;
    host.unpack(&pulled.unwrap().manifest_digest).await.unwrap();
}

/// All secrets that the pulls below use.
const SECRETS: [&str; 7] = [
    "hunter2-password",
    "hunter2-wrong",
    "hunter2-token",
    "hunter2-identity",
    "hunter2-header",
    "hunter2-proxy",
    "hunter2-plugin",
];

/// A registry that accepts only this `Authorization`, and answers the first request for a blob with 503.
fn picky(authorization: String, challenge: String) -> Liar {
    let image = Image::sized(1000);
    let busy = std::sync::atomic::AtomicBool::new(true);
    Liar::start(move |request| {
        if request.header("authorization") != Some(&authorization) {
            return Answer::new(401).header("WWW-Authenticate", challenge.clone());
        }
        let is_blob = request.path.contains("/blobs/");
        if is_blob && busy.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return Answer::new(503).body(crate::liar::Body::Whole(b"hunter2-password".to_vec()));
        }
        image.answer(request)
    })
}

fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("user:{password}")))
}

/// The test below runs this test in a process that logs everything.
#[tokio::test]
#[ignore = "needs the process that another test makes"]
async fn pulls_with_every_kind_of_secret() {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(std::io::stderr)
        .init();
    let realm = || "Basic realm=\"r\"".to_owned();
    let registry = picky(basic("hunter2-password"), realm());
    let tokens = Liar::start(|request| match request.body.contains("hunter2-identity") {
        true => Answer::ok(json!({"access_token": "hunter2-token"}).to_string()),
        false => Answer::new(401),
    });
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"s\"",
        tokens.host()
    );
    let bearer = picky("Bearer hunter2-token".to_owned(), challenge);
    let cloud = picky(basic("hunter2-plugin"), realm());
    let broken = Liar::start(|_| Answer::new(500));

    let dir = tempfile::tempdir().unwrap();
    let answer = json!({"kind": "CredentialProviderResponse",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Image",
        "auth": {cloud.host(): {"username": "user", "password": "hunter2-plugin"}}});
    let script = format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n");
    file(dir.path(), "bin/cloud", &script, 0o755);
    // This plugin sends an answer that is not valid.
    file(
        dir.path(),
        "bin/garbled",
        "#!/bin/sh\ncat >/dev/null\necho '{\"auth\": \"hunter2-plugin\"}'\n",
        0o755,
    );
    let provider = |name: &str| {
        json!({"name": name, "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "matchImages": [cloud.host()], "defaultCacheDuration": "1m"})
    };
    let config = json!({"apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [provider("garbled"), provider("cloud")]});
    file(dir.path(), "config.json", &config.to_string(), 0o644);

    let toml = format!(
        "server = \"http://{0}\"\n[header]\nX-Key = \"hunter2-header\"\n\
         [host.\"http://{1}\".header]\nX-Key = \"hunter2-header\"\n",
        registry.host(),
        broken.host(),
    );
    let mut config = configured(&registry.host(), &toml);
    config.plugins = Some(PluginConfig {
        config: dir.path().join("config.json"),
        bin_dir: dir.path().join("bin"),
        prefix: Vec::new(),
        timeout: std::time::Duration::from_secs(10),
    });
    config.insecure = vec!["registry.test".to_owned()];
    let host = Host::with(config, Limits::default());
    let pull = async |registry: &str, secret: &Credentials| {
        let reference: Reference = format!("{registry}/team/p:1").parse().unwrap();
        host.puller.pull(&reference, secret).await
    };
    let auths = json!({"auths": {
        registry.host(): {"auth": STANDARD.encode("user:hunter2-password")},
        bearer.host(): {"auth": STANDARD.encode("0:"), "identitytoken": "hunter2-identity"},
    }});
    let secret = Credentials::from_docker_config(auths.to_string().as_bytes()).unwrap();
    pull(&registry.host(), &secret).await.unwrap();
    pull(&bearer.host(), &secret).await.unwrap();
    pull(&cloud.host(), &Credentials::anonymous())
        .await
        .unwrap();
    let wrong = login(&registry.host(), "user", "hunter2-wrong");
    for failed in [
        pull(&registry.host(), &wrong).await,
        pull("registry.test", &secret).await,
    ] {
        let error = failed.unwrap_err();
        tracing::error!(%error, ?error, chain = chain(&error), "as the agent would");
    }
    tracing::error!(?secret, puller = ?host.puller, "as a careless agent would");
}

#[test]
fn no_secret_is_ever_in_the_logs() {
    let proxy = Liar::start(|_| Answer::new(500));
    let mut command = std::process::Command::new("env");
    command.arg(format!(
        "HTTP_PROXY=http://user:hunter2-proxy@{}",
        proxy.host()
    ));
    let output = again("trust::pulls_with_every_kind_of_secret", command);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_told = |request: &Request| request.header("proxy-authorization").is_some();
    assert!(proxy.requests().iter().any(is_told), "the proxy is used");
    for said in [
        "a mirror does not serve the request",
        "retrying",
        "credential provider failed",
        "as the agent would",
    ] {
        assert!(log.contains(said), "nothing is logged of {said:?}:\n{log}");
    }
    for secret in SECRETS {
        let encoded = STANDARD.encode(format!("user:{secret}"));
        for form in [secret, encoded.as_str()] {
            let line = log.lines().find(|line| line.contains(form));
            assert_eq!(line, None, "{form}");
        }
    }
}
