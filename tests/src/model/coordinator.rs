//! Coordinators: what their watches bring them, and one write at a time.
//!
//! A write that the API server would refuse changes nothing and is left out. A write that arrives late is the same as a
//! coordinator that lags behind, because what guards it is the version that it was decided on; only a create, which has
//! none, is also sent off to arrive whenever it likes.

use std::rc::Rc;

use skyhook_crds::lease::DrainState;

use super::planner::{self, NodeChange, Picture, Write};
use super::state::{
    Coordinator, Cordon, Late, Lease, Listing, MAX_NODES, Mark, Node, Skyhook, State, Uid,
};
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
            Self::Write(Write::Drain { state: DrainState::Waiting, .. }) => Some(Fault::PodAppeared),
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
    for write in decide(config, state, who) {
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

/// What the coordinator wants written, by the shipped planner and, for the drain, by the shipped predicates.
fn decide(config: &Config, state: &State, who: usize) -> Vec<Write> {
    let me = &state.coordinators[who];
    if me.listing.is_some() && !config.lacks(Mutation::GrantInMidList) {
        return Vec::new();
    }
    let picture = Picture {
        nodes: me.nodes,
        leases: me.leases,
        skyhook: me.skyhook,
        creating: if config.lacks(Mutation::CreatingUncounted) {
            [false; MAX_NODES]
        } else {
            me.creating
        },
        listing: false,
        count: config.nodes as u8,
        budget: config.budget,
    };
    let mut writes = tampered(config, &picture).to_vec();
    if !config.lacks(Mutation::OldRevisionGranted) {
        writes.retain(|write| !takes_back(me, write));
    }
    if !config.lacks(Mutation::ResultOfEarlierLease) {
        writes.retain(|write| !is_of_earlier_lease(me, write));
    }
    for n in 0..config.nodes {
        if let (Some(lease), node) = (me.leases[n], &me.nodes[n]) {
            if !config.lacks(Mutation::ResultUnchecked) && is_out_of_date(&lease, node) {
                writes.retain(|write| !carries_on(write, n, lease.uid));
                let (node, uid) = (n as u8, lease.uid);
                writes.push(Write::Withdraw { node, uid, late: false });
                continue;
            }
            let write = drain(config, n as u8, &lease, node);
            writes.extend(write.filter(|write| !writes.contains(write)));
            if config.lacks(Mutation::ReleaseUnrecorded) && lease.has_ended() {
                writes.push(Write::Release { node: n as u8, uid: lease.uid });
            }
        }
    }
    writes
}

/// True when the Node has got a result since the lease was written, or lost it.
fn is_out_of_date(lease: &Lease, node: &Node) -> bool {
    let result = node.mark.filter(|mark| mark.lease != 0).map(|mark| mark.machine);
    !lease.granted && lease.node_uid == node.uid && lease.result_machine != result
}

fn carries_on(write: &Write, n: usize, lease: Uid) -> bool {
    match write {
        Write::Grant { node, .. } | Write::Withdraw { node, .. } => *node as usize == n,
        Write::Node { node, change } => {
            *node as usize == n && change.mark.is_some_and(|mark| mark.granted == lease)
        }
        _ => false,
    }
}

/// True when the node is to be worked on at a revision older than the one that its result is of: the picture of the
/// Skyhook lags behind that of the Node.
fn takes_back(me: &Coordinator, write: &Write) -> bool {
    let newer = |node: u8, revision: u8| {
        let mark = me.nodes[node as usize].mark.filter(|mark| mark.lease != 0);
        mark.is_some_and(|mark| mark.revision > revision)
    };
    let leased = |node: u8| me.leases[node as usize].filter(|lease| !lease.granted);
    match write {
        Write::Reserve { node, lease } => newer(*node, lease.revision),
        Write::Grant { node, .. } => leased(*node).is_some_and(|l| newer(*node, l.revision)),
        Write::Node { node, change } => leased(*node).is_some_and(|lease| {
            change.mark.is_some_and(|mark| mark.granted == lease.uid) && newer(*node, lease.revision)
        }),
        _ => false,
    }
}

/// True when the Node is to be written for a lease that it is not stamped with: the picture of the leases lags behind
/// that of the Node.
fn is_of_earlier_lease(me: &Coordinator, write: &Write) -> bool {
    let Write::Node { node, change } = write else { return false };
    let takes = change.cordon.is_some_and(|cordon| cordon.is_some());
    let (granted, lease) = (me.nodes[*node as usize].mark, me.leases[*node as usize]);
    (change.record.is_some() || change.mark.is_some_and(|mark| mark.granted == 0) || takes)
        && lease.map(|lease| lease.uid) != granted.map(|mark| mark.granted)
}

/// Plans over the picture, or over one that hides what a broken rule does not look at.
fn tampered(config: &Config, picture: &Picture) -> Rc<[Write]> {
    let plan = planner::plan(picture);
    let mut blind = picture.clone();
    for n in 0..config.nodes {
        let (node, lease) = (&mut blind.nodes[n], &mut blind.leases[n]);
        match config.mutation {
            Some(Mutation::GrantUnstamped) => {
                if let Some(lease) = lease.filter(|lease| !lease.granted) {
                    let mark = node.mark.get_or_insert_with(Mark::default);
                    mark.granted = lease.uid;
                }
            }
            Some(Mutation::InstalledUnchecked) => {
                if let Some(lease) = lease.as_mut().filter(|lease| lease.phase.is_none()) {
                    lease.installed = node.record;
                }
            }
            Some(Mutation::BootUnchecked) => {
                if let Some(lease) = lease.filter(Lease::has_ended) {
                    node.boot = lease.boot;
                    node.ready = true;
                }
            }
            Some(Mutation::EditOverwritten) => {
                if let Some(mark) = &mut node.mark {
                    mark.states = Some(node.record);
                }
            }
            _ => {}
        }
    }
    if config.lacks(Mutation::UngrantedUncounted) {
        return grants_blind_to_reserved(config, picture, &plan);
    }
    if blind == *picture { plan } else { planner::plan(&blind) }
}

/// Each lease is granted as if no other were reserved.
fn grants_blind_to_reserved(config: &Config, picture: &Picture, plan: &Rc<[Write]>) -> Rc<[Write]> {
    let mut writes: Vec<Write> =
        plan.iter().copied().filter(|w| !matches!(w, Write::Withdraw { late: false, .. })).collect();
    for n in 0..config.nodes {
        let mut alone = picture.clone();
        for other in (0..config.nodes).filter(|other| *other != n) {
            alone.leases[other] = alone.leases[other].filter(|lease| lease.granted);
        }
        for write in planner::plan(&alone).iter().filter(|write| !plan.contains(write)) {
            if let Write::Grant { node, .. } | Write::Node { node, .. } = write
                && *node as usize == n
            {
                writes.push(*write);
            }
        }
    }
    writes.into()
}

/// Cordons, declares drained, or takes that back when a pod appears.
fn drain(config: &Config, node: u8, lease: &Lease, object: &Node) -> Option<Write> {
    let verdict = rules::judge(lease, lease.node_uid);
    let uid = lease.uid;
    let retractable = verdict.may_retract_drained || config.lacks(Mutation::RetractRunning);
    if lease.drain == DrainState::Drained {
        return (retractable && !lease.has_ended())
            .then_some(Write::Drain { node, uid, state: DrainState::Waiting });
    }
    if !verdict.wants_drain || object.uid != lease.node_uid {
        return None;
    }
    let held = object.unschedulable && object.cordon.is_some_and(|cordon| cordon.owner == uid);
    if held || config.lacks(Mutation::DrainedUncordoned) {
        return Some(Write::Drain { node, uid, state: DrainState::Drained });
    }
    let was_unschedulable = match object.cordon {
        _ if config.lacks(Mutation::CordonForgets) => false,
        Some(cordon) => cordon.was_unschedulable,
        None => object.unschedulable,
    };
    let change = NodeChange {
        cordon: Some(Some(Cordon { owner: uid, was_unschedulable })),
        unschedulable: (!object.unschedulable).then_some(true),
        ..NodeChange::default()
    };
    Some(Write::Node { node, change })
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
        Write::ReleaseOfGoneNode { node, uid, node_uid } => {
            let alive = state.nodes[node as usize].uid == node_uid;
            current(node, uid) && (!alive || config.lacks(Mutation::GoneFromCache))
        }
        Write::Node { node, change } => {
            let n = usize::from(node);
            let guarded = me.fresh[n]
                || config.lacks(Mutation::NodeUnguarded)
                    && me.nodes[n].uid == state.nodes[n].uid;
            let sweeps = config.lacks(Mutation::SweepFromCache) || !is_held(state, me, n, &change);
            let stamps = config.lacks(Mutation::StampFromCache) || is_leased(state, me, n, &change);
            guarded && sweeps && stamps
        }
        Write::ReleaseSkyhook => me.skyhook == state.skyhook,
    }
}

