//! Decides which nodes get a lease now, by the budgets and by the order of the nodes.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::lease::{BatchRef, InterruptionLeaseSpec, NodeRef, SkyhookRef};

use super::ledger::Ledger;
use super::pacing::Place;
use super::reason::{Reason, ReasonCode};
use super::scan::{Order, Row};
use super::standing::{self, Standing};
use super::{Draft, View, node_order};
use crate::effect::{Effect, Target};
use crate::facts::{Goal, LeaseFact, NodeFact, SkyhookFact};
use crate::picture::NodeId;

/// Reserves leases for eligible nodes, and notes why the others wait. Nodes are visited only while there are free
/// slots.
pub(super) fn nodes<'a>(
    view: &View<'a>,
    rows: &mut [Row<'a>],
    order: &Order<'_>,
    ledger: &mut Ledger<'a>,
    draft: &mut Draft<'_>,
) {
    for row in rows {
        if row.skyhook.checked.is_err() {
            continue;
        }
        row.closed = inactive(view, row.skyhook).map(Standing::Waiting);
        if let Some(batches) = row.batches.take() {
            // Nodes of compartments with batches are leased by the state of the roll-out alone.
            let paced = row.pacing.all();
            let paced = paced.filter(|(place, _)| row.pacing.pace(*place).is_some());
            let closed: BTreeMap<Place, Standing> = paced
                .map(|(place, _)| (place, batches.standing(row, place)))
                .collect();
            row.closed_at.extend(closed);
            let parked = batches.parks().cloned().map(Standing::Blocked);
            row.closed = row.closed.take().or(parked);
            row.batches = Some(batches);
        }
        // Members of open batches come first: a batch that is begun ends before anything else is begun.
        members(view, row, order, ledger, draft);
        for rank in Rank::ALL {
            for (name, id) in order {
                if row.closed.is_some() || row.is_closed() {
                    break;
                }
                if rank.holds(view, row, name, *id)
                    && let Some(node) = view.picture.nodes().get(*name)
                {
                    admit(view, row, node, *id, ledger, draft);
                }
            }
        }
        keep_cordons(view, row, order, ledger);
    }
}

/// Reserves leases for the members of open batches.
fn members<'a>(
    view: &View<'a>,
    row: &mut Row<'a>,
    order: &Order<'_>,
    ledger: &mut Ledger<'a>,
    draft: &mut Draft<'_>,
) {
    let reservable = match &row.batches {
        Some(batches) if row.closed.is_none() => &batches.reservable,
        Some(_) | None => return,
    };
    // In the order in which they were picked.
    let picked = reservable.iter().map(|(name, at)| (*at, name.clone()));
    let picked: BTreeSet<((i64, i64), String)> = picked.collect();
    for (_, name) in picked {
        let at = order.binary_search_by(|(one, _)| (*one).cmp(&name));
        let id = at.ok().map(|at| order[at].1);
        if let (Some(id), Some(node)) = (id, view.picture.nodes().get(&name)) {
            admit(view, row, node, id, ledger, draft);
        }
    }
}

