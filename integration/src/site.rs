//! A site with registries that need what only a host is configured with: an authority that only the host trusts, logins
//! in a pull secret and in the kubelet's files, a mirror where RKE2 has it, and a proxy that only the unit of the container
//! runtime names.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use skyhook_crds::Skyhook;

use crate::cluster::Cluster;
use crate::controlplane::free_port;
use crate::install::NAMESPACE;
use crate::machine::Machine;
use crate::network::Network;
use crate::process::{Process, output, sh};
use crate::rollout::{apply, wait_complete, wait_for};
use crate::run::Run;
use crate::source::source;

/// `user` with the password `hunter2`.
const USERS: &str = "user:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";
/// A registry that does not exist. It has a mirror.
const UPSTREAM: &str = "upstream.example";
const RKE2: &str = "/var/lib/rancher/rke2/agent/etc/containerd";

/// A registry that speaks TLS and wants a login.
#[derive(Debug)]
struct Secured {
    address: SocketAddr,
    _process: Process,
}

impl Secured {
    /// `dir` has the certificate of the authority, and gets that of the registry.
    async fn start(
        run: &Run,
        dir: &Path,
        address: Ipv4Addr,
        ca: &Issuer<'_, KeyPair>,
    ) -> Result<Self> {
        let address = SocketAddr::from((address, free_port(address)?));
        let file = |name: &str| dir.join(format!("{}-{name}", address.ip()));
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![address.ip().to_string()])?;
        fs::write(file("cert"), certificate.signed_by(&key, ca)?.pem())?;
        fs::write(file("key"), key.serialize_pem())?;
        fs::write(dir.join("htpasswd"), USERS)?;
        let config = file("config.yml");
        let show = |path: PathBuf| path.display().to_string();
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '{address}', tls: {{certificate: {}, key: {}}}}}\n\
                 auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                show(file("storage")),
                show(file("cert")),
                show(file("key")),
                show(dir.join("htpasswd")),
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        command.env("OTEL_TRACES_EXPORTER", "none");
        let process = Process::spawn(run, &format!("registry-{address}"), &command)?;
        process.wait_listening(address).await?;
        Ok(Self {
            address,
            _process: process,
        })
    }

    /// Copies an image of another registry.
    async fn copy(&self, from: SocketAddr, image: &str) -> Result<()> {
        let mut copy = Command::new("skopeo");
        copy.args([
            "--insecure-policy",
            "copy",
            "--all",
            "--quiet",
            "--preserve-digests",
        ]);
        copy.args(["--src-tls-verify=false", "--dest-tls-verify=false"]);
        copy.args(["--dest-creds", "user:hunter2"]);
        copy.arg(format!("docker://{from}/{image}"));
        copy.arg(format!("docker://{}/{image}", self.address));
        output(copy).await.map(drop)
    }
}

/// Makes a package that does nothing, under another name.
fn package(run: &Run, name: &str) -> Result<PathBuf> {
    let from = source("integration/fixtures/packages/noop");
    let folder = run.scratch().join("packages").join(name);
    fs::create_dir_all(folder.join("skyhook_dir"))?;
    let config = fs::read_to_string(from.join("config.json"))?;
    let config = config.replace(
        "\"package_name\": \"noop\"",
        &format!("\"package_name\": \"{name}\""),
    );
    ensure!(
        config.contains(name),
        "the package has another form: {config}"
    );
    fs::write(folder.join("config.json"), config)?;
    fs::copy(
        from.join("skyhook_dir/noop.sh"),
        folder.join("skyhook_dir/noop.sh"),
    )?;
    Ok(folder)
}

/// Debian's forward proxy. It wants a login as well.
async fn proxy(run: &Run, dir: &Path, address: Ipv4Addr) -> Result<(SocketAddr, Process)> {
    let address = SocketAddr::from((address, free_port(address)?));
    let config = dir.join("tinyproxy.conf");
    fs::write(
        &config,
        format!(
            "Port {}\nListen {}\nTimeout 60\nLogLevel Connect\nBasicAuth proxy hunter3\n",
            address.port(),
            address.ip()
        ),
    )?;
    let mut command = Command::new("tinyproxy");
    command.arg("-d").arg("-c").arg(&config);
    let process = Process::spawn(run, "tinyproxy", &command)?;
    process.wait_listening(address).await?;
    Ok((address, process))
}

/// The unit of a container runtime, as RKE2 starts one.
fn unit(runtime: &str, proxy: SocketAddr, direct: Ipv4Addr) -> String {
    let proxy = format!("http://proxy:hunter3@{proxy}");
    format!(
        "[Service]\nExecStart={runtime} -c {RKE2}/config.toml\n\
         Environment=HTTPS_PROXY={proxy} HTTP_PROXY={proxy} NO_PROXY={direct}/32,.internal\n"
    )
}

/// The entry of a docker config.
fn login(registry: &str) -> Value {
    json!({registry: {"username": "user", "password": "hunter2"}})
}

/// The registries and the proxy, and what a host has to know of them.
#[derive(Debug)]
pub struct Site {
    direct: Secured,
    far: Secured,
    proxy: SocketAddr,
    proxy_process: Process,
    /// The certificate of the authority that signs for the registries.
    authority: String,
    /// The network that only the proxy reaches.
    _behind: Network,
}

