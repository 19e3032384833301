//! What a Skyhook's status says of its compartments.

use std::collections::BTreeMap;

use skyhook_crds::conditions::Wanted;
use skyhook_crds::rollout::CompartmentState;
use skyhook_crds::rollout::reset::{Asked, asked, digest};
use skyhook_crds::skyhook::{CompartmentStatus, SkyhookStatus};

use super::message::names_of;
use super::{Status, Summary, number};
use crate::batches::Hold;
use crate::plan::View;
use crate::plan::ledger::Ledger;
use crate::plan::pacing::{Pacing, Place};
use crate::plan::scan::Row;

/// Progress by compartment. While the policy or the spec is not valid, entries that are not known now stay as they are:
/// they may be the only copy of where a roll-out stands, or an edit that has not been obeyed.
pub(super) fn statuses(
    row: &Row<'_>,
    summary: &Summary<'_>,
    ledger: &Ledger<'_>,
    current: &SkyhookStatus,
) -> BTreeMap<String, CompartmentStatus> {
    // Nodes, nodes in progress, and complete ones.
    let mut counts: BTreeMap<Place, [usize; 3]> = BTreeMap::new();
    for shown in &summary.nodes {
        let of = counts.entry(row.pacing.place(shown.id)).or_default();
        of[0] += 1;
        of[1] += usize::from(matches!(
            shown.status,
            Status::InProgress | Status::Erroring
        ));
        of[2] += usize::from(shown.complete);
    }
    let all = row.pacing.all().map(|(place, name)| {
        let [matched, in_progress, complete] = counts.get(&place).copied().unwrap_or_default();
        let status = CompartmentStatus {
            matched: number(matched),
            ceiling: number(ledger.ceiling_at(row.skyhook, place)),
            in_progress: number(in_progress),
            completed: number(complete),
            progress_percent: number((complete * 100).checked_div(matched).unwrap_or(100)),
            ..CompartmentStatus::default()
        };
        let there = current.compartment_statuses.get(name);
        (name.to_owned(), with_batches(row, place, status, there))
    });
    let is_unknown = matches!(row.pacing, Pacing::Unknown) || row.skyhook.checked.is_err();
    let mut statuses = if is_unknown {
        current.compartment_statuses.clone()
    } else {
        BTreeMap::new()
    };
    statuses.extend(all);
    statuses
}

/// Adds where the batches of a compartment stand. While somebody's edit is not obeyed, it stays as it is.
fn with_batches(
    row: &Row<'_>,
    place: Place,
    status: CompartmentStatus,
    there: Option<&CompartmentStatus>,
) -> CompartmentStatus {
    let kept = || CompartmentStatus {
        batch_state: there.and_then(|there| there.batch_state.clone()),
        run: there.and_then(|there| there.run),
        published: there.and_then(|there| there.published.clone()),
        ..status.clone()
    };
    let is_known = !matches!(row.pacing, Pacing::Unknown) && row.skyhook.checked.is_ok();
    if row.pacing.pace(place).is_none() && is_known {
        return status;
    }
    let Some(batches) = &row.batches else {
        return kept();
    };
    // A Skyhook whose spec is not valid selects no node, so there is nothing to count.
    let known = batches.state.as_ref();
    let Some(state) = known.filter(|_| row.skyhook.checked.is_ok()) else {
        return kept();
    };
    let fresh = CompartmentState::new(1);
    let state = state.compartments.get(row.pacing.name(place));
    let state = state.unwrap_or(&fresh);
    match there.map(|there| asked(there, state.run)) {
        Some(Asked::Reset | Asked::StateIsOld) => kept(),
        Some(Asked::Nothing | Asked::Publish) | None => {
            let counts = batches.counts.get(&place).copied().unwrap_or_default();
            let batch = state.shown(counts.complete, counts.failed);
            CompartmentStatus {
                run: Some(state.run),
                published: Some(digest(&batch)),
                batch_state: Some(batch),
                ..status
            }
        }
    }
}

