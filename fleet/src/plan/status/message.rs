//! Messages of limited length, for any number of nodes.

use std::collections::BTreeMap;

use super::{Shown, Summary, compartments, detail};
use crate::facts::SkyhookFact;
use crate::plan::ledger::Ledger;
use crate::plan::reason::ReasonCode;
use crate::plan::scan::Row;
use crate::plan::{View, adopt, taint};
use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::skyhook::SkyhookStatus;

/// Names of nodes in one message.
const MAX_NAMES: usize = 10;
/// Reasons in one message.
const MAX_REASONS: usize = 5;
/// Longest reason of a node in a status, in bytes; the Node has all of it.
pub(in crate::plan) const MAX_REASON: usize = 256;

/// At most `longest` bytes of a text, with a sign that something is missing.
pub(in crate::plan) fn cut(text: &str, longest: usize) -> String {
    const MISSING: &str = "…";
    if text.len() <= longest {
        return text.to_owned();
    }
    let mut end = longest.saturating_sub(MISSING.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MISSING}", &text[..end])
}

/// The first few names, and how many more there are.
pub(crate) fn names_of(nodes: &[&str]) -> String {
    let named = nodes[..nodes.len().min(MAX_NAMES)].join(", ");
    match nodes.len().saturating_sub(MAX_NAMES) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// The message of the condition Ready: how many nodes are complete, and for each reason one node and how many more
/// there are.
pub(super) fn stuck(
    row: &Row<'_>,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
    wanted: &SkyhookStatus,
) -> String {
    let skyhook = row.skyhook;
    let mut message = format!("{} nodes complete", wanted.complete_nodes);
    if skyhook.is_paused() {
        return format!("the Skyhook is paused; {message}");
    }
    // For each reason: the worst node that has it. Of equally bad nodes, the first by name.
    let mut worst: BTreeMap<String, (u8, &Shown<'_>)> = BTreeMap::new();
    for shown in &summary.nodes {
        let Some(reason) = shown.reason else {
            continue;
        };
        let rank = detail::rank(shown);
        let entry = worst
            .entry(reason.code.to_string())
            .or_insert((rank, shown));
        if rank < entry.0 {
            *entry = (rank, shown);
        }
    }
    let mut reasons: Vec<_> = worst.into_iter().collect();
    reasons.sort_by_key(|(_, (rank, shown))| (*rank, &shown.node.name));
    for (code, (_, shown)) in reasons.iter().take(MAX_REASONS) {
        let (Some(reason), Some(all)) = (shown.reason, wanted.reasons.get(code)) else {
            continue;
        };
        let text = cut(&reason.message, MAX_REASON);
        let name = &shown.node.name;
        message.push_str(&format!("; {name}: {text} ({code}) since {}", all.since));
        if all.nodes > 1 {
            message.push_str(&format!(", and {} more", all.nodes - 1));
        }
    }
    if let Some(more) = reasons
        .len()
        .checked_sub(MAX_REASONS)
        .filter(|more| *more > 0)
    {
        message.push_str(&format!("; and {more} more reasons"));
    }
    let waits = |code: ReasonCode| wanted.reasons.contains_key(&code.to_string());
    if waits(ReasonCode::BudgetExhausted) {
        message.push_str(&format!("; {}", ledger.use_of_budget(row)));
    }
    for hold in compartments::holds(row, ledger) {
        message.push_str(&format!("; {hold}"));
    }
    if waits(ReasonCode::ClusterBudgetExhausted) {
        message.push_str(&format!("; {}", ledger.use_of_cap()));
    }
    message
}

/// What the deletion of a Skyhook waits for, if anything.
pub(super) fn left(view: &View<'_>, skyhook: &SkyhookFact) -> Option<String> {
    let held = |node: &&str| view.picture.lease_of(node, &skyhook.uid).is_some();
    let being_made = |(node, spec): (&str, &InterruptionLeaseSpec)| {
        (spec.skyhook.uid == skyhook.uid).then(|| node.to_owned())
    };
    let leases = view
        .picture
        .leases()
        .keys()
        .map(String::as_str)
        .filter(held);
    let mut leased: Vec<String> = leases.map(str::to_owned).collect();
    leased.extend(view.inflight.creates().filter_map(being_made));
    leased.sort();
    leased.dedup();
    if !leased.is_empty() {
        let leased: Vec<&str> = leased.iter().map(String::as_str).collect();
        return Some(format!("waits for the leases of: {}", names_of(&leased)));
    }
    let nodes = view.picture.nodes().values();
    let cordoned: Vec<&str> = nodes
        .filter(|node| node.cordon.owners.contains_key(&skyhook.name))
        .map(|node| node.name.as_str())
        .collect();
    if !cordoned.is_empty() {
        return Some(format!(
            "gives back the cordons of: {}",
            names_of(&cordoned)
        ));
    }
    let tainted: Vec<&str> = taint::left(view, skyhook)
        .map(|node| node.name.as_str())
        .collect();
    if !tainted.is_empty() {
        return Some(format!(
            "takes the runtime-required taint off: {}",
            names_of(&tainted)
        ));
    }
    let unclean: Vec<&str> = adopt::unclean(view, skyhook)
        .map(|node| node.name.as_str())
        .collect();
    (!unclean.is_empty()).then(|| format!("cleans the nodes: {}", names_of(&unclean)))
}

/// What is wrong with a Skyhook, and what this means for the taint of its nodes.
pub(super) fn invalid(view: &View<'_>, skyhook: &SkyhookFact, problem: &str) -> String {
    let taint = &view.settings.runtime_taint;
    if skyhook.requires_unknown() {
        format!(
            "{problem}; until its nodeSelectors can be read, the taint {taint} is taken off no node"
        )
    } else if skyhook.taint.required {
        format!("{problem}; meanwhile the taint {taint} stays on its nodes")
    } else {
        problem.to_owned()
    }
}

/// The end of a message, about the nodes that the Skyhook leaves out because they are no hosts.
pub(super) fn left_out(summary: &Summary<'_>) -> String {
    const WHICH: &str = "Windows, virtual-kubelet or Fargate";
    match summary.left_out.len() {
        0 => String::new(),
        1 => format!("; 1 selected node is left out: {WHICH}"),
        nodes => format!("; {nodes} selected nodes are left out: {WHICH}"),
    }
}
