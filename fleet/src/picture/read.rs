//! Of every field of every fact: whether a decision may depend on it. A field without an answer does not compile.

use crate::facts::{LeaseFact, NodeFact, RevisionFact, SkyhookFact};

/// True when decisions may depend on the difference. Heartbeats change the version alone, and versions are read only where
/// a write is decided anew, to guard it.
pub(super) fn node_differs(held: &NodeFact, new: &NodeFact) -> bool {
    let NodeFact {
        name: _,
        uid,
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
        // Made of annotations.
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

/// True when decisions about nodes and leases may depend on the difference. Finalizers and status are looked at in every
/// pass, since there are few Skyhooks.
pub(super) fn skyhook_differs(held: &SkyhookFact, new: &SkyhookFact) -> bool {
    let SkyhookFact {
        name: _,
        uid,
        resource_version: _,
        generation,
        deleting,
        finalizers: _,
        annotations,
        spec,
        checked,
        // Made of the spec.
        parked_over: _,
        status: _,
    } = new;
    held.uid != *uid
        || held.generation != *generation
        || held.deleting != *deleting
        || held.annotations != *annotations
        || held.spec != *spec
        // Made of the spec, the name and the UID, but for a spec that cannot be read.
        || held.checked.as_ref().err() != checked.as_ref().err()
}

/// True unless it is the same version of the same object.
pub(super) fn lease_differs(held: &LeaseFact, new: &LeaseFact) -> bool {
    let LeaseFact {
        node: _,
        uid,
        resource_version,
        // Of one version there is one content.
        forced: _,
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
        // Of one version there is one content.
        owner: _,
        number: _,
        data: _,
    } = new;
    held.uid != *uid || held.resource_version != *resource_version
}
