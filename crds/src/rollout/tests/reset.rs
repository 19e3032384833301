use super::*;
use crate::rollout::reset::{Asked, asked, asked_of_order, digest};
use crate::skyhook::{CompartmentStatus, NodeOrderShown, SkyhookStatus};

fn status(shown: &BatchState, run: Option<i32>) -> CompartmentStatus {
    CompartmentStatus {
        batch_state: Some(shown.clone()),
        run,
        published: Some(digest(shown)),
        ..CompartmentStatus::default()
    }
}

/// The merge patch that `kubectl skyhook deployment-policy reset` sends: zero fields are not in it.
fn reset_by_the_plugin(status: &CompartmentStatus) -> CompartmentStatus {
    let mut patched = serde_json::to_value(status).unwrap();
    patched["batchState"]["currentBatch"] = json!(1);
    serde_json::from_value(patched).unwrap()
}

#[test]
fn a_reset_is_seen_in_the_status_and_obeyed_once() {
    let mut state = CompartmentState::new(3);
    state.shown = 4;
    state.consecutive_failures = 2;
    state.stopped = Some(NOW.into());
    let published = status(&state.shown(5, 2), Some(3));
    let edited = reset_by_the_plugin(&published);
    for (what, status, run, expected) in [
        ("as published", &published, 3, Asked::Nothing),
        ("edited", &edited, 3, Asked::Reset),
        ("edited, and obeyed meanwhile", &edited, 4, Asked::Publish),
        ("not published yet", &published, 4, Asked::Publish),
        ("the state is old", &published, 2, Asked::StateIsOld),
        (
            "edited, and the state is old",
            &edited,
            2,
            Asked::StateIsOld,
        ),
    ] {
        assert_eq!(asked(status, run), expected, "{what}");
    }
    let foreign = CompartmentStatus {
        run: None,
        ..published
    };
    assert_eq!(asked(&foreign, 3), Asked::Publish);
    // There is nothing to reset before the first judgement, and the patch changes nothing.
    let fresh = status_of_new();
    assert_eq!(asked(&reset_by_the_plugin(&fresh), 1), Asked::Nothing);
}

fn status_of_new() -> CompartmentStatus {
    status(&CompartmentState::new(1).shown(0, 0), Some(1))
}

#[test]
fn an_offset_of_zero_starts_the_numbers_anew_once() {
    // (shown run, shown offset), offset in the status, run of the state.
    for (what, shown, offset, run, expected) in [
        ("as published", Some((2, 7)), 7, 2, Asked::Nothing),
        ("reset", Some((2, 7)), 0, 2, Asked::Reset),
        ("reset, and obeyed", Some((2, 7)), 0, 3, Asked::Publish),
        ("the state is old", Some((2, 7)), 0, 1, Asked::StateIsOld),
        (
            "written back from an old copy",
            Some((2, 7)),
            5,
            2,
            Asked::Nothing,
        ),
        ("nothing was given yet", Some((0, 0)), 0, 0, Asked::Nothing),
        ("of another program", None, 4, 0, Asked::Publish),
    ] {
        let status = SkyhookStatus {
            node_order_offset: offset,
            node_order_shown: shown.map(|(run, offset)| NodeOrderShown { run, offset }),
            ..SkyhookStatus::default()
        };
        assert_eq!(asked_of_order(&status, run), expected, "{what}");
    }
    let mut state = RolloutStateSpec {
        next_order: 9,
        ..RolloutStateSpec::default()
    };
    state.reset_order(3);
    assert_eq!((state.next_order, state.order_run), (3, 1));
    // An open batch has given the numbers 7 and 8.
    let open = CompartmentState {
        batch: 2,
        order_base: 7,
        members: vec!["a".into(), "b".into()],
        ..CompartmentState::new(1)
    };
    state.compartments.insert("c".into(), open);
    state.reset_order(3);
    assert_eq!((state.next_order, state.order_run), (9, 2));
    state.reset();
    state.reset_order(3);
    assert_eq!((state.next_order, state.order_run), (3, 3));
}

