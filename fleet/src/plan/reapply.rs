//! Handles reboots that Skyhook did not ask for, if the setting `reapply_on_reboot` is on (for hosts that lose their
//! packages in a reboot). The node's record is emptied. Then work on the node begins again within the budget.
//!
//! Reboots that Skyhook caused do not count. With each result, an agent reports the *epoch*: the boot ID of the last
//! boot that Skyhook did not ask for. While the epoch stays the same, nothing was lost. Nodes with a lease are left
//! out: their agent handles the reboot. Only the runtime-required taint is put on those at once (`taint`): until the agent
//! has installed everything again, pods must not come.

use skyhook_crds::installed::{PackageStates, Stamp};
use skyhook_crds::lease::{DrainState, InterruptionLease};
use skyhook_crds::package::{Interrupt, InterruptType};

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

/// What is known about the last reboot of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reboot {
    /// There was none since the last result.
    None,
    /// Skyhook asked for it.
    Ours,
    /// Nobody here asked for it.
    Foreign,
    /// The agent has not reported yet.
    Unknown,
}

/// What is known about the last reboot of a node that has a lease, for a Skyhook.
pub(super) fn of_leased(view: &View<'_>, skyhook: &SkyhookFact, node: &NodeFact) -> Reboot {
    let lease = view.picture.leases().get(&node.name);
    let lease = lease.and_then(|fact| fact.lease.as_deref().ok());
    let stamp = node.record(&skyhook.name).stamp.as_ref();
    match (lease, stamp) {
        (Some(lease), Some(stamp)) => reboot(stamp, lease, may_reboot(view, lease), node),
        (None, _) | (_, None) => Reboot::None,
    }
}

fn reboot(stamp: &Stamp, lease: &InterruptionLease, may_reboot: bool, node: &NodeFact) -> Reboot {
    if node.boot_id.is_empty() {
        return Reboot::None;
    }
    let status = lease.status.as_ref();
    let (known, changed) = match status.filter(|status| !status.boot_id.is_empty()) {
        None => (!stamp.epoch.is_empty(), stamp.epoch != epoch(node)),
        Some(status) if status.boot_id == node.boot_id => (
            !stamp.epoch.is_empty() && !status.epoch.is_empty(),
            stamp.epoch != status.epoch,
        ),
        Some(_) if may_reboot => return Reboot::Unknown,
        Some(_) => (true, true),
    };
    match (known, changed) {
        (true, true) => Reboot::Foreign,
        (true, false) if stamp.boot_id != node.boot_id => Reboot::Ours,
        (true | false, _) => Reboot::None,
    }
}

/// True when a reboot of the node may be one that Skyhook asked for under this lease. The kubelet and the agent report a
/// boot independently of each other: while the two differ, the agent's report may be the newer one, of after the reboot.
fn may_reboot(view: &View<'_>, lease: &InterruptionLease) -> bool {
    let is_reboot = |interrupt: &Interrupt| interrupt.kind == InterruptType::Reboot;
    let owed = lease.spec.interrupts_left.values();
    let revision = view.picture.revisions().get(&lease.spec.revision);
    let data = revision.and_then(|revision| revision.data.as_deref());
    lease.spec.drain.state == DrainState::Drained
        && data.is_none_or(|data| {
            let packages = data.packages.values();
            let named = packages.flat_map(|package| {
                let configs = package.config_interrupts.values();
                configs.chain(package.interrupt.as_ref())
            });
            named.chain(owed).any(is_reboot)
        })
}
