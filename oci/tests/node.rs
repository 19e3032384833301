//! What a node is configured with: its logins, plugins, mirrors and proxy are used as its kubelet and its container
//! runtime use them.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skyhook_oci::{
    Credentials, Limits, NodeConfig, PullError, PullerConfig, Reference, Root, chain,
};
use skyhook_testkit::again;

use crate::host::{Host, hasty, login};
use crate::image::Image;
use crate::liar::{Answer, Liar, Request};
use crate::support::file;
use crate::tls::{Certificate, authority, serve};

/// A host whose files and processes are in a directory.
struct Node {
    files: tempfile::TempDir,
    host: Host,
}

impl Node {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let config = PullerConfig {
            files: Some(Root::open_host(files.path()).unwrap()),
            node: Some(NodeConfig {
                prefix: Vec::new(),
                timeout: Duration::from_secs(10),
            }),
            insecure: vec!["registry.test".to_owned(), "direct.test:81".to_owned()],
            ..hasty()
        };
        let host = Host::with(config, Limits::default());
        Self { files, host }
    }

    fn write(&self, path: &str, text: &str) {
        file(self.files.path(), path, text, 0o644);
    }

    /// A program that runs on the host.
    fn run(&self, pid: u32, line: &str, environment: &str) {
        let name = line.split(' ').next().unwrap();
        self.write(&format!("proc/{pid}/comm"), name);
        let status = format!("Uid:\t0\t0\t0\t0\nNSpid:\t{pid}\n");
        self.write(&format!("proc/{pid}/status"), &status);
        self.write(
            &format!("proc/{pid}/cgroup"),
            "0::/system.slice/x.service\n",
        );
        self.write(&format!("proc/{pid}/exe"), "");
        for pid in [1, pid] {
            let directory = self.files.path().join(format!("proc/{pid}/ns"));
            std::fs::create_dir_all(&directory).unwrap();
            std::os::unix::fs::symlink("user:[4026531837]", directory.join("user")).ok();
        }
        self.write(&format!("proc/{pid}/cmdline"), &line.replace(' ', "\0"));
        self.write(
            &format!("proc/{pid}/environ"),
            &environment.replace(' ', "\0"),
        );
    }

    async fn pull(&self, image: &str, secrets: &Credentials) -> Result<(), PullError> {
        let reference: Reference = image.parse().unwrap();
        let pulled = self.host.puller.pull(&reference, secrets).await;
        pulled.map(drop)
    }
}

fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:hunter2")))
}

/// A registry that serves one user, and answers these statuses to the others.
fn for_user(user: &str, others: &'static [(&'static str, u16)]) -> Liar {
    let (image, user) = (Image::sized(10), basic(user));
    Liar::start(move |request| {
        let challenge =
            |status| Answer::new(status).header("WWW-Authenticate", "Basic realm=\"r\"");
        match request.header("authorization") {
            Some(header) if header == user => image.answer(request),
            Some(header) => {
                let found = others.iter().find(|(name, _)| header == basic(name));
                found.map_or_else(|| challenge(401), |(_, status)| Answer::new(*status))
            }
            None => challenge(401),
        }
    })
}

/// The users that were told to a server, in order, each once.
fn told(liar: &Liar) -> Vec<String> {
    let mut users: Vec<String> = Vec::new();
    for request in liar.requests() {
        let Some(header) = request.header("authorization") else {
            continue;
        };
        let text = STANDARD
            .decode(header.trim_start_matches("Basic "))
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        let user = text.split(':').next().unwrap().to_owned();
        if !users.contains(&user) {
            users.push(user);
        }
    }
    users
}

#[tokio::test]
async fn the_next_login_is_tried_after_every_refusal() {
    let others = &[("expired", 403), ("hidden", 404), ("wrong", 401)];
    let liar = for_user("good", others);
    let at = |path: &str, user: &str| login(&format!("{}{path}", liar.host()), user, "hunter2");
    let secrets = at("/team/p", "expired")
        .merge(at("/team", "hidden"))
        .merge(at("/te", "wrong"))
        .merge(at("", "good"));
    let image = format!("{}/team/p:1", liar.host());
    Node::new().pull(&image, &secrets).await.unwrap();
    assert_eq!(told(&liar), ["expired", "hidden", "wrong", "good"]);
}

