//! The rules about compartments and batches, counted anew from the picture: nothing of the planner's counts is used.

use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::Phase;
use skyhook_crds::lease::protocol;
use skyhook_crds::revision;
use skyhook_crds::rollout::RolloutStateSpec;

use super::{Broken, Counts};
use crate::facts::{Goal, LeaseFact, SkyhookFact};
use crate::index::Index;
use crate::plan::lease::facts;
use crate::plan::standing;

/// Checks the grant of a lease of a Skyhook with a policy: the ceilings of the lease's compartment and of its node's hold,
/// and where that compartment has batches the open batch has the node, and no lease of another one may still be granted.
pub(super) fn grant(
    index: &Index,
    counts: &mut Counts,
    skyhook: &SkyhookFact,
    fact: &LeaseFact,
    lease: &InterruptionLease,
) -> Result<(), Broken> {
    let name = &skyhook.spec.deployment_policy;
    if name.is_empty() {
        return Ok(());
    }
    let policy = index.picture.policies().get(name);
    let Some(policy) = policy.and_then(|policy| policy.checked.as_deref().ok()) else {
        return Err(Broken::GrantBeyondBudget);
    };
    let places = counts.places(index, skyhook, policy);
    let own = places.named(&lease.spec.compartment);
    let present = places.present(&fact.node);
    for of in [own, present].into_iter().flatten() {
        if places.used(index, skyhook, of) > places.ceiling(of) {
            return Err(Broken::GrantBeyondBudget);
        }
    }
    let barrier = own.or(present);
    let barrier = barrier.filter(|of| places.has_batches(*of));
    let Some(barrier) = barrier else {
        return Ok(());
    };
    let stored = index.picture.rollout_of(&skyhook.name);
    let spec = stored.and_then(|stored| stored.spec.as_deref().ok());
    let state = spec.and_then(|spec| spec.compartments.get(&lease.spec.compartment));
    let is_named = lease.spec.batch.as_ref().is_some_and(|batch| {
        stored.is_some_and(|stored| stored.uid == batch.state)
            && state.is_some_and(|state| state.may_lease(batch.number, &fact.member))
    });
    if !is_named {
        return Err(Broken::GrantOutsideBatch);
    }
    // Every lease of another batch that is certainly at work in the compartment holds this one up.
    let is_held_up = places.is_held_up(barrier, lease.spec.batch.as_ref());
    if is_held_up {
        Err(Broken::GrantBeforeBatchEnded)
    } else {
        Ok(())
    }
}

/// True when an agent works under a lease of a node that is there, and nothing of it has failed.
pub(super) fn is_at_work(index: &Index, fact: &LeaseFact, lease: &InterruptionLease) -> bool {
    let node = index.picture.nodes().get(&fact.node);
    let is_there = node.is_some_and(|node| node.uid == lease.spec.node.uid && node.ready);
    let packages = lease.status.iter().flat_map(|s| s.packages.values());
    let mut failing = packages.filter(|one| one.is_failing());
    let works = matches!(
        protocol::phase(lease),
        Some(Phase::Preparing | Phase::AwaitingDrain | Phase::Running)
    );
    works && is_there && !fact.forced && failing.next().is_none() && !is_done(index, lease)
}

/// True when the Node's record says that all of the Skyhook is there.
fn is_done(index: &Index, lease: &InterruptionLease) -> bool {
    let node = index.picture.nodes().get(&lease.spec.node.name);
    let node = node.filter(|node| node.uid == lease.spec.node.uid);
    let skyhook = index.picture.skyhooks().get(&lease.spec.skyhook.name);
    let checked = skyhook.and_then(|skyhook| Some((skyhook, skyhook.checked.as_deref().ok()?)));
    node.zip(checked).is_some_and(|(node, (skyhook, checked))| {
        standing::outstanding(&index.picture, skyhook, checked, node)
            .is_ok_and(|work| revision::is_idle(&work))
    })
}

