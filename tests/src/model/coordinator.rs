//! Coordinators: what their watches bring them, and one write at a time.
//!
//! A write that the API server would refuse changes nothing and is left out. A write that arrives late is the same as a
//! coordinator that lags behind, because what guards it is the version that it was decided on; only a create, which has
//! none, is also sent off to arrive whenever it likes.

mod decide;

use skyhook_crds::lease::DrainState;

use super::planner::{NodeChange, Write};
use super::state::{Coordinator, Late, Lease, Listing, MAX_NODES, Mark, Skyhook, State};
use super::{Config, Fault, Mutation, rules};

/// What a coordinator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Write(Write),
    /// Applied, but the coordinator never hears of it.
    ResponseLost(Write),
    /// Deleted; the coordinator dies before it takes the finalizer off.
    DeletedHalf(Write),
    /// Given up, and arrives later.
    SentLate(Write),
    /// The next event of the lease watch.
    SeesLease,
    /// The lease watch breaks: what it held back is lost.
    WatchBreaks,
    /// A list is taken.
    Lists,
    /// The next lease of the list, or its end.
    SeesListed,
    SeesNode(u8),
    SeesSkyhook,
    /// Starts anew and lists everything.
    Restarts,
}

impl Act {
    pub(crate) const fn fault(self) -> Option<Fault> {
        match self {
            Self::Write(Write::Withdraw { late: true, .. }) => Some(Fault::AcceptTimedOut),
            Self::Write(Write::Drain {
                state: DrainState::Waiting,
                ..
            }) => Some(Fault::PodAppeared),
            Self::Write(_)
            | Self::SeesLease
            | Self::Lists
            | Self::SeesListed
            | Self::SeesNode(_)
            | Self::SeesSkyhook => None,
            Self::ResponseLost(_) => Some(Fault::ResponseLost),
            Self::DeletedHalf(_) => Some(Fault::DeletedHalf),
            Self::SentLate(_) => Some(Fault::Late),
            Self::WatchBreaks => Some(Fault::WatchBroken),
            Self::Restarts => Some(Fault::CoordinatorCrash),
        }
    }
}

/// Offers what a coordinator can do.
pub(crate) fn acts(config: &Config, state: &State, who: usize, offer: &mut dyn FnMut(Act)) {
    let me = &state.coordinators[who];
    if me.listing.is_some() {
        offer(Act::SeesListed);
    } else if me.broken {
        offer(Act::Lists);
    } else {
        if !me.queue.is_empty() {
            offer(Act::SeesLease);
        }
        offer(Act::WatchBreaks);
    }
    for n in 0..config.nodes {
        if !me.fresh[n] {
            offer(Act::SeesNode(n as u8));
        }
    }
    if me.skyhook != state.skyhook {
        offer(Act::SeesSkyhook);
    }
    offer(Act::Restarts);
    for write in decide::decide(config, state, who) {
        if !is_accepted(config, state, who, &write) {
            if let Write::Reserve { .. } = write
                && state.late.is_none()
            {
                offer(Act::SentLate(write));
            }
            continue;
        }
        offer(Act::Write(write));
        match write {
            Write::Reserve { .. } => {
                offer(Act::ResponseLost(write));
                if state.late.is_none() {
                    offer(Act::SentLate(write));
                }
            }
            Write::Node { .. } => offer(Act::ResponseLost(write)),
            Write::Withdraw { late: false, .. } | Write::Release { .. } => {
                offer(Act::DeletedHalf(write));
            }
            Write::Grant { .. }
            | Write::Stop { .. }
            | Write::Drain { .. }
            | Write::Withdraw { late: true, .. }
            | Write::ReleaseOfGoneNode { .. }
            | Write::ReleaseSkyhook => {}
        }
    }
}

