//! Failures that are kept, and states that are not understood.

use super::*;

#[test]
fn a_state_that_a_newer_version_wrote_or_that_cannot_be_read_parks_the_whole_skyhook() {
    // Compartment `gpu` has no strategy: without the state its nodes would be leased as soon as a slot is free.
    let window = || {
        with_batch(
            paced(&json!({ "budget": { "count": 2 } })),
            &[1],
            &json!({}),
        )
    };
    assert_eq!(window().reserved(), ["s/worker-1", "s/worker-2"]);
    let newer = |mut picture: Picture| {
        picture.rollouts[0]["spec"]["format"] = json!(1);
        picture
    };
    let unreadable = |mut picture: Picture| {
        picture.rollouts[0]["spec"]["compartments"] = json!([]);
        picture
    };
    for (picture, message) in [
        (
            newer(window()),
            "RolloutState s: a newer version wrote it (form 1, this one knows 0): upgrade the coordinator",
        ),
        (
            unreadable(window()),
            "RolloutState s: spec cannot be read: invalid type: sequence, expected a map",
        ),
    ] {
        assert_eq!(picture.reserved(), Vec::<String>::new());
        for worker in ["worker-1", "worker-2", "worker-3"] {
            assert_eq!(picture.reason("s", worker), "NewerVersion");
        }
        let status = shown(&picture);
        let mut ready = status.conditions.iter().filter(|one| one.type_ == "Ready");
        let ready = ready
            .next()
            .map(|one| one.message.clone())
            .unwrap_or_default();
        assert!(ready.contains(message), "{ready}");
        assert_eq!(written(&picture), None);
        let kinds: Vec<&str> = picture.plan().effects.iter().map(Effect::kind).collect();
        assert!(!kinds.contains(&"DeleteRollout"), "{kinds:?}");
    }
    // Nothing is granted, also where there is no strategy, and what belongs to no batch may end.
    let reserved = |spec: Value| leased(stamp(newer(window()), granted()), spec, json!(null));
    assert_eq!(
        on_leases(&reserved(in_batch(json!({})))),
        Vec::<String>::new()
    );
    let of_no_batch = reserved(json!({ "compartment": "gpu" }));
    assert_eq!(on_leases(&of_no_batch), Vec::<String>::new());
    let ended = |spec: Value| {
        let spec = grant_and(spec);
        let mut picture = leased(
            stamp(newer(window()), granted()),
            spec,
            with_package("Running", "in_progress"),
        );
        set(
            &mut picture.nodes[0],
            &["metadata", "uid"],
            json!("another"),
        );
        on_leases(&picture)
    };
    let released = ["ReleaseLeaseOfGoneNode"];
    assert_eq!(ended(json!({ "compartment": "gpu" })), released);
    assert_eq!(ended(in_batch(json!({}))), Vec::<String>::new());
}

pub(super) fn erroring(restarts: i32) -> Value {
    let mut status = with_package("Erroring", "erroring");
    status["packages"]["aa|1.0.0"]["restarts"] = json!(restarts);
    status
}

#[test]
fn a_failure_is_kept_before_its_lease_goes() {
    let lease = |picture: Picture, status: Value, node_uid: &str| {
        let spec = in_batch(grant_and(
            json!({ "node": { "name": "worker-1", "uid": node_uid } }),
        ));
        leased(stamp(picture, granted()), spec, status)
    };
    let own = "uid-of-worker-1";
    let open = |failed: Value| {
        let mut picture = with_batch(exponential(), &[1], &json!({ "failed": failed }));
        // The member that the lease is about, whichever Node has the name now.
        picture.rollouts[0]["spec"]["compartments"]["gpu"]["members"] =
            json!([rollout::member(own)]);
        picture
    };
    // Kept in the open batch, or in the judgement of it that the same write makes.
    let is_kept = |picture: &Picture| {
        written(picture).is_some_and(|state| {
            let gpu = &state.compartments["gpu"];
            gpu.last_batch_failed || !gpu.failed.is_empty()
        })
    };
    let tried = lease(open(json!([])), erroring(2), own);
    assert!(!is_kept(&tried), "it is tried again");
    let failing = lease(open(json!([])), erroring(3), own);
    assert!(is_kept(&failing));
    let mut given_up = erroring(0);
    given_up["parked"] = json!({ "package": "aa", "stage": "apply", "attempts": 1 });
    let given_up = lease(open(json!([])), given_up, own);
    assert!(is_kept(&given_up), "it is not tried again");

    let replaced = |failed: Value, status: Value| {
        let mut picture = lease(open(failed), status, own);
        set(
            &mut picture.nodes[0],
            &["metadata", "uid"],
            json!("another"),
        );
        picture
    };
    let begun = || with_package("Running", "in_progress");
    let first = replaced(json!([]), begun());
    assert!(is_kept(&first));
    assert_eq!(
        on_leases(&first),
        Vec::<String>::new(),
        "the failure is not kept yet"
    );
    let kept = replaced(json!([0]), begun());
    assert_eq!(on_leases(&kept), ["ReleaseLeaseOfGoneNode"]);
    let mut earlier = replaced(json!([]), begun());
    earlier.leases[0]["spec"]["skyhook"]["uid"] = json!("earlier");
    assert_eq!(
        on_leases(&earlier),
        ["ReleaseLeaseOfGoneNode"],
        "it is of an earlier Skyhook of this name"
    );
    let idle = replaced(json!([]), with_package("Accepted", "complete"));
    assert_eq!(
        on_leases(&idle),
        ["ReleaseLeaseOfGoneNode"],
        "nothing had begun"
    );

    let mut forced = lease(open(json!([])), begun(), own);
    let force = json!({ skyhook_crds::names::FORCE_RELEASE: "lease" });
    set(&mut forced.leases[0], &["metadata", "annotations"], force);
    assert!(is_kept(&forced));
    assert_eq!(on_leases(&forced), Vec::<String>::new());
}

