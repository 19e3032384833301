//! Everything together: control plane, registry, hosts with agents, coordinator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;

use crate::agent::Agent;
use crate::controlplane::{ControlPlane, Options};
use crate::coordinator::Coordinator;
use crate::host::Host;
use crate::install;
use crate::network::Network;
use crate::node::{NodeOptions, NodePlayer};
use crate::programs;
use crate::registry::{Image, Registry};
use crate::rootfs::Rootfs;
use crate::run::Run;
use crate::source;

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
pub struct Worker {
    pub host: Arc<Host>,
    pub node: NodePlayer,
    pub agent: Agent,
}

/// A running cluster. All of it is gone when dropped.
#[derive(Debug)]
pub struct Cluster {
    pub workers: Vec<Worker>,
    pub coordinator: Option<Coordinator>,
    pub registry: Registry,
    pub plane: ControlPlane,
    pub network: Network,
    pub run: Arc<Run>,
    /// How long each part took to start.
    pub timings: Vec<(&'static str, Duration)>,
}

impl Cluster {
    pub async fn start(setup: Setup) -> Result<Self> {
        let run = Arc::new(Run::start()?);
        let mut timings = Vec::new();
        let started = Instant::now();
        let bin = programs::collect(&run)?;
        let rootfs = Rootfs::locate().await?;
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
                let host = Host::create(run, &network, &rootfs, index, name, &bin).await?;
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

    /// A client with all rights.
    pub fn client(&self) -> kube::Client {
        self.plane.client()
    }

    /// The worker with this name.
    pub fn worker(&self, name: &str) -> Result<&Worker> {
        let found = self
            .workers
            .iter()
            .find(|worker| worker.host.name() == name);
        found.with_context(|| format!("no worker {name}"))
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

    /// What to look at when something did not happen: the ends of all logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        if let Some(coordinator) = &self.coordinator {
            text += &format!("--- coordinator\n{}\n", coordinator.log());
        }
        for worker in &self.workers {
            text += &format!(
                "--- agent on {}\n{}\n",
                worker.host.name(),
                worker.agent.log()
            );
        }
        text
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

async fn start_worker(plane: &ControlPlane, host: Arc<Host>, setup: &Setup) -> Result<Worker> {
    let options = setup.node.clone();
    let node = NodePlayer::register(plane.client(), Arc::clone(&host), options).await?;
    let agent = Agent::install(plane, Arc::clone(&host), &setup.agent_args).await?;
    if setup.agents {
        agent.start().await?;
    }
    Ok(Worker { host, node, agent })
}
