//! What waits while the state of a roll-out is not known, or may be another one.

use super::*;
use crate::effect::AsOf;
use crate::index::Change;
use skyhook_crds::Status;

/// A lease of worker-1 in batch 3, under which an agent works, and whose Node was replaced.
fn replaced(picture: Picture) -> Picture {
    let spec = in_batch(grant_and(json!({})));
    let picture = leased(picture, spec, with_package("Running", "in_progress"));
    picture.node(1, &["metadata", "uid"], json!("another"))
}

fn looks(plan: &Plan) -> Vec<String> {
    let effects = plan.effects.iter();
    let states = effects.filter_map(|effect| match effect {
        Effect::LookForState { states, .. } => Some(states.clone()),
        _ => None,
    });
    states.flatten().collect()
}

fn of(plan: &Plan) -> Vec<String> {
    let all = effects(plan).into_iter();
    all.filter(|effect| !effect.starts_with("PatchNode"))
        .collect()
}

fn gone(state: &str) -> Change {
    Change::StatesGone {
        skyhook: "s".into(),
        states: vec![state.into()],
    }
}

#[test]
fn a_lease_of_a_state_that_is_not_in_the_picture_waits_for_a_look() {
    let mut another = with_batch(exponential(), &[2], &json!({}));
    another.rollouts[0]["metadata"]["uid"] = json!("an older one");
    for (name, picture) in [("none", exponential()), ("another", another)] {
        // The watch of the states is behind. Nobody knows here whether the failure is kept.
        let failed = replaced(picture.clone());
        assert_eq!(of(&failed.plan()), Vec::<String>::new(), "{name}");
        assert_eq!(looks(&failed.plan()), [STATE], "{name}");
        let mut index = failed.index();
        index.apply(gone(STATE), Mono::ZERO);
        let plan = failed.plan_of(&index);
        assert_eq!(of(&plan), ["ReleaseLeaseOfGoneNode"], "{name}");
        assert_eq!(looks(&plan), Vec::<String>::new(), "{name}");

        // The same with a lease that is not granted yet.
        let reserved = leased(stamp(picture, granted()), in_batch(json!({})), json!(null));
        assert_eq!(on_leases(&reserved), Vec::<String>::new(), "{name}");
        let mut index = reserved.index();
        index.apply(gone(STATE), Mono::ZERO);
        let withdrawn = "WithdrawLease no open batch has the node";
        assert_eq!(of(&reserved.plan_of(&index)), [withdrawn], "{name}");
    }
}

#[test]
fn the_guard_keeps_a_lease_of_a_state_that_is_not_in_the_picture() {
    use crate::guard::{Broken, check};
    let failed = replaced(exponential());
    let mut index = failed.index();
    let release = Effect::ReleaseLeaseOfGoneNode {
        node: "worker-1".into(),
        at: version("lease", "5"),
        node_uid: "uid-of-worker-1".into(),
    };
    assert_eq!(
        check(&index, &failed.settings, &release),
        Err(Broken::ReleaseUnkept)
    );
    index.apply(gone(STATE), Mono::ZERO);
    assert_eq!(check(&index, &failed.settings, &release), Ok(()));
    // It is forgotten with the last lease that names it.
    index.apply(Change::LeaseGone("worker-1".into()), Mono::ZERO);
    index.expire(Mono::ZERO);
    assert!(!index.clocks().is_state_gone("s", STATE));
}

