//! Interrupts as the agent carries them out, and what it remembers of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use skyhook_crds::Stage;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_oci::chain;
use tokio::time::Instant;

use super::agent::{Agent, Note};
use crate::host::interrupt::{InterruptError, Interrupter};
use crate::host::journal;
use crate::machine::progress::WaveAt;
use crate::machine::{Event, Progress, wave};
use crate::stage::flags::note_interrupt;

/// How long a reboot waits until the lease's status says that it is asked for.
const REPORT: Duration = Duration::from_secs(10);

/// A reboot that is about to be asked for.
#[derive(Debug)]
pub(super) struct Reboot {
    owner: String,
    interrupt: Interrupt,
    pub at_the_latest: Instant,
}

impl Agent {
    /// Interrupts the host. A reboot is reported first: for minutes nobody could say why the node went away.
    pub(super) fn interrupt(
        &mut self,
        owner: String,
        interrupt: Interrupt,
        before: BTreeMap<String, String>,
    ) {
        if interrupt.kind != InterruptType::Reboot {
            return self.carry_out(&owner, interrupt, before);
        }
        self.writer.hurry();
        self.reboot = Some(Reboot {
            owner,
            interrupt,
            at_the_latest: Instant::now() + REPORT,
        });
    }

    /// Asks for the reboot when the API server has the last report, or does not take it.
    pub(super) fn reboot_when_reported(&mut self) {
        let is_reported = self.writer.is_settled();
        let ready = |reboot: &mut Reboot| is_reported || reboot.at_the_latest <= Instant::now();
        if let Some(reboot) = self.reboot.take_if(ready) {
            if !is_reported {
                tracing::warn!("the last report before the reboot could not be written");
            }
            self.carry_out(&reboot.owner, reboot.interrupt, BTreeMap::new());
        }
    }

    /// Carries an interrupt out, or says first which units are to be restarted.
    fn carry_out(&self, owner: &str, interrupt: Interrupt, before: BTreeMap<String, String>) {
        tracing::warn!(%owner, ?interrupt, "interrupting the host");
        let is_observed = !before.is_empty();
        let entry = self
            .journal_entry(owner, &interrupt)
            .filter(|_| is_observed || interrupt.kind == InterruptType::Reboot);
        let (bus, notes) = (Rc::clone(&self.bus), self.notes.clone());
        let (root, patience) = (self.host.files.path().to_owned(), self.settings.patience);
        tokio::task::spawn_local(async move {
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
            if let Some(entry) = entry {
                entry.write(&root).await;
            }
            let event = match perform(&interrupter, &interrupt, before).await {
                Ok(event) => event,
                Err(error) => {
                    let reason = chain(&error);
                    tracing::warn!(%reason, "the interrupt failed");
                    let asked = error.may_have_been_asked();
                    Event::InterruptFailed { reason, asked }
                }
            };
            let _sent = notes.send(Note::Event(event));
        });
    }

    /// What the host's own journal is to say before the interrupt, so that whoever looks after a reboot finds its cause
    /// there.
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

    /// Writes what the host is to remember of an interrupt that has happened.
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
        // A restarted container runtime may have other limits, and the node other labels.
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
            tracing::warn!(error = %chain(&error), "the interrupt cannot be noted");
        }
    }
}

/// An entry of the host's own journal.
struct JournalEntry {
    message: String,
    fields: [(&'static str, String); 4],
}

impl JournalEntry {
    /// Writes the entry to the disk, within seconds. Without it the host is interrupted all the same.
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
        tracing::warn!(%problem, "the host's journal cannot be told of the interrupt");
    }
}

async fn perform(
    interrupter: &Interrupter<'_>,
    interrupt: &Interrupt,
    before: BTreeMap<String, String>,
) -> Result<Event, InterruptError> {
    if before.is_empty() {
        let before = interrupter.observe(interrupt).await?;
        if !before.is_empty() {
            return Ok(Event::UnitsSeen { before });
        }
    }
    interrupter.execute(interrupt, &before).await?;
    Ok(Event::Interrupted)
}
