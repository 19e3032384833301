//! Whether what an effect was decided on is still what is held.

use super::Index;
use crate::effect::{Effect, Target};

impl Index {
    /// True while what an effect was decided on is what is held.
    #[must_use]
    pub fn still_holds(&self, effect: &Effect) -> bool {
        let target = effect.target();
        if self.is_unsettled(&target) {
            return false;
        }
        if let Some(at) = effect.decided_on() {
            return self.held(&target) == Some((&at.uid, &at.resource_version));
        }
        match &target {
            Target::Lease(node) => {
                !self.leases.contains_key(node) && !self.creating.contains_key(node)
            }
            Target::Revision(name) => !self.revisions.contains_key(name),
            Target::Node(_) | Target::Skyhook(_) | Target::Pods(_) | Target::Pod(_) => true,
        }
    }

    /// UID and version of an object that is held.
    pub(super) fn held(&self, target: &Target) -> Option<(&String, &String)> {
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
            Target::Pods(_) | Target::Pod(_) => None,
        }
    }
}