/// True when the agent's result is on the Node: the agent has ended, though the lease as it was last seen does not say so.
fn has_result(index: &Index, fact: &LeaseFact, lease: &InterruptionLease) -> bool {
    let node = index.picture.nodes().get(&fact.node);
    let node = node.filter(|node| node.uid == lease.spec.node.uid);
    node.is_some_and(|node| {
        let record = node.record(&lease.spec.skyhook.name);
        facts(node, record).result_of == Some(fact.uid.as_str())
    })
}

/// True when nothing is lost with the lease of a node: its batch is known, and if an agent was at work under it, its failure
/// is kept, or its batch was judged.
pub(super) fn is_kept(index: &Index, node: &str) -> bool {
    let Some(fact) = index.picture.leases().get(node) else {
        return true;
    };
    let Ok(lease) = &fact.lease else {
        return true;
    };
    let skyhook = index.picture.skyhooks().get(&lease.spec.skyhook.name);
    let skyhook = skyhook.filter(|one| one.uid == lease.spec.skyhook.uid);
    let skyhook = skyhook.filter(|one| one.goal() != Goal::Nothing);
    let (Some(skyhook), Some(batch)) = (skyhook, &lease.spec.batch) else {
        return true;
    };
    let policy = index
        .picture
        .policies()
        .get(&skyhook.spec.deployment_policy);
    let policy = policy.and_then(|policy| policy.checked.as_deref().ok());
    // Without batches the state is of no use any more, and nothing is kept.
    let has_batches = policy.is_none_or(|policy| {
        let mut all = policy.compartments.iter().chain([&policy.default]);
        all.any(|one| one.pace.is_some())
    });
    // While the spec is not valid, it is not known whether the Skyhook has a policy.
    let is_unpaced = skyhook.spec.deployment_policy.is_empty() || !has_batches;
    if skyhook.checked.is_ok() && is_unpaced {
        return true;
    }
    if index.clocks.is_state_gone(&skyhook.name, &batch.state) {
        return true;
    }
    let Some(stored) = index.picture.rollout_of(&skyhook.name) else {
        return false;
    };
    let Ok(spec) = &stored.spec else {
        return false;
    };
    if batch.state != stored.uid {
        return false;
    }
    let mut open = spec.compartments.values();
    let open = open.find(|state| state.batch == batch.number);
    let is_lost = open.is_some_and(|state| {
        let position = state.position(&fact.member);
        position.is_some_and(|at| protocol::has_begun(lease) && !state.has_failed(at))
            && !is_done(index, lease)
            && !has_result(index, fact, lease)
    });
    batch.number < spec.next_batch && !is_lost
}

/// Checks a write of the state of a roll-out.
pub(super) fn write(
    index: &Index,
    name: &str,
    replaces: bool,
    spec: &RolloutStateSpec,
) -> Result<(), Broken> {
    let fact = index.picture.rollout_of(name);
    let before = fact.map(|fact| fact.spec.as_deref());
    match before {
        Some(Err(_)) => Err(Broken::NewerRollout),
        Some(Ok(_)) if !replaces => Err(Broken::NewerRollout),
        Some(Ok(before)) if !is_lawful(before, spec) => Err(Broken::RolloutLost),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// True when no open batch loses a failure, or a member, without being closed.
fn is_lawful(before: &RolloutStateSpec, after: &RolloutStateSpec) -> bool {
    let is_kept = |name: &String| {
        let (Some(old), Some(new)) = (before.compartments.get(name), after.compartments.get(name))
        else {
            return true;
        };
        let same_batch = old.batch == new.batch && old.is_open();
        let keeps_failures = old.failed.iter().all(|one| new.failed.contains(one));
        !same_batch || (old.members == new.members && keeps_failures)
    };
    after.next_batch >= before.next_batch && before.compartments.keys().all(is_kept)
}
