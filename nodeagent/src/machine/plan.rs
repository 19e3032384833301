//! Plans which stages each package has to run, to get from the installed packages to those that the revision wants.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::package::{Interrupt, key, name_of};
use skyhook_crds::version::compare;
use skyhook_crds::{Stage, State, glob};

pub use super::left::is_left_behind;
use super::progress::{Cycle, Doing, Entry, ImageState, Progress, Wanted, time};
use super::turn::is_leaving;
use super::{attempts, left, room, uninstall};

/// Sets every package to the first stage that it has to run.
pub(super) fn begin(p: &mut Progress, now: i64) {
    if p.too_old.is_some() {
        return;
    }
    attempts::begin(p, now);
    // Pulls for an earlier lease ended with that lease, and its images may have been removed from the store.
    for entry in p.entries.values_mut() {
        entry.image_state = ImageState::Unknown;
    }
    // A version that never started is not on the host: it is neither upgraded nor uninstalled. If it is wanted, it is
    // planned again.
    p.entries.retain(|_, e| e.started);
    uninstall::begin(p);
    let (wanted, entries) = (&p.wanted, &p.entries);
    p.reboots.retain(|key, _| {
        let mut wanted = wanted.iter();
        wanted.any(|(name, w)| *key == self::key(name, &w.version))
            || entries
                .get(key)
                .is_some_and(|e| e.stage == Stage::UninstallInterrupt)
    });
    let names: Vec<String> = p.wanted.keys().cloned().collect();
    for name in names {
        plan_package(p, &name, now);
    }
    let unwanted: Vec<String> = p
        .entries
        .values()
        .filter(|e| !p.wanted.contains_key(&e.name))
        .filter(|e| !is_left_behind(p, e))
        .map(Entry::key)
        .collect();
    for key in unwanted {
        remove(p, &key, now);
    }
    room::say(p);
}

/// Plans one package. Called at the start of a lease, and again after each complete cycle of the package.
pub(super) fn plan_package(p: &mut Progress, name: &str, now: i64) {
    let Some(wanted) = p.wanted.get(name).cloned() else {
        return;
    };
    if wanted.is_to_go() {
        uninstall::take_away(p, name, &wanted, now);
        return;
    }
    uninstall::leave_behind(p, name, &wanted);
    let wanted_key = key(name, &wanted.version);
    let there = p.entries.get(&wanted_key);
    if there.is_some_and(|e| e.stage == Stage::UninstallInterrupt) {
        // It is planned again after its interrupt.
        return;
    }
    // A parked version (one that waits until another version is uninstalled) that never started is not on the host. A
    // parked version that was installed before has to be uninstalled.
    p.entries
        .retain(|k, e| e.name != name || *k == wanted_key || e.started || !e.is_parked());
    let others: Vec<(String, Option<Ordering>, bool)> = p
        .entries
        .values()
        .filter(|e| e.name == name && e.version != wanted.version && !e.left_behind)
        .map(|e| {
            let order = compare(&e.version, &wanted.version).ok();
            let goes = matches!(e.stage, Stage::Uninstall | Stage::UninstallInterrupt);
            (e.key(), order, goes)
        })
        .collect();
    let leaving: Vec<&String> = others
        .iter()
        .filter(|(_, order, uninstalling)| *uninstalling || *order == Some(Ordering::Greater))
        .map(|(key, _, _)| key)
        .collect();
    if !leaving.is_empty() {
        for key in leaving {
            remove(p, key, now);
        }
        park(p, name, &wanted, now);
    } else if p.entries.contains_key(&wanted_key) {
        resume(p, &wanted_key, &wanted, now);
    } else if others
        .iter()
        .any(|(_, order, _)| *order == Some(Ordering::Less))
    {
        start(p, name, &wanted, Stage::Upgrade, now);
    } else {
        start(p, name, &wanted, Stage::Apply, now);
    }
}

/// Plans the uninstall of a version that the revision does not want, although nobody asked for the uninstall.
fn remove(p: &mut Progress, key: &str, now: i64) {
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    if entry.stage == Stage::UninstallInterrupt {
        return;
    }
    if entry.is_parked() && !entry.started {
        p.entries.remove(key);
        return;
    }
    // An uninstall that was asked for goes on to its interrupt.
    let is_asked_for = entry.is_taken_away() && !entry.is_parked();
    if entry.stage != Stage::Uninstall || entry.is_parked() || entry.state == State::Complete {
        entry.doing = Doing::Idle;
        entry.failures = 0;
        entry.attempts = 0;
        entry.restarts = 0;
        entry.image_state = ImageState::Unknown;
        entry.say("will be uninstalled");
        entry.set(Stage::Uninstall, State::InProgress, now);
    }
    // The version is going to be uninstalled, so its interrupt is no longer needed.
    if let Some(cycle) = entry.cycle.as_mut().filter(|_| !is_asked_for) {
        cycle.interrupt = None;
    }
}

