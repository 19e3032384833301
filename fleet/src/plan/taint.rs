//! The runtime-required taint: it is put on new nodes, taken off nodes on which every Skyhook that requires it is complete,
//! and given back where no Skyhook requires it. All of it is decided anew in every pass, from what the Node says.
//!
//! While a node is leased, and while it carries the taint and waits for a slot, annotations keep autoscalers from removing
//! it: a node that may not be used yet looks as if nobody needed it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Taint;
use skyhook_crds::lease::InterruptionLease;
use skyhook_crds::lease::protocol::{self, ResultDuty};
use skyhook_crds::names;

use super::cache::{Cache, LeaseBits, NodeCell, TaintBits};
use super::cause::Cause;
use super::reapply::{self, Reboot};
use super::scan::{Order, Row};
use super::standing::Standing;
use super::{Draft, View, lease, verdict};
use crate::effect::NodePatch;
use crate::facts::{NodeFact, SkyhookFact};
use crate::picture::NodeId;
use crate::taints;

/// What is decided about the taint of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    Keep,
    /// Put the configured taint on the node.
    Add,
    /// Take off the taints that Skyhooks require, or only those that we have put there.
    Remove {
        only_ours: bool,
        cordon: bool,
    },
}

/// The facts about one node that its taint depends on.
#[derive(Clone, Debug, Default)]
struct Case {
    bits: TaintBits,
    /// A Skyhook requires the taint, and nobody can tell on which nodes.
    unreadable: bool,
    /// Skyhooks that require the taint on this node.
    covered: usize,
    /// Those of them that are not complete there.
    open: usize,
    /// One of them wants the node cordoned afterwards.
    cordon_after: bool,
    /// One of them waits for a slot.
    waits: bool,
    /// The node is new, or a reboot has undone what was installed, and a Skyhook wants such nodes tainted.
    wants_taint: bool,
    /// The node has a lease whose result is not recorded yet.
    leased: bool,
    /// Complete by the record alone, although the Node is stamped for a lease. The watch of the leases may lag.
    stamped: BTreeSet<String>,
}

const fn decide(case: &Case) -> Duty {
    let bits = &case.bits;
    if !bits.carries {
        return if case.wants_taint && !bits.is_off {
            Duty::Add
        } else {
            Duty::Keep
        };
    }
    match (case.covered, case.open) {
        _ if case.unreadable => Duty::Keep,
        (0, _) if bits.put_by_us => Duty::Remove {
            only_ours: true,
            cordon: false,
        },
        (0, _) => Duty::Keep,
        (_, 0) => Duty::Remove {
            only_ours: false,
            cordon: case.cordon_after,
        },
        (_, _) => Duty::Keep,
    }
}

/// The facts about a node that decisions about its taint need.
pub(super) fn bits(view: &View<'_>, node: &NodeFact) -> TaintBits {
    let ours = |taint: &&Taint| taints::is_ours(&view.settings.runtime_taint, node, taint);
    let carries = node.taints.iter().any(|taint| ours(&taint));
    let is_off = node.is_ignored() || !node.is_host();
    let after_taint = names::RUNTIME_REQUIRED_CORDON;
    let cordoned = node.annotations.contains_key(after_taint)
        || node
            .annotations
            .contains_key(&names::successor(after_taint));
    TaintBits {
        is_open: !carries && !is_off && node.is_new(),
        is_off,
        carries,
        put_by_us: node
            .taints
            .iter()
            .any(|taint| taints::is_put_by_us(node, taint)),
        protects: !node.cordon.protects.is_empty(),
        uncordoned: cordoned && !node.unschedulable,
    }
}

/// True when one of these Skyhooks wants this new node to be tainted.
pub(super) fn is_pending(view: &View<'_>, tainting: &[&SkyhookFact], node: &str) -> bool {
    if tainting.is_empty() {
        return false;
    }
    let node = view.picture.nodes().get(node);
    node.is_some_and(|node| tainting.iter().any(|skyhook| skyhook.taints_new(node)))
}

