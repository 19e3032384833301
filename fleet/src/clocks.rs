//! When this process saw things happen, on its own monotonic clock. Deadlines are measured from these times. They end
//! with the process: everything that must outlive it is stored in the API objects.

mod drains;
#[cfg(test)]
mod fields;
mod mono;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::{DrainState, StopReason};

use crate::batches::Look;
use crate::effect::Target;
use crate::facts::NodeFact;
use crate::picture::{Changed, Kind, Picture};
use crate::plan::cordon;
use crate::plan::reason::ReasonCode;
use crate::pods::Refusal;

pub use drains::{DrainWatch, EvictionTry, PodList};
pub use mono::Mono;

/// What was observed about a lease, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseClock {
    pub uid: String,
    /// When the grant was first seen.
    pub granted: Option<Mono>,
    /// Since when its Skyhook is gone, being deleted or disabled.
    pub given_up: Option<Mono>,
    /// When a pause was last seen to end.
    pub resumed: Option<Mono>,
    /// State and start time of the drain as the lease has them, and when they were first seen.
    drain: Option<(DrainState, Option<String>, Mono)>,
    /// A pod was in the way of the drain that does not go by itself, at least once since `drain`.
    blocked: bool,
    paused: bool,
    /// Name of the Skyhook that it is for.
    skyhook: String,
}

impl LeaseClock {
    /// When the drain was first seen in its present state, with its present start time.
    #[must_use]
    pub fn drain_seen(&self) -> Option<Mono> {
        self.drain.as_ref().map(|(_, _, seen)| *seen)
    }

    /// True once a pod was in the way of the drain that does not go by itself.
    #[must_use]
    pub const fn was_blocked(&self) -> bool {
        self.blocked
    }
}

/// A back-off: why a node gets no lease, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The Skyhook for which the node gets no lease; `None` for all.
    pub skyhook: Option<String>,
    pub until: Mono,
    pub code: ReasonCode,
    pub message: &'static str,
}

/// Results of a Skyhook on a node that say that all is done, although work is left.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mismatch {
    skyhook: String,
    /// UID of the last lease with such a result.
    lease: String,
    count: u32,
}

/// The clocks.
#[derive(Debug, Default)]
pub struct Clocks {
    leases: BTreeMap<String, LeaseClock>,
    /// By node.
    backoff: BTreeMap<String, Vec<Backoff>>,
    /// By Skyhook: members of open batches of which a fresh look said that they have no lease.
    left: BTreeMap<String, BTreeSet<Look>>,
    /// By Skyhook: why the API server refuses to store the state of its roll-out.
    states_refused: BTreeMap<String, String>,
    /// By Skyhook: UIDs of states of its roll-out that a fresh look did not find.
    states_gone: BTreeMap<String, BTreeSet<String>>,
    /// By node: results that left work over, one after the other.
    mismatches: BTreeMap<String, Mismatch>,
    drains: BTreeMap<String, DrainWatch>,
    /// Nodes that are not Ready: since when, as the Node says it, and when this was first seen.
    away: BTreeMap<String, (Timestamp, Mono)>,
    /// Nodes whose last drain took too long: when that was, as the Node's stamp says it, and when this was first seen.
    undrained: BTreeMap<String, (Timestamp, Mono)>,
    /// Nodes that nobody has worked on: the UID, and when the Node was first seen.
    first_seen: BTreeMap<String, (String, Mono)>,
}

impl Clocks {
    /// What was observed about the lease of a node.
    #[must_use]
    pub fn lease(&self, node: &str) -> Option<&LeaseClock> {
        self.leases.get(node)
    }

    /// When it was first seen that a node is not Ready since the time that the Node gives.
    #[must_use]
    pub fn away_seen(&self, node: &str) -> Option<Mono> {
        self.away.get(node).map(|(_, seen)| *seen)
    }

    /// When a node that nobody has worked on was first seen; `None` for any other node.
    #[must_use]
    pub fn first_seen(&self, node: &str) -> Option<Mono> {
        self.first_seen.get(node).map(|(_, seen)| *seen)
    }

    /// When the last drain of a node was given up because it took too long: as the Node's stamp says it, and when this was
    /// first seen.
    #[must_use]
    pub fn undrained(&self, node: &str) -> Option<(Timestamp, Mono)> {
        self.undrained.get(node).copied()
    }

