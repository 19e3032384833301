//! The agent's real core against a real API server, on a host that is faked: images are at hand, steps take the time
//! that a test gives them and end as it says, an interrupt changes at most the boot ID.

#![expect(
    clippy::disallowed_methods,
    reason = "plays the agent's shell, which owns the clock"
)]

use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event as Watched};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::lease::{InterruptionLease, Phase, StopReason};
use skyhook_crds::names;
use skyhook_crds::package::{InterruptType, name_of};
use skyhook_crds::revision::RevisionData;
use skyhook_nodeagent::machine::reconcile::of_lease;
use skyhook_nodeagent::machine::{
    self, Effect, Event, Half, Input, LeaseView, Outcome, Progress, StepPlan, Wanted,
};
use skyhook_nodeagent::report;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

mod host;

pub use host::{FakeHost, HostScript};

/// A running agent; it ends, wherever it is, when dropped.
#[derive(Debug)]
pub struct CoreAgent(JoinHandle<()>);

impl Drop for CoreAgent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl CoreAgent {
    /// Starts the agent of a node on its host, with a watch of its own as agents have it.
    #[must_use]
    pub fn start(client: Client, node: &str, node_uid: &str, host: &FakeHost) -> Self {
        let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
        let leases = watcher::watcher(Api::all(client.clone()), config)
            .default_backoff()
            .filter_map(|event| std::future::ready(seen(event)))
            .boxed();
        Self::start_fed(client, node, node_uid, host, leases)
    }

    /// Starts it on what somebody else says of its lease, `None` when it is gone.
    #[must_use]
    pub fn start_fed(
        client: Client,
        node: &str,
        node_uid: &str,
        host: &FakeHost,
        leases: BoxStream<'static, Option<InterruptionLease>>,
    ) -> Self {
        let (events, inbox) = mpsc::unbounded_channel();
        let agent = Agent {
            leases: Api::all(client.clone()),
            client,
            node: node.to_owned(),
            node_uid: node_uid.to_owned(),
            host: host.clone(),
            events,
            lease: None,
            reported: Value::Null,
            last_write: None,
        };
        Self(tokio::spawn(async move {
            if let Err(error) = agent.run(leases, inbox).await {
                eprintln!("core agent: {error:#}");
            }
        }))
    }
}

struct Agent {
    client: Client,
    leases: Api<InterruptionLease>,
    node: String,
    node_uid: String,
    host: FakeHost,
    events: mpsc::UnboundedSender<Event>,
    lease: Option<InterruptionLease>,
    reported: Value,
    last_write: Option<tokio::time::Instant>,
}

const PACE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(600);

/// What a watch says of the one lease that it is for.
fn seen(event: watcher::Result<Watched<InterruptionLease>>) -> Option<Option<InterruptionLease>> {
    match event {
        Ok(Watched::Apply(lease) | Watched::InitApply(lease)) => Some(Some(lease)),
        Ok(Watched::Delete(_)) => Some(None),
        Ok(Watched::Init | Watched::InitDone) | Err(_) => None,
    }
}

impl Agent {
    /// The host's clock, in Unix milliseconds.
    fn now(&self) -> i64 {
        self.host.with(|disk| disk.clock(Timestamp::now()))
    }

    async fn run(
        mut self,
        mut leases: BoxStream<'static, Option<InterruptionLease>>,
        mut inbox: mpsc::UnboundedReceiver<Event>,
    ) -> anyhow::Result<()> {
        if self.progress().is_some() {
            let boot_id = self.host.with(|disk| disk.facts.boot_id.clone());
            self.feed(Event::Restarted { boot_id }).await?;
        }
        loop {
            let run = self.progress();
            let wake = run.as_ref();
            let wake = wake.and_then(|p| machine::wake_at(p, self.now()));
            // Without a lease there is nothing to report.
            let pace = if run.is_some_and(|run| run.ended.is_none()) || self.lease.is_some() {
                PACE
            } else {
                IDLE
            };
            let wait = wake.map_or(pace, |at| {
                let left = (at - self.now()) / self.host.with(|disk| disk.script.haste);
                Duration::from_millis(u64::try_from(left).unwrap_or(0)).min(pace)
            });
            tokio::select! {
                Some(seen) = leases.next() => {
                    if !seen.as_ref().is_some_and(|lease| self.is_ahead_of(lease)) {
                        if let Some(lease) = &seen {
                            self.reported = serde_json::to_value(&lease.status)?;
                        }
                        self.lease = seen;
                    }
                    self.look().await?;
                },
                Some(event) = inbox.recv() => self.feed(event).await?,
                () = tokio::time::sleep(wait) => {
                    if wake.is_some_and(|at| at <= self.now()) {
                        self.feed(Event::Ticked).await?;
                    }
                    self.report().await?;
                }
            }
        }
    }

