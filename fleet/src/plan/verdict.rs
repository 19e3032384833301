//! A node's status for one Skyhook, and why it does not move.

use std::borrow::Cow;

use skyhook_crds::installed::Stamp;
use skyhook_crds::lease::protocol::{self, ResultDuty};
use skyhook_crds::lease::{DrainState, InterruptionLease, InterruptionLeaseStatus, Phase};
use skyhook_crds::stage::Status;

use super::reason::{Reason, ReasonCode};
use super::standing::{self, Standing};
use super::{View, lease, seconds};
use crate::clocks::Mono;
use crate::facts::{NodeFact, SkyhookFact};
use crate::taints;

/// A node's status for one Skyhook, and why it does not move.
pub(super) type NodeVerdict = (Status, Option<Reason>);

/// Finds a node's status for a Skyhook, and the reason if the node makes no progress.
pub(super) fn verdict(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    standing: &Standing,
) -> NodeVerdict {
    let (status, reason) = bare_verdict(view, skyhook, node, standing);
    let note = reason.as_ref();
    let note = note.and_then(|reason| note_of_taint(view, skyhook, node, standing, reason));
    match (reason, note) {
        (Some(reason), Some(note)) => {
            let message = format!("{}; {note}", reason.message);
            (status, Some(Reason::new(reason.code, message)))
        }
        (reason, None) | (reason @ None, Some(_)) => (status, reason),
    }
}

/// What a node that keeps the runtime-required taint for a Skyhook waits for, besides the reason.
fn note_of_taint(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    standing: &Standing,
    reason: &Reason,
) -> Option<String> {
    if !skyhook.taint.required {
        return None;
    }
    let waits = match standing {
        Standing::Waiting(_) | Standing::Eligible => true,
        Standing::Blocked(_) => {
            let code = reason.code;
            code.is_back_off() || matches!(code, ReasonCode::Paused | ReasonCode::RolloutStopped)
        }
        Standing::Complete | Standing::Leased => false,
    };
    let ignored = reason.code == ReasonCode::NodeIgnored;
    if (!waits && !ignored) || reason.code == ReasonCode::Disabled {
        return None;
    }
    let taint = taints::ours(&view.settings.runtime_taint, node)?;
    let taint = taints::show(taint);
    skyhook.taint.covers(node).then(|| {
        if ignored {
            format!("the taint {taint} stays while the label is there")
        } else {
            format!(
                "until it has its turn the taint {taint} stays: the node waits for a slot to confirm what is installed"
            )
        }
    })
}

fn bare_verdict(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    standing: &Standing,
) -> NodeVerdict {
    // A pause does not change the status of complete nodes: otherwise it would cost two writes to every node.
    if skyhook.is_paused() && *standing != Standing::Complete {
        return (
            Status::Paused,
            Some(Reason::new(ReasonCode::Paused, "the Skyhook is paused")),
        );
    }
    match standing {
        Standing::Complete => (Status::Complete, None),
        Standing::Leased => match view
            .picture
            .lease_of(&node.name, &skyhook.uid)
            .map(|fact| &fact.lease)
        {
            Some(Ok(lease)) => leased(view, skyhook, node, lease),
            Some(Err(_)) | None => (Status::InProgress, None),
        },
        Standing::Blocked(_) | Standing::Waiting(_) | Standing::Eligible
            if skyhook.is_disabled() =>
        {
            (
                Status::Disabled,
                Some(Reason::new(ReasonCode::Disabled, "the Skyhook is disabled")),
            )
        }
        Standing::Blocked(reason) => (Status::Blocked, Some(reason.clone())),
        Standing::Waiting(reason) => (Status::Waiting, Some(reason.clone())),
        Standing::Eligible => (Status::Waiting, None),
    }
}

/// The verdict on a node that work is under way on.
fn working(code: ReasonCode, message: impl Into<Cow<'static, str>>) -> NodeVerdict {
    (Status::InProgress, Some(Reason::new(code, message)))
}

