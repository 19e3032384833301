//! A host with containerd and a real kubelet: its node runs pods.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use crate::controlplane::ControlPlane;
use crate::host::Host;
use crate::network::Network;
use crate::process::tail;
use crate::wait::eventually;

/// How long a node may take from a booted host to Ready.
const READY: Duration = Duration::from_secs(90);

/// A host whose kubelet registers its node; it is installed before the first boot and starts with
/// every boot.
#[derive(Debug, Clone)]
pub struct KubeNode {
    pub host: Arc<Host>,
}

impl KubeNode {
    /// Writes what containerd and kubelet need on the disk of a host that is off. `index` is the
    /// host's in its network, and `plane` has to know the kubelet
    /// ([`Options::kubelets`](crate::controlplane::Options::kubelets)).
    pub async fn install(
        plane: &ControlPlane,
        network: &Network,
        host: Arc<Host>,
        index: u8,
    ) -> Result<Self> {
        host.link().route_through(network.gateway()).await?;
        let address = host.link().address.to_string();
        let pods = format!("10.244.{index}.0/24");
        let apiserver = plane.url().trim_start_matches("https://");
        let fill = |text: &str| {
            text.replace("@NODE@", host.name())
                .replace("@ADDRESS@", &address)
                .replace("@PODS@", &pods)
                .replace("@APISERVER@", apiserver)
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
            host.write(path, &fill(text))?;
        }
        let wants = host.path(&format!("{units}/multi-user.target.wants"));
        for (unit, from) in [
            ("containerd.service", "/lib/systemd/system"),
            ("kubelet.service", units),
            ("harness-services.service", units),
        ] {
            symlink(format!("{from}/{unit}"), wants.join(unit))?;
        }
        Ok(Self { host })
    }

    /// Loads image archives from below `/opt/skyhook` on a host that is up.
    pub async fn load_images(&self, archives: &[String]) -> Result<()> {
        let script = "i=0; until ctr version >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 150 ]; sleep 0.2; done";
        self.host
            .sh(script)
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
            self.host.exec(import).await?;
        }
        Ok(())
    }

    /// Waits until the node says that it is Ready in the host's current boot.
    pub async fn wait_ready(&self, client: kube::Client) -> Result<()> {
        let nodes: Api<Node> = Api::all(client);
        let boot = self.host.current()?.id;
        eventually(READY, async || {
            let node = nodes.get_opt(self.host.name()).await?;
            ensure!(
                node.is_some_and(|node| is_ready(&node, &boot)),
                "node {} is not Ready:\n{}",
                self.host.name(),
                self.log()
            );
            Ok(())
        })
        .await
    }

    /// The end of the kubelet's log.
    pub fn log(&self) -> String {
        tail(&self.host.path("/var/log/kubelet.log"), 40)
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
