//! What a coordinator decides: the shipped planner's writes, over a picture that hides what a broken rule does not look
//! at.

use std::rc::Rc;

use skyhook_crds::lease::DrainState;

use crate::model::planner::{self, NodeChange, Picture, Write};
use crate::model::state::{Content, Cordon, Lease, MAX_NODES, Mark, Node, State};
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
        unordered: config.lacks(Mutation::OldRevisionGranted),
    };
    let mut writes = tampered(config, &picture).to_vec();
    if config.any_order {
        reserve_in_any_order(config, &picture, &mut writes);
    }
    for n in 0..config.nodes {
        if let (Some(lease), node) = (me.leases[n], &me.nodes[n]) {
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
            Some(Mutation::ResultUnchecked) => {
                if let Some(lease) = lease.as_mut().filter(|lease| lease.phase.is_none()) {
                    lease.result = node.result();
                }
            }
            Some(Mutation::ResultOfEarlierLease) => {
                if let (Some(mark), Some(lease)) = (&mut node.mark, &lease)
                    && lease.phase.is_some()
                {
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
            Some(Mutation::DrainedOverPause) => {
                if let Some(lease) = lease.as_mut().filter(|lease| lease.stop.is_some())
                    && lease.drain == DrainState::Drained
                {
                    lease.drain = DrainState::Draining;
                }
            }
            Some(Mutation::DeletedWithPackages) if picture.skyhook.deleting && lease.is_none() => {
                node.record = Content::NOTHING;
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
    // The planner does not drain for a lease that the Node is not stamped with.
    let ours = object.mark.is_none_or(|mark| mark.granted == uid);
    if !ours && !config.lacks(Mutation::ResultOfEarlierLease) {
        return None;
    }
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
        Some(cordon) if object.unschedulable => cordon.was_unschedulable,
        Some(_) | None => object.unschedulable,
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
