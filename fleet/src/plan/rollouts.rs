//! The batches of each Skyhook whose policy has any: what is written to the state of its roll-out, and what that allows for
//! its leases and nodes. The rules are in [`crate::batches`]; here they are fed.

mod anew;
mod ends;
mod initial;
mod unused;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skyhook_crds::policy::CompartmentId;
use skyhook_crds::rollout::RolloutStateSpec;
use skyhook_crds::rollout::batch::Counts;

use super::cache::BatchBits;
use super::ledger::Ledger;
use super::pacing::{Pacing, Place};
use super::reason::{Reason, ReasonCode};
use super::scan::{Order, Row};
use super::standing::Standing;
use super::{Draft, REMEMBERED, View, admit, seconds, version};
use crate::batches::{self, BatchRef, Decision, End, Hold, Lease, Look, Member, Rollout, Stored};
use crate::effect::{Effect, Target};
use crate::facts::{Goal, RolloutFact, SkyhookFact};
use crate::picture::Kind;

/// The least time between two looks, for each hundred leases that a list has.
const LOOKS: Duration = Duration::from_secs(1);
/// The longest time between two looks.
const LOOKS_AT_MOST: Duration = Duration::from_secs(30);
const _: () = assert!(LOOKS_AT_MOST.as_secs() < REMEMBERED.as_secs());

/// What is decided about the batches of one Skyhook.
#[derive(Debug, Default)]
pub(super) struct Batches {
    /// The state that decisions are made from; `None` while it is not known.
    pub(super) state: Option<Arc<RolloutStateSpec>>,
    /// UID of the stored state; empty before it is created.
    uid: String,
    /// Why nothing is decided.
    pub(super) problem: Option<Reason>,
    /// The states of roll-outs are being listed. What Nodes and the status say stays as it is meanwhile.
    pub(super) is_listing: bool,
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

/// The batch that a node is leased in.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    /// The compartment that opened the batch. The node's labels may have moved it to another one since.
    pub(super) compartment: String,
    pub(super) batch: skyhook_crds::lease::BatchRef,
    /// `SKYHOOK_NODE_ORDER`.
    pub(super) order: i64,
}

impl Batches {
    /// While the state is not known, nothing is granted in compartments with batches. The others go on, unless a newer
    /// version wrote the state. Nobody knows whether the failures of batches are kept, so only leases of no batch may end.
    fn unknown(problem: Reason, row: &Row<'_>, leases: &[Lease<'_>]) -> Self {
        let goes_on = problem.code != ReasonCode::NewerVersion;
        let of = |lease: &Lease<'_>| {
            let barrier = barrier(row, lease);
            let is_paced = barrier.is_none_or(|id| row.pacing.pace(Place(id.index())).is_some());
            BatchBits {
                may_grant: goes_on && lease.batch.is_none() && !is_paced,
                may_release: lease.batch.is_none(),
                ..BatchBits::default()
            }
        };
        let leases = leases.iter().map(|one| (one.node.to_owned(), of(one)));
        Self {
            problem: Some(problem),
            leases: leases.collect(),
            ..Self::default()
        }
    }

    /// Why no node at all of the Skyhook is leased: a newer version wrote the state of the roll-out, or it cannot be read.
    pub(super) fn parks(&self) -> Option<&Reason> {
        let problem = self.problem.as_ref();
        problem.filter(|problem| problem.code == ReasonCode::NewerVersion)
    }

    /// True once there is a stored state.
    pub(super) fn is_stored(&self) -> bool {
        !self.uid.is_empty()
    }

    /// What is allowed for the lease of a node. A lease of an earlier Skyhook of this name has no part in its batches.
    pub(super) fn bits(&self, node: &str) -> BatchBits {
        self.leases.get(node).copied().unwrap_or(BatchBits::ANY)
    }

    /// The batch that a node is leased in now.
    pub(super) fn batch_of(&self, node: &str) -> Option<Membership> {
        let (number, order) = *self.reservable.get(node)?;
        let mut all = self.state.as_ref()?.compartments.iter();
        let (compartment, _) = all.find(|(_, state)| state.batch == number)?;
        Some(Membership {
            compartment: compartment.clone(),
            batch: skyhook_crds::lease::BatchRef {
                state: self.uid.clone(),
                number,
            },
            order,
        })
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
        // Nothing is decided meanwhile. What fails is kept all the same.
        let is_unknown = matches!(row.pacing, Pacing::Unknown) || skyhook.checked.is_err();
        if skyhook.goal() == Goal::Nothing {
            // Somebody else's finalizer may keep the Skyhook for long.
            if let Some(fact) = fact.filter(|fact| fact.owner == skyhook.uid) {
                unused::delete_unused(view, skyhook, fact, draft);
            }
            continue;
        }
        if !has_batches && !is_unknown {
            if let Some(fact) = fact {
                unused::delete_unused(view, skyhook, fact, draft);
            }
            continue;
        }
        if has_batches || fact.is_some() || unused::has_lease_in_batch(view, skyhook) {
            row.batches = Some(one(view, row, order, ledger, draft));
        }
    }
}