#[test]
fn what_failed_before_the_lease_is_no_failure_under_it() {
    // Restarts and state of package aa in the Node's record, the restarts that the agent reports, and what follows.
    for (before, state, reported, expected) in [
        (None, "", 2, false),
        (None, "", 3, true),
        (Some(7), "erroring", 7, false),
        // The first attempt under the lease is the restart after the failure in the record.
        (Some(7), "erroring", 8, false),
        (Some(7), "erroring", 10, false),
        (Some(7), "erroring", 11, true),
        (Some(7), "in_progress", 9, false),
        (Some(7), "in_progress", 10, true),
        // A change of the package has begun the count anew.
        (Some(7), "erroring", 2, false),
        (Some(7), "erroring", 3, true),
    ] {
        let installed = before.map_or(json!({}), |restarts| {
            let package = json!({
                "name": "aa", "version": "1.0.0", "image": "r/aa", "stage": "apply", "state": state,
                "restarts": restarts,
            });
            json!({ "aa|1.0.0": package })
        });
        let spec = in_batch(grant_and(json!({ "installed": installed })));
        let open = with_batch(exponential(), &[1], &json!({}));
        let picture = leased(stamp(open, granted()), spec, erroring(reported));
        let kept = written(&picture);
        let has_failed = kept.is_some_and(|kept| {
            let gpu = &kept.compartments["gpu"];
            gpu.last_batch_failed || !gpu.failed.is_empty()
        });
        assert_eq!(has_failed, expected, "{before:?} {state:?} {reported}");
    }
}

#[test]
fn the_failure_of_a_lease_that_is_abandoned_is_kept_first() {
    let disabled = |failed: Value, phase: &str| {
        let picture = with_batch(exponential(), &[1], &json!({ "failed": failed }));
        let spec = in_batch(grant_and(
            json!({ "stop": { "reason": "Disabled", "since": "t" } }),
        ));
        let mut picture = leased(
            stamp(picture, granted()),
            spec,
            with_package(phase, "in_progress"),
        );
        let disable = json!({ skyhook_crds::names::DISABLE: "true" });
        set(
            &mut picture.skyhooks[0],
            &["metadata", "annotations"],
            disable,
        );
        picture
    };
    // It has been disabled since the beginning of time.
    let late = |mut picture: Picture| {
        picture.now = Mono::from_secs(120);
        picture
    };
    let failed =
        |picture: &Picture| written(picture).map(|one| one.compartments["gpu"].failed.clone());
    let mut waits = disabled(json!([]), "Running");
    waits.now = Mono::from_secs(60);
    assert_eq!((failed(&waits), on_leases(&waits)), (None, Vec::new()));
    let over = late(disabled(json!([]), "Running"));
    assert_eq!(failed(&over), Some(vec![0]));
    assert_eq!(
        on_leases(&over),
        Vec::<String>::new(),
        "the failure is not kept yet"
    );
    let kept = late(disabled(json!([0]), "Running"));
    assert_eq!(
        (failed(&kept), on_leases(&kept)),
        (None, vec!["AbandonLease".to_owned()])
    );
    // Nothing has begun: nothing has failed.
    let idle = late(disabled(json!([]), "Accepted"));
    assert_eq!(
        (failed(&idle), on_leases(&idle)),
        (None, vec!["AbandonLease".to_owned()])
    );
}

#[test]
fn a_lost_node_has_failed_if_its_agent_says_that_a_step_had_begun() {
    let lost = |status: Value| {
        let open = with_batch(exponential(), &[1], &json!({}));
        let spec = in_batch(grant_and(json!({})));
        let picture = leased(open, spec, status);
        picture.node(1, &["metadata", "uid"], json!("another"))
    };
    let is_failed = |status: &Value| {
        let state = written(&lost(status.clone()));
        // The batch has one member, so the same write judges it.
        state.is_some_and(|state| state.compartments["gpu"].last_batch_failed)
    };
    // Package aa is complete, and bb waits for the drain: the host may have died of aa.
    let mut waits = with_package("AwaitingDrain", "complete");
    let mut pending = waits["packages"]["aa|1.0.0"].clone();
    pending["name"] = json!("bb");
    pending["state"] = json!("in_progress");
    pending["pending"] = json!(true);
    waits["packages"]["bb|1.0.0"] = pending;
    // A package whose configuration changed is in progress before its first step, while images are pulled.
    let pulls = with_package("Preparing", "in_progress");
    for (name, status, begun, expected) in [
        ("an old agent cannot tell", &waits, None, false),
        ("aa has run", &waits, Some(true), true),
        ("nothing has run", &waits, Some(false), false),
        ("an old agent counts what is planned", &pulls, None, true),
        ("nothing but a pull", &pulls, Some(false), false),
        ("the step has begun", &pulls, Some(true), true),
        (
            "it failed before the lease",
            &erroring(3),
            Some(false),
            false,
        ),
        (
            "it failed and was tried again",
            &erroring(1),
            Some(true),
            true,
        ),
        ("an old agent says that it fails", &erroring(1), None, true),
    ] {
        let mut status = status.clone();
        if let Some(begun) = begun {
            status["begun"] = json!(begun);
        }
        assert_eq!(is_failed(&status), expected, "{name}");
    }
    let mut ended = with_package("Complete", "complete");
    ended["begun"] = json!(true);
    assert!(!is_failed(&ended), "the agent has ended");
}
