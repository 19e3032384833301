//! Visits all pairs of a node and a Skyhook, and finds the standing of each. A standing is computed anew only when its
//! key has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::cache::{Cache, Cell, CellKey, Column, LeaseBits, Names, NodeCell, RowKey, TaintBits};
use super::ledger::Selected;
use super::pacing::{self, Pacing, Place};
use super::rollouts::Batches;
use super::standing::{self, Held, Standing};
use super::tallies::leases::Bits;
use super::{View, cordon, leftovers, node_order, reapply, taint, takeover};
use crate::clocks::Mono;
use crate::facts::{Checked, Goal, LeaseFact, NodeFact, SkyhookFact};
use crate::picture::NodeId;
use skyhook_crds::installed::Stamp;
use skyhook_crds::names;
use skyhook_crds::policy::Matches;
use skyhook_crds::revision;
use skyhook_crds::skyhook::Sequencing;

/// Names of nodes in alphabetical order, each with its number.
pub(super) type Order<'a> = [(&'a str, NodeId)];

/// One Skyhook in a pass.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) skyhook: &'a SkyhookFact,
    pub(super) column: Column,
    pub(super) selected: Selected,
    pub(super) pacing: Pacing<'a>,
    /// What is decided about its batches, if its policy has any.
    pub(super) batches: Option<Batches>,
    /// The standing of all eligible nodes that are not in `admitted`, once no further node can get a lease.
    pub(super) closed: Option<Standing>,
    /// The same, for the nodes of one place.
    pub(super) closed_at: BTreeMap<Place, Standing>,
    /// Eligible nodes to which the admission pass gave a standing of their own.
    pub(super) admitted: BTreeMap<NodeId, Standing>,
    /// Nodes that wait and keep their cordon.
    pub(super) kept: BTreeSet<NodeId>,
    /// The first time at which a standing may change although nothing else changes.
    pub(super) until: Option<Mono>,
    /// `SKYHOOK_NODE_ORDER` of the next node that is picked.
    pub(super) next_order: i64,
    /// What it was before this pass picked any: the status shows it, and is a lower bound for the next pass.
    pub(super) shown_order: i64,
}

impl Row<'_> {
    pub(super) fn cell(&self, id: NodeId) -> Option<&Cell> {
        self.column.cells.get(id.index())
    }

    /// True when the Skyhook is certainly not for this node. Nobody can tell while the spec is not valid, and a Skyhook
    /// that is being deleted may still have something to do.
    pub(super) fn is_not_for(&self, id: NodeId) -> bool {
        let is_selected = self.cell(id).is_some_and(|cell| cell.standing.is_some());
        self.skyhook.checked.is_ok() && self.skyhook.goal() != Goal::Nothing && !is_selected
    }

    /// True when no place takes another node.
    pub(super) fn is_closed(&self) -> bool {
        let mut places = self.pacing.all();
        places.all(|(place, _)| self.closed_at.contains_key(&place))
    }

    /// The standing of a node. After the admission pass, an eligible node has the standing that the admission pass
    /// decided.
    pub(super) fn standing(&self, id: NodeId) -> Option<&Standing> {
        let standing = self.cell(id)?.standing.as_ref()?;
        if *standing != Standing::Eligible {
            return Some(standing);
        }
        let own = self.admitted.get(&id).or(self.closed.as_ref());
        let own = own.or_else(|| self.closed_at.get(&self.pacing.place(id)));
        Some(own.unwrap_or(standing))
    }
}

