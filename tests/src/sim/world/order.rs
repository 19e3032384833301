//! The order of Skyhooks: nobody goes on before one that has to be complete on all of its nodes first.
//!
//! The numbers of nodes, as steps get to know them: two nodes that are worked on at the same time never have the same one,
//! and a node keeps its own until it is complete. Numbers of batches are told by the stored state, and not looked at here.

use serde_json::Value;
use skyhook_crds::skyhook::Sequencing;
use skyhook_crds::stage::State;
use skyhook_fleet::facts::{NodeFact, SkyhookFact};

use super::{LEASES, NODES, SKYHOOKS, World};
use crate::sim::agent::Core;

/// True when the Node's record lacks something that the Skyhook wants there.
fn lacks(node: &NodeFact, skyhook: &SkyhookFact) -> bool {
    let Ok(checked) = &skyhook.checked else {
        return skyhook.is_parked_over(node);
    };
    let packages = checked.data.packages.iter();
    let mut wanted = packages.filter(|(_, package)| !package.is_to_go());
    let is_there = |name: &str, version: &str| {
        let states = node.record(&skyhook.name).states.as_ref();
        let key = format!("{name}|{version}");
        states.is_ok_and(|states| {
            let state = states.get(&key);
            state.is_some_and(|package| package.state == State::Complete)
        })
    };
    skyhook.selects(node) && wanted.any(|(name, package)| !is_there(name, &package.version))
}

impl<C: Core> World<'_, C> {
    /// A coordinator is about to reserve a lease. Only one that has seen everything is held against the truth.
    pub(super) fn check_gate(&mut self, index: usize, node: &str, skyhook: &str) {
        let running = self.replicas.get(index).and_then(|r| r.running.as_ref());
        let has_seen = |kind| running.and_then(|r| r.position(kind)) == Some(self.api.end(kind));
        if ![NODES, SKYHOOKS].into_iter().all(has_seen) {
            return;
        }
        let order = |one: &SkyhookFact| (one.spec.priority, one.name.clone());
        let Some(own) = self.checks.skyhooks.get(skyhook) else {
            return;
        };
        let nodes = &self.checks.nodes;
        let gate = self.checks.skyhooks.values().find(|one| {
            one.spec.sequencing == Sequencing::All
                && order(one) < order(own)
                && !one.is_disabled()
                && !one.deleting
                && nodes.values().any(|node| lacks(node, one))
        });
        let gate = gate.map(|one| one.name.clone());
        if let Some(gate) = gate {
            self.fail(format!(
                "{skyhook} gets {node}, and {gate} is not complete on all of its nodes"
            ));
        }
    }

    pub(super) fn check_order_of_grant(&mut self, node: &str, lease: &Value) {
        let number = |lease: &Value| {
            let spec = &lease["spec"];
            let is_in_batch = !spec["batch"].is_null();
            spec["order"].as_i64().filter(|_| !is_in_batch)
        };
        let Some(own) = number(lease) else {
            return;
        };
        let is_same = |other: &Value| {
            other["spec"]["skyhook"]["uid"] == lease["spec"]["skyhook"]["uid"]
                && !other["spec"]["granted"].is_null()
                && number(other) == Some(own)
        };
        let other = self
            .api
            .list(LEASES)
            .find(|(key, other)| key.as_str() != node && is_same(other))
            .map(|(key, _)| key.clone());
        if let Some(other) = other {
            self.fail(format!("{node} and {other} both have the number {own}"));
        }
    }

    pub(super) fn check_order_of_node(&mut self, after: &NodeFact) {
        let before = self.checks.nodes.get(&after.name);
        let Some(before) = before.filter(|before| before.uid == after.uid) else {
            return;
        };
        let lost = before.records.iter().find_map(|(skyhook, record)| {
            let (old, new) = (
                record.stamp.as_ref()?,
                after.record(skyhook).stamp.as_ref()?,
            );
            let is_kept = !old.picked.is_empty() && old.picked == new.picked && !record.is_edited();
            (is_kept && old.order != new.order).then(|| {
                format!(
                    "{} had the number {:?} for {skyhook} and has {:?} now",
                    after.name, old.order, new.order
                )
            })
        });
        if let Some(lost) = lost {
            self.fail(lost);
        }
    }
}
