//! Objects that every node of a Skyhook depends on: revisions, policies and the states of roll-outs.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::revision::RevisionData;

use super::{Changed, Kind, Picture, Tick, keep_newer, read};
use crate::effect::Target;
use crate::facts::{PolicyFact, RevisionFact, RolloutFact, SkyhookFact};

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
            self.leave_behind(&name);
            self.survey_of(&name);
        }
        Changed::Came {
            target: Target::Revision(name),
            uid,
            version,
            decides,
        }
    }

    /// Names of the packages that stay on hosts although the Skyhook's spec may not have them any more: when the spec still
    /// had them, their `uninstall.enabled` was false. The newest stored revision tells this, which may be one of an earlier
    /// Skyhook of this name, and the spec that is held, which may not be stored yet.
    pub(super) fn left_behind(&self, skyhook: &SkyhookFact) -> BTreeSet<String> {
        let all = self.revisions.values();
        let all = all.filter(|revision| revision.skyhook == skyhook.name);
        let newest = all.max_by_key(|revision| (revision.number, &revision.name));
        let stored = newest.and_then(|revision| revision.data.as_deref());
        let held = self.skyhooks.get(&skyhook.name);
        let held = held.filter(|held| held.uid == skyhook.uid);
        let held = held.and_then(|held| Some(&held.checked.as_ref().ok()?.data));
        let stay = |data: &RevisionData| -> BTreeSet<String> {
            let packages = data.packages.values().filter(|one| one.stays_behind());
            let packages = packages.map(|one| one.name.clone());
            packages.chain(data.left_behind.iter().cloned()).collect()
        };
        let mut names = stored.map_or_else(BTreeSet::new, stay);
        if let Some(held) = held {
            names.retain(|name| !held.packages.contains_key(name));
            let mut of_held = stay(held);
            if !self.synced.contains(&Kind::Revision) {
                // It may have been told by a revision that is not the newest.
                of_held.retain(|name| held.packages.contains_key(name));
            }
            names.append(&mut of_held);
        }
        names
    }

    /// Does the same for the Skyhook of a revision that came.
    fn leave_behind(&mut self, revision: &str) {
        let revision = self.revisions.get(revision);
        let Some(skyhook) = revision.and_then(|one| self.skyhooks.get(&one.skyhook)) else {
            return;
        };
        let (name, names) = (skyhook.name.clone(), self.left_behind(skyhook));
        let Some(skyhook) = self.skyhooks.get_mut(&name) else {
            return;
        };
        if skyhook.leave_behind(names) {
            let tick = self.ids.tick();
            self.skyhooks_changed.insert(name, tick);
        }
    }

    /// What a lease may have done to its node depends on its revision.
    fn survey_of(&mut self, revision: &str) {
        let revision = self.revisions.get(revision);
        if let Some(skyhook) = revision.map(|one| one.skyhook.clone()) {
            self.survey_all(&skyhook);
        }
    }

    pub(crate) fn revision_gone(&mut self, name: &str) -> Changed {
        self.revisions_changed = self.ids.tick();
        let gone = self.revisions.remove(name);
        if let Some(revision) = &gone {
            self.survey_all(&revision.skyhook);
        }
        Changed::Gone {
            target: Target::Revision(name.to_owned()),
            was_there: gone.is_some(),
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