#[tokio::test]
async fn a_refusal_names_everything_that_was_tried() {
    let liar = for_user("nobody", &[("old", 403)]);
    let config = |entry: serde_json::Value| {
        let text = json!({"auths": {liar.host(): entry}}).to_string();
        Credentials::from_docker_config(text.as_bytes()).unwrap()
    };
    let secrets = login(&liar.host(), "old", "hunter2")
        .from_source("pull secret team")
        .merge(config(json!({"auth": "hunter2!"})).from_source("pull secret broken"))
        .merge(Credentials::unusable(
            "pull secret gone",
            "it does not exist",
        ));
    let node = Node::new();
    let entry = json!({"auths": {liar.host(): {"username": "node", "password": "hunter2"}}});
    node.write("var/lib/kubelet/config.json", &entry.to_string());
    node.run(7, "kubelet --image-credential-provider-config=/p.yaml --image-credential-provider-bin-dir=/bin", "");
    node.write("p.yaml", "kind: Other\n");
    let image = format!("{}/team/p:1", liar.host());
    let error = node.pull(&image, &secrets).await.unwrap_err();
    let want = format!(
        "refuses manifest 1: no credentials for it are accepted (it answered 401 Unauthorized; tried: pull secret team, \
         /var/lib/kubelet/config.json, no credentials; cannot be used: credential providers: /p.yaml: kind is \"Other\", \
         must be CredentialProviderConfig; pull secret broken: auths[\"{}\"].auth is not base64 of user:password; \
         pull secret gone: it does not exist)",
        liar.host()
    );
    let text = chain(&error);
    assert!(text.ends_with(&want), "{text}");
    assert!(!format!("{text}{error:?}").contains("hunter2"));

    // Some registries say of what a login may not see that it does not exist.
    let liar = for_user("nobody", &[("team", 404)]);
    let secrets = login(&liar.host(), "team", "hunter2").from_source("pull secret team");
    let image = format!("{}/team/p:1", liar.host());
    let error = Node::new().pull(&image, &secrets).await.unwrap_err();
    let text = chain(&error);
    let want = "does not have manifest 1 (tried: pull secret team, no credentials)";
    assert!(text.ends_with(want), "{text}");
    assert_eq!(error.kind(), "not_found");
}

/// One token server for all: it refuses some logins with 400, as some do with a refresh token that has expired.
#[tokio::test]
async fn a_token_server_that_refuses_one_login_is_asked_with_the_next() {
    let tokens = Liar::start(|request| match request.header("authorization") {
        Some(header) if header == basic("good") => Answer::ok(r#"{"token": "t"}"#),
        Some(header) if header == basic("few") => Answer::ok(r#"{"token": "less"}"#),
        _ => Answer::new(400),
    });
    let realm = format!("Bearer realm=\"http://{}/t\",service=\"s\"", tokens.host());
    let image = Image::sized(10);
    let liar = Liar::start(move |request| match request.header("authorization") {
        Some("Bearer t") => image.answer(request),
        // The token is for another repository.
        Some(_) => Answer::new(403),
        None => Answer::new(401).header("WWW-Authenticate", realm.clone()),
    });
    let at = |path: &str, user: &str| login(&format!("{}{path}", liar.host()), user, "hunter2");
    let secrets = at("/team/p", "bad")
        .merge(at("/team", "few"))
        .merge(at("", "good"));
    let image = format!("{}/team/p:1", liar.host());
    Node::new().pull(&image, &secrets).await.unwrap();
    assert_eq!(told(&tokens), ["bad", "few", "good"]);
}

/// Pull secrets, then the docker config of the node, then its plugins, then containerd's own login.
#[tokio::test]
async fn the_logins_of_the_node_are_tried_after_the_pull_secrets() {
    let liar = for_user("runtime", &[]);
    let node = Node::new();
    let registry = liar.host();
    node.write(
        "var/lib/kubelet/config.json",
        &json!({"auths": {&registry: {"username": "kubelet", "password": "hunter2"}}}).to_string(),
    );
    let bin = node.files.path().join("bin").display().to_string();
    node.run(
        7,
        &format!("kubelet --image-credential-provider-config /p --image-credential-provider-bin-dir={bin}"),
        "REGION=eu",
    );
    node.write(
        "p/cloud.yaml",
        &format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: cloud\n  \
             apiVersion: credentialprovider.kubelet.k8s.io/v1beta1\n  matchImages: ['{registry}/team']\n  \
             defaultCacheDuration: 0s\n"
        ),
    );
    let answer = json!({"kind": "CredentialProviderResponse",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1beta1", "cacheKeyType": "Image",
        "auth": {&registry: {"username": "plugin-REGION", "password": "hunter2"}}});
    let script =
        format!("#!/bin/sh\ncat >/dev/null\necho '{answer}' | sed \"s/REGION/$REGION/\"\n");
    file(node.files.path(), "bin/cloud", &script, 0o755);
    node.run(8, "containerd", "");
    node.write(
        "etc/containerd/config.toml",
        &format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"{registry}\".auth]\n\
             username = \"runtime\"\npassword = \"hunter2\"\n"
        ),
    );
    let secrets = login(&registry, "secret", "hunter2");
    node.pull(&format!("{registry}/team/p:1"), &secrets)
        .await
        .unwrap();
    assert_eq!(told(&liar), ["secret", "kubelet", "plugin-eu", "runtime"]);
}

