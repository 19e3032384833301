//! Credentials, redirects, mirrors and proxies: which servers get requests, and which credentials they get.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skyhook_oci::{Credentials, Limits, PluginConfig, PullError, Pulled, Reference, chain};
use skyhook_testkit::again;

use crate::host::{Host, configured, hasty, login};
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::{Answer, Body, Liar, Request};

const SECRET: &str = "hunter2";

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("user:{SECRET}")))
}

fn secret_for(host: &str) -> Credentials {
    login(host, "user", SECRET)
}

fn docker_config(host: &str, entry: &serde_json::Value) -> Credentials {
    let config = json!({"auths": {host: entry}}).to_string();
    Credentials::from_docker_config(config.as_bytes()).unwrap()
}

async fn pull(host: &Host, registry: &str, secret: &Credentials) -> Result<Pulled, PullError> {
    let reference: Reference = format!("{registry}/team/p:1").parse().unwrap();
    host.puller.pull(&reference, secret).await
}

fn told(liar: &Liar) -> Vec<Option<String>> {
    let header = |request: &Request| request.header("authorization").map(str::to_owned);
    liar.requests().iter().map(header).collect()
}

#[tokio::test]
async fn basic_is_given_only_when_asked_for_and_then_kept() {
    let image = Image::sized(10);
    let liar = Liar::start(move |request| match request.header("authorization") {
        Some(header) if header == basic() => image.answer(request),
        _ => Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
    });
    let host = Host::new();
    pull(&host, &liar.host(), &secret_for(&liar.host()))
        .await
        .unwrap();
    let told = told(&liar);
    assert_eq!(told[0], None);
    assert_eq!(
        told[1],
        Some(basic()),
        "the manifest again, with the answer"
    );
    assert!(told[2..].len() >= 2, "{told:?}");

    let host = Host::new();
    let error = pull(&host, &liar.host(), &Credentials::anonymous())
        .await
        .unwrap_err();
    let text = chain(&error);
    assert!(
        text.ends_with(
            "it requires credentials, and there are none for it: add a pull secret (it answered 401 Unauthorized; \
             tried: no credentials)"
        ),
        "{text}"
    );
    let wrong = login(&liar.host(), "user", "wrong-password");
    let error = pull(&host, &liar.host(), &wrong).await.unwrap_err();
    assert_eq!(error.kind(), "denied");
    let text = format!("{} {error:?}", chain(&error));
    let want = "no credentials for it are accepted (it answered 401 Unauthorized; tried: a docker config, no credentials)";
    assert!(text.contains(want), "{text}");
    assert!(
        !text.contains("wrong-password") && !text.contains("user:"),
        "{text}"
    );
}

#[tokio::test]
async fn several_secrets_are_tried_until_one_is_taken() {
    let image = Image::sized(10);
    let liar = Liar::start(move |request| match request.header("authorization") {
        Some(header) if header == basic() => image.answer(request),
        _ => Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
    });
    let host = Host::new();
    let secrets =
        login(&format!("{}/team", liar.host()), "other", "x").merge(secret_for(&liar.host()));
    pull(&host, &liar.host(), &secrets).await.unwrap();
}

/// A registry that wants a token, and a token server that gives it if `check` accepts the request.
fn bearer(check: impl Fn(&Request) -> bool + Send + Sync + 'static) -> (Liar, Liar) {
    let tokens = Liar::start(move |request| match check(request) {
        true => Answer::ok(json!({"access_token": "the-token"}).to_string()),
        false => Answer::new(401),
    });
    let image = Image::sized(10);
    let realm = format!("http://{}/token", tokens.host());
    let registry = Liar::start(move |request| match request.header("authorization") {
        Some("Bearer the-token") => image.answer(request),
        _ => Answer::new(401).header(
            "WWW-Authenticate",
            format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:team/p:pull\""),
        ),
    });
    (registry, tokens)
}