/// The stored state, or that of a roll-out that has none yet. An error says why it is not known.
fn stored<'a>(
    view: &View<'a>,
    row: &Row<'_>,
    draft: &mut Draft<'_>,
) -> Result<(Option<&'a RolloutFact>, Arc<RolloutStateSpec>), Reason> {
    let skyhook = row.skyhook;
    if !view.picture.knows_rollouts() {
        return Err(match view.picture.unlistable(Kind::Rollout) {
            Some(why) => {
                let message = format!(
                    "the states of roll-outs (rolloutstates.skyhook.nvidia.com) cannot be read: {why}"
                );
                Reason::new(ReasonCode::RolloutStateRefused, message)
            }
            None => Reason::new(
                ReasonCode::Settling,
                "the state of the roll-out is not known yet",
            ),
        });
    }
    let fact = view.picture.rollout_of(&skyhook.name);
    let state = match fact {
        Some(fact) if fact.owner != skyhook.uid => {
            unused::delete(fact, Some(&fact.owner), draft);
            let message = "the state of an earlier Skyhook of this name is being deleted";
            return Err(Reason::new(ReasonCode::Settling, message));
        }
        Some(fact) => match &fact.spec {
            Ok(spec) => Arc::clone(spec),
            Err(problem) => {
                let message = format!("RolloutState {}: {problem}", skyhook.name);
                return Err(Reason::new(ReasonCode::NewerVersion, message));
            }
        },
        None => Arc::new(initial::state(view, row)),
    };
    Ok((fact, state))
}

fn one(
    view: &View<'_>,
    row: &Row<'_>,
    order: &Order<'_>,
    ledger: &Ledger<'_>,
    draft: &mut Draft<'_>,
) -> Batches {
    let skyhook = row.skyhook;
    let leases = ends::leases(view, row, order);
    let (fact, state) = match stored(view, row, draft) {
        Ok(stored) => stored,
        Err(problem) => {
            let picture = view.picture;
            let is_told = picture.unlistable(Kind::Rollout).is_some();
            return Batches {
                is_listing: !picture.knows_rollouts() && !is_told,
                ..Batches::unknown(problem, row, &leases)
            };
        }
    };
    let uid = fact.map_or("", |fact| fact.uid.as_str());
    let stored = Stored { uid, spec: &state };
    let members = ends::members(view, row, order, ledger, &leases);
    let mut decision = Decision::default();
    let problem = refused(view, skyhook);
    let mut is_under_way = false;
    // A copy of the Skyhook that is older than what was decided on says nothing about what comes next.
    let is_behind = skyhook.generation < state.policy_generation;
    if let Pacing::Policy(paced) = &row.pacing
        && skyhook.checked.is_ok()
        && admit::inactive(view, skyhook).is_none()
        && !is_behind
    {
        let used = paced.compartments.all();
        let used = used.map(|(id, _)| (id, ledger.used_at(skyhook, Place(id.index()))));
        let used: BTreeMap<CompartmentId, usize> = used.collect();
        let left = view.clocks.left(&skyhook.name);
        let left = left.filter(|look| look.state == uid);
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
        (decision, is_under_way) = decided(view, row, &rollout, problem.as_ref(), draft);
        if fact.is_none() && decision.write.is_none() && !initial::is_new(&state) {
            decision.write = Some((*state).clone());
        }
    } else if !uid.is_empty() {
        // No batch is opened or judged now. Failures are kept all the same.
        let latched = batches::latched(&stored, &members, &leases);
        decision.write = (latched != *state).then_some(latched);
    }
    let next_order = decision.write.as_ref().unwrap_or(&state).next_order;
    let is_to_be_disowned = skyhook.deleting && fact.is_some_and(|fact| fact.goes_with_owner);
    if is_to_be_disowned && decision.write.is_none() {
        decision.write = Some((*state).clone());
    }
    write(skyhook, fact, decision.write.take(), draft);
    look_for_states(view, skyhook, &stored, &leases, draft);
    look(view, skyhook, std::mem::take(&mut decision.looks), draft);
    let bits = bits(view, row, &stored, &leases);
    let counts = counts(row, order, &members);
    let holds = decision.holds.into_iter();
    let holds = holds.filter_map(|(name, hold)| Some((place_named(row, &name)?, hold)));
    Batches {
        uid: uid.to_owned(),
        is_listing: false,
        problem,
        is_under_way,
        next_order: Some(next_order),
        reservable: decision.reservable,
        holds: holds.collect(),
        counts,
        leases: bits,
        state: Some(state),
    }
}

