//! Decides what the agent does next on one host: `step(Progress, Input) -> (Progress, Vec<Effect>)`.
//!
//! These functions have no side effects: the time is an argument, and all state is in [`Progress`]. The shell (the rest
//! of the agent) writes the progress to the journal before it performs the effects. A restarted agent continues from
//! the journal: it performs an effect again if the effect was not performed, or if its end was not recorded.

use std::collections::BTreeMap;

mod advance;
pub mod attempts;
pub mod effect;
mod gone;
mod left;
pub mod plan;
pub mod progress;
mod reboots;
pub mod reconcile;
pub mod retry;
pub mod room;
pub mod taking;
mod turn;
mod uninstall;
pub mod wave;

use attempts::{Failure, fail};
pub use effect::{Effect, Event, Input, LeaseView, Outcome};
pub use progress::{
    Cursor, Cycle, Doing, Entries, Entry, Half, Permit, Progress, StepPlan, Wanted,
};
use progress::{ImageState, Stopping};
use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::{Stage, State};
use skyhook_oci::RetryClass;

use crate::text;

/// When the host has gone down this many times in a row while a step of the same stage ran, the last time counts as a
/// failure of the step: the step itself may reboot the host, and would do so again after every boot.
const LOSSES: u32 = 3;

/// Maximum number of failed checks whose reason is kept, and maximum length of a reason in bytes.
const CHECKS: usize = 32;
const CHECK_BYTES: usize = 512;

/// How long a running step may continue after the Skyhook was disabled or deleted. Then the agent ends the step.
const STOP_PATIENCE_MS: i64 = 30_000;

/// Processes one input. The caller writes the progress to the journal before it performs the effects.
#[must_use]
pub fn step(mut p: Progress, input: Input) -> (Progress, Vec<Effect>) {
    let now = input.now;
    let mut effects = Vec::new();
    match input.event.bounded() {
        Event::LeaseAccepted => plan::begin(&mut p, now),
        Event::Restarted { boot_id } => restarted(&mut p, boot_id, now, &mut effects),
        Event::LeaseSeen(view) => lease_seen(&mut p, view, now, &mut effects),
        Event::ImageReady { key, digest } => {
            if let Some(entry) = p.entries.get_mut(&key) {
                entry.image_state = ImageState::Ready;
                entry.image_digest = digest;
                // A failing package keeps its message, which says why it fails.
                if entry.state != State::Erroring {
                    entry.message.clear();
                }
            }
        }
        Event::ImageFailed { key, reason, class } => {
            image_failed(&mut p, &key, &reason, class, now);
        }
        Event::StageReady { key, plan } => stage_ready(&mut p, &key, plan, now),
        Event::StageFailed { key, reason, class } => {
            stage_failed(&mut p, &key, &reason, class, now);
        }
        Event::StepExited {
            key,
            id,
            outcome,
            took_ms,
        } => step_exited(&mut p, &key, id, outcome, took_ms, now),
        Event::StepLost { key, id, problem } => step_lost(&mut p, &key, id, problem, now),
        Event::StepNotStarted { key, id } => not_started(&mut p, &key, id),
        Event::RunningWritten => p.permit = Permit::Granted,
        Event::RunningRefused => {
            if p.permit == Permit::Asked {
                p.permit = Permit::None;
            }
        }
        Event::InterruptPrepared { before } => wave::prepared(&mut p, before, &mut effects),
        Event::InterruptWaits { reason } => wave::waits(&mut p, &reason),
        Event::RevisionSeen { packages } => end_changed(&mut p, &packages, &mut effects),
        Event::LeaseLooked { lease, stands } => {
            // The answer may be late: it may be about another lease, or about a lease whose work has ended.
            if lease == p.lease && p.ended.is_none() {
                wave::looked(&mut p, stands, now, &mut effects);
            }
        }
        Event::NodeLooked { lacking } => room::set(&mut p, &lacking),
        Event::Interrupted => wave::interrupted(&mut p, now),
        Event::InterruptFailed { reason, asked } => wave::failed(&mut p, &reason, asked, now),
        Event::Ticked => {}
    }
    effects.extend(advance::advance(&mut p, now));
    (p, effects)
}

