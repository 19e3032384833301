//! The runtime-required taint: nodes that join with it or get it, and the rules about it.
//!
//! A third of the worlds have it. What it does there is drawn from a chance of its own, so that all other worlds are as they
//! would be without it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize as _;
use serde_json::{Value, json};
use skyhook_crds::names;
use skyhook_fleet::facts::{NodeFact, SkyhookFact, WireNode};
use skyhook_fleet::taints;

use super::{LEASES, NODES, Sender, World};
use crate::sim::agent::Core;
use crate::sim::rng::Rng;

/// What the world knows about taints.
#[derive(Debug, Default)]
pub(super) struct Taints {
    /// `None` in a world without them.
    chance: Option<Rng>,
    /// The taints that the kubelet of a node registers it with.
    joins: BTreeMap<String, Vec<Value>>,
}

/// What coordinators had seen when they decided on writes to Nodes.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// By coordinator and node: all that had happened to Skyhooks until then.
    until: BTreeMap<(usize, String), u64>,
    /// By UID of a Skyhook: when it last became another.
    changed: BTreeMap<String, (u64, Told)>,
}

/// What a Skyhook says about taints and about what has to be installed.
type Told = (bool, i64);

impl Seen {
    pub(super) fn decided(&mut self, index: usize, node: &str, until: u64) {
        self.until.insert((index, node.to_owned()), until);
    }

    pub(super) fn respecified(&mut self, now: u64, skyhook: &SkyhookFact) {
        let told = (skyhook.deleting, skyhook.generation);
        let held = self.changed.get(&skyhook.uid);
        if held.is_none_or(|(_, held)| *held != told) {
            self.changed.insert(skyhook.uid.clone(), (now, told));
        }
    }

    /// True when the coordinator had seen the Skyhook as it is now when it decided on its last write to the node.
    fn knows(&self, index: usize, node: &str, skyhook: &SkyhookFact) -> bool {
        let until = self.until.get(&(index, node.to_owned()));
        let changed = self.changed.get(&skyhook.uid);
        let changed = changed.map_or(0, |(at, _)| *at);
        until.is_some_and(|until| changed <= *until)
    }
}

fn ours() -> Value {
    json!({ "key": names::GROUP, "value": "runtime-required", "effect": "NoSchedule" })
}

fn foreign() -> Value {
    json!({ "key": "example.com/agent-not-ready", "effect": "NoSchedule" })
}

/// True when a taint keeps pods that tolerate none off the node.
pub(super) fn keeps_pods_off(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    let mut taints = taints.into_iter().flatten();
    taints.any(|taint| taint["effect"] == "NoSchedule")
}

