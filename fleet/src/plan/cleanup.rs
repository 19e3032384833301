//! Finalizers, revisions, and whatever is left when an owner has gone.

use std::collections::BTreeSet;

use skyhook_crds::lease::protocol;
use skyhook_crds::names;

use super::reason::Word;
use super::standing::{Standing, Standings};
use super::{Draft, View, cordon, version, why};
use crate::effect::Effect;
use crate::facts::{LeaseFact, NodeFact, SkyhookFact};

/// Revisions of a Skyhook that are kept although nothing refers to them.
const HISTORY: usize = 10;

/// Takes Skyhooks in, lets those go that are being deleted, and keeps the revision of each.
pub(super) fn skyhooks(view: &View<'_>, skyhooks: &[&SkyhookFact], draft: &mut Draft<'_>) {
    for skyhook in skyhooks {
        let ours = skyhook
            .finalizers
            .iter()
            .any(|f| f == names::SKYHOOK_FINALIZER);
        let at = version(&skyhook.uid, &skyhook.resource_version);
        if skyhook.deleting {
            if ours && nothing_left(view, skyhook) {
                let finalizers = skyhook
                    .finalizers
                    .iter()
                    .filter(|f| *f != names::SKYHOOK_FINALIZER)
                    .cloned()
                    .collect();
                draft.push(Effect::ReleaseSkyhook {
                    name: skyhook.name.clone(),
                    at,
                    finalizers,
                });
            }
            continue;
        }
        if !ours {
            let mut finalizers = skyhook.finalizers.clone();
            finalizers.push(names::SKYHOOK_FINALIZER.to_owned());
            draft.push(Effect::AdoptSkyhook {
                name: skyhook.name.clone(),
                at,
                finalizers,
            });
        }
        revision(view, skyhook, draft);
    }
}

/// True when no lease and no cordon of the Skyhook is left.
fn nothing_left(view: &View<'_>, skyhook: &SkyhookFact) -> bool {
    let lease = view
        .picture
        .leases()
        .values()
        .any(|lease| lease.skyhook_uid() == Some(skyhook.uid.as_str()));
    let creating = view.inflight.creates().any(|(_, uid)| uid == skyhook.uid);
    let cordon = view
        .picture
        .nodes()
        .values()
        .any(|node| node.cordon.owners.contains_key(&skyhook.name));
    !lease && !creating && !cordon
}

fn revision(view: &View<'_>, skyhook: &SkyhookFact, draft: &mut Draft<'_>) {
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
pub(super) fn revisions(view: &View<'_>, skyhooks: &[&SkyhookFact], draft: &mut Draft<'_>) {
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

/// Gives back cordons whose owner holds no lease any more and is not about to go on with the node.
pub(super) fn cordons(view: &View<'_>, standings: &Standings, draft: &mut Draft<'_>) {
    for node in view.picture.nodes().values() {
        if !node.unschedulable && !node.cordon.owners.is_empty() {
            // Somebody uncordoned it: a drain that still needs the cordon takes it again, nothing else does.
            if !is_draining(view, node) {
                draft.patch(node, cordon::forget(node), why::UNCORDONED);
            }
            continue;
        }
        let orphaned =
            node.cordon
                .owners
                .keys()
                .map(String::as_str)
                .filter(|owner| {
                    let leased = view.picture.leases().get(&node.name).is_some_and(|lease| {
                        match &lease.lease {
                            Ok(lease) => lease.spec.skyhook.name == *owner,
                            Err(_) => true,
                        }
                    });
                    let skyhook = view.picture.skyhooks().get(*owner);
                    let goes_on = skyhook.is_some_and(|s| may_go_on(s, node, standings));
                    !leased && !goes_on && !view.inflight.creating(&node.name).is_some()
                });
        let orphaned: Vec<&str> = orphaned.collect();
        let mut patch = cordon::give_back(node, orphaned.iter().copied());
        // No watch is fresh enough for this: a cordon taken away in mid-drain would let pods come back.
        patch.check.not_for = orphaned.into_iter().map(str::to_owned).collect();
        draft.patch(node, patch, why::CORDON_WITHOUT_OWNER);
    }
}

/// True when the lease of the node needs it cordoned now, or cannot be read.
fn is_draining(view: &View<'_>, node: &NodeFact) -> bool {
    view.picture.leases().get(&node.name).is_some_and(|fact| {
        fact.lease
            .as_ref()
            .map_or(true, |lease| protocol::wants_drain(lease))
    })
}

/// True when a Skyhook that holds no lease on the node is about to get one: it waits for a slot, not for something that
/// may never come.
fn may_go_on(skyhook: &SkyhookFact, node: &NodeFact, standings: &Standings) -> bool {
    let standing = standings
        .get(&skyhook.name)
        .and_then(|nodes| nodes.get(&node.name));
    let soon = match standing {
        Some(Standing::Leased | Standing::Eligible(_)) => true,
        Some(Standing::Waiting(reason)) => !matches!(
            reason.word,
            Word::BudgetZero | Word::EarlierSkyhook | Word::NodeLeased | Word::Paused
        ),
        Some(Standing::Complete | Standing::Blocked(_)) | None => false,
    };
    soon && !skyhook.deleting && !skyhook.is_disabled()
}