/// Where each runtime has its mirrors. The file is written while the puller lives, so it is read again.
#[tokio::test]
async fn mirrors_are_found_where_the_running_runtime_has_them() {
    let config = |dirs: &str| {
        format!(
            "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{dirs}'\n"
        )
    };
    let certs_d = "var/lib/rancher/rke2/agent/etc/containerd/certs.d/registry.test/hosts.toml";
    let rke2 = "containerd -c /var/lib/rancher/rke2/agent/etc/containerd/config.toml";
    let rke2_config = "var/lib/rancher/rke2/agent/etc/containerd/config.toml";
    let two = config("/none:/var/lib/rancher/rke2/agent/etc/containerd/certs.d");
    let toml = |mirror: &str| format!("[host.\"http://{mirror}\"]\n");
    let cri_o = |mirror: &str| {
        format!(
            "[[registry]]\nlocation = \"registry.test\"\n[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        )
    };
    let old = |mirror: &str| {
        format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"registry.test\"]\nendpoint = [\"http://{mirror}\"]\n"
        )
    };
    type Text<'a> = &'a dyn Fn(&str) -> String;
    /// The runtime, its own configuration, the file with the mirror, and the text of this file.
    type Row<'a> = (&'a str, Option<(&'a str, &'a str)>, &'a str, Text<'a>);
    let table: [Row<'_>; 9] = [
        (
            "",
            None,
            "etc/containerd/certs.d/registry.test/hosts.toml",
            &toml,
        ),
        (
            "",
            None,
            "var/lib/rancher/k3s/agent/etc/containerd/certs.d/registry.test/hosts.toml",
            &toml,
        ),
        ("", None, certs_d, &toml),
        (
            "",
            None,
            "var/snap/microk8s/current/args/certs.d/_default/hosts.toml",
            &toml,
        ),
        (rke2, Some((rke2_config, &two)), certs_d, &toml),
        (
            "containerd",
            None,
            "etc/containerd/certs.d/registry.test/hosts.toml",
            &toml,
        ),
        ("containerd", None, "etc/containerd/config.toml", &old),
        ("crio", None, "etc/containers/registries.conf", &cri_o),
        (
            "crio",
            None,
            "etc/containers/registries.conf.d/10-mirror.conf",
            &cri_o,
        ),
    ];
    for (runtime, config, path, text) in table {
        let image = Image::sized(10);
        let mirror = Liar::start(move |request| image.answer(request));
        let node = Node::new();
        if !runtime.is_empty() {
            node.run(9, runtime, "");
        }
        if let Some((path, text)) = config {
            node.write(path, text);
        }
        // The registry itself does not exist.
        let image = "registry.test/team/p:1";
        node.pull(image, &Credentials::anonymous())
            .await
            .unwrap_err();
        node.write(path, &text(&mirror.host()));
        let pulled = node.pull(image, &Credentials::anonymous()).await;
        pulled.unwrap_or_else(|error| panic!("{runtime} {path}: {}", chain(&error)));
        assert!(mirror.count("/v2/team/p/") > 0, "{path}");
    }
}

/// CRI-O may have a registry under another name, with another path.
#[tokio::test]
async fn a_registry_of_cri_o_may_be_elsewhere_and_be_blocked() {
    let liar = for_user("good", &[]);
    let node = Node::new();
    node.run(9, "crio", "");
    let conf = |more: &str| {
        format!(
            "[[registry]]\nprefix = \"*.test\"\nlocation = \"{}/q\"\ninsecure = true\n{more}",
            liar.host()
        )
    };
    node.write("etc/containers/registries.conf", &conf(""));
    let image = "registry.test/team/p:1";
    // A login for either name opens it.
    for name in ["registry.test/team", &format!("{}/q/team", liar.host())] {
        node.pull(image, &login(name, "good", "hunter2"))
            .await
            .unwrap();
    }
    assert!(liar.requests().iter().all(|it| !it.path.contains("ns=")));
    assert!(liar.count("/v2/q/team/p/manifests/1") > 0);
    node.write("etc/containers/registries.conf", &conf("blocked = true\n"));
    let error = node
        .pull(image, &Credentials::anonymous())
        .await
        .unwrap_err();
    let text = chain(&error);
    let want = "*.test is blocked by /etc/containers/registries.conf";
    assert!(text.ends_with(want), "{text}");
}