/// Whether the API server takes the write, and its sender still wants it after the live GET that some need.
fn is_accepted(config: &Config, state: &State, who: usize, write: &Write) -> bool {
    let me = &state.coordinators[who];
    let lease = |node: u8| state.leases[node as usize];
    let same = |node: u8, uid| lease(node).is_some_and(|lease| lease.uid == uid);
    let current = |node: u8, uid| same(node, uid) && me.is_current(node.into());
    match *write {
        Write::Reserve { node, .. } => {
            lease(node).is_none() || config.lacks(Mutation::CreateReplaces)
        }
        Write::Grant { node, uid } => {
            let by_apply = config.lacks(Mutation::GrantByApply) && lease(node).is_none();
            current(node, uid) || by_apply
        }
        Write::Stop { node, uid, .. } | Write::Release { node, uid } => current(node, uid),
        Write::Drain { node, uid, .. } => {
            current(node, uid) || (config.lacks(Mutation::RetractRunning) && same(node, uid))
        }
        Write::Withdraw { node, uid, .. } => {
            current(node, uid) || (config.lacks(Mutation::WithdrawUnguarded) && same(node, uid))
        }
        Write::ReleaseOfGoneNode {
            node,
            uid,
            node_uid,
        } => {
            let alive = state.nodes[node as usize].uid == node_uid;
            current(node, uid) && (!alive || config.lacks(Mutation::GoneFromCache))
        }
        Write::Node { node, change } => {
            let n = usize::from(node);
            let guarded = me.fresh[n]
                || config.lacks(Mutation::NodeUnguarded) && me.nodes[n].uid == state.nodes[n].uid;
            let sweeps = config.lacks(Mutation::SweepFromCache) || !is_held(state, me, n, &change);
            let stamps = config.lacks(Mutation::StampFromCache) || is_leased(state, me, n, &change);
            guarded && sweeps && stamps
        }
        Write::ReleaseSkyhook => me.skyhook == state.skyhook,
    }
}

/// The sweep gives a cordon back only after a live GET has shown that the lease it belongs to is gone.
fn is_held(state: &State, me: &Coordinator, n: usize, change: &NodeChange) -> bool {
    let Some(None) = change.cordon else {
        return false;
    };
    let owner = me.nodes[n].cordon.map(|cordon| cordon.owner);
    let mark = change.mark.flatten();
    let with_result = mark.is_some_and(|mark| Some(mark.lease) == owner);
    !with_result && state.leases[n].is_some_and(|lease| Some(lease.uid) == owner)
}

/// A Node is stamped with a lease only after a live GET has shown that very lease, and loses its stamp only after one has
/// shown that there is no lease.
fn is_leased(state: &State, me: &Coordinator, n: usize, change: &NodeChange) -> bool {
    if change.mark == Some(None) {
        return state.leases[n].is_none();
    }
    let granted = |mark: Option<Mark>| mark.map(|mark| mark.granted).filter(|uid| *uid != 0);
    match granted(change.mark.flatten()).filter(|uid| granted(me.nodes[n].mark) != Some(*uid)) {
        Some(uid) => state.leases[n].is_some_and(|lease| lease.uid == uid),
        None => true,
    }
}

/// Does it.
pub(crate) fn act(config: &Config, state: &mut State, who: usize, act: Act) {
    match act {
        Act::Write(write) => apply(config, state, who, &write, true),
        Act::ResponseLost(write) => apply(config, state, who, &write, false),
        Act::DeletedHalf(Write::Withdraw { node, .. } | Write::Release { node, .. }) => {
            state.delete_lease(config, node.into());
        }
        Act::SentLate(Write::Reserve { node, lease }) => {
            state.late = Some(Late::Create { node, lease });
        }
        Act::DeletedHalf(_) | Act::SentLate(_) => {}
        Act::SeesLease => {
            let me = &mut state.coordinators[who];
            let (n, lease) = me.queue.remove(0);
            me.leases[n as usize] = lease;
            me.creating[n as usize] = false;
        }
        Act::WatchBreaks => {
            let me = &mut state.coordinators[who];
            me.queue.clear();
            me.broken = true;
        }
        Act::Lists => {
            let me = &mut state.coordinators[who];
            me.broken = false;
            me.listing = Some(Listing {
                leases: state.leases,
                delivered: 0,
            });
            // Told apart only where breaks are what is looked at.
            while config.faults[Fault::WatchBroken as usize] == 0 && me.listing.is_some() {
                sees_listed(config, me);
            }
        }
        Act::SeesListed => sees_listed(config, &mut state.coordinators[who]),
        Act::SeesNode(n) => {
            let me = &mut state.coordinators[who];
            me.nodes[n as usize] = state.nodes[n as usize];
            me.fresh[n as usize] = true;
        }
        Act::SeesSkyhook => state.coordinators[who].skyhook = state.skyhook,
        Act::Restarts => {
            state.coordinators[who] = Coordinator {
                nodes: state.nodes,
                fresh: [true; MAX_NODES],
                leases: state.leases,
                skyhook: state.skyhook,
                ..Coordinator::default()
            };
        }
    }
}

