//! What a step that is over means.

use std::rc::Rc;
use std::time::Duration;

use skyhook_oci::chain;
use tokio::time::sleep;

use super::agent::{Agent, Note};
use super::effects::{Failed, StepDone};
use crate::host::exec::StepEnd;
use crate::host::systemd::Bus;
use crate::machine::{Doing, Event, Outcome};

/// Between two looks at systemd's state.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often systemd's state is asked for before it is taken that the host stays up.
const BUS_ATTEMPTS: u32 = 20;

/// What a step that is over means.
#[derive(Debug)]
enum Judged {
    Outcome(Outcome),
    /// An earlier agent died before it had started the step.
    NotStarted,
    /// It has no result that says anything of the step; why, for people.
    Lost(String),
}

impl Agent {
    /// A step's supervisor is done, or could not do its work.
    pub(super) fn step_done(&mut self, done: StepDone) {
        let judged = self.judge(&done);
        let StepDone { key, id, .. } = done;
        self.feed(match judged {
            Ok(Judged::Outcome(outcome)) => Event::StepExited { key, id, outcome },
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

    /// What a step that is over means, or why the stage failed around it.
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
            Doing::Idle | Doing::Ready(_) | Doing::Preparing { .. } | Doing::Retry { .. } => false,
        });
        if result.ended && !ended_by_us {
            let problem =
                "its scope was stopped, or its supervisor got a signal, and not by this agent";
            return Ok(Judged::Lost(format!("{name}: {problem}")));
        }
        let success = !result.ended
            && !result.timed_out
            && result
                .code
                .is_some_and(|code| prepared.is_success(done.half, done.index, code));
        prepared
            .note_step(done.half, done.index, success)
            .map_err(|e| chain(&e))?;
        let outcome = if success {
            Outcome::Succeeded
        } else {
            Outcome::Failed(format!("{name} {}", result.describe()))
        };
        match &outcome {
            Outcome::Succeeded => tracing::info!(package = %done.key, step = %name, "done"),
            Outcome::Failed(reason) => {
                tracing::warn!(package = %done.key, step = %name, %reason, "failed");
            }
        }
        Ok(Judged::Outcome(outcome))
    }

    /// Reports what went wrong with a step, unless the host is going down: what dies with the host is nobody's failure, and the agent
    /// dies with it. The agent that comes after the boot finds out.
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

/// Whether systemd stops everything. A bus that does not answer may have been stopped for that: it is given a moment.
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
