//! Waves: packages that interrupt the host go through apply or upgrade and config together, interrupt it once, and then
//! do their post-interrupt.
//!
//! From when an interrupt is due no new step starts on the host, and a reboot waits for the steps that run: a step that
//! dies with the host would look like a failure of its package.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Stage, State};

use super::effect::Effect;
use super::progress::{Doing, Entry, ImageState, Permit, Progress, Wave, WaveAt};
use super::retry;

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
        WaveAt::Staging if !wave.due => {
            wave.members.extend(waiting);
            let through = wave.members.iter().all(|key| {
                p.entries
                    .get(key)
                    .is_none_or(|e| e.stage == Stage::Interrupt)
            });
            wave.due = through && !wave.members.is_empty();
        }
        WaveAt::Retry { at } if retry::is_due(at, now) => {
            wave.at = WaveAt::Staging;
            wave.due = true;
        }
        WaveAt::Staging | WaveAt::Retry { .. } | WaveAt::Looking | WaveAt::Interrupting { .. } => {}
    }
    if wave.at == WaveAt::Staging && wave.due && awaited(p).is_empty() {
        let capped = at_the_cap(p);
        if capped.is_empty() {
            look(p, now, effects);
        }
        for (key, count) in capped {
            refuse_reboot(p, &key, count, now);
        }
    }
}

/// True from when the interrupt is due until it has happened or failed: no step starts on the host meanwhile.
pub(super) fn is_due(p: &Progress) -> bool {
    p.wave.as_ref().is_some_and(|wave| wave.due)
}

/// Packages whose running step the interrupt waits for. Only a reboot ends steps; the members of the wave have none left.
fn awaited(p: &Progress) -> Vec<&Entry> {
    match owner(p) {
        Some((_, interrupt)) if interrupt.kind == InterruptType::Reboot => p
            .entries
            .values()
            .filter(|entry| super::advance::is_running(entry))
            .collect(),
        Some(_) | None => Vec::new(),
    }
}

/// What an interrupt that is due waits for, for people.
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
    let is_waiting = wave.at == WaveAt::Staging && !steps.is_empty();
    is_waiting.then(|| {
        format!(
            "{}: waits until the running step ends: {}",
            describe(&interrupt),
            steps.join(", ")
        )
    })
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
        wave.due = false;
        return;
    };
    if interrupt.kind == InterruptType::Reboot {
        wave.reboot_asked = Some(boot_id.clone());
        count_reboot(p);
    }
    let Some(wave) = &mut p.wave else { return };
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

/// Members that want a reboot themselves.
fn rebooting(p: &Progress) -> Vec<String> {
    let members = p.wave.iter().flat_map(|wave| &wave.members);
    let wants = |key: &&String| {
        let interrupt = p.entries.get(*key).and_then(Entry::interrupt);
        interrupt.is_some_and(|interrupt| interrupt.kind == InterruptType::Reboot)
    };
    members.filter(wants).cloned().collect()
}

/// Members that have asked for as many reboots as they may, and how many that were.
fn at_the_cap(p: &Progress) -> Vec<(String, u32)> {
    let members = rebooting(p).into_iter().map(|key| {
        let count = p.reboots.get(&key).copied().unwrap_or_default();
        (key, count)
    });
    members
        .filter(|(_, count)| *count >= p.reboot_cap.0)
        .collect()
}

/// Counts a reboot before it is asked for: how it comes out may never be known.
fn count_reboot(p: &mut Progress) {
    for key in rebooting(p) {
        *p.reboots.entry(key).or_default() += 1;
    }
}

/// The reboot that was counted last was not asked for after all.
fn uncount_reboot(p: &mut Progress) {
    let is_reboot = p.wave.as_ref().is_some_and(|wave| match &wave.at {
        WaveAt::Interrupting { interrupt, .. } => interrupt.kind == InterruptType::Reboot,
        WaveAt::Staging | WaveAt::Looking | WaveAt::Retry { .. } => false,
    });
    for key in rebooting(p).into_iter().filter(|_| is_reboot) {
        if let Some(count) = p.reboots.get_mut(&key) {
            *count = count.saturating_sub(1);
        }
    }
    p.reboots.retain(|_, count| *count > 0);
}

/// No further reboot is asked for: the package stays where it is until somebody changes something.
fn refuse_reboot(p: &mut Progress, key: &str, count: u32, now: i64) {
    let Some(wave) = &mut p.wave else { return };
    let why = if wave.reboot_asked.as_ref() == Some(&p.boot_id) {
        "the boot ID of the host is still the same. Where it never changes (a container as a node) nobody can tell whether it was rebooted"
    } else {
        "the package has not come to its end since. A host that loses /var/lib/skyhook-agent at each boot forgets \
         that it was rebooted"
    };
    wave.at = WaveAt::Retry {
        at: now + retry::delay_ms(u32::MAX, &p.lease),
    };
    wave.due = false;
    let times = if count == 1 {
        "once"
    } else {
        &format!("{count} times")
    };
    if let Some(entry) = p.entries.get_mut(key) {
        entry.message = format!(
            "a reboot was asked for {times} for this version (the cap is {}), and {why}. No further reboot is asked for: \
             change the package's version, configuration or interrupt",
            p.reboot_cap.0
        );
        entry.set(Stage::Interrupt, State::Erroring, now);
    }
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
        entry.message = message;
    }
}

/// The interrupt has happened: all members go on to post-interrupt.
pub(super) fn interrupted(p: &mut Progress, now: i64) {
    let Some(Wave { members, .. }) = p
        .wave
        .take_if(|w| matches!(w.at, WaveAt::Interrupting { .. }))
    else {
        return;
    };
    go_on(p, &members, now);
}

fn go_on(p: &mut Progress, members: &BTreeSet<String>, now: i64) {
    for key in members {
        let Some(entry) = p.entries.get_mut(key) else {
            continue;
        };
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
pub(super) fn failed(p: &mut Progress, reason: &str, asked: bool, now: i64) {
    if !asked {
        uncount_reboot(p);
    }
    let owner = owner(p);
    let Some(wave) = &mut p.wave else { return };
    wave.failures += 1;
    wave.due = false;
    wave.waits_for.clear();
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
        go_on(p, &wave.members, now);
        return;
    }
    let Some(wave) = &mut p.wave else { return };
    wave.waits_for.clear();
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
