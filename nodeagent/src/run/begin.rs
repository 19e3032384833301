//! Taking a lease: reconcile, accept, read the revision, begin.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::lease::{InterruptionLeaseStatus, Phase};
use skyhook_crds::revision::RevisionData;
use tokio::time::{Instant, sleep};

use super::agent::{Agent, Note, RunFacts, now};
use crate::host::limits;
use crate::lease::ApiError;
use crate::machine::reconcile::{Source, of_lease};
use crate::machine::{Entries, Event, Progress, Wanted, retry};
use crate::report;
use crate::stage::metadata::NodeFacts;

/// How the attempt to take a lease came out.
#[derive(Debug)]
pub(super) struct Begun {
    uid: String,
    entries: Entries,
    source: Source,
    /// The lease as the API has it now, with what is needed to begin.
    result: Result<Taken, ApiError>,
}

#[derive(Debug)]
struct Taken {
    lease: InterruptionLease,
    revision: RevisionData,
    facts: RunFacts,
    /// Revision that was needed to know what is on the host.
    recovered: Option<(String, RevisionData)>,
}

impl Agent {
    /// Looks whether the lease is for this agent, and takes it if it is.
    pub(super) fn try_begin(&mut self) {
        let Some(lease) = self.lease.clone() else {
            return;
        };
        if self.is_beginning || self.begin_at.is_some() {
            return;
        }
        let node_uid = match &self.node_uid {
            Some(uid) if *uid == lease.spec.node.uid => uid.clone(),
            Some(_) | None => {
                if self.node_asked_for.as_ref() != Some(&lease.spec.node.uid) {
                    self.node_asked_for = Some(lease.spec.node.uid.clone());
                    self.find_node();
                }
                return;
            }
        };
        match protocol::agent_duty(&lease, &node_uid) {
            AgentDuty::Ignore(reason) => {
                tracing::debug!(?reason, "the lease is left alone");
            }
            AgentDuty::Finished => self.keep_true(&lease),
            AgentDuty::Accept => self.take_lease(lease, true),
            // Accepted by an agent whose journal is lost.
            AgentDuty::Work | AgentDuty::Hold | AgentDuty::Stop(_) => self.take_lease(lease, false),
        }
    }

    /// The Node's UID is asked for once, and again when a lease names another.
    fn find_node(&mut self) {
        self.is_beginning = true;
        let (api, notes) = (self.api.clone(), self.notes.clone());
        let wanted = self.lease.as_ref().map(|l| l.spec.node.uid.clone());
        tokio::task::spawn_local(async move {
            let mut failures = 0;
            let node = loop {
                match api.node().await {
                    Ok(node) => break node,
                    Err(error) => tracing::warn!(%error, ?wanted, "the Node cannot be read"),
                }
                failures += 1;
                sleep(delay(failures)).await;
            };
            let _sent = notes.send(Note::Node(Box::new(node)));
        });
    }

    fn take_lease(&mut self, lease: InterruptionLease, accept: bool) {
        self.is_beginning = true;
        let (mut entries, source) = self.reconciled(&lease);
        let uid = lease.metadata.uid.clone().unwrap_or_default();
        tracing::info!(lease = %uid, skyhook = %lease.spec.skyhook.name, revision = %lease.spec.revision, ?source, "taking the lease");
        let status = self.accepted_status(&lease, &entries);
        let (api, notes) = (self.api.clone(), self.notes.clone());
        let bus = Rc::clone(&self.bus);
        let runner = Rc::clone(&self.runner);
        let orphans = super::housekeeping::running_steps(self.runner.steps());
        tokio::task::spawn_local(async move {
            // Nothing runs on a host before an earlier lease's step has ended.
            super::housekeeping::await_steps(&runner, orphans).await;
            let taken = async {
                let lease = if accept {
                    let version = lease.metadata.resource_version.clone().unwrap_or_default();
                    let before = serde_json::to_value(&lease.status).unwrap_or_default();
                    let after = serde_json::to_value(&status).unwrap_or_default();
                    let change = report::merge_diff(&before, &after).unwrap_or_default();
                    api.patch_status(&uid, &version, change).await?
                } else {
                    lease
                };
                let (revision, node, limits) = tokio::join!(
                    api.revision(&lease.spec.revision),
                    api.node(),
                    limits::process(&bus)
                );
                let revision = revision?;
                let recovered = super::recover::recover(&api, &lease, &mut entries).await?;
                let facts = RunFacts {
                    node: node?,
                    default_resources: default_resources(&api, &revision).await?,
                    limits,
                };
                Ok(Taken {
                    lease,
                    revision,
                    facts,
                    recovered,
                })
            };
            let result = taken.await;
            let begun = Begun {
                uid,
                entries,
                source,
                result,
            };
            let _sent = notes.send(Note::Begun(Box::new(begun)));
        });
    }

