//! Events for people, derived from an effect and the picture that it was decided on. There is one event per transition,
//! because an effect is planned only when something differs. Failures are Warnings.

mod bound;
mod status;

use skyhook_crds::installed::Stamp;
use skyhook_crds::lease::{BlockCause, Drain, DrainState, StopReason};
use skyhook_crds::names;
use skyhook_crds::skyhook::NodeReason;
use skyhook_crds::stage::{Stage, Status};

use crate::clocks::LeaseClock;
use crate::effect::{Effect, NodePatch, Target};
use crate::index::Index;
use crate::plan::cause::Cause;
use crate::plan::names_of;
use crate::plan::reason::{ReasonCode, Withdrawal};
use crate::taints;

pub use bound::Bound;
use status::of_status;

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Skyhook { name: String, uid: String },
    Node { name: String, uid: String },
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFact {
    pub subject: Subject,
    pub warning: bool,
    pub reason: &'static str,
    /// What was done or not done, for programs. `None`: the reason says it.
    pub action: Option<&'static str>,
    pub note: String,
}

/// The events to publish when `effect` has been written.
#[must_use]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "most writes are of no interest to people"
)]
pub fn events(index: &Index, effect: &Effect) -> Vec<EventFact> {
    match effect {
        Effect::WriteSkyhookStatus {
            name, at, status, ..
        } => {
            let old = index
                .picture
                .skyhooks()
                .get(name)
                .and_then(|skyhook| skyhook.status.clone());
            let subject = Subject::Skyhook {
                name: name.clone(),
                uid: at.uid.clone(),
            };
            of_status(&subject, &old.unwrap_or_default(), status)
        }
        Effect::PatchNode {
            node,
            at,
            patch,
            why,
        } => {
            let subject = Subject::Node {
                name: node.clone(),
                uid: at.uid.clone(),
            };
            let mut events = of_node(index, &subject, node, patch);
            if why.contains(&Cause::Grant) {
                events.extend(of_start(index, &subject, node));
            }
            if why.contains(&Cause::Reapply) {
                events.push(EventFact {
                    subject,
                    warning: false,
                    reason: "Reboot",
                    action: None,
                    note: format!("detected reboot, resetting node [{node}] to be reapplied"),
                });
            }
            events
        }
        Effect::StopLease {
            node,
            stop: Some(StopReason::DrainTimedOut),
            ..
        } => {
            let note = |skyhook: &str| {
                format!(
                    "pods did not leave node [{node}] in time for [skyhook:{skyhook}]: the cordon is given back"
                )
            };
            of_lease(index, node, "DrainTimeout", note)
        }
        Effect::SetDrain { node, drain, .. } if drain.state == DrainState::Waiting => {
            of_waiting(index, node, drain)
        }
        Effect::SetDrain { node, drain, .. } => of_blocked(index, node, drain),
        Effect::WithdrawLease {
            node,
            why: Withdrawal::AgentNotResponding,
            ..
        } => {
            let note = |skyhook: &str| {
                format!(
                    "the agent of node [{node}] did not accept the lease of [skyhook:{skyhook}]"
                )
            };
            of_lease(index, node, "AgentNotResponding", note)
        }
        Effect::AbandonLease { node, .. } => {
            let note = |skyhook: &str| {
                format!(
                    "the agent of node [{node}] did not stop, or the node did not come back, in time; [skyhook:{skyhook}] goes without its result"
                )
            };
            of_lease(index, node, "LeaseAbandoned", note)
        }
        Effect::ReleaseSkyhook { name, at, .. } => Vec::from_iter(of_invalid(index, name, &at.uid)),
        _ => Vec::new(),
    }
}

/// Said of a Skyhook that goes with a spec that is not valid: nobody knew what to uninstall.
fn of_invalid(index: &Index, name: &str, uid: &str) -> Option<EventFact> {
    let skyhook = index.picture.skyhooks().get(name)?;
    let problem = skyhook.checked.as_ref().err()?;
    let nodes = index.picture.nodes().values();
    let keep = nodes.filter(|node| {
        let record = node.record(name);
        let states = record.states.as_ref();
        let is_there = states.is_ok_and(|states| !states.is_empty());
        is_there && !record.is_of_another_machine(node)
    });
    let keep: Vec<&str> = keep.map(|node| node.name.as_str()).collect();
    (!keep.is_empty()).then(|| EventFact {
        subject: Subject::Skyhook {
            name: name.to_owned(),
            uid: uid.to_owned(),
        },
        warning: true,
        reason: "PackagesLeftBehind",
        action: None,
        note: format!(
            "the spec of [skyhook:{name}] is not valid ({problem}), so nothing was uninstalled before its deletion; \
             its packages stay on: {}",
            names_of(&keep)
        ),
    })
}

