//! Takes the records of other implementations over: those of NodeWright, whose keys have another prefix, and those of early
//! versions of NVIDIA Skyhook, which lack fields. One write sets our record, and removes all that the other implementation
//! says about the Skyhook on the Node. Nothing is done on the node before that.

use skyhook_crds::installed::{self, Stamp};
use skyhook_crds::names;

use super::cause::Cause;
use super::lease::VERSION;
use super::scan::{Order, Row};
use super::standing::Standing;
use super::{Draft, View};
use crate::effect::NodePatch;
use crate::facts::{Checked, Goal, NodeFact, Origin, Record, SkyhookFact};

/// Takes over what is left on all Nodes.
pub(super) fn nodes(view: &View<'_>, rows: &[Row<'_>], order: &Order<'_>, draft: &mut Draft<'_>) {
    for row in rows {
        let Ok(checked) = &row.skyhook.checked else {
            continue;
        };
        for (name, id) in order {
            let Some(cell) = row.cell(*id).filter(|cell| cell.foreign) else {
                continue;
            };
            let Some(node) = view.picture.nodes().get(*name) else {
                continue;
            };
            // In a large cluster, nodes that are complete do not hold up those that go on.
            let cause = if cell.standing == Some(Standing::Complete) {
                Cause::Status
            } else {
                Cause::Adopted
            };
            if let Some(patch) = of(view, row.skyhook, checked, node) {
                draft.patch(node, patch, cause);
            }
        }
    }
}

/// What takes the record of a Skyhook over on a Node that it selects; `None` when nothing is left to take over.
pub(super) fn of(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    checked: &Checked,
    node: &NodeFact,
) -> Option<NodePatch> {
    let name = &skyhook.name;
    let record = node.record(name);
    let is_held = view.picture.leases().contains_key(&node.name)
        || view.inflight.creating(&node.name).is_some();
    if skyhook.goal() == Goal::Nothing || node.is_ignored() || is_held {
        return None;
    }
    let mut patch = match record.origin {
        Origin::Ours if !is_left(node) => return None,
        Origin::Ours if !node.annotations.contains_key(&names::node_state(name)) => return None,
        Origin::Ours => NodePatch::default(),
        Origin::Early | Origin::Successor => ours(skyhook, checked, node, record)?,
    };
    if record.origin == Origin::Early {
        forget_conditions(&mut patch, name, node);
    }
    forget_successor(&mut patch, name, node);
    let patch = patch.reduced(node);
    (!patch.is_empty()).then_some(patch)
}

/// True when something that NodeWright wrote is on the Node.
fn is_left(node: &NodeFact) -> bool {
    let annotations = node.annotations.keys().map(String::as_str);
    let labels = node.labels.iter().map(|(key, _)| key);
    let types = node.conditions.iter().map(|one| one.type_.as_str());
    let mut keys = annotations.chain(labels).chain(types);
    keys.any(|key| key.starts_with(names::SUCCESSOR))
}

/// Our record, from that of the other implementation. A record that lacks nothing is not changed by a byte.
fn ours(
    skyhook: &SkyhookFact,
    checked: &Checked,
    node: &NodeFact,
    record: &Record,
) -> Option<NodePatch> {
    let name = &skyhook.name;
    let states = record.states_for(name, checked).ok()?;
    let theirs = node.annotations.get(&record.annotation(name));
    let value = match theirs {
        Some(theirs) if installed::is_whole(Some(theirs)) => theirs.clone(),
        Some(_) | None => installed::render_states(&states),
    };
    let stamp = Stamp {
        settled: record.said_complete,
        ..Stamp::default()
    };
    let mut patch = NodePatch::default()
        .annotation(&names::node_state(name), Some(value))
        .stamp(name, &stamp);
    let version = names::version(name);
    if installed::is_early(node.annotations.get(&version).map(String::as_str)) {
        patch = patch.annotation(&version, Some(VERSION.to_owned()));
    }
    let cordon = names::cordon(name);
    if let Some(held) = node.annotations.get(&names::successor(&cordon)) {
        patch = patch.annotation(&cordon, Some(held.clone()));
    }
    Some(moved(patch, node))
}

/// Moves what NodeWright says about the taint of the whole node to our prefix.
fn moved(mut patch: NodePatch, node: &NodeFact) -> NodePatch {
    let theirs = names::successor(&names::auto_taint(""));
    let cordoned = names::successor(names::RUNTIME_REQUIRED_CORDON);
    for (key, value) in &node.annotations {
        if !key.starts_with(&theirs) && *key != cordoned {
            continue;
        }
        let ours = key.replacen(names::SUCCESSOR, names::GROUP, 1);
        if !node.annotations.contains_key(&ours) {
            patch = patch.annotation(&ours, Some(value.clone()));
        }
        patch = patch.annotation(key, None);
    }
    patch
}

/// Removes all that NodeWright says about the Skyhook on the Node.
fn forget_successor(patch: &mut NodePatch, skyhook: &str, node: &NodeFact) {
    let keys = [
        Some(names::node_state(skyhook)),
        Some(names::status(skyhook)),
        Some(names::version(skyhook)),
        Some(names::cordon(skyhook)),
        names::drain_start(skyhook),
        names::drain_blocked(skyhook),
    ];
    for key in keys.into_iter().flatten() {
        patch.annotations.insert(names::successor(&key), None);
    }
    let status = names::successor(&names::status(skyhook));
    patch.labels.insert(status, None);
    let prefix = format!("{}/{skyhook}/", names::SUCCESSOR);
    let theirs = node.conditions.iter();
    let theirs = theirs.filter(|one| one.type_.starts_with(&prefix));
    patch
        .conditions
        .extend(theirs.map(|one| (one.type_.clone(), None)));
}

/// Removes the conditions of early versions that nobody writes any more.
fn forget_conditions(patch: &mut NodePatch, skyhook: &str, node: &NodeFact) {
    let prefix = format!("{}/{skyhook}/", names::GROUP);
    let theirs = node.conditions.iter().filter(|one| {
        one.type_.starts_with(&prefix) && names::skyhook_of_condition(&one.type_).is_none()
    });
    patch
        .conditions
        .extend(theirs.map(|one| (one.type_.clone(), None)));
}
