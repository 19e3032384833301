//! A local copy of the objects in the API server. One task owns the copy. It feeds the copy with the objects that the
//! watches deliver and with the objects that writes return. Leases come from the lease watch only, because grants must
//! be decided on one ordered stream of leases.
//!
//! Guarantees: the picture holds the newest version of each object that this process has seen. Nothing is decided while
//! a list is incomplete, see [`Picture::is_synced`]. Every change that a decision may depend on raises a counter, see
//! [`Picture::touched`].

mod deletion;
mod ids;
mod read;
mod stored;
mod tally;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::protocol::{self, is_older};

use crate::effect::Target;
use crate::facts::{
    Goal, LeaseFact, NodeFact, PolicyFact, RevisionFact, RolloutFact, SkyhookFact, Texts, WireNode,
    WireSkyhook,
};

use ids::Ids;
pub use ids::{NodeId, Tick};
pub use tally::Tally;

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Node,
    Skyhook,
    Lease,
    Revision,
    Policy,
    /// Needed only for Skyhooks whose policy has batches.
    Rollout,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Node,
        Self::Skyhook,
        Self::Lease,
        Self::Revision,
        Self::Policy,
        Self::Rollout,
    ];

    /// The kinds without which nothing is decided.
    pub(crate) const NEEDED: [Self; 5] = [
        Self::Node,
        Self::Skyhook,
        Self::Lease,
        Self::Revision,
        Self::Policy,
    ];
}

/// What a change did to the picture.
#[derive(Debug)]
pub enum Changed {
    /// An object was delivered by its watch, or was returned by a write.
    Came {
        target: Target,
        uid: String,
        version: String,
        /// True when a decision may depend on the difference between this version and the version held before.
        decides: bool,
    },
    Gone {
        target: Target,
        was_there: bool,
    },
    ListBegins(Kind),
    /// A kind was listed completely, and these were not in the list.
    Listed {
        kind: Kind,
        gone: Vec<String>,
    },
    /// Something that the coordinator never writes. True when it differs from before.
    Other(bool),
}

impl Changed {
    /// True when a decision may depend on the difference.
    #[must_use]
    pub const fn decides(&self) -> bool {
        match self {
            Self::Came { decides, .. } => *decides,
            Self::Gone { was_there, .. } => *was_there,
            Self::ListBegins(_) => false,
            Self::Listed { .. } => true,
            Self::Other(changed) => *changed,
        }
    }
}

/// The picture.
#[derive(Debug, Default)]
pub struct Picture {
    nodes: BTreeMap<String, NodeFact>,
    skyhooks: BTreeMap<String, SkyhookFact>,
    leases: BTreeMap<String, LeaseFact>,
    tally: Tally,
    revisions: BTreeMap<String, RevisionFact>,
    policies: BTreeMap<String, PolicyFact>,
    /// By the name of their Skyhook.
    rollouts: BTreeMap<String, RolloutFact>,
    agents_refused: Option<String>,
    synced: BTreeSet<Kind>,
    listed: BTreeMap<Kind, BTreeSet<String>>,
    /// Why kinds cannot be listed.
    unlistable: BTreeMap<Kind, String>,
    ids: Ids,
    /// The texts of the Nodes' labels.
    texts: Texts,
    /// For each Skyhook: the tick of its last change that a decision may depend on.
    skyhooks_changed: BTreeMap<String, Tick>,
    revisions_changed: Tick,
    policies_changed: Tick,
    rollouts_changed: Tick,
    /// Skyhooks whose goal has changed although they have not.
    turned: BTreeSet<String>,
}

