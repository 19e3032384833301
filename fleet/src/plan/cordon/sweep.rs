//! Gives back cordons whose owner is gone.

use skyhook_crds::lease::protocol;

use crate::facts::{Goal, NodeFact};
use crate::picture::NodeId;
use crate::plan::cache::Cache;
use crate::plan::cause::Cause;
use crate::plan::scan::{Order, Row};
use crate::plan::standing::Standing;
use crate::plan::{Draft, View};

/// Gives back cordons whose owner has no lease on the node any more and will not get one soon.
pub(in crate::plan) fn sweep(
    view: &View<'_>,
    rows: &[Row<'_>],
    order: &Order<'_>,
    cache: &Cache,
    draft: &mut Draft<'_>,
) {
    for (name, id) in order {
        let cell = &cache.nodes[id.index()];
        if !cell.owned || cell.rests {
            continue;
        }
        if let Some(node) = view.picture.nodes().get(*name) {
            sweep_node(view, rows, node, *id, draft);
        }
    }
}

fn sweep_node(
    view: &View<'_>,
    rows: &[Row<'_>],
    node: &NodeFact,
    id: NodeId,
    draft: &mut Draft<'_>,
) {
    if !node.unschedulable {
        // Somebody uncordoned the node. If a drain still needs the cordon, the drain takes it again. Otherwise the
        // owners are removed.
        if !is_draining(view, node) {
            let patch = super::forget(&draft.so_far(node));
            draft.patch(node, patch, Cause::Uncordoned);
        }
        return;
    }
    let lease = view.picture.leases().get(&node.name);
    let is_orphaned = |owner: &&str| {
        let leased = lease.is_some_and(|fact| {
            let lease = fact.lease.as_ref();
            lease.map_or(true, |lease| lease.spec.skyhook.name == **owner)
        });
        let row = rows.iter().find(|row| row.skyhook.name == **owner);
        let goes_on = row.is_some_and(|row| may_go_on(row, id));
        !leased && !goes_on && view.inflight.creating(&node.name).is_none()
    };
    let owners = node.cordon.owners.keys().map(String::as_str);
    let orphaned: Vec<&str> = owners.filter(is_orphaned).collect();
    let mut patch = super::give_back(&draft.so_far(node), orphaned.iter().copied());
    // The lease watch may lag, and pods would come back if a cordon were given back during a drain. So a GET checks
    // that the node's lease is not for one of these Skyhooks.
    patch.check.not_for = orphaned.into_iter().map(str::to_owned).collect();
    draft.patch(node, patch, Cause::CordonWithoutOwner);
}

/// True when the lease of the node needs it cordoned now, or cannot be read.
fn is_draining(view: &View<'_>, node: &NodeFact) -> bool {
    view.picture.leases().get(&node.name).is_some_and(|fact| {
        let lease = fact.lease.as_ref();
        lease.map_or(true, |lease| protocol::wants_drain(lease))
    })
}

/// True when a Skyhook that holds no lease on the node is about to get one, and keeps its cordon until then.
fn may_go_on(row: &Row<'_>, id: NodeId) -> bool {
    let soon = match row.standing(id) {
        Some(Standing::Leased | Standing::Eligible) => true,
        Some(Standing::Waiting(_)) => row.kept.contains(&id),
        Some(Standing::Complete | Standing::Blocked(_)) | None => false,
    };
    soon && row.skyhook.goal() != Goal::Nothing && !row.skyhook.is_disabled()
}
