//! Says for every field of every fact whether a decision may depend on it. The functions name every field: the code
//! does not compile before a new field is decided on as well.

use crate::facts::{LeaseFact, NodeFact, PolicyFact, RevisionFact, RolloutFact, SkyhookFact};

/// True when a decision may depend on the difference between the two Nodes. A heartbeat of the kubelet changes only the
/// resource version. The resource version does not count: it is read only to guard a write, and every write is decided
/// anew on the version that is held then.
pub(super) fn node_differs(held: &NodeFact, new: &NodeFact) -> bool {
    let NodeFact {
        name: _,
        uid,
        // Computed from the UID.
        member: _,
        // It never changes while the UID stays.
        created: _,
        resource_version: _,
        labels,
        annotations,
        taints,
        unschedulable,
        boot_id,
        machine_id,
        ready,
        ready_since,
        conditions,
        // Computed from the annotations.
        records: _,
        cordon: _,
    } = new;
    held.uid != *uid
        || held.labels != *labels
        || held.annotations != *annotations
        || held.taints != *taints
        || held.unschedulable != *unschedulable
        || held.boot_id != *boot_id
        || held.machine_id != *machine_id
        || held.ready != *ready
        || held.ready_since != *ready_since
        || held.conditions != *conditions
}

/// True when a decision about a node or a lease may depend on the difference between the two Skyhooks. Finalizers and
/// the rest of the status do not count: every pass reads them, because there are few Skyhooks.
pub(super) fn skyhook_differs(held: &SkyhookFact, new: &SkyhookFact) -> bool {
    let SkyhookFact {
        name: _,
        uid,
        resource_version: _,
        generation,
        deleting,
        // Computed from the Nodes and the leases.
        deletion: _,
        // They count for the goal of a Skyhook that is being deleted.
        finalizers: _,
        annotations,
        spec,
        checked,
        // Computed from the spec.
        parked_over: _,
        selector: _,
        taint,
        status: _,
    } = new;
    held.uid != *uid
        || held.generation != *generation
        || held.deleting != *deleting
        || (*deleting && held.is_adopted() != new.is_adopted())
        || held.annotations != *annotations
        || held.spec != *spec
        || held.config_updates() != new.config_updates()
        // It is read even when the spec as a whole cannot be.
        || held.taint != *taint
        // `checked` is computed from the spec, the name and the UID. A spec that cannot be decoded is the exception:
        // `spec` has the default value then, and only `checked` says what is wrong.
        || held.checked.as_ref().err() != checked.as_ref().err()
}

/// True unless it is the same version of the same object.
pub(super) fn lease_differs(held: &LeaseFact, new: &LeaseFact) -> bool {
    let LeaseFact {
        node: _,
        uid,
        resource_version,
        // Objects with the same UID and resource version are equal.
        forced: _,
        member: _,
        lease: _,
    } = new;
    held.uid != *uid || held.resource_version != *resource_version
}

/// True unless it is the same version of the same object.
pub(super) fn revision_differs(held: &RevisionFact, new: &RevisionFact) -> bool {
    let RevisionFact {
        name: _,
        uid,
        resource_version,
        // Objects with the same UID and resource version are equal.
        skyhook: _,
        owner: _,
        goes_with_owner: _,
        number: _,
        data: _,
    } = new;
    held.uid != *uid || held.resource_version != *resource_version
}

/// True when a decision may depend on the difference between the two policies.
pub(super) fn policy_differs(held: &PolicyFact, new: &PolicyFact) -> bool {
    let PolicyFact {
        name: _,
        spec,
        // Computed from the spec.
        checked: _,
    } = new;
    held.spec != *spec
}

/// True unless it is the same version of the same object.
pub(super) fn rollout_differs(held: &RolloutFact, new: &RolloutFact) -> bool {
    let RolloutFact {
        name: _,
        uid,
        resource_version,
        // Objects with the same UID and resource version are equal.
        owner: _,
        goes_with_owner: _,
        spec: _,
    } = new;
    held.uid != *uid || held.resource_version != *resource_version
}
