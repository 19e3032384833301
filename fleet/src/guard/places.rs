//! The nodes of a Skyhook with a policy in its compartments, and what is at work there. Counted once for each pass: a pass
//! may grant 10,000 leases.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::lease::BatchRef;
use skyhook_crds::policy::{CheckedPolicy, Compartments};

use super::batches;
use crate::facts::{NodeFact, SkyhookFact};
use crate::index::Index;
use crate::picture::Tick;

/// Position of a compartment in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Of(usize);

/// The compartments of one Skyhook.
#[derive(Debug)]
pub(super) struct Places {
    /// Names of the compartments, the default last, and whether each has batches.
    compartments: Vec<(String, bool)>,
    ceilings: Vec<usize>,
    /// By node.
    present: BTreeMap<String, Of>,
    /// Leases that take a slot in a compartment although they do not name it: their node is there now.
    moved: Vec<usize>,
    /// Batches that are at work, by the compartment that they hold up.
    at_work: BTreeMap<Of, BTreeSet<Option<BatchRef>>>,
    /// The policies that this was counted with.
    policies: Tick,
}

impl Places {
    pub(super) fn new(index: &Index, skyhook: &SkyhookFact, policy: &CheckedPolicy) -> Self {
        #[cfg(test)]
        counted::count();
        let nodes = index.picture.nodes().values();
        let selected: Vec<&NodeFact> = nodes.filter(|node| skyhook.selects(node)).collect();
        let matches = selected
            .iter()
            .map(|node| policy.matches(|one| node.labels.meet(one)));
        let (sorted, ids) = Compartments::sort(policy, matches);
        let compartments = sorted.all();
        let names = selected.iter().map(|node| node.name.clone());
        let mut places = Self {
            compartments: compartments
                .map(|(_, one)| (one.name.clone(), one.pace.is_some()))
                .collect(),
            ceilings: sorted.all().map(|(id, _)| sorted.ceiling(id)).collect(),
            present: names.zip(ids.iter().map(|id| Of(id.index()))).collect(),
            moved: vec![0; sorted.count()],
            at_work: BTreeMap::new(),
            policies: index.picture.policies_changed(),
        };
        for fact in index.picture.leases().values() {
            let Ok(lease) = &fact.lease else {
                continue;
            };
            if lease.spec.skyhook.uid != skyhook.uid {
                continue;
            }
            let own = places.named(&lease.spec.compartment);
            let present = places.present(&fact.node);
            if let Some(present) = present.filter(|present| Some(*present) != own) {
                places.moved[present.0] += 1;
            }
            if let Some(barrier) = own.or(present)
                && batches::is_at_work(index, fact, lease)
            {
                let there = places.at_work.entry(barrier).or_default();
                there.insert(lease.spec.batch.clone());
            }
        }
        places
    }

    /// True while the policies are those that this was counted with.
    pub(super) fn is_current(&self, index: &Index) -> bool {
        self.policies == index.picture.policies_changed()
    }

    pub(super) fn named(&self, compartment: &str) -> Option<Of> {
        let mut all = self.compartments.iter();
        all.position(|(name, _)| name == compartment).map(Of)
    }

    /// The compartment that a node is in now.
    pub(super) fn present(&self, node: &str) -> Option<Of> {
        self.present.get(node).copied()
    }

    pub(super) fn ceiling(&self, of: Of) -> usize {
        self.ceilings.get(of.0).copied().unwrap_or_default()
    }

    pub(super) fn has_batches(&self, of: Of) -> bool {
        self.compartments.get(of.0).is_some_and(|(_, has)| *has)
    }

    /// Leases that take a slot in a compartment, with those that are being created. Leases that name the compartment are
    /// taken from the tally of the picture, which is never old.
    pub(super) fn used(&self, index: &Index, skyhook: &SkyhookFact, of: Of) -> usize {
        let name = self.compartments.get(of.0).map_or("", |(name, _)| name);
        let leases = index.picture.leases();
        let unseen = index.inflight.creates().filter(|(node, spec)| {
            spec.skyhook.uid == skyhook.uid
                && (spec.compartment == name || self.present(node) == Some(of))
                && !leases.contains_key(*node)
        });
        let named = index.picture.tally().counting_in(&skyhook.uid, name);
        let moved = self.moved.get(of.0).copied().unwrap_or_default();
        named + moved + unseen.count()
    }

    /// True when another batch than `batch` is at work in a compartment.
    pub(super) fn is_held_up(&self, of: Of, batch: Option<&BatchRef>) -> bool {
        let mut there = self.at_work.get(&of).into_iter().flatten();
        there.any(|other| other.as_ref() != batch)
    }
}

/// How often this thread has counted places.
#[cfg(test)]
pub(crate) mod counted {
    use std::cell::Cell;

    thread_local!(static PLACES: Cell<usize> = const { Cell::new(0) });

    pub(super) fn count() {
        PLACES.set(PLACES.get() + 1);
    }

    pub(crate) fn take() -> usize {
        PLACES.replace(0)
    }
}
