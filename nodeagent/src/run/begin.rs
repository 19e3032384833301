//! Takes a lease: reconciles the packages, accepts the lease, reads the revision, and starts the machine.

use std::collections::BTreeMap;
use std::rc::Rc;

use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::protocol;
use skyhook_crds::lease::{FORMAT, InterruptionLeaseStatus, Phase};
use skyhook_crds::package::Resources;
use skyhook_crds::revision::RevisionData;
use tokio::time::sleep;

use super::agent::{Agent, now};
use super::note::{Attempt, Note, RunFacts, Taken};
use super::steps::{await_steps, running_steps};
use crate::host::limits;
use crate::lease::ApiError;
use crate::machine::reconcile::{Source, has_unknown_stage, is_undone, of_lease};
use crate::machine::retry::API;
use crate::machine::taking::{Action, TakingEvent};
use crate::machine::{Entries, Event, Progress, Wanted, room};
use crate::prepare::metadata::NodeFacts;
use crate::report;

/// Why the lease needs a newer agent than this one, if it does.
fn too_old(lease: &InterruptionLease, revision: &RevisionData) -> Option<String> {
    let form = protocol::form(lease, revision.format);
    let what = if form > FORMAT {
        format!("the lease and its revision have form {form}, and this agent knows form {FORMAT}")
    } else if has_unknown_stage(lease) {
        "the Node's record has a stage that this agent does not know".to_owned()
    } else {
        return None;
    };
    Some(format!(
        "needs an agent of at least the coordinator's version: {what} (it is version {}): upgrade the agents",
        env!("CARGO_PKG_VERSION")
    ))
}

impl Agent {
    /// Sends an event to the state machine that takes a lease, and performs its action.
    pub(super) fn step_taking(&mut self, event: TakingEvent<'_>) {
        match self.taker.step(event, now(), &self.settings.node) {
            Some(Action::FindNode) => self.find_node(),
            Some(Action::Look) => self.look_at_lease(),
            Some(Action::Take { accept }) => {
                if let Some(lease) = self.lease.clone() {
                    self.take_lease(lease, accept);
                }
            }
            Some(Action::RefreshStatus) => self.refresh_finished(),
            None => {}
        }
    }

    /// Reads the Node. Retries until the Node is read.
    fn find_node(&mut self) {
        let (api, notes) = (self.api.clone(), self.notes.clone());
        let name = self.settings.node.clone();
        tokio::task::spawn_local(async move {
            let mut failures = 0;
            let node = loop {
                match api.node().await {
                    Ok(node) => break node,
                    Err(error) => tracing::warn!(%error, "the Node cannot be read"),
                }
                failures += 1;
                sleep(API.delay(failures, &name)).await;
            };
            let _sent = notes.send(Note::Node(Box::new(node)));
        });
    }

