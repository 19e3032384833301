//! A roll-out in batches: which batch is opened, when it has ended, how it is judged, and who may be leased in it.
//!
//! Batches are barriers: the next one begins when every member of the one before has ended. A batch is opened by one write
//! that names its members, on the version of the [`RolloutState`](skyhook_crds::rollout::RolloutState) that was read.
//! Leases are created for named members alone. Before a lease is granted the stored state is read once more: two
//! coordinators that both believe to lead, each with old watches, cannot open a batch twice or grant in two batches.
//!
//! A failure is kept in the state *before* its lease is released or its Node's absence is believed. So a node that is
//! deleted because it failed is still counted.
//!
//! A member that cannot be leased any more (its Node is gone, ignored, no longer selected) must not hold its batch up for
//! ever. When all others have ended it is *struck*: no lease of this batch is granted to it from then on. One look after
//! that shows whether somebody had leased it before; if not, it has left. A look before the strike would prove nothing: the
//! other coordinator may lease it between the look and the write that judges the batch.
//!
//! | rule | where |
//! |---|---|
//! | the batch before is judged and the next one opened in one write | [`decide`] |
//! | a member is believed to have left only after it was struck, and its lease read once more | [`Look`] |
//! | a lease of a batch is granted while no other batch of its compartment has a lease that has not ended | [`Batches::may_grant`] |
//! | a lease of a batch that the own copy of the state does not know is left alone | [`Batches::may_release`] |

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::policy::{CheckedCompartment, CompartmentId, Compartments, Pace};
use skyhook_crds::rollout::batch::{Counts, Room, Size};
use skyhook_crds::rollout::{CompartmentState, RolloutStateSpec};

/// How a node has ended at the wanted revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Not yet.
    Not,
    /// The record on this very Node says that it is complete.
    Complete,
    /// A package there has failed for good, or the node does not come back.
    Failed,
}

/// A node that the Skyhook selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    pub node: &'a str,
    /// What stands for it in a batch.
    pub id: &'a str,
    /// The compartment that it is in now.
    pub compartment: CompartmentId,
    pub end: End,
    /// True when it could be leased now, but for slots: no lease holds it, and nothing else is in the way.
    pub is_eligible: bool,
    /// The order in which nodes are picked: smaller first.
    pub rank: u32,
}

/// The batch that a lease belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchRef<'a> {
    /// UID of the state that has opened it.
    pub state: &'a str,
    pub number: i64,
}

/// A lease of the Skyhook, or one that is being created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease<'a> {
    pub node: &'a str,
    /// What stands for its node in a batch.
    pub id: &'a str,
    /// The compartment in its spec.
    pub compartment: &'a str,
    pub batch: Option<BatchRef<'a>>,
    pub end: End,
}

/// What is known of the stored state.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    pub uid: &'a str,
    pub spec: &'a RolloutStateSpec,
}

/// What decisions are made from.
#[derive(Clone, Copy, Debug)]
pub struct Rollout<'a> {
    pub compartments: &'a Compartments<'a>,
    pub stored: Stored<'a>,
    pub members: &'a [Member<'a>],
    pub leases: &'a [Lease<'a>],
    /// Slots that are taken, by compartment. A lease takes one in the compartment of its spec, and in its node's.
    pub used: &'a BTreeMap<CompartmentId, usize>,
    /// Slots that are free over all compartments and Skyhooks.
    pub free: usize,
    /// Members of open batches, by number and id, of which a fresh look said that they have left.
    pub left: &'a BTreeSet<(i64, String)>,
    /// The time, for people (RFC 3339).
    pub now: &'a str,
}

/// A live read of the lease of a member that was struck: none, or one that has another node's UID, means that it has left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Look {
    pub batch: i64,
    pub id: String,
}

/// Why no batch is opened in a compartment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It has stopped, since when, after so many failed batches in a row.
    Stopped { since: String, failures: i32 },
    /// Every slot is taken, by these nodes among others.
    Slots { by: Vec<String> },
    /// Leases of an earlier batch have not ended.
    EarlierBatch { by: Vec<String> },
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The state to write, if it changes.
    pub write: Option<RolloutStateSpec>,
    pub looks: Vec<Look>,
    /// Nodes that may be leased now, in the batch with this number and with this `SKYHOOK_NODE_ORDER`.
    pub reservable: BTreeMap<String, (i64, i64)>,
    pub holds: BTreeMap<String, Hold>,
}

