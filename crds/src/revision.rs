//! Revisions: the part of a Skyhook's spec that hosts depend on, immutable and named by its content. Stored as the
//! `data` of an `apps/v1 ControllerRevision` in the namespace of the installation.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::glob;
use crate::installed::{PackageStates, hex};
use crate::lease::FORMAT;
use crate::package::{Interrupt, Package, PackageStatus};
use crate::stage::{Stage, State};

/// What a revision holds: everything that an agent needs, and nothing that only paces the roll-out.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RevisionData {
    /// Form of the revision, see [`FORMAT`].
    #[serde(default, skip_serializing_if = "is_first")]
    pub format: i32,
    /// Normalised packages, see [`Package::normalised`].
    pub packages: BTreeMap<String, Package>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub serial: bool,
    /// Names of packages that are left on hosts as they are: nothing of them runs any more, and the Node's record keeps
    /// their entries. They were removed from the spec while their `uninstall.enabled` was false.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left_behind: BTreeSet<String>,
}

impl RevisionData {
    /// A revision in the oldest form that says all of it. An agent that does not know `uninstall` would uninstall what has
    /// to stay, and leave what has to go.
    #[must_use]
    pub fn new(
        packages: BTreeMap<String, Package>,
        serial: bool,
        left_behind: BTreeSet<String>,
    ) -> Self {
        let is_first =
            left_behind.is_empty() && packages.values().all(|package| package.uninstall.is_none());
        Self {
            format: if is_first { 0 } else { 1 },
            packages,
            serial,
            left_behind,
        }
    }

    /// Reads the content of a revision. One of a newer form keeps nothing but its form: the rest may mean something else
    /// than it says here.
    pub fn read(data: Value) -> Result<Self, serde_json::Error> {
        let format = data.get("format").and_then(Value::as_i64).unwrap_or(0);
        if format > i64::from(FORMAT) {
            return Ok(Self {
                format: i32::try_from(format).unwrap_or(i32::MAX),
                ..Self::default()
            });
        }
        serde_json::from_value(data)
    }

