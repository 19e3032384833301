//! The numbers of nodes, counted anew from the picture: nothing of the planner's counts is used.

use skyhook_crds::installed::{PackageStates, Stamp};
use skyhook_fleet::facts::Record;
use skyhook_fleet::index::Index;

/// The stamp of a record, unless somebody has emptied the record.
fn stamp(record: &Record) -> Option<&Stamp> {
    let is_emptied = record.is_edited() && record.states == Ok(PackageStates::new());
    record.stamp.as_ref().filter(|_| !is_emptied)
}

/// The number that a node keeps.
pub(super) fn kept(index: &Index, node: &str, skyhook: &str) -> Option<i64> {
    let stamp = stamp(index.picture().nodes()[node].records.get(skyhook)?)?;
    stamp.order.filter(|_| !stamp.picked.is_empty())
}

/// Every number of a Skyhook that a lease or a stamp has.
pub(super) fn all(index: &Index, skyhook: &str) -> Vec<i64> {
    let picture = index.picture();
    let leases = picture.leases().values();
    let leases = leases.filter_map(|fact| fact.lease.as_ref().ok());
    let leases = leases.map(|lease| &lease.spec);
    let creates = index.inflight().creates().map(|(_, spec)| spec);
    let of_leases = leases
        .chain(creates)
        .filter(|spec| spec.skyhook.name == skyhook)
        .filter_map(|spec| spec.order);
    let nodes = picture.nodes().values();
    let of_stamps = nodes.filter_map(|node| stamp(node.records.get(skyhook)?)?.order);
    of_leases.chain(of_stamps).collect()
}
