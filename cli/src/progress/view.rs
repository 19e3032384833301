//! From objects to what is shown.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde::Serialize;
use skyhook_crds::lease::DrainState;
use skyhook_crds::{InterruptionLease, Skyhook, Status, names};

use super::fit::{cut, fit};
use crate::output::table;
use crate::session::Screen;

/// How many of the nodes that were completed last tell the pace.
const LAST: usize = 10;
/// Most nodes that are shown one by one.
const MOST: usize = 20;

/// As much of the name of a node is shown on a narrow screen, however little room that leaves for the rest.
const LONGEST_LABEL: usize = 30;

/// How far a Skyhook is.
#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rollout {
    name: String,
    status: Status,
    complete: usize,
    nodes: usize,
    packages: String,
    working: Vec<Working>,
    waiting: Vec<Waiting>,
    /// How long the rest takes at the pace of the nodes that were completed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_seconds: Option<i64>,
}

/// A node that is being worked on.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Working {
    node: String,
    phase: String,
    package: String,
    stage: String,
    since: String,
    /// What the node waits for.
    waits_for: String,
}

/// Nodes that make no progress for one reason.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Waiting {
    reason: String,
    nodes: i32,
    since: String,
    example: String,
}

impl Rollout {
    pub(super) fn new(
        skyhook: &Skyhook,
        leases: &[InterruptionLease],
        nodes: &[Node],
        now: Timestamp,
    ) -> Self {
        let name = skyhook.name_any();
        let status = skyhook.status.clone().unwrap_or_default();
        let counts = status.complete_nodes.split_once('/');
        let (complete, total): (usize, usize) = counts.map_or((0, 0), |(complete, total)| {
            (complete.parse().unwrap_or(0), total.parse().unwrap_or(0))
        });
        let ours = leases
            .iter()
            .filter(|lease| lease.spec.skyhook.name == name);
        let mut working: Vec<Working> = ours.map(Working::new).collect();
        working.sort_by(|a, b| a.node.cmp(&b.node));
        let waiting = status.reasons.iter().map(|(reason, summary)| Waiting {
            reason: reason.clone(),
            nodes: summary.nodes,
            since: summary.since.clone(),
            example: summary.examples.first().cloned().unwrap_or_default(),
        });
        let mut waiting: Vec<Waiting> = waiting.collect();
        waiting.sort_by(|a, b| (-a.nodes, &a.reason).cmp(&(-b.nodes, &b.reason)));
        let completed = nodes.iter().filter_map(|node| completed_at(node, &name));
        let left = total.saturating_sub(complete);
        Self {
            remaining_seconds: remaining(completed.collect(), left, now),
            status: status.status,
            packages: status.package_list,
            name,
            complete,
            nodes: total,
            working,
            waiting,
        }
    }
}

impl Working {
    fn new(lease: &InterruptionLease) -> Self {
        let status = lease.status.clone().unwrap_or_default();
        let drain = &lease.spec.drain;
        let phase = status.phase.map(|phase| format!("{phase:?}"));
        let pods = match drain.state {
            DrainState::Waiting | DrainState::Draining => drain.blockers.len(),
            DrainState::NotRequested | DrainState::Drained | DrainState::Unknown => 0,
        };
        let waits_for = if pods > 0 {
            let more = usize::try_from(drain.more).unwrap_or(0);
            format!("{} pods, {}", pods + more, drain.blockers[0].pod)
        } else if status.waits_for.is_empty() {
            status.message
        } else {
            status.waits_for
        };
        Self {
            node: lease.spec.node.name.clone(),
            phase: phase.unwrap_or_else(|| "AwaitingAgent".to_owned()),
            package: status.package.unwrap_or_default(),
            stage: status
                .stage
                .map(|stage| stage.to_string())
                .unwrap_or_default(),
            since: status.since.unwrap_or_default(),
            waits_for,
        }
    }
}

/// When a node became complete, as its condition says.
fn completed_at(node: &Node, skyhook: &str) -> Option<Timestamp> {
    let type_ = names::not_ready_condition(skyhook);
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ours = conditions.iter().find(|condition| condition.type_ == type_);
    let ours = ours.filter(|condition| condition.status == "False")?;
    Some(ours.last_transition_time.as_ref()?.0)
}

/// How many seconds `left` nodes take, if they go on as those that were completed last. While nothing is completed, the
/// pace gets slower.
fn remaining(mut completed: Vec<Timestamp>, left: usize, now: Timestamp) -> Option<i64> {
    completed.sort();
    let last = &completed[completed.len().saturating_sub(LAST)..];
    let first = last.first().filter(|_| last.len() > 1 && left > 0)?;
    let spent = now.duration_since(*first).as_secs().max(0);
    let steps = i64::try_from(last.len() - 1).ok()?;
    Some(spent.saturating_mul(i64::try_from(left).ok()?) / steps)
}

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub(super) screen: Screen,
    pub(super) now: Timestamp,
    /// Whether nodes are shown one by one.
    pub(super) with_nodes: bool,
}

