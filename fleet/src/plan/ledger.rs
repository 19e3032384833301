//! Counts the slots in use, once per pass: leases, leases that are being created, and the facts about nodes that
//! budgets depend on. Every question about slots is answered from these counts. So the time of a pass grows with the
//! sum of nodes and leases, and not with their product.

use std::collections::{BTreeMap, BTreeSet};

use super::admit::{DEFAULT_COMPARTMENT, slots};
use super::cache::{Cache, LeaseBits};
use super::reason::{Reason, ReasonCode};
use super::scan::{Order, Row};
use super::{View, in_order, scan};
use crate::facts::{NodeFact, SkyhookFact};

/// The slots in use. Every lease counts, granted or not. A lease that this process is creating counts until the watch
/// delivers it.
#[derive(Debug)]
pub struct Ledger<'a> {
    /// How many nodes may be worked on at the same time over all Skyhooks; `None` for no limit.
    cap: Option<usize>,
    /// Leases that exist or are being created, by the UID of their Skyhook, then by compartment.
    rows: BTreeMap<String, BTreeMap<String, usize>>,
    /// Leases that cannot be decoded: they count against every Skyhook.
    unreadable: usize,
    total: usize,
    /// By UID of the Skyhook.
    selected: BTreeMap<&'a str, Selected>,
    control_plane: ControlPlane<'a>,
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
            rows: BTreeMap::new(),
            unreadable: 0,
            total: 0,
            selected: rows
                .iter()
                .map(|row| (row.skyhook.uid.as_str(), row.selected))
                .collect(),
            control_plane: ControlPlane::default(),
        };
        // By UID of the Skyhook and compartment, as numbers.
        let mut counts: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        let mut last = ((0, 0), 0);
        for (name, id) in order {
            let node = &cache.nodes[id.index()];
            match node.lease {
                Some(LeaseBits::Unreadable) => ledger.unreadable += 1,
                Some(LeaseBits::Readable {
                    skyhook_uid,
                    compartment,
                    ..
                }) => {
                    // Neighbours mostly belong to the same Skyhook. They are summed up first, which saves look-ups in
                    // the map.
                    if last.0 == (skyhook_uid, compartment) {
                        last.1 += 1;
                    } else {
                        *counts.entry(last.0).or_default() += last.1;
                        last = ((skyhook_uid, compartment), 1);
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
        *counts.entry(last.0).or_default() += last.1;
        for ((uid, compartment), used) in counts.into_iter().filter(|(_, used)| *used > 0) {
            ledger.take(cache.names.text(uid), cache.names.text(compartment), used);
        }
        // Leases that are being created, also for nodes that no longer exist.
        for (node, uid) in view.inflight.creates() {
            if !view.picture.leases().contains_key(node) {
                ledger.take(uid, DEFAULT_COMPARTMENT, 1);
            }
        }
        ledger.total += ledger.unreadable;
        ledger
    }

    fn take(&mut self, skyhook_uid: &str, compartment: &str, slots: usize) {
        let row = self.rows.entry(skyhook_uid.to_owned()).or_default();
        *row.entry(compartment.to_owned()).or_default() += slots;
        self.total += slots;
    }

    /// Leases of a Skyhook that exist or are being created, in all compartments.
    fn rows_of(&self, skyhook: &SkyhookFact) -> usize {
        self.rows
            .get(&skyhook.uid)
            .map_or(0, |row| row.values().sum())
    }

    /// Slots in use for a Skyhook. A lease that cannot be decoded counts against all of them.
    #[must_use]
    pub fn used(&self, skyhook: &SkyhookFact) -> usize {
        self.rows_of(skyhook) + self.unreadable
    }

    /// Slots in use over all Skyhooks.
    #[must_use]
    pub const fn used_in_all(&self) -> usize {
        self.total
    }

    /// True while a lease of the Skyhook exists, or is being created.
    #[must_use]
    pub fn is_under_way(&self, skyhook: &SkyhookFact) -> bool {
        self.rows_of(skyhook) > 0
    }

    fn selected(&self, skyhook: &SkyhookFact) -> Selected {
        let uid = skyhook.uid.as_str();
        self.selected.get(uid).copied().unwrap_or_default()
    }

    /// How many leases of a Skyhook are too many for its own budget.
    #[must_use]
    pub fn over_budget(&self, skyhook: &SkyhookFact) -> usize {
        let slots = slots(skyhook, self.selected(skyhook).nodes);
        self.used(skyhook).saturating_sub(slots)
    }

    /// How many slots of a Skyhook's own budget are free.
    pub(super) fn room(&self, skyhook: &SkyhookFact) -> usize {
        let slots = slots(skyhook, self.selected(skyhook).nodes);
        slots.saturating_sub(self.used(skyhook))
    }

    /// How many leases are too many for the cap over all Skyhooks.
    #[must_use]
    pub fn over_cap(&self) -> usize {
        let cap = self.cap.unwrap_or(usize::MAX);
        self.used_in_all().saturating_sub(cap)
    }

    /// Why the Skyhook cannot have `extra` slots in addition to those in use; `None` if it can. `extra` is 1 to reserve
    /// a slot, and 0 to ask whether the existing leases fit the budgets.
    #[must_use]
    pub fn refusal(&self, skyhook: &SkyhookFact, extra: usize) -> Option<Reason> {
        let selected = self.selected(skyhook);
        let slots = slots(skyhook, selected.nodes);
        if slots == 0 && selected.nodes > 0 {
            return Some(Reason::new(
                ReasonCode::BudgetZero,
                "interruptionBudget is 0: no node is started until it is raised",
            ));
        }
        let used = self.used(skyhook);
        let unavailable = if extra > 0 { selected.unavailable } else { 0 };
        if used + unavailable + extra > slots {
            // The message has no numbers. It is written on each Node that waits, and numbers would change each time
            // that a slot is taken or given back.
            let message = "waits for a slot of the interruptionBudget";
            return Some(Reason::new(ReasonCode::BudgetExhausted, message));
        }
        let cap = self.cap?;
        (self.used_in_all() + extra > cap).then(|| {
            let message = "waits for a slot of the cluster-wide budget";
            Reason::new(ReasonCode::ClusterBudgetExhausted, message)
        })
    }

    /// Four numbers: slots in use for the Skyhook, slots of its budget, nodes that are not Ready and count, and slots
    /// in use over all Skyhooks.
    pub(super) fn uses(&self, skyhook: &SkyhookFact) -> [usize; 4] {
        let selected = self.selected(skyhook);
        let slots = slots(skyhook, selected.nodes);
        let all = self.used_in_all();
        [self.used(skyhook), slots, selected.unavailable, all]
    }

    /// How much of a Skyhook's budget is in use.
    pub(super) fn use_of_budget(&self, skyhook: &SkyhookFact) -> String {
        let selected = self.selected(skyhook);
        let (used, slots) = (self.used(skyhook), slots(skyhook, selected.nodes));
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

    /// True when all leases of the picture fit the budgets that a Skyhook's lease on `node` falls under.
    #[must_use]
    pub fn fits(&self, skyhook: &SkyhookFact, node: &str) -> bool {
        self.refusal(skyhook, 0).is_none() && !self.has_control_planes_too_many(node)
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
        if !node.is_control_plane() {
            return None;
        }
        let mut taken = self.control_plane.taken.iter();
        if let Some(other) = taken.find(|name| **name != node.name) {
            let message = format!("control-plane node {other} is being worked on: one at a time");
            return Some(Reason::new(ReasonCode::ControlPlane, message));
        }
        self.control_plane_not_ready(node).map(|other| {
            let message = format!("control-plane node {other} is not Ready");
            Reason::new(ReasonCode::ControlPlane, message)
        })
    }

    /// The name of another control-plane node that is not Ready. `None` if there is none, or if `node` is no
    /// control-plane node.
    #[must_use]
    pub fn control_plane_not_ready(&self, node: &NodeFact) -> Option<&'a str> {
        let mut others = self.control_plane.not_ready.iter().copied();
        let other = others.find(|name| *name != node.name);
        other.filter(|_| node.is_control_plane())
    }

    /// Takes a slot for a node that is reserved in this pass.
    pub(super) fn reserve(&mut self, node: &'a NodeFact, skyhook: &SkyhookFact) {
        self.take(&skyhook.uid, DEFAULT_COMPARTMENT, 1);
        if node.is_control_plane() {
            self.control_plane.taken.insert(&node.name);
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
