//! Prepares and performs interrupts, and records them on the host.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use skyhook_crds::Stage;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_oci::chain;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::agent::{Agent, Reboot};
use super::note::Note;
use crate::host::interrupt::{InterruptError, Interrupter};
use crate::host::journal;
use crate::machine::attempts::{StepLimit, step_limit};
use crate::machine::progress::WaveAt;
use crate::machine::{Event, Progress, wave};
use crate::prepare::flags::note_interrupt;

/// How long a reboot waits at most until the lease's status announces it.
const REPORT: Duration = Duration::from_secs(10);

impl Agent {
    /// Prepares an interrupt. A reboot is reported first: while the node is down, users see only the last report.
    pub(super) fn prepare_interrupt(&mut self, owner: String, interrupt: Interrupt) {
        tracing::info!(%owner, ?interrupt, "preparing to interrupt the host");
        if interrupt.kind != InterruptType::Reboot {
            let limit = self.interrupt_limit(&owner, &interrupt);
            return self.find_obstacles(interrupt, limit);
        }
        self.writer.hurry();
        self.pending_interrupt.reboot = Some(Reboot {
            interrupt,
            at_the_latest: Instant::now() + REPORT,
        });
    }

    /// Continues the preparation of a reboot when the reboot is reported, or could not be reported in time.
    pub(super) fn prepare_reboot_when_reported(&mut self) {
        let is_reported = self.writer.is_settled();
        let ready = |reboot: &mut Reboot| is_reported || reboot.at_the_latest <= Instant::now();
        if let Some(reboot) = self.pending_interrupt.reboot.take_if(ready) {
            if !is_reported {
                tracing::warn!(
                    "the reboot could not be announced in the status of the lease in time: rebooting anyway"
                );
            }
            self.find_obstacles(reboot.interrupt, None);
        }
    }

    /// What limits the time of an interrupt: the stageTimeout of its package. A reboot has limits of its own.
    fn interrupt_limit(&self, owner: &str, interrupt: &Interrupt) -> Option<StepLimit> {
        let run = self.run()?;
        let limit = step_limit(run, owner, None);
        limit.filter(|_| interrupt.kind != InterruptType::Reboot)
    }

    fn find_obstacles(&mut self, interrupt: Interrupt, limit: Option<StepLimit>) {
        let task = self.with_interrupter(limit, async move |interrupter| {
            let prepared = interrupter.prepare(&interrupt).await;
            prepared.map(|before| Event::InterruptPrepared { before })
        });
        self.pending_interrupt.task = Some(task);
    }

    /// Stops the preparation. The machine ignores an event that the preparation has sent already.
    pub(super) fn call_off_interrupt(&mut self) {
        tracing::info!("the interrupt is cancelled, because the lease is stopped or paused");
        if let Some(task) = std::mem::take(&mut self.pending_interrupt).task {
            task.abort();
        }
    }

    /// Interrupts the host.
    pub(super) fn interrupt(
        &mut self,
        owner: &str,
        interrupt: Interrupt,
        before: BTreeMap<String, String>,
    ) {
        tracing::warn!(%owner, ?interrupt, "interrupting the host");
        let is_noop = interrupt.kind == InterruptType::Noop;
        let entry = self.journal_entry(owner, &interrupt).filter(|_| !is_noop);
        let limit = self.interrupt_limit(owner, &interrupt);
        self.with_interrupter(limit, async move |interrupter| {
            if let Some(entry) = entry {
                entry.write(interrupter.root).await;
            }
            let done = interrupter.execute(&interrupt, &before).await;
            done.map(|()| Event::Interrupted)
        });
    }

