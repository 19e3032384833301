//! What to do next, from the picture alone. No clock, no I/O, no memory: an effect that was lost comes back in the next
//! pass because the picture still asks for it.
//!
//! The parts of a pass run in a fixed order: the writes for existing leases come before new leases, and the statuses
//! are computed from the results of all other parts.

pub mod admit;
mod adopt;
pub mod cache;
pub mod cause;
pub mod cordon;
pub mod drain;
pub mod lease;
pub mod ledger;
mod leftovers;
mod node_order;
pub mod pacing;
mod reapply;
pub mod reason;
mod revisions;
mod rollouts;
pub mod rollup;
mod scan;
pub mod standing;
pub mod status;
pub(crate) mod taint;
mod takeover;
pub mod tallies;
mod verdict;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::names;

use crate::clocks::{Clocks, Mono};
use crate::effect::{AsOf, Effect, NodePatch, Target};
use crate::facts::{NodeFact, SkyhookFact};
use crate::inflight::{Inflight, REMEMBERED};
use crate::picture::Picture;
use crate::settings::Settings;
use cache::{Cache, Counted, Rest};
use cause::Cause;
use ledger::Ledger;
pub use status::{BatchCounts, CompartmentCounts, Fleet, SkyhookCounts};
pub(crate) use status::{DELETION_BLOCKED, INVALID, NOT_FOUND, STOPPED, names_of};

/// The time, as data.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub mono: Mono,
    /// For people: `since`, `lastTransitionTime`.
    pub wall: Timestamp,
}

/// The read-only input of the planner.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub picture: &'a Picture,
    pub inflight: &'a Inflight,
    pub clocks: &'a Clocks,
    pub settings: &'a Settings,
    pub now: Now,
}

impl View<'_> {
    /// How long something lasts that began at the time `since`, as an API object says it, and that this process saw at the
    /// time `seen` first. The longer of the two counts, so a wall clock that is set back makes nothing wait longer.
    #[must_use]
    pub fn age(&self, since: Timestamp, seen: Option<Mono>) -> Duration {
        let by_wall = self.now.wall.duration_since(since);
        let by_wall = Duration::try_from(by_wall).unwrap_or_default();
        let seen = seen.map(|seen| self.now.mono.since(seen));
        by_wall.max(seen.unwrap_or_default())
    }
}

/// What to write now, and when to look again if nothing changes before.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub effects: Vec<Effect>,
    pub wake_at: Option<Mono>,
    /// Progress of the fleet, in numbers.
    pub fleet: Fleet,
}

/// The least time between two writes of mere progress to the same Node or Skyhook.
pub(crate) const COALESCE: Duration = Duration::from_secs(1);

/// Makes a plan without a cache.
#[must_use]
pub fn plan(view: &View<'_>) -> Plan {
    Cache::default().plan(view)
}

impl Cache {
    /// Makes a plan. Results of the last pass are used again if their keys have not changed.
    #[must_use]
    pub fn plan(&mut self, view: &View<'_>) -> Plan {
        self.counted = Counted::default();
        let mut draft = Draft::new(view);
        if !view.picture.is_synced() {
            return draft.finish(Fleet::default());
        }
        let skyhooks = in_order(view.picture);
        adopt::skyhooks(view, &skyhooks, &mut draft);
        revisions::keep(view, &skyhooks, &mut draft);
        let order: Vec<_> = view.picture.numbered().collect();
        let mut rows = scan::rows(view, &skyhooks, &order, self);
        for at in rows.iter().filter_map(|row| row.until) {
            draft.wake_at(at);
        }
        let mut ledger = Ledger::new(view, &rows, &order, self);
        rollouts::decide(view, &mut rows, &order, &ledger, &mut draft);
        node_order::settle(&mut rows);
        lease::carry_on(view, &rows, &order, &ledger, self, &mut draft);
        reapply::nodes(view, &rows, &order, &mut draft);
        takeover::nodes(view, &rows, &order, &mut draft);
        taint::nodes(view, &rows, &order, self, &mut draft);
        admit::nodes(view, &mut rows, &order, &mut ledger, &mut draft);
        cordon::sweep(view, &rows, &order, self, &mut draft);
        rollup::nodes(view, &mut rows, &order, self, &mut draft);
        leftovers::sweep(view, &rows, &order, self, &mut draft);
        let fleet = status::skyhooks(view, &mut rows, &order, &ledger, self, &mut draft);
        revisions::prune(view, &skyhooks, &order, self, &mut draft);
        let columns = rows
            .into_iter()
            .map(|row| (row.skyhook.name.clone(), row.column));
        self.columns = columns.collect();
        draft.finish(fleet)
    }
}

/// Skyhooks in the order in which they run on a node: priority, then name.
fn in_order(picture: &Picture) -> Vec<&SkyhookFact> {
    let mut skyhooks: Vec<&SkyhookFact> = picture.skyhooks().values().collect();
    skyhooks.sort_by(|a, b| (a.spec.priority, &a.name).cmp(&(b.spec.priority, &b.name)));
    skyhooks
}

/// A plan being made: one effect per target, changes to one Node united into one write.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    view: View<'a>,
    effects: Vec<Effect>,
    taken: BTreeSet<Target>,
    nodes: BTreeMap<String, (NodePatch, BTreeSet<Cause>)>,
    wake_at: Option<Mono>,
    unit: Unit,
}