/// What may be done with leases, by the copy of the state that is held.
#[derive(Clone, Copy, Debug)]
pub struct Batches<'a> {
    pub stored: Stored<'a>,
}

impl Batches<'_> {
    /// True when this copy of the state cannot know what became of the lease's batch: it was opened later.
    #[must_use]
    pub fn is_newer(&self, batch: &BatchRef<'_>) -> bool {
        batch.state == self.stored.uid && batch.number >= self.stored.spec.next_batch
    }

    /// True when a lease with this batch, for a node with this id, may be granted in `compartment`, as far as the state
    /// says. The stored state has to be asked, not a copy.
    #[must_use]
    pub fn names(&self, compartment: &str, batch: &BatchRef<'_>, id: &str) -> bool {
        let state = self.stored.spec.compartments.get(compartment);
        batch.state == self.stored.uid
            && state.is_some_and(|state| state.may_lease(batch.number, id))
    }

    /// True when no lease of another batch holds up the lease's own: every one whose barrier is in the same compartment has
    /// ended, or is of the same batch.
    #[must_use]
    pub fn may_grant(rollout: &Rollout<'_>, lease: &Lease<'_>) -> bool {
        let own = rollout.barrier_of(lease);
        rollout.leases.iter().all(|other| {
            other.batch == lease.batch || other.end != End::Not || rollout.barrier_of(other) != own
        })
    }

    /// True when the lease may be released: a failure in it is kept, or belongs to a batch that was judged.
    #[must_use]
    pub fn may_release(&self, lease: &Lease<'_>) -> bool {
        let Some(batch) = &lease.batch else {
            return true;
        };
        if self.is_newer(batch) {
            return false;
        }
        let open = self
            .stored
            .spec
            .compartments
            .values()
            .find(|state| batch.state == self.stored.uid && state.batch == batch.number);
        match open {
            Some(state) if lease.end == End::Failed => state
                .position(lease.id)
                .is_none_or(|position| state.has_failed(position)),
            Some(_) | None => true,
        }
    }
}

