//! The status writer: few writes, none that change nothing, terminal ones at once.

use std::time::Duration;

use serde_json::Value;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::Phase;
use tokio::time::Instant;

use super::agent::{Agent, Note};
use crate::lease::ApiError;
use crate::machine::Event;
use crate::report;

/// Between two writes that are not urgent.
const PACE: Duration = Duration::from_secs(1);

/// State of the writer.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// UID of the lease that is written to.
    uid: String,
    /// The status that the API has.
    reported: Value,
    generation: i64,
    in_flight: bool,
    last: Option<Instant>,
    not_before: Option<Instant>,
    failures: u32,
    /// Resource version over which `Running` is to be written.
    running: Option<String>,
    /// The lease is not there any more.
    is_lost: bool,
    wake: Option<Instant>,
}

/// How a write came out.
#[derive(Debug)]
pub(super) struct Written {
    uid: String,
    running: bool,
    result: Result<InterruptionLease, ApiError>,
}

impl Writer {
    /// Begins with a lease that has just been taken.
    pub(super) fn begin(&mut self, lease: &InterruptionLease) {
        *self = Self {
            uid: lease.metadata.uid.clone().unwrap_or_default(),
            reported: serde_json::to_value(&lease.status).unwrap_or_default(),
            generation: lease.metadata.generation.unwrap_or(0),
            last: Some(Instant::now()),
            ..Self::default()
        };
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
    }

    pub(super) fn want_running(&mut self, resource_version: String) {
        self.running = Some(resource_version);
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.wake.filter(|_| !self.in_flight)
    }
}

impl Agent {
    /// Writes the status if it is due.
    pub(super) fn write_status(&mut self) {
        self.writer.wake = None;
        let Some(run) = self.run() else { return };
        if self.writer.in_flight || self.writer.is_lost || run.lease != self.writer.uid {
            return;
        }
        if let Some(at) = self.writer.not_before
            && Instant::now() < at
        {
            self.writer.wake = Some(at);
            return;
        }
        let mut status = report::status(run, &self.facts, self.writer.generation);
        if let Some(trouble) = &self.trouble {
            status.message.clone_from(trouble);
        }
        let running = self.writer.running.clone();
        if running.is_some() {
            status.phase = Some(Phase::Running);
            status.needs_drain = Some(true);
        }
        let urgent = running.is_some() || is_urgent(&self.writer.reported, status.phase);
        let status = serde_json::to_value(&status).unwrap_or_default();
        let Some(change) = report::merge_diff(&self.writer.reported, &status) else {
            if running.is_none() {
                return;
            }
            // What is to be written stands there already, from before a restart; the guard still has to hold.
            self.write(serde_json::json!({ "phase": "Running" }), running);
            return;
        };
        if running.is_none() && is_generation_only(&change) {
            return;
        }
        let due = self.writer.last.map(|last| last + PACE);
        match due {
            Some(due) if !urgent && Instant::now() < due => self.writer.wake = Some(due),
            Some(_) | None => self.write(change, running),
        }
    }

    fn write(&mut self, change: Value, running: Option<String>) {
        self.writer.in_flight = true;
        let uid = self.writer.uid.clone();
        let (api, notes) = (self.api.clone(), self.notes.clone());
        tokio::task::spawn_local(async move {
            let call = api.patch_status(&uid, running.as_deref(), change);
            let result = match tokio::time::timeout(Duration::from_secs(30), call).await {
                Ok(result) => result,
                Err(_) => Err(ApiError::Silent {
                    what: "lease status".into(),
                    problem: "no answer in 30 s".into(),
                }),
            };
            let written = Written {
                uid,
                running: running.is_some(),
                result,
            };
            let _sent = notes.send(Note::Written(Box::new(written)));
        });
    }

    pub(super) fn written(&mut self, written: Written) {
        if written.uid != self.writer.uid {
            return;
        }
        let writer = &mut self.writer;
        writer.in_flight = false;
        writer.last = Some(Instant::now());
        match written.result {
            Ok(lease) => {
                writer.failures = 0;
                writer.not_before = None;
                writer.reported = serde_json::to_value(&lease.status).unwrap_or_default();
                if written.running {
                    writer.running = None;
                    self.feed(Event::RunningWritten);
                }
            }
            Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) if written.running => {
                writer.running = None;
                self.feed(Event::RunningRefused);
            }
            Err(error @ (ApiError::NotFound { .. } | ApiError::Conflict { .. })) => {
                tracing::info!(%error, "the lease is not reported on any more");
                writer.is_lost = true;
            }
            Err(
                error @ (ApiError::Refused { .. }
                | ApiError::Silent { .. }
                | ApiError::Malformed { .. }),
            ) => {
                writer.failures += 1;
                let seconds = 1_u64 << writer.failures.min(5);
                writer.not_before = Some(Instant::now() + Duration::from_secs(seconds));
                tracing::warn!(%error, "the status cannot be written");
            }
        }
    }
}

/// Ends, and what the coordinator waits for, are not held back.
fn is_urgent(reported: &Value, phase: Option<Phase>) -> bool {
    let before = reported.get("phase").and_then(Value::as_str);
    match phase {
        Some(phase @ (Phase::Complete | Phase::Stopped | Phase::AwaitingDrain)) => {
            before != Some(&format!("{phase:?}"))
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
