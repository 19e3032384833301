//! What is written next about the batches of a Skyhook, and which nodes may be leased.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::policy::{CheckedCompartment, CompartmentId, Pace};
use skyhook_crds::rollout::batch::{Counts, Room, Size};
use skyhook_crds::rollout::{CompartmentState, RolloutStateSpec};

use super::{BatchRef, Decision, End, Hold, Lease, Look, Member, Rollout, Stored};

/// Decides for all compartments of one Skyhook.
#[must_use]
pub fn decide(rollout: &Rollout<'_>) -> Decision {
    let mut decision = Decision::default();
    let mut next = latched(&rollout.stored, rollout.members, rollout.leases);
    let mut members = rollout.members.iter();
    let is_complete = members.all(|member| member.end == End::Complete);
    let known = Known::new(rollout);
    let mut free = rollout.free;
    for (id, compartment) in rollout.compartments.all() {
        let Some(pace) = &compartment.pace else {
            continue;
        };
        let one = Compartment {
            rollout,
            known: &known,
            id,
            compartment,
            pace,
        };
        one.decide(&mut next, &mut free, is_complete, &mut decision);
    }
    forget(rollout, &mut next);
    if next != *rollout.stored.spec {
        decision.write = Some(next);
    }
    decision
}

/// The stored state, with the failures of all members of open batches kept in it, also of compartments that the policy no
/// longer has.
#[must_use]
pub fn latched(
    stored: &Stored<'_>,
    members: &[Member<'_>],
    leases: &[Lease<'_>],
) -> RolloutStateSpec {
    let mut next = stored.spec.clone();
    let failed = |end: End| end == End::Failed;
    let members = members.iter().filter(|member| failed(member.end));
    let nodes: BTreeSet<&str> = members.map(|member| member.id).collect();
    for state in next.compartments.values_mut().filter(|s| s.is_open()) {
        let own = BatchRef {
            state: stored.uid,
            number: state.batch,
        };
        let leases = leases
            .iter()
            .filter(|lease| failed(lease.end) && lease.batch == Some(own));
        let leases: BTreeSet<&str> = leases.map(|lease| lease.id).collect();
        let positions: Vec<usize> = state
            .members
            .iter()
            .enumerate()
            .filter(|(_, id)| leases.contains(id.as_str()) || nodes.contains(id.as_str()))
            .map(|(position, _)| position)
            .collect();
        for position in positions {
            state.latch(position);
        }
    }
    next
}

/// Drops compartments that the policy no longer paces, once no lease names them.
fn forget(rollout: &Rollout<'_>, next: &mut RolloutStateSpec) {
    let paced: BTreeSet<&str> = rollout
        .compartments
        .all()
        .filter(|(_, compartment)| compartment.pace.is_some())
        .map(|(_, compartment)| compartment.name.as_str())
        .collect();
    next.compartments.retain(|name, _| {
        paced.contains(name.as_str()) || rollout.leases.iter().any(|one| one.compartment == name)
    });
}

/// Members and leases, as they are looked up.
struct Known<'a> {
    by_id: BTreeMap<&'a str, &'a Member<'a>>,
    by_compartment: BTreeMap<CompartmentId, Vec<&'a Member<'a>>>,
    /// Members with a lease that has not ended.
    working: BTreeSet<&'a str>,
    /// Members that may still be leased in the open batches of the stored state, and the compartment that opened each. A
    /// node that its labels move before it is leased is in the batch of one compartment and present in another one.
    in_batches: BTreeMap<&'a str, CompartmentId>,
    /// Compartments in which a lease has a slot that it will give back: its node has not failed.
    moving: BTreeSet<CompartmentId>,
}

impl<'a> Known<'a> {
    fn new(rollout: &'a Rollout<'a>) -> Self {
        let mut by_compartment: BTreeMap<CompartmentId, Vec<&Member<'_>>> = BTreeMap::new();
        for member in rollout.members {
            let there = by_compartment.entry(member.compartment).or_default();
            there.push(member);
        }
        let working = rollout.leases.iter().filter(|one| one.end == End::Not);
        let moving = rollout.leases.iter().filter(|one| one.end != End::Failed);
        let both = |lease: &Lease<'_>| [rollout.barrier_of(lease), lease.present];
        let open = rollout.compartments.all().filter_map(|(id, compartment)| {
            let stored = &rollout.stored.spec.compartments;
            let state = stored.get(&compartment.name)?;
            (state.is_open() && compartment.pace.is_some()).then_some((id, state))
        });
        let in_batches = open.flat_map(|(id, state)| {
            let members = state.members.iter().enumerate();
            let open = members.filter(|(at, _)| !state.has_failed(*at) && !state.is_struck(*at));
            open.map(move |(_, one)| (one.as_str(), id))
        });
        Self {
            by_id: rollout.members.iter().map(|one| (one.id, one)).collect(),
            by_compartment,
            working: working.map(|lease| lease.id).collect(),
            in_batches: in_batches.collect(),
            moving: moving.flat_map(both).flatten().collect(),
        }
    }
}

/// How the members of an open batch fare.
#[derive(Debug, Default)]
struct Tally {
    complete: usize,
    failed: usize,
    working: usize,
    eligible: usize,
    /// Positions of those that cannot be leased and are not struck.
    stray: Vec<usize>,
    unsure: Vec<Look>,
}

impl Tally {
    fn has_ended(&self) -> bool {
        self.working == 0 && self.eligible == 0 && self.stray.is_empty() && self.unsure.is_empty()
    }

    /// True when nothing but members that cannot be leased is left.
    fn is_over_but_for_strays(&self) -> bool {
        self.working == 0 && self.eligible == 0 && !self.stray.is_empty()
    }
}

struct Compartment<'a> {
    rollout: &'a Rollout<'a>,
    known: &'a Known<'a>,
    id: CompartmentId,
    compartment: &'a CheckedCompartment,
    pace: &'a Pace,
}

