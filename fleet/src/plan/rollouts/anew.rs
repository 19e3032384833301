//! When the compartments of a roll-out, or the numbers of its nodes, start anew: another policy, a new version of a
//! package, an edit of the Skyhook's status, a completed roll-out.

use std::collections::BTreeSet;
use std::time::Duration;

use skyhook_crds::rollout::batch::Counts;
use skyhook_crds::rollout::reset::{Asked, asked, asked_of_order};
use skyhook_crds::rollout::{self, CompartmentState, RolloutRevision, RolloutStateSpec};
use skyhook_crds::stage::Status;

use crate::batches::{End, Member};
use crate::facts::SkyhookFact;
use crate::plan::pacing::Pacing;
use crate::plan::scan::Row;
use crate::plan::{Draft, View, seconds};

/// How long a completed roll-out is shown with the numbers of its last batch before it starts anew.
const SHOWN: Duration = Duration::from_secs(5);

/// The state after everything by which compartments or the numbers of nodes start anew: another policy, a new version of a
/// package, an edit of the Skyhook's status, a completed roll-out.
pub(super) fn begun(
    view: &View<'_>,
    row: &Row<'_>,
    state: &RolloutStateSpec,
    members: &[Member<'_>],
    draft: &mut Draft<'_>,
) -> RolloutStateSpec {
    let skyhook = row.skyhook;
    let mut next = state.clone();
    next.follow_policy(&skyhook.spec.deployment_policy, skyhook.generation);
    add_missing(row, &mut next);
    let resets = resets(row);
    let is_complete =
        !members.is_empty() && members.iter().all(|member| member.end == End::Complete);
    if let Some(wanted) = wanted_revision(view, skyhook) {
        // Members of the last batches are no members of the first ones at another revision. If a reset was to follow, it
        // follows now.
        if wanted.number > next.revision.number && was_complete(skyhook, &next) {
            if !resets {
                close(view, row, members, &mut next);
            } else if !is_new(&next) {
                next.reset();
            }
        }
        next.follow(&wanted, resets);
    }
    if is_complete && !resets {
        close(view, row, members, &mut next);
    }
    let shown = skyhook.status.iter().flat_map(|s| &s.compartment_statuses);
    for (name, status) in shown {
        if let Some(state) = next.compartments.get_mut(name)
            && asked(status, state.run) == Asked::Reset
        {
            state.reset();
        }
    }
    if resets && is_complete && !is_new(&next) && is_shown(view, skyhook, draft) {
        next.reset();
    }
    let status = skyhook.status.as_ref();
    if status.is_some_and(|status| asked_of_order(status, next.order_run) == Asked::Reset) {
        next.reset_order(row.next_order);
    }
    next
}

/// True when nothing has happened in any compartment since it started anew.
fn is_new(state: &RolloutStateSpec) -> bool {
    let mut all = state.compartments.values();
    all.all(|one| *one == CompartmentState::new(one.run))
}

/// True when the stored status says that every node was complete at the revision that the state is about.
fn was_complete(skyhook: &SkyhookFact, state: &RolloutStateSpec) -> bool {
    let status = skyhook.status.as_ref();
    status.is_some_and(|status| {
        status.status == Status::Complete && status.revision == state.revision.name
    })
}

/// Judges and closes the open batches of a roll-out in which every node is complete. A failure that was seen counts, also
/// when the node has recovered since.
fn close(view: &View<'_>, row: &Row<'_>, members: &[Member<'_>], next: &mut RolloutStateSpec) {
    let now = seconds(view.now.wall);
    let counts = Counts {
        matched: members.len(),
        complete: members.len(),
        failed: 0,
    };
    let there: BTreeSet<&str> = members.iter().map(|member| member.id).collect();
    for (place, name) in row.pacing.all() {
        let state = next.compartments.get_mut(name).filter(|s| s.is_open());
        let (Some(pace), Some(state)) = (row.pacing.pace(place), state) else {
            continue;
        };
        let all = state.members.iter().enumerate();
        let ok = all.filter(|(at, id)| !state.has_failed(*at) && there.contains(id.as_str()));
        let ok = ok.count();
        state.judge(pace, ok, &counts, &now);
    }
}

/// Adds compartments that the policy paces again. The status still shows the run that they had: a new one comes after it,
/// or nobody could tell an edit of that status from an old copy of the state.
fn add_missing(row: &Row<'_>, next: &mut RolloutStateSpec) {
    let shown = row
        .skyhook
        .status
        .iter()
        .flat_map(|s| &s.compartment_statuses);
    for (name, status) in shown {
        let Some(run) = status.run.filter(|run| *run > 1) else {
            continue;
        };
        let mut places = row.pacing.all().filter(|(_, one)| one == name);
        let is_paced = places.any(|(place, _)| row.pacing.pace(place).is_some());
        if is_paced && !next.compartments.contains_key(name) {
            let state = CompartmentState::new(run.saturating_add(1));
            next.compartments.insert(name.clone(), state);
        }
    }
}

/// The revision that is rolled out, once it is stored.
pub(super) fn wanted_revision(view: &View<'_>, skyhook: &SkyhookFact) -> Option<RolloutRevision> {
    let checked = skyhook.checked.as_ref().ok()?;
    let stored = view.picture.revisions().get(&checked.revision)?;
    Some(RolloutRevision {
        name: checked.revision.clone(),
        number: stored.number,
        versions: rollout::versions(&checked.data.packages),
    })
}

/// True when compartments start anew after completion and with a new version.
fn resets(row: &Row<'_>) -> bool {
    let options = row.skyhook.spec.deployment_policy_options.as_ref();
    let own = options.and_then(|options| options.reset_batch_state_on_completion);
    own.unwrap_or(match &row.pacing {
        Pacing::Policy(paced) => paced.policy.resets,
        Pacing::Budget | Pacing::Unknown => true,
    })
}

/// True when the stored status has said for a while that the roll-out is complete.
fn is_shown(view: &View<'_>, skyhook: &SkyhookFact, draft: &mut Draft<'_>) -> bool {
    let Some(status) = skyhook
        .status
        .as_ref()
        .filter(|s| s.status == Status::Complete)
    else {
        return false;
    };
    let mut conditions = status.conditions.iter();
    let ready = conditions.find(|one| one.type_ == "Ready" && one.status == "True");
    let Some(since) = ready.map(|ready| ready.last_transition_time.0) else {
        return false;
    };
    let passed = Duration::try_from(view.now.wall.duration_since(since)).unwrap_or_default();
    if let Some(left) = SHOWN.checked_sub(passed).filter(|left| !left.is_zero()) {
        draft.wake_at(view.now.mono + left);
        return false;
    }
    true
}