/// Decides which waiting nodes keep their cordon, of those on which work has begun. In a compartment with batches these are
/// the members of the open batch. In any other, as many as the budget has free slots keep it, the first by name. The
/// others are uncordoned until their turn comes. There are such others when the budget is lowered during a roll-out.
fn keep_cordons(view: &View<'_>, row: &mut Row<'_>, order: &Order<'_>, ledger: &Ledger<'_>) {
    let places = row.pacing.all();
    let mut room: BTreeMap<Place, usize> = places
        .map(|(place, _)| (place, ledger.room(row.skyhook, place)))
        .filter(|(_, room)| *room > 0)
        .collect();
    let state = row.batches.as_ref().and_then(|all| all.state.clone());
    let states = state.iter().flat_map(|state| state.compartments.values());
    let open = states.filter(|state| state.is_open());
    let members: BTreeSet<&str> = open
        .flat_map(|state| state.members.iter().map(String::as_str))
        .collect();
    for (name, id) in order {
        if room.is_empty() {
            break;
        }
        if !row.cell(*id).is_some_and(|cell| cell.started) {
            continue;
        }
        let Some(Standing::Waiting(reason)) = row.standing(*id) else {
            continue;
        };
        if !reason.code.ends_by_itself() {
            continue;
        }
        let place = row.pacing.place(*id);
        if row.pacing.pace(place).is_some() {
            let node = view.picture.nodes().get(*name);
            if !node.is_some_and(|node| members.contains(node.member.as_str())) {
                continue;
            }
        }
        let message = format!("{} (stays cordoned)", reason.message);
        let kept = Standing::Waiting(Reason::new(reason.code, message));
        let Some(left) = room.get_mut(&place) else {
            continue;
        };
        *left -= 1;
        if *left == 0 {
            room.remove(&place);
        }
        row.admitted.insert(*id, kept);
        row.kept.insert(*id);
    }
}

/// Reserves a lease for one node, or notes why not.
fn admit<'a>(
    view: &View<'a>,
    row: &mut Row<'a>,
    node: &'a NodeFact,
    id: NodeId,
    ledger: &mut Ledger<'a>,
    draft: &mut Draft<'_>,
) {
    let batch = row
        .batches
        .as_ref()
        .and_then(|all| all.batch_of(&node.name));
    // A member of a batch takes a slot in the compartment of its batch, and in the one that it is in now.
    let places = match &batch {
        Some(batch) => row.pacing.places_of(&batch.compartment, id),
        None => [row.pacing.place(id); 2],
    };
    let mut refusals = places
        .iter()
        .filter_map(|place| ledger.refusal(row.skyhook, *place, 1));
    if let Some(reason) = refusals.next() {
        let waits = Standing::Waiting(reason);
        if batch.is_some() {
            row.admitted.insert(id, waits);
        } else {
            row.closed_at.insert(places[0], waits);
        }
        return;
    }
    let record = node.record(&row.skyhook.name);
    let order = node_order::kept(record).or(batch.as_ref().map(|batch| batch.order));
    let order = order.unwrap_or(row.next_order);
    let part = match batch {
        Some(batch) => Part {
            compartment: batch.compartment,
            batch: Some(batch.batch),
            order,
        },
        None => Part {
            compartment: row.pacing.name(places[0]).to_owned(),
            batch: None,
            order,
        },
    };
    let standing = if let Some(reason) = ledger.control_plane_refusal(node) {
        Standing::Waiting(reason)
    } else if reserve(view, row, node, part, draft) {
        row.next_order = row.next_order.max(order.saturating_add(1));
        ledger.reserve(node, row.skyhook, places);
        Standing::Leased
    } else if view
        .inflight
        .is_unsettled(&Target::Lease(node.name.clone()))
    {
        // The node is between two leases: the watch has not confirmed yet that the last one is gone.
        Standing::Leased
    } else {
        let message = if is_behind(view, row.skyhook, node) {
            "the node has a result of a newer revision than is known here: the watch of the Skyhook is behind"
        } else {
            "that the node's last lease is gone is not confirmed yet"
        };
        Standing::Waiting(Reason::new(ReasonCode::Settling, message))
    };
    row.admitted.insert(id, standing);
}

/// The order in which nodes get leases: first the nodes on which work has begun, then the others, last the
/// coordinator's own node. Nodes of the same rank are ordered by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    Started,
    Others,
    Own,
}

impl Rank {
    const ALL: [Self; 3] = [Self::Started, Self::Others, Self::Own];

    fn holds(self, view: &View<'_>, row: &Row<'_>, name: &str, id: NodeId) -> bool {
        let cell = row.cell(id);
        let cell = cell.filter(|cell| cell.standing == Some(Standing::Eligible));
        cell.is_some_and(|cell| {
            if row.admitted.contains_key(&id) || row.closed_at.contains_key(&row.pacing.place(id)) {
                return false;
            }
            let rank = if view.settings.node_name.as_deref() == Some(name) {
                Self::Own
            } else if cell.goes_on() {
                Self::Started
            } else {
                Self::Others
            };
            rank == self
        })
    }
}