#[test]
fn a_state_that_the_api_server_refuses_is_said_to_be_refused() {
    use crate::outcome::Outcome;
    use crate::session::Session;
    let picture = exponential();
    let mut session = Session::new(&picture.settings);
    session.start_from(picture.index());
    let now = Now {
        mono: picture.now,
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    let write = |session: &mut Session<'_>, outcome: Outcome| {
        let plan = picture.plan_of(session.index());
        let mut effects = plan.effects.into_iter();
        let write = effects
            .find(|effect| effect.kind() == "WriteRollout")
            .unwrap();
        session.settle(&write, outcome, now.mono);
    };
    let reason = |session: &Session<'_>| {
        let effects = picture.plan_of(session.index()).effects.into_iter();
        let mut all = effects.filter_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => {
                Some((status.status, status.node_reasons["worker-2"].clone()))
            }
            _ => None,
        });
        all.next()
            .map(|(status, reason)| (status, reason.reason, reason.message))
            .unwrap()
    };
    let (status, code, _) = reason(&session);
    assert_eq!(
        (status, code.as_str()),
        (Status::InProgress, "BatchUnderWay")
    );
    let error = "create rolloutstate/s: forbidden".to_owned();
    write(&mut session, Outcome::Refused { error });
    let message = "the state of the roll-out cannot be stored: create rolloutstate/s: forbidden";
    assert_eq!(
        reason(&session),
        (
            Status::Blocked,
            "RolloutStateRefused".to_owned(),
            message.to_owned()
        )
    );
    // That the state of an earlier Skyhook was deleted, or may not be deleted, says nothing about that.
    let delete = Effect::DeleteRollout {
        name: "s".into(),
        at: AsOf {
            uid: "earlier".into(),
            resource_version: "1".into(),
        },
        not_of: None,
    };
    session.settle(&delete, Outcome::Done(None), now.mono);
    assert_eq!(reason(&session).1, "RolloutStateRefused");
    write(&mut session, Outcome::Done(None));
    let error = "delete rolloutstate/s: forbidden".to_owned();
    session.settle(&delete, Outcome::Refused { error }, now.mono);
    assert_eq!(session.index().clocks().state_refused("s"), None);
}

/// Makes something wrong with a picture.
type Wrong = fn(Picture) -> Picture;

/// What can be wrong, so that nothing is decided about batches.
fn wrong() -> Vec<(&'static str, Wrong)> {
    let invalid = |picture: Picture| {
        let packages = json!({ "aa": { "version": "x", "image": "r" } });
        picture.skyhook(&["spec", "packages"], packages)
    };
    let unreadable = |picture: Picture| picture.skyhook(&["spec", "packages"], json!("nonsense"));
    let missing = |mut picture: Picture| {
        picture.policies.clear();
        picture
    };
    vec![
        ("the Skyhook is not valid", invalid),
        ("the Skyhook cannot be read", unreadable),
        ("the policy is missing", missing),
    ]
}

#[test]
fn a_failure_is_kept_also_while_nothing_is_decided() {
    for (name, wrong) in wrong() {
        let failed = replaced(with_batch(exponential(), &[1], &json!({})));
        let failed = wrong(failed);
        let state = written(&failed).expect(name);
        assert_eq!(state.compartments["gpu"].failed, [0], "{name}");
        assert_eq!(on_leases(&failed), Vec::<String>::new(), "{name}");
        let mut kept = failed;
        kept.rollouts[0]["spec"] = serde_json::to_value(&state).unwrap();
        assert_eq!(written(&kept), None, "{name}");
        assert_eq!(on_leases(&kept), ["ReleaseLeaseOfGoneNode"], "{name}");
    }
}

#[test]
fn a_failure_waits_for_the_list_of_states_also_while_nothing_is_decided() {
    let unlisted = |picture: &Picture| {
        let mut index = picture.index();
        index.apply(
            Change::ListBegins(crate::picture::Kind::Rollout),
            Mono::ZERO,
        );
        of(&picture.plan_of(&index))
    };
    for (name, wrong) in wrong() {
        let failed = wrong(replaced(with_batch(exponential(), &[1], &json!({}))));
        assert_eq!(unlisted(&failed), Vec::<String>::new(), "{name}");
        // A lease of no batch has nothing to wait for.
        let mut without = failed;
        without.leases[0]["spec"]["batch"] = json!(null);
        assert_eq!(unlisted(&without), ["ReleaseLeaseOfGoneNode"], "{name}");
    }
}

#[test]
fn a_lease_of_an_earlier_skyhook_of_the_name_is_released() {
    let open = with_batch(exponential(), &[1], &json!({}));
    let mut earlier = replaced(open);
    set(
        &mut earlier.leases[0],
        &["spec", "skyhook", "uid"],
        json!("earlier"),
    );
    assert_eq!(on_leases(&earlier), ["ReleaseLeaseOfGoneNode"]);
}