#[tokio::test]
async fn tokens_are_got_anonymously_with_a_password_and_with_an_identity_token() {
    let (registry, tokens) = bearer(|request| request.header("authorization").is_none());
    pull(&Host::new(), &registry.host(), &Credentials::anonymous())
        .await
        .unwrap();
    assert_eq!(
        tokens.requests()[0].path,
        "/token?scope=repository%3Ateam%2Fp%3Apull&service=s"
    );
    assert_eq!(tokens.requests().len(), 1, "one token for the whole pull");

    let (registry, _tokens) = bearer(|request| request.header("authorization") == Some(&basic()));
    pull(
        &Host::new(),
        &registry.host(),
        &secret_for(&registry.host()),
    )
    .await
    .unwrap();
    assert!(
        told(&registry)
            .iter()
            .all(|header| header.as_deref() != Some(&basic()))
    );

    let (registry, tokens) = bearer(|request| {
        request.method == "POST" && request.body.contains("refresh_token=id%2Ftoken")
    });
    let secret = docker_config(
        &registry.host(),
        &json!({"auth": STANDARD.encode("0:"), "identitytoken": "id/token"}),
    );
    pull(&Host::new(), &registry.host(), &secret).await.unwrap();
    assert_eq!(
        tokens.requests()[0].body,
        "scope=repository%3Ateam%2Fp%3Apull&service=s&grant_type=refresh_token&client_id=skyhook\
         &refresh_token=id%2Ftoken"
    );

    let (registry, tokens) = bearer(|_| false);
    let secret = docker_config(&registry.host(), &json!({"registrytoken": "the-token"}));
    pull(&Host::new(), &registry.host(), &secret).await.unwrap();
    assert_eq!(tokens.requests().len(), 0);
}

#[tokio::test]
async fn a_redirect_to_another_host_is_followed_without_credentials() {
    let image = Image::sized(1000);
    let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
    let storage = Liar::start(move |_| Answer::ok(blob.clone()));
    let location = format!("http://{}/storage?signature=s", storage.host());
    let liar = Liar::start(move |request| match request.header("authorization") {
        None => Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        Some(_) if request.path.contains(&layer.to_string()) => {
            Answer::new(307).header("Location", location.clone())
        }
        Some(_) => image.answer(request),
    });
    let toml = format!(
        "server = \"http://{}\"\n[header]\nX-Api-Key = \"{SECRET}\"\n",
        liar.host()
    );
    let host = mirrored(&liar.host(), &toml);
    pull(&host, &liar.host(), &secret_for(&liar.host()))
        .await
        .unwrap();
    assert_eq!(told(&storage), [None]);
    assert_eq!(storage.requests()[0].header("x-api-key"), None);
    assert!(
        liar.requests()
            .iter()
            .all(|request| request.header("x-api-key") == Some(SECRET))
    );
}

/// The signature in the URL of a storage may have expired when it is used.
#[tokio::test]
async fn a_refusal_of_a_storage_is_tried_again_and_names_the_storage() {
    for refusals in [1, usize::MAX] {
        let image = Image::sized(1000);
        let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
        let count = std::sync::atomic::AtomicUsize::new(0);
        let storage = Liar::start(move |_| {
            match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < refusals {
                true => Answer::new(403),
                false => Answer::ok(blob.clone()),
            }
        });
        let location = format!(
            "http://{}/storage",
            storage.host().replace("127.0.0.1", "localhost")
        );
        let liar = Liar::start(move |request| match request.header("authorization") {
            None => Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
            Some(_) if request.path.contains(&layer.to_string()) => {
                Answer::new(307).header("Location", location.clone())
            }
            Some(_) => image.answer(request),
        });
        let pulled = pull(&Host::new(), &liar.host(), &secret_for(&liar.host())).await;
        match pulled {
            Ok(_) => assert_eq!(storage.requests().len(), 2),
            Err(error) => {
                assert_eq!(refusals, usize::MAX, "{}", chain(&error));
                let text = chain(&error);
                let want =
                    "localhost, to which the registry redirects, answered 403 Forbidden to blob ";
                assert!(text.contains(want), "{text}");
                assert_eq!(error.kind(), "http_status");
            }
        }
    }
}

