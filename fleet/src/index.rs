//! Everything that one replica knows, in three parts: the objects in the API server, the writes under way, and the
//! times at which this process saw things happen. A change of one part is passed on to the others here, and nowhere
//! else.

use k8s_openapi::api::apps::v1::ControllerRevision;

use crate::batches::Look;
use crate::clocks::{Backoff, Clocks, PodList};
use crate::effect::{Effect, Target};
use crate::facts::{
    LeaseFact, NodeFact, PolicyFact, RevisionFact, RolloutFact, SkyhookFact, WireLease, WireNode,
    WirePolicy, WireRollout, WireSkyhook,
};
use crate::inflight::Inflight;
use crate::picture::{Changed, Picture};
use crate::plan::{Now, View};
use crate::pods::{PodFact, Refusal};
use crate::settings::Settings;

pub use crate::clocks::Mono;
pub use crate::picture::Kind;

#[cfg(test)]
mod tests;

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
    Policy(Box<WirePolicy>),
    PolicyGone(String),
    Rollout(Box<WireRollout>),
    RolloutGone(String),
    /// Leases were looked for: these members of open batches have none.
    Left {
        skyhook: String,
        looks: Vec<Look>,
    },
    /// The state of a roll-out was read: none of these UIDs is the stored one. They never come back.
    StatesGone {
        skyhook: String,
        states: Vec<String>,
    },
    /// A node's pods, for the lease that it drains under.
    Pods {
        node: String,
        lease_uid: String,
        pods: Vec<PodFact>,
        /// True for a consistent list. False for a list from the API server's watch cache, which may be some seconds
        /// old.
        consistent: bool,
    },
    Evicted {
        node: String,
        lease_uid: String,
        pod_uid: String,
        problem: Option<Refusal>,
    },
    /// Why the agents' pods cannot be created; `None` when they are all there.
    AgentsRefused(Option<String>),
    /// One kind cannot be listed, and why: its CustomResourceDefinition is missing, or the right to list it.
    Unlistable {
        kind: Kind,
        why: String,
    },
    /// A full list of one kind begins. When `Synced` comes, the objects that were not in the list are removed.
    ListBegins(Kind),
    Synced(Kind),
}

/// What one replica knows.
#[derive(Debug, Default)]
pub struct Index {
    pub(crate) picture: Picture,
    pub(crate) inflight: Inflight,
    pub(crate) clocks: Clocks,
}

impl Index {
    /// What the API server holds.
    #[must_use]
    pub const fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Which writes are under way.
    #[must_use]
    pub const fn inflight(&self) -> &Inflight {
        &self.inflight
    }