    /// The back-off of a node for a Skyhook, if any: the one that ends last.
    #[must_use]
    pub fn backoff(&self, node: &str, skyhook: &str) -> Option<&Backoff> {
        let all = self.backoff.get(node)?.iter();
        all.filter(|backoff| {
            backoff
                .skyhook
                .as_deref()
                .is_none_or(|for_| for_ == skyhook)
        })
        .max_by_key(|backoff| backoff.until)
    }

    /// The members of a Skyhook's open batches of which a fresh look said that they have no lease.
    pub fn left(&self, skyhook: &str) -> impl Iterator<Item = &Look> {
        self.left.get(skyhook).into_iter().flatten()
    }

    /// True when a fresh look did not find the state of a roll-out with this UID.
    #[must_use]
    pub fn is_state_gone(&self, skyhook: &str, state: &str) -> bool {
        let gone = self.states_gone.get(skyhook);
        gone.is_some_and(|gone| gone.contains(state))
    }

    /// Why the API server refuses to store the state of a Skyhook's roll-out; `None` unless the last write was refused.
    #[must_use]
    pub fn state_refused(&self, skyhook: &str) -> Option<&str> {
        self.states_refused.get(skyhook).map(String::as_str)
    }

    /// Notes why a write of the state of a roll-out was refused, or that one was accepted.
    pub(crate) fn wrote_state(&mut self, skyhook: &str, refused: Option<&str>) {
        match refused {
            Some(why) => drop(
                self.states_refused
                    .insert(skyhook.to_owned(), why.to_owned()),
            ),
            None => drop(self.states_refused.remove(skyhook)),
        }
    }

    /// Takes in a look for the state of a roll-out.
    pub(crate) fn states_gone(&mut self, skyhook: String, states: Vec<String>) {
        self.states_gone.entry(skyhook).or_default().extend(states);
    }

    /// Takes in a look.
    pub(crate) fn looked(&mut self, skyhook: String, looks: Vec<Look>) {
        self.left.entry(skyhook).or_default().extend(looks);
    }

    /// The pods of a node that drains for a lease.
    #[must_use]
    pub fn drain(&self, node: &str, lease_uid: &str) -> Option<&DrainWatch> {
        self.drains
            .get(node)
            .filter(|watch| watch.lease_uid == lease_uid)
    }

    /// The times at which back-offs end.
    pub(crate) fn backoffs_end(&self) -> impl Iterator<Item = Mono> {
        let all = self.backoff.values().flatten();
        all.map(|backoff| backoff.until)
    }

    /// Begins a back-off: the node gets no lease for a while.
    pub(crate) fn back_off(&mut self, node: String, backoff: Backoff) {
        let all = self.backoff.entry(node).or_default();
        all.retain(|other| other.skyhook != backoff.skyhook);
        all.push(backoff);
    }

    /// Notes a result that left work over. Returns how many there were one after the other.
    pub(crate) fn mismatched(&mut self, node: &str, skyhook: &str, lease: &str) -> u32 {
        let before = self.mismatches.get(node);
        let count = match before.filter(|before| before.skyhook == skyhook) {
            Some(before) if before.lease == lease => before.count,
            Some(before) => before.count.saturating_add(1),
            None => 1,
        };
        let mismatch = Mismatch {
            skyhook: skyhook.to_owned(),
            lease: lease.to_owned(),
            count,
        };
        self.mismatches.insert(node.to_owned(), mismatch);
        count
    }

    /// Notes a result that left no work over.
    pub(crate) fn matched(&mut self, node: &str, skyhook: &str) {
        let is_meant = |before: &Mismatch| before.skyhook == skyhook;
        if self.mismatches.get(node).is_some_and(is_meant) {
            self.mismatches.remove(node);
        }
    }

    /// Takes in a list of a node's pods.
    pub(crate) fn listed(&mut self, node: String, lease_uid: String, list: PodList) {
        let watch = self.drains.entry(node).or_default();
        watch.listed(lease_uid, list);
    }

    /// Takes in the answer to the eviction of a pod.
    pub(crate) fn evicted(
        &mut self,
        node: &str,
        lease_uid: &str,
        pod_uid: String,
        problem: Option<Refusal>,
        now: Mono,
    ) {
        let watch = self.drains.get_mut(node);
        if let Some(watch) = watch.filter(|watch| watch.lease_uid == lease_uid) {
            let tried = watch.evictions.entry(pod_uid).or_default();
            *tried = EvictionTry {
                at: now,
                attempts: tried.attempts + 1,
                problem,
            };
        }
    }