/// When [`Event::Ticked`] is needed, in Unix milliseconds. Returns `now` for a time that is too far in the future
/// because the clock was set back.
#[must_use]
pub fn wake_at(p: &Progress, now: i64) -> Option<i64> {
    if p.ended.is_some() {
        return None;
    }
    if p.stop.is_some() || p.held {
        let at = p.stop.and_then(|s| s.end_steps_at);
        at.map(|at| retry::wake_at(at, now))
    } else {
        advance::wake_at(p, now)
    }
}

fn restarted(p: &mut Progress, boot_id: String, now: i64, effects: &mut Vec<Effect>) {
    wave::restarted(p, &boot_id, now);
    p.boot_id = boot_id;
    p.drained = None;
    if p.permit == Permit::Asked {
        p.permit = Permit::None;
    }
    if let Some(stopping) = &mut p.stop
        && ends_steps(stopping.reason)
    {
        // Journals of earlier agents do not say whether steps were told to end: tell them again.
        stopping.end_steps_at.get_or_insert(now);
    }
    for (key, entry) in &mut p.entries {
        entry.image_state = ImageState::Unknown;
        match &entry.doing {
            Doing::Preparing { half } => {
                // A retry that is due keeps the half of the stage, and does not count as a failure.
                entry.doing = match half {
                    Half::Main => Doing::Idle,
                    Half::Check => Doing::Retry {
                        at: now,
                        half: Half::Check,
                    },
                };
            }
            Doing::Step(cursor) => {
                effects.push(Effect::AdoptStep {
                    key: key.clone(),
                    id: cursor.id,
                    half: cursor.half,
                    index: cursor.index,
                });
                // The earlier agent may have died before it told the supervisor to end the step.
                if cursor.is_to_end {
                    effects.push(Effect::EndStep { id: cursor.id });
                }
            }
            Doing::Idle | Doing::Ready(_) | Doing::Retry { .. } | Doing::GaveUp { .. } => {}
        }
    }
}

fn lease_seen(p: &mut Progress, view: LeaseView, now: i64, effects: &mut Vec<Effect>) {
    p.held = view.hold;
    p.stop = match (view.stop, p.stop) {
        (None, _) => None,
        (Some(reason), Some(before)) if before.reason == reason => Some(before),
        (Some(reason), _) => Some(Stopping {
            reason,
            end_steps_at: ends_steps(reason).then_some(now + STOP_PATIENCE_MS),
        }),
    };
    // The lease shows that `Running` was written, although the answer to the write was lost.
    if view.running && view.drained.is_some() && p.permit == Permit::None {
        p.permit = Permit::Granted;
    }
    p.drained = view.drained;
    if p.stop.is_some() || p.held {
        wave::call_off(p, now, effects);
    }
}

/// True for a stop after which the agent ends a running step that takes too long.
fn ends_steps(reason: StopReason) -> bool {
    match reason {
        StopReason::Disabled | StopReason::Deleted => true,
        StopReason::NewRevision
        | StopReason::Paused
        | StopReason::Edited
        | StopReason::DrainTimedOut
        | StopReason::AgentTooOld
        | StopReason::Unknown => false,
    }
}

fn image_failed(p: &mut Progress, key: &str, reason: &str, class: RetryClass, now: i64) {
    let what = format!("{} {key}", p.lease);
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    let attempts = match entry.image_state {
        ImageState::Pulling { attempts } | ImageState::Failed { attempts, .. } => attempts + 1,
        ImageState::Unknown | ImageState::Ready => 1,
    };
    let delay_ms = retry::delay_of_class_ms(class, attempts, &what);
    // The package is not `Erroring`: nothing on the host has changed.
    let reason = format!("image cannot be pulled: {reason}");
    wait_for_image(entry, &reason, attempts, delay_ms, now);
}

/// Schedules the next pull of the image. If the delay is long, the package's message says when the next pull is.
fn wait_for_image(entry: &mut Entry, reason: &str, attempts: u32, delay_ms: i64, now: i64) {
    let retry_at = now + delay_ms;
    entry.image_state = ImageState::Failed {
        attempts,
        retry_at,
        delay_ms,
    };
    if retry::is_long(delay_ms) {
        let at = progress::time(retry_at);
        entry.say(&format!(
            "{reason}; the next try is at {at}, or at once when the Skyhook is changed or the agent's pod is deleted"
        ));
    } else {
        entry.say(reason);
    }
}

fn stage_ready(p: &mut Progress, key: &str, plan: StepPlan, now: i64) {
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    let Doing::Preparing { half } = entry.doing else {
        return;
    };
    let cursor = Cursor {
        id: 0,
        half,
        index: 0,
        plan,
        boot_id: String::new(),
        is_to_end: false,
        failed: Vec::new(),
    };
    go_to(p, key, cursor, now);
}