/// Parks the wanted version of a package: it waits until the other version is uninstalled.
fn park(p: &mut Progress, name: &str, wanted: &Wanted, now: i64) {
    start(p, name, wanted, Stage::Apply, now);
    if let Some(entry) = p.entries.get_mut(&key(name, &wanted.version)) {
        entry.say("waiting until the other version is uninstalled");
        entry.set(Stage::Uninstall, State::Skipped, now);
    }
}

/// Starts a whole cycle, from apply or upgrade.
fn start(p: &mut Progress, name: &str, wanted: &Wanted, stage: Stage, now: i64) {
    let fresh = Entry::new(name, wanted, stage, State::InProgress, &time(now));
    p.entries.entry(fresh.key()).or_insert(fresh);
    let key = key(name, &wanted.version);
    open(p, &key, wanted, stage, wanted.interrupt.clone(), now);
}

/// Starts a cycle at `stage` with the content of the revision.
fn open(
    p: &mut Progress,
    key: &str,
    wanted: &Wanted,
    stage: Stage,
    interrupt: Option<Interrupt>,
    now: i64,
) {
    let cycle = cycle(p, wanted, Some(stage), interrupt);
    let revision = p.revision.clone();
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    entry.cycle = Some(cycle);
    entry.image = wanted.image.clone();
    entry.container_sha = wanted.container_sha.clone();
    entry.had_interrupt = wanted.interrupt.is_some();
    entry.image_state = ImageState::Unknown;
    entry.image_digest = None;
    entry.doing = Doing::Idle;
    entry.failures = 0;
    entry.attempts = 0;
    entry.tried_at = Some(revision);
    entry.restarts = 0;
    entry.message.clear();
    let state = if stage == Stage::Interrupt {
        State::Skipped
    } else {
        State::InProgress
    };
    entry.set(stage, state, now);
}

fn cycle(
    p: &Progress,
    wanted: &Wanted,
    start: Option<Stage>,
    interrupt: Option<Interrupt>,
) -> Cycle {
    Cycle {
        revision: p.revision.clone(),
        skyhook: p.skyhook.clone(),
        identity: wanted.identity.clone(),
        content: wanted.config.clone(),
        start,
        interrupt,
    }
}

/// Plans a package whose wanted version is on the host, completely or partly.
fn resume(p: &mut Progress, key: &str, wanted: &Wanted, now: i64) {
    let Some(entry) = p.entries.get(key).cloned() else {
        return;
    };
    if entry.is_done() {
        revisit(p, key, &entry, wanted, now);
        return;
    }
    let cycle = entry.cycle.as_ref().filter(|c| c.start.is_some());
    match (cycle, cycle.and_then(|c| c.start)) {
        (Some(cycle), Some(first_stage)) if entry.stage != Stage::Uninstall => {
            go_on(p, key, &entry, cycle, first_stage, wanted, now);
        }
        (_, _) => adopt(p, key, &entry, wanted, now),
    }
}

/// Plans a package that is complete: starts a cycle if its configuration has changed, or if it has an interrupt now and
/// had none before.
fn revisit(p: &mut Progress, key: &str, entry: &Entry, wanted: &Wanted, now: i64) {
    let Some(configured) = &entry.configured else {
        // The package is only in the Node's record and not in the journal. It is complete there, so its configuration
        // counts as applied.
        let cycle = cycle(p, wanted, None, None);
        if let Some(entry) = p.entries.get_mut(key) {
            entry.configured = Some(wanted.config.clone());
            entry.had_interrupt = wanted.interrupt.is_some();
            entry.cycle.get_or_insert(cycle);
        }
        return;
    };
    let changed = changed_keys(configured, &wanted.config);
    if !changed.is_empty() {
        let interrupt = matching(wanted, &changed);
        open(p, key, wanted, Stage::Config, interrupt, now);
    } else if !entry.had_interrupt && wanted.interrupt.is_some() {
        let interrupt = wanted.interrupt.clone();
        open(p, key, wanted, Stage::Interrupt, interrupt, now);
    } else if let Some(entry) = p.entries.get_mut(key) {
        entry.had_interrupt = wanted.interrupt.is_some();
    }
}

