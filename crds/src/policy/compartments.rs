//! Which compartment each node is in, and how many nodes of each may be worked on at once.

use std::collections::BTreeMap;

use kube::core::SelectorExt as _;

use super::check::{CheckedCompartment, CheckedPolicy, Growth};

/// Position of a compartment in its policy; the last one is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CompartmentId(usize);

/// The compartments of one policy, for one set of nodes.
#[derive(Clone, Debug)]
pub struct Compartments<'a> {
    policy: &'a CheckedPolicy,
    /// Compartments from the most cautious on, without the default.
    by_caution: Vec<usize>,
    matched: Vec<usize>,
}

impl<'a> Compartments<'a> {
    /// Sorts nodes into the compartments of `policy`. Where several match a node the most cautious wins: fixed before
    /// linear before exponential before none, then the smaller ceiling over all nodes that the selector matches, then the
    /// name. The answers are in the order of `nodes`, which are the labels of each.
    #[must_use]
    pub fn sort<'n>(
        policy: &'a CheckedPolicy,
        nodes: impl Iterator<Item = &'n BTreeMap<String, String>> + Clone,
    ) -> (Self, Vec<CompartmentId>) {
        let count = policy.compartments.len();
        let mut selected = vec![0_usize; count];
        for labels in nodes.clone() {
            for (at, compartment) in policy.compartments.iter().enumerate() {
                if compartment.selector.matches(labels) {
                    selected[at] += 1;
                }
            }
        }
        let caution = |at: &usize| {
            let compartment = &policy.compartments[*at];
            let growth = compartment.pace.map(|pace| rank(pace.growth));
            let ceiling = compartment.ceiling.of(selected[*at]);
            (growth.unwrap_or(u8::MAX), ceiling, &compartment.name)
        };
        let mut by_caution: Vec<usize> = (0..count).collect();
        by_caution.sort_by(|a, b| caution(a).cmp(&caution(b)));
        let mut sorted = Self {
            policy,
            by_caution,
            matched: vec![0; count + 1],
        };
        let ids = nodes
            .map(|labels| {
                let id = sorted.place(labels);
                sorted.matched[id.0] += 1;
                id
            })
            .collect();
        (sorted, ids)
    }

    /// The compartment that a node with these labels is in.
    #[must_use]
    pub fn place(&self, labels: &BTreeMap<String, String>) -> CompartmentId {
        let matching = |at: &&usize| self.policy.compartments[**at].selector.matches(labels);
        let found = self.by_caution.iter().find(matching);
        CompartmentId(found.copied().unwrap_or(self.policy.compartments.len()))
    }

    /// Every compartment, the default last.
    pub fn all(&self) -> impl Iterator<Item = (CompartmentId, &'a CheckedCompartment)> + use<'a> {
        let policy = self.policy;
        let default = std::iter::once(&policy.default);
        let all = policy.compartments.iter().chain(default);
        all.enumerate().map(|(at, one)| (CompartmentId(at), one))
    }

    /// A compartment by its name, as leases carry it.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<CompartmentId> {
        self.all()
            .find(|(_, one)| one.name == name)
            .map(|(id, _)| id)
    }

    /// The compartment itself.
    #[must_use]
    pub fn get(&self, id: CompartmentId) -> &'a CheckedCompartment {
        let policy = self.policy;
        policy.compartments.get(id.0).unwrap_or(&policy.default)
    }

    /// How many nodes are in it.
    #[must_use]
    pub fn matched(&self, id: CompartmentId) -> usize {
        self.matched.get(id.0).copied().unwrap_or_default()
    }

    /// How many of its nodes may be worked on at once.
    #[must_use]
    pub fn ceiling(&self, id: CompartmentId) -> usize {
        self.get(id).ceiling.of(self.matched(id))
    }
}

const fn rank(growth: Growth) -> u8 {
    match growth {
        Growth::Fixed => 0,
        Growth::Linear { .. } => 1,
        Growth::Exponential { .. } => 2,
    }
}