    /// True when an answer has told more of this lease than the watch.
    fn is_ahead_of(&self, seen: &InterruptionLease) -> bool {
        let version = |lease: &InterruptionLease| lease.resource_version().unwrap_or_default();
        self.lease.as_ref().is_some_and(|held| {
            held.uid() == seen.uid() && protocol::is_older(&version(seen), &version(held))
        })
    }

    fn progress(&self) -> Option<Progress> {
        self.host.with(|disk| disk.journal.run.clone())
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let run = self.progress();
        if let (Some(lease), Some(run)) = (&self.lease, &run)
            && lease.uid().as_deref() == Some(&run.lease)
        {
            let view = LeaseView::of(lease, &self.node_uid);
            return self.feed(Event::LeaseSeen(view)).await;
        }
        if run.is_some_and(|run| run.ended.is_none()) {
            let stop = Some(StopReason::Deleted);
            return self
                .feed(Event::LeaseSeen(LeaseView {
                    stop,
                    ..LeaseView::default()
                }))
                .await;
        }
        let Some(lease) = self.lease.clone() else {
            return Ok(());
        };
        match protocol::agent_duty(&lease, &self.node_uid) {
            AgentDuty::Accept => self.begin(lease).await,
            AgentDuty::Ignore(_)
            | AgentDuty::Work
            | AgentDuty::Hold
            | AgentDuty::Stop(_)
            | AgentDuty::Finished => Ok(()),
        }
    }

    async fn begin(&mut self, lease: InterruptionLease) -> anyhow::Result<()> {
        let skyhook = lease.spec.skyhook.clone();
        let uid = lease.metadata.uid.clone().unwrap_or_default();
        let (facts, journal) = self.host.with(|disk| {
            let now = disk.clock(Timestamp::now());
            disk.journal.archive_run(&uid, now);
            (disk.facts.clone(), disk.journal.clone())
        });
        let entries = journal
            .skyhooks
            .get(&skyhook.name)
            .map(|record| &record.entries);
        let (entries, _) = of_lease(entries, &lease, &facts.machine_id, "");
        let body = json!({ "phase": Phase::Accepted, "bootID": facts.boot_id, "epoch": facts.epoch, "machineID": facts.machine_id });
        let Some(lease) = self.write(&lease, body).await? else {
            return Ok(());
        };
        let revisions: Api<ControllerRevision> = Api::namespaced(
            self.client.clone(),
            &self.host.with(|disk| disk.script.namespace.clone()),
        );
        let revision = revisions
            .get(&lease.spec.revision)
            .await
            .context("the lease's revision")?;
        let data: RevisionData =
            serde_json::from_value(revision.data.context("a revision has data")?.0)?;
        self.host.with(|disk| {
            disk.journal.run = Some(Progress {
                lease: lease.uid().unwrap_or_default(),
                skyhook,
                revision: lease.spec.revision.clone(),
                order: lease.spec.order,
                serial: data.serial,
                wanted: Wanted::of_revision(&data),
                left_behind: data.left_behind.clone(),
                entries,
                next_step: disk.journal.next_step,
                begun: Some(false),
                boot_id: facts.boot_id.clone(),
                ..Progress::default()
            });
        });
        self.reported = serde_json::to_value(&lease.status)?;
        self.last_write = Some(tokio::time::Instant::now());
        self.lease = Some(lease);
        self.feed(Event::LeaseAccepted).await?;
        Box::pin(self.look()).await
    }

    async fn feed(&mut self, event: Event) -> anyhow::Result<()> {
        let Some(before) = self.progress() else {
            return Ok(());
        };
        let (mut after, effects) = machine::step(
            before,
            Input {
                now: self.now(),
                event,
            },
        );
        report::mark_since(&mut after, self.now());
        self.host.with(|disk| {
            disk.journal.next_step = after.next_step;
            disk.journal.run = Some(after);
        });
        for effect in effects {
            self.perform(effect).await?;
        }
        self.report().await
    }