/// Decides about the taints of all nodes.
pub(super) fn nodes(
    view: &View<'_>,
    rows: &[Row<'_>],
    order: &Order<'_>,
    cache: &Cache,
    draft: &mut Draft<'_>,
) {
    let unreadable = rows.iter().any(|row| row.skyhook.requires_unknown());
    let tainting = rows.iter().any(|row| row.skyhook.taint.auto);
    let reapplies = tainting && view.settings.reapply_on_reboot;
    for (name, id) in order {
        let cell = &cache.nodes[id.index()];
        let bits = &cell.taint;
        let is_marked = bits.carries || bits.protects || bits.uncordoned || cell.pending;
        let is_undone = reapplies && !bits.carries && is_undone(view, rows, cell, name, *id);
        if !is_marked && !is_undone {
            continue;
        }
        if let Some(node) = view.picture.nodes().get(*name) {
            let case = Case {
                unreadable,
                wants_taint: cell.pending || is_undone,
                ..case(view, rows, cell, node, *id)
            };
            write(view, &case, node, draft);
        }
    }
}

/// True when a reboot that Skyhook did not ask for has undone what was installed, and a Skyhook wants such nodes tainted.
fn is_undone(view: &View<'_>, rows: &[Row<'_>], cell: &NodeCell, name: &str, id: NodeId) -> bool {
    let mut required = rows.iter().filter(|row| {
        let required = row.cell(id).is_some_and(|cell| cell.required);
        row.skyhook.taint.auto && required && !row.skyhook.is_disabled()
    });
    match cell.lease {
        None => required.any(|row| row.cell(id).is_some_and(|cell| cell.lost)),
        Some(LeaseBits::Unreadable) => false,
        Some(LeaseBits::Readable { .. }) => required.any(|row| {
            let node = view.picture.nodes().get(name);
            let reboot = node.map(|node| reapply::of_leased(view, row.skyhook, node));
            reboot == Some(Reboot::Foreign)
        }),
    }
}

fn case(view: &View<'_>, rows: &[Row<'_>], cell: &NodeCell, node: &NodeFact, id: NodeId) -> Case {
    let mut case = Case {
        bits: cell.taint,
        leased: cell.creating || is_worked_on(view, node),
        ..Case::default()
    };
    let is_required = |row: &&Row<'_>| row.cell(id).is_some_and(|cell| cell.required);
    for row in rows.iter().filter(is_required) {
        case.covered += 1;
        case.open += usize::from(!is_complete(view, row, node, id));
        let name = &row.skyhook.name;
        let stamp = node.record(name).stamp.as_ref();
        let is_stamped = stamp.is_some_and(|stamp| !stamp.granted.is_empty());
        case.stamped.extend(is_stamped.then(|| name.clone()));
        case.cordon_after |= row.skyhook.taint.cordon_after;
        case.waits |= waits(row, id);
    }
    case
}

/// True when the node has a lease whose result is not on the Node yet.
fn is_worked_on(view: &View<'_>, node: &NodeFact) -> bool {
    let lease = view.picture.leases().get(&node.name);
    lease.is_some_and(|fact| {
        let lease = fact.lease.as_deref();
        lease.map_or(true, |lease| !is_recorded(lease, node))
    })
}

/// True when the result of the lease is on the Node.
#[must_use]
pub(crate) fn is_recorded(lease: &InterruptionLease, node: &NodeFact) -> bool {
    let record = node.record(&lease.spec.skyhook.name);
    protocol::result_duty(lease, &lease::facts(node, record)) == ResultDuty::Recorded
}

/// True when the Skyhook is complete on the node: by a result, and not by what an agent reports while it works.
fn is_complete(view: &View<'_>, row: &Row<'_>, node: &NodeFact, id: NodeId) -> bool {
    let is_done = || {
        let lease = view.picture.lease_of(&node.name, &row.skyhook.uid);
        let lease = lease.and_then(|fact| fact.lease.as_deref().ok());
        lease.is_some_and(|lease| is_recorded(lease, node))
    };
    row.cell(id).is_some_and(|cell| match cell.standing {
        // Its record is emptied in the same pass if a reboot has undone it.
        Some(Standing::Complete) => !cell.lost,
        // A lease may also end when all that is left waits for packages that have to go.
        Some(Standing::Leased) => {
            cell.complete && is_done() && verdict::is_complete(view, row.skyhook, node)
        }
        Some(Standing::Blocked(_) | Standing::Waiting(_) | Standing::Eligible) | None => false,
    })
}

/// True when the node waits for its turn, and not for a person.
fn waits(row: &Row<'_>, id: NodeId) -> bool {
    let standing = row.cell(id).and_then(|cell| cell.standing.as_ref());
    let waits = standing.is_some_and(|standing| match standing {
        Standing::Eligible | Standing::Waiting(_) => true,
        Standing::Blocked(reason) => reason.code.is_back_off(),
        Standing::Complete | Standing::Leased => false,
    });
    waits && !row.skyhook.is_disabled()
}

fn write(view: &View<'_>, case: &Case, node: &NodeFact, draft: &mut Draft<'_>) {
    let mut carries = case.bits.carries;
    // Somebody has uncordoned the node, so the mark of our cordon goes, unless the node is cordoned again now.
    let mut is_unmarked = case.bits.uncordoned;
    match decide(case) {
        Duty::Keep => {}
        Duty::Add => {
            // Nothing else is written there in this pass: the taint comes first.
            draft.patch(node, add(view, node), Cause::AutoTaint);
            return;
        }
        Duty::Remove { only_ours, cordon } => {
            let mut patch = remove(view, node, only_ours);
            if cordon {
                patch.unite(cordon_after(&draft.so_far(node)));
                is_unmarked = false;
            }
            patch.check.not_for.extend(case.stamped.iter().cloned());
            draft.patch(node, patch, Cause::Untaint);
            carries = false;
        }
    }
    let so_far = draft.so_far(node);
    let has_some = !so_far.cordon.protects.is_empty();
    // The stamp before the grant protects a leased node, and the write of the result takes that back.
    let is_wanted = if case.leased {
        has_some
    } else {
        carries && case.waits
    };
    if is_wanted || has_some {
        draft.patch(node, protect(&so_far, is_wanted), Cause::Protect);
    }
    if is_unmarked {
        draft.patch(node, forget_cordon(), Cause::Uncordoned);
    }
}

