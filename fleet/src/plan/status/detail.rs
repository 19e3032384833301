//! The maps by node in a Skyhook's status. They take the room that the rest of the status leaves, and list the worst
//! nodes first. A node is in all maps or in none, so that no reader sees only a part of its data.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use skyhook_crds::installed::{PackageStates, Stamp};
use skyhook_crds::skyhook::{NodeReason, SkyhookStatus};
use skyhook_crds::stage::Status;

use super::message::{MAX_REASON, cut};
use super::{Shown, Summary, number, reason_on_node, with_since};
use crate::facts::SkyhookFact;
use crate::plan::reason::ReasonCode;
use crate::plan::{View, node_order, seconds};

/// Longest status as JSON, in bytes. The API server stores objects of up to 1.5 MiB, and the spec may need most of
/// that.
pub(super) const LIMIT: usize = 128 * 1024;
/// Bytes that the names of the maps take.
const NAMES_OF_MAPS: usize = 128;
/// A node that needs more bytes than this and does not fit is skipped, and the list goes on with the next node. A
/// smaller node that does not fit ends the list.
const OUTLIER: usize = 16 * 1024;

/// The entries of one node in the maps.
struct Entry<'a> {
    name: &'a str,
    status: Status,
    reason: Option<NodeReason>,
    states: Option<&'a PackageStates>,
    priority: Option<String>,
}

impl Entry<'_> {
    /// Bytes that it takes in all maps together.
    fn bytes(&self) -> usize {
        let name = rendered(&self.name);
        let entry = |value: Option<usize>| value.map_or(0, |value| name + value + 2);
        entry(Some(rendered(&self.status)))
            + entry(self.reason.as_ref().map(rendered))
            + entry(self.states.map(rendered))
            + entry(self.priority.as_ref().map(rendered))
    }
}

fn rendered(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(LIMIT, |text| text.len())
}

/// Lists as many nodes as there is room for beside the rest of the status, and sets the numbers of listed and omitted
/// nodes.
pub(super) fn list(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    summary: &Summary<'_>,
    current: &SkyhookStatus,
    wanted: &mut SkyhookStatus,
) {
    let mut order: Vec<&Shown<'_>> = summary.nodes.iter().filter(|n| !n.complete).collect();
    order.sort_by_key(|shown| rank(shown));
    let mut room = LIMIT.saturating_sub(rendered(wanted) + NAMES_OF_MAPS);
    let mut listed = 0;
    for shown in &order {
        let entry = entry(view, skyhook, shown, current);
        let bytes = entry.bytes();
        if bytes <= room {
            room -= bytes;
            listed += 1;
            take(wanted, entry);
        } else if bytes <= OUTLIER {
            break;
        }
    }
    if listed == order.len() {
        listed += list_complete(view, skyhook, summary, current, wanted, room);
    }
    wanted.nodes_listed = number(listed);
    wanted.nodes_omitted = number(summary.nodes.len() - listed);
}

/// Lists the complete nodes if all of them fit, and otherwise none of them: a part of them would be of no use.
fn list_complete(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    summary: &Summary<'_>,
    current: &SkyhookStatus,
    wanted: &mut SkyhookStatus,
    mut room: usize,
) -> usize {
    let mut entries = Vec::new();
    for shown in summary.nodes.iter().filter(|shown| shown.complete) {
        let entry = entry(view, skyhook, shown, current);
        let bytes = entry.bytes();
        if bytes > room {
            return 0;
        }
        room -= bytes;
        entries.push(entry);
    }
    let listed = entries.len();
    for entry in entries {
        take(wanted, entry);
    }
    listed
}

fn entry<'a>(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    shown: &Shown<'a>,
    current: &'a SkyhookStatus,
) -> Entry<'a> {
    let name = &shown.node.name;
    let reason = shown.reason.map(|reason| {
        let there = current.node_reasons.get(name).cloned();
        let there = there.or_else(|| reason_on_node(shown.node, &skyhook.name));
        let reason = with_since(reason, there.as_ref(), view.now.wall);
        NodeReason {
            message: cut(&reason.message, MAX_REASON),
            ..reason
        }
    });
    Entry {
        name,
        status: shown.status,
        reason,
        states: shown.node.record(&skyhook.name).states.as_ref().ok(),
        priority: priority(view, skyhook, shown, current),
    }
}

/// When a node that is not complete was first picked. A node without a stamp of ours has what NVIDIA Skyhook noted.
fn priority(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    shown: &Shown<'_>,
    current: &SkyhookStatus,
) -> Option<String> {
    if shown.complete {
        return None;
    }
    let name = &shown.node.name;
    let record = shown.node.record(&skyhook.name);
    let noted = || {
        let noted = current.node_priority.get(name);
        noted
            .filter(|_| !record.stamp.as_ref().is_some_and(Stamp::has_result))
            .cloned()
    };
    let reserved = || {
        let created = node_order::created(view.picture.lease_of(name, &skyhook.uid)?)?;
        Some(seconds(Timestamp::from_second(created).ok()?))
    };
    let picked = node_order::picked(record).map(str::to_owned);
    picked.or_else(noted).or_else(reserved)
}

fn take(wanted: &mut SkyhookStatus, entry: Entry<'_>) {
    let name = || entry.name.to_owned();
    wanted.node_status.insert(name(), entry.status);
    if let Some(reason) = entry.reason {
        wanted.node_reasons.insert(name(), reason);
    }
    if let Some(states) = entry.states {
        wanted.node_state.insert(name(), states.clone());
    }
    if let Some(priority) = entry.priority {
        wanted.node_priority.insert(name(), priority);
    }
}

/// How urgent it is that somebody looks at the node. A lower number is worse.
pub(super) fn rank(shown: &Shown<'_>) -> u8 {
    match shown.status {
        Status::Erroring => {
            let waits_for_somebody = shown.reason.is_some_and(|reason| {
                matches!(
                    reason.code,
                    ReasonCode::NodeNotReturning | ReasonCode::GaveUp
                )
            });
            u8::from(!waits_for_somebody)
        }
        Status::Blocked => 2,
        Status::InProgress => 3,
        Status::Paused | Status::Disabled => 4,
        Status::Waiting => 5,
        Status::Unknown => 6,
        Status::Complete => 7,
    }
}
