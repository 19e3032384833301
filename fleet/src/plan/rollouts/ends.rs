//! How the nodes and leases of a Skyhook have ended, as far as the picture shows it.

use std::collections::BTreeMap;

use skyhook_crds::lease::protocol::{self, ResultDuty};
use skyhook_crds::lease::{InterruptionLease, InterruptionLeaseSpec};
use skyhook_crds::policy::CompartmentId;
use skyhook_crds::stage::State;

use crate::batches::{BatchRef, End, Lease, Member};
use crate::facts::{LeaseFact, NodeFact};
use crate::picture::NodeId;
use crate::plan::ledger::Ledger;
use crate::plan::pacing::Pacing;
use crate::plan::reason::ReasonCode;
use crate::plan::scan::{Order, Row};
use crate::plan::standing::Standing;
use crate::plan::{self, View, admit, verdict};

/// A package that was restarted so often under its lease has failed for good, as far as batches go. It is tried further,
/// unless it gives up before.
const RESTARTS: i32 = 3;

/// The leases of a Skyhook, and those that are being created for it.
pub(super) fn leases<'a>(view: &View<'a>, row: &Row<'_>, order: &Order<'_>) -> Vec<Lease<'a>> {
    let uid = row.skyhook.uid.as_str();
    let number = |node: &str| {
        let at = order.binary_search_by(|(name, _)| (*name).cmp(node)).ok()?;
        Some(order[at].1)
    };
    let present = |node: &str| present(row, number(node)?);
    let facts = view.picture.leases().values();
    let facts = facts.filter(|fact| fact.skyhook_uid() == Some(uid));
    let mut all: Vec<Lease<'_>> = facts
        .filter_map(|fact| {
            let lease = fact.lease.as_deref().ok()?;
            let end = end(view, row, number(&fact.node), fact, lease);
            let node = view.picture.nodes().get(&fact.node);
            Some(Lease {
                node: &fact.node,
                id: &fact.member,
                compartment: &lease.spec.compartment,
                present: present(&fact.node),
                batch: batch(&lease.spec),
                end,
                is_leaving: end == End::Complete && is_released_next(node, row, lease),
            })
        })
        .collect();
    let creates = view.inflight.creates();
    let creates = creates.filter(|(node, spec)| {
        spec.skyhook.uid == uid && !view.picture.leases().contains_key(*node)
    });
    all.extend(creates.filter_map(|(name, spec)| {
        let node = view.picture.nodes().get(name);
        let node = node.filter(|node| node.uid == spec.node.uid)?;
        Some(Lease {
            node: &node.name,
            id: &node.member,
            compartment: &spec.compartment,
            present: present(name),
            batch: batch(spec),
            end: End::Not,
            is_leaving: false,
        })
    }));
    all
}

fn batch(spec: &InterruptionLeaseSpec) -> Option<BatchRef<'_>> {
    let batch = spec.batch.as_ref()?;
    Some(BatchRef {
        state: &batch.state,
        number: batch.number,
    })
}

fn present(row: &Row<'_>, node: NodeId) -> Option<CompartmentId> {
    match &row.pacing {
        Pacing::Policy(paced) => paced.present(node),
        Pacing::Budget | Pacing::Unknown => None,
    }
}

/// How a lease has ended.
fn end(
    view: &View<'_>,
    row: &Row<'_>,
    id: Option<NodeId>,
    fact: &LeaseFact,
    lease: &InterruptionLease,
) -> End {
    let node = view.picture.nodes().get(&fact.node);
    let node = node.filter(|node| node.uid == lease.spec.node.uid);
    let Some(node) = node else {
        return failed_if(protocol::has_begun(lease));
    };
    if id
        .and_then(|id| row.cell(id))
        .is_some_and(|cell| cell.complete)
    {
        return End::Complete;
    }
    let checked = row.skyhook.checked.as_ref();
    let is_wanted = checked.is_ok_and(|checked| checked.revision == lease.spec.revision);
    let packages = lease.status.iter().flat_map(|status| &status.packages);
    let mut failing = packages.filter(|(_, one)| one.is_failing());
    let mut status = lease.status.iter();
    let has_given_up = status.any(|status| status.parked.is_some());
    let has_failed = is_wanted
        && (has_given_up
            || failing.any(|(key, one)| restarts(lease, key, one.restarts) >= RESTARTS));
    let is_away = protocol::is_accepted(lease)
        && verdict::lost_at(view, node).is_some_and(|at| at <= view.now.mono);
    let now = view.now.mono;
    let is_abandoned = plan::lease::abandoned_at(view, fact, lease).is_some_and(|at| at <= now);
    failed_if(
        has_failed || is_away || ((fact.forced || is_abandoned) && protocol::has_begun(lease)),
    )
}