/// Updates the cells, and returns one row for each Skyhook, in the order in which the Skyhooks run on a node.
pub(super) fn rows<'a>(
    view: &View<'a>,
    skyhooks: &[&'a SkyhookFact],
    order: &Order<'_>,
    cache: &mut Cache,
) -> Vec<Row<'a>> {
    nodes(view, skyhooks, order, cache);
    let mut columns = std::mem::take(&mut cache.columns);
    let most = cache.nodes.len();
    // For each node: ID of the column of the first Skyhook that is not complete there. Later Skyhooks wait for it.
    let mut open: Vec<u32> = vec![0; most];
    // ID of the column of the first Skyhook that has to be complete on all of its nodes. Later Skyhooks wait for it on
    // every node.
    let mut gate = 0;
    let mut names: BTreeMap<u32, &str> = BTreeMap::new();
    let mut rows = Vec::new();
    for skyhook in skyhooks {
        let mut column = columns.remove(&skyhook.name).unwrap_or_default();
        let key = RowKey {
            skyhook: view.picture.skyhook_changed(&skyhook.name),
            revisions: view.picture.revisions_changed(),
            policies: view.picture.policies_changed(),
        };
        if column.id == 0 {
            column.id = u32::try_from(cache.next_version()).unwrap_or(u32::MAX);
        }
        if column.key != key || column.version == 0 {
            column.version = cache.next_version();
            column.key = key;
        }
        column.cells.resize_with(most, Cell::default);
        names.insert(column.id, &skyhook.name);
        let mut row = Row {
            skyhook,
            column,
            selected: Selected::default(),
            pacing: Pacing::Budget,
            batches: None,
            closed: None,
            closed_at: BTreeMap::new(),
            admitted: BTreeMap::new(),
            kept: BTreeSet::new(),
            until: None,
            next_order: 0,
            shown_order: 0,
        };
        cells(view, order, cache, &mut row, &mut open, gate, &names);
        if gate == 0 && closes_gate(&row, order) {
            gate = row.column.id;
        }
        let cells = &row.column.cells;
        let selected = order.iter().filter_map(|(_, id)| {
            let cell = &cells[id.index()];
            cell.standing.as_ref().map(|_| (*id, cell.matches))
        });
        row.pacing = Pacing::new(view, skyhook, most, selected);
        rows.push(row);
    }
    rows
}

/// True when later Skyhooks wait for this one where it is not complete.
fn holds_up(skyhook: &SkyhookFact) -> bool {
    !skyhook.is_disabled() && skyhook.goal() != Goal::Nothing
}

/// True when later Skyhooks wait on every node until this one is complete on all of its nodes, and it is not. While its
/// spec is not valid, nobody can tell whether it is complete.
fn closes_gate(row: &Row<'_>, order: &Order<'_>) -> bool {
    let skyhook = row.skyhook;
    if skyhook.spec.sequencing == Sequencing::Node || !holds_up(skyhook) {
        return false;
    }
    let is_for_unknown = skyhook.checked.is_err() && skyhook.parked_over.is_none();
    let mut cells = order.iter().filter_map(|(_, id)| row.cell(*id));
    let is_open = |cell: &Cell| match &cell.standing {
        Some(standing) => *standing != Standing::Complete,
        None => cell.parked,
    };
    is_for_unknown || cells.any(is_open)
}

fn nodes(view: &View<'_>, skyhooks: &[&SkyhookFact], order: &Order<'_>, cache: &mut Cache) {
    let tainting: Vec<&SkyhookFact> = skyhooks
        .iter()
        .copied()
        .filter(|skyhook| skyhook.taint.auto)
        .collect();
    let most = order.iter().map(|(_, id)| id.index() + 1).max();
    let most = most.unwrap_or_default().max(cache.nodes.len());
    cache.nodes.resize_with(most, NodeCell::default);
    for (name, id) in order {
        let touched = view.picture.touched(*id);
        let cell = &mut cache.nodes[id.index()];
        if cell.touched != touched {
            *cell = node(view, name, &mut cache.names);
            cell.touched = touched;
            cache.counted.nodes += 1;
        }
        cell.pending = cell.taint.is_open && taint::is_pending(view, &tainting, name);
    }
}