/// What is decided, and whether a batch is being opened, or the open one has nodes that get their leases now.
fn decided(
    view: &View<'_>,
    row: &Row<'_>,
    rollout: &Rollout<'_>,
    problem: Option<&Reason>,
    draft: &mut Draft<'_>,
) -> (Decision, bool) {
    let state = rollout.stored.spec;
    let begun = anew::begun(view, row, state, rollout.members, draft);
    if begun == *state {
        let decision = batches::decide(rollout);
        let is_under_way = goes_on(state, &decision, problem);
        return (decision, is_under_way);
    }
    // What is held up after that write is held up now, and what goes on then goes on now: nothing else is shown in between.
    let stored = Stored {
        uid: rollout.stored.uid,
        spec: &begun,
    };
    let after = batches::decide(&Rollout { stored, ..*rollout });
    let is_under_way = goes_on(&begun, &after, problem);
    let decision = Decision {
        write: Some(begun),
        holds: after.holds,
        ..Decision::default()
    };
    (decision, is_under_way)
}

/// True when a batch is opened from `state`, or nodes of the open one get their leases now.
fn goes_on(state: &RolloutStateSpec, decision: &Decision, problem: Option<&Reason>) -> bool {
    let write = decision.write.as_ref().filter(|_| problem.is_none());
    let opens = write.is_some_and(|write| write.next_batch > state.next_batch);
    opens || !decision.reservable.is_empty()
}

/// Why no further batch can be opened: the API server refuses to store the state.
fn refused(view: &View<'_>, skyhook: &SkyhookFact) -> Option<Reason> {
    let why = view.clocks.state_refused(&skyhook.name)?;
    let message = format!("the state of the roll-out cannot be stored: {why}");
    Some(Reason::new(ReasonCode::RolloutStateRefused, message))
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
            goes_with_owner: !skyhook.deleting,
            at: fact.map(|fact| version(&fact.uid, &fact.resource_version)),
            spec: Box::new(spec),
        });
    }
}

fn look(view: &View<'_>, skyhook: &SkyhookFact, looks: Vec<Look>, draft: &mut Draft<'_>) {
    let target = Target::Look(skyhook.name.clone());
    let hundreds = view.picture.leases().len().div_ceil(100).max(1);
    let hundreds = u32::try_from(hundreds).unwrap_or(u32::MAX);
    let pace = LOOKS.saturating_mul(hundreds).min(LOOKS_AT_MOST);
    if !looks.is_empty() && !draft.is_within(&target, pace) {
        draft.push(Effect::LookForLeases {
            skyhook: skyhook.name.clone(),
            skyhook_uid: skyhook.uid.clone(),
            looks,
        });
    }
}

/// Looks for states that leases name and that are not the one in the picture. The picture may be the older one.
fn look_for_states(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    stored: &Stored<'_>,
    leases: &[Lease<'_>],
    draft: &mut Draft<'_>,
) {
    let named = leases.iter().filter_map(|lease| lease.batch);
    let others = named
        .map(|batch| batch.state)
        .filter(|state| *state != stored.uid && !view.clocks.is_state_gone(&skyhook.name, state));
    let states: BTreeSet<&str> = others.collect();
    let target = Target::Look(skyhook.name.clone());
    if !states.is_empty() && !draft.is_within(&target, LOOKS) {
        draft.push(Effect::LookForState {
            skyhook: skyhook.name.clone(),
            states: states.into_iter().map(str::to_owned).collect(),
        });
    }
}

fn place_named(row: &Row<'_>, name: &str) -> Option<Place> {
    let mut all = row.pacing.all();
    all.find(|(_, one)| *one == name).map(|(place, _)| place)
}

/// The compartment whose batches a lease holds up.
fn barrier(row: &Row<'_>, lease: &Lease<'_>) -> Option<CompartmentId> {
    match &row.pacing {
        Pacing::Policy(paced) => paced
            .compartments
            .named(lease.compartment)
            .or(lease.present),
        Pacing::Budget | Pacing::Unknown => None,
    }
}

/// What is allowed for each lease.
fn bits(
    view: &View<'_>,
    row: &Row<'_>,
    stored: &Stored<'_>,
    leases: &[Lease<'_>],
) -> BTreeMap<String, BatchBits> {
    let core = batches::Batches::new(*stored);
    let mut unended: BTreeMap<Option<CompartmentId>, BTreeSet<Option<BatchRef<'_>>>> =
        BTreeMap::new();
    for lease in leases.iter().filter(|lease| lease.end == End::Not) {
        unended
            .entry(barrier(row, lease))
            .or_default()
            .insert(lease.batch);
    }
    let of = |lease: &Lease<'_>| {
        let own = barrier(row, lease);
        let pace = own.and_then(|id| row.pacing.pace(Place(id.index())));
        let batch = lease.batch.as_ref();
        let name = &row.skyhook.name;
        let is_gone = batch.is_some_and(|batch| view.clocks.is_state_gone(name, batch.state));
        let is_newer = !is_gone && batch.is_some_and(|batch| core.is_newer(batch));
        let is_named = batch.is_some_and(|b| core.names(lease.compartment, b, lease.id));
        let is_alone = unended
            .get(&own)
            .is_none_or(|all| all.iter().all(|other| *other == lease.batch));
        BatchBits {
            is_out: (pace.is_some() || batch.is_some()) && !is_newer && !is_named,
            may_grant: pace.is_none() || (is_named && is_alone),
            may_release: is_gone || core.may_release(lease),
            ..BatchBits::default()
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
