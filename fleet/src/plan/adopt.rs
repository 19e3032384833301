//! Our finalizer on Skyhooks. It is added to every Skyhook, and removed from a deleted Skyhook that has no lease, no cordon,
//! no taint and nothing to uninstall left, and of which no Node says anything but what stays on the host.

use skyhook_crds::names;

use super::{Draft, View, leftovers, taint, version};
use crate::effect::Effect;
use crate::facts::{Goal, NodeFact, SkyhookFact};

/// Adds our finalizer to Skyhooks, and removes it from those that are being deleted.
pub(super) fn skyhooks(view: &View<'_>, skyhooks: &[&SkyhookFact], draft: &mut Draft<'_>) {
    for skyhook in skyhooks {
        let is_ours = |finalizer: &&String| *finalizer == names::SKYHOOK_FINALIZER;
        let ours = skyhook.is_adopted();
        let (name, at) = (
            skyhook.name.clone(),
            version(&skyhook.uid, &skyhook.resource_version),
        );
        if skyhook.goal() == Goal::Nothing && ours && nothing_left(view, skyhook) {
            let others = skyhook.finalizers.iter().filter(|f| !is_ours(f));
            draft.push(Effect::ReleaseSkyhook {
                name,
                at,
                finalizers: others.cloned().collect(),
            });
        } else if !skyhook.deleting && !ours {
            let mut finalizers = skyhook.finalizers.clone();
            finalizers.push(names::SKYHOOK_FINALIZER.to_owned());
            draft.push(Effect::AdoptSkyhook {
                name,
                at,
                finalizers,
            });
        }
    }
}

/// The Nodes that still say something about a Skyhook that is being deleted.
pub(super) fn unclean<'a>(
    view: &View<'a>,
    skyhook: &'a SkyhookFact,
) -> impl Iterator<Item = &'a NodeFact> {
    let nodes = view.picture.nodes().values();
    nodes.filter(|node| !leftovers::clean(node, &skyhook.name).is_empty())
}

/// True when no lease, no cordon and no taint of the Skyhook is left, no revision that would go with it, no state of a
/// roll-out that would not, and every Node is clean.
fn nothing_left(view: &View<'_>, skyhook: &SkyhookFact) -> bool {
    let mut leases = view.picture.leases().values();
    let lease = leases.any(|lease| lease.skyhook_uid() == Some(skyhook.uid.as_str()));
    let creating = view
        .inflight
        .creates()
        .any(|(_, spec)| spec.skyhook.uid == skyhook.uid);
    let mut nodes = view.picture.nodes().values();
    let cordon = nodes.any(|node| node.cordon.owners.contains_key(&skyhook.name));
    let mut revisions = view.picture.revisions().values();
    let revision = revisions.any(|one| one.goes_with_owner && one.owner == skyhook.uid);
    let state = view.picture.rollout_of(&skyhook.name);
    let state = state.is_some_and(|state| state.owner == skyhook.uid && !state.goes_with_owner);
    let left = lease || creating || cordon || revision || state;
    !left && taint::left(view, skyhook).next().is_none() && unclean(view, skyhook).next().is_none()
}
