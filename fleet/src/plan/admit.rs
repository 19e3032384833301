//! Which nodes get a lease now: the budgets, and the order within them.

use std::collections::BTreeMap;

use skyhook_crds::lease::{InterruptionLeaseSpec, NodeRef, SkyhookRef};

use super::ledger::Ledger;
use super::reason::{Reason, Word};
use super::standing::{Standing, Standings};
use super::{Draft, View};
use crate::effect::{Effect, Target};
use crate::facts::{LeaseFact, NodeFact, SkyhookFact};

/// The compartment of a Skyhook without a DeploymentPolicy.
pub const DEFAULT_COMPARTMENT: &str = "__default__";

/// Slots that a Skyhook's own budget gives for its selected nodes.
#[must_use]
pub fn slots(skyhook: &SkyhookFact, selected: usize) -> usize {
    skyhook
        .spec
        .interruption_budget
        .as_ref()
        .map_or(selected, |budget| budget.slots(selected))
}

/// Reserves leases for eligible nodes, and says of the rest why they wait.
pub(super) fn nodes<'a>(
    view: &View<'a>,
    skyhooks: &[&'a SkyhookFact],
    ledger: &mut Ledger<'a>,
    mut standings: Standings,
    draft: &mut Draft<'_>,
) -> Standings {
    for skyhook in skyhooks {
        let Some(nodes) = standings.get_mut(&skyhook.name) else {
            continue;
        };
        for name in candidates(view, skyhook, nodes) {
            let Some(node) = view.picture.nodes().get(&name) else {
                continue;
            };
            let refusal = inactive(view, skyhook)
                .or_else(|| ledger.refusal(skyhook, 1))
                .or_else(|| ledger.control_plane_refusal(node));
            let standing = match refusal {
                Some(reason) => Standing::Waiting(reason),
                None if reserve(view, skyhook, node, draft) => {
                    ledger.reserve(node, skyhook);
                    Standing::Leased
                }
                // Between two leases: the one before is on its way out.
                None if view.inflight.is_unsettled(&Target::Lease(name.clone())) => {
                    Standing::Leased
                }
                None => Standing::Waiting(Reason::new(
                    Word::Settling,
                    "an earlier write is on its way",
                )),
            };
            nodes.insert(name, standing);
        }
    }
    standings
}

/// Eligible nodes in the order in which they are taken: those that were started, then by name, the coordinator's own
/// last of all.
fn candidates(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    nodes: &BTreeMap<String, Standing>,
) -> Vec<String> {
    let own = view.settings.node_name.as_ref();
    let rank = |name: &String| {
        let node = view.picture.nodes().get(name);
        let started = node.is_some_and(|node| node.cordon.owners.contains_key(&skyhook.name));
        (Some(name) == own, !started)
    };
    let eligible = nodes
        .iter()
        .filter(|(_, standing)| matches!(standing, Standing::Eligible(_)));
    let mut names: Vec<((bool, bool), String)> = eligible
        .map(|(name, _)| (rank(name), name.clone()))
        .collect();
    names.sort();
    names.into_iter().map(|(_, name)| name).collect()
}

/// Why a Skyhook gives no leases at all now.
fn inactive(view: &View<'_>, skyhook: &SkyhookFact) -> Option<Reason> {
    if skyhook.is_paused() {
        return Some(Reason::new(Word::Paused, "the Skyhook is paused"));
    }
    if skyhook.is_disabled() {
        return Some(Reason::new(Word::Disabled, "the Skyhook is disabled"));
    }
    if skyhook.deleting {
        return Some(Reason::new(Word::Deleted, "the Skyhook is being deleted"));
    }
    let revision = skyhook.checked.as_ref().ok()?;
    (!view.picture.revisions().contains_key(&revision.revision))
        .then(|| Reason::new(Word::Settling, "the revision is being written"))
}

/// True when the Node carries a result of a revision that came later: the picture of the Skyhook is older than the Node's.
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

fn reserve(view: &View<'_>, skyhook: &SkyhookFact, node: &NodeFact, draft: &mut Draft<'_>) -> bool {
    let Ok(checked) = &skyhook.checked else {
        return false;
    };
    if is_overtaken(view, node, &skyhook.name, &checked.revision) {
        return false;
    }
    let record = node.record(&skyhook.name);
    let Ok(installed) = &record.states else {
        return false;
    };
    let generation = skyhook.generation;
    draft.push(Effect::ReserveLease {
        node: node.name.clone(),
        spec: Box::new(InterruptionLeaseSpec {
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
            installed: installed.clone(),
            stamp: record.stamp.clone(),
            compartment: DEFAULT_COMPARTMENT.to_owned(),
            ..InterruptionLeaseSpec::default()
        }),
    }) && !view.picture.leases().contains_key(&node.name)
}

/// Leases of a picture that were reserved and do not fit any more, youngest first: these are withdrawn.
#[must_use]
pub fn excess<'a>(
    view: &View<'a>,
    skyhooks: &[&SkyhookFact],
    ledger: &Ledger<'_>,
) -> Vec<&'a LeaseFact> {
    let mut excess = control_plane_excess(view, ledger);
    let mut over: BTreeMap<&str, usize> = skyhooks
        .iter()
        .map(|skyhook| (skyhook.uid.as_str(), ledger.over_budget(skyhook)))
        .filter(|(_, over)| *over > 0)
        .collect();
    if over.is_empty() && ledger.over_cap() == 0 {
        return excess;
    }
    let is_meant = |fact: &&LeaseFact| !excess.iter().any(|other| other.uid == fact.uid);
    let all = view.picture.leases().values().filter(is_meant);
    let mut others = Vec::new();
    for fact in youngest_reserved(all) {
        let left = fact.skyhook_uid().and_then(|uid| over.get_mut(uid));
        match left.filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                excess.push(fact);
            }
            None => others.push(fact),
        }
    }
    // What goes for a Skyhook's own budget makes room under the cap as well.
    let more = ledger.over_cap().saturating_sub(excess.len());
    excess.extend(others.into_iter().take(more));
    excess
}

/// Of the control plane, every reserved node but the one that came first.
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

/// Those of some leases that are not granted yet, youngest first.
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
