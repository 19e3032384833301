//! Safety rules: predicates over the picture and one effect. They are checked before every write, and tests check every
//! plan against them.

mod batches;
pub(crate) mod places;
mod taints;

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::lease::protocol;
use skyhook_crds::lease::{DrainState, InterruptionLease};
use skyhook_crds::names;
use skyhook_crds::policy::CheckedPolicy;

use crate::effect::{AsOf, Effect, NodePatch};
use crate::facts::{LeaseFact, NodeFact, SkyhookFact};
use crate::index::Index;
use crate::plan::{cordon, drain, lease};
use crate::settings::Settings;
use places::Places;

/// A safety rule that an effect would break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("a lease was to be granted that the lease watch has not delivered in this version")]
    GrantUnseen,
    #[error("a lease was to be granted beyond the budget")]
    GrantBeyondBudget,
    #[error("a lease was to be granted to a node that is not stamped with it")]
    GrantUnstamped,
    #[error(
        "a drain was to be changed on a lease that the lease watch has not delivered in this version"
    )]
    DrainUnseen,
    #[error("a lease was to be given up whose Skyhook is neither deleted nor disabled")]
    AbandonWanted,
    #[error("a second lease was to be created for a node")]
    SecondLease,
    #[error("Drained was to be taken back from an agent that runs")]
    RetractRunning,
    #[error("Drained was to be set on a node that is not cordoned for this lease")]
    DrainedUncordoned,
    #[error("Drained was to be set on a control-plane node while another one is not Ready")]
    DrainedControlPlane,
    #[error("Drained was to be set although the last list of pods shows one that has to leave")]
    DrainedNotEmpty,
    #[error("a pause was to end with the node said to be drained since before it")]
    ResumedDrained,
    #[error("a pod was to be evicted from a node that is not cordoned for this lease")]
    EvictUncordoned,
    #[error("a lease was to be withdrawn that an agent has accepted")]
    WithdrawAccepted,
    #[error("a lease was to be released without its result on the node")]
    ReleaseUnrecorded,
    #[error("a revision was to be deleted that a lease or the stamp of a Node names")]
    RevisionNeeded,
    #[error("a record was to be written over that a newer version wrote")]
    NewerRecord,
    #[error(
        "a lease was to be granted without the question whether its batch may work on the node"
    )]
    GrantUnasked,
    #[error("a lease was to be granted in a compartment whose batches do not allow it")]
    GrantOutsideBatch,
    #[error("a lease was to be granted while an earlier batch of its compartment is worked on")]
    GrantBeforeBatchEnded,
    #[error("a lease was to be granted with the SKYHOOK_NODE_ORDER of another lease")]
    GrantOrderTaken,
    #[error("a lease was to be released before its failure was kept in the state of the roll-out")]
    ReleaseUnkept,
    #[error("the state of a roll-out was to be written over that is not understood")]
    NewerRollout,
    #[error("the state of a roll-out was to lose members or failures without a judgement")]
    RolloutLost,
    #[error("a record of another implementation was to be removed before ours is there")]
    TakeoverLoses,
    #[error("a taint was to be changed that is not ours, or the order of taints was to change")]
    TaintNotOurs,
    #[error(
        "the runtime-required taint was to be taken off a node that a required Skyhook is not complete on"
    )]
    UntaintEarly,
    #[error("something was to be written on a new node before its taint")]
    FirstMark,
    #[error("a node was to be uncordoned that somebody else cordoned, or that is still owned")]
    UncordonNotOurs,
}

/// True when the patch would overwrite a record that a newer version of Skyhook wrote.
fn is_over_newer(index: &Index, node: &str, patch: &NodePatch) -> bool {
    let records = index.picture.nodes().get(node).map(|node| &node.records);
    records.into_iter().flatten().any(|(skyhook, record)| {
        let newer = record.stamp.as_ref().is_some_and(|stamp| stamp.is_newer());
        let ours = [names::stamp(skyhook), names::node_state(skyhook)];
        newer && ours.iter().any(|key| patch.annotations.contains_key(key))
    })
}

/// True when the patch removes NodeWright's record of a Skyhook, and ours is neither there nor in the patch.
fn loses_record(index: &Index, node: &str, patch: &NodePatch) -> bool {
    let Some(node) = index.picture.nodes().get(node) else {
        return false;
    };
    node.records.keys().any(|skyhook| {
        let ours = names::node_state(skyhook);
        let goes = patch.annotations.get(&names::successor(&ours)) == Some(&None);
        let set = patch.annotations.get(&ours);
        let is_there = set.map_or(node.annotations.contains_key(&ours), Option::is_some);
        goes && !is_there
    })
}

