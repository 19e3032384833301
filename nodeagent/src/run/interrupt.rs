//! Interrupts as the agent carries them out, and what it remembers of them.

use std::collections::BTreeMap;
use std::rc::Rc;

use skyhook_crds::Stage;
use skyhook_crds::package::Interrupt;
use skyhook_oci::chain;

use super::agent::{Agent, Note};
use crate::host::interrupt::{InterruptError, Interrupter};
use crate::machine::progress::WaveAt;
use crate::machine::{Event, Progress};
use crate::stage::flags::note_interrupt;

impl Agent {
    /// Interrupts the host, or says first what is to be restarted.
    pub(super) fn interrupt(
        &self,
        owner: &str,
        interrupt: Interrupt,
        before: BTreeMap<String, String>,
    ) {
        tracing::warn!(%owner, ?interrupt, "the host is interrupted");
        let (bus, notes) = (Rc::clone(&self.bus), self.notes.clone());
        let (root, patience) = (self.host.root.clone(), self.settings.patience);
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
            let event = match perform(&interrupter, &interrupt, before).await {
                Ok(event) => event,
                Err(error) => {
                    let reason = chain(&error);
                    tracing::warn!(%reason, "the interrupt failed");
                    Event::InterruptFailed { reason }
                }
            };
            let _sent = notes.send(Note::Event(event));
        });
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
