//! What a Skyhook's status says of packages whose uninstall is asked for.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::conditions::Wanted;
use skyhook_crds::installed::PackageStates;
use skyhook_crds::names;
use skyhook_crds::package::Package;
use skyhook_crds::revision::is_finished;
use skyhook_crds::stage::{Stage, State};

use super::Summary;
use super::message::names_of;
use crate::facts::{Goal, Keeps, SkyhookFact};
use crate::plan::scan::Row;

const IN_PROGRESS: &str = "UninstallInProgress";
const FAILED: &str = "UninstallFailed";
/// What has to be uninstalled before a Skyhook goes cannot be uninstalled, unless somebody acts.
pub(crate) const DELETION_BLOCKED: &str = "DeletionBlocked";
/// Conditions about uninstalls that are there only while they are true.
pub(super) const WHILE_TRUE: [&str; 3] = [IN_PROGRESS, FAILED, DELETION_BLOCKED];

/// The records on the selected nodes that can be read.
fn records<'a>(row: &Row<'_>, summary: &'a Summary<'a>) -> impl Iterator<Item = &'a PackageStates> {
    let skyhook = row.skyhook.name.clone();
    let nodes = summary.nodes.iter();
    nodes.filter_map(move |shown| shown.node.records.get(&skyhook)?.states.as_ref().ok())
}

fn packages<'a>(row: &'a Row<'_>) -> Option<&'a BTreeMap<String, Package>> {
    Some(&row.skyhook.checked.as_ref().ok()?.data.packages)
}

/// Conditions in the words of NodeWright.
pub(super) fn conditions(row: &Row<'_>, summary: &Summary<'_>) -> Vec<Wanted> {
    let Some(packages) = packages(row) else {
        return Vec::new();
    };
    let is_to_go = |name: &str| packages.get(name).is_some_and(Package::is_to_go);
    let (mut goes, mut fails) = (false, false);
    for state in records(row, summary).flat_map(BTreeMap::values) {
        let is_last = state.stage == Stage::UninstallInterrupt;
        if !is_last && !is_to_go(&state.name) {
            continue;
        }
        goes = true;
        let uninstalls = is_last || state.stage == Stage::Uninstall;
        fails |= uninstalls && state.state == State::Erroring;
    }
    let mut conditions = Vec::new();
    if goes {
        let message = "one or more packages are being uninstalled";
        conditions.push(Wanted::new(IN_PROGRESS, true, IN_PROGRESS, message));
    }
    if fails {
        let message = "one or more uninstall pods are failing";
        conditions.push(Wanted::new(FAILED, true, "UninstallPodFailing", message));
    }
    conditions.extend(deletion_blocked(row.skyhook));
    conditions
}

/// Why the deletion of a Skyhook does not go on although packages have to be uninstalled before.
fn deletion_blocked(skyhook: &SkyhookFact) -> Option<Wanted> {
    if skyhook.goal() != Goal::Uninstall {
        return None;
    }
    let name = &skyhook.name;
    let unreadable: Vec<&str> = skyhook.deletion.nodes(Keeps::Unreadable).collect();
    let pending: Vec<&str> = skyhook.deletion.nodes(Keeps::Package).collect();
    let (reason, message) = if !unreadable.is_empty() {
        let message = format!(
            "the annotation {} cannot be read on: {}; repair it, or remove it, before the deletion goes on",
            names::node_state(name),
            names_of(&unreadable)
        );
        ("MalformedNodeState", message)
    } else if skyhook.is_disabled() {
        let message = format!(
            "packages have to be uninstalled from: {}; enable the Skyhook: kubectl skyhook enable {name}",
            names_of(&pending)
        );
        ("DisabledWithPendingUninstall", message)
    } else if skyhook.is_paused() {
        let message = format!(
            "packages have to be uninstalled from: {}; end the pause: kubectl skyhook resume {name}",
            names_of(&pending)
        );
        ("PausedWithPendingUninstall", message)
    } else {
        return None;
    };
    let message = format!("{message}. To delete it without: set uninstall.enabled to false");
    Some(Wanted::new(DELETION_BLOCKED, true, reason, message))
}

/// What the deletion of a Skyhook waits for while packages are uninstalled.
pub(super) fn pending(skyhook: &SkyhookFact) -> Option<String> {
    (skyhook.goal() == Goal::Uninstall).then(|| {
        let nodes: Vec<&str> = skyhook.deletion.all().collect();
        format!("packages are uninstalled first, from: {}", names_of(&nodes))
    })
}

/// Which packages are blocked, because a package that they depend on has to go.
pub(super) fn blocked(row: &Row<'_>, summary: &Summary<'_>) -> Option<String> {
    let packages = packages(row)?;
    let mut pairs = Vec::new();
    for (name, package) in packages.iter().filter(|(_, one)| !one.is_to_go()) {
        let gone = package.depends_on.keys();
        let gone = gone.filter(|other| packages.get(*other).is_some_and(Package::is_to_go));
        let gone: Vec<&String> = gone.collect();
        if gone.is_empty() || is_complete_everywhere(row, summary, package) {
            continue;
        }
        let sentences = gone.into_iter().map(|other| {
            let how = if is_anywhere(row, summary, other) {
                "is being uninstalled"
            } else {
                "has been uninstalled"
            };
            format!("package {name} is blocked: dependency {other} {how}")
        });
        pairs.extend(sentences);
    }
    (!pairs.is_empty()).then(|| pairs.join("; "))
}

fn is_complete_everywhere(row: &Row<'_>, summary: &Summary<'_>, package: &Package) -> bool {
    let key = package.key();
    let complete = records(row, summary).filter(|states| {
        let state = states.get(&key);
        state.is_some_and(|state| is_finished(state.stage, state.state))
    });
    complete.count() == summary.nodes.len()
}

/// True when a node has any version of the package, or may have: its record cannot be read.
fn is_anywhere(row: &Row<'_>, summary: &Summary<'_>, package: &str) -> bool {
    let name = &row.skyhook.name;
    let mut nodes = summary.nodes.iter();
    nodes.any(|shown| match shown.node.records.get(name) {
        None => false,
        Some(record) => record.states.as_ref().map_or(true, |states| {
            states.values().any(|state| state.name == package)
        }),
    })
}

/// The end of the message of the condition Ready: what the uninstall of a package means for its version in the spec.
pub(super) fn note(row: &Row<'_>, summary: &Summary<'_>) -> String {
    let mut note = String::new();
    let is_deleted = row.skyhook.deleting;
    for (name, package) in packages(row).into_iter().flatten() {
        if !package.is_to_go() || is_deleted {
            continue;
        }
        let states = records(row, summary).flat_map(BTreeMap::values);
        let there: BTreeSet<&str> = states
            .filter(|state| state.name == *name)
            .map(|state| state.version.as_str())
            .collect();
        let others: Vec<&str> = there
            .iter()
            .copied()
            .filter(|version| *version != package.version)
            .collect();
        if !others.is_empty() {
            note.push_str(&format!(
                "; package {name}: version {} is uninstalled, and version {} waits until uninstall.apply is false",
                others.join(", "),
                package.version
            ));
        } else if !is_anywhere(row, summary, name) {
            note.push_str(&format!(
                "; package {name} is on no node, and is not installed while uninstall.apply is true"
            ));
        }
    }
    note
}
