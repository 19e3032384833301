//! Writes the status of the lease as the [`Writer`](super::writer::Writer) decides.

use skyhook_crds::InterruptionLease;
use tokio::time::Instant;

use super::agent::Agent;
use super::note::Note;
use super::writer::{Call, Next, Written};
use crate::lease::{ApiError, LeaseApi};
use crate::report;

impl Agent {
    /// Writes the status if it is due.
    pub(super) fn write_status(&mut self) {
        self.writer.wake = None;
        let Some(run) = self.run() else { return };
        if run.lease != self.writer.uid {
            return;
        }
        let mut status = report::status(run, &self.facts, self.writer.generation);
        if let Some(trouble) = &self.trouble {
            status.message.clone_from(trouble);
        }
        match self.writer.decide(status, Instant::now()) {
            Next::Nothing => {}
            Next::WakeAt(at) => self.writer.wake = Some(at),
            Next::Call(call) => self.call(call),
        }
    }

    fn call(&mut self, call: Call) {
        self.writer.in_flight = true;
        let uid = self.writer.uid.clone();
        let (api, notes) = (self.api.clone(), self.notes.clone());
        tokio::task::spawn_local(async move {
            let result = ask(&api, &uid, &call).await;
            let written = Written { uid, call, result };
            let _sent = notes.send(Note::Written(Box::new(written)));
        });
    }

    pub(super) fn written(&mut self, written: Written) {
        if written.uid != self.writer.uid {
            return;
        }
        if let Some(event) = self.writer.answered(&written, Instant::now()) {
            self.feed(event);
        }
        // Before the next write, handle the lease that was read.
        if let (Call::Read, Ok(lease)) = (written.call, written.result) {
            self.saw(lease);
            self.look_at_lease();
        }
    }
}

async fn ask(api: &LeaseApi, uid: &str, call: &Call) -> Result<InterruptionLease, ApiError> {
    match call {
        Call::Read => api.lease().await,
        Call::Write {
            version, change, ..
        } => api.patch_status(uid, version, change.clone()).await,
    }
}
