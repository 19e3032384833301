//! The cluster picture: what the watches delivered, plus the few facts that only this process can know.
//!
//! One task owns it. Leases come from their watch alone, one ordered stream, because grants are decided from
//! that picture; of everything else the objects that writes return are folded in at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::StopReason;
use skyhook_crds::lease::protocol::is_older;

use crate::effect::{Effect, Target};
use crate::facts::{
    LeaseFact, NodeFact, RevisionFact, SkyhookFact, WireLease, WireNode, WireSkyhook,
};

use crate::plan::cordon;
use crate::plan::reason::Word;
use crate::pods::PodFact;

mod drains;
mod held;
pub use drains::{DrainWatch, EvictionTry, PodList};

/// Time since the process started: what deadlines are measured in.
pub type Mono = Duration;

/// One thing that a watch delivered, or that a write returned.
#[derive(Debug)]
pub enum Change {
    Node(Box<WireNode>),
    NodeGone(String),
    Skyhook(Box<WireSkyhook>),
    SkyhookGone(String),
    /// From the lease watch only.
    Lease(Box<WireLease>),
    LeaseGone(String),
    Revision(Box<ControllerRevision>),
    RevisionGone(String),
    Policy(String),
    PolicyGone(String),
    /// A node's pods, for the lease that it drains under.
    Pods {
        node: String,
        lease_uid: String,
        pods: Vec<PodFact>,
        /// How it was when it was asked for; else as the API server remembered it.
        consistent: bool,
    },
    Evicted {
        node: String,
        lease_uid: String,
        pod_uid: String,
        problem: Option<String>,
    },
    /// Why the agents' pods cannot be created; `None` when they are all there.
    AgentsRefused(Option<String>),
    /// A full list of one kind arrives: what is not in it is gone when `Synced` comes.
    ListBegins(Kind),
    Synced(Kind),
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Node,
    Skyhook,
    Lease,
    Revision,
    Policy,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Node,
        Self::Skyhook,
        Self::Lease,
        Self::Revision,
        Self::Policy,
    ];
}

/// What this process observed about a lease, and when.
#[derive(Clone, Debug, Default)]
pub struct LeaseClock {
    pub uid: String,
    /// When the grant was first seen.
    pub granted: Option<Mono>,
    /// Since when its Skyhook is gone, being deleted or disabled.
    pub given_up: Option<Mono>,
    /// When a pause was last seen to end.
    pub resumed: Option<Mono>,
    paused: bool,
}

/// Why a node is left alone, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub until: Mono,
    pub word: Word,
    pub message: &'static str,
}

/// The picture.
#[derive(Debug, Default)]
pub struct Index {
    pub nodes: BTreeMap<String, NodeFact>,
    pub skyhooks: BTreeMap<String, SkyhookFact>,
    pub leases: BTreeMap<String, LeaseFact>,
    pub revisions: BTreeMap<String, RevisionFact>,
    /// Names of the DeploymentPolicies.
    pub policies: BTreeSet<String>,
    /// Creates of ours that the lease watch has not delivered: node to the Skyhook's UID. They take slots.
    pub creating: BTreeMap<String, String>,
    /// Objects with a write under way.
    pub busy: BTreeSet<Target>,
    /// Objects whose watch has not yet delivered our last write: target to the version that was written over.
    pub stale: BTreeMap<Target, (String, Mono)>,
    /// Leases that we have removed and whose watch has not said so yet: node to UID.
    pub removed: BTreeMap<String, (String, Mono)>,
    pub lease_clocks: BTreeMap<String, LeaseClock>,
    /// Nodes that are left alone for a while.
    pub backoff: BTreeMap<String, Backoff>,
    /// Nodes that drain.
    pub drains: BTreeMap<String, DrainWatch>,
    /// When a target was last written, for coalescing.
    pub written: BTreeMap<Target, Mono>,
    /// When the API server answered creates of ours that the lease watch has not delivered.
    pub answered: BTreeMap<String, Mono>,
    /// Why the agents' pods cannot be created.
    pub agents_refused: Option<String>,
    synced: BTreeSet<Kind>,
    list_began: Mono,
    listed: BTreeMap<Kind, BTreeSet<String>>,
}