impl Picture {
    pub(crate) fn node(&mut self, mut node: NodeFact) -> Changed {
        self.note(Kind::Node, &node.name);
        let held = self.nodes.get(&node.name);
        let labels = held.map(|held| &held.labels);
        self.texts.share(&mut node.labels, labels);
        let older =
            held.is_some_and(|held| is_older(&node.resource_version, &held.resource_version));
        let decides = !older && held.is_none_or(|held| read::node_differs(held, &node));
        let changed = Changed::Came {
            target: Target::Node(node.name.clone()),
            uid: node.uid.clone(),
            version: node.resource_version.clone(),
            decides,
        };
        if decides {
            self.ids.place(&node.name);
        }
        if !older {
            let name = node.name.clone();
            self.nodes.insert(name.clone(), node);
            self.survey(&name);
        }
        changed
    }

    pub(crate) fn node_gone(&mut self, name: &str) -> Changed {
        let was_there = self.nodes.remove(name).is_some();
        self.survey(name);
        self.release(name);
        Changed::Gone {
            target: Target::Node(name.to_owned()),
            was_there,
        }
    }

    pub(crate) fn skyhook(&mut self, mut skyhook: SkyhookFact) -> Changed {
        self.note(Kind::Skyhook, &skyhook.name);
        skyhook.leave_behind(self.left_behind(&skyhook));
        let held = self.skyhooks.get(&skyhook.name);
        if let Some(held) = held.filter(|held| held.uid == skyhook.uid && skyhook.deleting) {
            skyhook.deletion = held.deletion.clone();
        }
        let differs = held.is_none_or(|held| read::skyhook_differs(held, &skyhook));
        let (name, uid) = (skyhook.name.clone(), skyhook.uid.clone());
        let version = skyhook.resource_version.clone();
        let key = name.clone();
        let taken = keep_newer(&mut self.skyhooks, key, skyhook, |s| &s.resource_version);
        if taken && differs {
            let tick = self.ids.tick();
            self.skyhooks_changed.insert(name.clone(), tick);
        } else if taken {
            // Every pass compares the stored status with the wanted one, so the next pass must not be skipped.
            self.ids.tick();
        }
        if taken {
            self.survey_all(&name);
        }
        Changed::Came {
            target: Target::Skyhook(name),
            uid,
            version,
            decides: taken,
        }
    }

    pub(crate) fn skyhook_gone(&mut self, name: &str) -> Changed {
        let was_there = self.forget_skyhook(name);
        Changed::Gone {
            target: Target::Skyhook(name.to_owned()),
            was_there,
        }
    }

    fn forget_skyhook(&mut self, name: &str) -> bool {
        self.skyhooks_changed.remove(name);
        self.ids.tick();
        self.skyhooks.remove(name).is_some()
    }

    pub(crate) fn lease(&mut self, lease: LeaseFact) -> Changed {
        self.note(Kind::Lease, &lease.node);
        let held = self.leases.get(&lease.node);
        if held.is_none_or(|held| read::lease_differs(held, &lease)) {
            self.ids.place(&lease.node);
        }
        let changed = Changed::Came {
            target: Target::Lease(lease.node.clone()),
            uid: lease.uid.clone(),
            version: lease.resource_version.clone(),
            decides: true,
        };
        self.tally.comes(&lease);
        let node = lease.node.clone();
        if let Some(before) = self.leases.insert(node.clone(), lease) {
            self.tally.goes(&before);
        }
        self.survey(&node);
        changed
    }

    pub(crate) fn lease_gone(&mut self, node: &str) -> Changed {
        let before = self.leases.remove(node);
        let was_there = before.inspect(|lease| self.tally.goes(lease)).is_some();
        self.survey(node);
        self.release(node);
        Changed::Gone {
            target: Target::Lease(node.to_owned()),
            was_there,
        }
    }

    pub(crate) fn refuse_agents(&mut self, why: Option<String>) -> Changed {
        let changed = self.agents_refused != why;
        self.agents_refused = why;
        self.ids.tick();
        Changed::Other(changed)
    }

    /// A kind cannot be listed now.
    pub(crate) fn is_unlistable(&mut self, kind: Kind, why: String) -> Changed {
        let differs = self.unlistable.get(&kind) != Some(&why);
        if differs {
            self.ids.tick();
            self.unlistable.insert(kind, why);
        }
        Changed::Other(differs)
    }