/// The events to publish when the API server refuses `effect`. They are about the object that makes no progress for
/// that reason.
#[must_use]
pub fn refused(index: &Index, effect: &Effect, error: &str) -> Vec<EventFact> {
    let skyhook = |name: &str| {
        let uid = index.picture.skyhooks().get(name)?.uid.clone();
        let name = name.to_owned();
        Some(Subject::Skyhook { name, uid })
    };
    let subject = match effect.target() {
        Target::Skyhook(name) | Target::Rollout(name) | Target::Look(name) => skyhook(&name),
        Target::Revision(name) => {
            if let Effect::CreateRevision { skyhook: owner, .. } = effect {
                skyhook(owner)
            } else {
                let revision = index.picture.revisions().get(&name);
                revision.and_then(|revision| skyhook(&revision.skyhook))
            }
        }
        Target::Node(node) | Target::Lease(node) | Target::Pods(node) => {
            index.picture.nodes().get(&node).map(|fact| Subject::Node {
                name: node,
                uid: fact.uid.clone(),
            })
        }
        // The drain itself reports refused evictions.
        Target::Pod(_) => None,
    };
    let (reason, note) = taint_refused(effect, error).map_or_else(
        || {
            let note = format!(
                "the API server refuses what the coordinator has to write; it is tried again: {error}"
            );
            ("WriteRefused", note)
        },
        |note| ("AutoTaint", note),
    );
    let event = |subject| EventFact {
        subject,
        warning: true,
        reason,
        action: None,
        note,
    };
    subject.map(event).into_iter().collect()
}

/// What it means that the runtime-required taint cannot be put on a node; `None` for any other write.
fn taint_refused(effect: &Effect, error: &str) -> Option<String> {
    let Effect::PatchNode {
        node, patch, why, ..
    } = effect
    else {
        return None;
    };
    let taint = patch.taints.as_ref()?.last()?;
    why.contains(&Cause::AutoTaint).then(|| {
        format!(
            "the taint {} cannot be put on node [{node}], and nothing is started there before: {error}",
            taints::show(taint)
        )
    })
}

/// The event that work on a node begins.
fn of_start(index: &Index, subject: &Subject, node: &str) -> Option<EventFact> {
    let lease = index.picture.leases().get(node)?.lease.as_ref().ok()?;
    let skyhook = &lease.spec.skyhook.name;
    Some(EventFact {
        subject: subject.clone(),
        warning: false,
        reason: "Started",
        action: None,
        note: format!("[skyhook:{skyhook}] begins on node [{node}]"),
    })
}

fn of_node(index: &Index, subject: &Subject, node: &str, patch: &NodePatch) -> Vec<EventFact> {
    let event = |warning, reason, note| EventFact {
        subject: subject.clone(),
        warning,
        reason,
        action: None,
        note,
    };
    let prefix = names::status("");
    let mut events = of_given_up(index, subject, node, patch);
    for (key, value) in &patch.labels {
        let (Some(skyhook), Some(value)) = (key.strip_prefix(&prefix), value) else {
            continue;
        };
        if value == Status::Complete.as_str() {
            events.push(event(
                false,
                "State",
                format!("Skyhook [{skyhook}] complete."),
            ));
        } else if value == Status::Erroring.as_str() {
            let reason = patch
                .annotations
                .get(&names::reason(skyhook))
                .cloned()
                .flatten();
            let reason: Option<NodeReason> =
                reason.and_then(|text| serde_json::from_str(&text).ok());
            if !is_given_up(reason.as_ref()) {
                events.extend(of_failure(index, subject, node, skyhook, reason));
            }
        }
    }
    let there = index
        .picture
        .nodes()
        .get(node)
        .map(|fact| &fact.annotations);
    let prefix = names::stamp("");
    for (key, value) in &patch.annotations {
        let Some(skyhook) = key.strip_prefix(&prefix) else {
            continue;
        };
        let host = |text: Option<&String>| {
            Stamp::parse(text.map(String::as_str)).map_or_else(String::new, |stamp| stamp.host_id)
        };
        let before = host(there.and_then(|annotations| annotations.get(key)));
        let after = host(value.as_ref());
        if !before.is_empty() && !after.is_empty() && before != after {
            let note = format!(
                "the disk of node [{node}] was written anew since the last result of [skyhook:{skyhook}]: every package \
                 was installed again"
            );
            events.push(event(true, "HostReplaced", note));
        }
    }
    if patch.unschedulable == Some(true)
        && let Some(skyhook) = index
            .picture
            .leases()
            .get(node)
            .and_then(|fact| fact.lease.as_ref().ok())
    {
        let note = format!(
            "draining node [{node}] from [skyhook:{}]",
            skyhook.spec.skyhook.name
        );
        events.push(event(false, "Interrupt", note));
    }
    events
}

/// The events when a package of a node has used up its attempts, also while the node is erroring already.
fn of_given_up(index: &Index, subject: &Subject, node: &str, patch: &NodePatch) -> Vec<EventFact> {
    let prefix = names::reason("");
    let read = |text: &String| serde_json::from_str::<NodeReason>(text).ok();
    let there = index.picture.nodes().get(node);
    let mut events = Vec::new();
    for (key, value) in &patch.annotations {
        let Some(skyhook) = key.strip_prefix(&prefix) else {
            continue;
        };
        let before = there.and_then(|fact| fact.annotations.get(key));
        let reason = value.as_ref().and_then(read);
        if is_given_up(reason.as_ref()) && !is_given_up(before.and_then(read).as_ref()) {
            events.extend(of_failure(index, subject, node, skyhook, reason));
        }
    }
    events
}

