//! Counts the slots in use, once per pass: leases, leases that are being created, and the facts about nodes that
//! budgets depend on. Every question about slots is answered from these counts. So the time of a pass grows with the
//! sum of nodes and leases, and not with their product.

use std::collections::{BTreeMap, BTreeSet};

use super::cache::{Cache, LeaseBits};
use super::pacing::{Pacing, Place};
use super::reason::{Reason, ReasonCode};
use super::scan::{Order, Row};
use super::{View, in_order, scan};
use crate::facts::{NodeFact, SkyhookFact};
use crate::picture::NodeId;

/// The slots in use. Every lease counts, granted or not. A lease that this process is creating counts until the watch
/// delivers it.
#[derive(Debug)]
pub struct Ledger<'a> {
    /// How many nodes may be worked on at the same time over all Skyhooks; `None` for no limit.
    cap: Option<usize>,
    /// By UID of the Skyhook.
    budgets: BTreeMap<&'a str, Budget>,
    /// Leases that cannot be decoded: they count against every compartment of every Skyhook.
    unreadable: usize,
    total: usize,
    control_plane: ControlPlane<'a>,
}

/// The slots of one Skyhook.
#[derive(Debug, Default)]
struct Budget {
    selected: Selected,
    is_paced: bool,
    /// Leases that exist or are being created.
    leases: usize,
    /// By place, see [`Place`].
    parts: Vec<Part>,
}

/// The slots of one compartment.
#[derive(Debug, Default, Clone, Copy)]
struct Part {
    ceiling: usize,
    /// Nodes in the compartment.
    matched: usize,
    used: usize,
}

/// The nodes that a Skyhook selects.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Selected {
    pub(super) nodes: usize,
    /// Nodes that are not Ready and have no lease, if the budget counts them (`countUnavailable`); else 0.
    pub(super) unavailable: usize,
}

/// Names of control-plane nodes.
#[derive(Debug, Default)]
struct ControlPlane<'a> {
    leased: BTreeSet<&'a str>,
    /// Nodes with a lease, and nodes that are about to get one.
    taken: BTreeSet<&'a str>,
    not_ready: BTreeSet<&'a str>,
}

impl<'a> Ledger<'a> {
    /// Counts the slots of a picture, without a cache.
    #[must_use]
    pub fn of(view: &View<'a>) -> Self {
        let mut cache = Cache::default();
        let order: Vec<_> = view.picture.numbered().collect();
        let rows = scan::rows(view, &in_order(view.picture), &order, &mut cache);
        Self::new(view, &rows, &order, &cache)
    }

