//! How compartments start anew, and how states of roll-outs come and go.

use super::*;

#[test]
fn a_reset_by_the_command_starts_a_compartment_anew() {
    let stopped = json!({
        "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let mut picture = with_batch(exponential(), &[], &stopped);
    let mut status = shown(&picture);
    // The command's copy leaves zero fields out of its merge patch: the others stay as they were.
    let gpu = status.compartment_statuses.get_mut("gpu").unwrap();
    gpu.batch_state.as_mut().unwrap().current_batch = 1;
    picture.skyhooks[0]["status"] = serde_json::to_value(&status).unwrap();
    let state = written(&picture).unwrap();
    let gpu = &state.compartments["gpu"];
    assert_eq!((gpu.run, gpu.shown, gpu.stopped.clone()), (2, 1, None));
    // The edit stays in the status until it is obeyed.
    picture.now += Duration::from_secs(60);
    let published = picture
        .plan()
        .effects
        .into_iter()
        .find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => {
                Some(status.compartment_statuses["gpu"].run)
            }
            _ => None,
        });
    assert!(published.is_none_or(|run| run == Some(1)));
    // Obeyed: nothing is asked for twice.
    picture.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
    let next = written(&picture).unwrap();
    assert_eq!(next.compartments["gpu"].run, 2);
    assert_eq!(next.compartments["gpu"].members, [member(1)]);
}

#[test]
fn a_new_version_and_another_policy_start_anew() {
    let judged = json!({ "batch": 0, "members": [], "shown": 5, "lastBatchSize": 4 });
    let base = || with_batch(exponential(), &[], &judged);
    let runs = |picture: &Picture| {
        let state = written(picture).unwrap();
        (
            state.compartments["gpu"].run,
            state.compartments["gpu"].shown,
        )
    };
    let mut newer = base();
    newer.rollouts[0]["spec"]["revision"] =
        json!({ "name": "s-old", "number": 0, "versions": "x" });
    assert_eq!(runs(&newer), (2, 1));
    let kept = newer.clone().skyhook(
        &["spec", "deploymentPolicyOptions"],
        json!({ "resetBatchStateOnCompletion": false }),
    );
    assert_eq!(runs(&kept), (1, 5));
    let mut other = base();
    other.rollouts[0]["spec"]["policy"] = json!("another");
    assert_eq!(runs(&other), (2, 1));
    // The Skyhook was seen in a later generation: this copy of it is old, and nothing follows from it.
    other.rollouts[0]["spec"]["policyGeneration"] = json!(99);
    assert_eq!(written(&other), None);
}

#[test]
fn a_roll_out_that_is_complete_starts_anew_once_people_have_seen_it() {
    let judged = json!({ "batch": 3, "shown": 3, "members": [member(1)], "lastBatchSize": 2 });
    let mut picture = with_batch(exponential(), &[1], &judged);
    for n in 1..=3 {
        picture = done(picture, n);
    }
    assert_eq!(written(&picture), None, "the last batch is not judged");
    let status = shown(&picture);
    picture.skyhooks[0]["status"] = serde_json::to_value(&status).unwrap();
    let since = |picture: &mut Picture, seconds: i64| {
        let at = Timestamp::from_second(1_700_000_000 - seconds).unwrap();
        for condition in picture.skyhooks[0]["status"]["conditions"]
            .as_array_mut()
            .unwrap()
        {
            condition["lastTransitionTime"] = json!(at.to_string());
        }
    };
    since(&mut picture, 4);
    assert_eq!(written(&picture), None);
    assert_eq!(
        picture.plan().wake_at,
        Some(picture.now + Duration::from_secs(1))
    );
    since(&mut picture, 5);
    let state = written(&picture).unwrap();
    let gpu = &state.compartments["gpu"];
    assert_eq!((gpu.run, gpu.shown, gpu.batch), (2, 1, 0));
    picture.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
    assert_eq!(written(&picture), None, "once");
}

/// The spec of a lease for worker-1 with these fields.
fn created(picture: &Picture, spec: Value) -> Value {
    leased(picture.clone(), spec, json!(null)).leases[0]["spec"].clone()
}

#[test]
fn a_state_that_is_not_needed_is_deleted_when_no_lease_is_of_a_batch() {
    let budget = |picture: Picture| {
        picture.skyhook(
            &["spec"],
            json!({ "interruptionBudget": { "count": 1 }, "packages": packages() }),
        )
    };
    let deletes = |picture: &Picture| {
        let kinds = picture.plan().effects;
        kinds.iter().any(|effect| effect.kind() == "DeleteRollout")
    };
    let open = with_batch(exponential(), &[1], &json!({}));
    assert!(!deletes(&open));
    assert!(deletes(&budget(open.clone())));
    let under_way = budget(open.clone());
    let mut index = under_way.index();
    index.begins(&Effect::ReserveLease {
        node: "worker-1".into(),
        spec: Box::new(serde_json::from_value(created(&open, in_batch(json!({})))).unwrap()),
    });
    let plan = under_way.plan_of(&index);
    let kinds: Vec<&str> = plan.effects.iter().map(Effect::kind).collect();
    assert!(!kinds.contains(&"DeleteRollout"), "{kinds:?}");
    let works = leased(
        stamp(open.clone(), granted()),
        in_batch(grant_and(json!({}))),
        with_package("Running", "in_progress"),
    );
    assert!(!deletes(&budget(works)));
    // A lease that is not granted goes first: the batch that it names may not be open any more.
    let reserved = budget(leased(open, in_batch(json!({})), json!(null)));
    assert_eq!(
        on_leases(&reserved),
        ["WithdrawLease no open batch has the node"]
    );
    let mut earlier = with_batch(exponential(), &[1], &json!({}));
    earlier.rollouts[0]["metadata"]["ownerReferences"][0]["uid"] = json!("an earlier Skyhook");
    assert!(deletes(&earlier));
    assert_eq!(written(&earlier), None);
}

