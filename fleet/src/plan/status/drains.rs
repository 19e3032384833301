//! What a Skyhook's status says of nodes whose drain does not go on.

use std::collections::BTreeSet;

use skyhook_crds::conditions::Wanted;
use skyhook_crds::lease::{BlockCause, Blocker, InterruptionLease};

use super::Summary;
use super::message::names_of;
use crate::plan::scan::Row;
use crate::plan::{View, drain};

const DRAIN_BLOCKED: &str = "DrainBlocked";
const BLOCKED: &str = "Blocked";
/// Conditions about drains that are there only while they are true.
pub(super) const WHILE_TRUE: [&str; 2] = [DRAIN_BLOCKED, BLOCKED];

/// Pods in one message.
const MAX_PODS: usize = 10;

/// Conditions about drains that do not go on. `dependents` says which packages wait for one that was uninstalled: there is
/// one condition for both.
pub(super) fn conditions(
    view: &View<'_>,
    row: &Row<'_>,
    summary: &Summary<'_>,
    dependents: Option<String>,
) -> Vec<Wanted> {
    let mut blocked = Found::default();
    let mut awaited = Found::default();
    let mut causes: BTreeSet<BlockCause> = BTreeSet::new();
    for (node, lease) in drains(view, row, summary) {
        for (blocker, cause) in lease.spec.drain.blocking() {
            causes.insert(cause);
            blocked.add(node, &blocker.reason, blocker);
        }
        for blocker in drain::awaited(lease) {
            awaited.add(node, "", blocker);
        }
    }
    let total = summary.nodes.len();
    let mut conditions = Vec::new();
    if let Some(first) = causes.first() {
        let reason = if causes.len() == 1 {
            first.as_str()
        } else {
            "MultipleCauses"
        };
        let message = blocked.message(total, "blocked draining");
        conditions.push(Wanted::new(DRAIN_BLOCKED, true, reason, message));
    }
    let waits = "wait for pods that podNonInterruptLabels matches";
    let pods = (!awaited.nodes.is_empty()).then(|| awaited.message(total, waits));
    let (reason, message) = match (dependents, pods) {
        (None, None) => return conditions,
        (None, Some(pods)) => ("NonInterruptPodsRunning", pods),
        (Some(dependents), None) => ("DependencyUninstalled", dependents),
        (Some(dependents), Some(pods)) => {
            ("DependencyUninstalled", format!("{dependents}; {pods}"))
        }
    };
    conditions.push(Wanted::new(BLOCKED, true, reason, message));
    conditions
}

/// The leases of the Skyhook on the nodes that it selects.
fn drains<'a>(
    view: &View<'a>,
    row: &Row<'a>,
    summary: &'a Summary<'a>,
) -> impl Iterator<Item = (&'a str, &'a InterruptionLease)> {
    let (picture, uid) = (view.picture, &row.skyhook.uid);
    summary.nodes.iter().filter_map(move |shown| {
        let fact = picture.lease_of(&shown.node.name, uid)?;
        let lease = fact.lease.as_deref().ok()?;
        Some((shown.node.name.as_str(), lease))
    })
}

/// Nodes whose drains wait, and for which pods.
#[derive(Default)]
struct Found<'a> {
    nodes: Vec<&'a str>,
    pods: Vec<String>,
}

impl<'a> Found<'a> {
    fn add(&mut self, node: &'a str, detail: &str, blocker: &Blocker) {
        if self.nodes.last() != Some(&node) {
            self.nodes.push(node);
        }
        if self.pods.len() < MAX_PODS {
            let colon = if detail.is_empty() { "" } else { ": " };
            self.pods
                .push(format!("{} on {node}{colon}{detail}", blocker.pod));
        }
    }

    /// How many nodes of `total` it is, and for each of the first pods where it is and what keeps it there.
    fn message(&self, total: usize, what: &str) -> String {
        format!(
            "{}/{total} nodes {what} ({}); {}",
            self.nodes.len(),
            names_of(&self.nodes),
            self.pods.join("; ")
        )
    }
}
