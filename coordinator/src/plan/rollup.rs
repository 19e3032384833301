//! What Nodes and Skyhooks are told about the roll-out: a pure function of the picture, written only when it differs.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::InterruptionLease;
use skyhook_crds::conditions::{self, Wanted};
use skyhook_crds::lease::Phase;
use skyhook_crds::lease::protocol;
use skyhook_crds::names;
use skyhook_crds::skyhook::{CompartmentStatus, NodeReason, SkyhookStatus};
use skyhook_crds::stage::Status;

use super::admit::{self, DEFAULT_COMPARTMENT};
use super::ledger::Ledger;
use super::reason::{Reason, Word};
use super::standing::{Standing, Standings};
use super::verdict::{self, NodeVerdict, verdict};
use super::{COALESCE, Draft, View, version};
use crate::effect::{Effect, NodePatch, Target};
use crate::facts::{NodeFact, SkyhookFact};

/// Above this many nodes, a Skyhook's status lists only those that are not complete.
pub const MAX_LISTED_NODES: usize = 500;

/// Writes status and reason to the Nodes.
pub(super) fn nodes(
    view: &View<'_>,
    skyhooks: &[&SkyhookFact],
    standings: &Standings,
    draft: &mut Draft<'_>,
) {
    for skyhook in skyhooks.iter().filter(|skyhook| !skyhook.deleting) {
        for (name, standing) in standings.get(&skyhook.name).into_iter().flatten() {
            let Some(node) = view.index.nodes.get(name) else {
                continue;
            };
            // The writes that grant a lease and take its result carry the status themselves.
            let lease = view
                .index
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
                let since = since_on_node(node, &key, reason.as_ref(), view.now.wall);
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
                    draft.patch(node, patch, "status");
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
    key: &str,
    reason: Option<&Reason>,
    now: Timestamp,
) -> Option<String> {
    let reason = reason?;
    let there: Option<NodeReason> = node
        .annotations
        .get(key)
        .and_then(|text| serde_json::from_str(text).ok());
    serde_json::to_string(&with_since(reason, there.as_ref(), now)).ok()
}

fn with_since(reason: &Reason, there: Option<&NodeReason>, now: Timestamp) -> NodeReason {
    let since = match there {
        Some(there) if there.reason == reason.word.to_string() => there.since.clone(),
        Some(_) | None => seconds(now),
    };
    NodeReason {
        reason: reason.word.to_string(),
        message: reason.message.clone(),
        since,
    }
}

/// RFC 3339, to the second.
pub(crate) fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second())
        .unwrap_or(at)
        .to_string()
}

/// Writes the Skyhooks' statuses. What takes long to put together is put together only when it may be written.
pub(super) fn skyhooks(
    view: &View<'_>,
    skyhooks: &[&SkyhookFact],
    standings: &Standings,
    ledger: &Ledger<'_>,
    draft: &mut Draft<'_>,
) {
    let empty = BTreeMap::new();
    for skyhook in skyhooks.iter().filter(|skyhook| !skyhook.deleting) {
        let summary = Summary::new(
            view,
            skyhook,
            standings.get(&skyhook.name).unwrap_or(&empty),
            skyhook.checked.is_ok() && ledger.is_under_way(skyhook),
        );
        let turning = skyhook.status.as_ref().is_none_or(|current| {
            current.status != summary.overall || current.observed_generation != skyhook.generation
        });
        // A large status is a large write: it comes less often.
        let pace =
            COALESCE * u32::try_from(summary.verdicts.len().div_ceil(100).max(1)).unwrap_or(1);
        if !turning && draft.is_within(&Target::Skyhook(skyhook.name.clone()), pace) {
            continue;
        }
        let wanted = status(view, skyhook, &summary);
        if skyhook.status.as_ref() != Some(&wanted) {
            draft.push(Effect::WriteSkyhookStatus {
                name: skyhook.name.clone(),
                at: version(&skyhook.uid, &skyhook.resource_version),
                status: Box::new(wanted),
            });
        }
    }
}

/// Where a Skyhook's nodes are.
struct Summary<'a> {
    verdicts: BTreeMap<&'a str, (NodeVerdict, &'a NodeFact)>,
    complete: usize,
    in_progress: usize,
    overall: Status,
}

