//! The rules, held against what is stored and what the hosts do, never against what a coordinator believes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::Value;
use skyhook_crds::names;
use skyhook_fleet::effect::Effect;
use skyhook_fleet::facts::{NodeFact, SkyhookFact, WireNode, WireSkyhook};

use super::paced::Paced;
use super::slots::Slots;
use super::taints::Seen;
use super::{LEASES, NODES, POLICIES, REVISIONS, ROLLOUTS, SKYHOOKS, Sender, World};
use crate::sim::agent::Core;
use crate::sim::api::Request;

/// What the rules need to remember.
#[derive(Debug, Default)]
pub struct Checks {
    /// Who writes just now; `None` for everybody who is neither coordinator nor agent.
    pub author: Option<Sender>,
    /// The truth, decoded.
    pub nodes: BTreeMap<String, NodeFact>,
    pub skyhooks: BTreeMap<String, SkyhookFact>,
    granted: BTreeMap<String, Grant>,
    /// Slots that a coordinator could see when it decided to grant, by coordinator and lease.
    caps: BTreeMap<(usize, String), usize>,
    pub(super) slots: Slots,
    pub(super) paced: Paced,
    pub(super) seen: Seen,
    /// Leases whose agent may interrupt the host.
    permitted: BTreeSet<String>,
    /// When an agent said that its lease is over: node to time.
    ended: BTreeMap<String, u64>,
    /// Nodes that an administrator cordoned.
    pub cordoned: BTreeSet<String>,
    /// Nodes whose cordon an administrator changed while one of ours was on.
    pub meddled: BTreeSet<String>,
    /// Nodes whose record somebody has edited, or whose machine is another one.
    pub(super) rewritten: BTreeSet<String>,
    pub(super) statuses: BTreeMap<String, Vec<(u64, String)>>,
    /// When something last gave a status a reason to change, by node; "" for all.
    excuses: BTreeMap<String, u64>,
}

#[derive(Clone, Debug)]
struct Grant {
    node: String,
    node_uid: String,
    skyhook: String,
    /// Leases in the order of their creation.
    order: u64,
    cap: usize,
}

/// Whose status it is.
#[derive(Clone, Copy, Debug)]
enum Of<'a> {
    Node(&'a str, &'a str),
    Skyhook(&'a str),
}

/// A cause may be this old when its effect shows.
const CAUSE: u64 = 30_000;

impl Checks {
    /// True when the agent of the lease wrote `Running` over `Drained`.
    #[must_use]
    pub fn is_permitted(&self, lease: &str) -> bool {
        self.permitted.contains(lease)
    }

    /// Something happened to a node that may change its status there and back.
    pub fn excuse(&mut self, node: &str, now: u64) {
        let at = self.excuses.entry(node.to_owned()).or_default();
        *at = now.max(*at);
    }

    /// A Skyhook holds another one up, or no longer.
    fn excuse_others(&mut self, skyhook: &str, now: u64) {
        self.excuses.insert(format!("not {skyhook}"), now);
    }

    fn is_excused(&self, of: Of<'_>, since: u64) -> bool {
        self.excuses
            .iter()
            .filter(|(_, at)| **at + CAUSE >= since)
            .any(|(key, _)| match (of, key.strip_prefix("not ")) {
                (Of::Node(node, _), None) => key.is_empty() || key == node,
                (Of::Skyhook(_), None) => true,
                (Of::Node(_, skyhook) | Of::Skyhook(skyhook), Some(not)) => not != skyhook,
            })
    }

    /// Takes a status in. Says whether it went there and back without a cause.
    fn flaps(&mut self, key: &str, of: Of<'_>, now: u64, status: &str) -> bool {
        let history = self.statuses.get(key).cloned().unwrap_or_default();
        if history.last().is_some_and(|(_, last)| last == status) {
            return false;
        }
        // A package that fails, and then does not, is the host's doing.
        let failed = [status, history.last().map_or("", |(_, last)| last)].contains(&"erroring");
        let back = history.len() >= 2 && history[history.len() - 2].1 == status;
        let flaps = back && !failed && !self.is_excused(of, history[history.len() - 2].0);
        let history = self.statuses.entry(key.to_owned()).or_default();
        history.push((now, status.to_owned()));
        flaps
    }

    /// The statuses that something has had.
    #[must_use]
    pub fn history(&self, key: &str) -> String {
        let history = self.statuses.get(key).cloned().unwrap_or_default();
        let words: Vec<String> = history
            .iter()
            .map(|(at, status)| format!("{status}@{}.{:03}", at / 1000, at % 1000))
            .collect();
        words.join(" ")
    }
}

/// The labels that a selector may ask for: not those that say how far a roll-out is.
fn theirs_of(node: &NodeFact) -> impl Iterator<Item = (&str, &str)> {
    let labels = node.labels.iter();
    labels.filter(|(key, _)| !key.starts_with(names::GROUP))
}

