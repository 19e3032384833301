//! The kubelet's part for a host that runs none: the host's Node object, which says what is true
//! of the host, when the host can say it.
//!
//! A host that is off, frozen or cut off says nothing; after a grace period its node becomes
//! Unknown, which is the node lifecycle controller's part. An idle host costs no request unless
//! heartbeats are on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::machine::{Boot, Machine, Power};

mod pods;

pub use pods::ENDS_AFTER;

const HEARTBEAT: Duration = Duration::from_secs(10);

/// How a node behaves.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub labels: Vec<(String, String)>,
    /// How long a node that says nothing is still believed to be Ready.
    pub grace: Duration,
    /// Renew the node's lease, as the node lifecycle controller expects; then that controller, not
    /// this one, declares nodes Unknown and takes away the not-ready taint.
    pub heartbeats: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            labels: Vec::new(),
            grace: Duration::from_secs(5),
            heartbeats: false,
        }
    }
}

/// Keeps a host's Node object for as long as it lives.
#[derive(Debug)]
pub struct NodePlayer {
    tasks: [JoinHandle<()>; 2],
    withhold_ready: Arc<AtomicBool>,
}

impl NodePlayer {
    /// Registers the node of a host that is up and waits until it is Ready.
    pub async fn register<M: Machine>(
        client: kube::Client,
        host: Arc<M>,
        options: NodeOptions,
    ) -> Result<Self> {
        let withhold_ready = Arc::new(AtomicBool::new(false));
        let mut player = Player {
            nodes: Api::all(client.clone()),
            leases: Api::namespaced(client.clone(), "kube-node-lease"),
            host: Arc::clone(&host),
            options,
            posted: Posted::default(),
            silent_since: None,
            withhold_ready: Arc::clone(&withhold_ready),
        };
        player.create().await?;
        player.tick().await?;
        let tasks = [
            tokio::spawn(player.run()),
            tokio::spawn(pods::play(client, host)),
        ];
        Ok(Self {
            tasks,
            withhold_ready,
        })
    }

    /// Makes the node say that it is not ready although the host runs, as when its network plugin
    /// does not come up.
    pub fn withhold_ready(&self, withhold: bool) {
        self.withhold_ready.store(withhold, Ordering::SeqCst);
    }
}

impl Drop for NodePlayer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Ready {
    #[default]
    Unknown,
    False,
    True,
}

#[derive(Debug, Default)]
struct Posted {
    boot: Option<Boot>,
    ready: Ready,
    heartbeat: Option<Instant>,
}

struct Player<M> {
    nodes: Api<Node>,
    leases: Api<Lease>,
    host: Arc<M>,
    options: NodeOptions,
    posted: Posted,
    silent_since: Option<Instant>,
    withhold_ready: Arc<AtomicBool>,
}

impl<M: Machine> Player<M> {
    async fn run(mut self) {
        loop {
            let mut power = self.host.switch().watch();
            tokio::select! {
                _ = power.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
            }
            // An API server that is away is normal in tests: the next tick tries again.
            if let Err(error) = self.tick().await {
                eprintln!("node {}: {error:#}", self.host.name());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }

    async fn create(&self) -> Result<()> {
        let name = self.host.name();
        let mut labels = serde_json::Map::new();
        for (key, value) in [
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
        ] {
            labels.insert(key.to_owned(), json!(value));
        }
        labels.extend(
            self.options
                .labels
                .iter()
                .map(|(key, value)| (key.clone(), json!(value))),
        );
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
        });
        let node: Node = serde_json::from_value(node)?;
        match self.nodes.create(&PostParams::default(), &node).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot create node {name}")),
        }
    }

    async fn tick(&mut self) -> Result<()> {
        if !self.host.is_reachable() {
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            let given_up = since.elapsed() >= self.options.grace;
            if given_up && !self.options.heartbeats && self.posted.ready != Ready::Unknown {
                self.post(None, Ready::Unknown).await?;
            }
            return Ok(());
        }
        self.silent_since = None;
        let Power::Up(boot) = self.host.switch().watch().borrow().clone() else {
            return Ok(());
        };
        let withheld = self.withhold_ready.load(Ordering::SeqCst);
        let ready = if withheld { Ready::False } else { Ready::True };
        if self.posted.boot.as_ref() != Some(&boot) || self.posted.ready != ready {
            self.post(Some(&boot), ready).await?;
            self.posted.boot = Some(boot);
            if ready == Ready::True && !self.options.heartbeats {
                self.remove_not_ready_taint().await?;
            }
        }
        let beat = self
            .posted
            .heartbeat
            .is_none_or(|last| last.elapsed() >= HEARTBEAT);
        if self.options.heartbeats && beat {
            self.heartbeat().await?;
        }
        Ok(())
    }

    async fn post(&mut self, boot: Option<&Boot>, ready: Ready) -> Result<()> {
        let (status, reason) = match ready {
            Ready::True => ("True", "KubeletReady"),
            Ready::False => ("False", "KubeletNotReady"),
            Ready::Unknown => ("Unknown", "NodeStatusUnknown"),
        };
        let now = jiff::Timestamp::now().to_string();
        let mut patch = json!({"status": {"conditions": [{
            "type": "Ready",
            "status": status,
            "reason": reason,
            "message": "posted by the test harness",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }]}});
        if let Some(boot) = boot {
            patch["status"]["nodeInfo"] = self.node_info(boot);
            patch["status"]["capacity"] = json!({"cpu": "2", "memory": "4Gi", "pods": "110"});
            patch["status"]["allocatable"] = patch["status"]["capacity"].clone();
            let address = self.host.address().to_string();
            patch["status"]["addresses"] = json!([
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": self.host.name()},
            ]);
        }
        let patch = Patch::Strategic(patch);
        self.nodes
            .patch_status(self.host.name(), &PatchParams::default(), &patch)
            .await?;
        self.posted.ready = ready;
        Ok(())
    }

    fn node_info(&self, boot: &Boot) -> Value {
        json!({
            "bootID": boot.id,
            "machineID": self.host.machine_id(),
            "systemUUID": self.host.machine_id(),
            "kernelVersion": "6.1",
            "osImage": "Debian GNU/Linux",
            "containerRuntimeVersion": "none://0",
            "kubeletVersion": "v1.36.3",
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": "amd64",
        })
    }

    /// The API server taints new nodes, and a controller that may not run here removes it.
    async fn remove_not_ready_taint(&self) -> Result<()> {
        loop {
            let node = self.nodes.get(self.host.name()).await?;
            let version = node.metadata.resource_version;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            let (gone, kept): (Vec<_>, Vec<_>) = taints
                .into_iter()
                .partition(|taint| taint.key == "node.kubernetes.io/not-ready");
            if gone.is_empty() {
                return Ok(());
            }
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": kept}});
            let patch = Patch::Merge(patch);
            match self
                .nodes
                .patch(self.host.name(), &PatchParams::default(), &patch)
                .await
            {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn heartbeat(&mut self) -> Result<()> {
        let name = self.host.name();
        let now = jiff::Timestamp::now();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": 40,
                "renewTime": format!("{now:.6}"),
            },
        });
        let params = PatchParams::apply("kubelet").force();
        self.leases
            .patch(name, &params, &Patch::Apply(lease))
            .await?;
        self.posted.heartbeat = Some(Instant::now());
        Ok(())
    }
}
