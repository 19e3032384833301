//! The status of a Skyhook: a pure function of the picture, of at most 128 KiB for any number of nodes. Counts and
//! reasons are exact. The maps by node and `installed` list as much as there is room for, and count the rest.

mod compartments;
mod conditions;
mod counts;
mod detail;
mod drains;
mod installed;
mod message;
#[cfg(test)]
mod tests;
mod uninstalls;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use skyhook_crds::conditions::{Wanted, merge};
use skyhook_crds::installed::Stamp;
use skyhook_crds::names;
use skyhook_crds::skyhook::{NodeReason, ReasonSummary, SkyhookStatus};
use skyhook_crds::stage::Status;

use super::cache::Cache;
use super::ledger::Ledger;
use super::reason::{Reason, ReasonCode};
use super::scan::{Order, Row};
use super::{COALESCE, Draft, REMEMBERED, View, node_order, seconds, version};
use crate::effect::{Effect, Target};
use crate::facts::{Goal, NodeFact, SkyhookFact};
use crate::picture::{NodeId, Tick};
pub(crate) use compartments::{INVALID, NOT_FOUND, STOPPED};
pub use counts::{BatchCounts, CompartmentCounts, Fleet, SkyhookCounts};
use counts::{Census, Counts};
use installed::Installed;
pub(crate) use message::names_of;
pub(super) use message::{MAX_REASON, cut};
pub(crate) use uninstalls::DELETION_BLOCKED;

/// The status of a large Skyhook is written at most once in this time, unless its overall status or its generation
/// changes.
const LONGEST_PACE: Duration = Duration::from_secs(30);
const _: () = assert!(LONGEST_PACE.as_secs() < REMEMBERED.as_secs());

/// Names of nodes that a reason in the status gives as examples.
const EXAMPLES: usize = 3;
/// Longest list of packages, in bytes.
const MAX_PACKAGE_LIST: usize = 4096;
/// Writes the statuses of the Skyhooks. It takes long to compute a status, so this is done only when the status may be
/// written now and when something in it may have changed. A new generation or overall status is written at once,
/// everything else at a limited pace.
pub(super) fn skyhooks(
    view: &View<'_>,
    rows: &mut [Row<'_>],
    order: &Order<'_>,
    ledger: &Ledger<'_>,
    cache: &mut Cache,
    draft: &mut Draft<'_>,
) -> Fleet {
    let mut census = Census::new(view, order, ledger, cache);
    for row in rows {
        let skyhook = row.skyhook;
        let batches = row.batches.as_ref();
        let goes_on = batches.is_some_and(|batches| batches.is_under_way);
        let under_way = skyhook.checked.is_ok() && (goes_on || ledger.is_under_way(skyhook));
        let counts = Counts::new(row, order, under_way);
        let overall = counts.overall;
        let target = Target::Skyhook(skyhook.name.clone());
        let is_listing = row.batches.as_ref().is_some_and(|all| all.is_listing);
        if view.inflight.is_unsettled(&target) || is_listing {
            census.take(row, counts, cache);
            continue;
        }
        if skyhook.goal() == Goal::Nothing {
            deleting(view, skyhook, draft);
            census.take(row, counts, cache);
            continue;
        }
        let turning = skyhook.status.as_ref().is_none_or(|current| {
            current.status != overall || current.observed_generation != skyhook.generation
        });
        let paced = !turning && draft.is_within(&target, pace(counts.nodes));
        let key = StatusKey {
            version: skyhook.resource_version.clone(),
            row: row.column.version,
            print: counts.print,
            shown_order: row.shown_order,
            agents_refused: view.picture.agents_refused().map(str::to_owned),
            budgets: ledger.uses(skyhook),
            rollouts: view.picture.rollouts_changed(),
            under_way,
        };
        if !paced && row.column.status.as_ref() != Some(&key) {
            cache.counted.statuses += 1;
            let summary = Summary::new(view, row, order, &counts);
            let wanted = status(view, row, &summary, ledger);
            if skyhook.status.as_ref() == Some(&wanted) {
                row.column.status = Some(key);
            } else {
                draft.push(Effect::WriteSkyhookStatus {
                    name: skyhook.name.clone(),
                    at: version(&skyhook.uid, &skyhook.resource_version),
                    status: Box::new(wanted),
                    turning,
                });
            }
        }
        census.take(row, counts, cache);
    }
    census.finish()
}

/// Everything that a status is computed from, in short form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StatusKey {
    /// Resource version of the Skyhook, which covers the stored status.
    version: String,
    row: u64,
    print: u64,
    shown_order: i64,
    agents_refused: Option<String>,
    /// See [`Ledger::uses`].
    budgets: (usize, usize, Vec<[usize; 3]>),
    rollouts: Tick,
    under_way: bool,
}

