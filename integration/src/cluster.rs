//! Everything together: control plane, registry, hosts with agents, coordinator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;

use crate::agent::Agent;
use crate::controlplane::{ControlPlane, Options};
use crate::coordinator::Coordinator;
use crate::host::Host;
use crate::install;
use crate::machine::Machine;
use crate::network::Network;
use crate::node::{NodeOptions, NodePlayer};
use crate::programs;
use crate::registry::{Image, Registry};
use crate::rootfs::Rootfs;
use crate::run::Run;
use crate::source;
use crate::wait::asking_every;

/// A kubectl takes a tenth of a second of a core.
pub(crate) const BETWEEN: Duration = Duration::from_millis(300);

/// What to start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Names of the hosts, which are also those of their nodes.
    pub hosts: Vec<String>,
    pub plane: Options,
    pub node: NodeOptions,
    /// More arguments for every agent.
    pub agent_args: Vec<String>,
    /// Start the agents.
    pub agents: bool,
    /// Start one coordinator.
    pub coordinator: bool,
}

impl Setup {
    /// `count` hosts `worker-1`, `worker-2`, … with agents, and a coordinator.
    pub fn hosts(count: u8) -> Self {
        Self {
            hosts: (1..=count)
                .map(|number| format!("worker-{number}"))
                .collect(),
            plane: Options::default(),
            node: NodeOptions::default(),
            agent_args: Vec::new(),
            agents: true,
            coordinator: true,
        }
    }
}

/// One host with its node and agent.
#[derive(Debug)]
pub struct Worker<M = Host> {
    pub host: Arc<M>,
    pub node: NodePlayer,
    pub agent: Agent<M>,
}

/// A running cluster. All of it is gone when dropped.
#[derive(Debug)]
pub struct Cluster<M = Host> {
    pub workers: Vec<Worker<M>>,
    pub coordinator: Option<Coordinator>,
    pub registry: Registry,
    pub plane: ControlPlane,
    pub network: Network,
    pub run: Arc<Run>,
    /// How long each part took to start.
    pub timings: Vec<(&'static str, Duration)>,
}

impl Cluster {
    /// A cluster of hosts.
    pub async fn start(setup: Setup) -> Result<Self> {
        Self::start_on(Rootfs::locate().await?, setup).await
    }

    /// What to look at when something did not happen: the ends of all logs.
    pub fn logs(&self) -> String {
        let of = |worker: &Worker| worker.agent.log();
        self.with_agents(self.workers.iter().map(of))
    }
}

impl<M: Machine> Cluster<M> {
    /// A cluster of machines that start from `disk`.
    pub async fn start_on(disk: M::Disk, setup: Setup) -> Result<Self> {
        let run = Arc::new(Run::start()?);
        let mut timings = Vec::new();
        let started = Instant::now();
        let bin = programs::collect(&run)?;
        let network = Network::create(Arc::clone(&run)).await?;
        timings.push(("file system and network", started.elapsed()));

        let options = Options {
            address: network.gateway(),
            ..setup.plane.clone()
        };
        let plane = async {
            let started = Instant::now();
            let plane = ControlPlane::start(Arc::clone(&run), &options).await?;
            install::install(&plane).await?;
            anyhow::Ok((plane, started.elapsed()))
        };
        let hosts = async {
            let started = Instant::now();
            let boots = setup.hosts.iter().zip(0..).map(async |(name, index)| {
                let run = Arc::clone(&run);
                let host = M::create(run, &network, &disk, index, name, &bin).await?;
                host.boot().await?;
                anyhow::Ok(Arc::new(host))
            });
            anyhow::Ok((try_join_all(boots).await?, started.elapsed()))
        };
        let registry = Registry::start(Arc::clone(&run), network.gateway());
        let ((plane, plane_took), (hosts, hosts_took), registry) =
            tokio::try_join!(plane, hosts, registry)?;
        timings.push(("control plane", plane_took));
        timings.push(("hosts (at the same time)", hosts_took));

        let started = Instant::now();
        let mut setup = setup;
        setup
            .agent_args
            .extend(programs::agent_args(registry.address()));
        let workers = hosts
            .into_iter()
            .map(|host| start_worker(&plane, host, &setup));
        let workers = try_join_all(workers).await?;
        let coordinator = if setup.coordinator {
            Some(Coordinator::start(Arc::clone(&run), &plane, "coordinator").await?)
        } else {
            None
        };
        timings.push(("agents and coordinator", started.elapsed()));
        Ok(Self {
            workers,
            coordinator,
            registry,
            plane,
            network,
            run,
            timings,
        })
    }

