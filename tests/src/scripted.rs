//! An agent that plays the protocol of the lease against a real API server, with packages that take no time or as long
//! as a test wants. What it does on a host is faked; what it writes, and when, is the protocol's.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::lease::{InterruptionLease, PackageReport, Phase};
use skyhook_crds::revision::RevisionData;
use skyhook_crds::{Stage, State, names};
use tokio::task::JoinHandle;

/// How a scripted agent behaves.
#[derive(Clone, Debug)]
pub struct Script {
    /// Where the revisions are.
    pub namespace: String,
    /// How long each package takes.
    pub package_time: Duration,
    /// Packages that fail for ever.
    pub failing: Vec<String>,
    /// Reports each stage as it begins, as an agent with slow stages would.
    pub chatty: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            namespace: "skyhook".into(),
            package_time: Duration::ZERO,
            failing: Vec::new(),
            chatty: false,
        }
    }
}

/// A running scripted agent; it ends when dropped.
#[derive(Debug)]
pub struct ScriptedAgent(JoinHandle<()>);

impl Drop for ScriptedAgent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ScriptedAgent {
    /// Plays the agent of a node.
    #[must_use]
    pub fn start(
        client: Client,
        node: &str,
        node_uid: &str,
        boot_id: &str,
        script: Script,
    ) -> Self {
        let agent = Agent {
            leases: Api::all(client.clone()),
            client,
            node: node.to_owned(),
            node_uid: node_uid.to_owned(),
            boot_id: boot_id.to_owned(),
            script,
        };
        Self(tokio::spawn(agent.run()))
    }
}

struct Agent {
    client: Client,
    leases: Api<InterruptionLease>,
    node: String,
    node_uid: String,
    boot_id: String,
    script: Script,
}

impl Agent {
    async fn run(self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.node));
        let mut events = watcher::watcher(self.leases.clone(), config)
            .default_backoff()
            .boxed();
        while let Some(event) = events.next().await {
            if let Ok(Event::Apply(lease) | Event::InitApply(lease)) = event
                && let Err(error) = self.play(lease).await
            {
                eprintln!("scripted agent of {}: {error:#}", self.node);
            }
        }
    }

    /// A conflict is no failure: the watch brings what the lease is now.
    async fn play(&self, mut lease: InterruptionLease) -> anyhow::Result<()> {
        loop {
            let written = match protocol::agent_duty(&lease, &self.node_uid) {
                AgentDuty::Ignore(_) | AgentDuty::Hold | AgentDuty::Finished => return Ok(()),
                AgentDuty::Accept => self.report(&lease, Phase::Accepted, &BTreeMap::new()).await,
                AgentDuty::Stop(_) => {
                    let packages = installed(&lease);
                    self.report(&lease, Phase::Stopped, &packages).await
                }
                AgentDuty::Work => self.work(&lease).await,
            };
            match written {
                Ok(Some(next)) => lease = next,
                Ok(None) => return Ok(()),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn work(
        &self,
        lease: &InterruptionLease,
    ) -> Result<Option<InterruptionLease>, kube::Error> {
        let revisions: Api<k8s_openapi::api::apps::v1::ControllerRevision> =
            Api::namespaced(self.client.clone(), &self.script.namespace);
        let revision = revisions.get(&lease.spec.revision).await?;
        let data: RevisionData = revision
            .data
            .and_then(|data| serde_json::from_value(data.0).ok())
            .unwrap_or_default();
        let mut packages = BTreeMap::new();
        let mut lease = lease.clone();
        for (name, package) in &data.packages {
            let failing = self.script.failing.contains(name);
            for stage in [Stage::Apply, Stage::Config] {
                let mut report = PackageReport {
                    name: name.clone(),
                    version: package.version.clone(),
                    image: package.image.clone(),
                    container_sha: package.container_sha.clone(),
                    stage,
                    state: State::InProgress,
                    restarts: 0,
                    image_digest: None,
                    message: String::new(),
                    since: None,
                };
                packages.insert(package.key(), report.clone());
                if self.script.chatty {
                    lease = match self.report(&lease, Phase::Preparing, &packages).await? {
                        Some(lease) => lease,
                        None => return Ok(None),
                    };
                }
                tokio::time::sleep(self.script.package_time / 2).await;
                report.state = if failing {
                    State::Erroring
                } else {
                    State::Complete
                };
                if failing {
                    report.message = "step x.sh exited with 1".into();
                    packages.insert(package.key(), report);
                    self.report(&lease, Phase::Erroring, &packages).await?;
                    return Ok(None);
                }
                packages.insert(package.key(), report);
            }
        }
        self.report(&lease, Phase::Complete, &packages).await?;
        Ok(None)
    }

    async fn report(
        &self,
        lease: &InterruptionLease,
        phase: Phase,
        packages: &BTreeMap<String, PackageReport>,
    ) -> Result<Option<InterruptionLease>, kube::Error> {
        let body = json!({
            "metadata": { "uid": lease.uid(), "resourceVersion": lease.resource_version() },
            "status": {
                "observedGeneration": lease.metadata.generation,
                "phase": phase,
                "bootID": self.boot_id,
                "machineID": self.node,
                "packages": packages,
            }
        });
        let params = PatchParams {
            field_manager: Some(names::AGENT.into()),
            ..PatchParams::default()
        };
        self.leases
            .patch_status(&self.node, &params, &Patch::Merge(&body))
            .await
            .map(Some)
    }
}

fn installed(lease: &InterruptionLease) -> BTreeMap<String, PackageReport> {
    let reported = lease
        .status
        .as_ref()
        .map(|status| status.packages.clone())
        .unwrap_or_default();
    if !reported.is_empty() {
        return reported;
    }
    lease
        .spec
        .installed
        .iter()
        .map(|(key, status)| {
            let report = PackageReport {
                name: status.name.clone(),
                version: status.version.clone(),
                image: status.image.clone(),
                container_sha: status.container_sha.clone(),
                stage: status.stage,
                state: status.state,
                restarts: status.restarts,
                image_digest: None,
                message: String::new(),
                since: None,
            };
            (key.clone(), report)
        })
        .collect()
}
