//! The conditions of a Skyhook.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use skyhook_crds::conditions::{Wanted, merge};
use skyhook_crds::skyhook::SkyhookStatus;
use skyhook_crds::stage::Status;

use super::message::{cut, names_of};
use super::{Summary, compartments, drains, message, uninstalls};
use crate::facts::SkyhookFact;
use crate::plan::View;
use crate::plan::ledger::Ledger;
use crate::plan::reason::ReasonCode;
use crate::plan::scan::Row;

/// Says since when the Skyhook has its status.
pub(super) const TRANSITION: &str = "skyhook.nvidia.com/Transition";
/// Most conditions in a status. Our conditions come first, then conditions of others.
const MAX_CONDITIONS: usize = 20;
/// Longest message of the condition Ready, in bytes.
const MAX_READY: usize = 4096;
/// Longest message of any other condition, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Nodes whose record cannot be read: the name that NodeWright gives the condition.
const MALFORMED: &str = "NodeStateMalformed";
/// Conditions that are removed when they do not hold. Earlier versions wrote the second one.
const WHILE_TRUE: [&str; 2] = [MALFORMED, "skyhook.nvidia.com/NodeStateMalformed"];
/// How many nodes the condition names, and how many characters of a name it has.
const MALFORMED_NODES: usize = 5;
const MALFORMED_NAME: usize = 10;

/// All conditions of a Skyhook: those of others stay as they are.
pub(super) fn all(
    view: &View<'_>,
    row: &Row<'_>,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
    wanted: &SkyhookStatus,
    current: &SkyhookStatus,
) -> Vec<Condition> {
    let skyhook = row.skyhook;
    let mut ours = vec![ready(view, row, summary, ledger, wanted)];
    ours.extend(transition(skyhook, wanted, current));
    ours.extend(of_nodes(summary, current));
    ours.extend(malformed(summary));
    ours.extend(uninstalls::conditions(row, summary));
    let dependents = uninstalls::blocked(row, summary);
    ours.extend(drains::conditions(view, row, summary, dependents));
    ours.extend(compartments::conditions(view, row));
    let mut merged = merge(
        &current.conditions,
        &ours,
        skyhook.generation,
        view.now.wall,
    );
    merged.retain(|condition| {
        let is_wanted = || ours.iter().any(|our| our.type_ == condition.type_);
        let mut passing = compartments::WHILE_TRUE
            .iter()
            .chain(&drains::WHILE_TRUE)
            .chain(&uninstalls::WHILE_TRUE)
            .chain(&WHILE_TRUE);
        !passing.any(|type_| *type_ == condition.type_) || is_wanted()
    });
    if merged.len() > MAX_CONDITIONS {
        merged.sort_by_key(|condition| !ours.iter().any(|our| our.type_ == condition.type_));
        merged.truncate(MAX_CONDITIONS);
    }
    for condition in &mut merged {
        let longest = if condition.type_ == "Ready" {
            MAX_READY
        } else {
            MAX_MESSAGE
        };
        condition.message = cut(&condition.message, longest);
    }
    merged
}

fn ready(
    view: &View<'_>,
    row: &Row<'_>,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
    wanted: &SkyhookStatus,
) -> Wanted {
    let skyhook = row.skyhook;
    let refused = view.picture.agents_refused();
    let left_out = uninstalls::note(row, summary) + &message::left_out(summary);
    if let Some(pending) = uninstalls::pending(skyhook) {
        let stuck = message::stuck(row, summary, ledger, wanted);
        return Wanted::new("Ready", false, "Deleting", format!("{pending}; {stuck}"));
    }
    let (reason, message) = match (&skyhook.checked, wanted.status, refused) {
        (Err(problem), _, _) => ("Invalid", message::invalid(view, skyhook, problem)),
        (Ok(_), Status::Complete, _) => (
            "Complete",
            format!("{} nodes complete{left_out}", wanted.complete_nodes),
        ),
        (Ok(_), _, Some(why)) => ("AgentsRefused", why.to_owned()),
        (Ok(_), status, None) => (
            ready_reason(status),
            message::stuck(row, summary, ledger, wanted) + &left_out,
        ),
    };
    Wanted::new("Ready", wanted.status == Status::Complete, reason, message)
}

fn transition(
    skyhook: &SkyhookFact,
    wanted: &SkyhookStatus,
    current: &SkyhookStatus,
) -> Option<Wanted> {
    let turns = !current.complete_nodes.is_empty()
        && skyhook.status.is_some()
        && current.status != wanted.status;
    turns.then(|| {
        Wanted::new(
            TRANSITION,
            wanted.status == Status::Complete,
            wanted.status.as_str(),
            format!("Transitioned [{}] -> [{}]", current.status, wanted.status),
        )
    })
}

/// Conditions that name nodes.
fn of_nodes(summary: &Summary<'_>, current: &SkyhookStatus) -> Vec<Wanted> {
    let table = [
        (
            "skyhook.nvidia.com/TaintNotTolerable",
            ReasonCode::TaintNotTolerable,
            "has taints that are not tolerable. Skipping.",
            "All nodes have tolerable taints.",
        ),
        (
            "skyhook.nvidia.com/NodesIgnored",
            ReasonCode::NodeIgnored,
            "has ignore label set. Skipping.",
            "No nodes have ignore label set.",
        ),
    ];
    let mut conditions = Vec::new();
    for (type_, code, some, none) in table {
        let nodes: Vec<&str> = summary
            .with_reason(code)
            .map(|shown| shown.node.name.as_str())
            .collect();
        let there = current.conditions.iter().any(|c| c.type_ == type_);
        let reason = type_.trim_start_matches("skyhook.nvidia.com/");
        if !nodes.is_empty() {
            let message = format!("Node [{}] {some}", names_of(&nodes));
            conditions.push(Wanted::new(type_, true, reason, message));
        } else if there {
            conditions.push(Wanted::new(type_, false, reason, none));
        }
    }
    conditions
}

/// The nodes whose record cannot be read, in the words of NodeWright. Each of them waits alone.
fn malformed(summary: &Summary<'_>) -> Option<Wanted> {
    let nodes = summary.with_reason(ReasonCode::NodeStateMalformed);
    let mut nodes: Vec<&str> = nodes.map(|shown| shown.node.name.as_str()).collect();
    nodes.sort_unstable();
    let named = nodes.iter().take(MALFORMED_NODES).map(|name| {
        let cut: String = name.chars().take(MALFORMED_NAME).collect();
        if cut.len() < name.len() {
            cut + "..."
        } else {
            cut
        }
    });
    let named: Vec<String> = named.collect();
    let more = match nodes.len().saturating_sub(MALFORMED_NODES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "nodeState annotation cannot be parsed on {} node(s): {}{more}",
        nodes.len(),
        named.join(", ")
    );
    (!nodes.is_empty()).then(|| Wanted::new(MALFORMED, true, "ParseError", message))
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