/// The batch that is opened next.
struct Opening {
    members: Vec<String>,
    size: Size,
    room: Room,
}

impl<'a> Compartment<'a> {
    fn decide(
        &self,
        next: &mut RolloutStateSpec,
        free: &mut usize,
        is_complete: bool,
        decision: &mut Decision,
    ) {
        let name = &self.compartment.name;
        let state = next.compartments.get(name).cloned();
        let state = state.unwrap_or_else(|| CompartmentState::new(1));
        let counts = self.counts();
        let mut after = state.clone();
        if state.is_open() {
            let tally = self.tally(&state);
            self.reserve(&state, decision);
            decision.looks.extend(tally.unsure.iter().cloned());
            if tally.is_over_but_for_strays() {
                for position in tally.stray {
                    after.strike(position);
                }
                next.compartments.insert(name.clone(), after);
                return;
            }
            if !tally.has_ended() {
                return;
            }
            if tally.complete + tally.failed > 0 {
                // The last batch of a roll-out that is complete is left to the reset that follows.
                if is_complete {
                    return;
                }
                after.judge(self.pace, tally.complete, &counts, self.rollout.now);
            } else {
                after.close();
            }
        }
        let is_leaving = self.is_any_leaving();
        match self.open(&after, &counts, *free) {
            // Slots become free in a moment. Until then the next batch would be smaller than it should be.
            Ok(opening) if is_leaving && opening.size.is_cut(&opening.room) => {}
            Err(Some(Hold::Slots { .. })) if is_leaving => {}
            Ok(opening) => {
                *free = free.saturating_sub(opening.members.len());
                next.compartments.insert(name.clone(), after);
                let Opening {
                    members,
                    size,
                    room,
                } = opening;
                next.open(name, members, size, &room, self.rollout.least_order);
            }
            // Nobody else could be started: closing the batch would only be opened again. Why is said all the same.
            Err(hold) if state.is_open() && after.shown == state.shown => {
                decision.holds.extend(hold.map(|hold| (name.clone(), hold)));
            }
            Err(hold) => {
                decision.holds.extend(hold.map(|hold| (name.clone(), hold)));
                if after != state {
                    next.compartments.insert(name.clone(), after);
                }
            }
        }
    }