    /// What the host's journal says of a Skyhook.
    fn journalled(&self, skyhook: &str) -> Option<&Entries> {
        let ended = self
            .run()
            .filter(|run| run.skyhook.name == *skyhook)
            .map(|run| &run.entries);
        ended.or_else(|| self.journal.state.skyhooks.get(skyhook).map(|r| &r.entries))
    }

    /// What is on this host: see [`crate::machine::reconcile`].
    fn reconciled(&self, lease: &InterruptionLease) -> (Entries, Source) {
        let journal = self.journalled(&lease.spec.skyhook.name);
        of_lease(journal, lease, &self.facts.machine_id, &self.facts.host_id)
    }

    fn accepted_status(
        &self,
        lease: &InterruptionLease,
        entries: &Entries,
    ) -> InterruptionLeaseStatus {
        let progress = Progress {
            entries: entries.clone(),
            ..Progress::default()
        };
        InterruptionLeaseStatus {
            observed_generation: lease.metadata.generation.unwrap_or(0),
            phase: Some(Phase::Accepted),
            boot_id: self.facts.boot_id.clone(),
            machine_id: self.facts.machine_id.clone(),
            host_id: self.facts.host_id.clone(),
            epoch: self.facts.epoch.clone(),
            reboots: protocol::known_reboots(lease),
            agent_version: self.facts.agent_version.clone(),
            packages: report::packages(&progress),
            since: Some(crate::machine::progress::time(now())),
            message: "accepted".to_owned(),
            ..InterruptionLeaseStatus::default()
        }
    }

    /// The attempt to take a lease is over.
    pub(super) fn begun(&mut self, begun: Begun) {
        self.is_beginning = false;
        match begun.result {
            Ok(taken) => {
                self.begin_failures = 0;
                self.begin(begun.entries, begun.source, taken);
            }
            Err(error @ ApiError::Conflict { .. }) => {
                // The watch brings what it is now.
                tracing::info!(lease = %begun.uid, %error, "the lease changed meanwhile");
                self.retry_begin(1);
            }
            Err(error) => {
                tracing::warn!(lease = %begun.uid, %error, "the lease cannot be taken");
                self.begin_failures += 1;
                self.retry_begin(self.begin_failures);
            }
        }
    }

    pub(super) fn retry_begin(&mut self, failures: u32) {
        self.begin_at = Some(Instant::now() + delay(failures));
    }

    fn begin(&mut self, entries: Entries, source: Source, taken: Taken) {
        let Taken {
            lease,
            revision,
            facts,
            recovered,
        } = taken;
        let spec = &lease.spec;
        let kept = match &recovered {
            Some((name, data)) => self.journal.keep_revision(name, data),
            None => Ok(()),
        };
        let kept = kept.and_then(|()| self.journal.keep_revision(&spec.revision, &revision));
        if let Err(error) = kept {
            // The lease is taken: it is begun when there is room.
            self.journal_failed(&error, Vec::new());
            self.retry_begin(1);
            return;
        }
        // Somebody edited the record of a host that remembers: reboots are counted anew.
        let is_edited = source == Source::Node && self.journalled(&spec.skyhook.name).is_some();
        let reboots = if is_edited {
            BTreeMap::new()
        } else {
            protocol::known_reboots(&lease)
        };
        let progress = Progress {
            reboots,
            reboot_cap: self.settings.reboot_cap,
            unable: self.unable.clone(),
            lease: lease.metadata.uid.clone().unwrap_or_default(),
            skyhook: spec.skyhook.clone(),
            revision: spec.revision.clone(),
            serial: revision.serial,
            wanted: Wanted::of_revision(&revision),
            entries,
            next_step: self.journal.state.next_step,
            boot_id: self.facts.boot_id.clone(),
            ..Progress::default()
        };
        self.revisions
            .insert(spec.revision.clone(), Rc::new(revision));
        self.run_facts = Some(Rc::new(facts));
        self.facts.disk_bytes = self.disk_bytes;
        self.compared = None;
        self.writer.begin(&lease);
        self.stage(progress, Event::Begun);
        self.saw(lease);
        self.look_at_lease();
    }