/// Says which rule the effect would break, if any.
pub fn check(index: &Index, settings: &Settings, effect: &Effect) -> Result<(), Broken> {
    check_counted(index, &mut Counts::default(), settings, effect)
}

/// Does the same as [`check`], for many effects of one pass. `counts` keeps the counts between the calls.
pub fn check_counted(
    index: &Index,
    counts: &mut Counts,
    settings: &Settings,
    effect: &Effect,
) -> Result<(), Broken> {
    let require = |holds: bool, rule: Broken| if holds { Ok(()) } else { Err(rule) };
    match effect {
        Effect::ReserveLease { node, .. } => {
            let taken = index.picture.leases().contains_key(node)
                || index.inflight.creating(node).is_some();
            require(!taken, Broken::SecondLease)
        }
        Effect::GrantLease { node, at, batch } => {
            let (fact, lease) = seen(index, node, at).ok_or(Broken::GrantUnseen)?;
            let asked = batch.as_ref().map(|check| &check.batch);
            require(asked == lease.spec.batch.as_ref(), Broken::GrantUnasked)?;
            grant(index, counts, settings, fact, lease)
        }
        Effect::SetDrain { node, at, drain } => {
            let (fact, lease) = seen(index, node, at).ok_or(Broken::DrainUnseen)?;
            set_drain(index, settings, fact, lease, drain.state)
        }
        Effect::WithdrawLease { node, at, .. } => {
            let open =
                seen(index, node, at).is_some_and(|(_, lease)| !protocol::is_accepted(lease));
            require(open, Broken::WithdrawAccepted)
        }
        Effect::ReleaseLease { node, at } => release(index, node, at),
        Effect::ReleaseLeaseOfGoneNode { node, .. } => {
            require(batches::is_kept(index, node), Broken::ReleaseUnkept)
        }
        Effect::WriteRollout { name, at, spec, .. } => {
            batches::write(index, name, at.is_some(), spec)
        }
        Effect::AbandonLease { node, at } => {
            let given_up =
                seen(index, node, at).is_some_and(|(_, lease)| index.picture.is_given_up(lease));
            require(given_up, Broken::AbandonWanted)?;
            require(batches::is_kept(index, node), Broken::ReleaseUnkept)
        }
        Effect::EvictPod {
            node, lease_uid, ..
        } => {
            let held = index
                .picture
                .leases()
                .get(node)
                .is_some_and(|fact| fact.uid == *lease_uid && is_cordoned(index, fact));
            require(held, Broken::EvictUncordoned)
        }
        Effect::PatchNode {
            node, patch, why, ..
        } => {
            require(!is_over_newer(index, node, patch), Broken::NewerRecord)?;
            require(!loses_record(index, node, patch), Broken::TakeoverLoses)?;
            taints::check(index, settings, node, patch, why)?;
            uncordon(index, node, patch)
        }
        Effect::PruneRevision { name, .. } => {
            require(!is_referred_to(index, name), Broken::RevisionNeeded)
        }
        Effect::StopLease {
            node,
            at,
            stop: None,
            ..
        } => {
            let offers =
                seen(index, node, at).is_some_and(|(_, lease)| protocol::offers_drained(lease));
            require(!offers, Broken::ResumedDrained)
        }
        Effect::AdoptSkyhook { .. }
        | Effect::StopLease { .. }
        | Effect::SurveyPods { .. }
        | Effect::ReleaseSkyhook { .. }
        | Effect::WriteSkyhookStatus { .. }
        | Effect::CreateRevision { .. }
        | Effect::RenumberRevision { .. }
        | Effect::DisownRevision { .. }
        | Effect::DeleteRollout { .. }
        | Effect::LookForLeases { .. }
        | Effect::LookForState { .. } => Ok(()),
    }
}

/// True when a lease or the stamp of a Node names the revision.
fn is_referred_to(index: &Index, revision: &str) -> bool {
    let leases = index.picture.leases().values();
    let mut leases = leases.filter_map(|fact| fact.lease.as_ref().ok());
    let records = index.picture.nodes().values();
    let records = records.flat_map(|node| node.records.values());
    let mut stamps = records.filter_map(|record| record.stamp.as_ref());
    leases.any(|lease| lease.spec.revision == revision)
        || stamps.any(|stamp| stamp.revision == revision)
}