#[test]
fn a_state_that_somebody_deleted_is_made_anew_from_the_status() {
    let stopped = json!({
        "run": 4, "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let mut picture = with_batch(exponential(), &[], &stopped);
    let status = shown(&picture);
    picture.skyhooks[0]["status"] = serde_json::to_value(&status).unwrap();
    picture.rollouts.clear();
    let state = written(&picture).unwrap();
    let gpu = &state.compartments["gpu"];
    assert_eq!((gpu.run, gpu.shown, gpu.stopped.is_some()), (4, 2, true));
    assert_eq!(state.compartments["__default__"].members, [member(3)]);
}

#[test]
fn a_stop_that_is_imported_is_stored_also_when_no_batch_can_be_opened() {
    // NVIDIA Skyhook has stopped `gpu`. Worker-3, the only node of another compartment, is complete.
    let mut picture = done(exponential(), 3);
    let stopped = BatchState {
        current_batch: 2,
        consecutive_failures: 1,
        should_stop: true,
        last_batch_size: 1,
        ..BatchState::default()
    };
    picture.skyhooks[0]["status"] = left_by_nvidia(&[("gpu", stopped)]);
    let state = written(&picture).expect("it is stored");
    assert!(state.compartments["gpu"].stopped.is_some());
    picture.rollouts = vec![super::state(&picture, json!({}))];
    picture.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
    assert_eq!(written(&picture), None, "once");
}

#[test]
fn a_compartment_that_comes_back_begins_after_the_run_that_the_status_shows() {
    let stopped = json!({
        "run": 3, "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let mut picture = with_batch(exponential(), &[], &stopped);
    picture.skyhooks[0]["status"] = serde_json::to_value(shown(&picture)).unwrap();
    // It was taken out of the policy and put back before the status was written.
    picture.rollouts[0]["spec"]["compartments"] = json!({});
    let state = written(&picture).unwrap();
    assert_eq!(state.compartments["gpu"], rollout::CompartmentState::new(4));
    picture.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
    let mut status = shown(&picture);
    assert_eq!(status.compartment_statuses["gpu"].run, Some(4));
    // An edit is obeyed.
    let gpu = status.compartment_statuses.get_mut("gpu").unwrap();
    gpu.batch_state.as_mut().unwrap().last_batch_size = 7;
    picture.skyhooks[0]["status"] = serde_json::to_value(&status).unwrap();
    assert_eq!(written(&picture).unwrap().compartments["gpu"].run, 5);
}

#[test]
fn a_last_batch_with_a_failure_is_judged_before_the_next_revision() {
    // Batch 3 has two members. Worker-1 failed, was latched, and has recovered since: all three nodes are complete.
    let open = || {
        let open = json!({ "failed": [0], "shown": 4, "base": 1 });
        let picture = with_batch(exponential(), &[1, 2], &open);
        (1..=3).fold(picture, done)
    };
    let keeps = |picture: Picture| {
        let option = json!({ "resetBatchStateOnCompletion": false });
        picture.skyhook(&["spec", "deploymentPolicyOptions"], option)
    };
    // One of two succeeded: 50 %, below the 100 % of the policy. No stop: all nodes are complete.
    let judged = |state: &RolloutStateSpec| {
        let gpu = &state.compartments["gpu"];
        let members = (gpu.members.len(), gpu.failed.len(), gpu.stopped.is_some());
        let numbers = (gpu.shown, gpu.base, gpu.consecutive_failures);
        (gpu.run, gpu.batch, numbers, gpu.last_batch_failed, members)
    };
    let expected = (1, 0, (5, 2, 1), true, (0, 0, false));
    let state = written(&keeps(open())).expect("no reset follows");
    assert_eq!(judged(&state), expected);
    let mut after = keeps(open());
    after.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
    assert_eq!(written(&after), None, "once");
    // A reset follows: the batch is left to it.
    assert_eq!(written(&open()), None);
    // The configuration changes before that: the next revision is not judged by the failure.
    let changed = |picture: Picture| {
        let mut complete = picture;
        let status = shown(&complete);
        complete.skyhooks[0]["status"] = serde_json::to_value(&status).unwrap();
        complete.rollouts[0]["spec"]["revision"]["number"] = json!(0);
        complete
    };
    let kept = changed(keeps(open()));
    assert_eq!(judged(&written(&kept).unwrap()), expected);
    // The reset that was to follow is not lost, and follows once.
    let mut complete = changed(open());
    let state = written(&complete).unwrap();
    let anew = rollout::CompartmentState::new(2);
    assert_eq!(state.compartments["gpu"], anew);
    let mut after = complete.clone();
    after.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
    after.rollouts[0]["spec"]["revision"]["number"] = json!(0);
    assert_eq!(written(&after).unwrap().compartments["gpu"], anew, "once");
    // It was not complete: the batch goes on.
    complete.skyhooks[0]["status"]["status"] = json!("in_progress");
    assert_eq!(written(&complete).unwrap().compartments["gpu"].batch, 3);
}