    /// Counts the slots from the cells of the cache.
    pub(super) fn new(view: &View<'a>, rows: &[Row<'a>], order: &Order<'a>, cache: &Cache) -> Self {
        #[cfg(test)]
        counted::count();
        let mut ledger = Self {
            cap: view.settings.max_concurrent_nodes,
            budgets: BTreeMap::new(),
            unreadable: 0,
            total: 0,
            control_plane: ControlPlane::default(),
        };
        let mut budgets: Vec<Budget> = rows.iter().map(Budget::of).collect();
        // For the number of each Skyhook's UID: the place of its row.
        let mut places: Vec<Option<usize>> = vec![None; cache.names.len()];
        for (at, row) in rows.iter().enumerate() {
            if let Some(number) = cache.names.find(&row.skyhook.uid) {
                places[number as usize] = Some(at);
            }
        }
        for (name, id) in order {
            let node = &cache.nodes[id.index()];
            match node.lease {
                Some(LeaseBits::Unreadable) => ledger.unreadable += 1,
                Some(LeaseBits::Readable {
                    skyhook_uid,
                    compartment,
                    ..
                }) => {
                    ledger.total += 1;
                    let at = places.get(skyhook_uid as usize).copied().flatten();
                    if let Some(at) = at {
                        let places = rows[at]
                            .pacing
                            .places_of(cache.names.text(compartment), *id);
                        budgets[at].take(places);
                    }
                }
                None => {}
            }
            if node.control_plane {
                ledger
                    .control_plane
                    .take(name, node.ready, node.lease.is_some());
                if node.creating {
                    ledger.control_plane.taken.insert(name);
                }
            }
        }
        // Leases that are being created, also for nodes that no longer exist.
        let ids: BTreeMap<&str, NodeId> = match view.inflight.creates().next() {
            Some(_) => order.iter().copied().collect(),
            None => BTreeMap::new(),
        };
        for (node, spec) in view.inflight.creates() {
            if view.picture.leases().contains_key(node) {
                continue;
            }
            ledger.total += 1;
            let mut rows = rows.iter().zip(&mut budgets);
            if let Some((row, budget)) = rows.find(|(row, _)| row.skyhook.uid == spec.skyhook.uid) {
                let places = match ids.get(node) {
                    Some(id) => row.pacing.places_of(&spec.compartment, *id),
                    None => row.pacing.places_without_node(&spec.compartment),
                };
                budget.take(places);
            }
        }
        ledger.total += ledger.unreadable;
        let uids = rows.iter().map(|row| row.skyhook.uid.as_str());
        ledger.budgets = uids.zip(budgets).collect();
        ledger
    }

    fn budget(&self, skyhook: &SkyhookFact) -> Option<&Budget> {
        self.budgets.get(skyhook.uid.as_str())
    }

    fn part(&self, skyhook: &SkyhookFact, place: Place) -> Part {
        let part = self.budget(skyhook).and_then(|all| all.parts.get(place.0));
        part.copied().unwrap_or_default()
    }

    fn leases_of(&self, skyhook: &SkyhookFact) -> usize {
        self.budget(skyhook).map_or(0, |budget| budget.leases)
    }

    /// Slots in use for a Skyhook. A lease that cannot be decoded counts against all of them.
    #[must_use]
    pub fn used(&self, skyhook: &SkyhookFact) -> usize {
        self.leases_of(skyhook) + self.unreadable
    }

    /// Slots in use in one compartment of a Skyhook.
    pub(super) fn used_at(&self, skyhook: &SkyhookFact, place: Place) -> usize {
        self.part(skyhook, place).used + self.unreadable
    }

    /// Slots of one compartment of a Skyhook.
    pub(super) fn ceiling_at(&self, skyhook: &SkyhookFact, place: Place) -> usize {
        self.part(skyhook, place).ceiling
    }

    /// Slots in use over all Skyhooks.
    #[must_use]
    pub const fn used_in_all(&self) -> usize {
        self.total
    }

    /// True while a lease of the Skyhook exists, or is being created.
    #[must_use]
    pub fn is_under_way(&self, skyhook: &SkyhookFact) -> bool {
        self.leases_of(skyhook) > 0
    }

    fn selected(&self, skyhook: &SkyhookFact) -> Selected {
        let budget = self.budget(skyhook);
        budget.map(|budget| budget.selected).unwrap_or_default()
    }

    /// How many leases are too many in each compartment of a Skyhook.
    pub(super) fn over_budget(&self, skyhook: &SkyhookFact) -> Vec<usize> {
        let parts = self.budget(skyhook).map_or(&[][..], |budget| &budget.parts);
        let over = |part: &Part| (part.used + self.unreadable).saturating_sub(part.ceiling);
        parts.iter().map(over).collect()
    }

    /// How many slots of one compartment are free.
    pub(super) fn room(&self, skyhook: &SkyhookFact, place: Place) -> usize {
        let part = self.part(skyhook, place);
        part.ceiling.saturating_sub(part.used + self.unreadable)
    }

    /// How many leases are too many over all Skyhooks.
    #[must_use]
    pub fn over_cap(&self) -> usize {
        let cap = self.cap.unwrap_or(usize::MAX);
        self.used_in_all().saturating_sub(cap)
    }

    /// How many slots are free over all Skyhooks.
    pub(super) fn room_in_all(&self) -> usize {
        let cap = self.cap.unwrap_or(usize::MAX);
        cap.saturating_sub(self.used_in_all())
    }

    /// Why a compartment of a Skyhook cannot have `extra` slots in addition to those in use; `None` if it can. `extra` is
    /// 1 to reserve a slot, and 0 to ask whether the existing leases fit the budgets.
    #[must_use]
    pub fn refusal(&self, skyhook: &SkyhookFact, place: Place, extra: usize) -> Option<Reason> {
        let selected = self.selected(skyhook);
        let part = self.part(skyhook, place);
        if part.ceiling == 0 && part.matched > 0 && !self.is_paced(skyhook) {
            return Some(Reason::new(
                ReasonCode::BudgetZero,
                "interruptionBudget is 0: no node is started until it is raised",
            ));
        }
        let used = self.used_at(skyhook, place);
        let unavailable = if extra > 0 { selected.unavailable } else { 0 };
        if used + unavailable + extra > part.ceiling {
            // The message has no numbers. It is written on each Node that waits, and numbers would change each time
            // that a slot is taken or given back.
            let message = if self.is_paced(skyhook) {
                "waits for a slot of its compartment"
            } else {
                "waits for a slot of the interruptionBudget"
            };
            return Some(Reason::new(ReasonCode::BudgetExhausted, message));
        }
        let cap = self.cap?;
        (self.used_in_all() + extra > cap).then(|| {
            let message = "waits for a slot of the cluster-wide budget";
            Reason::new(ReasonCode::ClusterBudgetExhausted, message)
        })
    }

    /// True when the Skyhook names a DeploymentPolicy.
    fn is_paced(&self, skyhook: &SkyhookFact) -> bool {
        self.budget(skyhook).is_some_and(|budget| budget.is_paced)
    }

    /// Slots in use over all Skyhooks, nodes of the Skyhook that are not Ready and count, and for each of its compartments
    /// the slots in use, the ceiling and the number of nodes.
    pub(super) fn uses(&self, skyhook: &SkyhookFact) -> (usize, usize, Vec<[usize; 3]>) {
        let parts = self.budget(skyhook).map_or(&[][..], |budget| &budget.parts);
        let uses = |part: &Part| [part.used + self.unreadable, part.ceiling, part.matched];
        let unavailable = self.selected(skyhook).unavailable;
        let parts = parts.iter().map(uses).collect();
        (self.used_in_all(), unavailable, parts)
    }

    /// How much of a Skyhook's budget is in use.
    pub(super) fn use_of_budget(&self, row: &Row<'_>) -> String {
        let skyhook = row.skyhook;
        if self.is_paced(skyhook) {
            let used = row.pacing.all().map(|(place, name)| {
                let (used, of) = (
                    self.used_at(skyhook, place),
                    self.ceiling_at(skyhook, place),
                );
                format!("{used} of {of} in {name}")
            });
            let used: Vec<String> = used.collect();
            return format!("slots in use: {}", used.join(", "));
        }
        let selected = self.selected(skyhook);
        let place = Place::default();
        let (used, slots) = (
            self.used_at(skyhook, place),
            self.ceiling_at(skyhook, place),
        );
        let and = match selected.unavailable {
            0 => String::new(),
            n => format!(", and {n} more are not Ready (countUnavailable)"),
        };
        format!("{used} of {slots} nodes of the interruptionBudget are in use{and}")
    }

    /// How much of the budget over all Skyhooks is in use.
    pub(super) fn use_of_cap(&self) -> String {
        let cap = self
            .cap
            .map_or_else(|| "unlimited".to_owned(), |cap| cap.to_string());
        let used = self.used_in_all();
        format!("{used} of {cap} nodes of the cluster-wide budget are in use")
    }

    /// True when the node is a control-plane node with a lease, and another control-plane node has a lease as well.
    #[must_use]
    pub fn has_control_planes_too_many(&self, node: &str) -> bool {
        self.control_plane.leased.len() > 1 && self.control_plane.leased.contains(node)
    }

    /// Control-plane nodes with a lease.
    pub(super) const fn leased_control_plane(&self) -> &BTreeSet<&'a str> {
        &self.control_plane.leased
    }

    /// Why a control-plane node may not get a lease now; `None` if it may, and for any other node. Only one
    /// control-plane node has a lease at a time, and only while all others are Ready.
    #[must_use]
    pub fn control_plane_refusal(&self, node: &NodeFact) -> Option<Reason> {
        if let Some(other) = self.control_plane_taken(node) {
            let message = format!("control-plane node {other} is being worked on: one at a time");
            return Some(Reason::new(ReasonCode::ControlPlane, message));
        }
        self.control_plane_not_ready(node).map(|other| {
            let message = format!("control-plane node {other} is not Ready");
            Reason::new(ReasonCode::ControlPlane, message)
        })
    }

    /// The name of another control-plane node that has a lease, or is about to get one. `None` if there is none, or if
    /// `node` is no control-plane node.
    pub(super) fn control_plane_taken(&self, node: &NodeFact) -> Option<&'a str> {
        let mut taken = self.control_plane.taken.iter().copied();
        let other = taken.find(|name| *name != node.name);
        other.filter(|_| node.is_control_plane())
    }

    /// The name of another control-plane node that is not Ready. `None` if there is none, or if `node` is no
    /// control-plane node.
    #[must_use]
    pub fn control_plane_not_ready(&self, node: &NodeFact) -> Option<&'a str> {
        let mut others = self.control_plane.not_ready.iter().copied();
        let other = others.find(|name| *name != node.name);
        other.filter(|_| node.is_control_plane())
    }

    /// Takes a slot for a node that is reserved in this pass, in both places.
    pub(super) fn reserve(
        &mut self,
        node: &'a NodeFact,
        skyhook: &SkyhookFact,
        places: [Place; 2],
    ) {
        self.total += 1;
        if let Some(budget) = self.budgets.get_mut(skyhook.uid.as_str()) {
            budget.take(places);
        }
        if node.is_control_plane() {
            self.control_plane.taken.insert(&node.name);
        }
    }
}

