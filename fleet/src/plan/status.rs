//! The status of a Skyhook: a pure function of the picture, of at most 128 KiB however many nodes there
//! are. Counts, conditions and `installed` are exact; of the nodes it lists as many as there is room for.

mod detail;
mod message;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use skyhook_crds::conditions::{self, Wanted};
use skyhook_crds::installed::Stamp;
use skyhook_crds::names;
use skyhook_crds::skyhook::{CompartmentStatus, NodeReason, ReasonSummary, SkyhookStatus};
use skyhook_crds::stage::Status;

use super::admit::{self, DEFAULT_COMPARTMENT};
use super::ledger::Ledger;
use super::reason::{Reason, Word};
use super::standing::{Standing, Standings};
use super::verdict::{NodeVerdict, verdict};
use super::{COALESCE, Draft, REMEMBERED, View, seconds, version};
use crate::effect::{Effect, Target};
use crate::facts::{NodeFact, SkyhookFact};
use message::{cut, names_of};

/// The detail of a large Skyhook is written once per this long at most.
const LONGEST_PACE: Duration = Duration::from_secs(30);
const _: () = assert!(LONGEST_PACE.as_secs() < REMEMBERED.as_secs());

/// Names of nodes that a reason in the status gives as examples.
const EXAMPLES: usize = 3;
/// Conditions that a status holds: ours, and of others as many as there is room for.
const MAX_CONDITIONS: usize = 20;
/// Longest list of packages, in bytes.
const MAX_PACKAGE_LIST: usize = 4096;
/// Longest message of the condition Ready, in bytes.
const MAX_READY: usize = 4096;
/// Longest message of any other condition, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Writes the Skyhooks' statuses. What takes long to put together is put together only when it may be written: another
/// generation or status at once, everything else at a pace.
pub(super) fn skyhooks(
    view: &View<'_>,
    skyhooks: &[&SkyhookFact],
    standings: &Standings,
    ledger: &Ledger<'_>,
    draft: &mut Draft<'_>,
) {
    let empty = BTreeMap::new();
    for skyhook in skyhooks {
        let target = Target::Skyhook(skyhook.name.clone());
        if view.inflight.is_unsettled(&target) {
            continue;
        }
        if skyhook.deleting {
            deleting(view, skyhook, draft);
            continue;
        }
        let standings = standings.get(&skyhook.name).unwrap_or(&empty);
        let under_way = skyhook.checked.is_ok() && ledger.is_under_way(skyhook);
        let summary = Summary::new(view, skyhook, standings, under_way);
        let turning = skyhook.status.as_ref().is_none_or(|current| {
            current.status != summary.overall || current.observed_generation != skyhook.generation
        });
        if !turning && draft.is_within(&target, pace(summary.nodes.len())) {
            continue;
        }
        let wanted = status(view, skyhook, &summary, ledger);
        if skyhook.status.as_ref() != Some(&wanted) {
            draft.push(Effect::WriteSkyhookStatus {
                name: skyhook.name.clone(),
                at: version(&skyhook.uid, &skyhook.resource_version),
                status: Box::new(wanted),
            });
        }
    }
}

/// What a Skyhook that is being deleted waits for. The rest of its status stays as it was.
fn deleting(view: &View<'_>, skyhook: &SkyhookFact, draft: &mut Draft<'_>) {
    let ours = |finalizer: &String| finalizer == names::SKYHOOK_FINALIZER;
    let Some(message) =
        message::left(view, skyhook).filter(|_| skyhook.finalizers.iter().any(ours))
    else {
        return;
    };
    let current = skyhook.status.clone().unwrap_or_default();
    let ready = Wanted::new("Ready", false, "Deleting", message);
    let conditions = conditions::merge(
        &current.conditions,
        &[ready],
        skyhook.generation,
        view.now.wall,
    );
    let same = conditions == current.conditions;
    if !same && !draft.is_too_soon(&Target::Skyhook(skyhook.name.clone())) {
        draft.push(Effect::WriteSkyhookStatus {
            name: skyhook.name.clone(),
            at: version(&skyhook.uid, &skyhook.resource_version),
            status: Box::new(SkyhookStatus {
                conditions,
                observed_generation: skyhook.generation,
                ..current
            }),
        });
    }
}

