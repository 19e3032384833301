//! Counts the leases of each Skyhook. The counts are updated whenever a lease is added or removed, because the guard
//! reads them before every grant. Passes do not use these counts: they count the leases anew.

use std::collections::BTreeMap;

use crate::facts::LeaseFact;

/// Leases by the UID of their Skyhook.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    readable: BTreeMap<String, usize>,
    /// The same by the compartment in their spec, for those that name one.
    compartments: BTreeMap<(String, String), usize>,
    /// Leases that cannot be decoded. Their Skyhook is not known, so they count against every Skyhook.
    unreadable: usize,
}

impl Tally {
    pub(super) fn comes(&mut self, lease: &LeaseFact) {
        match lease.skyhook_uid() {
            None => self.unreadable += 1,
            Some(uid) => match self.readable.get_mut(uid) {
                Some(leases) => *leases += 1,
                None => drop(self.readable.insert(uid.to_owned(), 1)),
            },
        }
        if let Some(place) = place(lease) {
            *self.compartments.entry(place).or_default() += 1;
        }
    }

    pub(super) fn goes(&mut self, lease: &LeaseFact) {
        let Some(uid) = lease.skyhook_uid() else {
            self.unreadable = self.unreadable.saturating_sub(1);
            return;
        };
        if let Some(leases) = self.readable.get_mut(uid) {
            *leases = leases.saturating_sub(1);
            if *leases == 0 {
                self.readable.remove(uid);
            }
        }
        if let Some(place) = place(lease)
            && let Some(leases) = self.compartments.get_mut(&place)
        {
            *leases = leases.saturating_sub(1);
            if *leases == 0 {
                self.compartments.remove(&place);
            }
        }
    }

    /// Leases of a Skyhook that name a compartment, and those that cannot be decoded.
    #[must_use]
    pub fn counting_in(&self, skyhook_uid: &str, compartment: &str) -> usize {
        let place = (skyhook_uid.to_owned(), compartment.to_owned());
        let readable = self.compartments.get(&place).copied();
        readable.unwrap_or_default() + self.unreadable
    }

    /// Leases that count against the budget of a Skyhook.
    #[must_use]
    pub fn counting_against(&self, skyhook_uid: &str) -> usize {
        let readable = self.readable.get(skyhook_uid).copied();
        readable.unwrap_or_default() + self.unreadable
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

/// UID of the Skyhook and name of the compartment, as the lease names them.
fn place(lease: &LeaseFact) -> Option<(String, String)> {
    let spec = &lease.lease.as_ref().ok()?.spec;
    let is_named = !spec.compartment.is_empty();
    is_named.then(|| (spec.skyhook.uid.clone(), spec.compartment.clone()))
}
