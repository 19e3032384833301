//! Which nodes get a lease now: the budgets, and the order within them.

use std::collections::BTreeSet;

use skyhook_crds::lease::{InterruptionLeaseSpec, NodeRef, SkyhookRef};

use super::reason::{Reason, Word};
use super::standing::{Standing, Standings};
use super::{Draft, View};
use crate::effect::{Effect, Target};
use crate::facts::{LeaseFact, NodeFact, SkyhookFact};
use crate::index::Index;

/// The compartment of a Skyhook without a DeploymentPolicy.
pub const DEFAULT_COMPARTMENT: &str = "__default__";

/// Slots, as the leases that exist leave them. Every lease counts, granted or not, and so does every create of ours
/// that the watch has not delivered.
#[derive(Debug)]
pub struct Ledger<'a> {
    index: &'a Index,
    /// Over all Skyhooks.
    cap: Option<usize>,
    reserved: Vec<(String, String)>,
}

impl<'a> Ledger<'a> {
    /// The ledger of a picture.
    #[must_use]
    pub fn new(index: &'a Index, cap: Option<usize>) -> Self {
        Self {
            index,
            cap,
            reserved: Vec::new(),
        }
    }

    /// Slots in use for a Skyhook. A lease that cannot be decoded counts against all of them.
    #[must_use]
    pub fn used(&self, skyhook: &SkyhookFact) -> usize {
        let leases = self
            .index
            .leases
            .values()
            .filter(|lease| lease.skyhook_uid().is_none_or(|uid| uid == skyhook.uid))
            .count();
        leases + self.creating().filter(|uid| *uid == skyhook.uid).count()
    }

    /// Selected nodes that are not Ready for other reasons, where the budget counts them.
    fn unavailable(&self, skyhook: &SkyhookFact) -> usize {
        if !skyhook
            .spec
            .interruption_budget
            .as_ref()
            .is_some_and(|budget| budget.count_unavailable)
        {
            return 0;
        }
        let idle = |node: &&NodeFact| {
            !self.index.leases.contains_key(&node.name)
                && !self.index.creating.contains_key(&node.name)
        };
        self.index
            .nodes
            .values()
            .filter(|node| !node.ready && skyhook.selects(node))
            .filter(idle)
            .count()
    }

    /// Slots in use over all Skyhooks.
    #[must_use]
    pub fn used_in_all(&self) -> usize {
        self.index.leases.len() + self.creating().count()
    }

    fn creating(&self) -> impl Iterator<Item = &str> {
        let unseen = self
            .index
            .creating
            .iter()
            .filter(|(node, _)| !self.index.leases.contains_key(*node));
        unseen
            .map(|(_, uid)| uid.as_str())
            .chain(self.reserved.iter().map(|(_, uid)| uid.as_str()))
    }

    /// Why no further node may be taken for the Skyhook, if none may. `over` is how many more than are in use must fit.
    #[must_use]
    pub fn refusal(&self, skyhook: &SkyhookFact, selected: usize, over: usize) -> Option<Reason> {
        let slots = slots(skyhook, selected);
        if slots == 0 && selected > 0 {
            return Some(Reason::new(
                Word::BudgetZero,
                "interruptionBudget is 0: no node is started until it is raised",
            ));
        }
        let used = self.used(skyhook);
        let unavailable = if over > 0 {
            self.unavailable(skyhook)
        } else {
            0
        };
        if used + unavailable + over > slots {
            let and = match unavailable {
                0 => String::new(),
                n => format!(", and {n} more are not Ready (countUnavailable)"),
            };
            let message =
                format!("{used} of {slots} nodes of the interruptionBudget are in use{and}");
            return Some(Reason::new(Word::BudgetExhausted, message));
        }
        let cap = self.cap?;
        let used = self.used_in_all();
        (used + over > cap).then(|| {
            Reason::new(
                Word::ClusterBudgetExhausted,
                format!("{used} of {cap} nodes of the cluster-wide budget are in use"),
            )
        })
    }

    /// True when the node belongs to the control plane and is not the only one of it with a lease.
    #[must_use]
    pub fn has_control_planes_too_many(&self, node: &str) -> bool {
        let is_control_plane = |name: &String| {
            self.index
                .nodes
                .get(name)
                .is_some_and(NodeFact::is_control_plane)
        };
        let leased = || {
            self.index
                .leases
                .keys()
                .filter(|name| is_control_plane(name))
        };
        leased().any(|name| name == node) && leased().count() > 1
    }

