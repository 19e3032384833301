//! Building blocks of tests and benchmarks against a real API server without hosts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skyhook_coordinator::config::Settings;
use skyhook_coordinator::metrics::Metrics;
use skyhook_crds::Skyhook;
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::rollout;
use skyhook_integration::run::Run;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::coreagent::{CoreAgent, FakeHost, HostScript};

/// A real API server with our resources installed.
pub struct Fixture {
    pub plane: ControlPlane,
    pub client: Client,
}

impl std::fmt::Debug for Fixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fixture")
            .field("plane", &self.plane)
            .finish_non_exhaustive()
    }
}

impl Fixture {
    /// Starts it.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&Options::default()).await
    }

    /// Starts it with options.
    pub async fn start_with(options: &Options) -> anyhow::Result<Self> {
        let plane = ControlPlane::start(Arc::new(Run::start()?), options).await?;
        skyhook_integration::install::install(&plane).await?;
        let client = plane.client();
        Ok(Self { plane, client })
    }

    /// Registers a Node that is Ready, and says what its UID is.
    pub async fn node(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<String> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let labels: std::collections::BTreeMap<&str, &str> = labels.iter().copied().collect();
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": labels },
        }))?;
        let created = nodes.create(&PostParams::default(), &node).await?;
        let status = json!({ "status": {
            "nodeInfo": node_info(name),
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        }});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
            .await?;
        // The kubelet's and the node lifecycle controller's part.
        let untaint = json!({ "spec": { "taints": null } });
        nodes
            .patch(name, &PatchParams::default(), &Patch::Merge(&untaint))
            .await?;
        created.uid().context("a created Node has a UID")
    }

    /// Registers a Node that is Ready from the first on, in one request: the API server must not taint new Nodes.
    pub async fn ready_node(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<String> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let labels: std::collections::BTreeMap<&str, &str> = labels.iter().copied().collect();
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": labels },
            "status": {
                "nodeInfo": node_info(name),
                "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
            },
        }))?;
        let created = nodes.create(&PostParams::default(), &node).await?;
        created.uid().context("a created Node has a UID")
    }

    /// Registers `worker-0` and so on, each with an agent whose steps take `step_time`.
    pub async fn workers(
        &self,
        count: usize,
        step_time: Duration,
    ) -> anyhow::Result<Vec<CoreAgent>> {
        let mut agents = Vec::new();
        for n in 0..count {
            let name = format!("worker-{n}");
            let uid = self.node(&name, &[]).await?;
            let script = HostScript {
                step_time,
                ..HostScript::default()
            };
            let host = FakeHost::new(&name, script);
            agents.push(CoreAgent::start(self.client.clone(), &name, &uid, &host));
        }
        Ok(agents)
    }

    /// Creates a Skyhook.
    pub async fn skyhook(&self, manifest: serde_json::Value) -> anyhow::Result<Skyhook> {
        let skyhooks: Api<Skyhook> = Api::all(self.client.clone());
        Ok(skyhooks
            .create(&PostParams::default(), &serde_json::from_value(manifest)?)
            .await?)
    }

    /// Waits until a Skyhook is as it should be.
    pub async fn until(
        &self,
        name: &str,
        timeout: Duration,
        is_met: impl Fn(&Skyhook) -> bool,
    ) -> anyhow::Result<Skyhook> {
        let what = "what the test waits for";
        rollout::wait_for(self.client.clone(), name, what, timeout, is_met).await
    }
}

/// The Skyhook's status word.
#[must_use]
pub fn status(skyhook: &Skyhook) -> &str {
    skyhook
        .status
        .as_ref()
        .map_or("", |status| status.status.as_str())
}

fn node_info(name: &str) -> serde_json::Value {
    json!({
        "bootID": boot_id(name), "machineID": name, "systemUUID": name, "architecture": "amd64",
        "operatingSystem": "linux", "kernelVersion": "6.1", "osImage": "Debian", "containerRuntimeVersion": "containerd://1.7",
        "kubeletVersion": "v1.36.3", "kubeProxyVersion": "",
    })
}

/// The boot ID that a registered Node reports.
#[must_use]
pub fn boot_id(node: &str) -> String {
    format!("boot-of-{node}")
}

/// The name of the `n`th node of a large fleet, as long as a cloud makes them.
#[must_use]
pub fn node_name(n: usize) -> String {
    format!(
        "ip-10-0-{:03}-{:03}.eu-central-1.compute.internal",
        n / 250,
        n % 250
    )
}

/// What a watch would deliver for this object.
pub fn decoded<T: DeserializeOwned>(object: Value) -> anyhow::Result<Box<T>> {
    Ok(Box::new(serde_json::from_value(object)?))
}

/// A coordinator in this process.
#[derive(Debug)]
pub struct InProcess {
    /// What it measures, but for requests.
    pub metrics: Metrics,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl InProcess {
    /// One that has stopped already.
    #[must_use]
    pub fn none() -> Self {
        let (stop, _) = watch::channel(true);
        Self {
            metrics: Metrics::new(false),
            stop,
            task: tokio::spawn(async { Ok(()) }),
        }
    }

    /// Runs it with `settings`.
    #[must_use]
    pub fn start(client: Client, settings: Settings) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (ready, _) = watch::channel(false);
        let metrics = Metrics::new(settings.nodewright_metrics);
        let shared = metrics.clone();
        let task = tokio::spawn(async move {
            skyhook_coordinator::run::run(client, &settings, &shared, stopped, ready).await
        });
        Self {
            metrics,
            stop,
            task,
        }
    }

    /// Stops it as SIGTERM would. One that has not ended after half a minute never will.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(30), self.task)
            .await
            .context("the coordinator was asked to stop 30 s ago and has not")??
    }

    /// Ends it at once, wherever it is.
    pub fn kill(self) {
        self.task.abort();
    }
}

/// A small generator of numbers below a bound, the same for the same seed.
pub fn pseudo_random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below.max(1)
    }
}