impl<'a> Summary<'a> {
    fn new(
        view: &View<'a>,
        skyhook: &SkyhookFact,
        standings: &'a BTreeMap<String, Standing>,
        under_way: bool,
    ) -> Self {
        let verdicts: BTreeMap<&str, (NodeVerdict, &NodeFact)> = standings
            .iter()
            .filter_map(|(name, standing)| {
                let node = view.index.nodes.get(name)?;
                Some((
                    name.as_str(),
                    (verdict(view, skyhook, node, standing), node),
                ))
            })
            .collect();
        let complete = verdicts.iter().filter(|(name, ((status, _), _))| {
            // A paused Skyhook shows its nodes as paused; they are complete all the same.
            *status == Status::Complete || standings.get(**name) == Some(&Standing::Complete)
        });
        let complete = complete.count();
        let statuses: Vec<Status> = verdicts.values().map(|((status, _), _)| *status).collect();
        let in_progress = statuses
            .iter()
            .filter(|s| matches!(s, Status::InProgress | Status::Erroring))
            .count();
        Self {
            overall: match overall(skyhook, complete == verdicts.len(), &statuses) {
                // One node is done and the next one not taken yet: the roll-out has not stopped.
                Status::Blocked | Status::Waiting if under_way => Status::InProgress,
                status @ (Status::Unknown
                | Status::Complete
                | Status::Blocked
                | Status::Waiting
                | Status::Disabled
                | Status::Paused
                | Status::InProgress
                | Status::Erroring) => status,
            },
            verdicts,
            complete,
            in_progress,
        }
    }
}

fn status(view: &View<'_>, skyhook: &SkyhookFact, summary: &Summary<'_>) -> SkyhookStatus {
    let empty = SkyhookStatus::default();
    let current = skyhook.status.as_ref().unwrap_or(&empty);
    let Summary {
        verdicts,
        complete,
        in_progress,
        overall,
    } = summary;
    let (total, complete, in_progress) = (verdicts.len(), *complete, *in_progress);
    let listed = || {
        let all = total <= MAX_LISTED_NODES;
        verdicts
            .iter()
            .filter(move |(_, ((status, _), _))| all || *status != Status::Complete)
    };
    let wanted = SkyhookStatus {
        observed_generation: skyhook.generation,
        node_state: listed()
            .filter_map(|(name, (_, node))| {
                Some((
                    (*name).to_owned(),
                    node.record(&skyhook.name).states.clone().ok()?,
                ))
            })
            .collect(),
        node_status: listed()
            .map(|(name, ((status, _), _))| ((*name).to_owned(), *status))
            .collect(),
        node_reasons: verdicts
            .iter()
            .filter_map(|(name, ((_, reason), _))| {
                let there = current.node_reasons.get(*name);
                Some((
                    (*name).to_owned(),
                    with_since(reason.as_ref()?, there, view.now.wall),
                ))
            })
            .collect(),
        compartment_statuses: [(
            DEFAULT_COMPARTMENT.to_owned(),
            compartment(skyhook, total, complete, in_progress),
        )]
        .into(),
        status: *overall,
        nodes_in_progress: i32::try_from(in_progress).unwrap_or(i32::MAX),
        complete_nodes: format!("{complete}/{total}"),
        package_list: skyhook.spec.package_list(),
        revision: skyhook
            .checked
            .as_ref()
            .map(|c| c.revision.clone())
            .unwrap_or_default(),
        ..current.clone()
    };
    let refused = view.index.agents_refused.as_deref();
    let conditions = wanted_conditions(skyhook, &wanted, current, verdicts, refused);
    let conditions = conditions::merge(
        &current.conditions,
        &conditions,
        skyhook.generation,
        view.now.wall,
    );
    SkyhookStatus {
        conditions,
        ..wanted
    }
}

fn compartment(
    skyhook: &SkyhookFact,
    total: usize,
    complete: usize,
    in_progress: usize,
) -> CompartmentStatus {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    CompartmentStatus {
        matched: number(total),
        ceiling: number(admit::slots(skyhook, total)),
        in_progress: number(in_progress),
        completed: number(complete),
        progress_percent: number((complete * 100).checked_div(total).unwrap_or(100)),
        batch_state: None,
    }
}

