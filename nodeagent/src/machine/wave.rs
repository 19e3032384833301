//! Waves: packages with an interrupt run apply or upgrade and config together, or uninstall, interrupt the host once, and
//! then run post-interrupt, or are gone.
//!
//! When an interrupt is due, no step starts on the host, and a reboot waits for running steps: a step that dies with
//! the host would look like a failure of its package.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Stage, State};

use super::effect::Effect;
use super::progress::{Doing, Entry, Half, ImageState, Part, Permit, Progress, Wave, WaveAt};
use super::turn::{is_leaving, is_running, is_turn};
use super::{attempts, gone, reboots, retry, room};

/// Asks for the permit, adds packages to the wave, and interrupts the host when every member has completed config.
pub(super) fn advance(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    let waiting: Vec<String> = p
        .entries
        .values()
        .filter(|e| can_join(p, e))
        .map(Entry::key)
        .collect();
    let is_refused = reboots::is_refused(p);
    if waiting.is_empty() && p.wave.is_none() {
        return;
    }
    match p.permit {
        // While a package has given up, the node cannot be complete, so it is not kept empty for the others.
        Permit::None if p.has_given_up() => return,
        Permit::None => {
            if let Some(resource_version) = p.drained.take() {
                p.permit = Permit::Asked;
                effects.push(Effect::WriteRunning { resource_version });
            }
            return;
        }
        Permit::Asked => return,
        Permit::Granted => {}
    }
    if p.wave.is_none() && has_unfinished_post_interrupt(p) {
        return;
    }
    let wave = p.wave.get_or_insert_with(Wave::default);
    if let WaveAt::Retry { at } = wave.at {
        let is_joined = waiting.iter().any(|key| !wave.members.contains(key));
        if is_refused && is_joined {
            // Members that have reached the reboot cap must not delay packages that need another interrupt.
            wave.at = WaveAt::Gathering;
        } else if retry::is_due(at, now) {
            wave.at = WaveAt::Gathering;
            wave.due = true;
        }
    }
    if wave.at == WaveAt::Gathering && !wave.due {
        wave.members.extend(waiting);
        let through = wave
            .members
            .iter()
            .all(|key| p.entries.get(key).is_none_or(Entry::awaits_interrupt));
        wave.due = through && !wave.members.is_empty();
    }
    if wave.at == WaveAt::Gathering && wave.due && awaited(p).is_empty() {
        reboots::refuse(p, now);
        if reboots::participants(p).is_empty() {
            give_up(p, now);
        } else {
            look(p, now, effects);
        }
    }
}

/// True from when the interrupt is due until it has happened or failed. No step starts on the host in that time.
pub(super) fn is_due(p: &Progress) -> bool {
    p.wave.as_ref().is_some_and(|wave| wave.due)
}

/// Packages whose running step the interrupt waits for. Only a reboot would end steps of other packages.
fn awaited(p: &Progress) -> Vec<&Entry> {
    match owner(p) {
        Some((_, interrupt)) if interrupt.kind == InterruptType::Reboot => p
            .entries
            .values()
            .filter(|entry| is_running(entry))
            .collect(),
        Some(_) | None => Vec::new(),
    }
}

/// A message that says what a due interrupt waits for.
#[must_use]
pub fn waits_for(p: &Progress) -> Option<String> {
    let wave = p.wave.as_ref().filter(|wave| wave.due)?;
    let (_, interrupt) = owner(p)?;
    if !wave.waits_for.is_empty() {
        return Some(format!("{}: {}", describe(&interrupt), wave.waits_for));
    }
    let steps: Vec<String> = awaited(p)
        .into_iter()
        .map(|e| format!("{} of {} {}", e.stage, e.name, e.version))
        .collect();
    let is_waiting = wave.at == WaveAt::Gathering && !steps.is_empty();
    is_waiting.then(|| {
        format!(
            "{}: waiting until the running step ends: {}",
            describe(&interrupt),
            steps.join(", ")
        )
    })
}

/// When the interrupt is tried again. `None` without the permit, because the write of `Running` is an event.
pub(super) fn wake_at(p: &Progress) -> Option<i64> {
    match p.wave.as_ref()?.at {
        WaveAt::Retry { at } if p.permit == Permit::Granted => Some(at),
        WaveAt::Retry { .. }
        | WaveAt::Gathering
        | WaveAt::Looking
        | WaveAt::Interrupting { .. } => None,
    }
}

fn can_join(p: &Progress, entry: &Entry) -> bool {
    let is_at_hand =
        entry.image_state == ImageState::Ready || entry.stage == Stage::UninstallInterrupt;
    (p.is_wanted(entry) || is_leaving(p, entry))
        && !entry.is_done()
        && !entry.is_parked()
        && !entry.has_given_up()
        && room::of(p, entry).is_none()
        && entry.interrupt().is_some()
        && is_at_hand
        && is_turn(p, entry)
}

/// True while a package runs post-interrupt: the next wave waits for this package. The next wave does not wait for a
/// package that fails, or that now depends on a package of the next wave.
fn has_unfinished_post_interrupt(p: &Progress) -> bool {
    p.entries.values().any(|e| {
        let unfinished = e.stage == Stage::PostInterrupt && e.state == State::InProgress;
        unfinished && p.is_wanted(e) && is_turn(p, e)
    })
}

