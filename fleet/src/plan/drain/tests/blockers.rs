//! What a lease says about the pods that keep its node from being drained.

use super::*;
use crate::pods::RefusedBy::{DisruptionBudget, Server, Webhook};
use BlockCause::{EmptyDirData, NonInterruptLabels, PodDisruptionBudget, UnmanagedPod};

/// The state of the drain that the plan writes.
fn written(case: &Case) -> Drain {
    let plan = case.plan();
    let drain = plan.effects.into_iter().find_map(|effect| match effect {
        Effect::SetDrain { drain, .. } => Some(drain),
        _ => None,
    });
    drain.unwrap()
}

fn listed(pods: Vec<PodFact>) -> Case {
    Case::new(vec![(NOW - Duration::from_millis(500), pods)])
}

fn bare() -> PodFact {
    pod("bare", json!({ "metadata": { "ownerReferences": null } }))
}

fn scratch() -> PodFact {
    let volumes = json!([{ "name": "v", "emptyDir": {} }]);
    pod("scratch", json!({ "spec": { "volumes": volumes } }))
}

#[test]
fn evictions_back_off() {
    let tried = |attempts| EvictionTry {
        at: NOW,
        attempts,
        problem: None,
    };
    let wait = |n| tried(n).next().since(NOW).as_secs();
    assert_eq!([1, 2, 3, 4, 5, 6].map(wait), [1, 2, 4, 8, 15, 15]);
}

#[test]
fn a_blocker_has_a_cause_where_somebody_can_do_something() {
    let config = json!({ "force": false, "deleteEmptyDirData": false });
    let spec = json!({
        "packages": { "aa": { "version": "1.0.0", "image": "r/aa" } },
        "podNonInterruptLabels": { "matchLabels": { "dontmess": "withme" } },
        "drainConfig": config,
    });
    let keep = json!({ "metadata": { "labels": { "dontmess": "withme" } } });
    let leaving = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let web = || pod("web", json!({}));
    let no_controller = "no controller will replace it: set spec.drainConfig.force, or delete it";
    let would_lose =
        "it would lose its emptyDir: set spec.drainConfig.deleteEmptyDirData, or delete it";
    for (name, pod, eviction, want) in [
        (
            "a budget refuses",
            web(),
            Some((DisruptionBudget, "the budget")),
            (Some(PodDisruptionBudget), "the budget"),
        ),
        (
            "a webhook refuses",
            web(),
            Some((Webhook, "the VM is moved")),
            (None, "the VM is moved"),
        ),
        (
            "the API server fails",
            web(),
            Some((Server, "500")),
            (None, "500"),
        ),
        (
            "it is being evicted",
            web(),
            None,
            (None, "is being evicted"),
        ),
        (
            "it terminates",
            pod("web", leaving),
            Some((DisruptionBudget, "the budget")),
            (None, "is terminating"),
        ),
        (
            "no controller",
            bare(),
            None,
            (Some(UnmanagedPod), no_controller),
        ),
        (
            "an emptyDir",
            scratch(),
            None,
            (Some(EmptyDirData), would_lose),
        ),
        (
            "it must not be interrupted",
            pod("train", keep),
            None,
            (
                Some(NonInterruptLabels),
                "matches podNonInterruptLabels: waiting until it has finished",
            ),
        ),
    ] {
        let case = Case {
            spec: spec.clone(),
            evictions: eviction
                .map(|refusal| ("web", Some(refusal)))
                .into_iter()
                .collect(),
            ..listed(vec![pod])
        };
        let blockers = written(&case).blockers;
        let given: Vec<_> = blockers
            .iter()
            .map(|one| (one.cause, one.reason.as_str()))
            .collect();
        assert_eq!(given, [want], "{name}");
    }
}

/// Another replica has led before, and has written why the pod stays.
#[test]
fn a_pod_that_a_budget_keeps_is_named_until_there_is_another_answer() {
    let kept = json!({
        "state": "Draining", "since": "2026-01-01T00:00:00Z",
        "blockers": [{ "pod": "default/web", "reason": "the budget", "cause": "PodDisruptionBudget" }],
    });
    let case = |evictions: Vec<(&'static str, Option<(RefusedBy, &'static str)>)>| Case {
        drain: kept.clone(),
        evictions,
        ..listed(vec![pod("web", json!({}))])
    };
    assert_eq!(case(Vec::new()).effects(), ["evict web"]);
    for (answer, cause) in [
        (None, None),
        (
            Some((DisruptionBudget, "another")),
            Some(PodDisruptionBudget),
        ),
    ] {
        let blockers = written(&case(vec![("web", answer)])).blockers;
        assert_eq!(blockers[0].cause, cause);
    }
}

#[test]
fn many_blockers_are_counted_and_those_that_stay_are_named_first() {
    let mut pods: Vec<PodFact> = (0..30)
        .map(|n| pod(&format!("app-{n:02}"), json!({})))
        .collect();
    pods.push(bare());
    let drain = written(&Case {
        spec: json!({
            "packages": { "aa": { "version": "1.0.0", "image": "r/aa" } }, "drainConfig": { "force": false },
        }),
        ..listed(pods)
    });
    assert_eq!((drain.blockers.len(), drain.more), (MAX_BLOCKERS, 21));
    let first: Vec<_> = drain.blockers.iter().map(|one| one.pod.as_str()).collect();
    assert_eq!(first[..2], ["default/bare", "default/app-00"]);
}
