//! Events about the status of a Skyhook.

use std::collections::BTreeSet;

use skyhook_crds::skyhook::SkyhookStatus;

use super::{EventFact, Subject};
use crate::plan::reason::ReasonCode;
use crate::plan::{DELETION_BLOCKED, INVALID, NOT_FOUND, STOPPED};

pub(super) fn of_status(
    subject: &Subject,
    old: &SkyhookStatus,
    new: &SkyhookStatus,
) -> Vec<EventFact> {
    let event = |warning, reason, note| EventFact {
        subject: subject.clone(),
        warning,
        reason,
        action: None,
        note,
    };
    let mut events = Vec::new();
    if old.status != new.status {
        events.push(event(
            false,
            "State",
            format!("Skyhook transitioned [{}] -> [{}]", old.status, new.status),
        ));
    }
    let invalid = |status: &SkyhookStatus| {
        status
            .conditions
            .iter()
            .find(|c| c.type_ == "Ready" && c.reason == "Invalid")
            .map(|c| c.message.clone())
    };
    if let Some(problem) = invalid(new).filter(|problem| invalid(old).as_ref() != Some(problem)) {
        events.push(event(true, "Invalid", problem));
    }
    // States that last until somebody acts, in conditions of their own. What they say may become another thing meanwhile.
    for type_ in [NOT_FOUND, INVALID, STOPPED, DELETION_BLOCKED] {
        let of = |status: &SkyhookStatus| {
            let mut conditions = status.conditions.iter();
            let holds = conditions.find(|c| c.type_ == type_ && c.status == "True");
            holds.map(|condition| condition.message.clone())
        };
        let (Some(message), before) = (of(new), of(old)) else {
            continue;
        };
        let is_more = if type_ == STOPPED {
            !stopped(new).is_subset(&stopped(old))
        } else if type_ == DELETION_BLOCKED {
            // The message names nodes.
            why_blocked(new) != why_blocked(old)
        } else {
            before.as_ref() != Some(&message)
        };
        if before.is_none() || is_more {
            let reason = type_.trim_start_matches("skyhook.nvidia.com/");
            events.push(event(true, reason, message));
        }
    }
    // States that last until somebody acts.
    for reason in ["AgentsRefused", "Blocked"] {
        let of = |status: &SkyhookStatus| {
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            let ready = ready.filter(|ready| ready.reason == reason);
            ready.map(|ready| ready.message.clone())
        };
        if let (Some(message), None) = (of(new), of(old)) {
            events.push(event(true, reason, message));
        }
    }
    let zero = ReasonCode::BudgetZero.to_string();
    if new.reasons.contains_key(&zero) && !old.reasons.contains_key(&zero) {
        let note = "interruptionBudget is 0: no node is started until it is raised";
        events.push(event(true, "BudgetZero", note.to_owned()));
    }
    events
}

/// The reason why a deletion does not go on.
fn why_blocked(status: &SkyhookStatus) -> Option<&str> {
    let mut conditions = status.conditions.iter();
    let blocked = conditions.find(|condition| condition.type_ == DELETION_BLOCKED);
    blocked.map(|condition| condition.reason.as_str())
}

/// The names of the compartments that have stopped.
fn stopped(status: &SkyhookStatus) -> BTreeSet<&str> {
    let all = status.compartment_statuses.iter();
    let stopped = all.filter(|(_, one)| one.batch_state.as_ref().is_some_and(|s| s.should_stop));
    stopped.map(|(name, _)| name.as_str()).collect()
}
