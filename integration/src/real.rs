//! A cluster as users have it: real kubelets, the chart installed by helm, our programs as pods.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::chart;
use crate::cluster::{BETWEEN, push};
use crate::controlplane::{ControlPlane, Options};
use crate::host::Host;
use crate::images;
use crate::install::NAMESPACE;
use crate::kubelet::KubeNode;
use crate::machine::Machine;
use crate::network::Network;
use crate::programs;
use crate::registry::{Image, Registry};
use crate::rootfs::Rootfs;
use crate::run::{Leftover, Run};
use crate::wait::{MINUTE, asking_every};

/// What kubelet changes on the whole machine when its host shares the kernel.
const SYSCTLS: [&str; 3] = [
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
];

/// A running cluster. All of it is gone when dropped.
#[derive(Debug)]
pub struct RealCluster<M: Machine = Host> {
    pub nodes: Vec<KubeNode<M>>,
    pub registry: Registry,
    pub plane: ControlPlane,
    pub network: Network,
    pub run: Arc<Run>,
    disk: M::Disk,
    bin: PathBuf,
    /// How long each part took to start.
    pub timings: Vec<(&'static str, Duration)>,
}

impl RealCluster {
    /// A cluster of hosts.
    pub async fn start(count: u8) -> Result<Self> {
        Self::start_on(Rootfs::locate().await?, count).await
    }
}

impl<M: Machine> RealCluster<M> {
    /// A control plane with all controllers and `count` Ready nodes `worker-1`, …, which start from
    /// `disk`, with our images loaded. Nothing is installed. Two more nodes may
    /// [`join`](Self::join).
    pub async fn start_on(disk: M::Disk, count: u8) -> Result<Self> {
        let run = Arc::new(Run::start()?);
        for name in SYSCTLS.into_iter().filter(|_| !M::OWN_KERNEL) {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name))?;
            run.record(Leftover::Sysctl(name, value.trim()))?;
        }
        let mut timings = Vec::new();
        let started = Instant::now();
        let network = Network::create(Arc::clone(&run)).await?;
        timings.push(("file system and network", started.elapsed()));

        let started = Instant::now();
        let options = Options {
            address: network.gateway(),
            controller_manager: true,
            scheduler: true,
            audit: true,
            kubelets: (1..=count + 2).map(node_name).collect(),
            apiserver_flags: vec!["--runtime-config=admissionregistration.k8s.io/v1".to_owned()],
            ..Options::default()
        };
        let registry = SocketAddr::from((network.gateway(), 80));
        let registry = Registry::start_on(Arc::clone(&run), registry);
        let plane = ControlPlane::start(Arc::clone(&run), &options);
        let (plane, registry, bin) = tokio::try_join!(plane, registry, programs_and_images(&run))?;
        timings.push(("control plane, registry, images", started.elapsed()));