impl Site {
    /// Makes two private registries, one of them behind a proxy, and three packages in them and in the cluster's registry.
    pub async fn build<M: Machine>(cluster: &Cluster<M>) -> Result<Self> {
        let run = &cluster.run;
        let dir = run.scratch().join("registries");
        fs::create_dir_all(&dir)?;
        let mut authority = CertificateParams::default();
        authority
            .distinguished_name
            .push(DnType::CommonName, "company");
        authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let company = authority.self_signed(&key)?.pem();
        let authority = Issuer::new(authority, key);

        // The host has a route to the first network alone: the other one is behind the proxy.
        let near = cluster.network.gateway();
        let behind = Network::create(Arc::clone(run)).await?;
        let direct = Secured::start(run, &dir, near, &authority).await?;
        let far = Secured::start(run, &dir, behind.gateway(), &authority).await?;
        let (proxy, proxy_process) = proxy(run, &dir, near).await?;
        let plain = cluster.registry.address();
        for name in ["direct", "mirrored", "proxied"] {
            let folder = package(run, name)?;
            let repository = format!("team/{name}");
            cluster
                .registry
                .push_folder(&folder, &repository, "1.0.0")
                .await?;
        }
        direct.copy(plain, "team/direct:1.0.0").await?;
        far.copy(plain, "team/proxied:1.0.0").await?;
        Ok(Self {
            direct,
            far,
            proxy,
            proxy_process,
            authority: company,
            _behind: behind,
        })
    }

    /// A Skyhook with three packages: from a registry nearby, from a mirror, and from a registry behind the proxy.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let image = |registry: &dyn std::fmt::Display, name: &str| json!({"version": "1.0.0", "image": format!("{registry}/team/{name}")});
        json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1",
            "kind": "Skyhook",
            "metadata": {"name": "registries"},
            "spec": {"interruptionBudget": {"count": 1}, "packages": {
                "direct": image(&self.direct.address, "direct"),
                "mirrored": image(&UPSTREAM, "mirrored"),
                "proxied": image(&self.far.address, "proxied"),
            }},
        })
    }

    /// Gives the only host of a cluster all that its registries need. `runtime` is the program of its container runtime.
    async fn configure<M: Machine>(&self, cluster: &Cluster<M>, runtime: &str) -> Result<()> {
        let host = &cluster.workers[0].host;
        let plain = cluster.registry.address();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "node-init-secret"},
            "type": "kubernetes.io/dockercfg",
            "stringData": {".dockercfg": login(&format!("{}/team", self.direct.address)).to_string()},
        }))?;
        Api::<Secret>::namespaced(cluster.client(), NAMESPACE)
            .create(&PostParams::default(), &secret)
            .await?;
        host.write_file(
            "/var/lib/kubelet/config.json",
            &json!({"auths": login(&self.far.address.to_string())}).to_string(),
        )
        .await?;
        host.write_file(
            &format!("{RKE2}/config.toml"),
            &format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/nowhere:{RKE2}/certs.d\"\n"),
        )
        .await?;
        host.write_file(
            &format!("{RKE2}/certs.d/{UPSTREAM}/hosts.toml"),
            &format!("server = \"https://{UPSTREAM}\"\n[host.\"http://{plain}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"),
        )
        .await?;
        let unit = unit(runtime, self.proxy, cluster.network.gateway());
        host.write_file("/etc/systemd/system/rke2-agent.service", &unit)
            .await?;
        let start = "systemctl daemon-reload; systemctl start rke2-agent";
        host.run(&["sh", "-ec", start]).await?;
        let bundle = "/etc/ssl/certs/ca-certificates.crt";
        let known = host.read_file(bundle).await.unwrap_or_default();
        let authority = format!("{known}# The company's own\n{}", self.authority);
        host.write_file(bundle, &authority).await
    }

    /// Rolls the packages out on the only host of a cluster: first it trusts nobody, then it is configured. The agent is
    /// told of nothing, and is not restarted.
    pub async fn roll_out<M: Machine>(
        &self,
        cluster: &Cluster<M>,
        runtime: &str,
        patience: Duration,
    ) -> Result<()> {
        let client = cluster.client();
        apply(client.clone(), &self.manifest()).await?;
        let distrusts = |skyhook: &Skyhook| {
            let status = serde_json::to_string(&skyhook.status).unwrap_or_default();
            status.contains("is signed by an authority that this host does not trust")
        };
        let name = "registries";
        wait_for(client.clone(), name, "a refusal", patience, distrusts).await?;
        self.configure(cluster, runtime).await?;
        wait_complete(client, name, 2 * patience).await?;
        let through = fs::read_to_string(self.proxy_process.log())?;
        let asked = |address: SocketAddr| through.contains(&format!("CONNECT {address}"));
        ensure!(asked(self.far.address), "the proxy was not used: {through}");
        ensure!(
            !asked(self.direct.address),
            "the proxy was used for what NO_PROXY names: {through}"
        );
        let log = cluster.workers[0].agent.whole_log().await?;
        ensure!(!log.contains("hunter"), "a password is in the log: {log}");
        Ok(())
    }
}

/// Why a site cannot be built here, or `None`.
pub async fn missing() -> Option<&'static str> {
    let found = sh("sh", ["-c", "command -v tinyproxy"]).await;
    found
        .is_err()
        .then_some("tinyproxy is not installed: run `make setup`")
}