/// One total order, so that a status cannot flap between two that hold at once.
fn overall(skyhook: &SkyhookFact, all_complete: bool, nodes: &[Status]) -> Status {
    if skyhook.is_paused() {
        return Status::Paused;
    }
    if skyhook.checked.is_err() {
        return Status::Blocked;
    }
    if all_complete {
        return Status::Complete;
    }
    if skyhook.is_disabled() {
        return Status::Disabled;
    }
    [
        Status::InProgress,
        Status::Erroring,
        Status::Blocked,
        Status::Waiting,
    ]
    .into_iter()
    .find(|status| nodes.contains(status))
    .unwrap_or(Status::Unknown)
}

fn wanted_conditions(
    skyhook: &SkyhookFact,
    wanted: &SkyhookStatus,
    current: &SkyhookStatus,
    verdicts: &BTreeMap<&str, (NodeVerdict, &NodeFact)>,
    agents_refused: Option<&str>,
) -> Vec<Wanted> {
    let (reason, message) = match (&skyhook.checked, wanted.status, agents_refused) {
        (Err(problem), _, _) => ("Invalid", problem.clone()),
        (Ok(_), Status::Complete, _) => (
            "Complete",
            format!("{} nodes complete", wanted.complete_nodes),
        ),
        (Ok(_), _, Some(why)) => ("AgentsRefused", why.to_owned()),
        (Ok(_), status, None) => (ready_reason(status), stuck_message(wanted)),
    };
    let mut conditions = vec![Wanted::new(
        "Ready",
        wanted.status == Status::Complete,
        reason,
        message,
    )];
    if !current.complete_nodes.is_empty()
        && skyhook.status.is_some()
        && current.status != wanted.status
    {
        conditions.push(Wanted::new(
            "skyhook.nvidia.com/Transition",
            wanted.status == Status::Complete,
            wanted.status.as_str(),
            format!("Transitioned [{}] -> [{}]", current.status, wanted.status),
        ));
    }
    let with_reason = |wanted: Word| -> Vec<&str> {
        verdicts
            .iter()
            .filter(|(_, ((_, reason), _))| reason.as_ref().is_some_and(|r| r.word == wanted))
            .map(|(name, _)| *name)
            .collect()
    };
    for (type_, reason, some, none) in [
        (
            "skyhook.nvidia.com/TaintNotTolerable",
            Word::TaintNotTolerable,
            "has taints that are not tolerable. Skipping.",
            "All nodes have tolerable taints.",
        ),
        (
            "skyhook.nvidia.com/NodesIgnored",
            Word::NodeIgnored,
            "has ignore label set. Skipping.",
            "No nodes have ignore label set.",
        ),
    ] {
        let nodes = with_reason(reason);
        let there = current.conditions.iter().any(|c| c.type_ == type_);
        let condition_reason = type_.trim_start_matches("skyhook.nvidia.com/");
        if !nodes.is_empty() {
            conditions.push(Wanted::new(
                type_,
                true,
                condition_reason,
                format!("Node [{}] {some}", nodes.join(", ")),
            ));
        } else if there {
            conditions.push(Wanted::new(type_, false, condition_reason, none));
        }
    }
    conditions
}

const fn ready_reason(status: Status) -> &'static str {
    match status {
        Status::Complete => "Complete",
        Status::InProgress => "Progressing",
        Status::Erroring => "Erroring",
        Status::Blocked => "Blocked",
        Status::Waiting => "Waiting",
        Status::Paused => "Paused",
        Status::Disabled => "Disabled",
        Status::Unknown => "Unknown",
    }
}

/// The first few nodes that do not move, and why.
fn stuck_message(wanted: &SkyhookStatus) -> String {
    let mut message = format!("{} nodes complete", wanted.complete_nodes);
    let mut reasons: Vec<(&String, &NodeReason)> = wanted.node_reasons.iter().collect();
    reasons.sort_by_key(|(name, _)| {
        let rank = match wanted.node_status.get(*name) {
            Some(Status::Erroring) => 0,
            Some(Status::Blocked) => 1,
            Some(Status::InProgress) => 2,
            Some(_) | None => 3,
        };
        (rank, (*name).clone())
    });
    for (name, reason) in reasons.iter().take(3) {
        message.push_str(&format!(
            "; {name}: {} ({}) since {}",
            reason.message, reason.reason, reason.since
        ));
    }
    if reasons.len() > 3 {
        message.push_str(&format!("; and {} more", reasons.len() - 3));
    }
    message
}