impl<C: Core> World<'_, C> {
    /// Notes what a coordinator could know when it decided on an effect.
    pub(super) fn decided(&mut self, index: usize, effect: &Effect) {
        if let Effect::PatchNode { node, .. } = effect {
            let since = self.seen_until(index, &[SKYHOOKS]);
            self.checks.seen.decided(index, node, since);
        }
        if let Effect::ReserveLease { node, spec } = effect {
            self.check_gate(index, node, &spec.skyhook.name);
        }
        let Effect::GrantLease { node, at, .. } = effect else {
            return;
        };
        let since = self.seen_until(index, &[NODES, SKYHOOKS, POLICIES]);
        let lease = self.api.get(LEASES, node);
        let skyhook = lease.and_then(|l| l["spec"]["skyhook"]["uid"].as_str());
        let cap = self.checks.slots.most(skyhook.unwrap_or_default(), since);
        self.checks.caps.insert((index, at.uid.clone()), cap);
        if let Some(lease) = lease {
            self.checks.paced.decided(index, lease, since);
        }
    }

    /// The time until which a coordinator has seen all that happened to objects of some kinds.
    fn seen_until(&self, index: usize, kinds: &[&str]) -> u64 {
        let replica = self.replicas.get(index);
        let running = replica.and_then(|replica| replica.running.as_ref());
        let unseen = kinds.iter().filter_map(|kind| {
            let next = running.and_then(|running| running.position(kind));
            let entry = self.api.log(kind, next.unwrap_or_default()).first()?;
            // It has seen what was before that.
            Some(entry.at.saturating_sub(1))
        });
        unseen.chain([self.now]).min().unwrap_or_default()
    }

    /// Every write of a coordinator to an object that exists says what it was decided on.
    pub(super) fn check_precondition(&mut self, request: &Request) {
        let ours = [NODES, SKYHOOKS, LEASES, REVISIONS]
            .iter()
            .any(|kind| request.path.contains(&format!("/{kind}/")));
        let said = match request.method.as_str() {
            "PATCH" | "PUT" => &request.body["metadata"],
            "DELETE" => &request.body["preconditions"],
            _ => return,
        };
        let guarded = !said["uid"].is_null() && !said["resourceVersion"].is_null();
        if ours && !guarded {
            self.fail(format!(
                "a coordinator writes without a precondition: {} {} {}",
                request.method, request.path, request.body
            ));
        }
    }

    /// Holds the rules against one entry of a log.
    pub(super) fn observe(&mut self, kind: &'static str, at: usize) {
        let Some(entry) = self.api.log(kind, at).first().cloned() else {
            return;
        };
        let (before, after) = (entry.before.as_deref(), entry.after.as_deref());
        match kind {
            NODES => self.observe_node(&entry.key, before, after),
            SKYHOOKS => self.observe_skyhook(&entry.key, before, after),
            LEASES => {
                self.observe_lease(&entry.key, before, after);
                self.inform_agent(&entry.key, entry.after.clone());
            }
            POLICIES => {
                if let Some(after) = after {
                    self.checks.paced.respecified(self.now, after);
                }
            }
            ROLLOUTS => {
                if let Some(after) = after {
                    self.observe_batches(after);
                }
            }
            _ => {}
        }
    }

    fn observe_node(&mut self, name: &str, before: Option<&Value>, after: Option<&Value>) {
        let now = self.now;
        let Some(after) = after else {
            self.checks.nodes.remove(name);
            self.checks.slots.moved(now, &self.checks.nodes);
            return;
        };
        let cordoned = |node: &Value| node["spec"]["unschedulable"] == true;
        let uncordoned = before.is_some_and(cordoned) && !cordoned(after);
        let by_coordinator = matches!(self.checks.author, Some(Sender::Replica { .. }));
        if uncordoned
            && by_coordinator
            && let Some(ended) = self.checks.ended.remove(name)
        {
            self.stats.given_back.push(now - ended);
        }
        // Where an administrator took off a cordon of ours and set one again, nothing tells the two apart.
        let theirs = self.checks.cordoned.contains(name) && !self.checks.meddled.contains(name);
        if uncordoned && by_coordinator && theirs {
            self.fail(format!("an administrator's cordon of {name} is undone"));
        }
        let fact = NodeFact::new(WireNode::deserialize(after).unwrap_or_default());
        // With our marks gone and the node as they left it, what they do from here on is plain again.
        if fact.cordon.owners.is_empty()
            && fact.unschedulable == self.checks.cordoned.contains(name)
        {
            self.checks.meddled.remove(name);
        }
        let prefix = format!("{}/status_", names::GROUP);
        for (label, status) in fact.labels.iter() {
            let Some(skyhook) = label.strip_prefix(&prefix) else {
                continue;
            };
            let key = format!("{name} {} {skyhook}", fact.uid);
            if self
                .checks
                .flaps(&key, Of::Node(name, skyhook), now, status)
            {
                let history = self.checks.history(&key);
                self.fail(format!(
                    "the status of {skyhook} on {name} flaps: {history}"
                ));
            }
        }
        let held = self.checks.nodes.get(name).cloned();
        self.check_marks(held.as_ref(), &fact);
        self.check_order_of_node(&fact);
        self.check_taints(name, before, &fact);
        let moved = self
            .checks
            .nodes
            .get(name)
            .is_none_or(|held| theirs_of(held).ne(theirs_of(&fact)));
        self.checks.nodes.insert(name.to_owned(), fact);
        if moved {
            self.checks.slots.moved(now, &self.checks.nodes);
        }
    }

    fn observe_skyhook(&mut self, name: &str, before: Option<&Value>, after: Option<&Value>) {
        let now = self.now;
        let Some(after) = after else {
            self.skyhook_gone(name);
            let delay = self.rng.between(100, 5_000);
            self.after(delay, super::Event::Collect);
            return;
        };
        let fact = SkyhookFact::new(WireSkyhook::deserialize(after).unwrap_or_default());
        if let Some(status) = after["status"]["status"].as_str() {
            let key = format!("{name} {}", fact.uid);
            if self.checks.flaps(&key, Of::Skyhook(name), now, status) {
                let history = self.checks.history(&key);
                self.fail(format!("the status of Skyhook {name} flaps: {history}"));
            }
        }
        let turns = self.is_turned(name, before, after);
        let moved = turns || before.is_none_or(|before| before["spec"] != after["spec"]);
        if moved {
            self.checks.slots.respecified(now, &fact);
        }
        self.checks.seen.respecified(now, &fact);
        self.checks.skyhooks.insert(name.to_owned(), fact);
    }

    fn observe_lease(&mut self, node: &str, before: Option<&Value>, after: Option<&Value>) {
        if before.is_none() || after.is_none() {
            let lease = before.or(after).map(|l| &l["spec"]["skyhook"]["name"]);
            let skyhook = lease.and_then(Value::as_str).unwrap_or_default().to_owned();
            let now = self.now;
            self.checks.excuse_others(&skyhook, now);
        }
        let null = Value::Null;
        let (old, new) = (before.unwrap_or(&null), after.unwrap_or(&null));
        let Some(after) = after else {
            self.observe_release(node, old);
            return;
        };
        let uid = after["metadata"]["uid"].as_str().unwrap_or_default();
        if old["spec"]["granted"].is_null() && !new["spec"]["granted"].is_null() {
            self.stats.grants += 1;
            self.observe_grant(node, uid, after);
            self.check_order_of_grant(node, after);
        }
        let phase = |lease: &Value| lease["status"]["phase"].as_str().unwrap_or("").to_owned();
        let drain = |lease: &Value| {
            lease["spec"]["drain"]["state"]
                .as_str()
                .unwrap_or("")
                .to_owned()
        };
        let deleting = !old["metadata"]["deletionTimestamp"].is_null();
        if phase(old).is_empty()
            && !phase(new).is_empty()
            && (new["spec"]["granted"].is_null() || deleting)
        {
            self.fail(format!(
                "the lease of {node} is accepted without a grant, or on its way out"
            ));
        }
        if phase(old) != "Running"
            && phase(new) == "Running"
            && drain(old) == "Drained"
            && !deleting
        {
            self.checks.permitted.insert(uid.to_owned());
        }
        if phase(old) != "Complete" && phase(new) == "Complete" {
            self.checks.ended.insert(node.to_owned(), self.now);
        }
        if matches!(phase(new).as_str(), "Complete" | "Stopped") {
            self.checks.permitted.remove(uid);
        }
        if self.checks.is_permitted(uid)
            && phase(old) == "Running"
            && drain(old) == "Drained"
            && drain(new) != "Drained"
        {
            self.fail(format!("Drained is taken back from {node}, which runs"));
        }
        if drain(old) != "Drained" && drain(new) == "Drained" {
            self.observe_drained(node, after);
        }
    }

    fn observe_grant(&mut self, node: &str, uid: &str, lease: &Value) {
        let skyhook = lease["spec"]["skyhook"]["uid"].as_str().unwrap_or_default();
        let cap = match &self.checks.author {
            Some(Sender::Replica { index, .. }) => {
                self.checks.caps.get(&(*index, uid.to_owned())).copied()
            }
            Some(Sender::Agent { .. }) | None => None,
        };
        let order = uid.rsplit('-').next().and_then(|n| n.parse().ok());
        let grant = Grant {
            node: node.to_owned(),
            node_uid: lease["spec"]["node"]["uid"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            skyhook: skyhook.to_owned(),
            order: order.unwrap_or_default(),
            cap: cap.unwrap_or_default(),
        };
        self.checks.granted.insert(uid.to_owned(), grant);
        let index = match &self.checks.author {
            Some(Sender::Replica { index, .. }) => Some(*index),
            Some(Sender::Agent { .. }) | None => None,
        };
        self.observe_paced_grant(index, uid, lease);
        let of_skyhook = || {
            self.checks
                .granted
                .values()
                .filter(|g| g.skyhook == skyhook)
        };
        let count = of_skyhook().count();
        // Of one too many, the one that was created last was granted from a picture that held all others.
        let cap = of_skyhook().max_by_key(|g| g.order).map_or(0, |g| g.cap);
        let all = self.checks.granted.len();
        let most = self.settings.max_concurrent_nodes.unwrap_or(usize::MAX);
        let control_plane = self.checks.granted.values().filter(|g| {
            // One that was registered anew under the name is another.
            let node = self.checks.nodes.get(&g.node);
            node.is_some_and(|node| node.uid == g.node_uid && node.is_control_plane())
        });
        let control_plane = control_plane.count();
        if count > cap {
            let name = &lease["spec"]["skyhook"]["name"];
            self.fail(format!(
                "{count} leases of {name} are granted, the budget is {cap}"
            ));
        } else if all > most {
            self.fail(format!(
                "{all} leases are granted, the cluster-wide budget is {most}"
            ));
        } else if control_plane > 1 {
            self.fail(format!(
                "{control_plane} control-plane nodes are worked on at once"
            ));
        }
    }

    fn observe_drained(&mut self, node: &str, lease: &Value) {
        let there = self.api.get(NODES, node);
        // A Node that was registered anew meanwhile is another: its agent ignores the lease.
        let Some(there) = there.filter(|n| n["metadata"]["uid"] == lease["spec"]["node"]["uid"])
        else {
            return;
        };
        let cordoned = there["spec"]["unschedulable"] == true;
        if self.checks.meddled.contains(node) {
            return;
        }
        let left = self.pod_left(node, lease);
        if !cordoned {
            self.fail(format!("{node} is Drained and not cordoned"));
        } else if let Some(pod) = left {
            self.fail(format!("{node} is Drained and pod {pod} is there"));
        }
    }

    /// A slot is free only when the node is as it was found, or its result is on record.
    fn observe_release(&mut self, node: &str, lease: &Value) {
        let uid = lease["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.checks.granted.remove(&uid);
        self.checks.paced.released(&uid);
        let stop = lease["spec"]["stop"]["reason"].as_str().unwrap_or_default();
        let owner = &lease["spec"]["skyhook"];
        let wants_it = owner["name"].as_str().and_then(|name| {
            let there = self.checks.skyhooks.get(name)?;
            let same = owner["uid"] == *there.uid;
            (same && !there.deleting && !there.is_disabled()).then_some(())
        });
        // The order to stop may be an older one, for another reason.
        let gives_up = matches!(stop, "Deleted" | "Disabled") || wants_it.is_none();
        let is_accepted = !lease["status"]["phase"].is_null();
        let rest = if is_accepted {
            (stop == "DrainTimedOut").then_some(self.settings.drain_cool_down)
        } else {
            Some(self.settings.agent_backoff)
        };
        if gives_up || rest.is_some() {
            // Whoever waited for the node goes on, and it is tried again when it has been left alone for a while.
            let rest = u64::try_from(rest.unwrap_or_default().as_millis()).unwrap_or_default();
            self.checks.excuse(node, self.now + rest);
        }
        if !is_accepted {
            return;
        }
        let forced = &lease["metadata"]["annotations"][names::FORCE_RELEASE];
        let there = self
            .api
            .get(NODES, node)
            .filter(|n| n["metadata"]["uid"] == lease["spec"]["node"]["uid"]);
        let Some(there) = there.map(Arc::clone) else {
            return;
        };
        if *forced == *uid {
            return;
        }
        let skyhook = lease["spec"]["skyhook"]["name"]
            .as_str()
            .unwrap_or_default();
        let stamp = there["metadata"]["annotations"][names::stamp(skyhook).as_str()]
            .as_str()
            .unwrap_or_default();
        if stamp == super::faults::NONSENSE {
            return;
        }
        let recorded = stamp.contains(&format!("\"lease\":\"{uid}\""));
        let machine = self.machines.get(node);
        let runs = machine.is_some_and(|m| m.running().any(|step| step.lease == uid));
        if !recorded && !gives_up {
            self.fail(format!(
                "the lease of {node} is released without its result"
            ));
        } else if runs && recorded {
            self.fail(format!(
                "the lease of {node} is released while a step of it runs"
            ));
        }
    }
}