fn release(index: &Index, node: &str, at: &AsOf) -> Result<(), Broken> {
    let recorded = seen(index, node, at).is_some_and(|(_, lease)| is_recorded(index, node, lease));
    let forced = index.picture.leases().get(node).is_some_and(|fact| {
        fact.uid == at.uid && fact.resource_version == at.resource_version && fact.forced
    });
    if !recorded && !forced {
        Err(Broken::ReleaseUnrecorded)
    } else if batches::is_kept(index, node) {
        Ok(())
    } else {
        Err(Broken::ReleaseUnkept)
    }
}

/// The lease, if the watch delivered that very version of it and it can be decoded.
fn seen<'a>(
    index: &'a Index,
    node: &str,
    at: &AsOf,
) -> Option<(&'a LeaseFact, &'a InterruptionLease)> {
    let fact = index.picture.leases().get(node)?;
    let same = fact.uid == at.uid && fact.resource_version == at.resource_version;
    let lease = fact.lease.as_ref().ok()?;
    same.then_some((fact, lease))
}

fn set_drain(
    index: &Index,
    settings: &Settings,
    fact: &LeaseFact,
    lease: &InterruptionLease,
    state: DrainState,
) -> Result<(), Broken> {
    let retracts = lease.spec.drain.state == DrainState::Drained && state != DrainState::Drained;
    if retracts && !protocol::may_retract_drained(lease) {
        Err(Broken::RetractRunning)
    } else if state == DrainState::Drained && !is_cordoned(index, fact) {
        Err(Broken::DrainedUncordoned)
    } else if state == DrainState::Drained && is_control_plane_weakened(index, &fact.node) {
        Err(Broken::DrainedControlPlane)
    } else if state == DrainState::Drained && shows_a_pod(index, settings, fact, lease) {
        Err(Broken::DrainedNotEmpty)
    } else {
        Ok(())
    }
}

/// True when the last list of the node's pods shows one that has to leave. A newer list may have come since the drain
/// was decided on.
fn shows_a_pod(
    index: &Index,
    settings: &Settings,
    fact: &LeaseFact,
    lease: &InterruptionLease,
) -> bool {
    let watch = index.clocks.drain(&fact.node, &fact.uid);
    let node = index.picture.nodes().get(&fact.node);
    let skyhook = index.picture.skyhooks().get(&lease.spec.skyhook.name);
    let checked = skyhook.and_then(|skyhook| skyhook.checked.as_deref().ok());
    let known = watch.zip(node).zip(checked);
    known.is_some_and(|((watch, node), checked)| drain::shows_a_pod(watch, checked, settings, node))
}

/// True when the node is a control-plane node and another control-plane node is not Ready.
fn is_control_plane_weakened(index: &Index, node: &str) -> bool {
    let is_meant = index
        .picture
        .nodes()
        .get(node)
        .is_some_and(NodeFact::is_control_plane);
    let away = |other: &NodeFact| other.name != node && other.is_control_plane() && !other.ready;
    is_meant && index.picture.nodes().values().any(away)
}

/// True when the lease's node is cordoned for that very lease.
fn is_cordoned(index: &Index, fact: &LeaseFact) -> bool {
    fact.lease.as_ref().is_ok_and(|lease| {
        index
            .picture
            .nodes()
            .get(&fact.node)
            .is_some_and(|node| cordon::is_held(node, &lease.spec.skyhook.name, &fact.uid))
    })
}

fn is_recorded(index: &Index, node: &str, lease: &InterruptionLease) -> bool {
    let Some(node) = index.picture.nodes().get(node) else {
        return false;
    };
    let record = node.record(&lease.spec.skyhook.name);
    protocol::release_reason(lease, Some(&lease::facts(node, record))).is_some()
}

fn grant(
    index: &Index,
    counts: &mut Counts,
    settings: &Settings,
    fact: &LeaseFact,
    lease: &InterruptionLease,
) -> Result<(), Broken> {
    let skyhook = index
        .picture
        .skyhooks()
        .get(&lease.spec.skyhook.name)
        .ok_or(Broken::GrantBeyondBudget)?;
    if !counts.fit(index, settings, skyhook, &fact.node) {
        return Err(Broken::GrantBeyondBudget);
    }
    batches::grant(index, counts, skyhook, fact, lease)?;
    let tally = index.picture.tally();
    let is_shared = |order| tally.with_order(&skyhook.uid, order) > 1;
    if lease.spec.batch.is_none() && lease.spec.order.is_some_and(is_shared) {
        return Err(Broken::GrantOrderTaken);
    }
    let stamped = index.picture.nodes().get(&fact.node).is_some_and(|node| {
        node.uid == lease.spec.node.uid
            && node
                .record(&skyhook.name)
                .stamp
                .as_ref()
                .is_some_and(|stamp| stamp.granted == fact.uid)
    });
    if stamped {
        Ok(())
    } else {
        Err(Broken::GrantUnstamped)
    }
}

