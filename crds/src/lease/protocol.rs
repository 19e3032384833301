//! Which write to a lease is legal when. Pure, and the only place with these rules: the agent, the coordinator,
//! the simulation and the model all call them.

use std::collections::BTreeMap;

use super::{DrainState, InterruptionLease, Phase, StopReason};
use crate::names;
use crate::stage::State;

/// What an agent does about the lease with its node's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentDuty {
    /// Leave it alone: it is not (or no longer) for this agent.
    Ignore(IgnoreReason),
    /// Accept it with a write whose precondition is the resource version that was read. Then read everything again.
    Accept,
    /// Go on.
    Work,
    /// Start no further step. A step that runs may end. Go on when the order to stop is taken back.
    Hold,
    /// Start no further step. Report `Stopped` when nothing runs any more.
    Stop(StopReason),
    /// Nothing is left to do under this lease. Keep the boot ID in its status up to date.
    Finished,
}

/// Why a lease is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgnoreReason {
    NotGranted,
    OtherNode,
    /// Deleted or stopped before it was accepted: the coordinator withdraws it.
    Withdrawn,
}

/// What the agent of the Node with UID `node_uid` does about `lease`.
#[must_use]
pub fn agent_duty(lease: &InterruptionLease, node_uid: &str) -> AgentDuty {
    if lease.spec.node.uid != node_uid {
        return AgentDuty::Ignore(IgnoreReason::OtherNode);
    }
    if lease.spec.granted.is_none() {
        return AgentDuty::Ignore(IgnoreReason::NotGranted);
    }
    let deleting = lease.metadata.deletion_timestamp.is_some();
    let stop = lease.spec.stop.as_ref().map(|stop| stop.reason);
    match phase(lease) {
        None if deleting || stop.is_some() => AgentDuty::Ignore(IgnoreReason::Withdrawn),
        None => AgentDuty::Accept,
        Some(phase) if phase.is_terminal() => AgentDuty::Finished,
        Some(_) if deleting => AgentDuty::Stop(StopReason::Deleted),
        Some(_) => match stop {
            None => AgentDuty::Work,
            Some(StopReason::Paused) => AgentDuty::Hold,
            Some(
                reason @ (StopReason::NewRevision
                | StopReason::Disabled
                | StopReason::Deleted
                | StopReason::Edited
                | StopReason::DrainTimedOut
                | StopReason::AgentTooOld
                | StopReason::Unknown),
            ) => AgentDuty::Stop(reason),
        },
    }
}

/// The phase that the agent has reported, if it has accepted the lease at all.
#[must_use]
pub fn phase(lease: &InterruptionLease) -> Option<Phase> {
    lease.status.as_ref().and_then(|status| status.phase)
}

/// True when a step may have run under the lease, and the agent has not ended. Most agents tell it. Of one that does not,
/// the packages say it: one has begun and is not complete. A package may have failed before the lease, so a failure alone
/// says nothing.
#[must_use]
pub fn has_begun(lease: &InterruptionLease) -> bool {
    let packages = lease
        .status
        .iter()
        .flat_map(|status| status.packages.values());
    let mut begun = packages.filter(|one| !one.pending && one.state != State::Complete);
    match phase(lease) {
        None | Some(Phase::Accepted | Phase::Complete | Phase::Stopped) => false,
        Some(Phase::Preparing | Phase::AwaitingDrain | Phase::Erroring) => {
            let told = lease.status.as_ref().and_then(|status| status.begun);
            told.unwrap_or_else(|| begun.next().is_some())
        }
        Some(Phase::Running | Phase::Unknown) => true,
    }
}

/// The form that an agent has to know for this lease, with a revision of the form `revision`.
#[must_use]
pub fn form(lease: &InterruptionLease, revision: i32) -> i32 {
    lease.spec.format.max(revision)
}