    pub(crate) fn list_begins(&mut self, kind: Kind) -> Changed {
        self.synced.remove(&kind);
        self.listed.insert(kind, BTreeSet::new());
        self.ids.tick();
        Changed::ListBegins(kind)
    }

    /// Ends a full list of one kind. Objects that were not in the list no longer exist, and are removed.
    pub(crate) fn is_listed(&mut self, kind: Kind) -> Changed {
        self.synced.insert(kind);
        self.unlistable.remove(&kind);
        self.ids.tick();
        let listed = self.listed.remove(&kind);
        let lost = |held: &mut dyn Iterator<Item = &String>| -> Vec<String> {
            let Some(listed) = &listed else {
                return Vec::new();
            };
            let lost = held.filter(|name| !listed.contains(*name));
            lost.cloned().collect()
        };
        let gone = match kind {
            Kind::Node => lost(&mut self.nodes.keys()),
            Kind::Skyhook => lost(&mut self.skyhooks.keys()),
            Kind::Lease => lost(&mut self.leases.keys()),
            Kind::Revision => lost(&mut self.revisions.keys()),
            Kind::Policy => lost(&mut self.policies.keys()),
            Kind::Rollout => lost(&mut self.rollouts.keys()),
        };
        for name in &gone {
            match kind {
                Kind::Node => drop(self.node_gone(name)),
                Kind::Skyhook => drop(self.forget_skyhook(name)),
                Kind::Lease => drop(self.lease_gone(name)),
                Kind::Revision => drop(self.revision_gone(name)),
                Kind::Policy => drop(self.policy_gone(name)),
                Kind::Rollout => drop(self.rollout_gone(name)),
            }
        }
        Changed::Listed { kind, gone }
    }

    fn note(&mut self, kind: Kind, name: &str) {
        if let Some(listed) = self.listed.get_mut(&kind) {
            listed.insert(name.to_owned());
        }
    }

    /// Notes a change of the name. Gives its number back when neither a Node nor a lease has that name any more.
    fn release(&mut self, name: &str) {
        self.ids.touch(name);
        if !self.nodes.contains_key(name) && !self.leases.contains_key(name) {
            self.ids.release(name);
        }
    }

    /// Notes a change outside the picture that a decision about this node may depend on, for example a write under way.
    pub(crate) fn touch(&mut self, node: &str) {
        self.ids.touch(node);
    }

    /// Notes a change that no decision about a single node depends on, so that the next pass is not skipped.
    pub(crate) fn tick(&mut self) {
        self.ids.tick();
    }
}