/// Why no node at all gets a lease for the Skyhook now; `None` if nodes may get one.
pub(super) fn inactive(view: &View<'_>, skyhook: &SkyhookFact) -> Option<Reason> {
    if skyhook.is_paused() {
        return Some(Reason::new(ReasonCode::Paused, "the Skyhook is paused"));
    }
    if skyhook.is_disabled() {
        return Some(Reason::new(ReasonCode::Disabled, "the Skyhook is disabled"));
    }
    if skyhook.goal() == Goal::Nothing {
        return Some(Reason::new(
            ReasonCode::Deleted,
            "the Skyhook is being deleted",
        ));
    }
    if !skyhook.is_adopted() {
        let message = "the Skyhook's finalizer is being written";
        return Some(Reason::new(ReasonCode::Settling, message));
    }
    let revision = skyhook.checked.as_ref().ok()?;
    (!view.picture.revisions().contains_key(&revision.revision))
        .then(|| Reason::new(ReasonCode::Settling, "the revision is being written"))
}

/// True when the Node carries a result of a revision that is newer than `revision`: the picture of the Skyhook is older
/// than the picture of the Node.
#[must_use]
pub fn is_overtaken(view: &View<'_>, node: &NodeFact, skyhook: &str, revision: &str) -> bool {
    let number = |name: &str| {
        view.picture
            .revisions()
            .get(name)
            .map(|revision| revision.number)
    };
    let recorded = node
        .record(skyhook)
        .stamp
        .as_ref()
        .and_then(|stamp| number(&stamp.revision));
    recorded
        .zip(number(revision))
        .is_some_and(|(recorded, wanted)| recorded > wanted)
}

pub(super) fn is_behind(view: &View<'_>, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
    let checked = skyhook.checked.as_ref();
    checked.is_ok_and(|checked| is_overtaken(view, node, &skyhook.name, &checked.revision))
}

/// The part of a roll-out that a lease is for.
struct Part {
    /// That of its batch, or the one that its node is in now.
    compartment: String,
    batch: Option<BatchRef>,
    /// `SKYHOOK_NODE_ORDER`.
    order: i64,
}

fn reserve(
    view: &View<'_>,
    row: &Row<'_>,
    node: &NodeFact,
    part: Part,
    draft: &mut Draft<'_>,
) -> bool {
    let skyhook = row.skyhook;
    let Ok(checked) = &skyhook.checked else {
        return false;
    };
    if is_behind(view, skyhook, node) {
        return false;
    }
    let record = node.record(&skyhook.name);
    let Ok(installed) = record.states_for(&skyhook.name, checked) else {
        return false;
    };
    let generation = skyhook.generation;
    draft.push(Effect::ReserveLease {
        node: node.name.clone(),
        spec: Box::new(InterruptionLeaseSpec {
            // Who does not know the record's form does not know what to do with its entries.
            format: record
                .stamp
                .as_ref()
                .map_or(0, |stamp| i32::from(stamp.format > 0)),
            node: NodeRef {
                name: node.name.clone(),
                uid: node.uid.clone(),
            },
            skyhook: SkyhookRef {
                name: skyhook.name.clone(),
                uid: skyhook.uid.clone(),
                generation,
            },
            revision: checked.revision.clone(),
            installed: installed.into_owned(),
            stamp: record.stamp.clone(),
            interrupts_left: standing::owed(skyhook, record, checked),
            compartment: part.compartment,
            order: Some(part.order),
            batch: part.batch,
            ..InterruptionLeaseSpec::default()
        }),
    }) && !view.picture.leases().contains_key(&node.name)
}