/// The sweep gives a cordon back only after a live GET has shown that the lease it belongs to is gone.
fn is_held(state: &State, me: &Coordinator, n: usize, change: &NodeChange) -> bool {
    let Some(None) = change.cordon else { return false };
    let owner = me.nodes[n].cordon.map(|cordon| cordon.owner);
    let with_result = change.mark.is_some_and(|mark| Some(mark.lease) == owner);
    !with_result && state.leases[n].is_some_and(|lease| Some(lease.uid) == owner)
}

/// A Node is stamped with a lease only after a live GET has shown that very lease.
fn is_leased(state: &State, me: &Coordinator, n: usize, change: &NodeChange) -> bool {
    let granted = |mark: Option<Mark>| mark.map(|mark| mark.granted).filter(|uid| *uid != 0);
    match granted(change.mark).filter(|uid| granted(me.nodes[n].mark) != Some(*uid)) {
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
            me.listing = Some(Listing { leases: state.leases, delivered: 0 });
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
    let Some(listing) = &mut me.listing else { return };
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
            state.write_lease(config, node.into(), |lease| lease.stop = reason);
        }
        Write::Drain { node, state: drain, .. } => {
            state.write_lease(config, node.into(), |lease| lease.drain = drain);
        }
        Write::Withdraw { node, .. }
        | Write::Release { node, .. }
        | Write::ReleaseOfGoneNode { node, .. } => state.remove_lease(config, node.into()),
        Write::Node { node, change } => write_node(config, state, who, node.into(), change, answered),
        Write::ReleaseSkyhook => state.skyhook = Skyhook { gone: true, ..state.skyhook },
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
    let written = change.record.is_some_and(|record| record != state.nodes[n].record);
    let ghost = &state.ghosts[n];
    let revision = state.skyhook.revision;
    let done = change.record == Some(super::state::Content::complete(revision));
    state.broken.edit_overwritten |= written && (ghost.edited || (done && ghost.unobeyed));
    state.write_node(n, |node| {
        node.record = change.record.unwrap_or(node.record);
        node.mark = change.mark.or(node.mark);
        node.cordon = change.cordon.unwrap_or(node.cordon);
        node.unschedulable = change.unschedulable.unwrap_or(node.unschedulable);
    });
    if answered {
        let me = &mut state.coordinators[who];
        me.nodes[n] = state.nodes[n];
        me.fresh[n] = true;
    }
}