fn look(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    let owner = owner(p);
    let participants = reboots::participants(p);
    if let Some(wave) = &mut p.wave {
        wave.at = WaveAt::Looking;
        for key in &participants {
            if let Some(entry) = p.entries.get_mut(key) {
                let state = if owner.as_ref().is_some_and(|(o, _)| o == key) {
                    State::InProgress
                } else {
                    State::Skipped
                };
                entry.say(&match &owner {
                    Some((o, i)) if o != key => format!("waiting for the {} by {o}", describe(i)),
                    Some((_, i)) => describe(i),
                    None => String::new(),
                });
                entry.set(entry.interrupt_stage(), state, now);
            }
        }
    }
    effects.push(Effect::LookAtLease);
}

/// The merged interrupt, and the package that performs it: the first by name of those that want the strongest
/// interrupt.
fn owner(p: &Progress) -> Option<(String, Interrupt)> {
    let participants = reboots::participants(p);
    let wants = || {
        participants.iter().filter_map(|key| {
            let entry = p.entries.get(key)?;
            Some((key, entry.interrupt()?))
        })
    };
    let merged = Interrupt::merge(wants().map(|(_, interrupt)| interrupt))?;
    let is_owner = |key: &str, interrupt: &Interrupt| {
        interrupt.kind == merged.kind
            && !(reboots::wants_reboot(p, key) && reboots::is_capped(p, key))
    };
    let (owner, _) = wants().find(|(key, interrupt)| is_owner(key, interrupt))?;
    Some((owner.clone(), merged))
}

/// Called when the lease was read: starts the interrupt if the lease still asks for this work.
pub(super) fn looked(p: &mut Progress, stands: bool, now: i64, effects: &mut Vec<Effect>) {
    if p.wave.as_ref().is_none_or(|w| w.at != WaveAt::Looking) {
        return;
    }
    let owner = owner(p);
    let boot_id = p.boot_id.clone();
    let Some(wave) = &mut p.wave else { return };
    let Some((owner, interrupt)) = owner.filter(|_| stands && p.stop.is_none() && !p.held) else {
        wave.at = WaveAt::Retry { at: now + 5_000 };
        wave.due = false;
        return;
    };
    // An earlier attempt has found the units already.
    let is_prepared = !wave.before.is_empty();
    let before = wave.before.clone();
    wave.at = WaveAt::Interrupting {
        owner: owner.clone(),
        interrupt: interrupt.clone(),
        boot_id,
        part: if is_prepared {
            Part::Perform
        } else {
            Part::Prepare
        },
    };
    if interrupt.kind == InterruptType::Reboot {
        // Count before the reboot is reported: if the host loses its disk, only the lease's status still has the count.
        reboots::count(p);
    }
    effects.push(if is_prepared {
        Effect::Interrupt {
            owner,
            interrupt,
            before,
        }
    } else {
        Effect::PrepareInterrupt { owner, interrupt }
    });
}

/// Called when the preparation is done: interrupts the host.
pub(super) fn prepared(
    p: &mut Progress,
    units: BTreeMap<String, String>,
    effects: &mut Vec<Effect>,
) {
    let Some(wave) = &mut p.wave else { return };
    let WaveAt::Interrupting {
        owner,
        interrupt,
        boot_id,
        part: part @ Part::Prepare,
    } = &mut wave.at
    else {
        return;
    };
    *part = Part::Perform;
    if interrupt.kind == InterruptType::Reboot {
        wave.reboot_asked = Some(boot_id.clone());
    }
    wave.before = units;
    wave.waits_for.clear();
    effects.push(Effect::Interrupt {
        owner: owner.clone(),
        interrupt: interrupt.clone(),
        before: wave.before.clone(),
    });
}

/// Called when the lease is stopped or paused: cancels an interrupt that is still being prepared.
pub(super) fn call_off(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    let Some(wave) = &mut p.wave else { return };
    let WaveAt::Interrupting {
        owner,
        part: Part::Prepare,
        ..
    } = &wave.at
    else {
        return;
    };
    if let Some(entry) = p.entries.get_mut(owner) {
        entry.message.clear();
    }
    wave.waits_for.clear();
    wave.due = false;
    wave.at = WaveAt::Retry { at: now };
    reboots::uncount(p);
    effects.push(Effect::CallOffInterrupt);
}

/// Called when no member may ask for a reboot. The wave is kept, because a reboot that was asked for may still happen.
fn give_up(p: &mut Progress, now: i64) {
    let at = now + retry::delay_ms(u32::MAX, &p.lease);
    if let Some(wave) = &mut p.wave {
        wave.at = WaveAt::Retry { at };
        wave.due = false;
    }
}

/// Called when the interrupt has to wait: sets the message of its package.
pub(super) fn waits(p: &mut Progress, reason: &str) {
    let Some(wave) = &mut p.wave else { return };
    let WaveAt::Interrupting {
        owner, interrupt, ..
    } = &wave.at
    else {
        return;
    };
    reason.clone_into(&mut wave.waits_for);
    let message = format!("{}: {reason}", describe(interrupt));
    if let Some(entry) = p.entries.get_mut(owner) {
        entry.say(&message);
    }
}

