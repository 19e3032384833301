//! What Nodes say about the roll-out. This is a pure function of the picture, and is written only when the Node says
//! something else.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::Phase;
use skyhook_crds::lease::protocol;
use skyhook_crds::names;
use skyhook_crds::package::Package;
use skyhook_crds::stage::Status;

use super::cache::{Cache, Rest, ShownCell};
use super::cause::Cause;
use super::reason::{Reason, ReasonCode};
use super::scan::{Order, Row};
use super::standing::Standing;
use super::status::{MAX_REASON, cut, reason_on_node, with_since};
use super::verdict::{self, verdict};
use super::{COALESCE, Draft, View, drain};
use crate::clocks::Mono;
use crate::effect::{NodePatch, Target};
use crate::facts::{Goal, NodeFact, SkyhookFact};

/// How many Nodes of one Skyhook are told something in one pass. The others are told in later passes. In a large fleet
/// whose nodes all fail, the texts would otherwise need much memory and be rendered anew in each pass.
const TOLD: usize = 256;

/// How long after it is first seen a new node is told nothing.
const QUIET: Duration = Duration::from_secs(2);

/// Writes status and reason to the Nodes.
pub(super) fn nodes(
    view: &View<'_>,
    rows: &mut [Row<'_>],
    order: &Order<'_>,
    cache: &mut Cache,
    draft: &mut Draft<'_>,
) {
    let (last, first) = order.split_at(first_told(view, order.len()));
    for row in rows {
        let mut room = TOLD;
        for (name, id) in first.iter().chain(last) {
            let Some(standing) = row.standing(*id) else {
                continue;
            };
            let is_listing = row.batches.as_ref().is_some_and(|all| all.is_listing);
            let own = row.cell(*id).and_then(|cell| cell.standing.as_ref());
            if is_listing && own == Some(&Standing::Eligible) {
                continue;
            }
            let shown = row.cell(*id).and_then(|cell| cell.shown.as_ref());
            // While a write for the lease is outstanding, it is not known whether that write carries the status as
            // well.
            let settled = cache.nodes[id.index()].next.is_some();
            let known = shown.filter(|shown| {
                let holds = |rest| Rest::holds(&rest, view.now.mono);
                shown.rest.is_some_and(holds)
                    && (settled || !shown.in_between)
                    && shown.standing == *standing
            });
            if let Some(shown) = known {
                draft.rests(shown.rest.unwrap_or_default());
                continue;
            }
            let Some(node) = view.picture.nodes().get(*name) else {
                continue;
            };
            let standing = standing.clone();
            cache.counted.shown += 1;
            let was_patched = draft.is_patched(name);
            draft.begin_unit();
            let mut shown = show(view, row.skyhook, node, standing, room > 0, draft);
            shown.rest = draft.end_unit();
            shorten(&mut shown);
            room -= usize::from(room > 0 && !was_patched && draft.is_patched(name));
            if let Some(cell) = row.column.cells.get_mut(id.index()) {
                cell.shown = Some(shown);
            }
        }
    }
}

/// The place of the node that is told something first. It is another one each second, so that every node has its turn.
fn first_told(view: &View<'_>, nodes: usize) -> usize {
    let seconds = usize::try_from(view.now.mono.since(Mono::ZERO).as_secs()).unwrap_or_default();
    let told = seconds.wrapping_mul(TOLD);
    told.checked_rem(nodes).unwrap_or_default()
}

/// Keeps of a reason what the Skyhook's status shows. A failing package may say 2 KiB on each of many nodes.
fn shorten(shown: &mut ShownCell) {
    let reason = shown.reason.as_mut();
    if let Some(reason) = reason.filter(|reason| reason.message.len() > MAX_REASON) {
        reason.message = cut(&reason.message, MAX_REASON).into();
    }
}

/// Computes what one Node says about one Skyhook, and writes it when it differs and there is room in this pass.
fn show(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    standing: Standing,
    has_room: bool,
    draft: &mut Draft<'_>,
) -> ShownCell {
    let lease = view.picture.lease_of(&node.name, &skyhook.uid);
    let lease = lease.and_then(|fact| fact.lease.as_deref().ok());
    if lease.is_some()
        && let Some(at) = verdict::lost_at(view, node).filter(|at| *at > view.now.mono)
    {
        draft.wake_at(at);
    }
    let (status, reason) = verdict(view, skyhook, node, &standing);
    // The write that stamps a Node before a grant and the write that records a result carry the status themselves. While
    // a result cannot be recorded, for example because its node is not back, there is no such write.
    let in_between = standing == Standing::Leased
        && status != Status::Erroring
        && lease.is_none_or(|lease| {
            lease.spec.granted.is_none() || verdict::has_result(skyhook, node, lease)
        });
    let mut hasher = DefaultHasher::new();
    (&node.name, status.as_str(), &reason).hash(&mut hasher);
    let shown = ShownCell {
        standing,
        status,
        reason,
        print: hasher.finish(),
        in_between,
        rest: None,
    };
    // A new node is tainted before anything else is written there.
    if skyhook.goal() == Goal::Nothing || is_pending(&shown.standing) {
        return shown;
    }
    if in_between {
        let is_complete = status == Status::Complete
            || lease.is_some_and(|lease| is_complete_here(skyhook, lease));
        if is_complete && draft.is_writing_result(&node.name) {
            let patch = NodePatch::default()
                .status(&skyhook.name, Status::Complete)
                .conditions(&skyhook.name, Status::Complete)
                .annotation(&names::reason(&skyhook.name), None);
            draft.patch(node, patch, Cause::Result);
        }
    } else if let Some(at) = quiet_until(view, node) {
        draft.wake_at(at);
    } else if has_room || draft.is_patched(&node.name) {
        tell(view, skyhook, node, lease, &shown, draft);
    } else {
        draft.is_held_back();
        draft.wake_at(view.now.mono + COALESCE);
    }
    shown
}

/// Until when a new node is told nothing; `None` if that is over. A Skyhook that wants new nodes tainted may have been
/// created just now, and the watch may not have delivered it: with an annotation of ours the node would not be new any
/// more.
fn quiet_until(view: &View<'_>, node: &NodeFact) -> Option<Mono> {
    let seen = view.clocks.first_seen(&node.name)?;
    Some(seen + QUIET).filter(|at| *at > view.now.mono)
}

fn is_pending(standing: &Standing) -> bool {
    matches!(standing, Standing::Blocked(reason) if reason.code == ReasonCode::AutoTaintPending)
}

fn tell(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    lease: Option<&InterruptionLease>,
    shown: &ShownCell,
    draft: &mut Draft<'_>,
) {
    let key = names::reason(&skyhook.name);
    let marks = drain::marks(&skyhook.name, lease);
    let details: BTreeSet<String> = marks.annotations.keys().chain([&key]).cloned().collect();
    let since = since_on_node(node, &skyhook.name, shown.reason.as_ref(), view.now.wall);
    let mut patch = NodePatch::default()
        .status(&skyhook.name, shown.status)
        .conditions(&skyhook.name, shown.status)
        .annotation(&key, since);
    patch.unite(marks);
    let mut patch = patch.reduced(node);
    // The Node names a lease that the lease watch has not delivered, or has delivered the end of. While the watch lags,
    // another replica may have granted that lease: the status must not go back and forth.
    let stamp = node.record(&skyhook.name).stamp.as_ref();
    if shown.standing != Standing::Leased && stamp.is_some_and(|stamp| !stamp.granted.is_empty()) {
        patch.check.not_for.insert(skyhook.name.clone());
    }
    // Another status is written at once. If only the reason or the drain is another one, it is written at most once a
    // second.
    let is_detail = patch.annotations.keys().all(|key| details.contains(key))
        && patch.labels.is_empty()
        && patch.conditions.is_empty()
        && !draft.is_patched(&node.name);
    if !(is_detail && draft.is_too_soon(&Target::Node(node.name.clone()))) {
        draft.patch(node, patch, Cause::Status);
    }
}

/// True when the lease's result says that the node is complete at the revision that the Skyhook asks for now. Where
/// packages have to go, others may wait for them, and only the record tells.
fn is_complete_here(skyhook: &SkyhookFact, lease: &InterruptionLease) -> bool {
    let wanted = skyhook.checked.as_deref().is_ok_and(|checked| {
        let mut packages = checked.data.packages.values();
        checked.revision == lease.spec.revision && !packages.any(Package::is_to_go)
    });
    protocol::phase(lease) == Some(Phase::Complete) && wanted
}

/// The value of the reason annotation. Its time stays the same while the reason stays the same.
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
