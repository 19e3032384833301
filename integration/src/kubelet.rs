//! A host with containerd and a real kubelet: its node runs pods.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use crate::controlplane::ControlPlane;
use crate::host::Host;
use crate::machine::Machine;
use crate::network::Network;
use crate::wait::eventually;

/// How long a node may take from a booted host to Ready.
const READY: Duration = Duration::from_secs(90);
/// The same under emulation.
const READY_EMULATED: Duration = Duration::from_secs(300);

/// A machine whose kubelet registers its node, and starts with every boot.
#[derive(Debug)]
pub struct KubeNode<M = Host> {
    pub host: Arc<M>,
}

impl<M> Clone for KubeNode<M> {
    fn clone(&self) -> Self {
        let host = Arc::clone(&self.host);
        Self { host }
    }
}

impl<M: Machine> KubeNode<M> {
    /// Writes what containerd and kubelet need on a machine that is up, and starts them. `index` is
    /// the machine's in its network, `plane` has to know the kubelet
    /// ([`Options::kubelets`](crate::controlplane::Options::kubelets)), and `taints` (JSON) are those
    /// that it registers the node with.
    pub async fn install(
        plane: &ControlPlane,
        network: &Network,
        host: Arc<M>,
        index: u8,
        taints: &serde_json::Value,
    ) -> Result<Self> {
        host.route_through(network.gateway()).await?;
        let address = host.address().to_string();
        let pods = format!("10.244.{index}.0/24");
        let apiserver = plane.url().trim_start_matches("https://");
        // Where the controllers are ours, as on any node; elsewhere systemd does not know them all.
        let (driver, own) = if M::OWN_KERNEL {
            ("systemd", "true")
        } else {
            ("cgroupfs", "false")
        };
        let fill = |text: &str| {
            text.replace("@NODE@", host.name())
                .replace("@ADDRESS@", &address)
                .replace("@PODS@", &pods)
                .replace("@APISERVER@", apiserver)
                .replace("@DRIVER@", driver)
                .replace("@OWN@", own)
                .replace("@NOT_OWN@", &(!M::OWN_KERNEL).to_string())
                .replace("@TAINTS@", &taints.to_string())
        };
        let units = "/etc/systemd/system";
        for (path, text) in [
            (
                "/etc/containerd/config.toml",
                include_str!("kubelet/containerd.toml"),
            ),
            (
                "/etc/systemd/system/containerd.service.d/harness.conf",
                include_str!("kubelet/containerd.conf"),
            ),
            (
                "/etc/cni/net.d/10-pods.conflist",
                include_str!("kubelet/bridge.conflist"),
            ),
            (
                "/etc/kubernetes/kubelet.yaml",
                include_str!("kubelet/kubelet.yaml"),
            ),
            (
                "/etc/systemd/system/kubelet.service",
                include_str!("kubelet/kubelet.service"),
            ),
            (
                "/etc/systemd/system/harness-services.service",
                include_str!("kubelet/harness-services.service"),
            ),
            // The registry of the harness stands for this one, so that examples work as they stand.
            (
                "/etc/hosts",
                &format!(
                    "127.0.0.1 localhost @NODE@\n{} ghcr.io\n",
                    network.gateway()
                ),
            ),
            ("/etc/harness/services", include_str!("kubelet/services")),
            ("/etc/harness/resolv.conf", "nameserver 127.0.0.1\n"),
            (
                "/etc/kubernetes/kubelet.kubeconfig",
                &plane.kubelet_kubeconfig(host.name()),
            ),
        ] {
            host.write_file(path, &fill(text)).await?;
        }
        for (unit, from) in [
            ("containerd.service", "/lib/systemd/system"),
            ("kubelet.service", units),
            ("harness-services.service", units),
        ] {
            host.enable(unit, from).await?;
        }
        host.run(&["systemctl", "daemon-reload"]).await?;
        host.run(&[
            "systemctl",
            "start",
            "containerd",
            "harness-services",
            "kubelet",
        ])
        .await?;
        Ok(Self { host })
    }

    /// Loads image archives from below `/opt/skyhook` on a host that is up.
    pub async fn load_images(&self, archives: &[String]) -> Result<()> {
        let script = "i=0; until ctr version >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 150 ]; sleep 0.2; done";
        self.host
            .run(&["sh", "-ec", script])
            .await
            .context("containerd does not answer")?;
        for archive in archives {
            let path = format!("/opt/skyhook/images/{archive}");
            let import = [
                "ctr",
                "-n",
                "k8s.io",
                "images",
                "import",
                "--snapshotter",
                "native",
                &path,
            ];
            self.host.run(&import).await?;
        }
        Ok(())
    }

    /// Waits until the node says that it is Ready in the host's current boot.
    pub async fn wait_ready(&self, client: kube::Client) -> Result<()> {
        let nodes: Api<Node> = Api::all(client);
        let boot = self.host.switch().current()?.id;
        let within = if M::OWN_KERNEL { READY_EMULATED } else { READY };
        eventually(within, async || {
            let node = nodes.get_opt(self.host.name()).await?;
            ensure!(
                node.is_some_and(|node| is_ready(&node, &boot)),
                "node {} is not Ready:\n{}",
                self.host.name(),
                self.log().await
            );
            Ok(())
        })
        .await
    }

    /// The supervisor of the one step that runs: its process number inside the machine.
    pub async fn supervisor(&self) -> Result<String> {
        let find = "scope=$(systemctl list-units --plain --no-legend 'skyhook-*.scope' | cut -d' ' -f1); \
                    cat /sys/fs/cgroup/systemd/skyhook.slice/$scope/cgroup.procs \
                        /sys/fs/cgroup/skyhook.slice/$scope/cgroup.procs 2>/dev/null | head -n 1";
        let pid = self.host.run(&["sh", "-ec", find]).await?.trim().to_owned();
        ensure!(!pid.is_empty(), "no step runs on {}", self.host.name());
        Ok(pid)
    }

    /// The end of the kubelet's log.
    pub async fn log(&self) -> String {
        let tail = ["tail", "-n", "40", "/var/log/kubelet.log"];
        let log = self.host.run(&tail).await;
        log.unwrap_or_else(|error| format!("{error:#}"))
    }
}

fn is_ready(node: &Node, boot: &str) -> bool {
    let Some(status) = &node.status else {
        return false;
    };
    let conditions = status.conditions.iter().flatten();
    let ready = conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let booted = status
        .node_info
        .as_ref()
        .is_some_and(|info| info.boot_id == boot);
    ready && booted
}