/// Moves the cursor to the next step that has to run. If no step is left, the stage is done or has failed.
fn go_to(p: &mut Progress, key: &str, mut cursor: Cursor, now: i64) {
    if cursor.half == Half::Main {
        match (cursor.index..cursor.plan.main.len()).find(|i| cursor.plan.main[*i]) {
            Some(index) => cursor.index = index,
            None => {
                cursor.half = Half::Check;
                cursor.index = 0;
            }
        }
    }
    if cursor.half == Half::Check && cursor.index >= cursor.plan.checks {
        if cursor.failed.is_empty() {
            stage_done(p, key, now);
        } else {
            let reason = text::joined(&cursor.failed);
            fail(p, key, Half::Check, &reason, Failure::OfPackage, now);
        }
    } else if attempts::is_over_time(p, key) {
        let reason = "its steps took longer than stageTimeout together";
        fail(p, key, cursor.half, reason, Failure::OfPackage, now);
    } else if let Some(entry) = p.entries.get_mut(key) {
        entry.doing = Doing::Ready(cursor);
    }
}

fn stage_failed(p: &mut Progress, key: &str, reason: &str, class: RetryClass, now: i64) {
    let half = match p.entries.get(key).map(|e| &e.doing) {
        Some(Doing::Preparing { half }) => *half,
        Some(Doing::Step(cursor)) => cursor.half,
        None | Some(Doing::Idle | Doing::Ready(_) | Doing::Retry { .. } | Doing::GaveUp { .. }) => {
            return;
        }
    };
    fail(p, key, half, reason, Failure::OfSurroundings, now);
    let what = format!("{} {key}", p.lease);
    if let Some(entry) = p.entries.get_mut(key) {
        match class {
            // The tag may point to another image later: pull again after a delay.
            RetryClass::Terminal => {
                let attempts = entry.failures.max(1);
                let delay_ms = retry::delay_of_class_ms(class, attempts, &what);
                wait_for_image(entry, reason, attempts, delay_ms, now);
            }
            // The image in the store may be damaged: check it again, and pull it again if needed.
            RetryClass::Transient | RetryClass::After(_) => {
                entry.image_state = ImageState::Unknown;
            }
        }
    }
}

fn step_exited(p: &mut Progress, key: &str, id: u64, outcome: Outcome, took_ms: u64, now: i64) {
    let Some(cursor) = running(p, key, id) else {
        return;
    };
    if let Some(entry) = p.entries.get_mut(key) {
        entry.spent_ms = entry.spent_ms.saturating_add(took_ms);
    }
    let mut next = Cursor {
        index: cursor.index + 1,
        is_to_end: false,
        ..cursor
    };
    match (next.half, outcome) {
        (Half::Main, Outcome::Failed(reason)) => {
            fail(p, key, Half::Main, &reason, Failure::OfPackage, now);
        }
        (Half::Check, Outcome::Failed(reason)) => {
            note_failed_check(&mut next.failed, &reason);
            go_to(p, key, next, now);
        }
        (Half::Main | Half::Check, Outcome::Succeeded) => go_to(p, key, next, now),
    }
}

/// Records why a check failed. Of many failed checks only the first are recorded.
fn note_failed_check(failed: &mut Vec<String>, reason: &str) {
    match failed.len() {
        kept if kept < CHECKS => failed.push(text::cut(reason, CHECK_BYTES)),
        CHECKS => failed.push("others failed as well".to_owned()),
        _ => {}
    }
}

/// Called when a step left no result. In the same boot this counts as a failure: a step that kills its own supervisor
/// would otherwise run again and again. After a reboot it is not a failure, because the step died with the host: the
/// step runs again.
fn step_lost(p: &mut Progress, key: &str, id: u64, problem: String, now: i64) {
    let Some(cursor) = running(p, key, id) else {
        return;
    };
    if cursor.boot_id == p.boot_id {
        return fail(p, key, cursor.half, &problem, Failure::OfPackage, now);
    }
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    entry.lost_with_host += 1;
    if entry.lost_with_host < LOSSES {
        entry.doing = Doing::Ready(cursor);
        return;
    }
    let problem = format!(
        "the host went down {} times while this step ran: the step may be the cause",
        entry.lost_with_host
    );
    fail(p, key, cursor.half, &problem, Failure::OfSurroundings, now);
}