/// Read access.
impl Picture {
    /// True once every kind was listed completely that every decision needs.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        Kind::NEEDED.iter().all(|kind| self.synced.contains(kind))
    }

    /// Why a kind cannot be listed; `None` if it can, or if nobody knows yet.
    #[must_use]
    pub fn unlistable(&self, kind: Kind) -> Option<&str> {
        self.unlistable.get(&kind).map(String::as_str)
    }

    /// By name.
    #[must_use]
    pub const fn nodes(&self) -> &BTreeMap<String, NodeFact> {
        &self.nodes
    }

    /// By name.
    #[must_use]
    pub const fn skyhooks(&self) -> &BTreeMap<String, SkyhookFact> {
        &self.skyhooks
    }

    /// By the name of their node.
    #[must_use]
    pub const fn leases(&self) -> &BTreeMap<String, LeaseFact> {
        &self.leases
    }

    /// How many leases there are of each Skyhook.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Why the agents' pods cannot be created.
    #[must_use]
    pub fn agents_refused(&self) -> Option<&str> {
        self.agents_refused.as_deref()
    }

    /// The lease of a node, if it can be decoded and is for the Skyhook with this UID.
    #[must_use]
    pub fn lease_of(&self, node: &str, skyhook_uid: &str) -> Option<&LeaseFact> {
        self.leases
            .get(node)
            .filter(|lease| lease.skyhook_uid() == Some(skyhook_uid))
    }

    /// True when nobody waits for the result of the lease: its Skyhook is gone or disabled, or it is being deleted and
    /// nothing is left to uninstall.
    #[must_use]
    pub fn is_given_up(&self, lease: &InterruptionLease) -> bool {
        self.skyhooks
            .get(&lease.spec.skyhook.name)
            .filter(|skyhook| skyhook.uid == lease.spec.skyhook.uid)
            .is_none_or(|skyhook| skyhook.goal() == Goal::Nothing || skyhook.is_disabled())
    }

    /// True when the agent that works on the lease is too old for the lease or for its revision.
    #[must_use]
    pub fn is_agent_too_old(&self, lease: &InterruptionLease) -> bool {
        let revision = self.revisions.get(&lease.spec.revision);
        let data = revision.and_then(|revision| revision.data.as_ref());
        protocol::is_agent_too_old(lease, data.map_or(0, |data| data.format))
    }

    /// True when the picture does not hold the Node that a write returned: the watch has reported its deletion since.
    #[must_use]
    pub(crate) fn has_lost_node(&self, node: &WireNode) -> bool {
        let held = self.nodes.get(&name_of(&node.metadata));
        held.map(|held| &held.uid) != node.metadata.uid.as_ref()
    }

    /// Does the same for a Skyhook that a write returned.
    #[must_use]
    pub(crate) fn has_lost_skyhook(&self, skyhook: &WireSkyhook) -> bool {
        let held = self.skyhooks.get(&name_of(&skyhook.metadata));
        held.map(|held| &held.uid) != skyhook.metadata.uid.as_ref()
    }

    /// UID and resource version of an object, as the picture holds it.
    #[must_use]
    pub(crate) fn held(&self, target: &Target) -> Option<(&String, &String)> {
        match target {
            Target::Lease(node) => {
                let held = self.leases.get(node)?;
                Some((&held.uid, &held.resource_version))
            }
            Target::Node(name) => {
                let held = self.nodes.get(name)?;
                Some((&held.uid, &held.resource_version))
            }
            Target::Skyhook(name) => {
                let held = self.skyhooks.get(name)?;
                Some((&held.uid, &held.resource_version))
            }
            Target::Revision(name) => {
                let held = self.revisions.get(name)?;
                Some((&held.uid, &held.resource_version))
            }
            Target::Rollout(name) => {
                let held = self.rollouts.get(name)?;
                Some((&held.uid, &held.resource_version))
            }
            Target::Look(_) | Target::Pods(_) | Target::Pod(_) => None,
        }
    }

    /// All node names in alphabetical order, each with its number.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (&str, NodeId)> {
        self.ids.all()
    }

    /// The tick of the last change that a decision about a node may depend on: a change of the Node, of its lease, or
    /// of what this process knows about both (writes under way, pod lists, times).
    pub(crate) fn touched(&self, node: NodeId) -> Tick {
        self.ids.touched(node)
    }

    /// The tick of the last change of a Skyhook that a decision may depend on; `None` while no Skyhook has that name.
    pub(crate) fn skyhook_changed(&self, name: &str) -> Option<Tick> {
        self.skyhooks_changed.get(name).copied()
    }

    /// The tick of the last change of any kind.
    #[must_use]
    pub const fn changed(&self) -> Tick {
        self.ids.last()
    }
}

fn name_of(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// Stores the object unless a newer version of it is held. Returns true when the object was stored.
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

#[cfg(test)]
impl Picture {
    /// Changes a Node by hand.
    pub(crate) fn edit_node(&mut self, name: &str, edit: impl FnOnce(&mut NodeFact)) {
        if let Some(node) = self.nodes.get_mut(name) {
            edit(node);
        }
        self.ids.touch(name);
    }

    /// Changes a lease by hand.
    pub(crate) fn edit_lease(&mut self, node: &str, edit: impl FnOnce(&mut LeaseFact)) {
        if let Some(lease) = self.leases.get_mut(node) {
            edit(lease);
        }
        self.ids.touch(node);
    }
}
