//! Prepares and performs interrupts, and records them on the host.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use skyhook_crds::Stage;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_oci::chain;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::agent::{Agent, Reboot};
use super::note::Note;
use crate::host::interrupt::{InterruptError, Interrupter};
use crate::host::journal;
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
            return self.find_obstacles(interrupt);
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
            self.find_obstacles(reboot.interrupt);
        }
    }

    fn find_obstacles(&mut self, interrupt: Interrupt) {
        let task = self.with_interrupter(async move |interrupter| {
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
        self.with_interrupter(async move |interrupter| {
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
            let event = work(&interrupter).await.unwrap_or_else(|error| {
                let reason = chain(&error);
                tracing::warn!(%reason, "the interrupt failed");
                let asked = error.may_have_been_asked();
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