/// True when the agent that works on the lease knows less than the lease needs: it does nothing under it.
#[must_use]
pub fn is_agent_too_old(lease: &InterruptionLease, revision: i32) -> bool {
    let status = lease.status.as_ref();
    status.is_some_and(|status| status.phase.is_some() && status.format < form(lease, revision))
}

/// True once an agent has taken the lease.
#[must_use]
pub fn is_accepted(lease: &InterruptionLease) -> bool {
    phase(lease).is_some()
}

/// True when the packages that the lease calls installed, or the status that was reported under it, belong to another
/// host. Then nothing of that is installed here. Another host is another machine, or this machine after its disk was
/// written anew (`host_id`). An ID that one side does not know is not compared.
#[must_use]
pub fn is_of_another_host(lease: &InterruptionLease, machine_id: &str, host_id: &str) -> bool {
    let result = lease.spec.stamp.as_ref().filter(|stamp| stamp.has_result());
    let reporter = lease
        .status
        .as_ref()
        .filter(|status| status.phase.is_some());
    let told = [
        result.map(|stamp| (&stamp.machine_id, &stamp.host_id)),
        reporter.map(|status| (&status.machine_id, &status.host_id)),
    ];
    told.into_iter()
        .flatten()
        .any(|(machine, host)| is_other_host((machine, host), (machine_id, host_id)))
}

/// True when `there` is another host than `here`, each a machine ID and a host ID.
#[must_use]
pub fn is_other_host(there: (&str, &str), here: (&str, &str)) -> bool {
    let is_other = |there: &str, here: &str| !there.is_empty() && there != here;
    is_other(there.0, here.0) || (!here.1.is_empty() && is_other(there.1, here.1))
}

/// How often each package has asked for a reboot of the lease's node, by `name|version`. The counts come from API objects
/// and not from the host: a host that forgets everything at each boot must not be rebooted for ever.
#[must_use]
pub fn known_reboots(lease: &InterruptionLease) -> BTreeMap<String, u32> {
    let recorded = lease.spec.stamp.iter().flat_map(|stamp| &stamp.reboots);
    let reported = lease.status.iter().flat_map(|status| &status.reboots);
    let mut known: BTreeMap<String, u32> = BTreeMap::new();
    for (key, count) in recorded.chain(reported) {
        let known = known.entry(key.clone()).or_default();
        *known = (*known).max(*count);
    }
    known
}

/// Compares resource versions: newer API servers promise that they are numbers that grow. Versions that are not
/// numbers are never called older.
#[must_use]
pub fn is_older(a: &str, b: &str) -> bool {
    match (a.parse::<u128>(), b.parse::<u128>()) {
        (Ok(a), Ok(b)) => a < b,
        _ => false,
    }
}

/// True when the agent may write `phase: Running`, with this lease's resource version as precondition. Only when that
/// write succeeds may anything disruptive start.
#[must_use]
pub fn may_run_disruptive(lease: &InterruptionLease, node_uid: &str) -> bool {
    agent_duty(lease, node_uid) == AgentDuty::Work && lease.spec.drain.state == DrainState::Drained
}

/// True when the coordinator may take `Drained` back: until the agent has taken it.
#[must_use]
pub fn may_retract_drained(lease: &InterruptionLease) -> bool {
    match phase(lease) {
        None
        | Some(Phase::Accepted | Phase::Preparing | Phase::AwaitingDrain | Phase::Erroring) => true,
        // An agent of a later version may be at anything.
        Some(Phase::Running | Phase::Complete | Phase::Stopped | Phase::Unknown) => false,
    }
}

/// True when the node is said to be drained and the agent has not taken it yet.
#[must_use]
pub fn offers_drained(lease: &InterruptionLease) -> bool {
    lease.spec.drain.state == DrainState::Drained && may_retract_drained(lease)
}

