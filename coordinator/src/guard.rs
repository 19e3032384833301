//! Safety rules as predicates over the picture and one effect: checked before every write, and the properties that
//! tests hold the planner to.

use skyhook_crds::lease::DrainState;
use skyhook_crds::lease::protocol;
use skyhook_crds::names;

use crate::config::Settings;
use crate::effect::{Effect, NodePatch};
use crate::facts::LeaseFact;
use crate::index::Index;
use crate::plan::admit::{self, Ledger};

/// A safety rule that an effect would break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("a lease was to be granted that the lease watch has not delivered in this version")]
    GrantUnseen,
    #[error("a lease was to be granted beyond the budget")]
    GrantBeyondBudget,
    #[error("a lease was to be granted to a node that is not stamped with it")]
    GrantUnstamped,
    #[error("a second lease was to be created for a node")]
    SecondLease,
    #[error("Drained was to be taken back from an agent that runs")]
    RetractRunning,
    #[error("Drained was to be set on a node that is not cordoned for this lease")]
    DrainedUncordoned,
    #[error("a lease was to be withdrawn that an agent has accepted")]
    WithdrawAccepted,
    #[error("a lease was to be released without its result on the node")]
    ReleaseUnrecorded,
    #[error("a node was to be uncordoned that somebody else cordoned, or that is still owned")]
    UncordonNotOurs,
}

/// Says which rule the effect would break, if any.
pub fn check(index: &Index, settings: &Settings, effect: &Effect) -> Result<(), Broken> {
    match effect {
        Effect::ReserveLease { node, .. } => {
            let taken = index.leases.contains_key(node) || index.creating.contains_key(node);
            if taken {
                Err(Broken::SecondLease)
            } else {
                Ok(())
            }
        }
        Effect::GrantLease { node, at } => {
            let fact =
                seen(index, node, &at.uid, &at.resource_version).ok_or(Broken::GrantUnseen)?;
            grant(index, settings, fact)
        }
        Effect::SetDrain { node, at, drain } => {
            let fact =
                seen(index, node, &at.uid, &at.resource_version).ok_or(Broken::GrantUnseen)?;
            let Ok(lease) = &fact.lease else {
                return Err(Broken::GrantUnseen);
            };
            if lease.spec.drain.state == DrainState::Drained
                && drain.state != DrainState::Drained
                && !protocol::may_retract_drained(lease)
            {
                return Err(Broken::RetractRunning);
            }
            let cordoned = index.nodes.get(node).is_some_and(|node| {
                node.unschedulable
                    && node.cordon.owners.get(&lease.spec.skyhook.name) == Some(&fact.uid)
            });
            if drain.state == DrainState::Drained && !cordoned {
                Err(Broken::DrainedUncordoned)
            } else {
                Ok(())
            }
        }
        Effect::WithdrawLease { node, at, .. } => {
            match seen(index, node, &at.uid, &at.resource_version).map(|fact| &fact.lease) {
                Some(Ok(lease)) if !protocol::is_accepted(lease) => Ok(()),
                _ => Err(Broken::WithdrawAccepted),
            }
        }
        Effect::ReleaseLease { node, at } => {
            let recorded = seen(index, node, &at.uid, &at.resource_version).is_some_and(|fact| {
                let Ok(lease) = &fact.lease else { return false };
                let Some(node) = index.nodes.get(node) else {
                    return false;
                };
                let record = node.record(&lease.spec.skyhook.name);
                let facts = crate::plan::advance::facts(node, &record);
                protocol::release_reason(lease, Some(&facts)).is_some()
            });
            if recorded {
                Ok(())
            } else {
                Err(Broken::ReleaseUnrecorded)
            }
        }
        Effect::PatchNode { node, patch, .. } => uncordon(index, node, patch),
        Effect::AdoptSkyhook { .. }
        | Effect::ReleaseSkyhook { .. }
        | Effect::WriteSkyhookStatus { .. }
        | Effect::CreateRevision { .. }
        | Effect::RenumberRevision { .. }
        | Effect::PruneRevision { .. }
        | Effect::StopLease { .. }
        | Effect::ReleaseLeaseOfGoneNode { .. } => Ok(()),
    }
}

/// The lease, if the watch delivered that very version of it.
fn seen<'a>(
    index: &'a Index,
    node: &str,
    uid: &str,
    resource_version: &str,
) -> Option<&'a LeaseFact> {
    index
        .leases
        .get(node)
        .filter(|fact| fact.uid == uid && fact.resource_version == resource_version)
}

fn grant(index: &Index, settings: &Settings, fact: &LeaseFact) -> Result<(), Broken> {
    let Ok(lease) = &fact.lease else {
        return Err(Broken::GrantUnseen);
    };
    let skyhook = index
        .skyhooks
        .get(&lease.spec.skyhook.name)
        .ok_or(Broken::GrantBeyondBudget)?;
    let selected = index
        .nodes
        .values()
        .filter(|node| skyhook.selects(node))
        .count();
    let ledger = Ledger::new(index, settings.max_concurrent_nodes);
    if ledger.used(skyhook) > admit::slots(skyhook, selected)
        || ledger.refusal(skyhook, selected, 0).is_some()
    {
        return Err(Broken::GrantBeyondBudget);
    }
    let stamped = index.nodes.get(&fact.node).is_some_and(|node| {
        node.uid == lease.spec.node.uid
            && node
                .record(&skyhook.name)
                .stamp
                .is_some_and(|stamp| stamp.granted == fact.uid)
    });
    if stamped {
        Ok(())
    } else {
        Err(Broken::GrantUnstamped)
    }
}

fn uncordon(index: &Index, node: &str, patch: &NodePatch) -> Result<(), Broken> {
    if patch.unschedulable != Some(false) {
        return Ok(());
    }
    let Some(node) = index.nodes.get(node) else {
        return Err(Broken::UncordonNotOurs);
    };
    // Given back only by the last owner, in the write that ends the ownership, to what was there before.
    let ends = patch.annotations.get(names::CORDON_OWNERS) == Some(&None);
    if ends && !node.cordon.owners.is_empty() && !node.cordon.was_unschedulable {
        Ok(())
    } else {
        Err(Broken::UncordonNotOurs)
    }
}
