//! Which compartment each node is in, and how many nodes of each may be worked on at once.

use std::collections::BTreeMap;

use kube::core::Expression;

use super::check::{CheckedCompartment, CheckedPolicy, Growth, MOST_COMPARTMENTS};

/// Position of a compartment in its policy; the last one is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompartmentId(usize);

impl CompartmentId {
    /// The position.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// Which compartments' selectors match a node. It depends on the node's labels and on the policy alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Matches(u64);

impl Matches {
    const fn has(self, at: usize) -> bool {
        at < MOST_COMPARTMENTS && self.0 & (1 << at) != 0
    }
}

impl CheckedPolicy {
    /// Which selectors match a node. `meets` says whether its labels meet an expression.
    #[must_use]
    pub fn matches(&self, meets: impl Fn(&Expression) -> bool) -> Matches {
        let all = self.compartments.iter().take(MOST_COMPARTMENTS).enumerate();
        let matching = all.filter(|(_, one)| one.selector.iter().all(&meets));
        Matches(matching.fold(0, |bits, (at, _)| bits | 1 << at))
    }
}

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
    /// name. The answers are in the order of `nodes`.
    #[must_use]
    pub fn sort(
        policy: &'a CheckedPolicy,
        nodes: impl Iterator<Item = Matches> + Clone,
    ) -> (Self, Vec<CompartmentId>) {
        let count = policy.compartments.len();
        // Many nodes have the same labels, as far as selectors tell.
        let mut alike: BTreeMap<Matches, usize> = BTreeMap::new();
        for matches in nodes.clone() {
            *alike.entry(matches).or_default() += 1;
        }
        let mut selected = vec![0_usize; count];
        for (matches, nodes) in &alike {
            for (at, selected) in selected.iter_mut().enumerate() {
                *selected += if matches.has(at) { *nodes } else { 0 };
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
        let mut places: BTreeMap<Matches, CompartmentId> = BTreeMap::new();
        for (matches, nodes) in alike {
            let id = sorted.place(matches);
            sorted.matched[id.0] += nodes;
            places.insert(matches, id);
        }
        let ids = nodes.map(|matches| places.get(&matches).copied().unwrap_or_default());
        let ids = ids.collect();
        (sorted, ids)
    }

    /// The compartment of a node that these selectors match.
    #[must_use]
    pub fn place(&self, matches: Matches) -> CompartmentId {
        let found = self.by_caution.iter().find(|at| matches.has(**at));
        CompartmentId(found.copied().unwrap_or(self.policy.compartments.len()))
    }

    /// How many compartments there are, with the default.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.matched.len()
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