fn node(view: &View<'_>, name: &str, names: &mut Names) -> NodeCell {
    let node = view.picture.nodes().get(name);
    let lease = view.picture.leases().get(name);
    let rests = |node: &NodeFact| {
        let ours = lease.is_some_and(|fact| {
            fact.lease.as_ref().map_or(true, |lease| {
                let owners = &mut node.cordon.owners.keys();
                owners.all(|owner| *owner == lease.spec.skyhook.name)
            })
        });
        ours && node.unschedulable
    };
    NodeCell {
        ready: node.is_some_and(|node| node.ready),
        control_plane: node.is_some_and(NodeFact::is_control_plane),
        owned: node.is_some_and(|node| !node.cordon.owners.is_empty()),
        rests: node.is_some_and(rests),
        lease: lease.map(|fact| match &fact.lease {
            Err(_) => LeaseBits::Unreadable,
            Ok(lease) => LeaseBits::Readable {
                skyhook: names.number(&lease.spec.skyhook.name),
                skyhook_uid: names.number(&lease.spec.skyhook.uid),
                compartment: names.number(&lease.spec.compartment),
                order: lease.spec.order,
                waits: lease.spec.granted.is_none() && lease.spec.batch.is_none(),
                bits: Bits::of(lease),
            },
        }),
        creating: view.inflight.creating(name).is_some(),
        taint: node.map_or_else(TaintBits::default, |node| taint::bits(view, node)),
        has_drain_marks: node.is_some_and(leftovers::has_drain_marks),
        told: node.map_or_else(Vec::new, |node| {
            let told = leftovers::told(node).into_iter();
            told.map(|skyhook| names.number(skyhook)).collect()
        }),
        refers: refers(node, lease)
            .map(|revision| names.number(revision))
            .collect(),
        ..NodeCell::default()
    }
}

/// Names of the revisions that a lease and the records on its Node refer to.
fn refers<'a>(
    node: Option<&'a NodeFact>,
    lease: Option<&'a LeaseFact>,
) -> impl Iterator<Item = &'a str> {
    let lease = lease.and_then(|fact| fact.lease.as_deref().ok());
    let lease = lease.map(|lease| lease.spec.revision.as_str());
    let records = node.into_iter().flat_map(|node| node.records.values());
    let stamps = records.filter_map(|record| record.stamp.as_ref());
    let recorded = stamps.map(|stamp| stamp.revision.as_str());
    lease.into_iter().chain(recorded)
}

fn cells(
    view: &View<'_>,
    order: &Order<'_>,
    cache: &mut Cache,
    row: &mut Row<'_>,
    open: &mut [u32],
    gate: u32,
    names: &BTreeMap<u32, &str>,
) {
    let skyhook = row.skyhook;
    let budget = skyhook.spec.interruption_budget.as_ref();
    // The compartments of a policy have no such option: a node that is not Ready would take a slot in each of them.
    let is_paced = !skyhook.spec.deployment_policy.is_empty();
    let counts_unavailable = !is_paced && budget.is_some_and(|budget| budget.count_unavailable);
    let holds_up = holds_up(skyhook);
    let column = &mut row.column;
    for (name, id) in order {
        let (cell, node) = (&mut column.cells[id.index()], &cache.nodes[id.index()]);
        let key = CellKey {
            touched: node.touched,
            row: column.version,
            earlier: open[id.index()],
            gate,
            pending: node.pending,
        };
        if cell.key != key || cell.until.is_some_and(|at| at <= view.now.mono) {
            let held = Held {
                earlier: names.get(&key.earlier).copied(),
                gate: names.get(&key.gate).copied(),
                pending: key.pending,
            };
            let node = view.picture.nodes().get(*name);
            *cell = node.map_or_else(Cell::default, |node| judge(view, skyhook, node, held));
            let record = node.map(|node| node.record(&skyhook.name));
            let record = record.filter(|_| cell.standing.is_some());
            cell.shape = record.map_or(0, |record| column.shapes.number(record));
            cell.after_order = node_order::after(view, &skyhook.name, name, node);
            cell.key = key;
            cache.counted.cells += 1;
        }
        row.until = row.until.into_iter().chain(cell.until).min();
        row.next_order = row.next_order.max(cell.after_order);
        let Some(standing) = &cell.standing else {
            // The spec is not valid, so nobody can tell whether the node is complete. Later Skyhooks wait until the
            // spec is corrected.
            if cell.parked && holds_up && open[id.index()] == 0 {
                open[id.index()] = column.id;
            }
            continue;
        };
        row.selected.nodes += 1;
        let idle = node.lease.is_none() && !node.creating;
        row.selected.unavailable += usize::from(counts_unavailable && !node.ready && idle);
        if *standing != Standing::Complete && holds_up && open[id.index()] == 0 {
            open[id.index()] = column.id;
        }
    }
}