/// Plain HTTP is for servers that cannot be reached over TLS, and not for those that refuse over TLS.
#[tokio::test]
async fn an_insecure_registry_that_refuses_over_tls_is_not_asked_without_it() {
    let liar = Liar::start(|_| Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""));
    let (certificate, _) = Certificate::own(authority("nobody trusts it"));
    let port = serve(&liar, &certificate.pem, &certificate.key);
    let node = Node::new();
    node.run(9, "crio", "");
    let registry = format!("127.0.0.1:{port}");
    let conf = format!("[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n");
    node.write("etc/containers/registries.conf", &conf);
    let secret = login(&registry, "user", "hunter2");
    let image = format!("{registry}/team/p:1");
    let error = node.pull(&image, &secret).await.unwrap_err();
    assert_eq!(error.kind(), "denied", "{}", chain(&error));
    assert_eq!(told(&liar), ["user"]);
}

/// A server that speaks TLS, and that stops to do so once the manifest has been got. Whoever asks it without TLS
/// reaches `plain`.
fn break_tls_later(behind: &Liar, plain: &Liar) -> String {
    let (certificate, _) = Certificate::own(authority("nobody trusts it"));
    let tls = serve(behind, &certificate.pem, &certificate.key);
    let (tls, plain) = (format!("127.0.0.1:{tls}"), plain.host());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        // A request without a login, and one with it.
        let mut left = 2;
        for client in listener.incoming().map_while(Result::ok) {
            let mut first = [0];
            let is_tls = client.peek(&mut first).is_ok() && first == [0x16];
            let target = match is_tls {
                true if left == 0 => continue,
                true => &tls,
                false => &plain,
            };
            left -= usize::from(is_tls);
            let server = TcpStream::connect(target).unwrap();
            let copies = [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ];
            for (mut from, mut to) in copies {
                std::thread::spawn(move || {
                    std::io::copy(&mut from, &mut to).ok();
                    to.shutdown(Shutdown::Write).ok();
                });
            }
        }
    });
    host
}

#[tokio::test]
async fn a_registry_that_has_spoken_tls_is_never_asked_without_it() {
    let behind = for_user("user", &[]);
    let plain = for_user("user", &[]);
    let node = Node::new();
    node.run(9, "crio", "");
    let registry = break_tls_later(&behind, &plain);
    let conf = format!("[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n");
    node.write("etc/containers/registries.conf", &conf);
    let secret = login(&registry, "user", "hunter2");
    let image = format!("{registry}/team/p:1");
    let error = node.pull(&image, &secret).await.unwrap_err();
    assert_eq!(behind.count("/manifests/"), 2);
    assert_eq!(plain.requests().len(), 0, "{}", chain(&error));
}

/// The test below runs this test in a process with another environment.
#[tokio::test]
#[ignore = "needs the environment that another test makes"]
async fn pulls_through_the_proxy_of_the_runtime() {
    let proxy = std::env::var("TEST_PROXY").unwrap();
    let node = Node::new();
    let environment =
        format!("HTTP_PROXY=http://user:hunter2@{proxy} no_proxy=direct.test:81,.internal");
    node.run(9, "containerd", &environment);
    node.pull("registry.test/team/p:1", &Credentials::anonymous())
        .await
        .unwrap();
    // This one is asked without the proxy, and does not exist.
    let error = node
        .pull("direct.test:81/team/p:1", &Credentials::anonymous())
        .await
        .unwrap_err();
    assert!(!format!("{}{error:?}", chain(&error)).contains("hunter2"));
}

#[test]
fn the_proxy_is_that_of_the_agent_or_else_that_of_the_runtime() {
    for (own, through_runtime) in [
        (None, true),
        // The agent has proxies of its own, in either case.
        (Some("HTTP_PROXY"), false),
        (Some("http_proxy"), false),
    ] {
        let [image, other] = [(); 2].map(|()| Image::sized(10));
        let of_runtime = Liar::start(move |request| image.answer(request));
        let of_agent = Liar::start(move |request| match request.path.contains("direct.test") {
            true => Answer::new(502),
            false => other.answer(request),
        });
        let mut command = std::process::Command::new("env");
        command.arg(format!("TEST_PROXY={}", of_runtime.host()));
        command.args(own.map(|name| format!("{name}=http://{}", of_agent.host())));
        again("node::pulls_through_the_proxy_of_the_runtime", command);
        let used = [&of_runtime, &of_agent].map(|proxy| proxy.count("http://registry.test/") > 0);
        assert_eq!(used, [through_runtime, !through_runtime], "{own:?}");
        assert_eq!(of_runtime.count("http://direct.test"), 0);
        let is_told = |request: &Request| request.header("proxy-authorization").is_some();
        assert!(of_runtime.requests().iter().all(is_told));
    }
}
