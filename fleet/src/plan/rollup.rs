//! What Nodes are told about the roll-out: a pure function of the picture, written only when it differs.

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::Phase;
use skyhook_crds::lease::protocol;
use skyhook_crds::names;
use skyhook_crds::stage::Status;

use super::reason::Reason;
use super::standing::{Standing, Standings};
use super::status::{reason_on_node, with_since};
use super::verdict::{self, verdict};
use super::{Draft, View, why};
use crate::effect::{NodePatch, Target};
use crate::facts::{NodeFact, SkyhookFact};

/// Writes status and reason to the Nodes.
pub(super) fn nodes(
    view: &View<'_>,
    skyhooks: &[&SkyhookFact],
    standings: &Standings,
    draft: &mut Draft<'_>,
) {
    for skyhook in skyhooks.iter().filter(|skyhook| !skyhook.deleting) {
        for (name, standing) in standings.get(&skyhook.name).into_iter().flatten() {
            let Some(node) = view.picture.nodes().get(name) else {
                continue;
            };
            // The writes that grant a lease and take its result carry the status themselves.
            let lease = view
                .picture
                .lease_of(name, &skyhook.uid)
                .and_then(|fact| fact.lease.as_ref().ok());
            let in_between = *standing == Standing::Leased
                && lease.is_none_or(|lease| {
                    lease.spec.granted.is_none()
                        || protocol::phase(lease).is_some_and(Phase::is_terminal)
                });
            if lease.is_some()
                && let Some(at) = verdict::parked_at(view, node).filter(|at| *at > view.now.mono)
            {
                draft.wake_at(at);
            }
            let (status, reason) = verdict(view, skyhook, node, standing);
            if !in_between {
                let key = names::reason(&skyhook.name);
                let since = since_on_node(node, &skyhook.name, reason.as_ref(), view.now.wall);
                let patch = NodePatch::default()
                    .status(&skyhook.name, status)
                    .conditions(&skyhook.name, status)
                    .annotation(&key, since);
                // Why a node that moves is not further yet is worth a write when it has been so for a moment.
                let shown = node.annotations.get(&names::status(&skyhook.name));
                let moves = *standing == Standing::Leased
                    && shown.is_some_and(|shown| shown == status.as_str())
                    && !draft.is_patched(name)
                    && !patch.clone().reduced(node).is_empty();
                if !(moves && draft.is_too_soon(&Target::Node(name.clone()))) {
                    draft.patch(node, patch, why::STATUS);
                }
            } else if status == Status::Complete
                || lease.is_some_and(|lease| is_complete_here(skyhook, lease))
            {
                let recorded = draft.is_writing_result(name);
                if recorded {
                    let patch = NodePatch::default()
                        .status(&skyhook.name, Status::Complete)
                        .conditions(&skyhook.name, Status::Complete)
                        .annotation(&names::reason(&skyhook.name), None);
                    draft.patch(node, patch, "");
                }
            }
        }
    }
}

/// True when the lease's result says that the node is complete, and not only at a revision that is no longer wanted.
fn is_complete_here(skyhook: &SkyhookFact, lease: &InterruptionLease) -> bool {
    let wanted = skyhook.checked.as_ref().map(|checked| &checked.revision);
    protocol::phase(lease) == Some(Phase::Complete) && wanted == Ok(&lease.spec.revision)
}

/// The reason annotation: its time stays while the reason stays.
fn since_on_node(
    node: &NodeFact,
    skyhook: &str,
    reason: Option<&Reason>,
    now: Timestamp,
) -> Option<String> {
    let reason = reason?;
    let there = reason_on_node(node, skyhook);
    serde_json::to_string(&with_since(reason, there.as_ref(), now)).ok()
}

/// RFC 3339, to the second.
#[must_use]
pub fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second())
        .unwrap_or(at)
        .to_string()
}