impl Budget {
    fn of(row: &Row<'_>) -> Self {
        let parts = row.pacing.all().map(|(place, _)| {
            let (ceiling, matched) = row.pacing.size(row.skyhook, row.selected.nodes, place);
            Part {
                ceiling,
                matched,
                used: 0,
            }
        });
        Self {
            selected: row.selected,
            is_paced: !matches!(row.pacing, Pacing::Budget),
            leases: 0,
            parts: parts.collect(),
        }
    }

    /// Takes a slot in both places, and one if they are the same.
    fn take(&mut self, places: [Place; 2]) {
        self.leases += 1;
        let twice = places[0] != places[1];
        for place in places.into_iter().take(if twice { 2 } else { 1 }) {
            if let Some(part) = self.parts.get_mut(place.0) {
                part.used += 1;
            }
        }
    }
}

impl<'a> ControlPlane<'a> {
    fn take(&mut self, name: &'a str, ready: bool, leased: bool) {
        if leased {
            self.leased.insert(name);
            self.taken.insert(name);
        }
        if !ready {
            self.not_ready.insert(name);
        }
    }
}

/// How many ledgers this thread has made: a pass makes one.
#[cfg(test)]
pub(super) mod counted {
    use std::cell::Cell;

    thread_local!(static LEDGERS: Cell<usize> = const { Cell::new(0) });

    pub(super) fn count() {
        LEDGERS.set(LEDGERS.get() + 1);
    }

    pub(in crate::plan) fn take() -> usize {
        LEDGERS.replace(0)
    }
}