    /// When things were seen to happen.
    #[must_use]
    pub const fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// True once every kind was listed completely.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.picture.is_synced()
    }

    /// The read-only input of a decision.
    #[must_use]
    pub const fn view<'a>(&'a self, settings: &'a Settings, now: Now) -> View<'a> {
        View {
            picture: &self.picture,
            inflight: &self.inflight,
            clocks: &self.clocks,
            settings,
            now,
        }
    }

    /// Takes a change in. Returns true when a decision may depend on it.
    pub fn apply(&mut self, change: Change, now: Mono) -> bool {
        let picture = &mut self.picture;
        let changed = match change {
            Change::Node(node) => picture.node(NodeFact::new(*node)),
            Change::NodeGone(name) => picture.node_gone(&name),
            Change::Skyhook(skyhook) => picture.skyhook(SkyhookFact::new(*skyhook)),
            Change::SkyhookGone(name) => picture.skyhook_gone(&name),
            Change::Lease(lease) => picture.lease(LeaseFact::new(*lease)),
            Change::LeaseGone(node) => picture.lease_gone(&node),
            Change::Revision(revision) => picture.revision(RevisionFact::new(*revision)),
            Change::RevisionGone(name) => picture.revision_gone(&name),
            Change::Policy(policy) => picture.policy(PolicyFact::new(*policy)),
            Change::PolicyGone(name) => picture.policy_gone(&name),
            Change::Rollout(rollout) => picture.rollout(RolloutFact::new(*rollout)),
            Change::RolloutGone(name) => picture.rollout_gone(&name),
            Change::Left { skyhook, looks } => {
                picture.tick();
                self.clocks.looked(skyhook, looks);
                return true;
            }
            Change::StatesGone { skyhook, states } => {
                picture.tick();
                self.clocks.states_gone(skyhook, states);
                return true;
            }
            Change::AgentsRefused(why) => picture.refuse_agents(why),
            Change::Unlistable { kind, why } => picture.is_unlistable(kind, why),
            Change::ListBegins(kind) => picture.list_begins(kind),
            Change::Synced(kind) => picture.is_listed(kind),
            Change::Pods {
                node,
                lease_uid,
                pods,
                consistent,
            } => {
                picture.touch(&node);
                let list = PodList {
                    at: now,
                    pods,
                    consistent,
                };
                self.clocks.listed(node, lease_uid, list);
                return true;
            }
            Change::Evicted {
                node,
                lease_uid,
                pod_uid,
                problem,
            } => {
                picture.touch(&node);
                self.clocks
                    .evicted(&node, &lease_uid, pod_uid, problem, now);
                return true;
            }
        };
        self.saw(&changed, now);
        changed.decides()
    }

    fn saw(&mut self, changed: &Changed, now: Mono) {
        let creates: Vec<String> = self.creates_ended(changed);
        self.inflight.saw(changed, now);
        let mut timed = self.clocks.saw(changed, &self.picture, now);
        for skyhook in self.picture.take_turned() {
            timed.extend(self.clocks.time_given_up(&skyhook, &self.picture, now));
        }
        for node in creates.iter().chain(&timed) {
            self.picture.touch(node);
        }
    }

    /// Nodes whose lease is being created, if the change is a complete list of leases: a lease that is not in the list
    /// may turn out not to exist.
    fn creates_ended(&self, changed: &Changed) -> Vec<String> {
        match changed {
            Changed::Listed {
                kind: Kind::Lease, ..
            } => self
                .inflight
                .creates()
                .map(|(node, _)| node.to_owned())
                .collect(),
            Changed::Came { .. }
            | Changed::Gone { .. }
            | Changed::ListBegins(_)
            | Changed::Listed { .. }
            | Changed::Other(_) => Vec::new(),
        }
    }

    /// True while no decision should be made about a target.
    #[must_use]
    pub fn is_unsettled(&self, target: &Target) -> bool {
        self.inflight.is_unsettled(target)
    }

    /// True for an object that a write returned and whose deletion the watch has reported since.
    #[must_use]
    pub fn has_lost(&self, change: &Change) -> bool {
        if let Change::Node(node) = change {
            self.picture.has_lost_node(node)
        } else if let Change::Skyhook(skyhook) = change {
            self.picture.has_lost_skyhook(skyhook)
        } else if let Change::Rollout(rollout) = change {
            let name = rollout.metadata.name.as_deref().unwrap_or_default();
            let held = self.picture.held(&Target::Rollout(name.to_owned()));
            held.map(|(uid, _)| uid) != rollout.metadata.uid.as_ref()
        } else {
            false
        }
    }

    /// True while the picture holds the version of the object that the effect was decided on.
    #[must_use]
    pub fn still_holds(&self, effect: &Effect) -> bool {
        let target = effect.target();
        if self.is_unsettled(&target) {
            return false;
        }
        if let Some(at) = effect.decided_on() {
            return self.picture.held(&target) == Some((&at.uid, &at.resource_version));
        }
        match &target {
            Target::Lease(node) => {
                !self.picture.leases().contains_key(node) && self.inflight.creating(node).is_none()
            }
            Target::Revision(name) => !self.picture.revisions().contains_key(name),
            Target::Rollout(name) => self.picture.rollout_of(name).is_none(),
            Target::Look(_)
            | Target::Node(_)
            | Target::Skyhook(_)
            | Target::Pods(_)
            | Target::Pod(_) => true,
        }
    }

    /// A write begins.
    pub fn begins(&mut self, effect: &Effect) {
        self.inflight.begins(effect);
        self.written(effect);
    }

    /// A write has ended, with success or not. Returns true if it was under way.
    pub fn ends(&mut self, effect: &Effect) -> bool {
        self.written(effect);
        self.inflight.ends(&effect.target())
    }

    /// A write succeeded. If it returned its object, the picture takes that in. Otherwise no decision is made about the
    /// object before the watch has delivered it.
    pub fn is_done(&mut self, effect: &Effect, answer: Option<Change>, now: Mono) {
        self.inflight.is_done(effect.target(), now);
        // A lease that was to be deleted because its Node is gone is still there if the answer is that Node.
        let is_removed = answer.is_none();
        match answer {
            // The watch has already reported the deletion of the object. Taking in the answer would bring the object
            // back for ever.
            Some(change) if self.has_lost(&change) => {}
            Some(change) => {
                self.apply(change, now);
            }
            None => self.inflight.awaits(effect, &self.picture, now),
        }
        if let Some((node, uid)) = effect.removes().filter(|_| is_removed) {
            self.inflight.has_removed(node, uid, &self.picture, now);
        }
        self.written(effect);
    }

    /// A write failed. If `waits` is true, no decision is made about the object before the watch has delivered a newer
    /// version of it.
    pub fn is_refused(&mut self, effect: &Effect, waits: bool, now: Mono) {
        self.inflight.is_refused(effect, &self.picture, now);
        if !waits {
            self.inflight.is_settled(&effect.target());
        }
        self.written(effect);
    }

    /// Notes why a write of the state of a roll-out was refused, or that one was accepted.
    pub(crate) fn wrote_state(&mut self, skyhook: &str, refused: Option<&str>) {
        if self.clocks.state_refused(skyhook) != refused {
            self.picture.tick();
            self.clocks.wrote_state(skyhook, refused);
        }
    }

    /// Begins a back-off: the node gets no lease for a while.
    pub fn back_off(&mut self, node: String, backoff: Backoff) {
        self.picture.touch(&node);
        self.clocks.back_off(node, backoff);
    }

    /// Notes whether the result of a lease left work over. Returns how many results in a row did.
    pub(crate) fn judged(
        &mut self,
        node: &str,
        skyhook: &str,
        lease: &str,
        left_over: bool,
    ) -> u32 {
        if left_over {
            self.clocks.mismatched(node, skyhook, lease)
        } else {
            self.clocks.matched(node, skyhook);
            0
        }
    }

    /// Forgets entries whose time is over.
    pub fn expire(&mut self, now: Mono) {
        self.inflight.expire(now);
        for node in self.clocks.expire(&self.picture, now) {
            self.picture.touch(&node);
        }
    }

    fn written(&mut self, effect: &Effect) {
        match effect.target() {
            Target::Node(node) | Target::Lease(node) | Target::Pods(node) => {
                self.picture.touch(&node);
            }
            Target::Skyhook(_)
            | Target::Revision(_)
            | Target::Rollout(_)
            | Target::Look(_)
            | Target::Pod(_) => self.picture.tick(),
        }
    }
}