fn leased(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    lease: &InterruptionLease,
) -> NodeVerdict {
    let Some((phase, status)) = protocol::phase(lease).zip(lease.status.as_ref()) else {
        return match lease.spec.granted {
            Some(_) => working(
                ReasonCode::AwaitingAgent,
                "the lease is granted; the node's agent has not accepted it",
            ),
            None => (Status::InProgress, None),
        };
    };
    if phase.is_terminal() {
        return ended(view, skyhook, node, lease);
    }
    if let Some(reason) = away(view, node, lease) {
        return reason;
    }
    if let Some(reason) = standing::newer_record(skyhook, node) {
        return (Status::InProgress, Some(reason));
    }
    // A report from an earlier boot of the host is out of date.
    if !status.boot_id.is_empty() && !node.boot_id.is_empty() && status.boot_id != node.boot_id {
        let message = "the node has booted anew, and its agent has not reported since: is its pod running there?";
        return working(ReasonCode::AwaitingAgent, message);
    }
    if let Some(reason) = failure(view, lease, phase, status) {
        return (Status::Erroring, Some(reason));
    }
    match phase {
        Phase::Preparing | Phase::AwaitingDrain
            if lease.spec.drain.state != DrainState::NotRequested =>
        {
            working(ReasonCode::Draining, drain_message(lease))
        }
        Phase::Running if !status.waits_for.is_empty() => {
            working(ReasonCode::AwaitingInterrupt, status.waits_for.clone())
        }
        Phase::Accepted | Phase::Preparing | Phase::Running if lacking(status).is_some() => {
            working(
                ReasonCode::InsufficientResources,
                lacking(status).unwrap_or_default(),
            )
        }
        Phase::Accepted | Phase::Preparing | Phase::Running
            if is_replaced(node.record(&skyhook.name).stamp.as_ref(), status) =>
        {
            let message = "the host's disk was written anew since the last result was recorded: every package is \
                           installed again";
            working(ReasonCode::HostReplaced, message.to_owned())
        }
        Phase::Accepted | Phase::Preparing => {
            working(ReasonCode::Preparing, status.message.clone())
        }
        Phase::AwaitingDrain => {
            working(ReasonCode::AwaitingDrain, status.needs_drain_reason.clone())
        }
        Phase::Running | Phase::Erroring | Phase::Complete | Phase::Stopped | Phase::Unknown => {
            (Status::InProgress, None)
        }
    }
}

/// The packages that request more than the node has.
fn lacking(status: &InterruptionLeaseStatus) -> Option<String> {
    let packages = status.packages.values();
    let lacking = packages.filter(|package| !package.lacks.is_empty());
    let lacking = lacking.map(|package| format!("package {} {}", package.name, package.lacks));
    let lacking: Vec<String> = lacking.collect();
    (!lacking.is_empty()).then(|| lacking.join("; "))
}

/// Why the work on a node fails, if it does.
fn failure(
    view: &View<'_>,
    lease: &InterruptionLease,
    phase: Phase,
    status: &InterruptionLeaseStatus,
) -> Option<Reason> {
    if let Some(parked) = &status.parked {
        let message = format!(
            "package {} in stage {}: {}",
            parked.package, parked.stage, parked.message
        );
        return Some(Reason::new(ReasonCode::GaveUp, message));
    }
    let mut packages = status.packages.values();
    if let Some(package) = packages.find(|package| package.is_failing()) {
        let said = match package.message.as_str() {
            "" => String::new(),
            said => format!(": {said}"),
        };
        let message = format!(
            "package {} failed in stage {}{said}",
            package.name, package.stage
        );
        return Some(Reason::new(ReasonCode::PackageErroring, message));
    }
    let code = if view.picture.is_agent_too_old(lease) {
        ReasonCode::AgentTooOld
    } else {
        ReasonCode::PackageErroring
    };
    (phase == Phase::Erroring).then(|| Reason::new(code, status.message.clone()))
}