/// Plans a package in the middle of a cycle that is in the journal: continues the cycle, or starts it again if the
/// package has changed.
fn go_on(
    p: &mut Progress,
    key: &str,
    entry: &Entry,
    cycle: &Cycle,
    first_stage: Stage,
    wanted: &Wanted,
    now: i64,
) {
    let whole = matches!(first_stage, Stage::Apply | Stage::Upgrade);
    let changed = changed_keys(&cycle.content, &wanted.config);
    let merged = || {
        let mut all: Vec<Interrupt> = cycle.interrupt.iter().cloned().collect();
        all.extend(matching(wanted, &changed));
        Interrupt::merge(&all)
    };
    if cycle.identity != wanted.identity {
        let interrupt = if whole {
            wanted.interrupt.clone()
        } else {
            merged()
        };
        p.reboots.remove(key);
        open(p, key, wanted, first_stage, interrupt, now);
        return;
    }
    if !changed.is_empty() && entry.state == State::Erroring {
        p.reboots.remove(key);
        let at_start = matches!(entry.stage, Stage::Apply | Stage::Upgrade);
        let (stage, interrupt) = if at_start {
            (entry.stage, wanted.interrupt.clone())
        } else {
            (Stage::Config, merged())
        };
        open(p, key, wanted, stage, interrupt, now);
        if let Some(cycle) = p.entries.get_mut(key).and_then(|e| e.cycle.as_mut()) {
            cycle.start = Some(first_stage);
        }
        return;
    }
    let interrupted = entry.stage == Stage::PostInterrupt;
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    entry.failures = 0;
    entry.image_state = ImageState::Unknown;
    if let Doing::Retry { at, .. } = &mut entry.doing {
        *at = now;
    }
    // A cycle that began with apply or upgrade ends with the interrupt that the package has now.
    if whole && !interrupted {
        entry.had_interrupt = wanted.interrupt.is_some();
        if let Some(cycle) = &mut entry.cycle {
            cycle.interrupt = wanted.interrupt.clone();
        }
        if entry.stage == Stage::Interrupt && wanted.interrupt.is_none() {
            entry.set(Stage::Config, State::Complete, now);
            plan_package(p, name_of(key), now);
        }
    }
}

/// Plans a package whose next stage is known only from the Node's record: NVIDIA Skyhook wrote the record, or a user
/// edited it to run stages again.
fn adopt(p: &mut Progress, key: &str, entry: &Entry, wanted: &Wanted, now: i64) {
    // The interrupt that the lease names may differ from the package's own. An uninstall that is called off had its own one.
    let owed = entry
        .interrupt()
        .filter(|_| entry.stage != Stage::Uninstall);
    let owed = owed.or(wanted.interrupt.as_ref()).cloned();
    let has_interrupt = owed.is_some();
    let stage = match (entry.stage, entry.state) {
        (Stage::Uninstall, _) => Stage::Apply,
        (stage, State::Complete) => stage.next(has_interrupt).unwrap_or(stage),
        (stage, State::InProgress | State::Skipped | State::Erroring | State::Unknown) => stage,
    };
    let stage = if stage == Stage::Interrupt && !has_interrupt {
        Stage::PostInterrupt
    } else {
        stage
    };
    let interrupt = owed.filter(|_| stage != Stage::PostInterrupt);
    let restarts = entry.restarts;
    p.reboots.remove(key);
    open(p, key, wanted, stage, interrupt, now);
    if let Some(entry) = p.entries.get_mut(key) {
        entry.restarts = restarts;
    }
}

/// True for a version that the lease installs or uninstalls.
#[must_use]
pub fn is_worked_on(p: &Progress, entry: &Entry) -> bool {
    p.is_wanted(entry) || is_leaving(p, entry)
}

/// Keys of the configMap that were added, changed or removed.
fn changed_keys(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> BTreeSet<String> {
    before
        .keys()
        .chain(after.keys())
        .filter(|key| before.get(*key) != after.get(*key))
        .cloned()
        .collect()
}

/// Merges the interrupts of all patterns in `configInterrupts` that match a changed key.
fn matching(wanted: &Wanted, changed: &BTreeSet<String>) -> Option<Interrupt> {
    Interrupt::merge(
        wanted
            .config_interrupts
            .iter()
            .filter(|(pattern, _)| changed.iter().any(|key| glob::matches(pattern, key)))
            .map(|(_, interrupt)| interrupt),
    )
}

/// Interrupts that this lease still has to perform, by package, those after uninstalls included. Those of packages that the
/// node has no room for, or that depend on an uninstalled package, do not count: the node is not drained for them.
#[must_use]
pub fn pending_interrupts(p: &Progress) -> BTreeMap<String, Interrupt> {
    let mut pending: BTreeMap<String, Interrupt> = BTreeMap::new();
    for entry in p.entries.values() {
        if is_leaving(p, entry) {
            if let Some(interrupt) = entry.interrupt() {
                pending.insert(entry.name.clone(), interrupt.clone());
            }
            continue;
        }
        let waits = || room::is_waited_for(p, entry) || left::is_blocked(p, &entry.name);
        if !p.is_wanted(entry) || entry.is_done() || waits() {
            continue;
        }
        let later = entry
            .cycle
            .as_ref()
            .zip(p.wanted.get(&entry.name))
            .and_then(|(cycle, wanted)| {
                matching(wanted, &changed_keys(&cycle.content, &wanted.config))
            });
        let other = pending.get(&entry.name);
        let all = entry.interrupt().into_iter().chain(&later).chain(other);
        if let Some(interrupt) = Interrupt::merge(all) {
            pending.insert(entry.name.clone(), interrupt);
        }
    }
    pending
}