/// The guard's own counts. They do not use the planner's ledger, so that a mistake there is not repeated here. Leases
/// are taken from the tally of the picture. Nodes are counted once for each pass.
#[derive(Debug, Default)]
pub struct Counts(Option<Nodes>);

#[derive(Debug, Default)]
struct Nodes {
    /// Selected nodes, by UID of the Skyhook.
    selected: BTreeMap<String, usize>,
    control_planes: BTreeSet<String>,
    /// By UID of the Skyhook.
    places: BTreeMap<String, Places>,
}

impl Counts {
    /// The nodes and leases of a Skyhook in the compartments of its policy.
    fn places(&mut self, index: &Index, skyhook: &SkyhookFact, policy: &CheckedPolicy) -> &Places {
        let nodes = self.0.get_or_insert_with(|| Nodes::new(index));
        let all = &mut nodes.places;
        all.retain(|_, places| places.is_current(index));
        let new = || Places::new(index, skyhook, policy);
        all.entry(skyhook.uid.clone()).or_insert_with(new)
    }

    /// A new pass was made: nodes have to be counted again.
    pub fn a_pass_was_made(&mut self) {
        self.0 = None;
    }

    /// True when the leases of a picture fit the budgets that a lease of `skyhook` on `node` falls under.
    fn fit(
        &mut self,
        index: &Index,
        settings: &Settings,
        skyhook: &SkyhookFact,
        node: &str,
    ) -> bool {
        let nodes = self.0.get_or_insert_with(|| Nodes::new(index));
        let leases = index.picture.leases();
        let unseen = index.inflight.creates();
        let unseen = unseen.filter(|(node, _)| !leases.contains_key(*node));
        let unseen: Vec<&str> = unseen.map(|(_, spec)| spec.skyhook.uid.as_str()).collect();
        let ours = unseen.iter().filter(|uid| **uid == skyhook.uid).count();
        let used = index.picture.tally().counting_against(&skyhook.uid) + ours;
        let selected = nodes.selected.get(&skyhook.uid);
        let selected = selected.copied().unwrap_or_default();
        let budget = skyhook.spec.interruption_budget.as_ref();
        let slots = budget.map_or(selected, |budget| budget.slots(selected));
        let cap = settings.max_concurrent_nodes.unwrap_or(usize::MAX);
        let leased = nodes.control_planes.iter();
        let leased = leased.filter(|name| leases.contains_key(*name)).count();
        let alone = !nodes.control_planes.contains(node) || leased == 1;
        // A policy's compartments are counted by `batches::grant`.
        let fits = used <= slots || !skyhook.spec.deployment_policy.is_empty();
        fits && leases.len() + unseen.len() <= cap && alone
    }
}

impl Nodes {
    fn new(index: &Index) -> Self {
        let skyhooks = index.picture.skyhooks().values();
        let selected = skyhooks.map(|skyhook| {
            let nodes = index.picture.nodes().values();
            let selected = nodes.filter(|node| skyhook.selects(node)).count();
            (skyhook.uid.clone(), selected)
        });
        let nodes = index.picture.nodes().values();
        let control_planes = nodes.filter(|node| node.is_control_plane());
        Self {
            selected: selected.collect(),
            control_planes: control_planes.map(|node| node.name.clone()).collect(),
            places: BTreeMap::new(),
        }
    }
}

fn uncordon(index: &Index, node: &str, patch: &NodePatch) -> Result<(), Broken> {
    if patch.unschedulable != Some(false) {
        return Ok(());
    }
    let Some(node) = index.picture.nodes().get(node) else {
        return Err(Broken::UncordonNotOurs);
    };
    // A write may uncordon a node only if it removes the last owner, and if the node was not cordoned before.
    // A node that was cordoned when its taint was taken off counts as cordoned before.
    let left = patch.cordons_left(node);
    let before = &node.cordon;
    if !before.owners.is_empty() && left.owners.is_empty() && !before.was_unschedulable {
        Ok(())
    } else {
        Err(Broken::UncordonNotOurs)
    }
}
