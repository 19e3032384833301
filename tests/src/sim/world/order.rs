//! The numbers of nodes, as steps get to know them: two nodes that are worked on at the same time never have the same one,
//! and a node keeps its own until it is complete. Numbers of batches are told by the stored state, and not looked at here.

use serde_json::Value;
use skyhook_fleet::facts::NodeFact;

use super::{LEASES, World};
use crate::sim::agent::Core;

impl<C: Core> World<'_, C> {
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
