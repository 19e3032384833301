//! Writes the status of the lease: only changes, at most once per second, but at once for a phase that the coordinator
//! waits for. Each write has the resource version of the lease that it is based on. After a conflict or a lost answer,
//! the writer reads the lease before it writes again.

use std::time::Duration;

use serde_json::Value;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::protocol::is_older;
use skyhook_crds::lease::{InterruptionLeaseStatus, Phase};
use tokio::time::Instant;

use crate::lease::ApiError;
use crate::machine::Event;
use crate::machine::retry::REPORT;
use crate::report;

/// Minimum time between two writes that are not urgent.
const PACE: Duration = Duration::from_secs(1);

/// State of the writer.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// UID of the lease.
    pub uid: String,
    /// The status on the API server, and its resource version.
    reported: Value,
    version: String,
    /// The status on the API server is not known: the writer reads it before the next write.
    in_doubt: bool,
    pub generation: i64,
    pub in_flight: bool,
    last: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    /// Set when `phase: Running` has to be written: the resource version for the precondition.
    running: Option<String>,
    /// The lease does not exist any more.
    is_lost: bool,
    /// The next change is written at once, because a reboot waits for it.
    hurry: bool,
    /// The API server has the last report, or the lease does not exist any more.
    is_settled: bool,
    pub wake: Option<Instant>,
}

/// A call to the API.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Call {
    Read,
    /// With this resource version as the precondition.
    Write {
        version: String,
        change: Value,
        running: bool,
    },
}

/// What the writer has to do now.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Nothing,
    WakeAt(Instant),
    Call(Call),
}

/// The answer to a call.
#[derive(Debug)]
pub(super) struct Written {
    pub uid: String,
    pub call: Call,
    pub result: Result<InterruptionLease, ApiError>,
}

impl Writer {
    /// Starts to write to a lease that was just taken.
    pub(super) fn begin(&mut self, lease: &InterruptionLease) {
        *self = Self {
            uid: lease.metadata.uid.clone().unwrap_or_default(),
            last: Some(Instant::now()),
            ..Self::default()
        };
        self.learn(lease);
    }

    /// Called when the watch or the API has shown the lease that the agent works on.
    pub(super) fn seen(&mut self, lease: Option<&InterruptionLease>) {
        let Some(lease) = lease else { return };
        if lease.metadata.uid.as_deref() != Some(&self.uid) {
            self.begin(lease);
            self.last = None;
        }
        self.is_lost = false;
        self.generation = lease.metadata.generation.unwrap_or(0);
        // During a call, wait for its answer: the answer will be newer.
        if !self.in_flight {
            self.learn(lease);
        }
    }

    /// Keeps the status of this lease, unless a newer version is known.
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

    /// Makes the next report urgent.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
        self.is_settled = false;
    }

    /// True when the API server has the last report.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.wake.filter(|_| !self.in_flight)
    }

    /// The next action to write this status. Also updates `is_settled` and `hurry`.
    pub(super) fn decide(&mut self, status: InterruptionLeaseStatus, now: Instant) -> Next {
        let next = self.next(status, now);
        self.is_settled = next == Next::Nothing && !self.in_flight;
        self.hurry &= !self.is_settled;
        next
    }

    /// The next action to write this status.
    fn next(&self, mut status: InterruptionLeaseStatus, now: Instant) -> Next {
        if self.in_flight || self.is_lost {
            return Next::Nothing;
        }
        if let Some(at) = self.not_before.filter(|at| now < *at) {
            return Next::WakeAt(at);
        }
        // A write of `Running` needs no read before: it has its own precondition.
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
            // Write the phase even if it looks unchanged: only a successful write with the precondition is the permit.
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

    /// Handles an answer. Returns the event for the machine.
    pub(super) fn answered(&mut self, written: &Written, now: Instant) -> Option<Event> {
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
                // A read that succeeds does not mean that writes succeed.
                self.failures = if writes { 0 } else { self.failures };
                self.learn(lease);
                // The answer is up to date, even if `learn` has ignored it because its version looks older.
                self.in_doubt = false;
                running.then_some(Event::RunningWritten)
            }
            Ok(_) | Err(ApiError::NotFound { .. }) => {
                tracing::info!(lease = %self.uid, "the lease does not exist any more");
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

/// True for a new phase that the coordinator waits for.
fn is_urgent(reported: &Value, phase: Option<Phase>) -> bool {
    let before = reported.get("phase");
    match phase {
        Some(phase @ (Phase::Complete | Phase::Stopped | Phase::AwaitingDrain)) => {
            before != serde_json::to_value(phase).ok().as_ref()
        }
        Some(
            Phase::Accepted | Phase::Preparing | Phase::Running | Phase::Erroring | Phase::Unknown,
        )
        | None => false,
    }
}

/// True if only the observed generation has changed. That needs no write of its own: the next write includes it.
fn is_generation_only(change: &Value) -> bool {
    change
        .as_object()
        .is_some_and(|c| c.keys().all(|key| key == "observedGeneration"))
}

#[cfg(test)]
mod tests;