fn judge(view: &View<'_>, skyhook: &SkyhookFact, node: &NodeFact, held: Held<'_>) -> Cell {
    let checked: Option<&Checked> = skyhook.checked.as_deref().ok();
    let checked = checked.filter(|_| skyhook.selects(node));
    let backoff = view.clocks.backoff(&node.name, &skyhook.name);
    let backoff = backoff.map(|backoff| backoff.until);
    let left_alone = standing::left_alone_until(view, node);
    // Batches ask this for leased nodes also when the Skyhook no longer selects them.
    let own = skyhook.checked.as_deref().ok();
    let own = own.filter(|_| view.picture.lease_of(&node.name, &skyhook.uid).is_some());
    let complete = own.is_some_and(|checked| {
        let work = standing::outstanding(view.picture, skyhook, checked, node);
        work.is_ok_and(|work| revision::is_idle(&work))
    });
    Cell {
        complete,
        required: skyhook.requires(node),
        not_host: skyhook.leaves_out(node),
        standing: checked.map(|checked| standing::judge(view, skyhook, checked, node, held)),
        parked: skyhook.is_parked_over(node),
        lost: checked.is_some() && reapply::lost(view, skyhook, node).is_some(),
        foreign: checked
            .is_some_and(|checked| takeover::of(view, skyhook, checked, node).is_some()),
        started: cordon::is_started(node, &skyhook.name),
        in_midst: node_order::is_in_midst(node.record(&skyhook.name)),
        matches: checked.map_or_else(Matches::default, |_| {
            let policy = pacing::policy(view, skyhook);
            policy.map_or_else(Matches::default, |policy| {
                policy.matches(|one| node.labels.meet(one))
            })
        }),
        until: backoff.into_iter().chain(left_alone).min(),
        print: print(view, skyhook, node),
        ..Cell::default()
    }
}

/// A digest of the facts about the Node and its lease that the Skyhook's status uses.
fn print(view: &View<'_>, skyhook: &SkyhookFact, node: &NodeFact) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.name.hash(&mut hasher);
    skyhook.leaves_out(node).hash(&mut hasher);
    if let Some(record) = node.records.get(&skyhook.name) {
        record.digest.hash(&mut hasher);
        let stamp = record.stamp.as_ref();
        stamp.is_some_and(Stamp::has_result).hash(&mut hasher);
        stamp.is_some().hash(&mut hasher);
        node_order::picked(record).hash(&mut hasher);
    }
    let reason = node.annotations.get(&names::reason(&skyhook.name));
    reason.hash(&mut hasher);
    if let Some(fact) = view.picture.lease_of(&node.name, &skyhook.uid)
        && let Ok(lease) = &fact.lease
    {
        lease.spec.granted.is_some().hash(&mut hasher);
        lease.spec.revision.hash(&mut hasher);
        lease.spec.drain.state.hash(&mut hasher);
        for blocker in lease
            .spec
            .drain
            .blockers
            .iter()
            .filter(|one| one.cause.is_some())
        {
            (&blocker.pod, blocker.cause, &blocker.reason).hash(&mut hasher);
        }
        node_order::created(fact).hash(&mut hasher);
    }
    hasher.finish()
}