/// Writes what the deletion of a Skyhook waits for. The rest of the status stays as it was.
fn deleting(view: &View<'_>, skyhook: &SkyhookFact, draft: &mut Draft<'_>) {
    let Some(message) = message::left(view, skyhook).filter(|_| skyhook.is_adopted()) else {
        return;
    };
    let current = skyhook.status.clone().unwrap_or_default();
    let ready = Wanted::new("Ready", false, "Deleting", message);
    let mut conditions = merge(
        &current.conditions,
        &[ready],
        skyhook.generation,
        view.now.wall,
    );
    conditions.retain(|condition| !uninstalls::WHILE_TRUE.contains(&&*condition.type_));
    let same = conditions == current.conditions;
    let says = |c: &Condition| c.type_ == "Ready" && c.reason == "Deleting";
    let turning = !current.conditions.iter().any(says);
    if !same && !draft.is_too_soon(&Target::Skyhook(skyhook.name.clone())) {
        draft.push(Effect::WriteSkyhookStatus {
            name: skyhook.name.clone(),
            at: version(&skyhook.uid, &skyhook.resource_version),
            status: Box::new(SkyhookStatus {
                conditions,
                observed_generation: skyhook.generation,
                ..current
            }),
            turning,
        });
    }
}

/// How much time passes between two writes of a status. A large status is written less often.
fn pace(nodes: usize) -> Duration {
    let hundreds = u32::try_from(nodes.div_ceil(100).max(1)).unwrap_or(u32::MAX);
    COALESCE.saturating_mul(hundreds).min(LONGEST_PACE)
}

/// A selected node in a Skyhook's status.
struct Shown<'a> {
    id: NodeId,
    node: &'a NodeFact,
    status: Status,
    reason: Option<&'a Reason>,
    complete: bool,
}

/// The selected nodes of a Skyhook, with their statuses.
struct Summary<'a> {
    /// In the order of names.
    nodes: Vec<Shown<'a>>,
    complete: usize,
    in_progress: usize,
    overall: Status,
    /// Names of nodes that the Skyhook leaves out because they are no hosts.
    left_out: Vec<&'a str>,
}

impl<'a> Summary<'a> {
    fn new(view: &View<'a>, row: &'a Row<'_>, order: &Order<'_>, counts: &Counts) -> Self {
        let mut nodes = view.picture.nodes().iter().peekable();
        let mut all = Vec::with_capacity(counts.nodes);
        let mut left_out = Vec::new();
        // Both are in the order of names, and every Node is in `order`.
        for (name, id) in order {
            let Some((_, node)) = nodes.next_if(|(node, _)| node == name) else {
                continue;
            };
            if row.cell(*id).is_some_and(|cell| cell.not_host) {
                left_out.push(node.name.as_str());
            }
            let shown = row.cell(*id).filter(|cell| cell.standing.is_some());
            if let Some(shown) = shown.and_then(|cell| cell.shown.as_ref()) {
                all.push(Shown {
                    id: *id,
                    node,
                    status: shown.status,
                    reason: shown.reason.as_ref(),
                    complete: shown.status == Status::Complete,
                });
            }
        }
        Self {
            nodes: all,
            complete: counts.of(Status::Complete),
            in_progress: counts.in_progress(),
            overall: counts.overall,
            left_out,
        }
    }