/// How often a package was restarted under the lease. The number that the agent reports goes on from the record on the Node,
/// and the first attempt after a failure in that record counts as a restart. A smaller number was begun anew.
fn restarts(lease: &InterruptionLease, key: &str, reported: i32) -> i32 {
    let Some(before) = lease.spec.installed.get(key) else {
        return reported;
    };
    if reported < before.restarts {
        return reported;
    }
    let first = i32::from(before.state == State::Erroring);
    let earlier = before.restarts.saturating_add(first);
    reported.saturating_sub(earlier).max(0)
}

/// True when the lease is released next: no agent has accepted it, or its result is on the Node or can be written there
/// now. An agent that works, or that has ended and waits for a boot, may be on a host that is away for long.
fn is_released_next(node: Option<&NodeFact>, row: &Row<'_>, lease: &InterruptionLease) -> bool {
    let Some(node) = node.filter(|node| node.uid == lease.spec.node.uid) else {
        return false;
    };
    let facts = plan::lease::facts(node, node.record(&row.skyhook.name));
    protocol::release_reason(lease, Some(&facts)).is_some()
        || protocol::result_duty(lease, &facts) == ResultDuty::Take
}

const fn failed_if(failed: bool) -> End {
    if failed { End::Failed } else { End::Not }
}

/// True for a control-plane node that may not be leased for a long time: another one is not Ready, or another one is
/// leased, and not by a batch of this Skyhook that goes on to its next member when that one has ended.
fn is_held_back(ledger: &Ledger<'_>, node: &NodeFact, leases: &[Lease<'_>]) -> bool {
    let goes_on = |other: &str| {
        let lease = leases.iter().find(|lease| lease.node == other);
        lease.is_some_and(|lease| lease.end != End::Failed)
    };
    let taken = ledger.control_plane_taken(node);
    ledger.control_plane_not_ready(node).is_some() || taken.is_some_and(|other| !goes_on(other))
}

/// True when the record on the Node says that a package was left in the middle. A node whose pods did not leave has no
/// precedence: they may not leave the next time either.
fn is_in_mid_run(row: &Row<'_>, node: &NodeFact) -> bool {
    let record = node.record(&row.skyhook.name);
    let stamp = record.stamp.as_ref();
    let has_timed_out = stamp.is_some_and(|stamp| !stamp.drain_timed_out.is_empty());
    let states = record.states.as_ref();
    let is_left =
        states.is_ok_and(|states| states.values().any(|one| one.state != State::Complete));
    is_left && !has_timed_out
}

/// True when no lease can bring the node further.
fn is_through(standing: &Standing) -> bool {
    match standing {
        Standing::Complete => true,
        Standing::Blocked(reason) => reason.code == ReasonCode::DependencyUninstalled,
        Standing::Leased | Standing::Waiting(_) | Standing::Eligible => false,
    }
}

/// The selected nodes, in the order of names.
pub(super) fn members<'a>(
    view: &View<'a>,
    row: &Row<'_>,
    order: &Order<'_>,
    ledger: &Ledger<'_>,
    leases: &[Lease<'_>],
) -> Vec<Member<'a>> {
    let ends: BTreeMap<&str, End> = leases.iter().map(|one| (one.id, one.end)).collect();
    let mut nodes = view.picture.nodes().iter().peekable();
    let mut all = Vec::new();
    // Both are in the order of names, and every Node is in `order`.
    for (name, id) in order {
        let Some((_, node)) = nodes.next_if(|(node, _)| node == name) else {
            continue;
        };
        let Some((standing, goes_on)) = row
            .cell(*id)
            .and_then(|cell| Some((cell.standing.as_ref()?, cell.goes_on())))
        else {
            continue;
        };
        let end = match ends.get(node.member.as_str()) {
            Some(end) => *end,
            None if is_through(standing) => End::Complete,
            None => End::Not,
        };
        let is_own = view.settings.node_name.as_deref() == Some(*name);
        let is_begun = goes_on || is_in_mid_run(row, node);
        let class = if is_own { 2 } else { u8::from(!is_begun) };
        all.push(Member {
            node: &node.name,
            id: &node.member,
            compartment: present(row, *id).unwrap_or_default(),
            end,
            is_eligible: *standing == Standing::Eligible
                && !admit::is_behind(view, row.skyhook, node)
                && !is_held_back(ledger, node, leases),
            rank: (class, node.created.map_or(0, |at| at.as_second())),
        });
    }
    all
}
