//! What comes after an uninstall.

use skyhook_crds::{Stage, State};

use super::plan::plan_package;
use super::progress::{Entry, Progress};
use super::turn::is_leaving;

/// Called when the steps of an uninstall have succeeded. The version is gone, or its interrupt comes next.
pub(super) fn succeeded(p: &mut Progress, key: &str, now: i64) {
    let Some(entry) = p.entries.get_mut(key) else {
        return;
    };
    if entry.interrupt().is_some() {
        entry.say("uninstalled, waiting for the interrupt");
        entry.set(Stage::UninstallInterrupt, State::Skipped, now);
    } else {
        gone(p, key, now);
    }
}

/// Called when a version is gone from the host. What waited for that goes on.
pub(super) fn gone(p: &mut Progress, key: &str, now: i64) {
    let Some(entry) = p.entries.remove(key) else {
        return;
    };
    p.reboots.remove(key);
    let name = entry.name;
    let mut others = p.entries.values().filter(|e| e.name == name);
    if others.clone().any(|e| is_leaving(p, e)) {
        return;
    }
    let waiting = others.find(|e| e.is_parked()).map(Entry::key);
    let Some(waiting) = waiting else {
        // The version itself is wanted again.
        if p.wanted_key(&name).as_deref() == Some(key) {
            plan_package(p, &name, now);
        }
        return;
    };
    if let Some(entry) = p.entries.get_mut(&waiting) {
        entry.message.clear();
        entry.set(Stage::Apply, State::InProgress, now);
    }
}