    fn with_reason(&self, code: ReasonCode) -> impl Iterator<Item = &Shown<'a>> {
        let has = move |shown: &&Shown<'a>| shown.reason.is_some_and(|r| r.code == code);
        self.nodes.iter().filter(has)
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn status(
    view: &View<'_>,
    row: &Row<'_>,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
) -> SkyhookStatus {
    let skyhook = row.skyhook;
    let empty = SkyhookStatus::default();
    let current = skyhook.status.as_ref().unwrap_or(&empty);
    let total = summary.nodes.len();
    let installed = Installed::of(view, skyhook);
    let (node_order_offset, node_order_shown) = node_order::shown(row, current);
    let mut wanted = SkyhookStatus {
        observed_generation: skyhook.generation,
        compartment_statuses: compartments::statuses(row, summary, ledger, current),
        node_order_offset,
        node_order_shown,
        status: summary.overall,
        nodes_in_progress: number(summary.in_progress),
        complete_nodes: format!("{}/{total}", summary.complete),
        package_list: cut(&skyhook.spec.package_list(), MAX_PACKAGE_LIST),
        revision: skyhook
            .checked
            .as_ref()
            .map(|checked| checked.revision.clone())
            .unwrap_or_default(),
        installed: installed.packages,
        installed_omitted: installed.omitted,
        installed_unreadable: installed.unreadable,
        reasons: reasons(summary, current, view.now.wall),
        config_updates: config_updates(skyhook, summary, current),
        // The largest possible values, so that there is room for the final ones.
        nodes_listed: number(total),
        nodes_omitted: number(total),
        ..SkyhookStatus::default()
    };
    wanted.conditions = conditions::all(view, row, summary, ledger, &wanted, current);
    detail::list(view, skyhook, summary, current, &mut wanted);
    wanted
}

/// Sums up the reasons: how many nodes have each, since when any node has it, and the names of a few of these nodes.
fn reasons(
    summary: &Summary<'_>,
    current: &SkyhookStatus,
    now: Timestamp,
) -> BTreeMap<String, ReasonSummary> {
    let mut reasons: BTreeMap<String, ReasonSummary> = BTreeMap::new();
    let shown = summary.nodes.iter();
    let shown = shown.filter_map(|shown| Some((shown.node.name.as_str(), shown.reason?.code)));
    let left_out = summary.left_out.iter();
    let left_out = left_out.map(|name| (*name, ReasonCode::NodeNotSupported));
    for (name, code) in shown.chain(left_out) {
        let code = code.to_string();
        let there = current.reasons.get(&code);
        let entry = reasons.entry(code).or_insert_with(|| ReasonSummary {
            nodes: 0,
            since: there.map_or_else(|| seconds(now), |there| there.since.clone()),
            examples: Vec::new(),
        });
        entry.nodes += 1;
        if entry.examples.len() < EXAMPLES {
            entry.examples.push(name.to_owned());
        }
    }
    reasons
}

/// The changes of configuration that NVIDIA Skyhook noted in the status. They are kept until every node has a result of
/// ours, because a node may depend on them until then.
fn config_updates(
    skyhook: &SkyhookFact,
    summary: &Summary<'_>,
    current: &SkyhookStatus,
) -> BTreeMap<String, Vec<String>> {
    let is_ours = |shown: &Shown<'_>| {
        let stamp = shown.node.record(&skyhook.name).stamp.as_ref();
        stamp.is_some_and(Stamp::has_result)
    };
    if summary.nodes.iter().all(is_ours) {
        BTreeMap::new()
    } else {
        current.config_updates.clone()
    }
}

/// A reason in the form of the status and of the Node's annotation. The time stays the same while the reason stays the
/// same.
pub(super) fn with_since(
    reason: &Reason,
    there: Option<&NodeReason>,
    now: Timestamp,
) -> NodeReason {
    let since = match there {
        Some(there) if there.reason == reason.code.to_string() => there.since.clone(),
        Some(_) | None => seconds(now),
    };
    NodeReason {
        reason: reason.code.to_string(),
        message: reason.message.clone().into_owned(),
        since,
    }
}

/// What the Node's annotation says about why it does not move.
pub(super) fn reason_on_node(node: &NodeFact, skyhook: &str) -> Option<NodeReason> {
    let text = node.annotations.get(&names::reason(skyhook))?;
    serde_json::from_str(text).ok()
}