/// The verdict on a node whose agent has ended: what the recording of its result waits for.
fn ended(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    lease: &InterruptionLease,
) -> NodeVerdict {
    let record = node.record(&skyhook.name);
    match protocol::result_duty(lease, &lease::facts(node, record)) {
        ResultDuty::AwaitBoot => away(view, node, lease).unwrap_or_else(|| {
            let message = "the kubelet has not reported the boot that the agent runs in";
            let reason = Reason::new(ReasonCode::AwaitingNode, message);
            (Status::InProgress, Some(reason))
        }),
        ResultDuty::AwaitReady => away(view, node, lease).unwrap_or((Status::InProgress, None)),
        ResultDuty::Recorded if is_complete(view, skyhook, node) => (Status::Complete, None),
        ResultDuty::Take => (Status::InProgress, standing::newer_record(skyhook, node)),
        ResultDuty::Recorded | ResultDuty::NotYet => (Status::InProgress, None),
    }
}

/// True when the agent reports another host ID than the recorded one: the host was installed anew under the same name.
fn is_replaced(stamp: Option<&Stamp>, status: &InterruptionLeaseStatus) -> bool {
    let recorded = stamp.map_or("", |stamp| stamp.host_id.as_str());
    !recorded.is_empty() && !status.host_id.is_empty() && recorded != status.host_id
}

/// The verdict on a node that is not Ready while work on it is under way; `None` for a Ready node. After
/// `node_return_timeout` it is said that the node does not return. It keeps its slot, and other nodes go on within the
/// rest of the budget.
fn away(view: &View<'_>, node: &NodeFact, lease: &InterruptionLease) -> Option<NodeVerdict> {
    if node.ready {
        return None;
    }
    let is_lost = lost_at(view, node).is_some_and(|at| at <= view.now.mono);
    Some(if is_lost {
        let since = node
            .ready_since
            .map_or_else(String::new, |at| format!(" at {}", seconds(at)));
        let uid = lease.metadata.uid.as_deref().unwrap_or_default();
        let message = format!(
            "the node went away{since} and did not come back: it keeps its lease and its slot; to give them up: {}",
            standing::force_release(&node.name, uid)
        );
        (
            Status::Erroring,
            Some(Reason::new(ReasonCode::NodeNotReturning, message)),
        )
    } else {
        let reason = Reason::new(ReasonCode::AwaitingNode, "the node is not Ready");
        (Status::InProgress, Some(reason))
    })
}

/// True when the result of a lease whose agent has ended may be recorded now, or is recorded already.
pub(super) fn has_result(
    skyhook: &SkyhookFact,
    node: &NodeFact,
    lease: &InterruptionLease,
) -> bool {
    let record = node.record(&skyhook.name);
    match protocol::result_duty(lease, &lease::facts(node, record)) {
        ResultDuty::Take => !record.stamp.as_ref().is_some_and(Stamp::is_newer),
        ResultDuty::Recorded => true,
        ResultDuty::NotYet | ResultDuty::AwaitBoot | ResultDuty::AwaitReady => false,
    }
}

/// The time from which it is said that a node does not return; `None` for a Ready node.
pub(super) fn lost_at(view: &View<'_>, node: &NodeFact) -> Option<Mono> {
    let since = node.ready_since.filter(|_| !node.ready)?;
    let away = view.age(since, view.clocks.away_seen(&node.name));
    Some(view.now.mono + view.settings.node_return_timeout.saturating_sub(away))
}

fn drain_message(lease: &InterruptionLease) -> String {
    let blockers: Vec<String> = lease
        .spec
        .drain
        .blockers
        .iter()
        .map(|b| format!("{} ({})", b.pod, b.reason))
        .chain(more_blockers(lease.spec.drain.more))
        .collect();
    match (lease.spec.drain.state, blockers.is_empty()) {
        (DrainState::Drained, _) => "drained; the agent has not started the interrupt".to_owned(),
        (_, true) => "waiting for pods to leave".to_owned(),
        (_, false) => format!("waiting for: {}", blockers.join(", ")),
    }
}

fn more_blockers(more: i32) -> Option<String> {
    (more > 0).then(|| format!("and {more} more"))
}

/// True when the Node's record says that nothing is left to do for the Skyhook.
pub(super) fn is_complete(view: &View<'_>, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
    skyhook.checked.as_ref().is_ok_and(|checked| {
        standing::outstanding(view.picture, skyhook, checked, node)
            .is_ok_and(|work| work.is_empty())
    })
}
