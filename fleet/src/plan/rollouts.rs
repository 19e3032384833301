//! The batches of each Skyhook whose policy has any: what is written to the state of its roll-out, and what that allows for
//! its leases and nodes. The rules are in [`crate::batches`]; here they are fed.

mod ends;
mod initial;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skyhook_crds::policy::CompartmentId;
use skyhook_crds::rollout::batch::Counts;
use skyhook_crds::rollout::reset::{Asked, asked, asked_of_order};
use skyhook_crds::rollout::{self, CompartmentState, RolloutRevision, RolloutStateSpec};
use skyhook_crds::stage::Status;

use super::cache::BatchBits;
use super::ledger::Ledger;
use super::pacing::{Pacing, Place};
use super::reason::{Reason, ReasonCode};
use super::scan::{Order, Row};
use super::standing::Standing;
use super::{Draft, View, admit, seconds, version};
use crate::batches::{self, BatchRef, Decision, End, Hold, Lease, Look, Member, Rollout, Stored};
use crate::effect::{Effect, Target};
use crate::facts::{RolloutFact, SkyhookFact};

/// How long a completed roll-out is shown with the numbers of its last batch before it starts anew.
const SHOWN: Duration = Duration::from_secs(5);
/// The least time between two looks for leases.
const LOOKS: Duration = Duration::from_secs(1);

/// What is decided about the batches of one Skyhook.
#[derive(Debug, Default)]
pub(super) struct Batches {
    /// The state that decisions are made from; `None` while it is not known.
    pub(super) state: Option<Arc<RolloutStateSpec>>,
    /// UID of the stored state; empty before it is created.
    uid: String,
    /// Why nothing is decided.
    pub(super) problem: Option<Reason>,
    /// A batch is being opened, or the open one has nodes that get their leases now.
    pub(super) is_under_way: bool,
    /// The next `SKYHOOK_NODE_ORDER`, after what is written now; `None` while the state is not known.
    pub(super) next_order: Option<i64>,
    /// By node: number of the batch and `SKYHOOK_NODE_ORDER`.
    pub(super) reservable: BTreeMap<String, (i64, i64)>,
    pub(super) holds: BTreeMap<Place, Hold>,
    pub(super) counts: BTreeMap<Place, Counts>,
    /// By node.
    leases: BTreeMap<String, BatchBits>,
}

impl Batches {
    fn unknown(problem: Reason) -> Self {
        Self {
            problem: Some(problem),
            ..Self::default()
        }
    }

    /// What is allowed for the lease of a node.
    pub(super) fn bits(&self, node: &str) -> BatchBits {
        self.leases.get(node).copied().unwrap_or_default()
    }

    /// The batch that a node is leased in now, and its order.
    pub(super) fn batch_of(&self, node: &str) -> Option<(skyhook_crds::lease::BatchRef, i64)> {
        let (number, order) = *self.reservable.get(node)?;
        let state = self.uid.clone();
        Some((skyhook_crds::lease::BatchRef { state, number }, order))
    }

    /// True for the members of open batches.
    pub(super) fn has_member(&self, member: &str) -> bool {
        let states = self
            .state
            .iter()
            .flat_map(|state| state.compartments.values());
        let mut open = states.filter(|state| state.is_open());
        open.any(|state| state.position(member).is_some())
    }

    /// The standing of eligible nodes that no batch may lease now.
    pub(super) fn standing(&self, row: &Row<'_>, place: Place) -> Standing {
        if let Some(problem) = &self.problem {
            return Standing::Blocked(problem.clone());
        }
        if let Some(Hold::Stopped { .. }) = self.holds.get(&place) {
            let message = format!(
                "compartment {} has stopped after batches that failed; to start it again: kubectl skyhook \
                 deployment-policy reset {}",
                row.pacing.name(place),
                row.skyhook.name
            );
            return Standing::Blocked(Reason::new(ReasonCode::RolloutStopped, message));
        }
        // The message has no numbers. It is written on each Node that waits, and numbers would change with each batch.
        let message = "waits for a batch of its compartment";
        Standing::Waiting(Reason::new(ReasonCode::BatchUnderWay, message))
    }
}

