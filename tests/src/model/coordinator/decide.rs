//! What a coordinator decides: the shipped planner's writes, less what the rules forbid that the planner does not know
//! yet, or what a broken rule lets pass.

use std::rc::Rc;

use skyhook_crds::lease::DrainState;

use crate::model::planner::{self, NodeChange, Picture, Write};
use crate::model::state::{Coordinator, Cordon, Lease, MAX_NODES, Mark, Node, State, Uid};
use crate::model::{Config, Mutation, rules};

/// What the coordinator wants written, by the shipped planner and, for the drain, by the shipped predicates.
pub(super) fn decide(config: &Config, state: &State, who: usize) -> Vec<Write> {
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
        blocked: [false; MAX_NODES],
        count: config.nodes as u8,
        budget: config.budget,
    };
    let mut writes = tampered(config, &picture).to_vec();
    if config.any_order {
        reserve_in_any_order(config, &picture, &mut writes);
    }
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
                writes.push(Write::Withdraw {
                    node,
                    uid,
                    late: false,
                });
                continue;
            }
            let write = drain(config, n as u8, &lease, node);
            writes.extend(write.filter(|write| !writes.contains(write)));
            if config.lacks(Mutation::ReleaseUnrecorded) && lease.has_ended() {
                writes.push(Write::Release {
                    node: n as u8,
                    uid: lease.uid,
                });
            }
        }
    }
    writes
}

/// Whatever keeps the other nodes off for a while, each may be the next.
fn reserve_in_any_order(config: &Config, picture: &Picture, writes: &mut Vec<Write>) {
    for n in 0..config.nodes {
        let mut alone = picture.clone();
        alone.blocked = std::array::from_fn(|other| other != n);
        for write in planner::plan(&alone).iter() {
            if matches!(write, Write::Reserve { .. }) && !writes.contains(write) {
                writes.push(*write);
            }
        }
    }
}

/// True when the Node has got a result since the lease was written, or lost it.
fn is_out_of_date(lease: &Lease, node: &Node) -> bool {
    let result = node
        .mark
        .filter(|mark| mark.lease != 0)
        .map(|mark| mark.machine);
    !lease.granted && lease.node_uid == node.uid && lease.result_machine != result
}

fn carries_on(write: &Write, n: usize, lease: Uid) -> bool {
    match write {
        Write::Grant { node, .. } | Write::Withdraw { node, .. } => *node as usize == n,
        Write::Node { node, change } => {
            *node as usize == n && change.mark.is_some_and(|mark| mark.granted == lease)
        }
        Write::Reserve { .. }
        | Write::Stop { .. }
        | Write::Drain { .. }
        | Write::Release { .. }
        | Write::ReleaseOfGoneNode { .. }
        | Write::ReleaseSkyhook => false,
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
            change.mark.is_some_and(|mark| mark.granted == lease.uid)
                && newer(*node, lease.revision)
        }),
        Write::Stop { .. }
        | Write::Drain { .. }
        | Write::Withdraw { .. }
        | Write::Release { .. }
        | Write::ReleaseOfGoneNode { .. }
        | Write::ReleaseSkyhook => false,
    }
}

/// True when the Node is to be written for a lease that it is not stamped with: the picture of the leases lags behind
/// that of the Node.
fn is_of_earlier_lease(me: &Coordinator, write: &Write) -> bool {
    let Write::Node { node, change } = write else {
        return false;
    };
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
    if blind == *picture {
        plan
    } else {
        planner::plan(&blind)
    }
}

/// Each lease is granted as if no other were reserved.
fn grants_blind_to_reserved(config: &Config, picture: &Picture, plan: &Rc<[Write]>) -> Rc<[Write]> {
    let mut writes: Vec<Write> = plan
        .iter()
        .copied()
        .filter(|w| !matches!(w, Write::Withdraw { late: false, .. }))
        .collect();
    for n in 0..config.nodes {
        let mut alone = picture.clone();
        for other in (0..config.nodes).filter(|other| *other != n) {
            alone.leases[other] = alone.leases[other].filter(|lease| lease.granted);
        }
        for write in planner::plan(&alone)
            .iter()
            .filter(|write| !plan.contains(write))
        {
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
        return (retractable && !lease.has_ended()).then_some(Write::Drain {
            node,
            uid,
            state: DrainState::Waiting,
        });
    }
    if !verdict.wants_drain || object.uid != lease.node_uid {
        return None;
    }
    let held = object.unschedulable && object.cordon.is_some_and(|cordon| cordon.owner == uid);
    if held || config.lacks(Mutation::DrainedUncordoned) {
        return Some(Write::Drain {
            node,
            uid,
            state: DrainState::Drained,
        });
    }
    let was_unschedulable = match object.cordon {
        _ if config.lacks(Mutation::CordonForgets) => false,
        Some(cordon) => cordon.was_unschedulable,
        None => object.unschedulable,
    };
    let change = NodeChange {
        cordon: Some(Some(Cordon {
            owner: uid,
            was_unschedulable,
        })),
        unschedulable: (!object.unschedulable).then_some(true),
        ..NodeChange::default()
    };
    Some(Write::Node { node, change })
}
