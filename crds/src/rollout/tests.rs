use serde_json::{Value, json};

use super::batch::{Counts, Room, Size};
use super::*;
use crate::policy::{BatchState, Growth, Pace};

mod reset;

const NOW: &str = "2026-11-26T12:00:00Z";

fn pace(growth: Growth, initial_batch: u32) -> Pace {
    Pace {
        growth,
        initial_batch,
        batch_threshold: 100,
        failure_threshold: None,
        safety_limit: 50,
    }
}

fn counts(matched: usize, complete: usize, failed: usize) -> Counts {
    Counts {
        matched,
        complete,
        failed,
    }
}

/// Runs a whole roll-out of `nodes` nodes in which `bad` of each batch fail for good and keep their slots, and says the
/// size of every batch.
fn sizes(pace: &Pace, nodes: usize, ceiling: usize, bad: &[usize]) -> Vec<usize> {
    let mut rollout = RolloutStateSpec {
        next_batch: 1,
        ..RolloutStateSpec::default()
    };
    rollout
        .compartments
        .insert("c".into(), CompartmentState::new(1));
    let (mut complete, mut failed) = (0, 0);
    let mut sizes = Vec::new();
    for batch in 0.. {
        let counted = counts(nodes, complete, failed);
        let room = Room {
            ceiling,
            free: ceiling - failed,
            candidates: nodes - complete - failed,
        };
        let size = rollout.compartments["c"].next_size(pace, &counted, &room);
        if size.members == 0 {
            break;
        }
        sizes.push(size.members);
        let members = (0..size.members)
            .map(|at| format!("{batch}-{at}"))
            .collect();
        rollout.open("c", members, size, &room, 0);
        let state = rollout.compartments.get_mut("c").unwrap();
        let bad = bad
            .get(batch)
            .copied()
            .unwrap_or_default()
            .min(size.members);
        for position in 0..bad {
            assert!(state.latch(position));
        }
        complete += size.members - bad;
        failed += bad;
        let counted = counts(nodes, complete, failed);
        state.judge(pace, size.members - bad, &counted, NOW);
    }
    sizes
}

#[test]
fn sizes_follow_the_strategy_below_the_ceiling() {
    let linear = Growth::Linear { delta: 1 };
    let doubling = Growth::Exponential { factor: 2 };
    for (what, pace, nodes, ceiling, bad, expected) in [
        (
            "fixed",
            pace(Growth::Fixed, 3),
            8,
            8,
            &[][..],
            vec![3, 3, 2],
        ),
        (
            "fixed above the ceiling",
            pace(Growth::Fixed, 5),
            8,
            2,
            &[],
            vec![2, 2, 2, 2],
        ),
        // 1, 2, 3, then the two that are left.
        ("linear", pace(linear, 1), 8, 4, &[], vec![1, 2, 3, 2]),
        (
            "linear to the ceiling",
            pace(linear, 3),
            14,
            4,
            &[],
            vec![3, 4, 4, 3],
        ),
        (
            "exponential",
            pace(doubling, 1),
            15,
            15,
            &[],
            vec![1, 2, 4, 8],
        ),
        (
            "exponential to the ceiling",
            pace(doubling, 1),
            12,
            4,
            &[],
            vec![1, 2, 4, 4, 1],
        ),
        // The second batch fails at 4 of 20 nodes, 20 %: 3 - 2 = 1. One slot of 10 stays with the node that failed.
        (
            "linear after a failure",
            pace(Growth::Linear { delta: 2 }, 1),
            20,
            10,
            &[0, 1],
            vec![1, 3, 1, 3, 5, 7],
        ),
        // 1, 2, then 4 of which one fails at 7 of 30, 23 %: 4 / 2 = 2, then 4, 8, 9 (ten slots, one is held).
        (
            "exponential after a failure",
            pace(doubling, 1),
            30,
            10,
            &[0, 0, 1],
            vec![1, 2, 4, 2, 4, 8, 9],
        ),
        // The third batch fails at 7 of 12, 58 %: above the safety limit it does not shrink. 8 are asked for, 5 are left.
        (
            "a failure above the safety limit",
            pace(doubling, 1),
            12,
            12,
            &[0, 0, 1],
            vec![1, 2, 4, 5],
        ),
        // Every node fails: two slots, two nodes, then nothing moves any more.
        (
            "all slots are held",
            pace(Growth::Fixed, 1),
            5,
            2,
            &[1, 1, 1],
            vec![1, 1],
        ),
    ] {
        assert_eq!(sizes(&pace, nodes, ceiling, bad), expected, "{what}");
    }
}

