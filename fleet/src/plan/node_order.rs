//! `SKYHOOK_NODE_ORDER`: the number that steps get to know of their node, which counts the nodes that the Skyhook has
//! picked.
//!
//! A node gets the next number when it is picked and keeps it, over any number of leases, until it is complete. No number
//! is given twice: it stays in the stamp of a node that is complete, and the next one is greater than all that nodes
//! have. Members of batches get theirs with the batch, by one write of the roll-out's state. Without a state, what the
//! status says is a lower bound, so that the number of a Node that was deleted is not given again.
//!
//! Somebody who empties the record of a node gives its number up.
//!
//! Caveat: two coordinators that both believe to lead may give the same number to two nodes, except in batches. Then only
//! one of the two leases is granted while both exist.

use std::collections::BTreeMap;

use skyhook_crds::installed::Stamp;
use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::rollout::reset::{Asked, asked_of_order};
use skyhook_crds::skyhook::{NodeOrderShown, SkyhookStatus};

use super::View;
use super::cache::{Cache, LeaseBits};
use super::pacing::Pacing;
use super::rollouts::Batches;
use super::scan::{Order, Row};
use crate::facts::{LeaseFact, NodeFact, Record};
use crate::picture::NodeId;

/// What a lease that waits for its grant may do with its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Claim {
    /// No other lease has the number.
    #[default]
    Alone,
    /// Another lease has it as well, and is withdrawn.
    First,
    /// Another lease has it, and keeps it.
    Taken,
}

/// A lease with a number: its node, and whether it waits for its grant.
type Holder<'a> = (&'a str, NodeId, bool);

/// True when somebody has emptied the record of a node.
pub(super) fn is_given_up(record: &Record) -> bool {
    record.is_edited() && record.states.as_ref().is_ok_and(BTreeMap::is_empty)
}

fn stamp(record: &Record) -> Option<&Stamp> {
    record.stamp.as_ref().filter(|_| !is_given_up(record))
}

/// The number that a node keeps under its next lease.
pub(super) fn kept(record: &Record) -> Option<i64> {
    stamp(record)?.kept_order()
}

/// When a node was first picked, if it has not been complete since.
pub(super) fn picked(record: &Record) -> Option<&str> {
    let picked = stamp(record)?.picked.as_str();
    (!picked.is_empty()).then_some(picked)
}

/// True when work on the node has begun and is to go on.
pub(super) fn is_in_midst(record: &Record) -> bool {
    stamp(record).is_some_and(Stamp::is_in_midst)
}

/// One more than the greatest number that a node has: 0 if it has none.
pub(super) fn after(view: &View<'_>, skyhook: &str, name: &str, node: Option<&NodeFact>) -> i64 {
    let of = |spec: &InterruptionLeaseSpec| spec.order.filter(|_| spec.skyhook.name == skyhook);
    let lease = view.picture.leases().get(name);
    let lease = lease.and_then(|fact| fact.lease.as_deref().ok());
    let numbers = [
        lease.and_then(|lease| of(&lease.spec)),
        view.inflight.create(name).and_then(of),
        node.and_then(|node| stamp(node.record(skyhook))?.order),
    ];
    let greatest = numbers.into_iter().flatten().max();
    greatest.map_or(0, |order| order.saturating_add(1))
}

/// Settles which number the next node of each Skyhook gets, once it is decided which batches are opened.
pub(super) fn settle(rows: &mut [Row<'_>]) {
    for row in rows {
        let batches = row.batches.as_ref();
        let of_batches = batches.and_then(|batches| batches.next_order);
        let is_stored = batches.is_none_or(Batches::is_stored);
        let shown = row.skyhook.status.as_ref();
        let shown = shown.map_or(0, |status| status.node_order_offset);
        let given = row.next_order;
        row.next_order = given.max(of_batches.unwrap_or(shown));
        // A state that is made anew goes on with the number that the status shows. So the numbers of a first batch are not
        // shown before its state is stored: otherwise the number would grow with every write of the status until then.
        row.shown_order = if is_stored {
            row.next_order
        } else {
            given.max(shown)
        };
    }
}

/// Says of each lease that waits for its grant and shares its number with another one whose number that is. Numbers of
/// batches are given once, so their leases are not looked at.
pub(super) fn claims(view: &View<'_>, order: &Order<'_>, cache: &Cache) -> BTreeMap<NodeId, Claim> {
    let mut claims = BTreeMap::new();
    let bits = order.iter().filter_map(|(name, id)| {
        let LeaseBits::Readable {
            skyhook_uid,
            order: Some(number),
            waits,
            ..
        } = cache.nodes[id.index()].lease?
        else {
            return None;
        };
        Some(((skyhook_uid, number), (*name, *id, waits)))
    });
    let bits: Vec<_> = bits.collect();
    if !bits.iter().any(|(_, (_, _, waits))| *waits) {
        return claims;
    }
    let mut holders: BTreeMap<(u32, i64), Vec<Holder<'_>>> = BTreeMap::new();
    for (number, lease) in bits {
        holders.entry(number).or_default().push(lease);
    }
    for holders in holders.into_values().filter(|all| all.len() > 1) {
        let first = holders
            .iter()
            .min_by_key(|(name, _, waits)| (*waits, age(view, name)));
        let first = first.map(|(_, id, _)| *id);
        for (_, id, _) in holders.iter().filter(|(_, _, waits)| *waits) {
            let claim = if first == Some(*id) {
                Claim::First
            } else {
                Claim::Taken
            };
            claims.insert(*id, claim);
        }
    }
    claims
}

/// Orders leases, the oldest first.
fn age<'a>(view: &View<'a>, node: &str) -> Option<(i64, &'a str)> {
    let fact = view.picture.leases().get(node)?;
    Some((created(fact).unwrap_or(i64::MAX), &fact.uid))
}

/// When a lease was created, in Unix seconds.
pub(super) fn created(fact: &LeaseFact) -> Option<i64> {
    let lease = fact.lease.as_ref().ok()?;
    let created = lease.metadata.creation_timestamp.as_ref()?;
    Some(created.0.as_second())
}

/// What the Skyhook's status shows. An edit that is not obeyed yet stays as it is.
pub(super) fn shown(row: &Row<'_>, current: &SkyhookStatus) -> (i64, Option<NodeOrderShown>) {
    let kept = (current.node_order_offset, current.node_order_shown);
    let Some(batches) = &row.batches else {
        return if matches!(row.pacing, Pacing::Unknown) {
            kept
        } else {
            (row.shown_order, None)
        };
    };
    let Some(state) = &batches.state else {
        return kept;
    };
    match asked_of_order(current, state.order_run) {
        Asked::Reset | Asked::StateIsOld => kept,
        Asked::Nothing | Asked::Publish => {
            let shown = NodeOrderShown {
                run: state.order_run,
                offset: row.shown_order,
            };
            (row.shown_order, Some(shown))
        }
    }
}
