//! Which nodes keep a Skyhook that is being deleted.

use std::collections::BTreeSet;

use super::Picture;
use crate::facts::{Keeps, SkyhookFact};

impl Picture {
    /// Looks whether a node keeps Skyhooks from being deleted.
    pub(super) fn survey(&mut self, node: &str) {
        let deleting = self.skyhooks.values().filter(|one| one.deleting);
        let found: Vec<(String, Option<Keeps>)> = deleting
            .map(|skyhook| (skyhook.name.clone(), self.keeps(skyhook, node)))
            .collect();
        for (skyhook, keeps) in found {
            self.note_keeps(&skyhook, [(node.to_owned(), keeps)]);
        }
    }

    /// Looks which nodes keep this Skyhook from being deleted, if it is.
    pub(super) fn survey_all(&mut self, skyhook: &str) {
        let Some(fact) = self.skyhooks.get(skyhook).filter(|one| one.deleting) else {
            return;
        };
        let nodes: BTreeSet<&String> = self.nodes.keys().chain(self.leases.keys()).collect();
        let found: Vec<(String, Option<Keeps>)> = nodes
            .into_iter()
            .map(|node| (node.clone(), self.keeps(fact, node)))
            .collect();
        self.note_keeps(skyhook, found);
    }

    fn keeps(&self, skyhook: &SkyhookFact, node: &str) -> Option<Keeps> {
        let lease = self.lease_of(node, &skyhook.uid);
        let lease = lease.and_then(|fact| fact.lease.as_deref().ok());
        let granted = lease.filter(|lease| lease.spec.granted.is_some());
        let works_at = granted.map(|lease| {
            let revision = self.revisions.get(&lease.spec.revision);
            revision.and_then(|revision| revision.data.as_deref())
        });
        skyhook.is_kept_by(self.nodes.get(node), works_at)
    }

    fn note_keeps(
        &mut self,
        skyhook: &str,
        found: impl IntoIterator<Item = (String, Option<Keeps>)>,
    ) {
        let Some(fact) = self.skyhooks.get_mut(skyhook) else {
            return;
        };
        let before = fact.goal();
        for (node, keeps) in found {
            fact.deletion.note(&node, keeps);
        }
        if fact.goal() != before {
            let tick = self.ids.tick();
            self.skyhooks_changed.insert(skyhook.to_owned(), tick);
            self.turned.insert(skyhook.to_owned());
        }
    }

    /// Takes the Skyhooks whose goal has changed since the last call, although they have not changed.
    pub(crate) fn take_turned(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.turned)
    }
}