/// Nodes from which the taint, or the protection against autoscalers, has still to be taken before a Skyhook that is being
/// deleted may go.
pub(super) fn left<'a>(
    view: &View<'a>,
    skyhook: &'a SkyhookFact,
) -> impl Iterator<Item = &'a NodeFact> {
    let runtime = &view.settings.runtime_taint;
    let picture = view.picture;
    let is_kept = move |node: &NodeFact| {
        let mut all = picture.skyhooks().values();
        all.any(|other| other.requires_unknown() || other.requires(node))
    };
    let is_left = move |node: &&NodeFact| {
        if !skyhook.taint.covers(node) {
            return false;
        }
        match taints::ours(runtime, node) {
            Some(_) => {
                let mut taints = node.taints.iter();
                taints.any(|taint| taints::is_put_by_us(node, taint)) && !is_kept(node)
            }
            None => {
                let leased = picture.leases().contains_key(&node.name);
                !node.cordon.protects.is_empty() && !leased
            }
        }
    };
    let nodes = picture.nodes().values();
    nodes.filter(is_left)
}

fn add(view: &View<'_>, node: &NodeFact) -> NodePatch {
    let taint = view.settings.runtime_taint.taint();
    let key = names::auto_taint(&taint.key);
    let mut taints = node.taints.clone();
    taints.push(taint);
    NodePatch {
        taints: Some(taints),
        ..NodePatch::default().annotation(&key, Some("true".to_owned()))
    }
}

/// Takes taints of ours off. The other taints keep their order. The annotation stays as `"false"`: the node is not new
/// again, and a taint that somebody puts there by hand is not mistaken for ours.
fn remove(view: &View<'_>, node: &NodeFact, only_ours: bool) -> NodePatch {
    let goes = |taint: &&Taint| {
        if only_ours {
            taints::is_put_by_us(node, taint)
        } else {
            taints::is_ours(&view.settings.runtime_taint, node, taint)
        }
    };
    let (gone, left): (Vec<&Taint>, Vec<&Taint>) = node.taints.iter().partition(goes);
    let mut patch = NodePatch {
        taints: Some(left.into_iter().cloned().collect()),
        ..NodePatch::default()
    };
    for taint in gone {
        if taints::is_put_by_us(node, taint) {
            let key = names::auto_taint(&taint.key);
            patch = patch
                .annotation(&key, Some("false".to_owned()))
                .annotation(&names::successor(&key), None);
        }
    }
    patch
}

/// Cordons the node when the taint goes. A Skyhook that holds a cordon of it leaves it cordoned afterwards.
fn cordon_after(node: &NodeFact) -> NodePatch {
    let key = names::RUNTIME_REQUIRED_CORDON;
    let mut patch = NodePatch::default().annotation(key, Some("true".to_owned()));
    patch.unschedulable = Some(true);
    if node.cordon.owners.is_empty() {
        return patch;
    }
    let mut record = node.cordon.clone();
    record.was_unschedulable = true;
    patch.cordon(&record)
}

/// Removes the mark of that cordon from a node that somebody has uncordoned.
fn forget_cordon() -> NodePatch {
    let key = names::RUNTIME_REQUIRED_CORDON;
    NodePatch::default()
        .annotation(key, None)
        .annotation(&names::successor(key), None)
}

/// Sets what keeps autoscalers from removing the node, or takes it back. What somebody else has set or changed is theirs.
/// What somebody has removed is not set again.
#[must_use]
pub(super) fn protect(node: &NodeFact, wanted: bool) -> NodePatch {
    let mut record = node.cordon.clone();
    let mut patch = NodePatch::default();
    let value = |key: &str| node.annotations.get(key).map(String::as_str);
    if wanted && record.protects.is_empty() {
        for key in names::PROTECTIONS {
            if value(key).is_none() {
                patch = patch.annotation(key, Some("true".to_owned()));
                record.protects.insert(key.to_owned());
            }
        }
    } else if wanted {
        record
            .protects
            .retain(|key| value(key).is_none_or(|value| value == "true"));
    } else {
        for key in std::mem::take(&mut record.protects) {
            if value(&key) == Some("true") {
                patch = patch.annotation(&key, None);
            }
        }
    }
    if record == node.cordon {
        patch
    } else {
        patch.cordon(&record)
    }
}