    fn take_lease(&mut self, lease: InterruptionLease, accept: bool) {
        let (mut entries, source) = self.reconciled(&lease);
        let uid = lease.metadata.uid.clone().unwrap_or_default();
        tracing::info!(lease = %uid, skyhook = %lease.spec.skyhook.name, revision = %lease.spec.revision, ?source, "taking the lease");
        let status = self.accepted_status(&lease, &entries);
        let (api, notes) = (self.api.clone(), self.notes.clone());
        let bus = Rc::clone(&self.bus);
        let fallback = self.settings.step_resources.clone();
        let runner = Rc::clone(&self.runner);
        let orphans = running_steps(self.runner.steps());
        tokio::task::spawn_local(async move {
            // No step starts before the steps of an earlier lease have ended.
            await_steps(&runner, orphans).await;
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
                let too_old = too_old(&lease, &revision);
                let recovered = match &too_old {
                    Some(_) => None,
                    None => super::recover::recover(&api, &lease, &mut entries).await?,
                };
                let facts = RunFacts {
                    node: node?,
                    default_resources: default_resources(&api, &revision, fallback).await?,
                    limits,
                };
                Ok(Taken {
                    lease,
                    revision,
                    facts,
                    recovered,
                    too_old,
                })
            };
            let result = taken.await;
            let attempt = Attempt {
                uid,
                entries,
                source,
                result,
            };
            let _sent = notes.send(Note::Attempted(Box::new(attempt)));
        });
    }

    /// The packages of a Skyhook in the host's journal.
    fn journalled(&self, skyhook: &str) -> Option<&Entries> {
        let ended = self
            .run()
            .filter(|run| run.skyhook.name == *skyhook)
            .map(|run| &run.entries);
        ended.or_else(|| self.journal.state.skyhooks.get(skyhook).map(|r| &r.entries))
    }

    /// The packages that are installed on this host: see [`crate::machine::reconcile`].
    fn reconciled(&self, lease: &InterruptionLease) -> (Entries, Source) {
        if self.settings.reapply_on_reboot && is_undone(lease, &self.facts.epoch) {
            return (Entries::new(), Source::Nothing);
        }
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
            format: FORMAT,
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

    /// Handles the end of an attempt to take a lease.
    pub(super) fn attempted(&mut self, attempt: Attempt) {
        match attempt.result {
            Ok(taken) => {
                self.step_taking(TakingEvent::Taken);
                self.begin(attempt.entries, attempt.source, taken);
            }
            Err(error @ ApiError::Conflict { .. }) => {
                // The watch will show the new version of the lease.
                tracing::info!(lease = %attempt.uid, %error, "the lease has changed: trying again");
                self.step_taking(TakingEvent::Hindered);
            }
            Err(error) => {
                tracing::warn!(lease = %attempt.uid, %error, "the lease cannot be taken");
                self.step_taking(TakingEvent::Failed);
            }
        }
    }

    fn begin(&mut self, entries: Entries, source: Source, taken: Taken) {
        let Taken {
            lease,
            revision,
            facts,
            recovered,
            too_old,
        } = taken;
        let spec = &lease.spec;
        let kept = match &recovered {
            Some((name, data)) => self.journal.keep_revision(name, data),
            None => Ok(()),
        };
        let kept = match &too_old {
            // Its content is not known.
            Some(_) => kept,
            None => kept.and_then(|()| self.journal.keep_revision(&spec.revision, &revision)),
        };
        if let Err(error) = kept {
            // The lease is accepted: the work starts when the journal can be written.
            self.journal_failed(&error, Vec::new());
            self.step_taking(TakingEvent::Hindered);
            return;
        }
        // A user edited the Node's record, and the journal was not lost: reset the count of reboots.
        let is_edited = source == Source::Node && self.journalled(&spec.skyhook.name).is_some();
        let reboots = if is_edited {
            BTreeMap::new()
        } else {
            protocol::known_reboots(&lease)
        };
        let lacking = room::lacking(
            &revision.packages,
            facts.default_resources.as_ref(),
            &facts.node.allocatable,
        );
        let progress = Progress {
            reboots,
            reboot_cap: self.settings.reboot_cap,
            limits: self.settings.limits,
            unable: self.unable.clone(),
            too_old,
            lease: lease.metadata.uid.clone().unwrap_or_default(),
            skyhook: spec.skyhook.clone(),
            revision: spec.revision.clone(),
            order: spec.order,
            serial: revision.serial,
            wanted: Wanted::of_revision_on(&revision, &lacking),
            left_behind: revision.left_behind.clone(),
            node_seen_at: now(),
            entries,
            next_step: self.journal.state.next_step,
            begun: Some(false),
            boot_id: self.facts.boot_id.clone(),
            ..Progress::default()
        };
        self.revisions
            .insert(spec.revision.clone(), Rc::new(revision));
        self.run_facts = Some(Rc::new(facts));
        self.facts.disk_bytes = self.disk_bytes;
        self.compared = None;
        self.writer.begin(&lease);
        self.step_machine(progress, Event::LeaseAccepted);
        self.saw(lease);
        self.look_at_lease();
    }

    /// Updates the status of a lease that an earlier agent finished: the boot ID and the machine ID must be current.
    fn refresh_finished(&mut self) {
        let lease = self.lease.as_ref();
        let Some((lease, reported)) = lease.and_then(|l| Some((l, l.status.as_ref()?))) else {
            return self.step_taking(TakingEvent::Refreshed);
        };
        let Some(wanted) = report::finished(reported, &self.facts) else {
            return self.step_taking(TakingEvent::Refreshed);
        };
        let before = serde_json::to_value(reported).unwrap_or_default();
        let after = serde_json::to_value(&wanted).unwrap_or_default();
        let change = report::merge_diff(&before, &after).unwrap_or_default();
        let uid = lease.metadata.uid.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        tracing::info!(lease = %uid, "updating the status of a lease that an earlier agent finished");
        let (api, notes) = (self.api.clone(), self.notes.clone());
        tokio::task::spawn_local(async move {
            let result = api.patch_status(&uid, &version, change).await;
            let _sent = notes.send(Note::Refreshed(Box::new(result)));
        });
    }

    pub(super) fn finished_refreshed(&mut self, result: Result<InterruptionLease, ApiError>) {
        match result {
            Ok(lease) => {
                self.step_taking(TakingEvent::Refreshed);
                self.saw(lease);
            }
            Err(error) => {
                tracing::warn!(%error, "the status of a finished lease cannot be updated");
                self.step_taking(TakingEvent::Failed);
            }
        }
    }

    /// Keeps the lease that the API returned, unless the watch has shown a newer version, another lease, or no lease.
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

    /// Reads the [`RunFacts`] again, after a restart of the agent or an interrupt.
    pub(super) fn fetch_facts(
        &self,
        revision: &RevisionData,
    ) -> impl Future<Output = RunFacts> + use<> {
        let (api, bus) = (self.api.clone(), Rc::clone(&self.bus));
        let revision = revision.clone();
        let fallback = self.settings.step_resources.clone();
        async move {
            let node = api.node().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the Node cannot be read: steps get empty node-metadata");
                NodeFacts::default()
            });
            RunFacts {
                node,
                default_resources: default_resources(&api, &revision, fallback.clone())
                    .await
                    .unwrap_or(fallback),
                limits: limits::process(&bus).await,
            }
        }
    }
}

