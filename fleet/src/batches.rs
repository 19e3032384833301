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
//! | a lease of a batch is granted while no other batch of its compartment has a lease that has not ended | [`Rollout::may_grant`] |
//! | a lease of a batch that the own copy of the state does not know is left alone | [`Batches::may_release`] |

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::policy::{CompartmentId, Compartments};
use skyhook_crds::rollout::{CompartmentState, RolloutStateSpec};

mod decide;

pub use decide::{decide, latched};

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
    /// The order in which nodes are picked: smaller first, then by name.
    pub rank: (u8, i64),
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
    /// The compartment that its node is in now, if that is known.
    pub present: Option<CompartmentId>,
    pub batch: Option<BatchRef<'a>>,
    pub end: End,
    /// Its node is complete, and it is released next.
    pub is_leaving: bool,
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
    /// One more than the greatest `SKYHOOK_NODE_ORDER` that a node has.
    pub least_order: i64,
    /// The time, for people (RFC 3339).
    pub now: &'a str,
}

/// A live read of the lease of a member that was struck: none, or one that has another node's UID, means that it has left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Look {
    /// UID of the state that has opened the batch. Another state begins with the same numbers.
    pub state: String,
    pub batch: i64,
    pub id: String,
}

/// Why no batch is opened in a compartment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It has stopped, since when, after so many failed batches in a row.
    Stopped { since: String, failures: i32 },
    /// Every slot of the compartment is taken, by these nodes among others. `failed` of them have failed, and keep their
    /// slots until they recover.
    Slots {
        by: Vec<String>,
        failed: usize,
        ceiling: usize,
    },
    /// Every slot over all Skyhooks is taken.
    Cap,
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
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    stored: Stored<'a>,
    /// Open batches, by number.
    open: BTreeMap<i64, Open<'a>>,
}

/// An open batch. A batch may have 10,000 members, and as many leases are looked up in it.
#[derive(Clone, Debug)]
struct Open<'a> {
    compartment: &'a str,
    state: &'a CompartmentState,
    positions: BTreeMap<&'a str, usize>,
}

impl<'a> Batches<'a> {
    /// Looks into the stored state.
    #[must_use]
    pub fn new(stored: Stored<'a>) -> Self {
        let open = stored.spec.compartments.iter();
        let open = open.filter(|(_, state)| state.is_open());
        let open = open.map(|(compartment, state)| {
            let positions = state.members.iter().enumerate();
            let open = Open {
                compartment,
                state,
                positions: positions.map(|(at, id)| (id.as_str(), at)).collect(),
            };
            (state.batch, open)
        });
        Self {
            stored,
            open: open.collect(),
        }
    }

    /// True when this copy of the state cannot know what became of the lease's batch: it was opened later, or by a state
    /// with another UID. This copy may be older than that state, or there is no copy yet.
    #[must_use]
    pub fn is_newer(&self, batch: &BatchRef<'_>) -> bool {
        batch.state != self.stored.uid || batch.number >= self.stored.spec.next_batch
    }

    /// True when a lease with this batch, for a node with this id, may be granted in `compartment`, as far as the state
    /// says. The stored state has to be asked, not a copy.
    #[must_use]
    pub fn names(&self, compartment: &str, batch: &BatchRef<'_>, id: &str) -> bool {
        let open = self.open.get(&batch.number);
        let open = open.filter(|open| open.compartment == compartment);
        batch.state == self.stored.uid
            && open.is_some_and(|open| {
                let position = open.positions.get(id);
                open.state.stopped.is_none()
                    && position.is_some_and(|position| !open.state.is_struck(*position))
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
        match self.open.get(&batch.number) {
            Some(open) if lease.end == End::Failed => open
                .positions
                .get(lease.id)
                .is_none_or(|position| open.state.has_failed(*position)),
            Some(_) | None => true,
        }
    }
}

impl Rollout<'_> {
    /// The compartment whose batches the lease holds up: that of its spec, or, when the policy has none of that name any
    /// more, the one that its node is in now.
    #[must_use]
    pub fn barrier_of(&self, lease: &Lease<'_>) -> Option<CompartmentId> {
        let named = self.compartments.named(lease.compartment);
        named.or(lease.present)
    }

    /// True when no lease of another batch holds up the lease's own: every one whose barrier is in the same compartment has
    /// ended, or is of the same batch.
    #[must_use]
    pub fn may_grant(&self, lease: &Lease<'_>) -> bool {
        let own = self.barrier_of(lease);
        self.leases.iter().all(|other| {
            other.batch == lease.batch || other.end != End::Not || self.barrier_of(other) != own
        })
    }
}

#[cfg(test)]
mod tests;