    /// The status of a lease that an earlier agent finished is kept true of this machine.
    fn keep_true(&mut self, lease: &InterruptionLease) {
        let Some(there) = &lease.status else { return };
        let ours = self
            .run()
            .is_some_and(|run| Some(&run.lease) == lease.metadata.uid.as_ref());
        let Some(wanted) = report::finished(there, &self.facts).filter(|_| !ours) else {
            return;
        };
        let before = serde_json::to_value(there).unwrap_or_default();
        let after = serde_json::to_value(&wanted).unwrap_or_default();
        let change = report::merge_diff(&before, &after).unwrap_or_default();
        let uid = lease.metadata.uid.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        tracing::info!(lease = %uid, "a lease that an earlier agent finished: its status is brought up to date");
        self.is_beginning = true;
        let (api, notes) = (self.api.clone(), self.notes.clone());
        tokio::task::spawn_local(async move {
            let result = api.patch_status(&uid, &version, change).await;
            let _sent = notes.send(Note::KeptTrue(Box::new(result)));
        });
    }

    pub(super) fn kept_true(&mut self, result: Result<InterruptionLease, ApiError>) {
        self.is_beginning = false;
        match result {
            Ok(lease) => {
                self.begin_failures = 0;
                self.saw(lease);
            }
            Err(error) => {
                tracing::warn!(%error, "the status of a finished lease cannot be brought up to date");
                self.begin_failures += 1;
                self.retry_begin(self.begin_failures);
            }
        }
    }

    /// Takes in what a write returned, unless the watch has shown more already: that the lease is gone is more.
    pub(super) fn saw(&mut self, lease: InterruptionLease) {
        let version =
            |lease: &InterruptionLease| lease.metadata.resource_version.clone().unwrap_or_default();
        let newer = self.lease.as_ref().is_some_and(|seen| {
            seen.metadata.uid == lease.metadata.uid
                && !protocol::is_older(&version(&lease), &version(seen))
        });
        if newer {
            self.lease = Some(lease);
        }
    }

    /// What is asked for once per lease, again after a restart in the middle of one.
    pub(super) fn fetch_facts(
        &self,
        revision: &RevisionData,
    ) -> impl Future<Output = RunFacts> + use<> {
        let (api, bus) = (self.api.clone(), Rc::clone(&self.bus));
        let revision = revision.clone();
        async move {
            let node = api.node().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the Node cannot be read: its metadata is empty");
                NodeFacts::default()
            });
            RunFacts {
                node,
                default_resources: default_resources(&api, &revision).await.unwrap_or_default(),
                limits: limits::process(&bus).await,
            }
        }
    }
}

/// Asked for only when a package leaves it to the namespace.
async fn default_resources(
    api: &crate::lease::LeaseApi,
    revision: &RevisionData,
) -> Result<Option<skyhook_crds::package::Resources>, ApiError> {
    if revision.packages.values().all(|p| p.resources.is_some()) {
        return Ok(None);
    }
    match api.default_resources().await {
        Err(ApiError::Refused { what, message }) => {
            tracing::warn!(%what, %message, "steps run without default limits");
            Ok(None)
        }
        other => other,
    }
}

fn delay(failures: u32) -> Duration {
    let ms = retry::delay_ms(failures, "begin") / 20;
    Duration::from_millis(u64::try_from(ms).unwrap_or(500))
}
