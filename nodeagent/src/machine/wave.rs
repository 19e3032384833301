//! Waves: packages that interrupt the host go through apply or upgrade and config together, interrupt it once, and then
//! do their post-interrupt.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Stage, State};

use super::effect::Effect;
use super::progress::{Doing, Entry, ImageState, Permit, Progress, Wave, WaveAt};
use super::retry;

/// Reboots that one version of a package may cause.
const REBOOT_CAP: u32 = 3;

/// Asks for the permit, lets packages join, and interrupts the host when every member is through config.
pub(super) fn advance(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    let waiting: Vec<String> = p
        .entries
        .values()
        .filter(|e| can_join(p, e))
        .map(Entry::key)
        .collect();
    if waiting.is_empty() && p.wave.is_none() {
        return;
    }
    match p.permit {
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
    match wave.at {
        WaveAt::Staging => {
            wave.members.extend(waiting);
            let through = wave.members.iter().all(|key| {
                p.entries
                    .get(key)
                    .is_none_or(|e| e.stage == Stage::Interrupt)
            });
            if through && !wave.members.is_empty() {
                look(p, now, effects);
            }
        }
        WaveAt::Retry { at } if at <= now => look(p, now, effects),
        WaveAt::Retry { .. } | WaveAt::Looking | WaveAt::Interrupting { .. } => {}
    }
}

/// When the interrupt is tried again. Without the permit it waits for that.
pub(super) fn wake_at(p: &Progress) -> Option<i64> {
    match p.wave.as_ref()?.at {
        WaveAt::Retry { at } if p.permit == Permit::Granted => Some(at),
        WaveAt::Retry { .. } | WaveAt::Staging | WaveAt::Looking | WaveAt::Interrupting { .. } => {
            None
        }
    }
}

fn can_join(p: &Progress, entry: &Entry) -> bool {
    p.is_wanted(entry)
        && !entry.is_done()
        && !entry.is_parked()
        && entry.interrupt().is_some()
        && entry.image_state == ImageState::Ready
        && super::advance::is_turn(p, entry)
}

/// The next wave waits for the post-interrupt of the one before; one that fails, or that has come to depend on a package
/// of the next wave, does not hold others up.
fn has_unfinished_post_interrupt(p: &Progress) -> bool {
    p.entries.values().any(|e| {
        let unfinished = e.stage == Stage::PostInterrupt && e.state == State::InProgress;
        unfinished && p.is_wanted(e) && super::advance::is_turn(p, e)
    })
}

fn look(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    let owner = owner(p);
    if let Some(wave) = &mut p.wave {
        wave.at = WaveAt::Looking;
        for key in &wave.members {
            if let Some(entry) = p.entries.get_mut(key) {
                let state = if owner.as_ref().is_some_and(|(o, _)| o == key) {
                    State::InProgress
                } else {
                    State::Skipped
                };
                entry.message = match &owner {
                    Some((o, i)) if o != key => format!("{} by {o} is waited for", describe(i)),
                    Some((_, i)) => describe(i),
                    None => String::new(),
                };
                entry.set(Stage::Interrupt, state, now);
            }
        }
    }
    effects.push(Effect::LookAtLease);
}

/// The package that carries out the merged interrupt: the first by name of those that want the strongest.
fn owner(p: &Progress) -> Option<(String, Interrupt)> {
    let members = &p.wave.as_ref()?.members;
    let wants = || {
        members.iter().filter_map(|key| {
            let entry = p.entries.get(key)?;
            Some((key, entry.interrupt()?))
        })
    };
    let merged = Interrupt::merge(wants().map(|(_, interrupt)| interrupt))?;
    let (owner, _) = wants().find(|(_, interrupt)| interrupt.kind == merged.kind)?;
    Some((owner.clone(), merged))
}

/// The lease was looked at.
pub(super) fn looked(p: &mut Progress, stands: bool, now: i64, effects: &mut Vec<Effect>) {
    if p.wave.as_ref().is_none_or(|w| w.at != WaveAt::Looking) {
        return;
    }
    let owner = owner(p);
    let boot_id = p.boot_id.clone();
    let Some(wave) = &mut p.wave else { return };
    let Some((owner, interrupt)) = owner.filter(|_| stands && p.stop.is_none() && !p.held) else {
        wave.at = WaveAt::Retry { at: now + 5_000 };
        return;
    };
    let reboots = p.entries.get(&owner).map_or(0, |e| e.reboots);
    if interrupt.kind == InterruptType::Reboot && reboots >= REBOOT_CAP {
        failed(
            p,
            &format!(
                "rebooted {reboots} times for this version already: no further reboot; change the version or remove the interrupt"
            ),
            now,
        );
        return;
    }
    if interrupt.kind == InterruptType::Reboot {
        wave.reboot_asked = Some(boot_id.clone());
    }
    wave.at = WaveAt::Interrupting {
        owner: owner.clone(),
        interrupt: interrupt.clone(),
        boot_id,
    };
    let before = wave.before.clone();
    effects.push(Effect::Interrupt {
        owner,
        interrupt,
        before,
    });
}

/// What is to be restarted is on record: now it is.
pub(super) fn units_seen(
    p: &mut Progress,
    units: BTreeMap<String, String>,
    effects: &mut Vec<Effect>,
) {
    let Some(wave) = &mut p.wave else { return };
    let WaveAt::Interrupting {
        owner, interrupt, ..
    } = &wave.at
    else {
        return;
    };
    wave.before = units;
    effects.push(Effect::Interrupt {
        owner: owner.clone(),
        interrupt: interrupt.clone(),
        before: wave.before.clone(),
    });
}

/// Something holds the interrupt up: the owner shows what.
pub(super) fn waits(p: &mut Progress, reason: &str) {
    let Some(WaveAt::Interrupting {
        owner, interrupt, ..
    }) = p.wave.as_ref().map(|w| &w.at)
    else {
        return;
    };
    let message = format!("{}: {reason}", describe(interrupt));
    if let Some(entry) = p.entries.get_mut(&owner.clone()) {
        entry.message = message;
    }
}

/// The interrupt has happened: all members go on to post-interrupt.
pub(super) fn interrupted(p: &mut Progress, now: i64) {
    let Some(Wave {
        members,
        at: WaveAt::Interrupting { interrupt, .. },
        ..
    }) = p
        .wave
        .take_if(|w| matches!(w.at, WaveAt::Interrupting { .. }))
    else {
        return;
    };
    go_on(p, &members, interrupt.kind == InterruptType::Reboot, now);
}

fn go_on(p: &mut Progress, members: &BTreeSet<String>, is_reboot: bool, now: i64) {
    for key in members {
        let Some(entry) = p.entries.get_mut(key) else {
            continue;
        };
        if is_reboot {
            entry.reboots += 1;
        }
        if let Some(cycle) = &mut entry.cycle {
            cycle.interrupt = None;
        }
        entry.doing = Doing::Idle;
        entry.failures = 0;
        entry.message = String::new();
        entry.set(Stage::PostInterrupt, State::InProgress, now);
    }
}

/// The interrupt failed: the owner shows why, and it is tried again.
pub(super) fn failed(p: &mut Progress, reason: &str, now: i64) {
    let owner = owner(p);
    let Some(wave) = &mut p.wave else { return };
    wave.failures += 1;
    wave.before.clear();
    let delay = retry::delay_ms(wave.failures, &p.lease);
    wave.at = WaveAt::Retry { at: now + delay };
    if let Some(entry) = owner.and_then(|(key, _)| p.entries.get_mut(&key)) {
        entry.message = reason.to_owned();
        entry.restarts += 1;
        entry.set(Stage::Interrupt, State::Erroring, now);
    }
}

/// The agent was started anew in the boot `boot_id`: a reboot that was asked for has happened if that is another one.
pub(super) fn restarted(p: &mut Progress, boot_id: &str, now: i64) {
    let rebooted = p
        .wave
        .take_if(|w| w.reboot_asked.as_deref().is_some_and(|b| b != boot_id));
    if let Some(wave) = rebooted {
        // Also when it was given up on meanwhile.
        go_on(p, &wave.members, true, now);
        return;
    }
    let Some(wave) = &mut p.wave else { return };
    if p.boot_id != boot_id {
        wave.before.clear();
    }
    match &wave.at {
        // Nobody knows how far it got: it is looked at again.
        WaveAt::Interrupting { .. } | WaveAt::Looking => wave.at = WaveAt::Staging,
        WaveAt::Staging | WaveAt::Retry { .. } => {}
    }
}

/// An interrupt, for people.
#[must_use]
pub fn describe(interrupt: &Interrupt) -> String {
    match interrupt.kind {
        InterruptType::Reboot => "reboot".to_owned(),
        InterruptType::RestartAllServices => "restart of all services".to_owned(),
        InterruptType::Service => format!("restart of {}", interrupt.services.join(", ")),
        InterruptType::Noop => "no-op interrupt".to_owned(),
    }
}
