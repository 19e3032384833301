//! Handles reboots that Skyhook did not ask for, if the setting `reapply_on_reboot` is on (for hosts that lose their
//! packages in a reboot). The node's record is emptied. Then work on the node begins again within the budget.
//!
//! Reboots that Skyhook caused do not count. With each result, an agent reports the *epoch*: the boot ID of the last
//! boot that Skyhook did not ask for. While the epoch stays the same, nothing was lost. Nodes with a lease are left
//! out: their agent handles the reboot.

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

/// The stamp of the node's result, if a reboot has undone that result.
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

/// The node's epoch: the one in a stamp of the current boot. If no stamp is of the current boot, Skyhook did not ask
/// for that boot, and the epoch is the current boot itself.
fn epoch(node: &NodeFact) -> &str {
    node.records
        .values()
        .filter_map(|record| record.stamp.as_ref())
        .find(|stamp| stamp.boot_id == node.boot_id && !stamp.epoch.is_empty())
        .map_or(&node.boot_id, |stamp| &stamp.epoch)
}