/// True when the coordinator may start to drain the node: the agent holds the lease, has asked, and is not told to stop.
#[must_use]
pub fn wants_drain(lease: &InterruptionLease) -> bool {
    let asked = lease
        .status
        .as_ref()
        .and_then(|status| status.needs_drain)
        .unwrap_or(false);
    let open = match phase(lease) {
        Some(Phase::Accepted | Phase::Preparing | Phase::AwaitingDrain | Phase::Erroring) => true,
        None | Some(Phase::Running | Phase::Complete | Phase::Stopped | Phase::Unknown) => false,
    };
    asked && open && lease.spec.stop.is_none() && lease.metadata.deletion_timestamp.is_none()
}

/// True when the agent works, has not taken a drain, and says that it needs none: a drain that is under way has to end.
#[must_use]
pub fn declines_drain(lease: &InterruptionLease) -> bool {
    let status = lease.status.as_ref();
    let open = match phase(lease) {
        Some(Phase::Preparing | Phase::AwaitingDrain | Phase::Erroring) => true,
        None
        | Some(
            Phase::Accepted | Phase::Running | Phase::Complete | Phase::Stopped | Phase::Unknown,
        ) => false,
    };
    open && status.and_then(|status| status.needs_drain) == Some(false)
        && lease.spec.stop.is_none()
        && lease.metadata.deletion_timestamp.is_none()
}

/// What the coordinator knows about the lease's Node when it decides about the result or the release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts<'a> {
    pub uid: &'a str,
    /// `status.nodeInfo.bootID`.
    pub boot_id: &'a str,
    pub ready: bool,
    /// Whether the node was Ready when the lease was granted.
    pub was_ready: bool,
    /// UID of the lease whose result the Node's stamp carries.
    pub result_of: Option<&'a str>,
}

/// Whether a reported result may be written to the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultDuty {
    /// The agent still works.
    NotYet,
    /// Record the result on the Node.
    Take,
    /// The kubelet has not reported the boot that the agent runs in.
    AwaitBoot,
    /// The node was Ready when the lease was granted, and is not Ready again yet.
    AwaitReady,
    /// The result is on the Node already.
    Recorded,
}

/// Judges the result that the lease's status carries.
#[must_use]
pub fn result_duty(lease: &InterruptionLease, node: &NodeFacts<'_>) -> ResultDuty {
    let Some(status) = lease
        .status
        .as_ref()
        .filter(|s| s.phase.is_some_and(Phase::is_terminal))
    else {
        return ResultDuty::NotYet;
    };
    if node.result_of.is_some() && node.result_of == lease.metadata.uid.as_deref() {
        ResultDuty::Recorded
    } else if node.boot_id != status.boot_id {
        ResultDuty::AwaitBoot
    } else if node.was_ready && !node.ready {
        ResultDuty::AwaitReady
    } else {
        ResultDuty::Take
    }
}

/// Why a lease's finalizer may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseReason {
    NeverAccepted,
    ResultRecorded,
    /// A live GET showed that the Node with that UID is gone.
    NodeGone,
    Forced,
    /// The agent was too old for the lease and did nothing under it.
    NothingDone,
}

/// Whether the finalizer of `lease` may be removed. `node` is `None` only when a live GET showed that no Node with
/// the lease's UID exists.
#[must_use]
pub fn release_reason(
    lease: &InterruptionLease,
    node: Option<&NodeFacts<'_>>,
) -> Option<ReleaseReason> {
    let uid = lease.metadata.uid.as_deref()?;
    if !is_accepted(lease) {
        return Some(ReleaseReason::NeverAccepted);
    }
    if lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(names::FORCE_RELEASE))
        .map(String::as_str)
        == Some(uid)
    {
        return Some(ReleaseReason::Forced);
    }
    let stop = lease.spec.stop.as_ref().map(|stop| stop.reason);
    if phase(lease) == Some(Phase::Stopped) && stop == Some(StopReason::AgentTooOld) {
        return Some(ReleaseReason::NothingDone);
    }
    match node {
        None => Some(ReleaseReason::NodeGone),
        Some(node) => (node.result_of == Some(uid)).then_some(ReleaseReason::ResultRecorded),
    }
}

#[cfg(test)]
mod tests;