    /// True when a newer version wrote it: nothing else in it is known.
    #[must_use]
    pub const fn is_newer(&self) -> bool {
        self.format > FORMAT
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
const fn is_first(format: &i32) -> bool {
    *format == 0
}

/// Name of the revision of `data` for the Skyhook `skyhook` with UID `uid`.
#[must_use]
pub fn name(skyhook: &str, uid: &str, data: &RevisionData) -> String {
    let mut hash = Sha256::new();
    hash.update(uid.as_bytes());
    hash.update([0]);
    hash.update(serde_json::to_vec(data).unwrap_or_default());
    format!("{skyhook}-{}", hex(&hash.finalize()[..5]))
}

/// A digest for each key of a package's configuration. The host compares them to find the keys that were added, changed
/// or removed.
#[must_use]
pub fn config_digests(config: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    config
        .iter()
        .map(|(key, value)| (key.clone(), hex(&Sha256::digest(value.as_bytes())[..16])))
        .collect()
}

/// What has to be done on a node for one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// The package is not there, or is not complete.
    Unfinished,
    /// Another version is there.
    Version,
    /// The package is there and is no longer wanted.
    Removed,
    /// The configuration has changed, or may have.
    Config,
    /// The package has to be interrupted, and all else is done.
    Interrupt,
    /// The package is there, and its spec asks for its uninstall.
    Uninstall,
    /// The package is not complete, and depends on one that has to go: nothing can be done for it.
    Blocked,
}

/// True when an agent can do nothing for what is left: all of it waits for packages that have to go.
#[must_use]
pub fn is_idle(work: &BTreeMap<String, Work>) -> bool {
    work.values().all(|work| *work == Work::Blocked)
}

/// The work that is left until a node is at a revision, by package. If there is none, the node is complete.
///
/// `recorded` is the revision that the node's record was written at. Without one (a node that NVIDIA Skyhook alone has
/// worked on) a package that is complete at its version counts as configured; see also [`left_undone`]. `left_behind` are
/// the versions that stay on the host, see [`crate::installed::Stamp`].
#[must_use]
pub fn work(
    states: &PackageStates,
    left_behind: &BTreeSet<String>,
    recorded: Option<&RevisionData>,
    wanted: &RevisionData,
) -> BTreeMap<String, Work> {
    let is_to_go = |name: &str| wanted.packages.get(name).is_some_and(Package::is_to_go);
    // A lower version was installed over what is left behind. Only an uninstall that is asked for takes it away.
    let states: BTreeMap<&String, &PackageStatus> = states
        .iter()
        .filter(|(key, state)| !left_behind.contains(*key) || is_to_go(&state.name))
        .collect();
    let mut work = BTreeMap::new();
    for (name, package) in &wanted.packages {
        let there = states
            .values()
            .filter(|s| s.name == *name)
            .collect::<Vec<_>>();
        if package.is_to_go() {
            if !there.is_empty() {
                work.insert(name.clone(), Work::Uninstall);
            }
            continue;
        }
        let found = match states.get(&package.key()) {
            Some(state) if is_finished(state.stage, state.state) => {
                recorded.and_then(|data| match data.packages.get(name) {
                    Some(old) if old.version == package.version => change(old, package),
                    // The run at that revision ended before this package was begun. Only the host's journal knows how
                    // it is configured.
                    Some(_) | None => Some(Work::Config),
                })
            }
            Some(_) => Some(Work::Unfinished),
            None if there.is_empty() => Some(Work::Unfinished),
            None => Some(Work::Version),
        };
        if let Some(found) = found {
            work.insert(name.clone(), found);
        }
    }
    let wanted_keys: BTreeSet<String> = wanted.packages.values().map(Package::key).collect();
    let is_left =
        |name: &String| wanted.left_behind.contains(name) && !wanted.packages.contains_key(name);
    for (key, state) in states {
        if !wanted_keys.contains(key) && !is_to_go(&state.name) && !is_left(&state.name) {
            let found = work.entry(state.name.clone()).or_insert(Work::Removed);
            // Another version was begun over the wanted one. More has to be done than to configure it.
            if matches!(found, Work::Config | Work::Interrupt) {
                *found = Work::Removed;
            }
        }
    }
    for name in work.keys().cloned().collect::<Vec<_>>() {
        if wanted.packages.contains_key(&name)
            && !is_to_go(&name)
            && is_blocked(wanted, &work, &name)
        {
            work.insert(name, Work::Blocked);
        }
    }
    work
}

/// True when a package that is not complete waits for one that has to go, directly or through others that are not complete.
fn is_blocked(wanted: &RevisionData, work: &BTreeMap<String, Work>, name: &str) -> bool {
    let package = wanted.packages.get(name);
    let mut dependencies = package.into_iter().flat_map(|one| one.depends_on.keys());
    dependencies.any(|other| {
        wanted.packages.get(other).is_some_and(Package::is_to_go)
            || (work.contains_key(other) && is_blocked(wanted, work, other))
    })
}

/// The interrupts that NVIDIA Skyhook has left undone on a node, by package. Only for a node that it alone has worked on.
///
/// In NVIDIA Skyhook a package that has an interrupt waits with the stage `config` complete until all packages of the
/// node can be interrupted together. Without an interrupt, the same stage and state mean that the package is complete.
/// Which of the two holds is decided by `updates` (`status.configUpdates` of the Skyhook: the keys of a package's
/// configuration that changed last). While a package has such keys, its interrupts are those that `configInterrupts` names
/// for them, and `interrupt` does not count.
#[must_use]
pub fn left_undone(
    states: &PackageStates,
    updates: &BTreeMap<String, Vec<String>>,
    wanted: &RevisionData,
) -> BTreeMap<String, Interrupt> {
    let is_waiting = |package: &Package| {
        let state = states.get(&package.key());
        state.is_some_and(|s| (s.stage, s.state) == (Stage::Config, State::Complete))
    };
    let interrupt = |package: &Package| {
        let updated = updates.get(&package.name).filter(|keys| !keys.is_empty());
        let Some(updated) = updated else {
            return package.interrupt.clone();
        };
        let named = package.config_interrupts.iter();
        let named =
            named.filter(|(pattern, _)| updated.iter().any(|key| glob::matches(pattern, key)));
        Interrupt::merge(named.map(|(_, interrupt)| interrupt))
    };
    let waiting = wanted
        .packages
        .values()
        .filter(|package| is_waiting(package));
    waiting
        .filter_map(|package| Some((package.name.clone(), interrupt(package)?)))
        .collect()
}

/// True when a package in this stage and state has been through its whole cycle. Config is an end as well: a change of
/// configuration that matches no interrupt ends there even when the package has one.
#[must_use]
pub fn is_finished(stage: Stage, state: State) -> bool {
    state == State::Complete && matches!(stage, Stage::Config | Stage::PostInterrupt)
}

/// The work that an edit of a package asks for on a node where the package is complete. A change of env, resources or
/// image asks for none.
#[must_use]
pub fn change(old: &Package, new: &Package) -> Option<Work> {
    // Most nodes are at the very revision that is wanted: configurations may be long, so they are not compared then.
    if std::ptr::eq(old, new) {
        None
    } else if old.config_map != new.config_map {
        Some(Work::Config)
    } else if old.interrupt.is_none() && new.interrupt.is_some() {
        Some(Work::Interrupt)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
