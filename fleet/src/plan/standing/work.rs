//! What is left to do on a node for a Skyhook.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::installed::{PackageStates, Stamp, StateProblem};
use skyhook_crds::package::Interrupt;
use skyhook_crds::revision::{self, RevisionData, Work};

use crate::facts::{Checked, NodeFact, Origin, Record, SkyhookFact};
use crate::picture::Picture;
use crate::plan::reason::{Reason, ReasonCode};

/// The work that is left on the node until it is complete at the Skyhook's revision, by package.
pub(crate) fn outstanding(
    picture: &Picture,
    skyhook: &SkyhookFact,
    checked: &Checked,
    node: &NodeFact,
) -> Result<BTreeMap<String, Work>, Reason> {
    let record = node.record(&skyhook.name);
    if skyhook.deleting && record.is_of_another_machine(node) {
        // Nothing of it is on this machine, and the record goes with the Skyhook.
        return Ok(BTreeMap::new());
    }
    let states = record
        .states_for(&skyhook.name, checked)
        .map_err(|problem| {
            let word = match &*problem {
                StateProblem::Malformed { .. } => ReasonCode::NodeStateMalformed,
                StateProblem::Newer { .. } => ReasonCode::NewerVersion,
            };
            Reason::new(word, problem.to_string())
        })?;
    let stamp = record.stamp.as_ref().filter(|stamp| stamp.has_result());
    if record.is_of_another_machine(node) {
        let (nothing, left_behind) = (PackageStates::new(), BTreeSet::new());
        let mut work = revision::work(&nothing, &left_behind, None, &checked.data);
        // What has to go is not there, but the record says so. Under a lease the agent corrects it.
        for state in states.values() {
            match checked.data.packages.get(&state.name) {
                Some(package) if package.is_to_go() => {
                    work.insert(state.name.clone(), Work::Uninstall);
                }
                Some(_) => {}
                None => {
                    work.insert(state.name.clone(), Work::Removed);
                }
            }
        }
        return Ok(work);
    }
    let recorded = match stamp {
        None => None,
        Some(stamp) if stamp.revision == checked.revision => Some(&checked.data),
        Some(stamp) => picture
            .revisions()
            .get(&stamp.revision)
            .and_then(|r| r.data.as_deref()),
    };
    if recorded.is_some_and(RevisionData::is_newer) {
        let message = "the node was brought to a revision that a newer version wrote: upgrade the coordinator";
        return Err(Reason::new(ReasonCode::NewerVersion, message));
    }
    if stamp.is_some() && recorded.is_none() {
        // The revision that the node was brought to no longer exists, so nobody can tell how the packages were
        // configured. Under a lease, the agent finds out from its journal.
        // A package that has to go, and is gone, is not looked at.
        let there = |name: &str| states.values().any(|state| state.name == name);
        let packages = checked.data.packages.iter();
        return Ok(packages
            .filter(|(name, package)| !package.is_to_go() || there(name))
            .map(|(name, _)| (name.clone(), Work::Config))
            .collect());
    }
    let none = BTreeSet::new();
    let left_behind = stamp.map_or(&none, |stamp| &stamp.left_behind);
    let mut work = revision::work(&states, left_behind, recorded, &checked.data);
    for package in owed(skyhook, record, checked).into_keys() {
        work.entry(package).or_insert(Work::Interrupt);
    }
    Ok(work)
}

/// The interrupts that NVIDIA Skyhook left undone on the node, by package. The agent's journal knows all others.
pub(crate) fn owed(
    skyhook: &SkyhookFact,
    record: &Record,
    checked: &Checked,
) -> BTreeMap<String, Interrupt> {
    let stamp = record.stamp.as_ref();
    let is_settled = stamp.is_some_and(|stamp| stamp.settled)
        || (record.origin != Origin::Ours && record.said_complete);
    if is_settled || stamp.is_some_and(Stamp::has_result) {
        return BTreeMap::new();
    }
    let states = record.states_for(&skyhook.name, checked);
    states.map_or_else(
        |_| BTreeMap::new(),
        |states| revision::left_undone(&states, skyhook.config_updates(), &checked.data),
    )
}