/// Leases arrive in the order of their names; what was not listed is gone at the end.
fn sees_listed(config: &Config, me: &mut Coordinator) {
    let Some(listing) = &mut me.listing else {
        return;
    };
    let left = usize::from(listing.delivered)..config.nodes;
    if let Some(n) = left.clone().find(|n| listing.leases[*n].is_some()) {
        me.leases[n] = listing.leases[n];
        me.creating[n] = false;
        listing.delivered = n as u8 + 1;
    } else {
        me.leases = listing.leases;
        me.listing = None;
        // A create that was answered before the list was taken, and is not in it, is gone again.
        me.creating = [false; MAX_NODES];
    }
}

fn apply(config: &Config, state: &mut State, who: usize, write: &Write, answered: bool) {
    match *write {
        Write::Reserve { node, lease } => reserve(config, state, who, node, lease, answered),
        Write::Grant { node, .. } => {
            if state.leases[node as usize].is_none() {
                let lease = state.coordinators[who].leases[node as usize].unwrap_or_default();
                state.create_lease(config, node.into(), lease);
            }
            state.write_lease(config, node.into(), |lease| lease.granted = true);
        }
        Write::Stop { node, reason, .. } => {
            // A pod may have come in the pause.
            let offered = state.leases[node as usize]
                .is_some_and(|lease| rules::judge(&lease, lease.node_uid).offers_drained);
            state.broken.undrained |= reason.is_none() && offered;
            state.write_lease(config, node.into(), |lease| lease.stop = reason);
        }
        Write::Drain {
            node, state: drain, ..
        } => {
            state.write_lease(config, node.into(), |lease| lease.drain = drain);
        }
        Write::Withdraw { node, .. }
        | Write::Release { node, .. }
        | Write::ReleaseOfGoneNode { node, .. } => state.remove_lease(config, node.into()),
        Write::Node { node, change } => {
            write_node(config, state, who, node.into(), change, answered)
        }
        Write::ReleaseSkyhook => {
            state.skyhook = Skyhook {
                gone: true,
                ..state.skyhook
            }
        }
    }
}

fn reserve(config: &Config, state: &mut State, who: usize, node: u8, lease: Lease, answered: bool) {
    let n = usize::from(node);
    if config.lacks(Mutation::CreateReplaces) {
        state.remove_lease(config, n);
    }
    state.create_lease(config, n, lease);
    let created = state.leases[n];
    let me = &mut state.coordinators[who];
    if config.lacks(Mutation::GrantFromResponse) {
        me.leases[n] = created;
        me.queue.retain(|(of, _)| *of != node);
    } else if answered {
        me.creating[n] = true;
    }
}

fn write_node(
    config: &Config,
    state: &mut State,
    who: usize,
    n: usize,
    mut change: NodeChange,
    answered: bool,
) {
    if config.lacks(Mutation::StampUnmoved) && change.record.is_some() {
        change.mark = None;
    }
    if config.lacks(Mutation::CordonForgets) && change.cordon == Some(None) {
        change.unschedulable = Some(false);
    }
    let written = change
        .record
        .is_some_and(|record| record != state.nodes[n].record);
    let ghost = &state.ghosts[n];
    let done = change.record == Some(state.skyhook.wants());
    state.broken.edit_overwritten |= written && (ghost.edited || (done && ghost.unobeyed));
    state.write_node(n, |node| {
        node.record = change.record.unwrap_or(node.record);
        node.mark = change.mark.unwrap_or(node.mark);
        node.cordon = change.cordon.unwrap_or(node.cordon);
        node.unschedulable = change.unschedulable.unwrap_or(node.unschedulable);
    });
    if answered {
        let me = &mut state.coordinators[who];
        me.nodes[n] = state.nodes[n];
        me.fresh[n] = true;
    }
}