impl<C: Core> World<'_, C> {
    fn is_ours(&self, node: &NodeFact, taint: &Taint) -> bool {
        taints::is_ours(&self.settings.runtime_taint, node, taint)
    }

    pub(super) fn set_up_taints(&mut self) {
        let mut chance = self.rng.clone();
        let windows = if chance.one_in(3) {
            self.taints.chance = Some(Rng::new(chance.below(u64::MAX)));
            u64::from(self.draw(3) == 0)
        } else {
            0
        };
        for n in 0..windows {
            let body = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {
                    "name": format!("windows-{n}"),
                    "labels": { "tier": "a", "kubernetes.io/os": "windows" },
                },
                "spec": { "taints": [ours()] },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            });
            self.as_admin("POST", "/api/v1/nodes", body);
        }
    }

    /// A number below `n`, from the chance of taints; the greatest in a world without them.
    fn draw(&mut self, n: u64) -> u64 {
        let chance = self.taints.chance.as_mut();
        chance.map_or(n - 1, |chance| chance.below(n))
    }

    /// The taints that a node is registered with: each time the same.
    pub(super) fn taints_that_join(&mut self, node: &str) -> Value {
        if self.taints.chance.is_none() {
            return json!([]);
        }
        let draw = self.draw(5);
        let joins = self.taints.joins.entry(node.to_owned());
        let joins = joins.or_insert_with(|| match draw {
            0 | 1 => vec![ours()],
            2 => vec![foreign(), ours()],
            3 => vec![foreign()],
            _ => Vec::new(),
        });
        json!(joins)
    }

    /// What a Skyhook says about taints.
    pub(super) fn require_taints(&mut self, spec: &mut Value) {
        if self.draw(4) < 3 {
            spec["runtimeRequired"] = json!(true);
            spec["autoTaintNewNodes"] = json!(self.draw(2) == 0);
            spec["runtimeRequiredCordonAfter"] = json!(self.draw(4) == 0);
        }
    }

    /// What people do to nodes; in a world with taints somebody also puts one on, or takes one off.
    pub(super) fn meddle_with_taints(&mut self) {
        self.meddle();
        if self.taints.chance.is_none() {
            return;
        }
        let nodes: Vec<String> = self.machines.keys().cloned().collect();
        let at = self.draw(nodes.len().max(1) as u64);
        let node = nodes.get(usize::try_from(at).unwrap_or_default());
        let Some(object) = node.and_then(|node| self.api.get(NODES, node)) else {
            return;
        };
        let taints = object["spec"]["taints"].as_array();
        let mut taints = taints.cloned().unwrap_or_default();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/nodes/{name}");
        let change = match self.draw(4) {
            0 if !taints.contains(&ours()) => ours(),
            1 if !taints.contains(&foreign()) => foreign(),
            2 => return self.set_taints(&path, taints.split_off(taints.len().min(1))),
            _ => return,
        };
        taints.insert(0, change);
        self.set_taints(&path, taints);
    }

    fn set_taints(&mut self, path: &str, taints: Vec<Value>) {
        let now = self.now;
        self.checks.excuse("", now);
        self.as_admin("PATCH", path, json!({ "spec": { "taints": taints } }));
    }

    /// What other start-up taints wait for has come.
    pub(super) fn take_foreign_taints_off(&mut self) {
        let nodes = self.api.list(NODES);
        let tainted: Vec<(String, Vec<Value>)> = nodes
            .filter_map(|(name, node)| {
                let taints = node["spec"]["taints"].as_array()?;
                let left = taints.iter().filter(|taint| **taint != foreign());
                let left: Vec<Value> = left.cloned().collect();
                (left.len() < taints.len()).then(|| (name.clone(), left))
            })
            .collect();
        for (name, left) in tainted {
            self.set_taints(&format!("/api/v1/nodes/{name}"), left);
        }
        for joins in self.taints.joins.values_mut() {
            joins.retain(|taint| *taint != foreign());
        }
    }

    /// Holds the rules about taints against a write to a Node.
    pub(super) fn check_taints(&mut self, name: &str, before: Option<&Value>, after: &NodeFact) {
        let Some(Sender::Replica { index, .. }) = self.checks.author.clone() else {
            return;
        };
        let before = before.map(|node| WireNode::deserialize(node).unwrap_or_default());
        let Some(before) = before.map(NodeFact::new) else {
            return;
        };
        if !after.is_host() {
            self.fail(format!("a coordinator writes to {name}, which is no host"));
        }
        if let Some(problem) = self.broken_taint(index, &before, after) {
            self.fail(problem);
        }
        let mark = names::RUNTIME_REQUIRED_CORDON;
        // Somebody may have uncordoned the node, and tainted it anew, while it had the mark.
        let was_marked = before.annotations.contains_key(mark) && before.unschedulable;
        if after.annotations.contains_key(mark) && after.unschedulable && !was_marked {
            // From here on it is as if an administrator had cordoned the node.
            self.checks.cordoned.insert(name.to_owned());
        }
    }

    /// Which rule about taints a coordinator's write breaks, if any.
    fn broken_taint(&self, index: usize, before: &NodeFact, after: &NodeFact) -> Option<String> {
        let name = &after.name;
        let is_ours = |taint: &&Taint| self.is_ours(before, taint);
        let others = |node: &NodeFact| -> Vec<Taint> {
            let others = node.taints.iter().filter(|taint| !is_ours(taint));
            others.cloned().collect()
        };
        if others(before) != others(after) {
            return Some(format!(
                "a coordinator changes taints of {name} that are not ours"
            ));
        }
        let carries = |node: &NodeFact| node.taints.iter().any(|taint| is_ours(&taint));
        let mut known = self
            .checks
            .skyhooks
            .values()
            .filter(|skyhook| self.checks.seen.knows(index, name, skyhook));
        if carries(before) && !carries(after) {
            let open = known
                .find(|skyhook| skyhook.requires(before) && !self.is_on_record(skyhook, after));
            return open.map(|open| {
                let open = &open.name;
                format!("the taint is taken off {name}, where {open} is not complete")
            });
        }
        let granted = after.records.values().any(|record| {
            let stamp = record.stamp.as_ref();
            stamp.is_some_and(|stamp| !stamp.granted.is_empty())
        });
        let is_first = before.is_new() && !after.is_new() && !before.is_ignored();
        if !is_first || carries(after) || granted {
            return None;
        }
        let first = known.find(|skyhook| skyhook.taints_new(before))?;
        let first = &first.name;
        Some(format!(
            "{name} is marked before {first} has its taint put on"
        ))
    }

    /// True when the Node says that every package that the Skyhook wants is installed, by a result and not by what an agent
    /// reports while it works.
    fn is_on_record(&self, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
        if skyhook.checked.is_err() {
            return false;
        }
        let record = node.record(&skyhook.name);
        let stamp = record.stamp.as_ref();
        let lease = self.api.get(LEASES, &node.name).filter(|lease| {
            let spec = &lease["spec"];
            spec["skyhook"]["uid"] == *skyhook.uid && spec["node"]["uid"] == *node.uid
        });
        let is_under_way = lease.is_some_and(|lease| {
            let recorded = stamp.is_some_and(|stamp| lease["metadata"]["uid"] == *stamp.lease);
            !lease["status"]["phase"].is_null() && !recorded
        });
        let states = record.states.as_ref();
        !is_under_way && states.is_ok_and(|states| self.work(skyhook, node, states).is_empty())
    }

    /// What is not as it has to be when everything is at rest.
    pub(super) fn unmet_taint(&self, node: &NodeFact) -> Option<String> {
        let name = &node.name;
        let mark = names::RUNTIME_REQUIRED_CORDON;
        if node.annotations.contains_key(mark) && !node.unschedulable {
            return Some(format!("{name} is uncordoned and has the mark of a cordon"));
        }
        let ours: Vec<&Taint> = node
            .taints
            .iter()
            .filter(|t| self.is_ours(node, t))
            .collect();
        if ours.is_empty() {
            let protects = &node.cordon.protects;
            return (!protects.is_empty()).then(|| format!("{name} is protected: {protects:?}"));
        }
        let skyhooks = self.checks.skyhooks.values();
        let required: Vec<&SkyhookFact> = skyhooks.filter(|s| s.requires(node)).collect();
        let put_by_us = ours.iter().any(|taint| taints::is_put_by_us(node, taint));
        if required.is_empty() && put_by_us {
            return Some(format!("{name} keeps a taint of ours that nobody requires"));
        }
        // Whether one is complete that gets no lease may be known to its host alone.
        let nobody = BTreeSet::new();
        let waits = |skyhook: &&SkyhookFact| {
            !self.is_at(skyhook, node)
                || skyhook.is_disabled()
                || skyhook.is_paused()
                || self.is_excused(skyhook, node, &nobody)
        };
        let is_kept = required.is_empty() || required.iter().any(waits);
        (!is_kept).then(|| format!("{name} keeps the taint although all is complete"))
    }

    /// True when a taint keeps the Skyhook off the node.
    pub(super) fn is_kept_off_by_taint(&self, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
        node.taints.iter().any(|taint| {
            let is_required = skyhook.taint.required && self.is_ours(node, taint);
            !is_required && taint.key != names::UNSCHEDULABLE_TAINT
        })
    }
}
