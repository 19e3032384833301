//! Revisions: the current revision of each Skyhook is stored with the highest number, and a history of old revisions is
//! kept.
//!
//! A revision that a Node's stamp or a lease names outlives its Skyhook. From it, another Skyhook of the same name knows how
//! the packages on a host were configured, so that nothing is installed again that has not changed.

use std::collections::BTreeSet;

use super::cache::Cache;
use super::scan::Order;
use super::{Draft, View, version};
use crate::effect::Effect;
use crate::facts::{Goal, RevisionFact, SkyhookFact};

/// How many revisions of a Skyhook are kept: the current one, and the newest of those that nothing refers to. Revisions
/// that something refers to are kept in addition.
const HISTORY: usize = 10;

/// Stores the revision that each Skyhook asks for now.
pub(super) fn keep(view: &View<'_>, skyhooks: &[&SkyhookFact], draft: &mut Draft<'_>) {
    for skyhook in skyhooks {
        if skyhook.deleting {
            disown(view, skyhook, draft);
        }
        if skyhook.goal() != Goal::Nothing {
            current(view, skyhook, draft);
        }
    }
}

/// Takes the owner references, which earlier versions wrote, off the revisions of a Skyhook that is being deleted.
fn disown(view: &View<'_>, skyhook: &SkyhookFact, draft: &mut Draft<'_>) {
    let revisions = view.picture.revisions().values();
    let owned =
        |revision: &&RevisionFact| revision.goes_with_owner && revision.owner == skyhook.uid;
    for revision in revisions.filter(owned) {
        draft.push(Effect::DisownRevision {
            name: revision.name.clone(),
            at: version(&revision.uid, &revision.resource_version),
            skyhook_uid: skyhook.uid.clone(),
        });
    }
}

fn current(view: &View<'_>, skyhook: &SkyhookFact, draft: &mut Draft<'_>) {
    let Ok(checked) = &skyhook.checked else {
        return;
    };
    // The revisions of an earlier Skyhook of this name are older than all of this one.
    let newest = view
        .picture
        .revisions()
        .values()
        .filter(|revision| revision.skyhook == skyhook.name)
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

/// Prunes revisions that nothing refers to: of a Skyhook that exists, down to the history that is kept.
pub(super) fn prune(
    view: &View<'_>,
    skyhooks: &[&SkyhookFact],
    order: &Order<'_>,
    cache: &Cache,
    draft: &mut Draft<'_>,
) {
    let mut referred = None;
    let revisions = view.picture.revisions();
    for skyhook in skyhooks.iter().filter(|skyhook| !skyhook.deleting) {
        let owned = revisions.values();
        let owned = owned.filter(|revision| revision.owner == skyhook.uid);
        let mut owned: Vec<&RevisionFact> = owned.collect();
        if owned.len() <= HISTORY {
            continue;
        }
        let used = referred.get_or_insert_with(|| all_referred(order, cache));
        let checked = skyhook.checked.as_ref().ok();
        let current = checked.map(|checked| checked.revision.as_str());
        owned.retain(|revision| {
            let name = revision.name.as_str();
            !used.contains(name) && current != Some(name)
        });
        owned.sort_by_key(|revision| revision.number);
        let surplus = owned.len().saturating_sub(HISTORY.saturating_sub(1));
        for revision in owned.into_iter().take(surplus) {
            delete(revision, None, draft);
        }
    }
    for revision in revisions.values() {
        let skyhook = view.picture.skyhooks().get(&revision.skyhook);
        let skyhook = skyhook.filter(|skyhook| skyhook.uid == revision.owner);
        let is_needed = skyhook.is_some_and(|skyhook| {
            let checked = skyhook.checked.as_ref();
            let is_current = checked.is_ok_and(|checked| checked.revision == revision.name);
            match skyhook.goal() {
                Goal::Normal => true,
                Goal::Uninstall => is_current,
                Goal::Nothing => false,
            }
        });
        if is_needed || revision.goes_with_owner {
            continue;
        }
        let used = referred.get_or_insert_with(|| all_referred(order, cache));
        if !used.contains(revision.name.as_str()) {
            // Another replica may have seen a Skyhook that the watch has not delivered here.
            let not_of = skyhook.is_none().then(|| revision.owner.clone());
            delete(revision, not_of, draft);
        }
    }
}

fn delete(revision: &RevisionFact, not_of: Option<String>, draft: &mut Draft<'_>) {
    draft.push(Effect::PruneRevision {
        name: revision.name.clone(),
        at: version(&revision.uid, &revision.resource_version),
        skyhook: revision.skyhook.clone(),
        not_of,
    });
}

/// Names of the revisions that leases and the records on Nodes refer to.
fn all_referred<'a>(order: &Order<'_>, cache: &'a Cache) -> BTreeSet<&'a str> {
    let cells = order.iter().map(|(_, id)| &cache.nodes[id.index()]);
    let numbers: BTreeSet<u32> = cells.flat_map(|cell| &cell.refers).copied().collect();
    let names = numbers.into_iter().map(|number| cache.names.text(number));
    names.collect()
}