impl Index {
    /// True once every kind was listed completely.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.synced.contains(kind))
    }

    /// Takes a change in. Says whether anything that decisions depend on changed.
    pub fn apply(&mut self, change: Change, now: Mono) -> bool {
        match change {
            Change::Node(node) => self.node(NodeFact::new(*node)),
            Change::NodeGone(name) => self.nodes.remove(&name).is_some(),
            Change::Skyhook(skyhook) => self.skyhook(SkyhookFact::new(*skyhook), now),
            Change::SkyhookGone(name) => {
                let was_there = self.skyhooks.remove(&name).is_some();
                self.time_given_up(now);
                was_there
            }
            Change::Lease(lease) => self.lease(LeaseFact::new(*lease), now),
            Change::LeaseGone(node) => {
                self.lease_clocks.remove(&node);
                self.stale.remove(&Target::Lease(node.clone()));
                self.removed.remove(&node);
                self.creating.remove(&node);
                self.leases.remove(&node).is_some()
            }
            Change::Revision(revision) => self.revision(RevisionFact::new(*revision)),
            Change::RevisionGone(name) => self.revisions.remove(&name).is_some(),
            Change::Policy(name) => {
                self.note(Kind::Policy, &name);
                self.policies.insert(name)
            }
            Change::PolicyGone(name) => self.policies.remove(&name),
            Change::Pods {
                node,
                lease_uid,
                pods,
                consistent,
            } => {
                let watch = self.drains.entry(node).or_default();
                watch.listed(
                    lease_uid,
                    PodList {
                        at: now,
                        pods,
                        consistent,
                    },
                );
                true
            }
            Change::Evicted {
                node,
                lease_uid,
                pod_uid,
                problem,
            } => {
                if let Some(watch) = self
                    .drains
                    .get_mut(&node)
                    .filter(|watch| watch.lease_uid == lease_uid)
                {
                    let tried = watch.evictions.entry(pod_uid).or_default();
                    *tried = EvictionTry {
                        at: now,
                        attempts: tried.attempts + 1,
                        problem,
                    };
                }
                true
            }
            Change::AgentsRefused(why) => {
                let changed = self.agents_refused != why;
                self.agents_refused = why;
                changed
            }
            Change::ListBegins(kind) => {
                // Half a list is no picture to decide on.
                self.synced.remove(&kind);
                if kind == Kind::Lease {
                    self.list_began = now;
                }
                self.listed.insert(kind, BTreeSet::new());
                false
            }
            Change::Synced(kind) => {
                self.synced(kind);
                self.time_given_up(now);
                true
            }
        }
    }

    /// True for an object that a write returned and that the watch has since said is gone.
    #[must_use]
    pub fn has_lost(&self, change: &Change) -> bool {
        let is_lost = |held: Option<&String>, metadata: &ObjectMeta| held != metadata.uid.as_ref();
        let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
        if let Change::Node(node) = change {
            let held = self.nodes.get(&name(&node.metadata));
            is_lost(held.map(|held| &held.uid), &node.metadata)
        } else if let Change::Skyhook(skyhook) = change {
            let held = self.skyhooks.get(&name(&skyhook.metadata));
            is_lost(held.map(|held| &held.uid), &skyhook.metadata)
        } else {
            false
        }
    }

    /// Keeps the newer of what is held and what comes. Says whether decisions may depend on the difference.
    fn node(&mut self, node: NodeFact) -> bool {
        self.note(Kind::Node, &node.name);
        self.settled(&Target::Node(node.name.clone()), &node.resource_version);
        let held = self.nodes.get(&node.name);
        if held.is_some_and(|held| is_older(&node.resource_version, &held.resource_version)) {
            return false;
        }
        // Heartbeats change nothing but the version, which later writes are guarded with.
        let changed = held.is_none_or(|held| {
            let resource_version = held.resource_version.clone();
            let node = node.clone();
            *held
                != NodeFact {
                    resource_version,
                    ..node
                }
        });
        // What was listed before somebody uncordoned it says nothing about what has come since.
        let drain = self.drains.get(&node.name);
        if drain.is_some_and(|drain| !cordon::is_held_for(&node, &drain.lease_uid)) {
            self.drains.remove(&node.name);
        }
        self.nodes.insert(node.name.clone(), node);
        changed
    }

    fn revision(&mut self, revision: RevisionFact) -> bool {
        self.note(Kind::Revision, &revision.name);
        let target = Target::Revision(revision.name.clone());
        self.settled(&target, &revision.resource_version);
        let key = revision.name.clone();
        keep_newer(&mut self.revisions, key, revision, |r| &r.resource_version)
    }

    fn skyhook(&mut self, skyhook: SkyhookFact, now: Mono) -> bool {
        self.note(Kind::Skyhook, &skyhook.name);
        let target = Target::Skyhook(skyhook.name.clone());
        self.settled(&target, &skyhook.resource_version);
        let key = skyhook.name.clone();
        // Most changes of a Skyhook are its status: then no lease is looked at.
        let whose = |skyhook: &SkyhookFact| (skyhook.uid.clone(), is_out(skyhook));
        let (before, after) = (self.skyhooks.get(&key).map(whose), whose(&skyhook));
        let changed = keep_newer(&mut self.skyhooks, key, skyhook, |s| &s.resource_version);
        if changed && before != Some(after) {
            self.time_given_up(now);
        }
        changed
    }

    fn lease(&mut self, lease: LeaseFact, now: Mono) -> bool {
        self.note(Kind::Lease, &lease.node);
        let spec = lease.lease.as_ref().ok().map(|lease| &lease.spec);
        let granted = spec.is_some_and(|spec| spec.granted.is_some());
        let stop = spec
            .and_then(|spec| spec.stop.as_ref())
            .map(|stop| stop.reason);
        let clock = self.lease_clocks.entry(lease.node.clone()).or_default();
        if clock.uid != lease.uid {
            *clock = LeaseClock {
                uid: lease.uid.clone(),
                ..LeaseClock::default()
            };
        }
        if granted && clock.granted.is_none() {
            clock.granted = Some(now);
        }
        let paused = stop == Some(StopReason::Paused);
        if clock.paused && !paused {
            clock.resumed = Some(now);
        }
        clock.paused = paused;
        let is_given_up = lease
            .lease
            .as_ref()
            .is_ok_and(|lease| is_given_up(&self.skyhooks, lease));
        clock.given_up = is_given_up.then(|| clock.given_up.unwrap_or(now));
        self.creating.remove(&lease.node);
        self.answered.remove(&lease.node);
        self.settled(&Target::Lease(lease.node.clone()), &lease.resource_version);
        self.leases.insert(lease.node.clone(), lease);
        true
    }

    /// True when the lease's Skyhook is gone, being deleted or disabled.
    #[must_use]
    pub fn is_given_up(&self, lease: &InterruptionLease) -> bool {
        is_given_up(&self.skyhooks, lease)
    }

    fn time_given_up(&mut self, now: Mono) {
        for (node, clock) in &mut self.lease_clocks {
            let lease = self
                .leases
                .get(node)
                .and_then(|fact| fact.lease.as_ref().ok());
            clock.given_up = lease
                .filter(|lease| is_given_up(&self.skyhooks, lease))
                .map(|_| clock.given_up.unwrap_or(now));
        }
    }

    fn note(&mut self, kind: Kind, name: &str) {
        if let Some(listed) = self.listed.get_mut(&kind) {
            listed.insert(name.to_owned());
        }
    }

    fn synced(&mut self, kind: Kind) {
        self.synced.insert(kind);
        let Some(listed) = self.listed.remove(&kind) else {
            return;
        };
        match kind {
            Kind::Node => self.nodes.retain(|name, _| listed.contains(name)),
            Kind::Skyhook => self.skyhooks.retain(|name, _| listed.contains(name)),
            Kind::Revision => self.revisions.retain(|name, _| listed.contains(name)),
            Kind::Policy => self.policies.retain(|name| listed.contains(name)),
            Kind::Lease => {
                // A create that was answered before the list began, and is not in it, has been undone since.
                let (answered, began) = (&self.answered, self.list_began);
                self.creating
                    .retain(|node, _| answered.get(node).is_none_or(|at| *at >= began));
                self.leases.retain(|name, _| listed.contains(name));
                self.lease_clocks.retain(|name, _| listed.contains(name));
            }
        }
    }

    /// Notes that a lease was written: nothing is decided about it until its watch delivers what was written.
    pub fn lags(&mut self, target: Target, effect: &Effect, now: Mono) {
        if let Effect::ReserveLease { node, .. } = effect
            && self.creating.contains_key(node)
        {
            self.answered.insert(node.clone(), now);
        }
        self.await_watch(target, effect, now);
    }

    /// Waits for what comes after the version that was decided on, unless the watch was faster than the answer.
    fn await_watch(&mut self, target: Target, effect: &Effect, now: Mono) {
        let Some(at) = effect.decided_on() else {
            return;
        };
        let held = self.held(&target).map(|(_, version)| version);
        if held == Some(&at.resource_version) {
            self.stale
                .insert(target, (at.resource_version.clone(), now));
        }
    }

    /// Notes that a write was refused: what it was decided on is out of date, or was never made.
    pub fn refused(&mut self, effect: &Effect, now: Mono) {
        if let Effect::ReserveLease { node, .. } = effect {
            self.creating.remove(node);
            self.answered.remove(node);
        }
        self.await_watch(effect.target(), effect, now);
    }

    fn settled(&mut self, target: &Target, resource_version: &str) {
        if self
            .stale
            .get(target)
            .is_some_and(|(version, _)| version != resource_version)
        {
            self.stale.remove(target);
        }
    }

    /// The lease held by a Skyhook on a node, if it can be decoded.
    #[must_use]
    pub fn lease_of(&self, node: &str, skyhook_uid: &str) -> Option<&LeaseFact> {
        self.leases
            .get(node)
            .filter(|lease| lease.skyhook_uid() == Some(skyhook_uid))
    }

    /// True while nothing should be decided about a target: a write is under way, or its watch lags behind one.
    #[must_use]
    pub fn is_unsettled(&self, target: &Target) -> bool {
        let is_removed = |node: &String| {
            let held = self.leases.get(node).map(|lease| &lease.uid);
            self.removed.get(node).map(|(uid, _)| uid) == held && held.is_some()
        };
        self.busy.contains(target)
            || self.stale.contains_key(target)
            || matches!(target, Target::Lease(node) if is_removed(node))
    }

    /// Notes that a lease is gone, whatever its watch still delivers of it on the way.
    pub fn has_removed(&mut self, node: &str, uid: &str, now: Mono) {
        if self.leases.get(node).is_some_and(|lease| lease.uid == uid) {
            self.removed.insert(node.to_owned(), (uid.to_owned(), now));
        }
    }
}

/// Takes the object in unless a newer version of it is held. Says whether it did.
fn keep_newer<T>(
    held: &mut BTreeMap<String, T>,
    name: String,
    object: T,
    version: impl Fn(&T) -> &str,
) -> bool {
    let older = |there: &T| is_older(version(&object), version(there));
    if held.get(&name).is_some_and(older) {
        return false;
    }
    held.insert(name, object);
    true
}

fn is_given_up(skyhooks: &BTreeMap<String, SkyhookFact>, lease: &InterruptionLease) -> bool {
    skyhooks
        .get(&lease.spec.skyhook.name)
        .filter(|skyhook| skyhook.uid == lease.spec.skyhook.uid)
        .is_none_or(is_out)
}

/// True when a Skyhook is being deleted or disabled.
fn is_out(skyhook: &SkyhookFact) -> bool {
    skyhook.deleting || skyhook.is_disabled()
}

#[cfg(test)]
mod tests;
