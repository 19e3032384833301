//! Removes what a Node says about a Skyhook that does not select it any more: status, reason, drain and conditions.
//! Otherwise an alert on these conditions would never end. The record of what is installed stays, because the packages are
//! still on the host.
//!
//! Of a Skyhook that is deleted, everything goes. Where packages stay behind on the host, the record and its stamp stay as
//! well: they tell what is there, and another Skyhook of the same name goes on from them. A Skyhook that is being deleted
//! keeps its finalizer until all Nodes are clean.

use super::cache::{Cache, LeaseBits, NodeCell};
use super::cause::Cause;
use super::scan::{Order, Row};
use super::{Draft, View, drain};
use crate::effect::NodePatch;
use crate::facts::{Goal, NodeFact};
use skyhook_crds::installed::StateProblem;
use skyhook_crds::names;

/// What is named after a Skyhook and tells what is on the host.
const OF_RECORD: [&str; 3] = ["nodeState", "stamp", "version"];
/// What has an owner of its own: cordons are given back, and a taint's key is no Skyhook.
const NOT_OURS: [&str; 2] = ["cordon", "autoTaint"];

/// The kind and the Skyhook of an annotation or label that is named after a Skyhook.
fn named(key: &str) -> Option<(&str, &str)> {
    let name = key.strip_prefix(names::GROUP)?.strip_prefix('/')?;
    let (kind, skyhook) = name.split_once('_')?;
    (!NOT_OURS.contains(&kind)).then_some((kind, skyhook))
}

/// True when packages stay behind on the host, or may: a newer version wrote the record. What another machine recorded is
/// not on this host.
fn stays_behind(node: &NodeFact, skyhook: &str) -> bool {
    let record = node.record(skyhook);
    let is_newer = record.stamp.as_ref().is_some_and(|stamp| stamp.is_newer());
    if record.is_of_another_machine(node) && !is_newer {
        return false;
    }
    is_newer
        || match &record.states {
            Ok(states) => !states.is_empty(),
            Err(StateProblem::Newer { .. }) => true,
            Err(StateProblem::Malformed { .. }) => false,
        }
}

/// Names of the Skyhooks that a Node says something about that can be removed when they are deleted.
pub(super) fn told(node: &NodeFact) -> Vec<&str> {
    let keys = node.annotations.keys().map(String::as_str);
    let keys = keys.chain(node.labels.iter().map(|(key, _)| key));
    let by_key = keys.filter_map(|key| {
        let (kind, skyhook) = named(key)?;
        let stays = OF_RECORD.contains(&kind) && stays_behind(node, skyhook);
        (!stays).then_some(skyhook)
    });
    let types = node.conditions.iter();
    let by_type = types.filter_map(|condition| names::skyhook_of_condition(&condition.type_));
    let mut told: Vec<&str> = by_key.chain(by_type).collect();
    told.sort_unstable();
    told.dedup();
    told
}

/// Removes all that a Node says about a Skyhook that is deleted; empty when the Node is clean.
pub(super) fn clean(node: &NodeFact, skyhook: &str) -> NodePatch {
    let mut patch = NodePatch::default().forget(skyhook);
    let keeps = stays_behind(node, skyhook);
    let goes = |key: &str| {
        named(key).is_some_and(|(kind, of)| of == skyhook && !(keeps && OF_RECORD.contains(&kind)))
    };
    let annotations = node.annotations.keys().filter(|key| goes(key));
    patch
        .annotations
        .extend(annotations.map(|key| (key.clone(), None)));
    let labels = node.labels.iter().filter(|(key, _)| goes(key));
    patch
        .labels
        .extend(labels.map(|(key, _)| (key.to_owned(), None)));
    let mut patch = patch.reduced(node);
    // The lease watch may lag, and the result of a lease is written on its stamp.
    if patch.annotations.contains_key(&names::stamp(skyhook)) {
        patch.check.not_for.insert(skyhook.to_owned());
    }
    patch
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
        let is_deleted = |number: &u32| {
            let row = row(*number);
            row.is_none_or(|row| row.skyhook.goal() == Goal::Nothing)
        };
        let deleted: Vec<u32> = unleased().filter(is_deleted).collect();
        let is_left = |number: &u32| row(*number).is_some_and(|row| row.is_not_for(*id));
        let left: Vec<u32> = unleased().filter(is_left).collect();
        // Nobody can tell whether a Skyhook that is not valid selects the node. All the same nothing drains for it there.
        let is_invalid =
            |number: &u32| row(*number).is_some_and(|row| row.skyhook.checked.is_err());
        let invalid = unleased().filter(|number| cell.has_drain_marks && is_invalid(number));
        let invalid: Vec<u32> = invalid.collect();
        if deleted.is_empty() && left.is_empty() && invalid.is_empty() {
            continue;
        }
        let Some(node) = view.picture.nodes().get(*name) else {
            continue;
        };
        let mut patch = NodePatch::default();
        for number in deleted {
            patch.unite(clean(node, cache.names.text(number)));
        }
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