        let mut cluster = Self {
            nodes: Vec::new(),
            registry,
            plane,
            network,
            run,
            disk,
            bin,
            timings,
        };
        let started = Instant::now();
        let none = json!([]);
        let starting = (0..count).map(|index| cluster.start_node(index, &none));
        let nodes = try_join_all(starting).await?;
        cluster.nodes = nodes;
        cluster.timings.push(("nodes Ready", started.elapsed()));
        Ok(cluster)
    }

    /// Boots one more host and waits until its node is Ready.
    pub async fn join(&mut self) -> Result<KubeNode<M>> {
        self.join_tainted(&json!([])).await
    }

    /// The same; the kubelet registers its node with these taints (JSON).
    pub async fn join_tainted(&mut self, taints: &Value) -> Result<KubeNode<M>> {
        let index = u8::try_from(self.nodes.len())?;
        let node = self.start_node(index, taints).await?;
        self.nodes.push(node.clone());
        Ok(node)
    }

    async fn start_node(&self, index: u8, taints: &Value) -> Result<KubeNode<M>> {
        let name = node_name(index + 1);
        let run = Arc::clone(&self.run);
        let host = M::create(run, &self.network, &self.disk, index, &name, &self.bin).await?;
        let host = Arc::new(host);
        host.boot().await?;
        let node = KubeNode::install(&self.plane, &self.network, host, index, taints).await?;
        node.load_images(&images::ARCHIVES.map(str::to_owned))
            .await?;
        node.wait_ready(self.plane.client()).await?;
        Ok(node)
    }

    /// `helm upgrade --install` of the chart, as the seed has it, with further arguments; waits
    /// until all pods are ready.
    pub async fn install(&self, args: &[&str]) -> Result<()> {
        let chart = chart::path();
        let registry = format!(
            "agent.insecureRegistries={{{},ghcr.io}}",
            self.registry.address()
        );
        let mut all = vec!["upgrade", "--install", chart::RELEASE];
        let path = chart.to_string_lossy();
        all.extend([
            path.as_ref(),
            "--namespace",
            NAMESPACE,
            "--create-namespace",
        ]);
        all.extend(["--set", &registry, "--wait", "--timeout", "120s"]);
        all.extend(args);
        match chart::helm(&self.plane, &all).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// `helm uninstall`, as the seed has it.
    pub async fn uninstall(&self) -> Result<()> {
        let args = [
            "uninstall",
            chart::RELEASE,
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            "180s",
        ];
        match chart::helm(&self.plane, &args).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// A client with all rights.
    pub fn client(&self) -> kube::Client {
        self.plane.client()
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Result<&KubeNode<M>> {
        let found = self.nodes.iter().find(|node| node.host.name() == name);
        found.with_context(|| format!("no node {name}"))
    }

    /// Where the archives of its images are.
    pub fn images(&self) -> PathBuf {
        self.bin.join("images")
    }

    /// Pushes a package of `examples/packages` or `integration/fixtures/packages`.
    pub async fn push(&self, package: &str) -> Result<Image> {
        push(&self.registry, package).await
    }

    /// Waits until `kubectl` with these arguments prints what `done` accepts.
    pub async fn until(
        &self,
        args: &[&str],
        within: Duration,
        mut done: impl FnMut(&str) -> bool,
    ) -> Result<String> {
        let asked = asking_every(BETWEEN, within, async || {
            let printed = self.plane.kubectl(args).await?;
            let text = printed.trim();
            ensure!(done(text), "kubectl {args:?}: {text}");
            Ok(text.to_owned())
        });
        match asked.await {
            Ok(text) => Ok(text),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// Name of the agent's pod on a node, once it is Ready.
    pub async fn agent_pod(&self, node: &str) -> Result<String> {
        self.new_agent_pod(node, "").await
    }

    /// The same, another than `old`.
    pub async fn new_agent_pod(&self, node: &str, old: &str) -> Result<String> {
        let on = format!("spec.nodeName={node}");
        let jsonpath = "jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.metadata.name} {end}";
        let selector = "app.kubernetes.io/component=agent";
        let get = [
            "-n",
            NAMESPACE,
            "get",
            "pods",
            "-l",
            selector,
            "--field-selector",
            &on,
            "-o",
            jsonpath,
        ];
        let is_new = |names: &str| !names.is_empty() && names.split(' ').all(|name| name != old);
        let names = self.until(&get, MINUTE, is_new).await?;
        let name = names.split(' ').next().context("a pod")?;
        Ok(name.to_owned())
    }

    /// What to look at when something did not happen.
    pub async fn describe(&self) -> String {
        let mut text = String::new();
        for args in [
            &[
                "get",
                "nodes,pods,interruptionleases,skyhooks",
                "-A",
                "-o",
                "wide",
            ][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "-n",
                NAMESPACE,
                "--tail=25",
                "-l",
                "control-plane=controller-manager",
            ],
            &[
                "logs",
                "-n",
                NAMESPACE,
                "--tail=25",
                "-l",
                "app.kubernetes.io/component=agent",
            ],
        ] {
            text += &match self.plane.kubectl(args).await {
                Ok(printed) => format!("--- kubectl {args:?}\n{printed}\n"),
                Err(error) => format!("--- kubectl {args:?}: {error:#}\n"),
            };
        }
        text
    }
}

fn node_name(number: u8) -> String {
    format!("worker-{number}")
}

/// The directory that hosts see as `/opt/skyhook`: our programs, kubelet, and all images.
async fn programs_and_images(run: &Run) -> Result<PathBuf> {
    let bin = programs::collect(run)?;
    images::build(&bin, &bin.join("images")).await?;
    let kubelet = crate::assets::Assets::locate().await?.program("kubelet");
    let kubelet = fs::canonicalize(&kubelet).with_context(|| {
        format!(
            "no {}: the harness's own control plane has one",
            kubelet.display()
        )
    })?;
    let target = bin.join("kubelet");
    if fs::hard_link(&kubelet, &target).is_err() {
        fs::copy(&kubelet, &target)?;
    }
    Ok(bin)
}
