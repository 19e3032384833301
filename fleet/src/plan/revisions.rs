//! Revisions: the current revision of each Skyhook is stored with the highest number, and a history of old revisions is
//! kept.

use std::collections::BTreeSet;

use super::{Draft, View, version};
use crate::effect::Effect;
use crate::facts::{LeaseFact, SkyhookFact};

/// How many revisions of a Skyhook are kept: the current one, and the newest of those that nothing refers to. Revisions
/// that something refers to are kept in addition.
const HISTORY: usize = 10;

/// Stores the revision that each Skyhook asks for now.
pub(super) fn keep(view: &View<'_>, skyhooks: &[&SkyhookFact], draft: &mut Draft<'_>) {
    for skyhook in skyhooks.iter().filter(|skyhook| !skyhook.deleting) {
        current(view, skyhook, draft);
    }
}

fn current(view: &View<'_>, skyhook: &SkyhookFact, draft: &mut Draft<'_>) {
    let Ok(checked) = &skyhook.checked else {
        return;
    };
    let newest = view
        .picture
        .revisions()
        .values()
        .filter(|revision| revision.owner == skyhook.uid)
        .map(|revision| revision.number)
        .max()
        .unwrap_or_default();
    match view.picture.revisions().get(&checked.revision) {
        None => {
            draft.push(Effect::CreateRevision {
                name: checked.revision.clone(),
                skyhook: skyhook.name.clone(),
                skyhook_uid: skyhook.uid.clone(),
                number: newest + 1,
                data: Box::new(checked.data.clone()),
            });
        }
        Some(revision) if revision.number < newest => {
            draft.push(Effect::RenumberRevision {
                name: revision.name.clone(),
                at: version(&revision.uid, &revision.resource_version),
                number: newest + 1,
            });
        }
        Some(_) => {}
    }
}

/// Prunes revisions that nothing refers to, down to the history that is kept.
pub(super) fn prune(view: &View<'_>, skyhooks: &[&SkyhookFact], draft: &mut Draft<'_>) {
    for skyhook in skyhooks {
        let mut owned: Vec<_> = view
            .picture
            .revisions()
            .values()
            .filter(|revision| revision.owner == skyhook.uid)
            .collect();
        if owned.len() <= HISTORY {
            continue;
        }
        let used = referred(view, skyhook);
        owned.retain(|revision| !used.contains(revision.name.as_str()));
        owned.sort_by_key(|revision| revision.number);
        let surplus = owned.len().saturating_sub(HISTORY.saturating_sub(1));
        for revision in owned.into_iter().take(surplus) {
            draft.push(Effect::PruneRevision {
                name: revision.name.clone(),
                at: version(&revision.uid, &revision.resource_version),
            });
        }
    }
}

fn referred<'a>(view: &'a View<'_>, skyhook: &'a SkyhookFact) -> BTreeSet<String> {
    let leases = view
        .picture
        .leases()
        .values()
        .filter_map(|lease: &LeaseFact| lease.lease.as_ref().ok());
    let mut used: BTreeSet<String> = leases.map(|lease| lease.spec.revision.clone()).collect();
    used.extend(
        skyhook
            .checked
            .as_ref()
            .ok()
            .map(|checked| checked.revision.clone()),
    );
    used.extend(view.picture.nodes().values().filter_map(|node| {
        node.records
            .get(&skyhook.name)?
            .stamp
            .as_ref()
            .map(|stamp| stamp.revision.clone())
    }));
    used
}
