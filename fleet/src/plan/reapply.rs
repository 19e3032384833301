//! A reboot that Skyhook did not ask for, where packages are to be applied again then (hosts that forget what was done to
//! them): the node's record is emptied, and the budget decides when the node is worked on.
//!
//! Our own reboots are no reason. Agents report with each result the boot ID of the last boot that was not ours, the
//! epoch: as long as it stays, nothing was lost. A lease that is under way is its agent's business.

use skyhook_crds::installed::{PackageStates, Stamp};

use super::{Draft, View, why};
use crate::effect::NodePatch;
use crate::facts::{NodeFact, SkyhookFact};

pub(super) fn nodes(view: &View<'_>, skyhooks: &[&SkyhookFact], draft: &mut Draft<'_>) {
    if !view.settings.reapply_on_reboot {
        return;
    }
    for node in view.picture.nodes().values() {
        let leased = view.picture.leases().contains_key(&node.name)
            || view.inflight.creating(&node.name).is_some();
        if leased || node.boot_id.is_empty() {
            continue;
        }
        let epoch = epoch(node);
        for skyhook in skyhooks {
            if skyhook.deleting || skyhook.is_disabled() || !skyhook.selects(node) {
                continue;
            }
            let record = node.record(&skyhook.name);
            let lost = record
                .stamp
                .as_ref()
                .filter(|stamp| stamp.has_result() && !stamp.epoch.is_empty())
                .filter(|stamp| stamp.epoch != epoch);
            if let Some(stamp) = lost {
                let stamp = Stamp {
                    boot_id: node.boot_id.clone(),
                    epoch: epoch.to_owned(),
                    ..stamp.clone()
                };
                let patch =
                    NodePatch::default().states(&skyhook.name, &PackageStates::new(), stamp);
                draft.patch(node, patch, why::REAPPLY);
            }
        }
    }
}

/// The node's epoch: what a result of this very boot says, else this boot, which nobody of ours asked for.
fn epoch(node: &NodeFact) -> &str {
    node.records
        .values()
        .filter_map(|record| record.stamp.as_ref())
        .find(|stamp| stamp.boot_id == node.boot_id && !stamp.epoch.is_empty())
        .map_or(&node.boot_id, |stamp| &stamp.epoch)
}