fn is_given_up(reason: Option<&NodeReason>) -> bool {
    reason.is_some_and(|reason| reason.reason == ReasonCode::GaveUp.to_string())
}

/// True when the package that has given up under the lease of the node was to interrupt the host.
fn is_interrupt_given_up(index: &Index, node: &str) -> bool {
    let lease = index.picture.leases().get(node);
    let status = lease.and_then(|fact| fact.lease.as_ref().ok()?.status.as_ref());
    let parked = status.and_then(|status| status.parked.as_ref());
    parked.is_some_and(|one| matches!(one.stage, Stage::Interrupt | Stage::UninstallInterrupt))
}

/// The events when a Node becomes erroring, on the Node and on its Skyhook: the Skyhook's status may have no room for
/// the node.
fn of_failure(
    index: &Index,
    node_subject: &Subject,
    node: &str,
    skyhook: &str,
    reason: Option<NodeReason>,
) -> Vec<EventFact> {
    let lost = ReasonCode::NodeNotReturning.to_string();
    let is_lost = reason.as_ref().is_some_and(|why| why.reason == lost);
    let (code, action) = if is_lost {
        ("NodeNotReturning", None)
    } else if !is_given_up(reason.as_ref()) {
        ("PackageErroring", None)
    } else if is_interrupt_given_up(index, node) {
        ("Interrupt", Some("RestartLimitExceeded"))
    } else {
        ("GaveUp", None)
    };
    let why = reason.map(|reason| reason.message).unwrap_or_default();
    let event = |subject, note| EventFact {
        subject,
        warning: true,
        reason: code,
        action,
        note,
    };
    let mut events = vec![event(
        node_subject.clone(),
        format!("[skyhook:{skyhook}] {why}"),
    )];
    if let Some(fact) = index.picture.skyhooks().get(skyhook) {
        let subject = Subject::Skyhook {
            name: fact.name.clone(),
            uid: fact.uid.clone(),
        };
        events.push(event(subject, format!("node [{node}]: {why}")));
    }
    events
}

/// The events when a drain begins to wait for pods that must not be interrupted.
fn of_waiting(index: &Index, node: &str, drain: &Drain) -> Vec<EventFact> {
    let lease = index.picture.leases().get(node).map(|fact| &fact.lease);
    let was_waiting = lease.is_some_and(|lease| {
        lease
            .as_ref()
            .is_ok_and(|lease| lease.spec.drain.state == drain.state)
    });
    if was_waiting {
        return Vec::new();
    }
    let awaited = Some(BlockCause::NonInterruptLabels);
    let pods = drain.blockers.iter().filter(|one| one.cause == awaited);
    let pods: Vec<&str> = pods.map(|one| one.pod.as_str()).collect();
    let more = match drain.more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let note = |skyhook: &str| {
        format!(
            "node [{node}] waits for pods that podNonInterruptLabels of [skyhook:{skyhook}] matches: {}{more}",
            pods.join(", ")
        )
    };
    of_lease(index, node, "Drain", note)
}

/// Says which pods block a drain, the first time that any does. Later they come and go.
fn of_blocked(index: &Index, node: &str, drain: &Drain) -> Vec<EventFact> {
    let pods: Vec<String> = drain
        .blocking()
        .map(|(blocker, _)| format!("{}: {}", blocker.pod, blocker.reason))
        .collect();
    let clock = index.clocks.lease(node);
    if pods.is_empty() || clock.is_some_and(LeaseClock::was_blocked) {
        return Vec::new();
    }
    let note = |skyhook: &str| {
        format!(
            "node [{node}] cannot be drained for [skyhook:{skyhook}]: {}",
            pods.join("; ")
        )
    };
    of_lease(index, node, "DrainBlocked", note)
}

/// The events about a failure under a lease, on the Skyhook and on the Node.
fn of_lease(
    index: &Index,
    node: &str,
    reason: &'static str,
    note: impl Fn(&str) -> String,
) -> Vec<EventFact> {
    let Some(Ok(lease)) = index.picture.leases().get(node).map(|fact| &fact.lease) else {
        return Vec::new();
    };
    let spec = &lease.spec;
    let subjects = [
        Subject::Skyhook {
            name: spec.skyhook.name.clone(),
            uid: spec.skyhook.uid.clone(),
        },
        Subject::Node {
            name: spec.node.name.clone(),
            uid: spec.node.uid.clone(),
        },
    ];
    subjects
        .into_iter()
        .map(|subject| EventFact {
            subject,
            warning: true,
            reason,
            action: None,
            note: note(&spec.skyhook.name),
        })
        .collect()
}

#[cfg(test)]
mod tests;
