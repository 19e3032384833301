//! The status writer: few writes, none that change nothing, terminal ones at once, each over the version of the lease
//! that it was decided on. What was refused, or never answered, is decided again from the lease as it is then.

use std::time::Duration;

use serde_json::Value;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::protocol::is_older;
use skyhook_crds::lease::{InterruptionLeaseStatus, Phase};
use tokio::time::Instant;

use super::agent::{Agent, Note};
use crate::lease::{ApiError, LeaseApi};
use crate::machine::Event;
use crate::machine::retry::REPORT;
use crate::report;

/// Between two writes that are not urgent.
const PACE: Duration = Duration::from_secs(1);

/// State of the writer.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// UID of the lease that is written to.
    uid: String,
    /// The status that the API has, and the version of the lease that it was seen in.
    reported: Value,
    version: String,
    /// What the API has is not known: it is read before anything is written.
    in_doubt: bool,
    generation: i64,
    in_flight: bool,
    last: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    /// Resource version over which `Running` is to be written.
    running: Option<String>,
    /// The lease is not there any more.
    is_lost: bool,
    /// What is to be written is written at once: the host goes down after it.
    hurry: bool,
    /// The API has what there is to report, or there is no lease to report to.
    is_settled: bool,
    wake: Option<Instant>,
}

/// What is asked of the API.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Read,
    /// Over this version.
    Write {
        version: String,
        change: Value,
        running: bool,
    },
}

/// What to do now.
#[derive(Debug, PartialEq)]
enum Next {
    Nothing,
    WakeAt(Instant),
    Call(Call),
}

/// How a call came out.
#[derive(Debug)]
pub(super) struct Written {
    uid: String,
    call: Call,
    result: Result<InterruptionLease, ApiError>,
}

impl Writer {
    /// Begins with a lease that has just been taken.
    pub(super) fn begin(&mut self, lease: &InterruptionLease) {
        *self = Self {
            uid: lease.metadata.uid.clone().unwrap_or_default(),
            last: Some(Instant::now()),
            ..Self::default()
        };
        self.learn(lease);
    }

    /// The watch shows the lease that is worked on.
    pub(super) fn seen(&mut self, lease: Option<&InterruptionLease>) {
        let Some(lease) = lease else { return };
        if lease.metadata.uid.as_deref() != Some(&self.uid) {
            self.begin(lease);
            self.last = None;
        }
        self.is_lost = false;
        self.generation = lease.metadata.generation.unwrap_or(0);
        // The answer to what is under way tells more.
        if !self.in_flight {
            self.learn(lease);
        }
    }

    /// Takes in what the API has, unless something later is known.
    fn learn(&mut self, lease: &InterruptionLease) {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if is_older(&version, &self.version) {
            return;
        }
        self.reported = serde_json::to_value(&lease.status).unwrap_or_default();
        self.version = version;
        self.generation = lease.metadata.generation.unwrap_or(0);
        self.in_doubt = false;
    }

    pub(super) fn want_running(&mut self, resource_version: String) {
        self.running = Some(resource_version);
    }

    /// Has the next report written at once.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
        self.is_settled = false;
    }

    /// True when the API has what there is to report.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.wake.filter(|_| !self.in_flight)
    }

    /// What to do now for the status to become this one, and whether that is all there is to do.
    fn decide(&mut self, status: InterruptionLeaseStatus, now: Instant) -> Next {
        let next = self.next(status, now);
        self.is_settled = next == Next::Nothing && !self.in_flight;
        self.hurry &= !self.is_settled;
        next
    }

    /// What has to be asked of the API for the status to become this one.
    fn next(&self, mut status: InterruptionLeaseStatus, now: Instant) -> Next {
        if self.in_flight || self.is_lost {
            return Next::Nothing;
        }
        if let Some(at) = self.not_before.filter(|at| now < *at) {
            return Next::WakeAt(at);
        }
        // Whether `Running` may be written is for its own guard to say.
        if self.in_doubt && self.running.is_none() {
            return Next::Call(Call::Read);
        }
        if self.running.is_some() {
            status.phase = Some(Phase::Running);
            status.needs_drain = Some(true);
        }
        let urgent =
            self.hurry || self.running.is_some() || is_urgent(&self.reported, status.phase);
        let status = serde_json::to_value(&status).unwrap_or_default();
        let change = report::merge_diff(&self.reported, &status);
        let change = match (change, &self.running) {
            (Some(change), None) if is_generation_only(&change) => return Next::Nothing,
            (None, None) => return Next::Nothing,
            (Some(change), None) => change,
            // Said in any case: it may stand there from before a restart, or what stands there is in doubt.
            (change, Some(_)) => {
                let mut change = change.unwrap_or_else(|| serde_json::json!({}));
                change["phase"] = status["phase"].clone();
                change
            }
        };
        let due = self.last.map(|last| last + PACE);
        match due {
            Some(due) if !urgent && now < due => Next::WakeAt(due),
            Some(_) | None => Next::Call(Call::Write {
                version: self.running.as_ref().unwrap_or(&self.version).clone(),
                change,
                running: self.running.is_some(),
            }),
        }
    }

    /// Takes an answer in. Says what the machine has to be told.
    fn answered(&mut self, written: &Written, now: Instant) -> Option<Event> {
        self.in_flight = false;
        let (writes, running) = match &written.call {
            Call::Read => (false, false),
            Call::Write { running, .. } => (true, *running),
        };
        if writes {
            self.last = Some(now);
        }
        if running {
            self.running = None;
        }
        match &written.result {
            Ok(lease) if lease.metadata.uid.as_ref() == Some(&self.uid) => {
                self.not_before = None;
                // That it can be read says nothing of whether it can be written.
                self.failures = if writes { 0 } else { self.failures };
                self.learn(lease);
                // Asked for, it is what the API has, whatever was known before.
                self.in_doubt = false;
                running.then_some(Event::RunningWritten)
            }
            Ok(_) | Err(ApiError::NotFound { .. }) => {
                tracing::info!(lease = %self.uid, "the lease is not there any more");
                self.is_lost = true;
                running.then_some(Event::RunningRefused)
            }
            Err(ApiError::Conflict { .. }) => {
                self.in_doubt = true;
                running.then_some(Event::RunningRefused)
            }
            Err(
                error @ (ApiError::Refused { .. }
                | ApiError::Silent { .. }
                | ApiError::Malformed { .. }),
            ) => {
                self.in_doubt = true;
                self.running = match &written.call {
                    Call::Write { version, .. } if running => Some(version.clone()),
                    Call::Write { .. } | Call::Read => self.running.take(),
                };
                self.failures += 1;
                self.not_before = Some(now + REPORT.delay(self.failures, &self.uid));
                tracing::warn!(%error, "the status cannot be written");
                None
            }
        }
    }
}

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
        // What was read is decided on before anything is written over it.
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

/// Ends, and what the coordinator waits for, are not held back.
fn is_urgent(reported: &Value, phase: Option<Phase>) -> bool {
    let before = reported.get("phase");
    match phase {
        Some(phase @ (Phase::Complete | Phase::Stopped | Phase::AwaitingDrain)) => {
            before != serde_json::to_value(phase).ok().as_ref()
        }
        Some(Phase::Accepted | Phase::Preparing | Phase::Running | Phase::Erroring) | None => false,
    }
}

/// A new generation alone is not worth a write: the next one carries it.
fn is_generation_only(change: &Value) -> bool {
    change
        .as_object()
        .is_some_and(|c| c.keys().all(|key| key == "observedGeneration"))
}

#[cfg(test)]
mod tests;
