//! How the nodes and leases of a Skyhook have ended, as far as the picture shows it.

use std::collections::BTreeMap;

use skyhook_crds::lease::protocol;
use skyhook_crds::lease::{InterruptionLease, InterruptionLeaseSpec, Phase};
use skyhook_crds::policy::CompartmentId;
use skyhook_crds::stage::State;

use crate::batches::{BatchRef, End, Lease, Member};
use crate::facts::{LeaseFact, NodeFact};
use crate::picture::NodeId;
use crate::plan::pacing::Pacing;
use crate::plan::scan::{Order, Row};
use crate::plan::standing::{self, Standing};
use crate::plan::{View, admit, verdict};

/// A package that has failed so often has failed for good, as far as batches go. It is tried further.
const RESTARTS: i32 = 3;

/// The leases of a Skyhook, and those that are being created for it.
pub(super) fn leases<'a>(view: &View<'a>, row: &Row<'_>, order: &Order<'_>) -> Vec<Lease<'a>> {
    let uid = row.skyhook.uid.as_str();
    let present = |node: &str| {
        let at = order.binary_search_by(|(name, _)| (*name).cmp(node)).ok()?;
        present(row, order[at].1)
    };
    let facts = view.picture.leases().values();
    let facts = facts.filter(|fact| fact.skyhook_uid() == Some(uid));
    let mut all: Vec<Lease<'_>> = facts
        .filter_map(|fact| {
            let lease = fact.lease.as_deref().ok()?;
            Some(Lease {
                node: &fact.node,
                id: &fact.member,
                compartment: &lease.spec.compartment,
                present: present(&fact.node),
                batch: batch(&lease.spec),
                end: end(view, row, fact, lease),
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
fn end(view: &View<'_>, row: &Row<'_>, fact: &LeaseFact, lease: &InterruptionLease) -> End {
    let node = view.picture.nodes().get(&fact.node);
    let node = node.filter(|node| node.uid == lease.spec.node.uid);
    let Some(node) = node else {
        return failed_if(has_begun(lease));
    };
    if is_complete(view, row, node) {
        return End::Complete;
    }
    let checked = row.skyhook.checked.as_ref();
    let is_wanted = checked.is_ok_and(|checked| checked.revision == lease.spec.revision);
    let packages = lease
        .status
        .iter()
        .flat_map(|status| status.packages.values());
    let mut failing = packages.filter(|one| one.state == State::Erroring);
    let has_failed = is_wanted && failing.any(|one| one.restarts >= RESTARTS);
    let is_away = protocol::is_accepted(lease)
        && verdict::parked_at(view, node).is_some_and(|at| at <= view.now.mono);
    failed_if(has_failed || is_away || (fact.forced && has_begun(lease)))
}

const fn failed_if(failed: bool) -> End {
    if failed { End::Failed } else { End::Not }
}

fn is_complete(view: &View<'_>, row: &Row<'_>, node: &NodeFact) -> bool {
    let checked = row.skyhook.checked.as_ref();
    checked.is_ok_and(|checked| {
        let work = standing::outstanding(view.picture, row.skyhook, checked, node);
        work.is_ok_and(|work| work.is_empty())
    })
}

/// True when a step may have run under the lease, and the agent has not ended.
fn has_begun(lease: &InterruptionLease) -> bool {
    let packages = lease
        .status
        .iter()
        .flat_map(|status| status.packages.values());
    let mut begun = packages.filter(|one| !one.pending && one.state != State::Complete);
    match protocol::phase(lease) {
        None | Some(Phase::Accepted | Phase::Complete | Phase::Stopped) => false,
        Some(Phase::Preparing | Phase::AwaitingDrain) => begun.next().is_some(),
        Some(Phase::Running | Phase::Erroring | Phase::Unknown) => true,
    }
}

/// The selected nodes, in the order of names.
pub(super) fn members<'a>(
    view: &View<'a>,
    row: &Row<'_>,
    order: &Order<'_>,
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
            None if *standing == Standing::Complete => End::Complete,
            None => End::Not,
        };
        let is_own = view.settings.node_name.as_deref() == Some(*name);
        let class = if is_own { 2 } else { u8::from(!goes_on) };
        all.push(Member {
            node: &node.name,
            id: &node.member,
            compartment: present(row, *id).unwrap_or_default(),
            end,
            is_eligible: *standing == Standing::Eligible
                && !admit::is_behind(view, row.skyhook, node),
            rank: (class, node.created.map_or(0, |at| at.as_second())),
        });
    }
    all
}