#[test]
fn the_status_keeps_what_it_shows_of_compartments_while_nothing_is_decided() {
    // NVIDIA Skyhook has stopped `gpu`, and that is shown nowhere else.
    let stopped = BatchState {
        current_batch: 2,
        consecutive_failures: 1,
        should_stop: true,
        ..BatchState::default()
    };
    let third = BatchState {
        current_batch: 3,
        ..BatchState::default()
    };
    let left = left_by_nvidia(&[("gpu", stopped), ("__default__", third)]);
    for (name, wrong) in wrong() {
        let before = exponential().skyhook(&["status"], left.clone());
        let status = shown(&wrong(before.clone())).compartment_statuses;
        let state = |name: &str| status[name].batch_state.clone().unwrap();
        assert!(state("gpu").should_stop, "{name}");
        assert_eq!(state("__default__").current_batch, 3, "{name}");
        let mut mended = before;
        mended.skyhooks[0]["status"]["compartmentStatuses"] =
            serde_json::to_value(&status).unwrap();
        let written = written(&mended).unwrap();
        assert!(written.compartments["gpu"].stopped.is_some(), "{name}");
    }
}

#[test]
fn a_list_of_states_changes_nothing_that_is_shown() {
    // `gpu` has stopped, worker-3 waits for its batch.
    let stopped = json!({
        "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let picture = with_batch(exponential(), &[], &stopped);
    let writes = |picture: &Picture, index: &Index| -> Vec<&'static str> {
        let effects = picture.plan_of(index).effects;
        let shows = |kind: &&str| matches!(*kind, "PatchNode" | "WriteSkyhookStatus");
        effects.iter().map(Effect::kind).filter(shows).collect()
    };
    assert!(!writes(&picture, &picture.index()).is_empty());
    let mut index = picture.index();
    index.apply(
        Change::ListBegins(crate::picture::Kind::Rollout),
        Mono::ZERO,
    );
    assert_eq!(writes(&picture, &index), Vec::<&str>::new());
}

#[test]
fn a_new_revision_does_not_hide_that_a_compartment_has_stopped() {
    let stopped = json!({
        "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let mut picture = with_batch(exponential(), &[], &stopped);
    picture.rollouts[0]["spec"]["revision"]["number"] = json!(0);
    let state = written(&picture).unwrap();
    assert!(
        state.compartments["gpu"].stopped.is_some(),
        "only the configuration changed"
    );
    assert_eq!(picture.reason("s", "worker-1"), "RolloutStopped");
}

#[test]
fn states_that_cannot_be_listed_are_said_to_be_unreadable() {
    let picture = with_batch(exponential(), &[1], &json!({}));
    let kind = crate::picture::Kind::Rollout;
    let mut index = picture.index();
    index.apply(Change::ListBegins(kind), Mono::ZERO);
    let why = "it is not installed".to_owned();
    index.apply(Change::Unlistable { kind, why }, Mono::ZERO);
    let reason = |index: &Index| {
        let effects = picture.plan_of(index).effects.into_iter();
        let mut all = effects.filter_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => {
                Some(status.node_reasons["worker-2"].clone())
            }
            _ => None,
        });
        all.next()
            .map(|reason| (reason.reason, reason.message))
            .unwrap()
    };
    let message = "the states of roll-outs (rolloutstates.skyhook.nvidia.com) cannot be read: it is not installed";
    assert_eq!(
        reason(&index),
        ("RolloutStateRefused".to_owned(), message.to_owned())
    );
    index.apply(Change::ListBegins(kind), Mono::ZERO);
    index.apply(
        Change::Rollout(Box::new(
            serde_json::from_value(picture.rollouts[0].clone()).unwrap(),
        )),
        Mono::ZERO,
    );
    index.apply(Change::Synced(kind), Mono::ZERO);
    assert_eq!(reason(&index).0, "BatchUnderWay");
}

#[test]
fn that_a_compartment_has_stopped_is_said_also_while_its_state_is_not_known() {
    let stopped = json!({
        "batch": 0, "members": [], "consecutiveFailures": 1, "shown": 2, "lastBatchSize": 1,
        "lastBatchFailed": true, "stopped": "2026-11-26T12:00:00Z",
    });
    let mut before = with_batch(exponential(), &[], &stopped);
    let message = condition(&shown(&before), "RolloutStopped");
    assert!(message.is_some());
    before.skyhooks[0]["status"] = serde_json::to_value(shown(&before)).unwrap();
    let mut newer = before.clone();
    newer.rollouts[0]["spec"]["format"] = json!(1);
    assert_eq!(condition(&shown(&newer), "RolloutStopped"), message);
    let kind = crate::picture::Kind::Rollout;
    let mut index = before.index();
    index.apply(Change::ListBegins(kind), Mono::ZERO);
    let why = "it is not installed".to_owned();
    index.apply(Change::Unlistable { kind, why }, Mono::ZERO);
    let status = status_of(before.plan_of(&index));
    assert_eq!(condition(&status, "RolloutStopped"), message);
    // It has no policy any more.
    let spec = json!({ "interruptionBudget": { "count": 1 }, "packages": packages() });
    let budget = before.skyhook(&["spec"], spec);
    assert_eq!(condition(&shown(&budget), "RolloutStopped"), None);
}

#[test]
fn compartments_without_a_strategy_go_on_while_states_cannot_be_listed() {
    // `gpu` is a sliding window, and the default compartment has batches.
    let window = || paced(&json!({ "budget": { "count": 2 } }));
    let of = |spec: Value| leased(stamp(window(), granted()), spec, json!(null));
    let kind = crate::picture::Kind::Rollout;
    let unlistable = |picture: &Picture| {
        let mut index = picture.index();
        index.apply(Change::ListBegins(kind), Mono::ZERO);
        let why = "it is not installed".to_owned();
        index.apply(Change::Unlistable { kind, why }, Mono::ZERO);
        super::unknown::of(&picture.plan_of(&index))
    };
    let of_no_batch = of(json!({ "compartment": "gpu" }));
    assert_eq!(unlistable(&of_no_batch), ["GrantLease"]);
    let none = Vec::<String>::new();
    assert_eq!(unlistable(&of(in_batch(json!({})))), none);
    let paced = of(json!({ "compartment": "__default__" }));
    assert_eq!(unlistable(&paced), none);
}

/// An agent that reports an error has not always begun: it may not be able to pull an image.
#[test]
fn the_guard_lets_a_lease_go_under_which_no_step_has_run() {
    use crate::guard::{Broken, check};
    let gone = |status: Value| {
        let spec = in_batch(grant_and(json!({})));
        let picture = leased(with_batch(exponential(), &[1], &json!({})), spec, status);
        picture.node(1, &["metadata", "uid"], json!("another"))
    };
    for (phase, state, begun, want) in [
        ("Erroring", "complete", None, Ok(())),
        ("Erroring", "erroring", Some(false), Ok(())),
        ("Preparing", "complete", None, Ok(())),
        ("Erroring", "erroring", None, Err(Broken::ReleaseUnkept)),
        (
            "Preparing",
            "complete",
            Some(true),
            Err(Broken::ReleaseUnkept),
        ),
        ("Running", "complete", None, Err(Broken::ReleaseUnkept)),
    ] {
        let mut status = with_package(phase, state);
        status["begun"] = json!(begun);
        let picture = gone(status);
        let release = Effect::ReleaseLeaseOfGoneNode {
            node: "worker-1".into(),
            at: version("lease", "5"),
            node_uid: "uid-of-worker-1".into(),
        };
        let index = picture.index();
        let name = format!("{phase} {state} {begun:?}");
        assert_eq!(check(&index, &picture.settings, &release), want, "{name}");
        let released = of(&picture.plan());
        let is_released = released.contains(&"ReleaseLeaseOfGoneNode".to_owned());
        assert_eq!(is_released, want.is_ok(), "{name}");
    }
}