    /// Why this control-plane node may not be taken: one at a time, and only while the others are Ready.
    #[must_use]
    pub fn control_plane_refusal(&self, node: &NodeFact) -> Option<Reason> {
        if !node.is_control_plane() {
            return None;
        }
        let others = || {
            self.index
                .nodes
                .values()
                .filter(|n| n.is_control_plane() && n.name != node.name)
        };
        let taken = |name: &String| {
            self.index.leases.contains_key(name)
                || self.index.creating.contains_key(name)
                || self.reserved.iter().any(|(reserved, _)| reserved == name)
        };
        if let Some(other) = others().find(|other| taken(&other.name)) {
            let message = format!(
                "control-plane node {} is being worked on: one at a time",
                other.name
            );
            return Some(Reason::new(Word::ControlPlane, message));
        }
        others().find(|other| !other.ready).map(|other| {
            Reason::new(
                Word::ControlPlane,
                format!("control-plane node {} is not Ready", other.name),
            )
        })
    }

    fn reserve(&mut self, node: &NodeFact, skyhook: &SkyhookFact) {
        self.reserved.push((node.name.clone(), skyhook.uid.clone()));
    }
}

/// Slots that a Skyhook's own budget gives for its selected nodes.
#[must_use]
pub fn slots(skyhook: &SkyhookFact, selected: usize) -> usize {
    skyhook
        .spec
        .interruption_budget
        .as_ref()
        .map_or(selected, |budget| budget.slots(selected))
}

/// Reserves leases for eligible nodes, and says of the rest why they wait.
pub(super) fn nodes(
    view: &View<'_>,
    skyhooks: &[&SkyhookFact],
    mut standings: Standings,
    draft: &mut Draft<'_>,
) -> Standings {
    let mut ledger = Ledger::new(view.index, view.settings.max_concurrent_nodes);
    for skyhook in skyhooks {
        let Some(nodes) = standings.get_mut(&skyhook.name) else {
            continue;
        };
        let selected = nodes.len();
        for name in candidates(view, skyhook, nodes) {
            let Some(node) = view.index.nodes.get(&name) else {
                continue;
            };
            let refusal = inactive(view, skyhook)
                .or_else(|| ledger.refusal(skyhook, selected, 1))
                .or_else(|| ledger.control_plane_refusal(node));
            let standing = match refusal {
                Some(reason) => Standing::Waiting(reason),
                None if reserve(view, skyhook, node, draft) => {
                    ledger.reserve(node, skyhook);
                    Standing::Leased
                }
                // Between two leases: the one before is on its way out.
                None if view.index.is_unsettled(&Target::Lease(name.clone())) => Standing::Leased,
                None => Standing::Waiting(Reason::new(
                    Word::Settling,
                    "an earlier write is on its way",
                )),
            };
            nodes.insert(name, standing);
        }
    }
    standings
}

/// Eligible nodes in the order in which they are taken: those that were started, then by name, the coordinator's own
/// last of all.
fn candidates(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    nodes: &std::collections::BTreeMap<String, Standing>,
) -> Vec<String> {
    let mut names: Vec<&String> = nodes
        .iter()
        .filter(|(_, s)| matches!(s, Standing::Eligible(_)))
        .map(|(name, _)| name)
        .collect();
    let started: BTreeSet<&String> = names
        .iter()
        .copied()
        .filter(|name| {
            view.index
                .nodes
                .get(*name)
                .is_some_and(|node| node.cordon.owners.contains_key(&skyhook.name))
        })
        .collect();
    let own = view.settings.node_name.as_ref();
    names.sort_by_key(|name| {
        (
            Some(*name) == own,
            !started.contains(*name),
            (*name).clone(),
        )
    });
    names.into_iter().cloned().collect()
}

/// Why a Skyhook gives no leases at all now.
fn inactive(view: &View<'_>, skyhook: &SkyhookFact) -> Option<Reason> {
    if skyhook.is_paused() {
        return Some(Reason::new(Word::Paused, "the Skyhook is paused"));
    }
    if skyhook.is_disabled() {
        return Some(Reason::new(Word::Disabled, "the Skyhook is disabled"));
    }
    if skyhook.deleting {
        return Some(Reason::new(Word::Deleted, "the Skyhook is being deleted"));
    }
    let revision = skyhook.checked.as_ref().ok()?;
    (!view.index.revisions.contains_key(&revision.revision))
        .then(|| Reason::new(Word::Settling, "the revision is being written"))
}

