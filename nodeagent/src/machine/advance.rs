//! Starts everything that can start now: pulls, stages, steps and interrupts.

use std::collections::BTreeSet;

use skyhook_crds::lease::Phase;
use skyhook_crds::{Stage, State};

use super::effect::Effect;
use super::left::{is_blocked, is_left_behind, is_settled};
use super::progress::{Cursor, Doing, Entry, Half, ImageState, Progress, WaveAt};
use super::turn::{is_leaving, is_running, is_turn};
use super::{retry, room, wave};

/// Maximum number of packages that prepare a stage or run a step at the same time. Each running step needs a supervisor
/// process.
const WIDTH: usize = 16;

/// Starts every package that may start.
pub(super) fn advance(p: &mut Progress, now: i64) -> Vec<Effect> {
    let mut effects = Vec::new();
    if p.ended.is_some() {
        return effects;
    }
    if p.stop.is_some() {
        stop(p, now, &mut effects);
        return effects;
    }
    if p.held || p.hindrance().is_some() {
        return effects;
    }
    if !p.is_busy() && is_complete(p) {
        p.ended = Some(Phase::Complete);
        return effects;
    }
    room::advance(p, now, &mut effects);
    pull(p, now, &mut effects);
    wave::advance(p, now, &mut effects);
    if wave::is_due(p) {
        return effects;
    }
    let mut slots = slots(p);
    for key in p.entries.keys().cloned().collect::<Vec<_>>() {
        if slots == 0 {
            break;
        }
        if p.entries.get(&key).is_some_and(|e| can_start(p, e, now)) {
            start(p, &key, now, &mut effects);
            slots -= 1;
        }
    }
    effects
}

/// When [`advance`] has something to do without an event. Ignores the times of packages that also wait for something
/// else: such a time may be past, and the agent would wake up again and again.
pub(super) fn wake_at(p: &Progress, now: i64) -> Option<i64> {
    if p.hindrance().is_some() {
        return None;
    }
    let has_slot = slots(p) > 0 && !wave::is_due(p);
    let entries = p.entries.values().filter_map(|e| match e.doing {
        Doing::Retry { at, .. } if has_slot && may_start(p, e) => Some(at),
        Doing::Retry { .. }
        | Doing::Idle
        | Doing::Ready(_)
        | Doing::Preparing { .. }
        | Doing::Step(_)
        | Doing::GaveUp { .. } => None,
    });
    let pulls = p.entries.values().filter_map(|e| match e.image_state {
        ImageState::Failed {
            retry_at, delay_ms, ..
        } if needs_image(p, e) => Some(match retry::is_due_after(delay_ms, retry_at, now) {
            true => now,
            false => retry_at,
        }),
        ImageState::Failed { .. }
        | ImageState::Unknown
        | ImageState::Pulling { .. }
        | ImageState::Ready => None,
    });
    let others = entries.chain(wave::wake_at(p)).chain(room::wake_at(p));
    let others = others.map(|at| retry::wake_at(at, now));
    others.chain(pulls).min()
}

/// How many more packages may start.
fn slots(p: &Progress) -> usize {
    WIDTH.saturating_sub(p.entries.values().filter(|e| is_running(e)).count())
}

fn stop(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    if !p.is_busy() {
        p.ended = Some(Phase::Stopped);
        return;
    }
    let Some(stopping) = &mut p.stop else { return };
    if stopping
        .end_steps_at
        .is_some_and(|at| retry::is_due(at, now))
    {
        stopping.end_steps_at = None;
        for entry in p.entries.values_mut() {
            if let Doing::Step(cursor) = &mut entry.doing {
                cursor.is_to_end = true;
                effects.push(Effect::EndStep { id: cursor.id });
            }
        }
    }
}

fn is_complete(p: &Progress) -> bool {
    let may_stay = |e: &Entry| {
        let is_wanted = p.is_wanted(e) || is_blocked(p, &e.name);
        (is_wanted && !is_leaving(p, e)) || is_left_behind(p, e)
    };
    p.wanted.keys().all(|name| is_settled(p, name)) && p.entries.values().all(may_stay)
}

fn pull(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    let wanted: BTreeSet<String> = p
        .entries
        .values()
        .filter(|e| needs_image(p, e))
        .map(Entry::key)
        .collect();
    for (key, entry) in &mut p.entries {
        let due = match entry.image_state {
            ImageState::Unknown => true,
            ImageState::Failed {
                retry_at, delay_ms, ..
            } => retry::is_due_after(delay_ms, retry_at, now),
            ImageState::Pulling { .. } | ImageState::Ready => false,
        };
        if due && wanted.contains(key) {
            let attempts = match entry.image_state {
                ImageState::Failed { attempts, .. } => attempts,
                ImageState::Unknown | ImageState::Pulling { .. } | ImageState::Ready => 0,
            };
            entry.image_state = ImageState::Pulling { attempts };
            effects.push(Effect::PullImage { key: key.clone() });
        }
    }
}

fn needs_image(p: &Progress, entry: &Entry) -> bool {
    let works = p.is_wanted(entry) && !entry.is_done() || is_leaving(p, entry);
    works
        && entry.stage != Stage::UninstallInterrupt
        && !entry.has_given_up()
        && room::of(p, entry).is_none()
}

fn can_start(p: &Progress, entry: &Entry, now: i64) -> bool {
    let free = match entry.doing {
        Doing::Idle | Doing::Ready(_) => true,
        Doing::Retry { at, .. } => retry::is_due(at, now),
        Doing::Preparing { .. } | Doing::Step(_) | Doing::GaveUp { .. } => false,
    };
    free && may_start(p, entry)
}

/// True when the package may start. Does not check whether a delay is over or a step is running.
fn may_start(p: &Progress, entry: &Entry) -> bool {
    entry.image_state == ImageState::Ready
        && room::of(p, entry).is_none()
        && !entry.is_done()
        && !entry.awaits_interrupt()
        && is_turn(p, entry)
        && (entry.interrupt().is_none() || is_gathering(p, entry))
}

/// True for a member of a wave that is still gathering.
fn is_gathering(p: &Progress, entry: &Entry) -> bool {
    p.wave
        .as_ref()
        .is_some_and(|w| w.at == WaveAt::Gathering && w.members.contains(&entry.key()))
}

fn start(p: &mut Progress, key: &str, now: i64, effects: &mut Vec<Effect>) {
    let id = p.next_step;
    let boot_id = p.boot_id.clone();
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    match std::mem::take(&mut entry.doing) {
        Doing::Ready(cursor) => {
            p.next_step += 1;
            effects.push(Effect::RunStep {
                key: key.to_owned(),
                id,
                half: cursor.half,
                index: cursor.index,
            });
            p.begun = Some(true);
            entry.started = true;
            entry.doing = Doing::Step(Cursor {
                id,
                boot_id,
                ..cursor
            });
        }
        doing @ (Doing::Idle
        | Doing::Retry { .. }
        | Doing::Preparing { .. }
        | Doing::Step(_)
        | Doing::GaveUp { .. }) => {
            let half = match doing {
                Doing::Retry { half, .. } => {
                    entry.restarts += 1;
                    half
                }
                Doing::Idle
                | Doing::Ready(_)
                | Doing::Preparing { .. }
                | Doing::Step(_)
                | Doing::GaveUp { .. } => Half::Main,
            };
            entry.spent_ms = 0;
            if entry.state != State::Erroring {
                entry.set(entry.stage, State::InProgress, now);
            }
            entry.doing = Doing::Preparing { half };
            effects.push(Effect::PrepareStage {
                key: key.to_owned(),
                half,
            });
        }
    }
}
