//! A reboot that Skyhook did not ask for, where packages are to be applied again then (hosts that forget what was done to
//! them): the node's record is emptied, and the budget decides when the node is worked on.
//!
//! Reboots that Skyhook caused do not count. Agents report with each result the boot ID of the last boot that was not ours, the
//! epoch: as long as it stays, nothing was lost. A lease that is under way is its agent's business.

use skyhook_crds::installed::{PackageStates, Stamp};

use super::cause::Cause;
use super::scan::{Order, Row};
use super::{Draft, View};
use crate::effect::NodePatch;
use crate::facts::{NodeFact, SkyhookFact};

pub(super) fn nodes(view: &View<'_>, rows: &[Row<'_>], order: &Order<'_>, draft: &mut Draft<'_>) {
    for row in rows {
        let is_lost = |id| row.cell(id).is_some_and(|cell| cell.lost);
        for (name, _) in order.iter().filter(|(_, id)| is_lost(*id)) {
            let Some(node) = view.picture.nodes().get(*name) else {
                continue;
            };
            if let Some(stamp) = lost(view, row.skyhook, node) {
                let stamp = Stamp {
                    boot_id: node.boot_id.clone(),
                    epoch: epoch(node).to_owned(),
                    ..stamp.clone()
                };
                let states = PackageStates::new();
                let patch = NodePatch::default().states(&row.skyhook.name, &states, stamp);
                draft.patch(node, patch, Cause::Reapply);
            }
        }
    }
}

/// The stamp of a result that a reboot has undone.
pub(super) fn lost<'a>(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &'a NodeFact,
) -> Option<&'a Stamp> {
    let leased = view.picture.leases().contains_key(&node.name)
        || view.inflight.creating(&node.name).is_some();
    let is_out = skyhook.deleting || skyhook.is_disabled();
    if !view.settings.reapply_on_reboot || leased || is_out || node.boot_id.is_empty() {
        return None;
    }
    let stamp = node.record(&skyhook.name).stamp.as_ref()?;
    let known = stamp.has_result() && !stamp.epoch.is_empty();
    (known && stamp.epoch != epoch(node)).then_some(stamp)
}

/// The node's epoch: what a result of this very boot says, else this boot, which nobody of ours asked for.
fn epoch(node: &NodeFact) -> &str {
    node.records
        .values()
        .filter_map(|record| record.stamp.as_ref())
        .find(|stamp| stamp.boot_id == node.boot_id && !stamp.epoch.is_empty())
        .map_or(&node.boot_id, |stamp| &stamp.epoch)
}
