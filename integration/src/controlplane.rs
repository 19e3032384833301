//! A real control plane: etcd, kube-apiserver and, where asked for, the controller manager and the
//! scheduler, with RBAC and node authorization, as processes of this machine.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::Signal;

use crate::assets::Assets;
use crate::process::{Process, output};
use crate::run::Run;

pub mod counters;
mod pki;

use counters::{AuditCounts, RequestCounts};

/// What kind of control plane a test needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the API server listens; [`Network::gateway`](crate::network::Network::gateway) for one
    /// that hosts can reach.
    pub address: Ipv4Addr,
    /// Garbage collection, node lifecycle, DaemonSets and the other controllers.
    pub controller_manager: bool,
    pub scheduler: bool,
    /// Log every request's user and verb, for [`ControlPlane::audit_counts`].
    pub audit: bool,
    /// Whether etcd waits for the disk. Only a benchmark needs it to.
    pub fsync: bool,
    /// Nodes whose kubelets may log in, with [`ControlPlane::kubelet_kubeconfig`].
    pub kubelets: Vec<String>,
    /// More flags for kube-apiserver.
    pub apiserver_flags: Vec<String>,
    /// More flags for the controller manager.
    pub controller_manager_flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST,
            controller_manager: false,
            scheduler: false,
            audit: false,
            fsync: false,
            kubelets: Vec::new(),
            apiserver_flags: Vec::new(),
            controller_manager_flags: Vec::new(),
        }
    }
}

/// A running control plane. It is gone when dropped.
pub struct ControlPlane {
    run: Arc<Run>,
    assets: Assets,
    dir: PathBuf,
    url: String,
    ca: String,
    kubeconfig: PathBuf,
    client: kube::Client,
    apiserver: Option<Process>,
    apiserver_command: Command,
    controllers: Vec<Process>,
    etcd: Process,
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// Starts everything and waits until the API server is ready.
    pub async fn start(run: Arc<Run>, options: &Options) -> Result<Self> {
        let assets = Assets::locate().await?;
        let dir = run.scratch().join("controlplane");
        let (etcd, etcd_url) = start_etcd(&run, &assets, &dir, options.fsync)?;
        let ca = pki::write(&dir, options.address, &options.kubelets)?;
        let address = SocketAddr::new(IpAddr::V4(options.address), free_port(options.address)?);
        let url = format!("https://{address}");
        fs::write(dir.join("audit-policy.yaml"), AUDIT_POLICY)?;
        let admin = kubeconfig(&url, &ca, pki::ADMIN_TOKEN);
        let kubeconfig = dir.join("admin.kubeconfig");
        fs::write(&kubeconfig, &admin)?;
        let client = client(&admin).await?;
        let apiserver_command = apiserver_command(&assets, &dir, address, &etcd_url, options);
        let mut plane = Self {
            run,
            assets,
            dir,
            url,
            ca,
            kubeconfig,
            client,
            apiserver: None,
            apiserver_command,
            controllers: Vec::new(),
            etcd,
        };
        plane.start_apiserver().await?;
        if options.controller_manager {
            plane.start_controller("kube-controller-manager", &options.controller_manager_flags)?;
        }
        if options.scheduler {
            plane.start_controller("kube-scheduler", &[])?;
        }
        Ok(plane)
    }