fn not_started(p: &mut Progress, key: &str, id: u64) {
    if let Some(cursor) = running(p, key, id)
        && let Some(entry) = p.entries.get_mut(key)
    {
        entry.doing = Doing::Ready(cursor);
    }
}

/// Called when the lease is stopped for a new revision: ends steps of packages whose version, image, env, resources or
/// agent image the revision changes. The step of an uninstall that nobody asked for continues, because it removes an old
/// version in any case.
fn end_changed(
    p: &mut Progress,
    packages: &BTreeMap<String, (String, String)>,
    effects: &mut Vec<Effect>,
) {
    if p.stop.is_none_or(|s| s.reason != StopReason::NewRevision) {
        return;
    }
    for entry in p.entries.values_mut() {
        let is_taken_away = entry.is_taken_away();
        let Doing::Step(cursor) = &mut entry.doing else {
            continue;
        };
        let is_same = packages
            .get(&entry.name)
            .is_some_and(|(version, identity)| {
                let runs_with = entry.cycle.as_ref().map(|c| &c.identity);
                *version == entry.version && runs_with == Some(identity)
            });
        // An uninstall that is called off, or that goes on with a new version in the spec, goes on to the end of its step.
        let has_version = packages
            .get(&entry.name)
            .is_some_and(|(version, _)| *version == entry.version);
        let is_spared = entry.stage == Stage::Uninstall && !(is_taken_away && has_version);
        if !is_same && !is_spared {
            cursor.is_to_end = true;
            effects.push(Effect::EndStep { id: cursor.id });
        }
    }
}

/// Runs every package of the lease again, after a reboot that Skyhook did not ask for and that undid the work of the
/// packages. Uninstalls continue. If the work of the lease had ended, its result is no longer valid.
pub fn reapply(p: &mut Progress, now: i64) {
    if p.ended.is_some() {
        p.ended = Some(Phase::Stopped);
        p.entries.clear();
        return;
    }
    let wanted = &p.wanted;
    p.entries
        .retain(|_, e| !wanted.contains_key(&e.name) && e.stage == Stage::Uninstall);
    for entry in p.entries.values_mut() {
        entry.doing = Doing::Idle;
        entry.attempts = 0;
    }
    p.wave = None;
    plan::begin(p, now);
}

fn running(p: &Progress, key: &str, id: u64) -> Option<Cursor> {
    match &p.entries.get(key)?.doing {
        Doing::Step(cursor) if cursor.id == id => Some(cursor.clone()),
        Doing::Step(_)
        | Doing::Idle
        | Doing::Ready(_)
        | Doing::Preparing { .. }
        | Doing::Retry { .. }
        | Doing::GaveUp { .. } => None,
    }
}

fn stage_done(p: &mut Progress, key: &str, now: i64) {
    let wanted = p.entries.get(key).is_some_and(|e| p.is_wanted(e));
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    let name = entry.name.clone();
    // Set here for a stage whose steps were all skipped because they ran before.
    entry.started = true;
    entry.lost_with_host = 0;
    entry.doing = Doing::Idle;
    entry.failures = 0;
    entry.attempts = 0;
    entry.spent_ms = 0;
    entry.message.clear();
    match entry.stage {
        Stage::Uninstall if !wanted => gone::succeeded(p, key, now),
        Stage::Uninstall => entry.set(Stage::Apply, State::InProgress, now),
        Stage::Apply | Stage::Upgrade => {
            entry.set(Stage::Config, State::InProgress, now);
            // A version that is left behind is higher.
            p.entries
                .retain(|k, e| e.name != name || k == key || e.left_behind);
        }
        Stage::Config => {
            entry.configured = entry.cycle.as_ref().map(|c| c.content.clone());
            if entry.interrupt().is_some() {
                entry.say("waiting for the interrupt");
                entry.set(Stage::Interrupt, State::Skipped, now);
            } else {
                entry.set(Stage::Config, State::Complete, now);
                p.reboots.remove(key);
                plan::plan_package(p, &name, now);
            }
        }
        Stage::Interrupt | Stage::UninstallInterrupt | Stage::Unknown => {}
        Stage::PostInterrupt => {
            entry.set(Stage::PostInterrupt, State::Complete, now);
            p.reboots.remove(key);
            plan::plan_package(p, &name, now);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