/// True when the Node carries a result of a revision that came later: the picture of the Skyhook is older than the Node's.
#[must_use]
pub fn is_overtaken(view: &View<'_>, node: &NodeFact, skyhook: &str, revision: &str) -> bool {
    let number = |name: &str| {
        view.index
            .revisions
            .get(name)
            .map(|revision| revision.number)
    };
    let recorded = node
        .record(skyhook)
        .stamp
        .as_ref()
        .and_then(|stamp| number(&stamp.revision));
    recorded
        .zip(number(revision))
        .is_some_and(|(recorded, wanted)| recorded > wanted)
}

fn reserve(view: &View<'_>, skyhook: &SkyhookFact, node: &NodeFact, draft: &mut Draft<'_>) -> bool {
    let Ok(checked) = &skyhook.checked else {
        return false;
    };
    if is_overtaken(view, node, &skyhook.name, &checked.revision) {
        return false;
    }
    let record = node.record(&skyhook.name);
    let Ok(installed) = &record.states else {
        return false;
    };
    let generation = skyhook.generation;
    draft.push(Effect::ReserveLease {
        node: node.name.clone(),
        spec: Box::new(InterruptionLeaseSpec {
            node: NodeRef {
                name: node.name.clone(),
                uid: node.uid.clone(),
            },
            skyhook: SkyhookRef {
                name: skyhook.name.clone(),
                uid: skyhook.uid.clone(),
                generation,
            },
            revision: checked.revision.clone(),
            installed: installed.clone(),
            stamp: record.stamp.clone(),
            compartment: DEFAULT_COMPARTMENT.to_owned(),
            ..InterruptionLeaseSpec::default()
        }),
    }) && !view.index.leases.contains_key(&node.name)
}

/// True when all leases of the picture fit the budgets that a Skyhook's lease on `node` falls under.
#[must_use]
pub fn fits(view: &View<'_>, skyhook: &SkyhookFact, node: &str) -> bool {
    let selected = view
        .index
        .nodes
        .values()
        .filter(|node| skyhook.selects(node))
        .count();
    let ledger = Ledger::new(view.index, view.settings.max_concurrent_nodes);
    ledger.refusal(skyhook, selected, 0).is_none() && !ledger.has_control_planes_too_many(node)
}

/// Leases of a picture that were reserved and do not fit any more, youngest first: these are withdrawn.
#[must_use]
pub fn excess<'a>(view: &View<'a>, skyhooks: &[&SkyhookFact]) -> Vec<&'a LeaseFact> {
    let ledger = Ledger::new(view.index, view.settings.max_concurrent_nodes);
    let mut excess = control_plane_excess(view, &ledger);
    for skyhook in skyhooks {
        let selected = view
            .index
            .nodes
            .values()
            .filter(|node| skyhook.selects(node))
            .count();
        let mine = |fact: &&LeaseFact| fact.skyhook_uid() == Some(skyhook.uid.as_str());
        let over = (ledger
            .used(skyhook)
            .saturating_sub(slots(skyhook, selected)))
        .max(
            ledger
                .cap
                .map_or(0, |cap| ledger.used_in_all().saturating_sub(cap)),
        );
        excess.extend(youngest_reserved(view, mine).into_iter().take(over));
    }
    excess
}

/// Of the control plane, every reserved node but the one that came first.
fn control_plane_excess<'a>(view: &View<'a>, ledger: &Ledger<'_>) -> Vec<&'a LeaseFact> {
    let crowded = |fact: &&LeaseFact| ledger.has_control_planes_too_many(&fact.node);
    let reserved = youngest_reserved(view, crowded);
    let is_any_granted = view.index.leases.values().filter(crowded).count() > reserved.len();
    let keep = usize::from(!is_any_granted);
    let excess = reserved.len().saturating_sub(keep);
    reserved.into_iter().take(excess).collect()
}

/// Leases that are not granted yet, youngest first.
fn youngest_reserved<'a>(
    view: &View<'a>,
    is_meant: impl Fn(&&LeaseFact) -> bool,
) -> Vec<&'a LeaseFact> {
    let is_reserved = |fact: &&LeaseFact| {
        let granted = fact.lease.as_ref().map(|lease| &lease.spec.granted);
        granted.is_ok_and(Option::is_none)
    };
    let mut reserved: Vec<&LeaseFact> = view
        .index
        .leases
        .values()
        .filter(is_reserved)
        .filter(is_meant)
        .collect();
    reserved.sort_by_key(|fact| {
        let lease = fact.lease.as_ref().ok();
        let created = lease.and_then(|lease| lease.metadata.creation_timestamp.clone());
        std::cmp::Reverse((created.map(|time| time.0), fact.uid.clone()))
    });
    reserved
}
