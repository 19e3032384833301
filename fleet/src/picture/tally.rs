//! Counts the leases of each Skyhook. The counts are updated whenever a lease is added or removed, because the guard
//! reads them before every grant. Passes do not use these counts: they count the leases anew.

use std::collections::BTreeMap;

use crate::facts::LeaseFact;

/// Leases by the UID of their Skyhook.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    readable: BTreeMap<String, OfSkyhook>,
    /// Leases that cannot be decoded. Their Skyhook is not known, so they count against every Skyhook.
    unreadable: usize,
}

/// Leases of one Skyhook.
#[derive(Debug, Default, PartialEq, Eq)]
struct OfSkyhook {
    leases: usize,
    /// How many leases have each `SKYHOOK_NODE_ORDER`.
    orders: BTreeMap<i64, usize>,
    /// How many leases name each compartment.
    compartments: BTreeMap<String, usize>,
}

impl Tally {
    pub(super) fn comes(&mut self, lease: &LeaseFact) {
        let Some(uid) = lease.skyhook_uid() else {
            self.unreadable += 1;
            return;
        };
        if !self.readable.contains_key(uid) {
            self.readable.insert(uid.to_owned(), OfSkyhook::default());
        }
        if let Some(of) = self.readable.get_mut(uid) {
            of.leases += 1;
            if let Some(order) = order(lease) {
                *of.orders.entry(order).or_default() += 1;
            }
            if let Some(compartment) = compartment(lease) {
                *of.compartments.entry(compartment.to_owned()).or_default() += 1;
            }
        }
    }

    pub(super) fn goes(&mut self, lease: &LeaseFact) {
        let Some(uid) = lease.skyhook_uid() else {
            self.unreadable = self.unreadable.saturating_sub(1);
            return;
        };
        let Some(of) = self.readable.get_mut(uid) else {
            return;
        };
        of.leases = of.leases.saturating_sub(1);
        if let Some(order) = order(lease)
            && let Some(leases) = of.orders.get_mut(&order)
        {
            *leases = leases.saturating_sub(1);
            if *leases == 0 {
                of.orders.remove(&order);
            }
        }
        if let Some(compartment) = compartment(lease)
            && let Some(leases) = of.compartments.get_mut(compartment)
        {
            *leases = leases.saturating_sub(1);
            if *leases == 0 {
                of.compartments.remove(compartment);
            }
        }
        if of.leases == 0 {
            self.readable.remove(uid);
        }
    }

    /// Leases of a Skyhook that name a compartment, and those that cannot be decoded.
    #[must_use]
    pub fn counting_in(&self, skyhook_uid: &str, compartment: &str) -> usize {
        let of = self.readable.get(skyhook_uid);
        let readable = of.and_then(|of| of.compartments.get(compartment).copied());
        readable.unwrap_or_default() + self.unreadable
    }

    /// Leases that count against the budget of a Skyhook.
    #[must_use]
    pub fn counting_against(&self, skyhook_uid: &str) -> usize {
        let readable = self.readable.get(skyhook_uid).map(|of| of.leases);
        readable.unwrap_or_default() + self.unreadable
    }

    /// Leases of a Skyhook with this `SKYHOOK_NODE_ORDER`.
    #[must_use]
    pub fn with_order(&self, skyhook_uid: &str, order: i64) -> usize {
        let of = self.readable.get(skyhook_uid);
        of.and_then(|of| of.orders.get(&order).copied())
            .unwrap_or_default()
    }

    /// Counts leases anew.
    #[must_use]
    pub fn of<'a>(leases: impl IntoIterator<Item = &'a LeaseFact>) -> Self {
        let mut tally = Self::default();
        for lease in leases {
            tally.comes(lease);
        }
        tally
    }
}

/// The compartment that the lease names.
fn compartment(lease: &LeaseFact) -> Option<&str> {
    let compartment = lease.lease.as_ref().ok()?.spec.compartment.as_str();
    (!compartment.is_empty()).then_some(compartment)
}

fn order(lease: &LeaseFact) -> Option<i64> {
    lease.lease.as_ref().ok()?.spec.order
}