/// Called when the interrupt has happened: its packages continue with post-interrupt, and uninstalled ones are gone. Members that have reached the
/// reboot cap stay in the wave.
pub(super) fn interrupted(p: &mut Progress, now: i64) {
    let participants = reboots::participants(p);
    let Some(wave) = p
        .wave
        .take_if(|w| matches!(w.at, WaveAt::Interrupting { .. }))
    else {
        return;
    };
    go_on(p, &participants, now);
    let refused: BTreeSet<String> = wave.members.difference(&participants).cloned().collect();
    if !refused.is_empty() {
        p.wave = Some(Wave {
            members: refused,
            reboot_asked: wave.reboot_asked,
            ..Wave::default()
        });
        give_up(p, now);
    }
}

fn go_on(p: &mut Progress, members: &BTreeSet<String>, now: i64) {
    for key in members {
        let Some(entry) = p.entries.get_mut(key) else {
            continue;
        };
        if entry.stage == Stage::UninstallInterrupt {
            gone::gone(p, key, now);
            continue;
        }
        if let Some(cycle) = &mut entry.cycle {
            cycle.interrupt = None;
        }
        entry.doing = Doing::Idle;
        entry.failures = 0;
        entry.attempts = 0;
        entry.message.clear();
        entry.set(Stage::PostInterrupt, State::InProgress, now);
    }
}

/// Called when the interrupt failed: sets the message of its package, and schedules the next attempt.
pub(super) fn failed(p: &mut Progress, reason: &str, asked: bool, now: i64) {
    let Some(wave) = &mut p.wave else { return };
    let WaveAt::Interrupting {
        owner, interrupt, ..
    } = &wave.at
    else {
        return;
    };
    let owner = owner.clone();
    let is_reboot = interrupt.kind == InterruptType::Reboot;
    wave.failures += 1;
    wave.due = false;
    wave.waits_for.clear();
    let delay = retry::delay_ms(wave.failures, &p.lease);
    wave.at = WaveAt::Retry { at: now + delay };
    if asked {
        wave.counted.clear();
    } else {
        reboots::uncount(p);
    }
    if let Some(entry) = p.entries.get_mut(&owner) {
        entry.say(reason);
        entry.restarts += 1;
        entry.set(entry.interrupt_stage(), State::Erroring, now);
    }
    // Reboots are counted apart from attempts.
    let counts = !is_reboot && p.stop.is_none();
    if counts && attempts::use_up(p, &owner, Half::Main, reason, now) {
        leave(p, &owner, now);
    }
}

/// Takes a package that has given up out of the wave. The interrupt of the other members is prepared anew, without it.
fn leave(p: &mut Progress, key: &str, now: i64) {
    let at = now + retry::delay_ms(1, &p.lease);
    let Some(wave) = &mut p.wave else { return };
    wave.members.remove(key);
    wave.failures = 0;
    wave.before.clear();
    wave.at = WaveAt::Retry { at };
    // A reboot that was asked for may still happen.
    if wave.members.is_empty() && wave.reboot_asked.is_none() {
        p.wave = None;
    } else if wave.members.is_empty() {
        wave.at = WaveAt::Gathering;
    }
}

/// Called when the agent was started in the boot `boot_id`. If a reboot was asked for in another boot, the reboot has
/// happened.
pub(super) fn restarted(p: &mut Progress, boot_id: &str, now: i64) {
    let rebooted = p
        .wave
        .take_if(|w| w.reboot_asked.as_deref().is_some_and(|b| b != boot_id));
    if let Some(wave) = rebooted {
        // The reboot counts even if the agent had reported it as failed.
        go_on(p, &wave.members, now);
        return;
    }
    let Some(wave) = &mut p.wave else { return };
    wave.waits_for.clear();
    if p.boot_id != boot_id {
        wave.before.clear();
    }
    // An interrupt that was being prepared is prepared and counted again.
    let is_asked = match &wave.at {
        WaveAt::Interrupting { part, .. } => *part == Part::Perform,
        WaveAt::Gathering | WaveAt::Looking | WaveAt::Retry { .. } => false,
    };
    match &wave.at {
        // The journal does not say how far the interrupt got: read the lease again, and prepare again.
        WaveAt::Interrupting { .. } | WaveAt::Looking => wave.at = WaveAt::Gathering,
        WaveAt::Gathering | WaveAt::Retry { .. } => {}
    }
    if is_asked {
        wave.counted.clear();
    } else {
        reboots::uncount(p);
    }
}

/// Name of an interrupt in messages.
#[must_use]
pub fn describe(interrupt: &Interrupt) -> String {
    match interrupt.kind {
        InterruptType::Reboot => "reboot".to_owned(),
        InterruptType::RestartAllServices => "restart of all services".to_owned(),
        InterruptType::Service => format!("restart of {}", interrupt.services.join(", ")),
        InterruptType::Noop => "no-op interrupt".to_owned(),
    }
}