    /// The nodes that are in the compartment now.
    fn present(&self) -> impl Iterator<Item = &'a Member<'a>> + use<'a> {
        let there = self.known.by_compartment.get(&self.id);
        there.into_iter().flatten().copied()
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for member in self.present() {
            counts.matched += 1;
            match member.end {
                End::Complete => counts.complete += 1,
                End::Failed => counts.failed += 1,
                End::Not => {}
            }
        }
        counts
    }

    /// How the members of the open batch fare. A member belongs to it wherever it is now.
    fn tally(&self, state: &CompartmentState) -> Tally {
        let left = |id: &String| self.rollout.left.contains(&(state.batch, id.clone()));
        let mut tally = Tally::default();
        for (position, id) in state.members.iter().enumerate() {
            let node = self.known.by_id.get(id.as_str());
            if state.has_failed(position) {
                tally.failed += 1;
            } else if node.is_some_and(|node| node.end == End::Complete) {
                tally.complete += 1;
            } else if self.known.working.contains(id.as_str()) {
                tally.working += 1;
            } else if !state.is_struck(position) {
                if node.is_some_and(|node| node.is_eligible && !self.lacks_a_slot(node)) {
                    tally.eligible += 1;
                } else {
                    tally.stray.push(position);
                }
            } else if !left(id) {
                tally.unsure.push(Look {
                    state: self.rollout.stored.uid.to_owned(),
                    batch: state.batch,
                    id: id.clone(),
                });
            }
        }
        tally
    }

    /// True when a member gets no slot as far as anybody can see: nodes that have failed hold them all.
    fn lacks_a_slot(&self, member: &Member<'_>) -> bool {
        let is_full = |id: CompartmentId| {
            let used = self.rollout.used.get(&id).copied().unwrap_or_default();
            used >= self.rollout.compartments.ceiling(id) && !self.known.moving.contains(&id)
        };
        is_full(self.id) || is_full(member.compartment)
    }

    /// Members that hold no lease and may have one.
    fn reserve(&self, state: &CompartmentState, decision: &mut Decision) {
        // What is written now may name others.
        let stored = &self.rollout.stored.spec.compartments;
        let stored = stored.get(&self.compartment.name);
        if stored.is_none_or(|stored| stored.batch != state.batch)
            || stored.is_some_and(|stored| stored.stopped.is_some())
            || state.stopped.is_some()
        {
            return;
        }
        for (position, id) in state.members.iter().enumerate() {
            let Some(member) = self.known.by_id.get(id.as_str()) else {
                continue;
            };
            let may_lease = !state.has_failed(position) && !state.is_struck(position);
            if member.is_eligible && may_lease {
                let at = (state.batch, state.order(position));
                decision.reservable.insert(member.node.to_owned(), at);
            }
        }
    }

    /// The next batch, or why there is none; `None` when nobody is left to be started.
    fn open(
        &self,
        state: &CompartmentState,
        counts: &Counts,
        free: usize,
    ) -> Result<Opening, Option<Hold>> {
        let startable = |member: &&Member<'_>| {
            let is_taken = self.known.in_batches.get(member.id);
            member.is_eligible
                && member.end != End::Complete
                && is_taken.is_none_or(|of| *of == self.id)
        };
        let mut candidates: Vec<&Member<'_>> = self.present().filter(startable).collect();
        if candidates.is_empty() {
            return Err(None);
        }
        if let Some(since) = &state.stopped {
            return Err(Some(Hold::Stopped {
                since: since.clone(),
                failures: state.consecutive_failures,
            }));
        }
        let earlier = self.unended();
        if !earlier.is_empty() {
            return Err(Some(Hold::EarlierBatch { by: earlier }));
        }
        let ceiling = self.rollout.compartments.ceiling(self.id);
        let used = self.rollout.used.get(&self.id).copied().unwrap_or_default();
        let room = Room {
            ceiling,
            free: ceiling.saturating_sub(used).min(free),
            candidates: candidates.len(),
        };
        let size = state.next_size(self.pace, counts, &room);
        if size.members == 0 {
            let is_full = used >= ceiling;
            return Err(Some(if is_full {
                self.full(ceiling)
            } else {
                Hold::Cap
            }));
        }
        candidates.sort_by_key(|member| (member.rank, member.node));
        let picked = candidates.into_iter().take(size.members);
        Ok(Opening {
            members: picked.map(|member| member.id.to_owned()).collect(),
            size,
            room,
        })
    }

    /// Nodes of leases that have not ended and keep the next batch from being opened.
    fn unended(&self) -> Vec<String> {
        let all = self.rollout.leases.iter();
        all.filter(|lease| lease.end == End::Not && self.rollout.barrier_of(lease) == Some(self.id))
            .map(|lease| lease.node.to_owned())
            .collect()
    }

    /// True when a lease that takes a slot here is released next.
    fn is_any_leaving(&self) -> bool {
        let mut all = self.rollout.leases.iter();
        all.any(|lease| lease.is_leaving && self.takes_a_slot(lease))
    }

    fn takes_a_slot(&self, lease: &Lease<'_>) -> bool {
        lease.compartment == self.compartment.name || lease.present == Some(self.id)
    }

    /// The compartment has no free slot: which leases take them.
    fn full(&self, ceiling: usize) -> Hold {
        let all = self.rollout.leases.iter();
        let there: Vec<&Lease<'_>> = all.filter(|lease| self.takes_a_slot(lease)).collect();
        let failed = there.iter().filter(|lease| lease.end == End::Failed);
        Hold::Slots {
            failed: failed.count(),
            by: there.iter().map(|lease| lease.node.to_owned()).collect(),
            ceiling,
        }
    }
}
