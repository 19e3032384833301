//! The node agent on a machine: a unit, with the token of a pod that is bound to that node.

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Resource};
use serde_json::json;

use crate::controlplane::ControlPlane;
use crate::host::Host;
use crate::install::NAMESPACE;
use crate::machine::Machine;
use crate::process::tail;
use crate::programs::{AGENT, AGENT_KUBECONFIG, AGENT_LOG, agent_unit};

/// The unit that the agent runs as.
pub const UNIT: &str = "skyhook-agent.service";

/// The agent of one machine.
#[derive(Debug, Clone)]
pub struct Agent<M = Host> {
    host: Arc<M>,
}

impl<M: Machine> Agent<M> {
    /// Gives the machine its credentials and unit. The unit starts at every boot; on a machine that
    /// is up already call [`start`](Self::start).
    pub async fn install(plane: &ControlPlane, host: Arc<M>, extra: &[String]) -> Result<Self> {
        let token = token(plane, host.name()).await?;
        host.write_file(AGENT_KUBECONFIG, &plane.kubeconfig_for(&token))
            .await?;
        let units = "/etc/systemd/system";
        let unit = agent_unit(host.name(), extra);
        host.write_file(&format!("{units}/{UNIT}"), &unit).await?;
        host.enable(UNIT, units).await?;
        Ok(Self { host })
    }

    /// Starts the unit on a machine that is up.
    pub async fn start(&self) -> Result<()> {
        self.host.run(&["systemctl", "daemon-reload"]).await?;
        self.host.run(&["systemctl", "start", UNIT]).await.map(drop)
    }

    /// Orderly stop (SIGTERM); it stays down until started, or until the next boot.
    pub async fn stop(&self) -> Result<()> {
        self.host.run(&["systemctl", "stop", UNIT]).await.map(drop)
    }

    /// SIGKILL to the agent alone, as when its container is killed. systemd starts it again.
    pub async fn kill(&self) -> Result<()> {
        let kill = [
            "systemctl",
            "kill",
            "--kill-whom=main",
            "--signal=KILL",
            UNIT,
        ];
        self.host.run(&kill).await.map(drop)
    }

    /// Its process number inside the host; 0 when it does not run.
    pub async fn pid(&self) -> Result<u32> {
        let show = ["systemctl", "show", "--property=MainPID", "--value", UNIT];
        Ok(self.host.run(&show).await?.trim().parse()?)
    }

    /// Resident memory in bytes.
    pub async fn rss(&self) -> Result<u64> {
        let pid = self.pid().await?;
        let status = self
            .host
            .run(&["cat", &format!("/proc/{pid}/status")])
            .await?;
        rss_from(&status).with_context(|| format!("{AGENT} is process {pid}, which has no VmRSS"))
    }

    /// All of its log.
    pub async fn whole_log(&self) -> Result<String> {
        self.host.read_file(AGENT_LOG).await
    }
}

impl Agent {
    /// The end of its log.
    pub fn log(&self) -> String {
        tail(&self.host.path(AGENT_LOG), 40)
    }
}

/// `VmRSS` of `/proc/PID/status`, in bytes.
pub(crate) fn rss_from(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// The token that the DaemonSet's pod on this node would get: it carries the node's name.
pub async fn token(plane: &ControlPlane, node: &str) -> Result<String> {
    let client = plane.client();
    let owner = Api::<DaemonSet>::namespaced(client.clone(), NAMESPACE)
        .get(AGENT)
        .await?;
    let owner = owner
        .controller_owner_ref(&())
        .context("the DaemonSet has no UID")?;
    let name = format!("{AGENT}-{node}");
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": AGENT}, "ownerReferences": [owner]},
        "spec": {
            "nodeName": node,
            "serviceAccountName": AGENT,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "agent", "image": AGENT}],
        },
    }))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let pod = match pods.create(&PostParams::default(), &pod).await {
        Err(kube::Error::Api(status)) if status.code == 409 => pods.get(&name).await?,
        created => created.with_context(|| format!("cannot create pod {name}"))?,
    };
    let bound = json!({
        "kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod.metadata.uid,
    });
    service_account_token(client, AGENT, Some(bound)).await
}

/// A token of a service account of ours.
pub async fn service_account_token(
    client: kube::Client,
    account: &str,
    bound: Option<serde_json::Value>,
) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
    let request: TokenRequest = serde_json::from_value(json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": {},
        "spec": {"audiences": [], "boundObjectRef": bound, "expirationSeconds": 86400},
    }))?;
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    let token = answer.status.and_then(|status| status.token);
    token.with_context(|| format!("no token for {account}"))
}
