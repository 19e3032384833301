//! The deletion of a Skyhook: its packages with `uninstall.enabled` are uninstalled on every node before it goes.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::package::Uninstall;
use skyhook_crds::revision::RevisionData;
use skyhook_crds::skyhook::CheckedSkyhook;

use super::SkyhookFact;
use crate::facts::{NodeFact, Record};

/// What becomes of the nodes of a Skyhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// They are brought to the revision of its spec.
    Normal,
    /// It is being deleted. They are brought to the revision that uninstalls, under the same budgets and in the same order.
    Uninstall,
    /// It is being deleted, and nothing is left to uninstall: leases end, and the nodes are cleaned.
    Nothing,
}

/// Why a node keeps a Skyhook from being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// A package that has to be uninstalled is there, or an agent may be installing it.
    Package,
    /// Its record cannot be read, so nobody can tell.
    Unreadable,
}

/// The nodes that keep a Skyhook from being deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    nodes: BTreeMap<String, Keeps>,
}

impl Deletion {
    /// Why the node keeps the Skyhook from being deleted, if it does.
    #[must_use]
    pub fn keeps(&self, node: &str) -> Option<Keeps> {
        self.nodes.get(node).copied()
    }

    /// True when nothing keeps the Skyhook from being deleted.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Names of the nodes that keep it.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Names of the nodes that keep it for this reason.
    pub fn nodes(&self, why: Keeps) -> impl Iterator<Item = &str> {
        let nodes = self.nodes.iter();
        nodes.filter_map(move |(node, keeps)| (*keeps == why).then_some(node.as_str()))
    }

    /// Notes whether a node keeps it.
    pub(crate) fn note(&mut self, node: &str, keeps: Option<Keeps>) {
        match keeps {
            Some(keeps) => drop(self.nodes.insert(node.to_owned(), keeps)),
            None => drop(self.nodes.remove(node)),
        }
    }
}

impl SkyhookFact {
    /// What becomes of its nodes. Without our finalizer, or with a spec that is not valid, nothing is uninstalled.
    #[must_use]
    pub fn goal(&self) -> Goal {
        if !self.deleting {
            Goal::Normal
        } else if self.checked.is_err() || !self.is_adopted() || self.deletion.is_over() {
            Goal::Nothing
        } else {
            Goal::Uninstall
        }
    }

    /// Whether the node keeps the Skyhook from being deleted, by its record. `works_at` is the revision of a lease that is
    /// granted on the node; the inner `None` when it is not known.
    pub(crate) fn is_kept_by(
        &self,
        node: Option<&NodeFact>,
        works_at: Option<Option<&RevisionData>>,
    ) -> Option<Keeps> {
        let checked = self.checked.as_deref().ok().filter(|_| self.deleting)?;
        let goes = |name: &String| checked.data.packages.contains_key(name);
        if checked.data.packages.is_empty() {
            return None;
        }
        // What the agent has done last may not be on the Node yet.
        let is_at_work =
            works_at.is_some_and(|data| data.is_none_or(|data| data.packages.keys().any(goes)));
        if is_at_work {
            return Some(Keeps::Package);
        }
        let node = node.filter(|node| node.is_host())?;
        let record: &Record = node.record(&self.name);
        match &record.states {
            // Readable or not, it says nothing of this machine.
            _ if record.is_of_another_machine(node) => None,
            Err(_) => Some(Keeps::Unreadable),
            Ok(states) => {
                let mut states = states.values();
                states
                    .any(|state| goes(&state.name))
                    .then_some(Keeps::Package)
            }
        }
    }
}

/// The revision that uninstalls: the packages with `uninstall.enabled`, as if `uninstall.apply` were set. All others, and
/// those in `left_behind`, are left on hosts as they are.
pub(super) fn revision(
    spec: &CheckedSkyhook,
    serial: bool,
    mut left_behind: BTreeSet<String>,
) -> RevisionData {
    let is_enabled = |uninstall: Option<Uninstall>| uninstall.is_some_and(|one| one.enabled);
    let mut packages = spec.packages.clone();
    packages.retain(|_, package| is_enabled(package.uninstall));
    let names: BTreeSet<String> = packages.keys().cloned().collect();
    for package in packages.values_mut() {
        package.uninstall = Some(Uninstall {
            enabled: true,
            apply: true,
        });
        package.depends_on.retain(|name, _| names.contains(name));
    }
    left_behind.extend(spec.packages.keys().cloned());
    left_behind.retain(|name| !names.contains(name));
    RevisionData::new(packages, serial, left_behind)
}