#[test]
fn slots_that_others_hold_are_no_part_of_the_next_size() {
    let doubling = pace(Growth::Exponential { factor: 2 }, 4);
    let mut rollout = RolloutStateSpec::default();
    // Four are asked for, and three slots of four are held by nodes that moved in: one member.
    let room = Room {
        ceiling: 4,
        free: 1,
        candidates: 30,
    };
    let first = CompartmentState::new(1).next_size(&doubling, &counts(40, 0, 0), &room);
    assert_eq!(
        first,
        Size {
            target: 4,
            members: 1
        }
    );
    rollout.open("c", vec!["a".into()], first, &room, 0);
    let state = rollout.compartments.get_mut("c").unwrap();
    assert!(state.cut);
    state.judge(&doubling, 1, &counts(40, 1, 0), NOW);
    // Twice four, not twice one.
    let room = Room {
        ceiling: 20,
        free: 20,
        candidates: 29,
    };
    assert_eq!(
        state.next_size(&doubling, &counts(40, 1, 0), &room).members,
        8
    );
    // Fewer nodes than asked for is the size that it is: four that were left of eight, then eight.
    let room = Room {
        ceiling: 20,
        free: 20,
        candidates: 4,
    };
    let last = state.next_size(&doubling, &counts(40, 1, 0), &room);
    assert_eq!((last.members, last.is_cut(&room)), (4, false));
}

#[test]
fn a_batch_is_judged_by_those_that_ended_in_it() {
    // (threshold, failure threshold, members, complete, failed positions) and nodes that ended of 100 before the batch:
    // failed, in a row, stopped, size.
    for (what, threshold, limit, complete, failed, ended, expected) in [
        (
            "all succeed",
            100,
            Some(1),
            3,
            &[][..],
            0,
            (false, 0, false, 3),
        ),
        // Two of three are 66 %.
        ("just below", 67, None, 2, &[0], 0, (true, 1, false, 3)),
        ("just enough", 66, None, 2, &[0], 0, (false, 0, false, 3)),
        (
            "the first failure stops",
            100,
            Some(1),
            2,
            &[1],
            0,
            (true, 1, true, 3),
        ),
        (
            "the second would",
            100,
            Some(2),
            2,
            &[1],
            0,
            (true, 1, false, 3),
        ),
        // 47 + 3 of 100 are 50 %: the safety limit is reached.
        (
            "too far to stop",
            100,
            Some(1),
            2,
            &[1],
            47,
            (true, 1, false, 3),
        ),
        (
            "not far enough",
            100,
            Some(1),
            2,
            &[1],
            46,
            (true, 1, true, 3),
        ),
        // One of three members left: it is not counted.
        ("one left", 100, Some(1), 2, &[], 0, (false, 0, false, 2)),
    ] {
        let mut state = CompartmentState::new(1);
        state.batch = 4;
        state.target = 3;
        state.members = ["a", "b", "c"].map(str::to_owned).to_vec();
        for position in failed {
            assert!(state.latch(*position));
        }
        let pace = Pace {
            batch_threshold: threshold,
            failure_threshold: limit,
            ..pace(Growth::Fixed, 3)
        };
        let counted = counts(100, ended + complete, failed.len());
        state.judge(&pace, complete, &counted, NOW);
        let (is_failed, in_a_row, stopped, size) = expected;
        let expected = CompartmentState {
            run: 1,
            shown: 2,
            target: 3,
            base: size,
            consecutive_failures: in_a_row,
            last_batch_size: size,
            last_batch_failed: is_failed,
            stopped: stopped.then(|| NOW.to_owned()),
            ..CompartmentState::default()
        };
        assert_eq!(state, expected, "{what}");
    }
}

