//! What the actions of coordinators do, and the rules that they may break.

use super::Config;
use super::coordinator::{Act, Memo, verdict};
use super::state::{Bits, COMPARTMENTS, Compartment, Lease, NODES, Phase, State, Stored};

/// Carries an action out.
pub(crate) fn perform(config: &Config, memo: &Memo, state: &mut State, who: usize, act: Act) {
    match act {
        Act::Put => {
            let verdict = verdict(config, memo, &state.coordinators[who]);
            if let Some(next) = verdict.write {
                put(state, next);
                let own = &mut state.coordinators[who];
                own.stored = next;
                own.is_fresh = true;
                own.left = [Bits(0); COMPARTMENTS];
            }
        }
        Act::Reserve(node) => {
            if let Some(lease) = reservation(config, memo, state, who, node) {
                state.coordinators[who].creating.set(node, true);
                state.write_lease(node, Some(lease));
            }
        }
        Act::Stamp(node) => {
            let uid = state.coordinators[who].leases[node].map_or(0, |lease| lease.uid);
            state.write_node(node, |copy| copy.stamp = uid);
        }
        Act::Check(node) => state.coordinators[who].checked.set(node, true),
        Act::Grant(node) => grant(config, state, node),
        Act::Withdraw(node) | Act::Release(node) => state.write_lease(node, None),
        Act::Record(node) => state.write_node(node, |copy| copy.complete = true),
        Act::LookForLease(at, position) => state.coordinators[who].left[at].set(position, true),
        Act::LookForNode(node) => state.coordinators[who].gone.set(node, true),
    }
}

/// The lease that a coordinator would create for the node now.
pub(crate) fn reservation(
    config: &Config,
    memo: &Memo,
    state: &mut State,
    who: usize,
    node: usize,
) -> Option<Lease> {
    let seen = &state.coordinators[who];
    let batch = verdict(config, memo, seen).reservable[node]?;
    let compartments = &seen.stored.compartments;
    let of = compartments.iter().position(|one| one.batch == batch)?;
    let uid = state.next_uid;
    state.next_uid += 1;
    Some(Lease {
        uid,
        generation: seen.nodes[node].generation,
        compartment: of as u8,
        batch,
        granted: false,
        phase: Phase::Idle,
    })
}

/// True when the coordinator would create a lease for the node now.
pub(crate) fn reserves(
    config: &Config,
    memo: &Memo,
    state: &State,
    who: usize,
    node: usize,
) -> bool {
    verdict(config, memo, &state.coordinators[who]).reservable[node].is_some()
}

fn put(state: &mut State, next: Stored) {
    for at in 0..COMPARTMENTS {
        let (before, after) = (state.stored.compartments[at], next.compartments[at]);
        let judged = after.shown != before.shown;
        let failed = state.failed_in[at] != 0 && state.failed_in[at] == before.batch;
        if judged && failed && !after.last_batch_failed {
            state.broken = Some("a judgement says success over a failure");
        }
        // Every node had ended: there was nothing left to be stopped.
        if judged && failed && after.last_batch_failed && !after.stopped {
            state.failed_in[at] = 0;
        }
    }
    let open = next.compartments.iter().filter(|one| one.batch != 0);
    let may_be_leased = |one: &Compartment| {
        let members = one.ids().iter().enumerate();
        let there = members.filter(|(at, _)| !one.failed.has(*at) && !one.struck.has(*at));
        there.map(|(_, id)| *id).collect::<Vec<u8>>()
    };
    let ids: Vec<u8> = open.flat_map(may_be_leased).collect();
    let twice = |id: &u8| ids.iter().filter(|other| *other == id).count() > 1;
    if ids.iter().any(twice) {
        state.broken = Some("a node may be leased in two open batches");
    }
    state.stored = next;
    for coordinator in &mut state.coordinators {
        coordinator.is_fresh = false;
    }
}

fn grant(config: &Config, state: &mut State, node: usize) {
    let Some(mut lease) = state.leases[node] else {
        return;
    };
    let of = usize::from(lease.compartment);
    let others = (0..NODES)
        .filter(|at| *at != node)
        .filter_map(|at| Some((at, state.leases[at]?)));
    let granted: Vec<(usize, Lease)> = others
        .filter(|(_, one)| one.granted && one.compartment == lease.compartment)
        .collect();
    if granted.len() >= config.ceiling {
        state.broken = Some("more leases are granted than the ceiling allows");
    }
    let works = |(at, one): &(usize, Lease)| {
        one.batch != lease.batch
            && matches!(one.phase, Phase::Idle | Phase::Working)
            && state.nodes[*at].generation == one.generation
    };
    if granted.iter().any(works) {
        state.broken = Some("two batches of a compartment are worked on at once");
    }
    // Batches end in the order of their numbers. Leases of before a reset may still be on their way.
    if lease.batch < state.begun[of] && lease.batch >= state.reset_at[of] {
        state.broken = Some("a batch goes on after a later one began");
    }
    state.begun[of] = state.begun[of].max(lease.batch);
    let failed = state.failed_in[of];
    if failed != 0 && lease.batch > failed {
        state.broken = Some("a batch began after a failure that stops");
    }
    let open = state.stored.compartments[of];
    if open.batch == lease.batch {
        let id = node as u8 * 16 + lease.generation;
        if !open.ids().contains(&id) {
            state.broken = Some("a node is worked on that its batch does not name");
        }
    }
    lease.granted = true;
    state.write_lease(node, Some(lease));
}