#[test]
fn versions_reset_and_configurations_do_not() {
    let revision = |name: &str, number, versions: &str| RolloutRevision {
        name: name.into(),
        number,
        versions: versions.into(),
    };
    let begun = || {
        let mut state = CompartmentState::new(1);
        state.shown = 3;
        RolloutStateSpec {
            revision: revision("x-1", 7, "aa"),
            compartments: [("c".to_owned(), state)].into(),
            ..RolloutStateSpec::default()
        }
    };
    for (what, wanted, resets, changed, run) in [
        ("the same", revision("x-1", 7, "aa"), true, false, 1),
        ("configuration", revision("x-2", 8, "aa"), true, true, 1),
        ("version", revision("x-2", 8, "bb"), true, true, 2),
        ("version, kept", revision("x-2", 8, "bb"), false, true, 1),
        ("an old copy", revision("x-0", 6, "bb"), true, false, 1),
    ] {
        let mut rollout = begun();
        assert_eq!(rollout.follow(&wanted, resets), changed, "{what}");
        assert_eq!(rollout.compartments["c"].run, run, "{what}");
        let expected = if changed { wanted } else { begun().revision };
        assert_eq!(rollout.revision, expected, "{what}");
    }
    let mut rollout = begun();
    assert!(rollout.follow_policy("other", 5) && !rollout.follow_policy("other", 6));
    assert_eq!(rollout.compartments["c"], CompartmentState::new(2));
    // An old copy of the Skyhook still names the policy of before.
    assert!(!rollout.follow_policy("", 4) && !rollout.follow_policy("", 5));
    assert_eq!(
        (rollout.policy.as_str(), rollout.compartments["c"].run),
        ("other", 2)
    );
    assert!(rollout.follow_policy("", 7));
    assert_eq!(rollout.compartments["c"].run, 3);
}

#[test]
fn what_nvidia_skyhook_left_is_taken_over() {
    let batch: BatchState = serde_json::from_value(json!({
        "currentBatch": 4, "consecutiveFailures": 2, "completedNodes": 5, "failedNodes": 2,
        "shouldStop": true, "lastBatchSize": 3, "lastBatchFailed": true,
    }))
    .unwrap();
    let expected = CompartmentState {
        run: 1,
        shown: 4,
        base: 3,
        consecutive_failures: 2,
        last_batch_size: 3,
        last_batch_failed: true,
        stopped: Some(NOW.into()),
        ..CompartmentState::default()
    };
    assert_eq!(CompartmentState::imported(&batch, NOW), expected);
    let nothing = CompartmentState::imported(&BatchState::default(), NOW);
    assert_eq!(nothing, CompartmentState::new(1));
}

#[test]
fn a_stop_that_was_taken_over_can_be_reset() {
    for (current_batch, shown) in [(0, 2), (1, 2), (2, 2), (5, 5)] {
        let left = BatchState {
            current_batch,
            should_stop: true,
            ..BatchState::default()
        };
        let state = CompartmentState::imported(&left, NOW);
        assert_eq!(state.shown, shown, "{current_batch}");
        let published = status(&state.shown(0, 1), Some(1));
        assert_eq!(asked(&published, 1), Asked::Nothing, "{current_batch}");
        let edited = reset_by_the_plugin(&published);
        assert_eq!(asked(&edited, 1), Asked::Reset, "{current_batch}");
    }
}

#[test]
fn the_digest_of_a_batch_state_stays_the_same_in_later_versions() {
    let batch: BatchState = serde_json::from_value(json!({
        "currentBatch": 4, "consecutiveFailures": 2, "completedNodes": 5, "failedNodes": 2,
        "shouldStop": true, "lastBatchSize": 3, "lastBatchFailed": true,
    }))
    .unwrap();
    assert_eq!(
        [digest(&batch), digest(&BatchState::default())],
        ["815980c4caf60223", "44136fa355b3678a"],
    );
}