    /// The same of machines whose disks are theirs alone.
    pub async fn inner_logs(&self) -> String {
        let mut logs = Vec::new();
        for worker in &self.workers {
            let log = worker.agent.whole_log().await;
            let log = log.unwrap_or_else(|error| format!("{error:#}"));
            let lines: Vec<_> = log.lines().collect();
            logs.push(lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        self.with_agents(logs)
    }

    fn with_agents(&self, logs: impl IntoIterator<Item = String>) -> String {
        let mut text = String::new();
        if let Some(coordinator) = &self.coordinator {
            text += &format!("--- coordinator\n{}\n", coordinator.log());
        }
        for (worker, log) in self.workers.iter().zip(logs) {
            text += &format!("--- agent on {}\n{log}\n", worker.host.name());
        }
        text
    }

    /// A client with all rights.
    pub fn client(&self) -> kube::Client {
        self.plane.client()
    }

    /// The worker with this name.
    pub fn worker(&self, name: &str) -> Result<&Worker<M>> {
        let found = self
            .workers
            .iter()
            .find(|worker| worker.host.name() == name);
        found.with_context(|| format!("no worker {name}"))
    }

    /// Waits until no node is worked on.
    pub async fn released(&self, within: Duration) -> Result<()> {
        asking_every(BETWEEN, within, async || {
            let leases = ["get", "interruptionleases", "-o", "name"];
            let held = self.plane.kubectl(&leases).await?;
            ensure!(held.trim().is_empty(), "the slot is kept: {held}");
            Ok(())
        })
        .await
    }

    /// Starts the coordinator with further arguments.
    pub async fn start_coordinator(&mut self, extra: &[&str]) -> Result<()> {
        let run = Arc::clone(&self.run);
        let started = Coordinator::start_with(run, &self.plane, "coordinator", extra).await?;
        self.coordinator = Some(started);
        Ok(())
    }

    /// Kills the coordinator and starts a new one, which takes over what is on the API server.
    pub async fn restart_coordinator(&mut self) -> Result<()> {
        if let Some(old) = self.coordinator.take() {
            old.kill().await?;
        }
        self.start_coordinator(&[]).await
    }

    /// Pushes a package of `examples/packages` or `integration/fixtures/packages`.
    pub async fn push(&self, package: &str) -> Result<Image> {
        push(&self.registry, package).await
    }
}

pub(crate) async fn push(registry: &Registry, package: &str) -> Result<Image> {
    for dir in source::PACKAGES {
        let folder = source::source(dir).join(package);
        if folder.exists() {
            return registry.push_package(&folder).await;
        }
    }
    bail!("no package {package} in examples/packages or integration/fixtures/packages")
}

async fn start_worker<M: Machine>(
    plane: &ControlPlane,
    host: Arc<M>,
    setup: &Setup,
) -> Result<Worker<M>> {
    let options = setup.node.clone();
    let node = NodePlayer::register(plane.client(), Arc::clone(&host), options).await?;
    let agent = Agent::install(plane, Arc::clone(&host), &setup.agent_args).await?;
    if setup.agents {
        agent.start().await?;
    }
    Ok(Worker { host, node, agent })
}