    /// Runs a part of an interrupt in its own task, and sends the resulting event to the machine.
    fn with_interrupter(
        &self,
        limit: Option<StepLimit>,
        work: impl AsyncFnOnce(&Interrupter<'_>) -> Result<Event, InterruptError> + 'static,
    ) -> AbortHandle {
        let (bus, notes) = (Rc::clone(&self.bus), self.notes.clone());
        let (root, patience) = (self.host.files.path().to_owned(), self.settings.patience);
        let task = tokio::task::spawn_local(async move {
            let waits = |reason: String| {
                tracing::info!(%reason, "the interrupt waits");
                let _sent = notes.send(Note::Event(Event::InterruptWaits { reason }));
            };
            let interrupter = Interrupter {
                bus: &bus,
                root: &root,
                patience,
                waits: &waits,
            };
            let ended = within(limit, work(&interrupter)).await;
            let event = ended.unwrap_or_else(|(reason, asked)| {
                tracing::warn!(%reason, "the interrupt failed");
                Event::InterruptFailed { reason, asked }
            });
            let _sent = notes.send(Note::Event(event));
        });
        task.abort_handle()
    }

    /// The entry for systemd's journal, which explains the interrupt to an administrator of the host.
    fn journal_entry(&self, owner: &str, interrupt: &Interrupt) -> Option<JournalEntry> {
        let run = self.run()?;
        let (name, version) = owner.split_once('|').unwrap_or((owner, ""));
        Some(JournalEntry {
            message: format!(
                "Skyhook {} interrupts this host ({}) for package {name} {version}, revision {}, lease {} (UID {})",
                run.skyhook.name,
                wave::describe(interrupt),
                run.revision,
                self.settings.node,
                run.lease
            ),
            fields: [
                ("SKYHOOK", run.skyhook.name.clone()),
                ("SKYHOOK_PACKAGE", owner.to_owned()),
                ("SKYHOOK_REVISION", run.revision.clone()),
                ("SKYHOOK_LEASE", run.lease.clone()),
            ],
        })
    }

    /// Writes the flag of an interrupt if it has happened between `before` and `after`.
    pub(super) fn conclude_interrupt(&mut self, before: &Progress, after: &Progress) {
        let Some(wave) = before.wave.as_ref() else {
            return;
        };
        let is_through = |key: &&String| {
            after
                .entries
                .get(*key)
                .is_some_and(|e| e.stage == Stage::PostInterrupt)
        };
        if after.wave.is_some() || !wave.members.iter().any(|key| is_through(&key)) {
            return;
        }
        // After the interrupt, the container runtime may have other limits, and the Node other labels.
        self.run_facts = None;
        let WaveAt::Interrupting {
            owner, interrupt, ..
        } = &wave.at
        else {
            return;
        };
        let entry = before.entries.get(owner).filter(|_| is_through(&owner));
        let Some((entry, cycle)) = entry.and_then(|e| Some((e, e.cycle.as_ref()?))) else {
            return;
        };
        let package = (entry.name.as_str(), entry.version.as_str());
        let layout = &self.settings.layout;
        if let Err(error) = note_interrupt(&self.host, layout, &cycle.skyhook, package, interrupt) {
            tracing::warn!(error = %chain(&error), "the flag of the interrupt cannot be written");
        }
    }
}

/// The event at the end of a part of an interrupt, or why it failed, and whether a reboot may have been asked for.
async fn within(
    limit: Option<StepLimit>,
    work: impl Future<Output = Result<Event, InterruptError>>,
) -> Result<Event, (String, bool)> {
    let failed = |error: InterruptError| (chain(&error), error.may_have_been_asked());
    let Some(limit) = limit else {
        return work.await.map_err(failed);
    };
    match timeout(limit.duration(), work).await {
        Ok(ended) => ended.map_err(failed),
        Err(_elapsed) => Err((format!("it took longer than {}", limit.describe()), true)),
    }
}

/// An entry for systemd's journal on the host.
struct JournalEntry {
    message: String,
    fields: [(&'static str, String); 4],
}

impl JournalEntry {
    /// Writes the entry, and waits at most a few seconds until it is on the disk. A failure does not stop the
    /// interrupt.
    async fn write(self, root: &Path) {
        let root = root.to_owned();
        let written = tokio::task::spawn_blocking(move || {
            let fields: Vec<(&str, &str)> = self
                .fields
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            journal::note(&root, &self.message, &fields)
        });
        let problem = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(%problem, "the interrupt cannot be written to systemd's journal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_interrupt_ends_when_its_time_is_over() {
        let whole = Duration::from_secs(300);
        let limit = Some(StepLimit::Stage { left: whole, whole });
        for (name, limit, takes, want) in [
            ("in time", limit, 299, Ok(Event::Interrupted)),
            (
                "too late",
                limit,
                301,
                Err((
                    "it took longer than 300s, the stageTimeout of the package".to_owned(),
                    true,
                )),
            ),
            ("no limit", None, 86_400, Ok(Event::Interrupted)),
        ] {
            let work = async {
                tokio::time::sleep(Duration::from_secs(takes)).await;
                Ok(Event::Interrupted)
            };
            assert_eq!(within(limit, work).await, want, "{name}");
        }
    }
}
