//! How each Skyhook is paced: by its own interruptionBudget, or by the compartments of a DeploymentPolicy.

use skyhook_crds::policy::{
    CheckedPolicy, CompartmentId, Compartments, DEFAULT_COMPARTMENT, Matches, Pace,
};

use super::View;
use crate::facts::SkyhookFact;
use crate::picture::NodeId;

/// Position of a compartment among those of a Skyhook. Without a policy there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub(super) usize);

/// How a Skyhook is paced.
#[derive(Debug)]
pub(super) enum Pacing<'a> {
    /// By its own interruptionBudget.
    Budget,
    Policy(Paced<'a>),
    /// The policy does not exist or is not valid: no ceiling is known, and nothing is granted.
    Unknown,
}

/// The compartments of a policy, with the nodes of a Skyhook in them.
#[derive(Debug)]
pub(super) struct Paced<'a> {
    pub(super) policy: &'a CheckedPolicy,
    pub(super) compartments: Compartments<'a>,
    /// By number of the node; `None` for a node that is not selected.
    places: Vec<Option<CompartmentId>>,
}

/// The checked policy that a Skyhook names; `None` if it names none, or if that one does not exist or is not valid.
pub(super) fn policy<'a>(view: &View<'a>, skyhook: &SkyhookFact) -> Option<&'a CheckedPolicy> {
    let name = &skyhook.spec.deployment_policy;
    view.picture.policies().get(name)?.checked.as_deref().ok()
}

impl<'a> Pacing<'a> {
    /// Sorts the selected nodes. `nodes` are their numbers, and which selectors match each.
    pub(super) fn new(
        view: &View<'a>,
        skyhook: &SkyhookFact,
        most: usize,
        nodes: impl Iterator<Item = (NodeId, Matches)>,
    ) -> Self {
        if skyhook.spec.deployment_policy.is_empty() {
            return Self::Budget;
        }
        let Some(policy) = policy(view, skyhook) else {
            return Self::Unknown;
        };
        let nodes: Vec<(NodeId, Matches)> = nodes.collect();
        let matches = nodes.iter().map(|(_, matches)| *matches);
        let (compartments, ids) = Compartments::sort(policy, matches);
        let mut places = vec![None; most];
        for ((node, _), id) in nodes.into_iter().zip(ids) {
            if let Some(place) = places.get_mut(node.index()) {
                *place = Some(id);
            }
        }
        Self::Policy(Paced {
            policy,
            compartments,
            places,
        })
    }

    /// All places, with the names of their compartments.
    pub(super) fn all(&self) -> impl Iterator<Item = (Place, &'a str)> + use<'a> {
        let (own, paced) = match self {
            Self::Budget | Self::Unknown => (Some((Place(0), DEFAULT_COMPARTMENT)), None),
            Self::Policy(paced) => (None, Some(paced.compartments.all())),
        };
        let paced = paced.into_iter().flatten();
        let paced = paced.map(|(id, one)| (Place(id.index()), one.name.as_str()));
        own.into_iter().chain(paced)
    }

    /// The name of a place's compartment.
    pub(super) fn name(&self, place: Place) -> &'a str {
        let mut all = self.all();
        let found = all.find(|(at, _)| *at == place);
        found.map_or(DEFAULT_COMPARTMENT, |(_, name)| name)
    }

    /// The strategy of a place's compartment.
    pub(super) fn pace(&self, place: Place) -> Option<&'a Pace> {
        match self {
            Self::Budget | Self::Unknown => None,
            Self::Policy(paced) => {
                let mut all = paced.compartments.all();
                all.find(|(id, _)| id.index() == place.0)?.1.pace.as_ref()
            }
        }
    }

    /// True when a compartment has a strategy.
    pub(super) fn has_batches(&self) -> bool {
        match self {
            Self::Budget | Self::Unknown => false,
            Self::Policy(paced) => paced.compartments.all().any(|(_, one)| one.pace.is_some()),
        }
    }

    /// The place of a selected node.
    pub(super) fn place(&self, node: NodeId) -> Place {
        match self {
            Self::Budget | Self::Unknown => Place(0),
            Self::Policy(paced) => paced.present(node).map_or_else(
                || Place(paced.compartments.count() - 1),
                |id| Place(id.index()),
            ),
        }
    }

    /// The two places in which a lease takes a slot: that of the compartment in its spec, and that of its node.
    pub(super) fn places_of(&self, compartment: &str, node: NodeId) -> [Place; 2] {
        match self {
            Self::Budget | Self::Unknown => [Place(0); 2],
            Self::Policy(paced) => paced.both(compartment, paced.present(node)),
        }
    }

    /// The places of a lease whose Node is gone.
    pub(super) fn places_without_node(&self, compartment: &str) -> [Place; 2] {
        match self {
            Self::Budget | Self::Unknown => [Place(0); 2],
            Self::Policy(paced) => paced.both(compartment, None),
        }
    }

    /// How many nodes of a compartment may be worked on at once, and how many nodes it has.
    pub(super) fn size(
        &self,
        skyhook: &SkyhookFact,
        selected: usize,
        place: Place,
    ) -> (usize, usize) {
        match self {
            Self::Budget => {
                let budget = skyhook.spec.interruption_budget.as_ref();
                let slots = budget.map_or(selected, |budget| budget.slots(selected));
                (slots, selected)
            }
            Self::Unknown => (0, selected),
            Self::Policy(paced) => {
                let mut all = paced.compartments.all();
                let found = all.find(|(id, _)| id.index() == place.0);
                found.map_or((0, 0), |(id, _)| {
                    let sorted = &paced.compartments;
                    (sorted.ceiling(id), sorted.matched(id))
                })
            }
        }
    }
}

impl Paced<'_> {
    /// The compartment that a node is in now.
    pub(super) fn present(&self, node: NodeId) -> Option<CompartmentId> {
        self.places.get(node.index()).copied().flatten()
    }

    fn both(&self, compartment: &str, present: Option<CompartmentId>) -> [Place; 2] {
        let named = self.compartments.named(compartment);
        let default = self.compartments.count() - 1;
        let place = |id: Option<CompartmentId>| id.map(|id| Place(id.index()));
        let first = named.or(present);
        let first = place(first).unwrap_or(Place(default));
        [first, place(present).unwrap_or(first)]
    }
}
