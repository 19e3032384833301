//! Endings that are not all healthy: nodes that never come back, agents that never start, steps that never succeed, pods
//! that are never let go. What they are about stands still and says why; everything else gets where it belongs.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use skyhook_crds::names;
use skyhook_fleet::facts::{NodeFact, SkyhookFact};

use super::{Event, LEASES, World};
use crate::sim::Shape;
use crate::sim::agent::Core;

/// What never gets well again on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affliction {
    /// The machine is down for ever.
    Down,
    /// It runs, and its kubelet is never heard of again.
    NotReady,
    /// Its agent never starts again.
    NoAgent,
    /// Every step fails.
    Failing,
    /// No pod is ever evicted from it.
    Undrainable,
}

impl Affliction {
    const ALL: [Self; 5] = [
        Self::Down,
        Self::NotReady,
        Self::NoAgent,
        Self::Failing,
        Self::Undrainable,
    ];
}

/// How many writes a minute one node that stands still may cost: retries, back-offs, and what is said of them.
pub(super) const WRITES_A_MINUTE: usize = 60;
/// When Skyhooks are deleted or disabled, after the world has become calm.
const LATER: u64 = 120_000;
/// Within this time a Skyhook that is deleted is gone, whatever became of its nodes: graceful shutdown, a minute, and what
/// a try with an agent that is not there takes.
const DELETED: u64 = 10 * 60_000;

impl<C: Core> World<'_, C> {
    pub(super) fn affliction(&self, node: &str) -> Option<Affliction> {
        self.weather.afflicted.get(node).copied()
    }

    pub(super) fn is(&self, node: &str, affliction: Affliction) -> bool {
        self.affliction(node) == Some(affliction)
    }

    /// From now on some things never get well.
    pub(super) fn forsake(&mut self) {
        if self.shape != Shape::Forsaken {
            return;
        }
        let nodes: Vec<String> = self.machines.keys().cloned().collect();
        for node in nodes {
            if !self.rng.one_in(2) {
                continue;
            }
            let Some(affliction) = self.rng.pick(&Affliction::ALL).copied() else {
                continue;
            };
            self.note(|| format!("{node} never gets well again: {affliction:?}"));
            self.weather.afflicted.insert(node.clone(), affliction);
            match affliction {
                Affliction::Down => self.power_off(&node, 0),
                Affliction::NotReady => self.set_unready(&node, true),
                Affliction::NoAgent => self.kill_agent(&node, None),
                Affliction::Undrainable => {
                    for _ in 0..2 {
                        self.schedule_pod(&node);
                    }
                }
                Affliction::Failing => {}
            }
        }
        let names: Vec<String> = self.checks.skyhooks.keys().cloned().collect();
        for name in names {
            match self.rng.below(6) {
                0 | 1 => self.after(LATER, Event::Delete(name)),
                2 => self.after(LATER, Event::Disable(name)),
                _ => {}
            }
        }
    }

    pub(super) fn delete(&mut self, skyhook: &str) {
        let now = self.now;
        self.checks.excuse("", now);
        let path = format!("/apis/skyhook.nvidia.com/v1alpha1/skyhooks/{skyhook}");
        self.as_admin("DELETE", &path, Value::Null);
    }

    pub(super) fn disable(&mut self, skyhook: &str) {
        let now = self.now;
        self.checks.excuse("", now);
        let path = format!("/apis/skyhook.nvidia.com/v1alpha1/skyhooks/{skyhook}");
        let body = json!({ "metadata": { "annotations": { names::DISABLE: "true" } } });
        self.as_admin("PATCH", &path, body);
    }

    /// What has no way out although it was deleted or disabled long ago.
    pub(super) fn has_no_way_out(&self) -> Option<String> {
        let calm = self.weather.calm_since?;
        if self.shape != Shape::Forsaken || self.now < calm + LATER + DELETED {
            return None;
        }
        let out = |skyhook: &&SkyhookFact| skyhook.deleting || skyhook.is_disabled();
        let skyhooks = self.checks.skyhooks.values().filter(out);
        for skyhook in skyhooks {
            // What has to be uninstalled holds it up until somebody acts.
            if skyhook.deleting && self.is_kept(skyhook) {
                continue;
            }
            if skyhook.deleting {
                return Some(format!("Skyhook {} is still there", skyhook.name));
            }
            let held = self.api.list(LEASES);
            let mut held =
                held.filter(|(_, lease)| lease["spec"]["skyhook"]["uid"] == *skyhook.uid);
            if let Some((node, _)) = held.next() {
                return Some(format!(
                    "the disabled {} holds the lease of {node}",
                    skyhook.name
                ));
            }
        }
        None
    }

    /// Whether everything that people do after it became calm has been done, and has had its time.
    pub(super) fn is_over(&self, calm: u64) -> bool {
        self.shape != Shape::Forsaken || self.now > calm + 2 * LATER
    }

    /// Whether what stands still holds every slot of a Skyhook.
    pub(super) fn is_full(&self, skyhook: &SkyhookFact, held: &BTreeSet<&str>) -> bool {
        let selected = self
            .checks
            .nodes
            .values()
            .filter(|node| skyhook.selects(node));
        let slots = skyhook.spec.interruption_budget.as_ref();
        let slots = slots.map_or(usize::MAX, |budget| budget.slots(selected.count()));
        let leases = self.api.list(LEASES);
        let kept = leases.filter(|(node, lease)| {
            lease["spec"]["skyhook"]["uid"] == *skyhook.uid && held.contains(node.as_str())
        });
        kept.count() >= slots
    }

    /// A node that does not move says why.
    pub(super) fn is_silent(&self, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
        if self.affliction(&node.name).is_none() || skyhook.is_disabled() || skyhook.deleting {
            return false;
        }
        // An agent that said in this boot that it works, and then died, cannot be told from one that works.
        let lease = self.api.get(LEASES, &node.name);
        let has_worked = lease.is_some_and(|lease| lease["status"]["bootID"] == *node.boot_id);
        if self.is(&node.name, Affliction::NoAgent) && has_worked {
            return false;
        }
        let status = node.labels.get(&names::status(&skyhook.name));
        let reason = node.annotations.get(&names::reason(&skyhook.name));
        status != Some("complete") && reason.is_none()
    }
}