/// Notes about one result while it is computed.
#[derive(Debug, Default)]
struct Unit {
    /// A write was wanted, whether or not it may be made now.
    wants: bool,
    rest: Rest,
}

impl<'a> Draft<'a> {
    fn new(view: &View<'a>) -> Self {
        Self {
            view: *view,
            effects: Vec::new(),
            taken: BTreeSet::new(),
            nodes: BTreeMap::new(),
            wake_at: None,
            unit: Unit::default(),
        }
    }

    /// Begins the computation of one result.
    fn begin_unit(&mut self) {
        self.unit = Unit::default();
    }

    /// Ends the computation of one result. Returns how long the result stays valid; `None` if it asks for a write and
    /// must not be kept.
    fn end_unit(&mut self) -> Option<Rest> {
        let unit = std::mem::take(&mut self.unit);
        (!unit.wants).then_some(unit.rest)
    }

    /// A result of an earlier pass is used again: takes over the time at which it asks for a pass.
    fn rests(&mut self, rest: Rest) {
        self.wake_at = self.wake_at.into_iter().chain(rest.wake).min();
    }

    /// Notes that a write may be outstanding that cannot be decided now, so that the result is not kept.
    fn is_held_back(&mut self) {
        self.unit.wants = true;
    }

    /// Notes that the result may change at the time `at` although nothing else changes.
    fn holds_until(&mut self, at: Mono) {
        let until = &mut self.unit.rest.until;
        *until = Some(until.map_or(at, |earlier| earlier.min(at)));
    }

    /// Adds an effect, unless its target is unsettled or has an effect in this plan already. Returns true if it was
    /// added.
    pub(crate) fn push(&mut self, effect: Effect) -> bool {
        self.unit.wants = true;
        let target = effect.target();
        if self.view.inflight.is_unsettled(&target) || !self.taken.insert(target) {
            return false;
        }
        self.effects.push(effect);
        true
    }

    /// Adds changes to a Node.
    pub(crate) fn patch(&mut self, node: &NodeFact, patch: NodePatch, cause: Cause) {
        if patch.is_empty() {
            return;
        }
        self.unit.wants = true;
        let (all, causes) = self.nodes.entry(node.name.clone()).or_default();
        all.unite(patch);
        causes.insert(cause);
    }

    /// The node with the cordons, and with the record of who owns them, that this pass has decided on so far. The record
    /// is written as a whole, so every part of a pass that changes it begins with this one.
    pub(crate) fn so_far<'n>(&self, node: &'n NodeFact) -> Cow<'n, NodeFact> {
        let patch = self.nodes.get(&node.name).map(|(patch, _)| patch);
        let patch = patch.filter(|patch| {
            patch.unschedulable.is_some() || patch.annotations.contains_key(names::CORDON_OWNERS)
        });
        patch.map_or(Cow::Borrowed(node), |patch| {
            Cow::Owned(NodeFact {
                cordon: patch.cordons_left(node),
                unschedulable: patch.unschedulable.unwrap_or(node.unschedulable),
                ..node.clone()
            })
        })
    }

    /// Asks for another pass at `at` at the latest.
    pub(crate) fn wake_at(&mut self, at: Mono) {
        self.wake_at = self.wake_at.into_iter().chain([at]).min();
        let rest = &mut self.unit.rest;
        rest.wake = rest.wake.into_iter().chain([at]).min();
    }

    /// True when a target was written so lately that a further write of mere progress should wait; asks to be woken.
    pub(crate) fn is_too_soon(&mut self, target: &Target) -> bool {
        self.is_within(target, COALESCE)
    }

    /// True when a target was written within `pace`; asks to be woken when it is over.
    pub(crate) fn is_within(&mut self, target: &Target, pace: Duration) -> bool {
        match self.view.inflight.written(target).map(|at| at + pace) {
            Some(next) if next > self.view.now.mono => {
                self.unit.wants = true;
                self.wake_at(next);
                true
            }
            _ => false,
        }
    }

    /// True when this pass writes to the Node already.
    pub(crate) fn is_patched(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// True when this pass writes a result to the Node.
    pub(crate) fn is_writing_result(&self, node: &str) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|(_, why)| why.contains(&Cause::Result))
    }

    fn finish(mut self, fleet: Fleet) -> Plan {
        for (name, (patch, why)) in std::mem::take(&mut self.nodes) {
            let Some(node) = self.view.picture.nodes().get(&name) else {
                continue;
            };
            let patch = patch.reduced(node);
            if !patch.is_empty() {
                self.push(Effect::PatchNode {
                    node: name,
                    at: version(&node.uid, &node.resource_version),
                    patch,
                    why,
                });
            }
        }
        let view = self.view;
        let patience = view.inflight.patience_ends();
        for at in view.clocks.backoffs_end().chain(patience) {
            self.wake_at(at);
        }
        Plan {
            effects: self.effects,
            wake_at: self.wake_at,
            fleet,
        }
    }
}

pub(crate) fn version(uid: &str, resource_version: &str) -> AsOf {
    AsOf {
        uid: uid.to_owned(),
        resource_version: resource_version.to_owned(),
    }
}

pub use lease::VERSION;
pub use rollup::seconds;

#[cfg(test)]
mod tests;