/// Decides for all Skyhooks.
pub(super) fn decide(
    view: &View<'_>,
    rows: &mut [Row<'_>],
    order: &Order<'_>,
    ledger: &Ledger<'_>,
    draft: &mut Draft<'_>,
) {
    for row in rows {
        let skyhook = row.skyhook;
        let fact = view.picture.rollout_of(&skyhook.name);
        let has_batches = row.pacing.has_batches();
        let is_unknown = matches!(row.pacing, Pacing::Unknown);
        if skyhook.deleting || skyhook.checked.is_err() {
            continue;
        }
        if !has_batches && !is_unknown {
            if let Some(fact) = fact {
                delete_unused(view, skyhook, fact, draft);
            }
            continue;
        }
        if has_batches || fact.is_some() {
            row.batches = Some(one(view, row, order, ledger, draft));
        }
    }
}

/// Deletes the state of a roll-out without batches, once no lease belongs to a batch any more.
fn delete_unused(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    fact: &RolloutFact,
    draft: &mut Draft<'_>,
) {
    let mut leases = view.picture.leases().values();
    let is_used = leases.any(|lease| {
        let spec = lease.lease.as_ref().map(|lease| &lease.spec);
        spec.map_or(true, |spec| {
            spec.skyhook.uid == skyhook.uid && spec.batch.is_some()
        })
    });
    if !is_used && fact.spec.is_ok() {
        delete(fact, draft);
    }
}

fn delete(fact: &RolloutFact, draft: &mut Draft<'_>) {
    draft.push(Effect::DeleteRollout {
        name: fact.name.clone(),
        at: version(&fact.uid, &fact.resource_version),
    });
}

fn one(
    view: &View<'_>,
    row: &Row<'_>,
    order: &Order<'_>,
    ledger: &Ledger<'_>,
    draft: &mut Draft<'_>,
) -> Batches {
    let skyhook = row.skyhook;
    if !view.picture.knows_rollouts() {
        let message = "the state of the roll-out is not known yet";
        return Batches::unknown(Reason::new(ReasonCode::Settling, message));
    }
    let fact = view.picture.rollout_of(&skyhook.name);
    let state = match fact {
        Some(fact) if fact.owner != skyhook.uid => {
            delete(fact, draft);
            let message = "the state of an earlier Skyhook of this name is being deleted";
            return Batches::unknown(Reason::new(ReasonCode::Settling, message));
        }
        Some(fact) => match &fact.spec {
            Ok(spec) => Arc::clone(spec),
            Err(problem) => {
                let message = format!("RolloutState {}: {problem}", skyhook.name);
                return Batches::unknown(Reason::new(ReasonCode::NewerVersion, message));
            }
        },
        None => Arc::new(initial::state(view, row)),
    };
    let uid = fact.map_or("", |fact| fact.uid.as_str());
    let stored = Stored { uid, spec: &state };
    let leases = ends::leases(view, row, order);
    let members = ends::members(view, row, order, &leases);
    let mut decision = Decision::default();
    if let Pacing::Policy(paced) = &row.pacing
        && admit::inactive(view, skyhook).is_none()
    {
        let used = paced.compartments.all();
        let used = used.map(|(id, _)| (id, ledger.used_at(skyhook, Place(id.index()))));
        let used: BTreeMap<CompartmentId, usize> = used.collect();
        let left = view.clocks.left(&skyhook.name);
        let left: BTreeSet<(i64, String)> =
            left.map(|look| (look.batch, look.id.clone())).collect();
        let now = seconds(view.now.wall);
        let rollout = Rollout {
            compartments: &paced.compartments,
            stored,
            members: &members,
            leases: &leases,
            used: &used,
            free: ledger.room_in_all(),
            left: &left,
            least_order: row.next_order,
            now: &now,
        };
        let begun = begun_anew(view, row, &state, &members, draft);
        decision = if begun == *state {
            batches::decide(&rollout)
        } else {
            Decision {
                write: Some(begun),
                ..Decision::default()
            }
        };
    } else if !uid.is_empty() {
        // No batch is opened or judged now. Failures are kept all the same.
        let latched = batches::latched(&stored, &members, &leases);
        decision.write = (latched != *state).then_some(latched);
    }
    let after = decision.write.as_ref().unwrap_or(&state);
    let next_order = after.next_order;
    let is_under_way = after.next_batch > state.next_batch || !decision.reservable.is_empty();
    write(skyhook, fact, decision.write.take(), draft);
    look(skyhook, std::mem::take(&mut decision.looks), draft);
    let bits = bits(row, &stored, &leases);
    let counts = counts(row, order, &members);
    let holds = decision.holds.into_iter();
    let holds = holds.filter_map(|(name, hold)| Some((place_named(row, &name)?, hold)));
    Batches {
        uid: uid.to_owned(),
        problem: None,
        is_under_way,
        next_order: Some(next_order),
        reservable: decision.reservable,
        holds: holds.collect(),
        counts,
        leases: bits,
        state: Some(state),
    }
}

fn write(
    skyhook: &SkyhookFact,
    fact: Option<&RolloutFact>,
    spec: Option<RolloutStateSpec>,
    draft: &mut Draft<'_>,
) {
    if let Some(spec) = spec {
        draft.push(Effect::WriteRollout {
            name: skyhook.name.clone(),
            skyhook_uid: skyhook.uid.clone(),
            at: fact.map(|fact| version(&fact.uid, &fact.resource_version)),
            spec: Box::new(spec),
        });
    }
}

fn look(skyhook: &SkyhookFact, looks: Vec<Look>, draft: &mut Draft<'_>) {
    let target = Target::Look(skyhook.name.clone());
    if !looks.is_empty() && !draft.is_within(&target, LOOKS) {
        draft.push(Effect::LookForLeases {
            skyhook: skyhook.name.clone(),
            looks,
        });
    }
}

fn place_named(row: &Row<'_>, name: &str) -> Option<Place> {
    let mut all = row.pacing.all();
    all.find(|(_, one)| *one == name).map(|(place, _)| place)
}

/// The state after everything by which compartments or the numbers of nodes start anew: another policy, a new version of a
/// package, an edit of the Skyhook's status, a completed roll-out.
fn begun_anew(
    view: &View<'_>,
    row: &Row<'_>,
    state: &RolloutStateSpec,
    members: &[Member<'_>],
    draft: &mut Draft<'_>,
) -> RolloutStateSpec {
    let skyhook = row.skyhook;
    let mut next = state.clone();
    next.follow_policy(&skyhook.spec.deployment_policy);
    let resets = resets(row);
    if let Some(wanted) = wanted_revision(view, skyhook) {
        next.follow(&wanted, resets);
    }
    let shown = skyhook.status.iter().flat_map(|s| &s.compartment_statuses);
    for (name, status) in shown {
        if let Some(state) = next.compartments.get_mut(name)
            && asked(status, state.run) == Asked::Reset
        {
            state.reset();
        }
    }
    let is_complete = members.iter().all(|member| member.end == End::Complete);
    let is_new = |state: &CompartmentState| *state == CompartmentState::new(state.run);
    let is_over = is_complete && !members.is_empty() && !next.compartments.values().all(is_new);
    if resets && is_over && is_shown(view, skyhook, draft) {
        next.reset();
    }
    let status = skyhook.status.as_ref();
    if status.is_some_and(|status| asked_of_order(status, next.order_run) == Asked::Reset) {
        next.reset_order(row.next_order);
    }
    next
}

/// The revision that is rolled out, once it is stored.
fn wanted_revision(view: &View<'_>, skyhook: &SkyhookFact) -> Option<RolloutRevision> {
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

/// What is allowed for each lease.
fn bits(row: &Row<'_>, stored: &Stored<'_>, leases: &[Lease<'_>]) -> BTreeMap<String, BatchBits> {
    let core = batches::Batches { stored: *stored };
    let barrier = |lease: &Lease<'_>| match &row.pacing {
        Pacing::Policy(paced) => paced
            .compartments
            .named(lease.compartment)
            .or(lease.present),
        Pacing::Budget | Pacing::Unknown => None,
    };
    let mut unended: BTreeMap<Option<CompartmentId>, BTreeSet<Option<BatchRef<'_>>>> =
        BTreeMap::new();
    for lease in leases.iter().filter(|lease| lease.end == End::Not) {
        unended
            .entry(barrier(lease))
            .or_default()
            .insert(lease.batch);
    }
    let of = |lease: &Lease<'_>| {
        let own = barrier(lease);
        let pace = own.and_then(|id| row.pacing.pace(Place(id.index())));
        let batch = lease.batch.as_ref();
        let is_newer = batch.is_some_and(|batch| core.is_newer(batch));
        let is_named = batch.is_some_and(|b| core.names(lease.compartment, b, lease.id));
        let is_alone = unended
            .get(&own)
            .is_none_or(|all| all.iter().all(|other| *other == lease.batch));
        BatchBits {
            is_out: pace.is_some() && !is_newer && !is_named,
            may_grant: pace.is_none() || (is_named && is_alone),
            may_release: core.may_release(lease),
        }
    };
    leases
        .iter()
        .map(|lease| (lease.node.to_owned(), of(lease)))
        .collect()
}

fn counts(row: &Row<'_>, order: &Order<'_>, members: &[Member<'_>]) -> BTreeMap<Place, Counts> {
    let mut counts: BTreeMap<Place, Counts> = BTreeMap::new();
    let mut members = members.iter().peekable();
    for (name, id) in order {
        let Some(member) = members.next_if(|member| member.node == *name) else {
            continue;
        };
        let of = counts.entry(row.pacing.place(*id)).or_default();
        of.matched += 1;
        match member.end {
            End::Complete => of.complete += 1,
            End::Failed => of.failed += 1,
            End::Not => {}
        }
    }
    counts
}
