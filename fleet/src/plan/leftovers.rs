//! Removes what a Node says about a Skyhook that does not select it any more, or that does not exist any more: status,
//! reason, drain and conditions. Otherwise an alert on these conditions would never end. The record of what is installed
//! stays, because the packages are still on the host.

use super::cache::{Cache, LeaseBits, NodeCell};
use super::cause::Cause;
use super::scan::{Order, Row};
use super::{Draft, View, drain};
use crate::effect::NodePatch;
use crate::facts::NodeFact;
use skyhook_crds::names;

/// Names of the Skyhooks that a Node says something about.
pub(super) fn told(node: &NodeFact) -> Vec<&str> {
    let drains = [names::drain_start(""), names::drain_blocked("")];
    let prefixes = [names::status(""), names::reason("")].into_iter();
    let prefixes: Vec<String> = prefixes.chain(drains.into_iter().flatten()).collect();
    let keys = node.annotations.keys().map(String::as_str);
    let keys = keys.chain(node.labels.iter().map(|(key, _)| key));
    let by_key = keys.filter_map(|key| {
        let mut prefixes = prefixes.iter();
        prefixes.find_map(|prefix| key.strip_prefix(prefix.as_str()))
    });
    let types = node.conditions.iter();
    let by_type = types.filter_map(|condition| names::skyhook_of_condition(&condition.type_));
    let mut told: Vec<&str> = by_key.chain(by_type).collect();
    told.sort_unstable();
    told.dedup();
    told
}

/// True when a Node says something about a drain.
pub(super) fn has_drain_marks(node: &NodeFact) -> bool {
    let prefixes = [names::drain_start(""), names::drain_blocked("")];
    let mut prefixes = prefixes.iter().flatten();
    prefixes.any(|prefix| {
        let mut keys = node.annotations.keys();
        keys.any(|key| key.starts_with(prefix.as_str()))
    })
}

/// Removes what is left over on all Nodes.
pub(super) fn sweep(
    view: &View<'_>,
    rows: &[Row<'_>],
    order: &Order<'_>,
    cache: &mut Cache,
    draft: &mut Draft<'_>,
) {
    // For the number of each Skyhook's name: the Skyhook. `None` if there is no such Skyhook.
    let mut known: Vec<Option<&Row<'_>>> = vec![None; cache.names.len()];
    for row in rows {
        let number = cache.names.number(&row.skyhook.name) as usize;
        if let Some(known) = known.get_mut(number) {
            *known = Some(row);
        }
    }
    for (name, id) in order {
        let cell = &cache.nodes[id.index()];
        let row = |number: u32| known.get(number as usize).copied().flatten();
        let unleased = || cell.told.iter().copied().filter(|n| !is_leased(cell, *n));
        let is_left = |number: &u32| row(*number).is_none_or(|row| row.is_not_for(*id));
        let left: Vec<u32> = unleased().filter(is_left).collect();
        // Nobody can tell whether a Skyhook that is not valid selects the node. All the same nothing drains for it there.
        let is_invalid =
            |number: &u32| row(*number).is_some_and(|row| row.skyhook.checked.is_err());
        let invalid = unleased().filter(|number| cell.has_drain_marks && is_invalid(number));
        let invalid: Vec<u32> = invalid.collect();
        if left.is_empty() && invalid.is_empty() {
            continue;
        }
        let Some(node) = view.picture.nodes().get(*name) else {
            continue;
        };
        let mut patch = NodePatch::default();
        for number in left {
            patch.unite(NodePatch::default().forget(cache.names.text(number)));
        }
        for number in invalid {
            patch.unite(drain::marks(cache.names.text(number), None));
        }
        draft.patch(node, patch.reduced(node), Cause::Status);
    }
}

/// True while the Node has a lease that may be for the Skyhook. The write of its result comes first.
fn is_leased(cell: &NodeCell, number: u32) -> bool {
    cell.creating
        || match cell.lease {
            None => false,
            Some(LeaseBits::Unreadable) => true,
            Some(LeaseBits::Readable { skyhook, .. }) => skyhook == number,
        }
}
