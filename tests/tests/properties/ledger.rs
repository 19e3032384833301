//! What the planner's ledger answers, counted anew for every question: slow, and too simple to be wrong.

use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::skyhook::Sequencing;
use skyhook_crds::stage::{Stage, State};
use skyhook_fleet::facts::{LeaseFact, NodeFact, SkyhookFact};
use skyhook_fleet::index::Index;
use skyhook_fleet::plan::reason::ReasonCode;

/// Slots in use for a Skyhook.
pub(super) fn used(index: &Index, skyhook: &SkyhookFact) -> usize {
    let counts = |fact: &&LeaseFact| fact.skyhook_uid().is_none_or(|uid| uid == skyhook.uid);
    let unseen = unseen(index).filter(|uid| *uid == skyhook.uid).count();
    index.picture().leases().values().filter(counts).count() + unseen
}

/// Slots in use over all Skyhooks.
pub(super) fn used_in_all(index: &Index) -> usize {
    index.picture().leases().len() + unseen(index).count()
}

fn unseen(index: &Index) -> impl Iterator<Item = &str> {
    let unseen =
        |(node, _): &(&str, &InterruptionLeaseSpec)| !index.picture().leases().contains_key(*node);
    let creates = index.inflight().creates();
    creates
        .filter(unseen)
        .map(|(_, spec)| spec.skyhook.uid.as_str())
}

fn is_taken(index: &Index, node: &NodeFact) -> bool {
    index.picture().leases().contains_key(&node.name)
        || index.inflight().creating(&node.name).is_some()
}

/// Why `extra` more leases of a Skyhook do not fit.
pub(super) fn refusal(
    index: &Index,
    cap: Option<usize>,
    skyhook: &SkyhookFact,
    extra: usize,
) -> Option<ReasonCode> {
    let nodes = || {
        index
            .picture()
            .nodes()
            .values()
            .filter(|node| skyhook.selects(node))
    };
    let budget = skyhook.spec.interruption_budget.as_ref();
    let slots = budget.map_or(nodes().count(), |budget| budget.slots(nodes().count()));
    let counts_unavailable = extra > 0 && budget.is_some_and(|budget| budget.count_unavailable);
    let is_unavailable = |node: &&NodeFact| !node.ready && !is_taken(index, node);
    let unavailable = nodes()
        .filter(|_| counts_unavailable)
        .filter(is_unavailable)
        .count();
    if slots == 0 && nodes().count() > 0 {
        Some(ReasonCode::BudgetZero)
    } else if used(index, skyhook) + unavailable + extra > slots {
        Some(ReasonCode::BudgetExhausted)
    } else {
        cap.filter(|cap| used_in_all(index) + extra > *cap)
            .map(|_| ReasonCode::ClusterBudgetExhausted)
    }
}

/// The Skyhook that has to be complete on all of its nodes before this one goes on, and certainly is not.
pub(super) fn gate<'a>(index: &'a Index, skyhook: &SkyhookFact) -> Option<&'a SkyhookFact> {
    let order = |one: &SkyhookFact| (one.spec.priority, one.name.clone());
    let nodes = || index.picture().nodes().values();
    let is_open = |one: &SkyhookFact, node: &NodeFact| {
        let installed = node.record(&one.name).states.as_ref();
        let is_there = installed.is_ok_and(|states| {
            let mut all = states.values();
            all.any(|one| (one.stage, one.state) == (Stage::Config, State::Complete))
        });
        one.is_parked_over(node) || (one.selects(node) && !is_there)
    };
    index.picture().skyhooks().values().find(|one| {
        one.spec.sequencing == Sequencing::All
            && order(one) < order(skyhook)
            && !one.is_disabled()
            && !one.deleting
            && nodes().any(|node| is_open(one, node))
    })
}

fn control_plane(index: &Index) -> impl Iterator<Item = &NodeFact> {
    index
        .picture()
        .nodes()
        .values()
        .filter(|node| node.is_control_plane())
}

/// True when the node belongs to the control plane and is not the only one of it with a lease.
pub(super) fn has_control_planes_too_many(index: &Index, name: &str) -> bool {
    let leased: Vec<&str> = control_plane(index)
        .filter(|node| index.picture().leases().contains_key(&node.name))
        .map(|node| node.name.as_str())
        .collect();
    leased.contains(&name) && leased.len() > 1
}

/// True when the control plane is why the node may not be taken.
pub(super) fn is_refused_for_control_plane(index: &Index, node: &NodeFact) -> bool {
    let hinders = |other: &NodeFact| is_taken(index, other) || !other.ready;
    node.is_control_plane()
        && control_plane(index).any(|other| other.name != node.name && hinders(other))
}
