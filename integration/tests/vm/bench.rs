//! One virtual machine with an agent, and what the cases say about it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::LocalBoxFuture;
use serde_json::Value;
use skyhook_crds::package::PackageStatus;
use skyhook_crds::{Skyhook, State};
use skyhook_integration::agent::Agent;
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, wait_complete, wait_for};
use skyhook_integration::vm::{self, Vm};
use skyhook_integration::wait::{MINUTE, asking_every};

/// A name and what it stands for.
pub(crate) type Case = (
    &'static str,
    for<'a> fn(&'a Bench) -> LocalBoxFuture<'a, Result<()>>,
);

macro_rules! case {
    ($name:literal => $case:path) => {
        ($name, |bench| Box::pin($case(bench)))
    };
}
pub(crate) use case;

/// What a step may take that does nothing, under emulation and beside much else.
pub(crate) const SOON: Duration = MINUTE.saturating_mul(3);

pub(crate) struct Bench {
    pub(crate) cluster: Cluster<Vm>,
    /// The package that runs scripts of its configMap.
    pub(crate) shell: Image,
}

impl Bench {
    pub(crate) async fn start(system: &str, image: vm::Image) -> Result<Self> {
        let mut setup = Setup::hosts(1);
        setup.hosts = vec![system.to_owned()];
        let cluster = Cluster::<Vm>::start_on(image, setup).await?;
        let shell = cluster.push("shellscript").await?;
        Ok(Self { cluster, shell })
    }

    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.cluster.workers[0].host
    }

    pub(crate) fn agent(&self) -> &Agent<Vm> {
        &self.cluster.workers[0].agent
    }

    /// Applies it and waits for its end.
    pub(crate) async fn complete(&self, manifest: &Value) -> Result<Skyhook> {
        let name = name(manifest)?;
        apply(self.cluster.client(), manifest).await?;
        wait_complete(self.cluster.client(), name, 5 * MINUTE).await
    }

    /// Waits until the reasons of its node hold these words.
    pub(crate) async fn until_it_says(&self, manifest: &Value, words: &[&str]) -> Result<Skyhook> {
        let client = self.cluster.client();
        let what = format!("a reason with {words:?}");
        let says = |s: &Skyhook| skyhook_integration::rollout::says(s, words);
        wait_for(client, name(manifest)?, &what, SOON, says).await
    }

    /// Waits until the only package has failed and was tried again.
    pub(crate) async fn until_tried_again(&self, manifest: &Value) -> Result<()> {
        let client = self.cluster.client();
        let failed = |s: &Skyhook| package(s).is_ok_and(|p| p.state == State::Erroring);
        wait_for(client.clone(), name(manifest)?, "erroring", SOON, failed).await?;
        let again = |s: &Skyhook| package(s).is_ok_and(|p| p.restarts > 0);
        wait_for(client, name(manifest)?, "tried again", SOON, again).await?;
        Ok(())
    }

    /// Waits until a script inside succeeds.
    pub(crate) async fn until(&self, script: &str, within: Duration) -> Result<String> {
        let vm = self.vm();
        asking_every(Duration::from_millis(200), within, async || {
            vm.sh(script).await
        })
        .await
    }

    /// How many lines a file of the machine has; none when there is no such file.
    pub(crate) async fn lines(&self, path: &str) -> Result<usize> {
        let script = format!("cat {path} 2>/dev/null | wc -l");
        Ok(self.vm().sh(&script).await?.trim().parse()?)
    }

    /// Takes away all Skyhooks, so that the next case has the node for itself.
    pub(crate) async fn tidy(&self) -> Result<()> {
        let plane = &self.cluster.plane;
        self.vm().wait_up(0).await?;
        let disable = "skyhook.nvidia.com/disable=true";
        plane
            .kubectl(&["annotate", "--overwrite", "skyhook", "--all", disable])
            .await?;
        if self.cluster.released(2 * MINUTE).await.is_err() {
            // Only after a failure: the agent does not give its node back.
            let forget = "systemctl stop skyhook-agent; systemctl kill -s KILL 'skyhook-*.scope' || true; \
                          rm -rf /var/lib/skyhook-agent; systemctl start skyhook-agent";
            self.vm().sh(forget).await?;
        }
        let delete = ["delete", "skyhook", "--all", "--timeout=60s"];
        plane.kubectl(&delete).await?;
        self.cluster.released(3 * MINUTE).await
    }
}

pub(crate) fn name(manifest: &Value) -> Result<&str> {
    manifest["metadata"]["name"].as_str().context("name")
}

/// The state of the only package on the only node.
pub(crate) fn package(skyhook: &Skyhook) -> Result<PackageStatus> {
    let status = skyhook.status.clone().unwrap_or_default();
    let mut packages = status
        .node_state
        .into_values()
        .flat_map(|m| m.into_values());
    let first = packages.next().context("no package has a state")?;
    ensure!(packages.next().is_none(), "there is more than one package");
    Ok(first)
}