    /// Takes in a change of the picture. Returns the nodes whose times have changed although their objects have not.
    pub(crate) fn saw(&mut self, changed: &Changed, picture: &Picture, now: Mono) -> Vec<String> {
        match changed {
            Changed::Came {
                target: Target::Lease(node),
                ..
            } => {
                self.lease_came(node, picture, now);
                Vec::new()
            }
            Changed::Came {
                target: Target::Node(name),
                ..
            } => {
                self.node_came(name, picture, now);
                Vec::new()
            }
            Changed::Gone {
                target: Target::Node(name),
                ..
            } => {
                self.node_went(name);
                Vec::new()
            }
            Changed::Listed {
                kind: Kind::Node,
                gone,
            } => {
                for name in gone {
                    self.node_went(name);
                }
                Vec::new()
            }
            Changed::Came {
                target: Target::Skyhook(name),
                decides: true,
                ..
            }
            | Changed::Gone {
                target: Target::Skyhook(name),
                ..
            } => self.time_given_up(name, picture, now),
            Changed::Gone {
                target: Target::Lease(node),
                ..
            } => {
                self.leases.remove(node);
                Vec::new()
            }
            Changed::Listed {
                kind: Kind::Skyhook,
                gone,
            } => {
                let times = gone
                    .iter()
                    .flat_map(|name| self.time_given_up(name, picture, now));
                times.collect()
            }
            Changed::Listed {
                kind: Kind::Lease,
                gone,
            } => {
                for node in gone {
                    self.leases.remove(node);
                }
                Vec::new()
            }
            Changed::Came { .. }
            | Changed::Gone { .. }
            | Changed::ListBegins(_)
            | Changed::Listed { .. }
            | Changed::Other(_) => Vec::new(),
        }
    }

    fn lease_came(&mut self, node: &str, picture: &Picture, now: Mono) {
        let Some(fact) = picture.leases().get(node) else {
            return;
        };
        let lease = fact.lease.as_deref().ok();
        let spec = lease.map(|lease| &lease.spec);
        let clock = self.leases.entry(node.to_owned()).or_default();
        if clock.uid != fact.uid {
            *clock = LeaseClock {
                uid: fact.uid.clone(),
                ..LeaseClock::default()
            };
        }
        let skyhook = spec.map_or("", |spec| spec.skyhook.name.as_str());
        if clock.skyhook != skyhook {
            clock.skyhook = skyhook.to_owned();
        }
        if spec.is_some_and(|spec| spec.granted.is_some()) && clock.granted.is_none() {
            clock.granted = Some(now);
        }
        let drain = spec.map(|spec| (spec.drain.state, &spec.drain.since));
        let timed = clock.drain.as_ref();
        if timed.map(|(state, since, _)| (*state, since)) != drain {
            clock.drain = drain.map(|(state, since)| (state, since.clone(), now));
            clock.blocked = false;
        }
        clock.blocked |= spec.is_some_and(|spec| spec.drain.blocking().next().is_some());
        let stop = spec.and_then(|spec| spec.stop.as_ref());
        let paused = stop.is_some_and(|stop| stop.reason == StopReason::Paused);
        if clock.paused && !paused {
            clock.resumed = Some(now);
        }
        clock.paused = paused;
        clock.given_up = since(lease, picture, clock.given_up, now);
    }

    fn node_went(&mut self, name: &str) {
        self.away.remove(name);
        self.undrained.remove(name);
        self.first_seen.remove(name);
    }

