//! Objects that every node of a Skyhook depends on: revisions, policies and the states of roll-outs.

use std::collections::BTreeMap;

use super::{Changed, Kind, Picture, Tick, keep_newer, read};
use crate::effect::Target;
use crate::facts::{PolicyFact, RevisionFact, RolloutFact};

impl Picture {
    pub(crate) fn revision(&mut self, revision: RevisionFact) -> Changed {
        self.note(Kind::Revision, &revision.name);
        let (name, uid) = (revision.name.clone(), revision.uid.clone());
        let version = revision.resource_version.clone();
        let key = name.clone();
        let held = self.revisions.get(&key);
        let differs = held.is_none_or(|held| read::revision_differs(held, &revision));
        let decides = keep_newer(&mut self.revisions, key, revision, |r| &r.resource_version);
        if decides && differs {
            self.revisions_changed = self.ids.tick();
        }
        Changed::Came {
            target: Target::Revision(name),
            uid,
            version,
            decides,
        }
    }

    pub(crate) fn revision_gone(&mut self, name: &str) -> Changed {
        self.revisions_changed = self.ids.tick();
        Changed::Gone {
            target: Target::Revision(name.to_owned()),
            was_there: self.revisions.remove(name).is_some(),
        }
    }

    pub(crate) fn policy(&mut self, policy: PolicyFact) -> Changed {
        self.note(Kind::Policy, &policy.name);
        let held = self.policies.get(&policy.name);
        let differs = held.is_none_or(|held| read::policy_differs(held, &policy));
        if differs {
            self.policies_changed = self.ids.tick();
            self.policies.insert(policy.name.clone(), policy);
        }
        Changed::Other(differs)
    }

    pub(crate) fn policy_gone(&mut self, name: &str) -> Changed {
        self.policies_changed = self.ids.tick();
        Changed::Other(self.policies.remove(name).is_some())
    }

    pub(crate) fn rollout(&mut self, rollout: RolloutFact) -> Changed {
        self.note(Kind::Rollout, &rollout.name);
        let (name, uid) = (rollout.name.clone(), rollout.uid.clone());
        let version = rollout.resource_version.clone();
        let held = self.rollouts.get(&name);
        let differs = held.is_none_or(|held| read::rollout_differs(held, &rollout));
        let key = name.clone();
        let decides = keep_newer(&mut self.rollouts, key, rollout, |r| &r.resource_version);
        if decides && differs {
            self.rollouts_changed = self.ids.tick();
        }
        Changed::Came {
            target: Target::Rollout(name),
            uid,
            version,
            decides,
        }
    }

    pub(crate) fn rollout_gone(&mut self, name: &str) -> Changed {
        self.rollouts_changed = self.ids.tick();
        Changed::Gone {
            target: Target::Rollout(name.to_owned()),
            was_there: self.rollouts.remove(name).is_some(),
        }
    }
}

/// Read access.
impl Picture {
    /// By name.
    #[must_use]
    pub const fn revisions(&self) -> &BTreeMap<String, RevisionFact> {
        &self.revisions
    }

    /// By name.
    #[must_use]
    pub const fn policies(&self) -> &BTreeMap<String, PolicyFact> {
        &self.policies
    }

    /// Where the roll-out of a Skyhook stands; `None` also while the states of roll-outs were not listed completely.
    #[must_use]
    pub fn rollout_of(&self, skyhook: &str) -> Option<&RolloutFact> {
        self.rollouts.get(skyhook).filter(|_| self.knows_rollouts())
    }

    /// True once the states of roll-outs were listed completely.
    #[must_use]
    pub fn knows_rollouts(&self) -> bool {
        self.synced.contains(&Kind::Rollout)
    }

    /// The tick of the last change of any revision.
    pub(crate) const fn revisions_changed(&self) -> Tick {
        self.revisions_changed
    }

    /// The tick of the last change of any DeploymentPolicy.
    pub(crate) const fn policies_changed(&self) -> Tick {
        self.policies_changed
    }

    /// The tick of the last change of any roll-out's state.
    pub(crate) const fn rollouts_changed(&self) -> Tick {
        self.rollouts_changed
    }
}