/// A large status is a large write: it comes less often.
fn pace(nodes: usize) -> Duration {
    let hundreds = u32::try_from(nodes.div_ceil(100).max(1)).unwrap_or(u32::MAX);
    COALESCE.saturating_mul(hundreds).min(LONGEST_PACE)
}

/// A selected node in a Skyhook's status.
struct Shown<'a> {
    node: &'a NodeFact,
    status: Status,
    reason: Option<Reason>,
    complete: bool,
}

/// Where a Skyhook's nodes are.
struct Summary<'a> {
    /// In the order of names.
    nodes: Vec<Shown<'a>>,
    complete: usize,
    in_progress: usize,
    overall: Status,
}

impl<'a> Summary<'a> {
    fn new(
        view: &View<'a>,
        skyhook: &SkyhookFact,
        standings: &BTreeMap<String, Standing>,
        under_way: bool,
    ) -> Self {
        let show = |(name, standing): (&String, &Standing)| {
            let node = view.picture.nodes().get(name)?;
            let (status, reason): NodeVerdict = verdict(view, skyhook, node, standing);
            Some(Shown {
                node,
                status,
                reason,
                complete: status == Status::Complete,
            })
        };
        let nodes: Vec<Shown<'a>> = standings.iter().filter_map(show).collect();
        let complete = nodes.iter().filter(|shown| shown.complete).count();
        let moves =
            |shown: &&Shown<'_>| matches!(shown.status, Status::InProgress | Status::Erroring);
        let in_progress = nodes.iter().filter(moves).count();
        let overall = match overall(skyhook, complete == nodes.len(), &nodes) {
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
        };
        Self {
            nodes,
            complete,
            in_progress,
            overall,
        }
    }

    fn with_reason(&self, word: Word) -> impl Iterator<Item = &Shown<'a>> {
        let has = move |shown: &&Shown<'a>| shown.reason.as_ref().is_some_and(|r| r.word == word);
        self.nodes.iter().filter(has)
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn status(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
) -> SkyhookStatus {
    let empty = SkyhookStatus::default();
    let current = skyhook.status.as_ref().unwrap_or(&empty);
    let total = summary.nodes.len();
    let compartment = compartment(skyhook, summary);
    let (installed, installed_unreadable) = installed(view, skyhook);
    let mut wanted = SkyhookStatus {
        observed_generation: skyhook.generation,
        compartment_statuses: [(DEFAULT_COMPARTMENT.to_owned(), compartment)].into(),
        status: summary.overall,
        nodes_in_progress: number(summary.in_progress),
        complete_nodes: format!("{}/{total}", summary.complete),
        package_list: cut(&skyhook.spec.package_list(), MAX_PACKAGE_LIST),
        revision: skyhook
            .checked
            .as_ref()
            .map(|checked| checked.revision.clone())
            .unwrap_or_default(),
        installed,
        installed_unreadable,
        reasons: reasons(summary, current, view.now.wall),
        config_updates: config_updates(skyhook, summary, current),
        // The longest they can be, until it is known how many are listed.
        nodes_listed: number(total),
        nodes_omitted: number(total),
        ..SkyhookStatus::default()
    };
    wanted.conditions = all_conditions(view, skyhook, summary, ledger, &wanted, current);
    detail::list(view, skyhook, summary, current, &mut wanted);
    wanted
}

/// How many nodes carry any version of a package, selected or not, and of how many nodes that cannot be read.
fn installed(view: &View<'_>, skyhook: &SkyhookFact) -> (BTreeMap<String, i32>, i32) {
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    let mut unreadable = 0;
    for node in view.picture.nodes().values() {
        let mut packages: Vec<&str> = match node.records.get(&skyhook.name).map(|r| &r.states) {
            Some(Ok(states)) => states.values().map(|state| state.name.as_str()).collect(),
            Some(Err(_)) => {
                unreadable += 1;
                Vec::new()
            }
            None => Vec::new(),
        };
        // Whatever the revision of a granted lease brings may be on the host before the record says so.
        let lease = view.picture.lease_of(&node.name, &skyhook.uid);
        let lease = lease.and_then(|fact| fact.lease.as_ref().ok());
        if let Some(lease) = lease.filter(|lease| lease.spec.granted.is_some()) {
            let revision = view.picture.revisions().get(&lease.spec.revision);
            let data = revision.and_then(|revision| revision.data.as_ref());
            packages.extend(
                data.iter()
                    .flat_map(|data| data.packages.keys())
                    .map(String::as_str),
            );
        }
        packages.sort_unstable();
        packages.dedup();
        for package in packages {
            match counts.get_mut(package) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(package.to_owned(), 1);
                }
            }
        }
    }
    (counts, unreadable)
}