/// Reserved leases that do not fit the budgets any more and have to be withdrawn. The youngest leases are withdrawn
/// first.
pub(super) fn excess<'a>(
    view: &View<'a>,
    rows: &[Row<'_>],
    order: &Order<'_>,
    ledger: &Ledger<'_>,
) -> Vec<&'a LeaseFact> {
    let mut excess = control_plane_excess(view, ledger);
    let mut over: BTreeMap<&str, (&Row<'_>, Vec<usize>)> = rows
        .iter()
        .map(|row| (row, ledger.over_budget(row.skyhook)))
        .filter(|(_, over)| over.iter().any(|over| *over > 0))
        .map(|(row, over)| (row.skyhook.uid.as_str(), (row, over)))
        .collect();
    if over.is_empty() && ledger.over_cap() == 0 {
        return excess;
    }
    let is_meant = |fact: &&LeaseFact| !excess.iter().any(|other| other.uid == fact.uid);
    let all = view.picture.leases().values().filter(is_meant);
    let mut others = Vec::new();
    for fact in youngest_reserved(all) {
        let row = fact.skyhook_uid().and_then(|uid| over.get_mut(uid));
        let is_too_many = row.is_some_and(|(row, over)| {
            let places = places_of(row, order, fact);
            let is_over = places.iter().any(|place| over.get(place.0) > Some(&0));
            for place in places
                .into_iter()
                .filter(|_| is_over)
                .collect::<BTreeSet<_>>()
            {
                if let Some(over) = over.get_mut(place.0) {
                    *over = over.saturating_sub(1);
                }
            }
            is_over
        });
        if is_too_many {
            excess.push(fact);
        } else {
            others.push(fact);
        }
    }
    // Leases that are withdrawn for a Skyhook's own budget make room in the cluster-wide budget as well.
    let more = ledger.over_cap().saturating_sub(excess.len());
    excess.extend(others.into_iter().take(more));
    excess
}

/// The places in which a lease takes a slot.
fn places_of(row: &Row<'_>, order: &Order<'_>, fact: &LeaseFact) -> [Place; 2] {
    let compartment = fact
        .lease
        .as_ref()
        .map(|lease| lease.spec.compartment.as_str());
    let compartment = compartment.unwrap_or_default();
    match order.binary_search_by(|(name, _)| (*name).cmp(&fact.node)) {
        Ok(at) => row.pacing.places_of(compartment, order[at].1),
        Err(_) => row.pacing.places_without_node(compartment),
    }
}

/// Reserved leases of control-plane nodes that have to be withdrawn, when several of these nodes have leases: all of
/// them if another one is granted already, else all but the oldest.
fn control_plane_excess<'a>(view: &View<'a>, ledger: &Ledger<'_>) -> Vec<&'a LeaseFact> {
    let leased = ledger.leased_control_plane();
    if leased.len() < 2 {
        return Vec::new();
    }
    let facts = leased
        .iter()
        .filter_map(|node| view.picture.leases().get(*node));
    let reserved = youngest_reserved(facts);
    let is_any_granted = leased.len() > reserved.len();
    let keep = usize::from(!is_any_granted);
    let excess = reserved.len().saturating_sub(keep);
    reserved.into_iter().take(excess).collect()
}

/// Selects the leases that are not granted yet, youngest first.
fn youngest_reserved<'a>(leases: impl Iterator<Item = &'a LeaseFact>) -> Vec<&'a LeaseFact> {
    let is_reserved = |fact: &&LeaseFact| {
        let granted = fact.lease.as_ref().map(|lease| &lease.spec.granted);
        granted.is_ok_and(Option::is_none)
    };
    let mut reserved: Vec<&LeaseFact> = leases.filter(is_reserved).collect();
    reserved.sort_by_cached_key(|fact| {
        let lease = fact.lease.as_ref().ok();
        let created = lease.and_then(|lease| lease.metadata.creation_timestamp.clone());
        std::cmp::Reverse((created.map(|time| time.0), fact.uid.clone()))
    });
    reserved
}