/// Why compartments open no batch, for people.
pub(super) fn holds(row: &Row<'_>, ledger: &Ledger<'_>) -> Vec<String> {
    let holds = row.batches.iter().flat_map(|batches| &batches.holds);
    let said = holds.map(|(place, hold)| {
        let name = row.pacing.name(*place);
        match hold {
            Hold::Stopped { since, failures } => {
                format!("compartment {name} has stopped after {failures} failed batches in a row, since {since}")
            }
            Hold::Cap => format!("compartment {name} waits for a slot: {}", ledger.use_of_cap()),
            Hold::Slots { by, .. } if by.is_empty() => format!(
                "compartment {name} has no free slot: leases that cannot be decoded count in every compartment"
            ),
            Hold::Slots { by, failed, ceiling } => {
                let by: Vec<&str> = by.iter().map(String::as_str).collect();
                let failed = match failed {
                    0 => String::new(),
                    failed => format!(", {failed} of them by nodes that failed"),
                };
                format!(
                    "compartment {name} has no free slot: {} of {ceiling} are held{failed}: {}",
                    by.len(),
                    names_of(&by)
                )
            }
            Hold::EarlierBatch { by } => {
                let by: Vec<&str> = by.iter().map(String::as_str).collect();
                format!("compartment {name} waits for the end of an earlier batch: {}", names_of(&by))
            }
        }
    });
    said.collect()
}

pub(crate) const NOT_FOUND: &str = "skyhook.nvidia.com/DeploymentPolicyNotFound";
pub(crate) const INVALID: &str = "skyhook.nvidia.com/DeploymentPolicyInvalid";
pub(crate) const STOPPED: &str = "skyhook.nvidia.com/RolloutStopped";
/// Conditions of compartments that are there only while they are true.
pub(super) const WHILE_TRUE: [&str; 3] = [NOT_FOUND, INVALID, STOPPED];

/// True unless the policy is known and no longer has the compartment, or no longer paces it.
fn may_be_paced(row: &Row<'_>, name: &str) -> bool {
    let is_known = matches!(row.pacing, Pacing::Policy(_)) && row.skyhook.checked.is_ok();
    let mut places = row.pacing.all().filter(|(_, one)| *one == name);
    !is_known || places.any(|(place, _)| row.pacing.pace(place).is_some())
}

/// What the stored status says about compartments that have stopped, while the state of the roll-out is not known: nobody
/// has started them again.
fn stop_told_before(row: &Row<'_>) -> Option<String> {
    let is_known = row.batches.as_ref().is_some_and(|all| all.state.is_some());
    let may_have_batches = row.pacing.has_batches() || matches!(row.pacing, Pacing::Unknown);
    let status = row.skyhook.status.as_ref();
    let status = status.filter(|_| may_have_batches && !is_known)?;
    let mut conditions = status.conditions.iter();
    let told = conditions.find(|one| one.type_ == STOPPED && one.status == "True");
    told.map(|condition| condition.message.clone())
}

/// Conditions about the policy and about compartments that have stopped.
pub(super) fn conditions(view: &View<'_>, row: &Row<'_>) -> Vec<Wanted> {
    let name = &row.skyhook.spec.deployment_policy;
    let policy = view.picture.policies().get(name);
    let is_missing = !name.is_empty() && policy.is_none();
    let problem = policy.and_then(|policy| policy.checked.as_ref().err());
    let stopped: Vec<String> = row
        .batches
        .iter()
        .flat_map(|batches| &batches.state)
        .flat_map(|state| &state.compartments)
        .filter(|(name, state)| state.stopped.is_some() && may_be_paced(row, name))
        .map(|(name, _)| name.clone())
        .collect();
    let told = (!stopped.is_empty()).then(|| {
        format!(
            "stopped after batches that failed: {}; to start again: kubectl skyhook deployment-policy reset {}",
            stopped.join(", "),
            row.skyhook.name
        )
    });
    let table = [
        (
            NOT_FOUND,
            is_missing.then(|| format!("DeploymentPolicy {name:?} not found")),
        ),
        (
            INVALID,
            problem.map(|problem| format!("DeploymentPolicy {name:?} is not valid: {problem}")),
        ),
        (STOPPED, told.or_else(|| stop_told_before(row))),
    ];
    let said = table.into_iter().filter_map(|(type_, message)| {
        let reason = type_.trim_start_matches("skyhook.nvidia.com/");
        Some(Wanted::new(type_, true, reason, message?))
    });
    said.collect()
}