    fn node_came(&mut self, name: &str, picture: &Picture, now: Mono) {
        let new = picture.nodes().get(name).filter(|node| node.is_new());
        match new.map(|node| &node.uid) {
            None => drop(self.first_seen.remove(name)),
            Some(uid) if self.first_seen.get(name).is_some_and(|(at, _)| at == uid) => {}
            Some(uid) => drop(self.first_seen.insert(name.to_owned(), (uid.clone(), now))),
        }
        match picture.nodes().get(name).and_then(drain_timed_out) {
            None => drop(self.undrained.remove(name)),
            Some(since) if self.undrained.get(name).is_some_and(|(at, _)| *at == since) => {}
            Some(since) => drop(self.undrained.insert(name.to_owned(), (since, now))),
        }
        let node = picture.nodes().get(name).filter(|node| !node.ready);
        match node.and_then(|node| node.ready_since) {
            None => drop(self.away.remove(name)),
            Some(since) if self.away.get(name).is_some_and(|(at, _)| *at == since) => {}
            Some(since) => drop(self.away.insert(name.to_owned(), (since, now))),
        }
        // Somebody uncordoned the node: new pods may have been bound since the last list, so forget it.
        let uncordoned = |watch: &DrainWatch| {
            let node = picture.nodes().get(name);
            node.is_some_and(|node| !cordon::is_held_for(node, &watch.lease_uid))
        };
        if self.drains.get(name).is_some_and(uncordoned) {
            self.drains.remove(name);
        }
    }

    /// Updates, for the leases of one Skyhook, since when they are given up. Returns the nodes of those that changed.
    pub(crate) fn time_given_up(
        &mut self,
        skyhook: &str,
        picture: &Picture,
        now: Mono,
    ) -> Vec<String> {
        let mut changed = Vec::new();
        let clocks = self.leases.iter_mut();
        for (node, clock) in clocks.filter(|(_, clock)| clock.skyhook == skyhook) {
            let fact = picture.leases().get(node);
            let lease = fact.and_then(|fact| fact.lease.as_deref().ok());
            let given_up = since(lease, picture, clock.given_up, now);
            if clock.given_up != given_up {
                clock.given_up = given_up;
                changed.push(node.clone());
            }
        }
        changed
    }

    /// Forgets entries whose time is over. Returns their nodes.
    pub(crate) fn expire(&mut self, picture: &Picture, now: Mono) -> Vec<String> {
        let over = |until: Mono| until <= now;
        let mut changed: Vec<String> = Vec::new();
        self.backoff.retain(|node, all| {
            let before = all.len();
            all.retain(|backoff| !over(backoff.until));
            if all.len() < before {
                changed.push(node.clone());
            }
            !all.is_empty()
        });
        self.left.retain(|skyhook, looks| {
            let fact = picture.rollout_of(skyhook);
            let open = fact.and_then(|fact| fact.spec.as_ref().ok());
            let uid = fact.map_or("", |fact| fact.uid.as_str());
            looks.retain(|look| {
                if look.state != uid {
                    return false;
                }
                let mut states = open.iter().flat_map(|spec| spec.compartments.values());
                states.any(|state| state.batch == look.batch)
            });
            !looks.is_empty()
        });
        self.states_gone.retain(|skyhook, states| {
            states.retain(|state| is_named(picture, skyhook, state));
            !states.is_empty()
        });
        self.mismatches
            .retain(|node, _| picture.nodes().contains_key(node));
        self.drains.retain(|node, watch| {
            let lease = picture.leases().get(node);
            let drains = lease.is_some_and(|lease| lease.uid == watch.lease_uid);
            if !drains {
                changed.push(node.clone());
            }
            drains
        });
        changed
    }
}

/// True when a lease of the Skyhook belongs to a batch of the state with this UID.
fn is_named(picture: &Picture, skyhook: &str, state: &str) -> bool {
    let facts = picture.leases().values();
    let mut leases = facts.filter_map(|fact| fact.lease.as_deref().ok());
    leases.any(|lease| {
        let batch = lease.spec.batch.as_ref();
        lease.spec.skyhook.name == skyhook && batch.is_some_and(|batch| batch.state == state)
    })
}

/// When the last drain of a node was given up because it took too long, for any Skyhook.
fn drain_timed_out(node: &NodeFact) -> Option<Timestamp> {
    let stamps = node.records.values();
    let stamps = stamps.filter_map(|record| record.stamp.as_ref());
    let times = stamps.filter_map(|stamp| stamp.drain_timed_out.parse().ok());
    times.max()
}

/// Since when a lease is given up, if it is.
fn since(
    lease: Option<&InterruptionLease>,
    picture: &Picture,
    before: Option<Mono>,
    now: Mono,
) -> Option<Mono> {
    let given_up = lease.is_some_and(|lease| picture.is_given_up(lease));
    given_up.then(|| before.unwrap_or(now))
}
