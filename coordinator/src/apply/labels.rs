//! Labels of new objects.

use std::collections::BTreeMap;

use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::names;

/// Labels of a new lease, for people who list the leases of one Skyhook, of one compartment or of one batch. A name that
/// is no valid value of a label gets no label: it must not prevent the lease.
pub(super) fn of_lease(spec: &InterruptionLeaseSpec) -> BTreeMap<String, String> {
    let batch = spec.batch.as_ref().map(|batch| batch.number.to_string());
    let labels = [
        (names::REVISION_OF, spec.skyhook.name.clone()),
        (names::COMPARTMENT, spec.compartment.clone()),
        (names::BATCH, batch.unwrap_or_default()),
    ];
    labels
        .into_iter()
        .filter(|(_, value)| names::is_label_value(value))
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