/// Reasons with how many nodes they keep, since when they keep any, and a few of those.
fn reasons(
    summary: &Summary<'_>,
    current: &SkyhookStatus,
    now: Timestamp,
) -> BTreeMap<String, ReasonSummary> {
    let mut reasons: BTreeMap<String, ReasonSummary> = BTreeMap::new();
    for shown in &summary.nodes {
        let Some(reason) = &shown.reason else {
            continue;
        };
        let word = reason.word.to_string();
        let there = current.reasons.get(&word);
        let entry = reasons.entry(word).or_insert_with(|| ReasonSummary {
            nodes: 0,
            since: there.map_or_else(|| seconds(now), |there| there.since.clone()),
            examples: Vec::new(),
        });
        entry.nodes += 1;
        if entry.examples.len() < EXAMPLES {
            entry.examples.push(shown.node.name.clone());
        }
    }
    reasons
}

/// What another implementation had noted of changed configuration, for as long as a node may depend on it: until each has
/// a result of ours.
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

fn compartment(skyhook: &SkyhookFact, summary: &Summary<'_>) -> CompartmentStatus {
    let total = summary.nodes.len();
    CompartmentStatus {
        matched: number(total),
        ceiling: number(admit::slots(skyhook, total)),
        in_progress: number(summary.in_progress),
        completed: number(summary.complete),
        progress_percent: number((summary.complete * 100).checked_div(total).unwrap_or(100)),
        batch_state: None,
    }
}

/// One total order, so that a status cannot flap between two that hold at once.
fn overall(skyhook: &SkyhookFact, all_complete: bool, nodes: &[Shown<'_>]) -> Status {
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
    .find(|status| nodes.iter().any(|shown| shown.status == *status))
    .unwrap_or(Status::Unknown)
}

fn all_conditions(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
    wanted: &SkyhookStatus,
    current: &SkyhookStatus,
) -> Vec<Condition> {
    let mut ours = vec![ready(view, skyhook, summary, ledger, wanted)];
    ours.extend(transition(skyhook, wanted, current));
    ours.extend(of_nodes(summary, current));
    let mut merged = conditions::merge(
        &current.conditions,
        &ours,
        skyhook.generation,
        view.now.wall,
    );
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
    skyhook: &SkyhookFact,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
    wanted: &SkyhookStatus,
) -> Wanted {
    let refused = view.picture.agents_refused();
    let (reason, message) = match (&skyhook.checked, wanted.status, refused) {
        (Err(problem), _, _) => ("Invalid", problem.clone()),
        (Ok(_), Status::Complete, _) => (
            "Complete",
            format!("{} nodes complete", wanted.complete_nodes),
        ),
        (Ok(_), _, Some(why)) => ("AgentsRefused", why.to_owned()),
        (Ok(_), status, None) => (
            ready_reason(status),
            message::stuck(skyhook, summary, ledger, wanted),
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
            "skyhook.nvidia.com/Transition",
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
        (
            "skyhook.nvidia.com/NodeStateMalformed",
            Word::NodeStateMalformed,
            "has package states that cannot be read. Skipping.",
            "The package states of all nodes can be read.",
        ),
    ];
    let mut conditions = Vec::new();
    for (type_, word, some, none) in table {
        let nodes: Vec<&str> = summary
            .with_reason(word)
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

/// Why a node does not move, as the status or the Node says it: the time stays while the reason stays.
pub(super) fn with_since(
    reason: &Reason,
    there: Option<&NodeReason>,
    now: Timestamp,
) -> NodeReason {
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

/// What the Node's annotation says about why it does not move.
pub(super) fn reason_on_node(node: &NodeFact, skyhook: &str) -> Option<NodeReason> {
    let text = node.annotations.get(&names::reason(skyhook))?;
    serde_json::from_str(text).ok()
}