impl Shown {
    pub(super) fn text(&self, rollouts: &[Rollout]) -> String {
        if rollouts.is_empty() {
            return "There are no Skyhooks\n".to_owned();
        }
        let mut header = vec!["SKYHOOK", "STATUS", "NODES", "WORKING"];
        header.extend(self.screen.is_terminal.then_some("PROGRESS"));
        header.push("PACKAGES");
        let rows = rollouts.iter().map(|rollout| {
            let mut row = vec![
                rollout.name.clone(),
                rollout.status.to_string(),
                format!("{}/{}", rollout.complete, rollout.nodes),
                rollout.working.len().to_string(),
            ];
            row.extend(self.screen.is_terminal.then(|| self.bar(rollout)));
            row.push(rollout.packages.clone());
            row
        });
        let lines = self.lines(&header, rows.collect());
        let statuses = rollouts.iter().map(|rollout| Some(rollout.status));
        // The header and the row of dashes have no status.
        let statuses = [None, None].into_iter().chain(statuses);
        let coloured = lines
            .iter()
            .zip(statuses)
            .map(|(line, status)| self.coloured(line, status));
        let mut text: String = coloured.collect();
        if self.with_nodes {
            for rollout in rollouts {
                self.nodes(rollout, &mut text);
            }
        }
        text
    }

    /// The lines of a table, no longer than the screen.
    fn lines(&self, header: &[&str], mut rows: Vec<Vec<String>>) -> Vec<String> {
        let width = self.screen.width;
        if self.screen.is_terminal {
            // A node is known by what is before its domain.
            let labels = rows.iter().filter_map(|row| row.first()?.split('.').next());
            let label = labels
                .map(|label| label.chars().count() + 1)
                .max()
                .unwrap_or(0);
            let least = [
                ("PROGRESS", usize::MAX),
                ("STATUS", usize::MAX),
                ("WORKING", label.min(LONGEST_LABEL)),
            ];
            fit(header, &least, &mut rows, width);
        }
        let shown = table(header, &rows);
        let lines = shown.lines().map(str::trim_end);
        lines
            .map(|line| match self.screen.is_terminal {
                true => cut(line, width),
                false => line.to_owned(),
            })
            .collect()
    }

    fn coloured(&self, line: &str, status: Option<Status>) -> String {
        let colour = status.map_or(0, |status| match status {
            Status::Complete => 32,
            Status::Erroring | Status::Blocked => 31,
            Status::InProgress => 33,
            Status::Unknown | Status::Waiting | Status::Disabled | Status::Paused => 0,
        });
        if self.screen.colours && colour > 0 {
            return format!("\u{1b}[{colour}m{line}\u{1b}[0m\n");
        }
        format!("{line}\n")
    }

    /// How much is done, as a bar with the percentage.
    fn bar(&self, rollout: &Rollout) -> String {
        let length = if self.screen.width < 100 { 10 } else { 30 };
        let share = |of: usize| {
            (rollout.complete * of)
                .checked_div(rollout.nodes)
                .unwrap_or(0)
                .min(of)
        };
        let filled = share(length);
        let (full, empty) = ("█".repeat(filled), "░".repeat(length - filled));
        format!("{full}{empty} {:>3}%", share(100))
    }

    fn nodes(&self, rollout: &Rollout, text: &mut String) {
        if !rollout.working.is_empty() {
            let header = ["WORKING", "PHASE", "PACKAGE", "STAGE", "FOR", "WAITS FOR"];
            let rows = rollout.working.iter().take(MOST).map(|working| {
                let Working {
                    node,
                    phase,
                    package,
                    stage,
                    ..
                } = working;
                let mut row = [node, phase, package, stage].map(Clone::clone).to_vec();
                row.extend([self.ago(&working.since), working.waits_for.clone()]);
                row
            });
            self.below(&header, rows.collect(), text);
            let more = rollout.working.len().saturating_sub(MOST);
            if more > 0 {
                text.push_str(&format!("and {more} more\n"));
            }
        }
        if !rollout.waiting.is_empty() {
            let rows = rollout.waiting.iter().map(|waiting| {
                let since = self.ago(&waiting.since);
                vec![
                    waiting.reason.clone(),
                    waiting.nodes.to_string(),
                    since,
                    waiting.example.clone(),
                ]
            });
            self.below(&["REASON", "NODES", "FOR", "EXAMPLE"], rows.collect(), text);
        }
        if let Some(seconds) = rollout.remaining_seconds {
            let left = rollout.nodes.saturating_sub(rollout.complete);
            let time = spell(seconds);
            let left = match left {
                1 => "1 node is left".to_owned(),
                left => format!("{left} nodes are left"),
            };
            text.push_str(&format!("\n{left}: about {time} more at this pace\n"));
        }
    }

    fn below(&self, header: &[&str], rows: Vec<Vec<String>>, text: &mut String) {
        text.push('\n');
        for line in self.lines(header, rows) {
            text.push_str(&line);
            text.push('\n');
        }
    }

    fn ago(&self, since: &str) -> String {
        let since = since.parse::<Timestamp>().ok();
        let seconds = since.map(|since| self.now.duration_since(since).as_secs().max(0));
        seconds.map(spell).unwrap_or_default()
    }
}

/// A time as kubectl spells an age: `45s`, `12m`, `3h5m`, `2d`.
fn spell(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0..2) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0..2, _, _) if minutes % 60 == 0 => format!("{hours}h"),
        (0..2, _, _) => format!("{hours}h{}m", minutes % 60),
        (_, _, _) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests;