#[test]
fn failures_in_a_row_stop_a_compartment_until_it_is_reset() {
    let pace = Pace {
        failure_threshold: Some(2),
        ..pace(Growth::Fixed, 1)
    };
    let room = Room {
        ceiling: 5,
        free: 5,
        candidates: 5,
    };
    let mut state = CompartmentState::new(1);
    let judged = |state: &mut CompartmentState, fails: bool| {
        state.batch = 1;
        state.members = vec!["a".into()];
        if fails {
            state.latch(0);
        }
        state.judge(&pace, usize::from(!fails), &counts(100, 1, 1), NOW);
    };
    for (fails, stopped) in [(true, false), (false, false), (true, false), (true, true)] {
        judged(&mut state, fails);
        assert_eq!(state.stopped.is_some(), stopped);
    }
    assert_eq!(state.next_size(&pace, &counts(100, 1, 1), &room).members, 0);
    // A later judgement does not move the time, and a success does not start it.
    judged(&mut state, false);
    assert_eq!(state.stopped.as_deref(), Some(NOW));
    state.reset();
    assert_eq!(state, CompartmentState::new(2));
    assert_eq!(state.next_size(&pace, &counts(100, 1, 1), &room).members, 1);
}

#[test]
fn a_batch_whose_members_all_left_is_closed_without_a_judgement() {
    let mut state = CompartmentState::new(1);
    state.batch = 7;
    state.base = 4;
    state.members = vec!["a".into()];
    let pace = pace(Growth::Exponential { factor: 2 }, 1);
    state.judge(&pace, 0, &counts(10, 0, 0), NOW);
    let expected = CompartmentState {
        base: 4,
        ..CompartmentState::new(1)
    };
    assert_eq!(state, expected);
}

#[test]
fn a_failure_is_kept_once_and_for_members_only() {
    let mut state = CompartmentState::new(1);
    state.members = ["a", "b", "c"].map(str::to_owned).to_vec();
    assert!(state.latch(2));
    assert!(state.latch(0));
    assert!(!state.latch(2));
    assert!(!state.latch(3));
    assert_eq!(state.failed, [0, 2]);
    assert!(state.has_failed(0) && !state.has_failed(1) && state.has_failed(2));
}

#[test]
fn numbers_and_orders_are_never_given_twice() {
    let mut rollout = RolloutStateSpec {
        next_batch: 12,
        next_order: 20,
        ..RolloutStateSpec::default()
    };
    let room = Room {
        ceiling: 9,
        free: 9,
        candidates: 9,
    };
    let size = Size {
        target: 2,
        members: 2,
    };
    let of = |names: [&str; 2]| names.map(str::to_owned).to_vec();
    assert_eq!(rollout.open("a", of(["x", "y"]), size, &room, 0), 12);
    assert_eq!(rollout.open("b", of(["v", "w"]), size, &room, 0), 13);
    assert_eq!((rollout.next_batch, rollout.next_order), (14, 24));
    let (a, b) = (&rollout.compartments["a"], &rollout.compartments["b"]);
    assert_eq!((a.order(0), a.order(1), b.order(0)), (20, 21, 22));
    assert_eq!((b.position("w"), b.position("x")), (Some(1), None));
    // A reset goes on with the numbers.
    rollout.reset();
    assert_eq!((rollout.next_batch, rollout.next_order), (14, 24));
    // Nodes outside of batches have orders up to 29.
    rollout.open("a", of(["x", "y"]), size, &room, 30);
    assert_eq!(rollout.compartments["a"].order(0), 30);
    assert_eq!(rollout.next_order, 32);
}

#[test]
fn the_digest_of_versions_says_nothing_of_configuration() {
    let packages = |version: &str, config: &str| -> BTreeMap<String, Package> {
        let package = Package {
            name: "a".into(),
            version: version.into(),
            config_map: [("k".to_owned(), config.to_owned())].into(),
            ..Package::default()
        };
        [("a".to_owned(), package)].into()
    };
    let digest = versions(&packages("1.0.0", "x"));
    assert_eq!(digest.len(), 16);
    assert_eq!(digest, versions(&packages("1.0.0", "y")));
    assert_ne!(digest, versions(&packages("1.0.1", "x")));
}

#[test]
fn ten_thousand_members_that_all_failed_fit_into_an_object() {
    let mut state = CompartmentState::new(1);
    state.members = (0..10_000).map(|at| member(&at.to_string())).collect();
    for at in 0..10_000 {
        state.latch(at);
    }
    let json: Value = serde_json::to_value(&state).unwrap();
    let bytes = json.to_string().len();
    assert!(bytes < 256 * 1024, "{bytes}");
}
