//! Revisions: the current revision of each Skyhook is stored with the highest number, and a history of old revisions is
//! kept.

use std::collections::BTreeSet;

use super::cache::Cache;
use super::scan::Order;
use super::{Draft, View, version};
use crate::effect::Effect;
use crate::facts::SkyhookFact;

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
pub(super) fn prune(
    view: &View<'_>,
    skyhooks: &[&SkyhookFact],
    order: &Order<'_>,
    cache: &Cache,
    draft: &mut Draft<'_>,
) {
    let mut referred = None;
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
            draft.push(Effect::PruneRevision {
                name: revision.name.clone(),
                at: version(&revision.uid, &revision.resource_version),
            });
        }
    }
}

/// Names of the revisions that leases and the records on Nodes refer to.
fn all_referred<'a>(order: &Order<'_>, cache: &'a Cache) -> BTreeSet<&'a str> {
    let cells = order.iter().map(|(_, id)| &cache.nodes[id.index()]);
    let numbers: BTreeSet<u32> = cells.flat_map(|cell| &cell.refers).copied().collect();
    let names = numbers.into_iter().map(|number| cache.names.text(number));
    names.collect()
}