#[tokio::test]
async fn redirects_end() {
    for (location, reason) in [
        (Some("/v2/loop"), "more than 5 times"),
        (Some("ftp://x/y"), "to a URL that is neither http nor https"),
        (
            Some("file:///etc/passwd"),
            "to a URL that is neither http nor https",
        ),
        (
            None,
            "without saying where to (there is no Location header)",
        ),
    ] {
        let liar = Liar::start(move |_| {
            let answer = Answer::new(302);
            match location {
                Some(location) => answer.header("Location", location),
                None => answer,
            }
        });
        let host = Host::new();
        let error = pull(&host, &liar.host(), &Credentials::anonymous())
            .await
            .unwrap_err();
        assert!(chain(&error).ends_with(reason), "{}", chain(&error));
        host.assert_nothing_pulled().await;
        let requests = if location == Some("/v2/loop") { 6 } else { 1 };
        assert_eq!(liar.requests().len(), requests, "{location:?}");
    }
}

/// A host with these mirrors in the `hosts.toml` of the registry.
fn mirrored(registry: &str, mirrors: &str) -> Host {
    Host::with(configured(registry, mirrors), Limits::default())
}

#[tokio::test]
async fn mirrors_are_asked_first_and_never_told_the_registrys_secret() {
    let image = Image::sized(1000);
    let (mirror_image, layer) = (image.clone(), image.layer_digest(0));
    let mirror = Liar::start(
        move |request| match request.path.contains(&layer.to_string()) {
            true => Answer::new(503),
            false => mirror_image.answer(request),
        },
    );
    let wants_login = |image: Image| {
        move |request: &Request| match request.header("authorization") {
            Some(_) => image.answer(request),
            None => Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        }
    };
    let greedy = Liar::start(|_| Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""));
    let origin = Liar::start(wants_login(image));
    let toml = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}\"]\n  [host.\"http://{}\".rewrite]\n    \
         \"^team/\" = \"mirrored/\"\n",
        greedy.host(),
        mirror.host(),
        mirror.host()
    );
    let host = mirrored(&origin.host(), &toml);
    pull(&host, &origin.host(), &secret_for(&origin.host()))
        .await
        .unwrap();
    assert!(
        told(&greedy)
            .iter()
            .chain(&told(&mirror))
            .all(Option::is_none)
    );
    let ns = format!("?ns={}", origin.host().replace(':', "%3A"));
    assert_eq!(
        mirror.requests()[0].path,
        format!("/v2/mirrored/p/manifests/1{ns}")
    );
    assert_eq!(origin.count("/manifests/"), 0, "the mirror had it");
    assert_eq!(
        origin.count(&layer.to_string()),
        2,
        "only what the mirror could not serve"
    );
}

#[tokio::test]
async fn a_mirror_without_resolve_serves_digests_only_and_a_lying_one_is_passed_over() {
    let image = Image::sized(1000);
    let lying = Liar::start(|_| Answer::ok("not what you want"));
    let origin_image = image.clone();
    let origin = Liar::start(move |request| origin_image.answer(request));
    let toml = format!(
        "[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        lying.host()
    );
    let host = mirrored(&origin.host(), &toml);
    let pulled = pull(&host, &origin.host(), &Credentials::anonymous())
        .await
        .unwrap();
    assert_eq!(pulled.manifest_digest, image.manifest_digest());
    assert_eq!(lying.count("/manifests/"), 0);
    assert!(lying.count("/blobs/") >= 1);
    host.assert_intact();
    host.assert_clean().await;
}

