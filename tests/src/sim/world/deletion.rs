//! What becomes of hosts when a Skyhook is deleted: nothing of the packages that can be uninstalled stays there.

use std::collections::BTreeSet;

use serde_json::Value;
use skyhook_crds::names;
use skyhook_fleet::facts::{NodeFact, SkyhookFact};

use super::{LEASES, World};
use crate::sim::agent::Core;

/// The packages that have to be uninstalled before the Skyhook goes.
fn to_go(skyhook: &SkyhookFact) -> BTreeSet<&String> {
    if skyhook.checked.is_err() || !skyhook.is_adopted() {
        return BTreeSet::new();
    }
    let packages = skyhook.spec.packages.iter();
    let enabled = packages
        .filter(|(_, package)| package.uninstall.is_some_and(|uninstall| uninstall.enabled));
    enabled.map(|(name, _)| name).collect()
}

/// What keeps the Skyhook on a node, as its record says.
fn keeps(skyhook: &SkyhookFact, node: &NodeFact) -> Option<String> {
    let to_go = to_go(skyhook);
    let record = node.record(&skyhook.name);
    if to_go.is_empty() || !node.is_host() || record.is_of_another_machine(node) {
        return None;
    }
    match &record.states {
        Err(problem) => Some(problem.to_string()),
        Ok(states) => {
            let mut states = states.iter();
            let there = states.find(|(_, state)| to_go.contains(&state.name));
            there.map(|(key, _)| key.clone())
        }
    }
}

impl<C: Core> World<'_, C> {
    /// Takes in a Skyhook that is no more.
    pub(super) fn skyhook_gone(&mut self, name: &str) {
        // Without our finalizer it goes at once, and what Nodes say of it is cleaned up later.
        let gone = self.checks.skyhooks.remove(name);
        if let Some(gone) = gone.filter(|gone| gone.deleting) {
            self.check_gone(&gone);
        }
        // Another Skyhook of that name has a history of its own.
        self.forget_statuses(name);
    }

    /// True when the deletion of a Skyhook begins. What becomes of its nodes from then on is no return to what was before.
    pub(super) fn is_turned(&mut self, name: &str, before: Option<&Value>, after: &Value) -> bool {
        let is_deleted = |object: &Value| !object["metadata"]["deletionTimestamp"].is_null();
        let turns = before.is_some_and(|before| is_deleted(before) != is_deleted(after));
        if turns {
            self.forget_statuses(name);
        }
        turns
    }

    fn forget_statuses(&mut self, skyhook: &str) {
        self.checks.statuses.retain(|key, _| {
            let mut words = key.split(' ');
            !words.any(|word| word == skyhook)
        });
    }

    fn check_gone(&mut self, skyhook: &SkyhookFact) {
        let name = &skyhook.name;
        let mut problems = Vec::new();
        for node in self.checks.nodes.values() {
            if let Some(left) = keeps(skyhook, node) {
                problems.push(format!("{left} on {}", node.name));
            }
            // A record that is gone tells the coordinator nothing. Where there is one, the host says the same.
            let has_record = node.annotations.contains_key(&names::node_state(name));
            let known = self.known_of(name, &node.name).filter(|_| has_record);
            let states = known.map(|known| C::states(&known)).unwrap_or_default();
            let to_go = to_go(skyhook);
            let on_host = states.values().filter(|state| to_go.contains(&state.name));
            let is_edited = self.checks.rewritten.contains(&node.name);
            for state in on_host.filter(|_| !is_edited) {
                problems.push(format!("{} on the host of {}", state.name, node.name));
            }
            if let Some(said) = said_of(node, name) {
                problems.push(format!("{said} on {}", node.name));
            }
        }
        if !problems.is_empty() {
            self.fail(format!("{name} is gone, and left: {}", problems.join(", ")));
        }
    }

    /// Why a Skyhook that is being deleted is still there, unless there is a reason that somebody has to do away with.
    pub(super) fn unmet_deletion(
        &self,
        skyhook: &SkyhookFact,
        held: &BTreeSet<&str>,
    ) -> Option<String> {
        let name = &skyhook.name;
        let nodes = self.checks.nodes.values();
        let kept: Vec<&NodeFact> = nodes
            .filter(|node| self.is_kept_on(skyhook, node))
            .collect();
        let status = skyhook.status.iter();
        let mut conditions = status.flat_map(|status| &status.conditions);
        let is_out = skyhook.is_paused() || skyhook.is_disabled();
        let malformed = kept.iter().any(|node| node.record(name).states.is_err());
        if !kept.is_empty() && (is_out || malformed) {
            let reason = if malformed {
                "Malformed"
            } else if skyhook.is_disabled() {
                "Disabled"
            } else {
                "Paused"
            };
            let is_told = conditions
                .any(|one| one.type_ == "DeletionBlocked" && one.reason.starts_with(reason));
            return (!is_told).then(|| format!("nothing says that {name} cannot go: {reason}"));
        }
        let is_stuck = |node: &&NodeFact| self.is_excused(skyhook, node, held);
        if !kept.is_empty() && kept.iter().all(is_stuck) {
            return None;
        }
        Some(format!("Skyhook {name} is not gone"))
    }

    /// Whether something on the node has to be uninstalled before a Skyhook that is being deleted goes.
    pub(super) fn is_kept_on(&self, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
        // What a granted lease may install, nobody knows before its result.
        let lease = self.api.get(LEASES, &node.name);
        let is_granted = lease.is_some_and(|lease| {
            lease["spec"]["skyhook"]["uid"] == *skyhook.uid && !lease["spec"]["granted"].is_null()
        });
        keeps(skyhook, node).is_some() || (is_granted && !to_go(skyhook).is_empty())
    }

    /// Whether nothing is done for the Skyhook any more.
    pub(super) fn is_out(&self, skyhook: &SkyhookFact) -> bool {
        skyhook.is_disabled() || (skyhook.deleting && !self.is_kept(skyhook))
    }

    /// Whether something that has to be uninstalled keeps a Skyhook that is being deleted.
    pub(super) fn is_kept(&self, skyhook: &SkyhookFact) -> bool {
        let mut nodes = self.checks.nodes.values();
        nodes.any(|node| self.is_kept_on(skyhook, node))
    }
}

/// What a Node says of a Skyhook that is gone, besides what is on the host.
fn said_of(node: &NodeFact, skyhook: &str) -> Option<String> {
    let keys = [names::status(skyhook), names::reason(skyhook)];
    let mut said = keys.iter();
    let said =
        said.find(|key| node.annotations.contains_key(*key) || node.labels.contains_key(key));
    let condition = names::not_ready_condition(skyhook);
    let mut conditions = node.conditions.iter();
    let conditions = conditions.find(|one| one.type_ == condition);
    said.cloned().or(conditions.map(|one| one.type_.clone()))
}