/// Decides for all compartments of one Skyhook.
#[must_use]
pub fn decide(rollout: &Rollout<'_>) -> Decision {
    let mut decision = Decision::default();
    let mut next = rollout.stored.spec.clone();
    let is_complete = rollout
        .members
        .iter()
        .all(|member| member.end == End::Complete);
    latch(rollout, &mut next);
    let mut free = rollout.free;
    for (id, compartment) in rollout.compartments.all() {
        let Some(pace) = &compartment.pace else {
            continue;
        };
        let one = Compartment {
            rollout,
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

/// Keeps the failures of all members of open batches, also of compartments that the policy no longer has.
fn latch(rollout: &Rollout<'_>, next: &mut RolloutStateSpec) {
    let failed_nodes = rollout
        .members
        .iter()
        .filter(|member| member.end == End::Failed)
        .map(|member| member.id);
    let failed_nodes: BTreeSet<&str> = failed_nodes.collect();
    for state in next.compartments.values_mut().filter(|s| s.is_open()) {
        let failed_leases = rollout.leases.iter().filter(|lease| {
            let own = BatchRef {
                state: rollout.stored.uid,
                number: state.batch,
            };
            lease.end == End::Failed && lease.batch == Some(own)
        });
        let failed: BTreeSet<&str> = failed_leases.map(|lease| lease.id).collect();
        let positions: Vec<usize> = state
            .members
            .iter()
            .enumerate()
            .filter(|(_, id)| failed.contains(id.as_str()) || failed_nodes.contains(id.as_str()))
            .map(|(position, _)| position)
            .collect();
        for position in positions {
            state.latch(position);
        }
    }
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
    id: CompartmentId,
    compartment: &'a CheckedCompartment,
    pace: &'a Pace,
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
        let state = next
            .compartments
            .get(name)
            .cloned()
            .unwrap_or_else(|| CompartmentState::new(1));
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
        let opened = self.open(&after, &counts, *free);
        match opened {
            Ok((members, size, room)) => {
                *free = free.saturating_sub(members.len());
                next.compartments.insert(name.clone(), after);
                next.open(name, members, size, &room);
            }
            // Nobody else could be started: closing the batch would only be opened again.
            Err(_) if state.is_open() && after.shown == state.shown => {}
            Err(hold) => {
                if let Some(hold) = hold {
                    decision.holds.insert(name.clone(), hold);
                }
                if after != state {
                    next.compartments.insert(name.clone(), after);
                }
            }
        }
    }

    /// The nodes that are in the compartment now.
    fn present(&self) -> impl Iterator<Item = &'a Member<'a>> + '_ {
        let all = self.rollout.members.iter();
        all.filter(|member| member.compartment == self.id)
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
        let nodes: BTreeMap<&str, &Member<'_>> = self
            .rollout
            .members
            .iter()
            .map(|member| (member.id, member))
            .collect();
        let working: BTreeSet<&str> = self
            .rollout
            .leases
            .iter()
            .filter(|lease| lease.end == End::Not)
            .map(|lease| lease.id)
            .collect();
        let mut tally = Tally::default();
        for (position, id) in state.members.iter().enumerate() {
            let node = nodes.get(id.as_str());
            if state.has_failed(position) {
                tally.failed += 1;
            } else if node.is_some_and(|node| node.end == End::Complete) {
                tally.complete += 1;
            } else if working.contains(id.as_str()) {
                tally.working += 1;
            } else if !state.is_struck(position) {
                if node.is_some_and(|node| node.is_eligible) {
                    tally.eligible += 1;
                } else {
                    tally.stray.push(position);
                }
            } else if !self.rollout.left.contains(&(state.batch, id.clone())) {
                tally.unsure.push(Look {
                    batch: state.batch,
                    id: id.clone(),
                });
            }
        }
        tally
    }

    /// Members that hold no lease and may have one.
    fn reserve(&self, state: &CompartmentState, decision: &mut Decision) {
        // What is written now may name others.
        let stored = self
            .rollout
            .stored
            .spec
            .compartments
            .get(&self.compartment.name);
        if stored.is_none_or(|stored| stored.batch != state.batch || stored.stopped.is_some()) {
            return;
        }
        for member in self.rollout.members.iter().filter(|one| one.is_eligible) {
            let Some(position) = state.position(member.id) else {
                continue;
            };
            if !state.has_failed(position) && state.may_lease(state.batch, member.id) {
                let at = (state.batch, state.order(position));
                decision.reservable.insert(member.node.to_owned(), at);
            }
        }
    }

    /// The members of the next batch, or why there is none; `None` when nobody is left to be started.
    fn open(
        &self,
        state: &CompartmentState,
        counts: &Counts,
        free: usize,
    ) -> Result<(Vec<String>, Size, Room), Option<Hold>> {
        let mut candidates: Vec<&Member<'_>> = self
            .present()
            .filter(|member| member.is_eligible && member.end != End::Complete)
            .collect();
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
            return Err(Some(Hold::Slots { by: self.holders() }));
        }
        candidates.sort_by_key(|member| (member.rank, member.node));
        let picked = candidates.into_iter().take(size.members);
        let members = picked.map(|member| member.id.to_owned()).collect();
        Ok((members, size, room))
    }

    /// Nodes of leases that have not ended and keep the next batch from being opened.
    fn unended(&self) -> Vec<String> {
        let all = self.rollout.leases.iter();
        all.filter(|lease| lease.end == End::Not && self.rollout.barrier_of(lease) == Some(self.id))
            .map(|lease| lease.node.to_owned())
            .collect()
    }

    /// Nodes of leases that take a slot here.
    fn holders(&self) -> Vec<String> {
        let here: BTreeSet<&str> = self.present().map(|member| member.id).collect();
        let all = self.rollout.leases.iter();
        all.filter(|lease| lease.compartment == self.compartment.name || here.contains(lease.id))
            .map(|lease| lease.node.to_owned())
            .collect()
    }
}

impl Rollout<'_> {
    /// The compartment whose batches the lease holds up: that of its spec, or, when the policy has none of that name any
    /// more, the one that its node is in now.
    #[must_use]
    pub fn barrier_of(&self, lease: &Lease<'_>) -> Option<CompartmentId> {
        self.compartments.named(lease.compartment).or_else(|| {
            let mut members = self.members.iter();
            let member = members.find(|member| member.id == lease.id);
            member.map(|member| member.compartment)
        })
    }
}

#[cfg(test)]
mod tests;