/// Default resources from the namespace's LimitRange, or `fallback` if there are none. The LimitRange is read only when
/// a package has no resources of its own.
async fn default_resources(
    api: &crate::lease::LeaseApi,
    revision: &RevisionData,
    fallback: Option<Resources>,
) -> Result<Option<Resources>, ApiError> {
    if revision.packages.values().all(|p| p.resources.is_some()) {
        return Ok(fallback);
    }
    let given = match api.default_resources().await {
        Err(ApiError::Refused { what, message }) => {
            tracing::warn!(%what, %message, "LimitRanges cannot be read: steps run with the agent's default limits");
            None
        }
        other => other?,
    };
    // A LimitRange may have minimum and maximum values, but no defaults.
    let given = given.filter(|resources| *resources != Resources::default());
    Ok(given.or(fallback))
}

#[cfg(test)]
mod tests {
    use skyhook_crds::installed::PackageStates;
    use skyhook_crds::lease::InterruptionLeaseSpec;
    use skyhook_crds::package::PackageStatus;
    use skyhook_crds::{Stage, State};

    use super::*;

    #[test]
    fn a_lease_beyond_what_the_agent_knows_is_recognised() {
        let installed = |stage| -> PackageStates {
            let status = PackageStatus {
                name: "a".into(),
                version: "1".into(),
                image: "r/a".into(),
                container_sha: None,
                stage,
                state: State::Complete,
                restarts: 0,
            };
            [("a|1".to_owned(), status)].into()
        };
        for (name, lease_form, revision_form, stage, want) in [
            ("all is known", FORMAT, FORMAT, Stage::Config, None),
            (
                "the lease is newer",
                FORMAT + 1,
                FORMAT,
                Stage::Config,
                Some("form 2"),
            ),
            (
                "the revision is newer",
                FORMAT,
                FORMAT + 2,
                Stage::Config,
                Some("form 3"),
            ),
            (
                "a stage is newer",
                FORMAT,
                FORMAT,
                Stage::Unknown,
                Some("a stage that this agent does not know"),
            ),
        ] {
            let spec = InterruptionLeaseSpec {
                format: lease_form,
                installed: installed(stage),
                ..InterruptionLeaseSpec::default()
            };
            let lease = InterruptionLease::new("n", spec);
            let revision = RevisionData {
                format: revision_form,
                ..RevisionData::default()
            };
            let why = too_old(&lease, &revision);
            assert_eq!(why.is_some(), want.is_some(), "{name}: {why:?}");
            if let (Some(why), Some(want)) = (why, want) {
                let begins = why.starts_with("needs an agent of at least");
                assert!(begins && why.contains(want), "{name}: {why}");
            }
        }
    }
}