    async fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        let done = match effect {
            Effect::PullImage { key } => Event::ImageReady { key, digest: None },
            Effect::PrepareStage { key, .. } => Event::StageReady {
                key,
                plan: StepPlan {
                    main: vec![true],
                    checks: 1,
                },
            },
            Effect::RunStep { key, id, half, .. } => {
                self.run_step(key, id, half);
                return Ok(());
            }
            Effect::AdoptStep { key, id, .. } => Event::StepNotStarted { key, id },
            Effect::EndStep { .. } | Effect::CallOffInterrupt => return Ok(()),
            Effect::WriteRunning { resource_version } => {
                self.write_running(&resource_version).await?
            }
            Effect::LookAtLease => Event::LeaseLooked {
                lease: self.progress().map(|p| p.lease).unwrap_or_default(),
                stands: true,
            },
            Effect::LookAtNode => Event::NodeLooked {
                lacking: std::collections::BTreeMap::default(),
            },
            Effect::PrepareInterrupt { .. } => Event::InterruptPrepared {
                before: std::collections::BTreeMap::default(),
            },
            Effect::Interrupt {
                owner, interrupt, ..
            } => {
                self.host.with(|disk| {
                    disk.ledger.push(format!(
                        "interrupt {owner} {:?} {:?}",
                        interrupt.kind, interrupt.services
                    ))
                });
                if interrupt.kind == InterruptType::Reboot {
                    let boot_id = self.reboot().await?;
                    Event::Restarted { boot_id }
                } else {
                    Event::Interrupted
                }
            }
        };
        let _closed = self.events.send(done);
        Ok(())
    }

    fn run_step(&self, key: String, id: u64, half: Half) {
        let stage = self
            .progress()
            .and_then(|p| p.entries.get(&key).map(|e| e.stage));
        let name = name_of(&key).to_owned();
        let (time, fails, output) = self.host.with(|disk| {
            let what = stage.map(|s| {
                if half == Half::Check {
                    s.check().unwrap_or_default()
                } else {
                    s.as_str()
                }
            });
            disk.ledger
                .push(format!("{key} {}", what.unwrap_or_default()));
            let left = disk
                .script
                .failures
                .get_mut(&name)
                .filter(|left| **left > 0);
            let fails = left.is_some();
            if let Some(left) = left {
                *left -= 1;
            }
            (disk.script.step_time, fails, disk.script.output.clone())
        });
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let outcome = if fails {
                Outcome::Failed(output)
            } else {
                Outcome::Succeeded
            };
            let took_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            let _closed = events.send(Event::StepExited {
                key,
                id,
                outcome,
                took_ms,
            });
        });
    }

    /// The boot ID changes, and the kubelet reports it.
    async fn reboot(&self) -> anyhow::Result<String> {
        let boot_id = self.host.boot(true);
        report_boot(&self.client, &self.node, &boot_id).await?;
        Ok(boot_id)
    }

    async fn write_running(&mut self, resource_version: &str) -> anyhow::Result<Event> {
        let Some(lease) = self
            .lease
            .clone()
            .filter(|l| l.resource_version().as_deref() == Some(resource_version))
        else {
            return Ok(Event::RunningRefused);
        };
        Ok(
            match self
                .write(
                    &lease,
                    json!({ "phase": Phase::Running, "needsDrain": true }),
                )
                .await?
            {
                Some(written) => {
                    self.reported = serde_json::to_value(&written.status)?;
                    Event::RunningWritten
                }
                None => Event::RunningRefused,
            },
        )
    }

    /// Writes the status when it is due.
    async fn report(&mut self) -> anyhow::Result<()> {
        let (Some(run), Some(lease)) = (self.progress(), self.lease.clone()) else {
            return Ok(());
        };
        if lease.uid().as_deref() != Some(&run.lease) {
            return Ok(());
        }
        let facts = self.host.with(|disk| disk.facts.clone());
        let status = report::status(&run, &facts, lease.metadata.generation.unwrap_or_default());
        let urgent = status
            .phase
            .is_some_and(|p| p.is_terminal() || p == Phase::AwaitingDrain || p == Phase::Erroring)
            && self.reported.get("phase") != serde_json::to_value(status.phase).ok().as_ref();
        let Some(change) = report::merge_diff(&self.reported, &serde_json::to_value(&status)?)
        else {
            return Ok(());
        };
        let generation_only = change
            .as_object()
            .is_some_and(|c| c.keys().all(|key| key == "observedGeneration"));
        if generation_only || (!urgent && self.last_write.is_some_and(|at| at.elapsed() < PACE)) {
            return Ok(());
        }
        match self.write(&lease, change).await {
            Ok(Some(written)) => {
                self.reported = serde_json::to_value(&written.status)?;
                self.last_write = Some(tokio::time::Instant::now());
                self.lease = Some(written);
            }
            // The watch brings what it is now, and it is decided again.
            Ok(None) => {}
            Err(error) => eprintln!("core agent of {}: {error:#}", self.node),
        }
        Ok(())
    }

    /// Writes with the version of `lease` as precondition; `None` when it did not hold.
    async fn write(
        &self,
        lease: &InterruptionLease,
        status: Value,
    ) -> anyhow::Result<Option<InterruptionLease>> {
        let body = json!({
            "metadata": { "uid": lease.uid(), "resourceVersion": lease.resource_version() },
            "status": status,
        });
        match self
            .leases
            .patch_status(&self.node, &params(), &Patch::Merge(&body))
            .await
        {
            Ok(written) => Ok(Some(written)),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The kubelet reports a boot.
pub(crate) async fn report_boot(client: &Client, node: &str, boot_id: &str) -> kube::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let status = json!({ "status": { "nodeInfo": { "bootID": boot_id } } });
    let body = Patch::Strategic(&status);
    nodes
        .patch_status(node, &PatchParams::default(), &body)
        .await?;
    Ok(())
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(names::AGENT.into()),
        ..PatchParams::default()
    }
}