#[tokio::test]
async fn one_blob_is_fetched_once_however_many_ask() {
    let image = Image::sized(200_000);
    let layer = image.layer_digest(0);
    let liar = Liar::start(move |request| {
        let answer = image.answer(request);
        if let (true, Body::Whole(_)) = (request.path.contains("/blobs/"), &answer.body) {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        answer
    });
    let host = Host::new();
    let reference: Reference = format!("{}/team/p:1", liar.host()).parse().unwrap();
    let pulls = (0..8).map(|_| {
        let (puller, reference) = (host.puller.clone(), reference.clone());
        tokio::spawn(async move { puller.pull(&reference, &Credentials::anonymous()).await })
    });
    let mut fetched = 0;
    for pull in pulls.collect::<Vec<_>>() {
        fetched += pull.await.unwrap().unwrap().fetched_bytes;
    }
    assert_eq!(liar.count(&layer.to_string()), 1);
    assert!(fetched > 0 && fetched < 300_000, "{fetched}: counted once");
}

#[tokio::test]
async fn layers_are_fetched_several_at_once_but_no_more_than_allowed() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NOW: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let layers = (0..9).map(|number| {
        let name = format!("skyhook-package/{number}");
        Layer::gzip(&tar(&[Entry::file(&name, name.as_bytes())]))
    });
    let image = Image::new(layers.collect());
    let liar = Liar::start(move |request| {
        if request.path.contains("/blobs/") {
            MOST.fetch_max(NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            NOW.fetch_sub(1, Ordering::SeqCst);
        }
        image.answer(request)
    });
    let config = skyhook_oci::PullerConfig {
        parallel_layers: 4,
        ..hasty()
    };
    let host = Host::with(config, Limits::default());
    host.pull(&liar).await.unwrap();
    assert_eq!(liar.count("/blobs/"), 10, "nine layers and a config");
    let most = MOST.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most} at once");
}

#[tokio::test]
async fn a_credential_provider_opens_a_registry_that_no_secret_is_for() {
    let image = Image::sized(10);
    let liar = Liar::start(move |request| match request.header("authorization") {
        Some(header) if header == basic() => image.answer(request),
        _ => Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
    });
    let dir = tempfile::tempdir().unwrap();
    let registry = liar.host();
    let answer = json!({"kind": "CredentialProviderResponse",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Image",
        "auth": {&registry: {"username": "user", "password": SECRET}}});
    let script = format!("#!/bin/sh\ncat >/dev/null\necho '{answer}'\n");
    crate::support::file(dir.path(), "bin/cloud", &script, 0o755);
    let config = json!({"apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig", "providers": [{"name": "cloud",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "matchImages": [&registry],
        "defaultCacheDuration": "1m"}]});
    crate::support::file(dir.path(), "config.json", &config.to_string(), 0o644);
    let plugins = PluginConfig {
        config: dir.path().join("config.json"),
        bin_dir: dir.path().join("bin"),
        prefix: Vec::new(),
        timeout: Duration::from_secs(10),
    };
    let config = skyhook_oci::PullerConfig {
        plugins: Some(plugins),
        ..hasty()
    };
    let host = Host::with(config, Limits::default());
    pull(&host, &registry, &Credentials::anonymous())
        .await
        .unwrap();
    assert!(!format!("{:?}", host.puller).contains(SECRET));
}

/// The test below runs this test in a process whose environment names a proxy.
#[tokio::test]
#[ignore = "needs the environment that another test makes"]
async fn pulls_as_the_environment_says() {
    let config = skyhook_oci::PullerConfig {
        insecure: vec!["registry.test".into()],
        ..hasty()
    };
    let host = Host::with(config, Limits::default());
    pull(&host, "registry.test", &Credentials::anonymous())
        .await
        .unwrap();
    let direct = std::env::var("TEST_DIRECT").unwrap();
    pull(&host, &direct, &Credentials::anonymous())
        .await
        .unwrap();
}

#[test]
fn the_environments_proxy_is_used_but_never_for_loopback() {
    let image = Image::sized(10);
    let proxied = image.clone();
    let proxy = Liar::start(move |request| proxied.answer(request));
    let direct = Liar::start(move |request| image.answer(request));
    let mut command = std::process::Command::new("env");
    command
        .arg(format!("HTTP_PROXY=http://{}", proxy.host()))
        .arg(format!("TEST_DIRECT={}", direct.host()));
    again("access::pulls_as_the_environment_says", command);
    let through = |request: &Request| request.path.starts_with("http://registry.test/");
    assert!(proxy.requests().len() >= 3 && proxy.requests().iter().all(through));
    assert_eq!(
        direct.requests().len(),
        1,
        "the manifest; the blobs are the same"
    );
}