    /// Starts the API server, again after [`stop_apiserver`](Self::stop_apiserver).
    pub async fn start_apiserver(&mut self) -> Result<()> {
        let process = Process::spawn(&self.run, "kube-apiserver", &self.apiserver_command)?;
        let process = self.apiserver.insert(process);
        for _ in 0..600 {
            self.etcd.check_alive()?;
            process.check_alive()?;
            let ready = http_get("/readyz")?;
            if self
                .client
                .request_text(ready)
                .await
                .is_ok_and(|text| text == "ok")
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!(
            "kube-apiserver is not ready after a minute: see {}",
            process.log().display()
        )
    }

    /// Kills the API server: to its clients the control plane is gone, its data stays.
    pub async fn stop_apiserver(&mut self) -> Result<()> {
        match self.apiserver.take() {
            Some(process) => process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// Stops (or continues) the API server where it is: connections hang instead of failing.
    pub fn freeze_apiserver(&self, frozen: bool) {
        if let Some(process) = &self.apiserver {
            process.signal(if frozen {
                Signal::SIGSTOP
            } else {
                Signal::SIGCONT
            });
        }
    }

    fn start_controller(&mut self, name: &str, flags: &[String]) -> Result<()> {
        let port = free_port(Ipv4Addr::LOCALHOST)?;
        let mut command = Command::new(self.assets.program(name));
        command.arg(flag("kubeconfig", &self.kubeconfig));
        command.args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        command.arg(format!("--secure-port={port}"));
        command.arg(flag("cert-dir", &self.dir.join(name)));
        if name == "kube-controller-manager" {
            command.arg(flag(
                "service-account-private-key-file",
                &self.dir.join("sa.key"),
            ));
            command.arg(flag("root-ca-file", &self.dir.join("ca.crt")));
            command.arg("--use-service-account-credentials=true");
        }
        command.args(flags);
        self.controllers
            .push(Process::spawn(&self.run, name, &command)?);
        Ok(())
    }

    /// An administrator's client.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// An administrator's kubeconfig file.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The text of a kubeconfig for whoever bears `token`.
    pub fn kubeconfig_for(&self, token: &str) -> String {
        kubeconfig(&self.url, &self.ca, token)
    }

    /// The text of the kubeconfig of a node's kubelet: one of [`Options::kubelets`].
    pub fn kubelet_kubeconfig(&self, node: &str) -> String {
        self.kubeconfig_for(&pki::kubelet_token(node))
    }

    /// A client for whoever bears `token`.
    pub async fn client_for(&self, token: &str) -> Result<kube::Client> {
        client(&self.kubeconfig_for(token)).await
    }

    /// Signs what a service account's token says, as the API server itself would.
    pub fn sign_token(&self, claims: &serde_json::Value) -> Result<String> {
        pki::sign_token(&self.dir, claims)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where kubectl and the other programs are.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// Runs kubectl as the administrator and returns what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.assets.program("kubectl"));
        command.arg(flag("kubeconfig", &self.kubeconfig)).args(args);
        command.env("HOME", &self.dir);
        output(command).await
    }

    /// All requests that the API server has answered, from its own metrics.
    pub async fn request_counts(&self) -> Result<RequestCounts> {
        let text = self.client.request_text(http_get("/metrics")?).await?;
        Ok(RequestCounts::parse(&text))
    }

    /// All requests by who made them, when [`Options::audit`] is on.
    pub fn audit_counts(&self) -> Result<AuditCounts> {
        AuditCounts::parse(&self.audit_log()?)
    }

    /// The addresses that a user asked for with a verb, in their order, when [`Options::audit`] is on.
    pub fn audit_uris(&self, user: &str, verb: &str) -> Result<Vec<String>> {
        counters::uris(&self.audit_log()?, user, verb)
    }

    fn audit_log(&self) -> Result<String> {
        let path = self.dir.join("audit.log");
        fs::read_to_string(&path)
            .with_context(|| format!("no audit log {}: set Options::audit", path.display()))
    }
}

const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .context("a path of our own is well formed")
}

fn start_etcd(run: &Run, assets: &Assets, dir: &Path, fsync: bool) -> Result<(Process, String)> {
    let url = format!("http://127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST)?);
    let mut command = Command::new(assets.program("etcd"));
    command.arg(flag("data-dir", &dir.join("etcd")));
    command.arg(format!("--listen-client-urls={url}"));
    command.arg(format!("--advertise-client-urls={url}"));
    command.args(["--listen-peer-urls=http://127.0.0.1:0", "--log-level=warn"]);
    if !fsync {
        command.arg("--unsafe-no-fsync");
    }
    fs::create_dir_all(dir)?;
    Ok((Process::spawn(run, "etcd", &command)?, url))
}

fn apiserver_command(
    assets: &Assets,
    dir: &Path,
    address: SocketAddr,
    etcd_url: &str,
    options: &Options,
) -> Command {
    let mut command = Command::new(assets.program("kube-apiserver"));
    command.arg(format!("--etcd-servers={etcd_url}"));
    command.arg(format!("--bind-address={}", address.ip()));
    command.arg(format!("--advertise-address={}", address.ip()));
    command.arg(format!("--secure-port={}", address.port()));
    for (name, file) in [
        ("tls-cert-file", "server.crt"),
        ("tls-private-key-file", "server.key"),
        ("token-auth-file", "tokens.csv"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
    ] {
        command.arg(flag(name, &dir.join(file)));
    }
    command.args([
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        // There is no network for an endpoint of the API server in this cluster.
        "--endpoint-reconciler-type=none",
        "--kubelet-preferred-address-types=InternalIP",
    ]);
    if !options.kubelets.is_empty() {
        command.arg("--enable-admission-plugins=NodeRestriction");
    }
    if options.audit {
        command.arg(flag("audit-policy-file", &dir.join("audit-policy.yaml")));
        command.arg(flag("audit-log-path", &dir.join("audit.log")));
    }
    command.args(&options.apiserver_flags);
    command
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

fn kubeconfig(url: &str, ca: &str, token: &str) -> String {
    use k8s_openapi::ByteString;
    // ByteString is base64 in JSON, as the kubeconfig format wants it.
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": url,
            "certificate-authority-data": ByteString(ca.as_bytes().to_vec()),
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    })
    .to_string()
}

async fn client(kubeconfig: &str) -> Result<kube::Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    // As the programs under test have it.
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}

/// A port that was free a moment ago, below the range that the kernel takes ports of outgoing
/// connections from: none of those can snatch it before the server listens.
pub fn free_port(address: Ipv4Addr) -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Programs that run at the same time start far apart.
    let seed = u16::try_from(std::process::id().wrapping_mul(7919) % u32::from(COUNT))?;
    for _ in 0..COUNT {
        let offset = seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if let Ok(listener) = TcpListener::bind((address, FIRST + offset)) {
            return Ok(listener.local_addr()?.port());
        }
    }
    bail!(
        "no port of {FIRST} to {} is free on {address}",
        FIRST + COUNT
    )
}
