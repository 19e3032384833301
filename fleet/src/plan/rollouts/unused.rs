//! Deletes states of roll-outs that are not needed any more.

use skyhook_crds::lease::InterruptionLeaseSpec;

use crate::effect::Effect;
use crate::facts::{RolloutFact, SkyhookFact};
use crate::plan::{Draft, View, version};

/// True when a lease of the Skyhook belongs to a batch.
pub(super) fn has_lease_in_batch(view: &View<'_>, skyhook: &SkyhookFact) -> bool {
    let mut leases = view.picture.leases().values();
    leases.any(|fact| {
        let lease = fact.lease.as_ref();
        lease.is_ok_and(|lease| lease.spec.skyhook.uid == skyhook.uid && lease.spec.batch.is_some())
    })
}

/// Deletes the state of a roll-out without batches, once no lease belongs to a batch any more.
pub(super) fn delete_unused(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    fact: &RolloutFact,
    draft: &mut Draft<'_>,
) {
    let is_of_batch =
        |spec: &InterruptionLeaseSpec| spec.skyhook.uid == skyhook.uid && spec.batch.is_some();
    let mut leases = view.picture.leases().values();
    let is_used = leases.any(|lease| {
        let lease = lease.lease.as_ref();
        lease.map_or(true, |lease| is_of_batch(&lease.spec))
    });
    let mut creates = view.inflight.creates();
    let is_used = is_used || creates.any(|(_, spec)| is_of_batch(spec));
    if !is_used && fact.spec.is_ok() {
        delete(fact, None, draft);
    }
}

pub(super) fn delete(fact: &RolloutFact, not_of: Option<&String>, draft: &mut Draft<'_>) {
    draft.push(Effect::DeleteRollout {
        name: fact.name.clone(),
        at: version(&fact.uid, &fact.resource_version),
        not_of: not_of.cloned(),
    });
}
