//! Handles the end of a step: decides which event the machine gets.

use std::rc::Rc;
use std::time::Duration;

use skyhook_oci::chain;
use tokio::time::sleep;

use super::agent::Agent;
use super::note::{Failed, Note, StepDone};
use crate::host::exec::StepEnd;
use crate::host::systemd::Bus;
use crate::machine::{Doing, Event, Outcome};

/// Time between two queries of systemd's state.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Number of queries without an answer after which the agent assumes that the host stays up.
const BUS_ATTEMPTS: u32 = 20;

/// What the end of a step means for the machine.
#[derive(Debug)]
enum Judged {
    /// The outcome, and how long the step ran.
    Outcome(Outcome, u64),
    /// An earlier agent died before it had started the step.
    NotStarted,
    /// The step has no usable result, for this reason.
    Lost(String),
}

impl Agent {
    /// Handles the end of a step, or the failure to start it.
    pub(super) fn step_done(&mut self, done: StepDone) {
        let judged = self.judge(&done);
        let StepDone { key, id, .. } = done;
        self.feed(match judged {
            Ok(Judged::Outcome(outcome, took_ms)) => Event::StepExited {
                key,
                id,
                outcome,
                took_ms,
            },
            Ok(Judged::NotStarted) => Event::StepNotStarted { key, id },
            Ok(Judged::Lost(problem)) => {
                tracing::warn!(package = %key, %problem, "a step ended without a result");
                return self.report_later(Event::StepLost { key, id, problem });
            }
            Err(Failed { reason, class }) => {
                return self.report_later(Event::StageFailed { key, reason, class });
            }
        });
    }

    /// Decides what the end of the step means. An error means that the stage failed.
    fn judge(&self, done: &StepDone) -> Result<Judged, Failed> {
        let (end, prepared) = done.result.as_ref().map_err(Clone::clone)?;
        let name = prepared.step_name(done.half, done.index);
        let result = match end {
            StepEnd::Finished(result) => result,
            StepEnd::Lost { problem } => return Ok(Judged::Lost(format!("{name}: {problem}"))),
            StepEnd::NotStarted => return Ok(Judged::NotStarted),
        };
        let entry = self.run().and_then(|run| run.entries.get(&done.key));
        let ended_by_us = entry.is_some_and(|entry| match &entry.doing {
            Doing::Step(cursor) => cursor.id == done.id && cursor.is_to_end,
            Doing::Idle
            | Doing::Ready(_)
            | Doing::Preparing { .. }
            | Doing::Retry { .. }
            | Doing::GaveUp { .. } => false,
        });
        if result.ended && !ended_by_us {
            let problem = "something other than the agent stopped its scope or its supervisor";
            return Ok(Judged::Lost(format!("{name}: {problem}")));
        }
        let limit = self.step_limit(&done.key);
        let outcome = match prepared.judge(done.half, done.index, result, limit) {
            Ok(()) => Outcome::Succeeded,
            Err(reason) => Outcome::Failed(reason),
        };
        let success = outcome == Outcome::Succeeded;
        prepared
            .note_step(done.half, done.index, success)
            .map_err(|e| chain(&e))?;
        match &outcome {
            Outcome::Succeeded => {
                tracing::info!(package = %done.key, step = %name, "the step has succeeded")
            }
            Outcome::Failed(reason) => {
                tracing::warn!(package = %done.key, step = %name, %reason, "the step has failed");
            }
        }
        Ok(Judged::Outcome(outcome, result.took_ms))
    }

    /// Sends the event, unless the host is going down. A step that dies with the host has not failed: after the reboot,
    /// the agent runs the step again.
    fn report_later(&self, event: Event) {
        let (bus, notes) = (Rc::clone(&self.bus), self.notes.clone());
        tokio::task::spawn_local(async move {
            while is_going_down(&bus).await {
                sleep(ASK_AGAIN).await;
            }
            let _sent = notes.send(Note::Event(event));
        });
    }
}

/// True when the host is going down. The bus may be restarting or may stop before systemd, so this retries for some
/// seconds.
async fn is_going_down(bus: &Bus) -> bool {
    for _ in 0..BUS_ATTEMPTS {
        match bus.system_state().await {
            Ok(state) => return state == "stopping",
            Err(error) => {
                tracing::debug!(%error, "systemd's state cannot be read");
                bus.release().await;
            }
        }
        sleep(ASK_AGAIN).await;
    }
    false
}
