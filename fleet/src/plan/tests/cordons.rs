//! When a cordon is given back.

use super::leases::{grant_and, granted, leased, stamp, with_package};
use super::*;

#[test]
fn a_result_gives_the_cordon_back_unless_other_work_comes_next() {
    let cordoned = || {
        stamp(Picture::new(), granted())
            .annotated(1, "skyhook.nvidia.com/cordon_s", "true")
            .annotated(
                1,
                "skyhook.nvidia.com/cordon-owners",
                r#"{"wasUnschedulable":false,"owners":{"s":"lease"}}"#,
            )
            .node(1, &["spec", "unschedulable"], json!(true))
    };
    let uncordons = |picture: &Picture| {
        picture.plan().effects.iter().any(|effect| match effect {
            Effect::PatchNode { patch, .. } => patch.unschedulable == Some(false),
            _ => false,
        })
    };
    let done = with_package("Complete", "complete");
    assert!(uncordons(&leased(cordoned(), grant_and(json!({})), done)));
    let stopped = with_package("Stopped", "in_progress");
    let new_revision = grant_and(json!({
        "revision": "s-old", "stop": { "reason": StopReason::NewRevision, "since": "t" },
    }));
    assert!(!uncordons(&leased(
        cordoned(),
        new_revision,
        stopped.clone()
    )));
    let edited = grant_and(json!({ "stop": { "reason": StopReason::Edited, "since": "t" } }));
    assert!(!uncordons(&leased(cordoned(), edited, stopped.clone())));
    let disabled = grant_and(json!({ "stop": { "reason": StopReason::Disabled, "since": "t" } }));
    assert!(uncordons(&leased(cordoned(), disabled, stopped)));
}

#[test]
fn marks_go_when_somebody_uncordons_unless_a_drain_needs_the_cordon() {
    let uncordoned = || {
        stamp(Picture::new(), granted())
            .annotated(1, "skyhook.nvidia.com/cordon_s", "true")
            .annotated(
                1,
                "skyhook.nvidia.com/cordon-owners",
                r#"{"wasUnschedulable":false,"owners":{"s":"lease"}}"#,
            )
    };
    let written = |picture: &Picture| {
        picture
            .plan()
            .effects
            .iter()
            .find_map(|effect| match effect {
                Effect::PatchNode { patch, .. } => {
                    let marks = patch.annotations.get("skyhook.nvidia.com/cordon-owners");
                    marks.map(|marks| (marks.is_some(), patch.unschedulable))
                }
                _ => None,
            })
    };
    let working = |phase: &str, needs_drain: bool| {
        let mut status = with_package(phase, "in_progress");
        status["needsDrain"] = json!(needs_drain);
        leased(uncordoned(), grant_and(json!({})), status)
    };
    assert_eq!(written(&uncordoned()), Some((false, None)), "no lease");
    assert_eq!(
        written(&working("Running", true)),
        Some((false, None)),
        "past the drain"
    );
    assert_eq!(
        written(&working("AwaitingDrain", true)),
        None,
        "marked already"
    );
}

#[test]
fn a_cordon_without_an_owner_is_given_back() {
    let cordoned = |picture: Picture| {
        picture
            .annotated(1, "skyhook.nvidia.com/cordon_s", "true")
            .node(1, &["spec", "unschedulable"], json!(true))
    };
    let uncordons = |picture: Picture| {
        picture.plan().effects.iter().any(|effect| match effect {
            Effect::PatchNode { patch, .. } => patch.unschedulable == Some(false),
            _ => false,
        })
    };
    let complete = |picture: Picture| {
        picture.annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
    };
    assert!(
        uncordons(complete(cordoned(Picture::new()))),
        "left by NVIDIA Skyhook on a complete node"
    );
    assert!(
        !uncordons(cordoned(Picture::new())),
        "the Skyhook is about to go on"
    );
    assert!(
        uncordons(cordoned(Picture::new()).skyhook(
            &["spec", "nodeSelectors"],
            json!({ "matchLabels": { "a": "b" } })
        )),
        "the node left the selection"
    );
    let ignored = |picture: Picture| {
        picture.node(
            1,
            &["metadata", "labels", "skyhook.nvidia.com/ignore"],
            json!("true"),
        )
    };
    assert!(
        uncordons(ignored(cordoned(Picture::new()))),
        "nothing says when the Skyhook could go on"
    );
    let orphaned = Picture {
        skyhooks: Vec::new(),
        ..cordoned(Picture::new())
    };
    assert!(uncordons(orphaned), "the Skyhook is gone");
    let administrators = Picture::new().node(1, &["spec", "unschedulable"], json!(true));
    assert!(!uncordons(complete(administrators)), "an administrator's");
}

#[test]
fn the_guard_lets_pass_what_gives_the_last_cordon_back() {
    let cordoned = |record: Option<&str>| {
        let done = Picture::new()
            .annotated(1, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
            .annotated(1, "skyhook.nvidia.com/cordon_s", "true")
            .node(1, &["spec", "unschedulable"], json!(true));
        let record = record.map(|record| (1, "skyhook.nvidia.com/cordon-owners", record));
        record.map_or(done.clone(), |(n, key, record)| {
            done.annotated(n, key, record)
        })
    };
    let protected = r#"{"wasUnschedulable":false,"owners":{"s":"one"},"protects":["a"]}"#;
    for (name, record, want) in [
        ("left by NVIDIA Skyhook", None, None),
        (
            "ours",
            Some(r#"{"wasUnschedulable":false,"owners":{"s":"one"}}"#),
            Some(None),
        ),
        ("with what protects the node", Some(protected), Some(None)),
    ] {
        let picture = cordoned(record);
        let index = picture.index();
        let effects = picture.plan_of(&index).effects;
        let written = effects.iter().find_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if node == "worker-1" => Some((effect, patch)),
            _ => None,
        });
        let (effect, patch) = written.expect(name);
        assert_eq!(patch.unschedulable, Some(false), "{name}");
        let record = patch.annotations.get("skyhook.nvidia.com/cordon-owners");
        let record = record.map(|record| record.as_deref());
        assert_eq!(record, want, "{name}");
        let checked = crate::guard::check(&index, &picture.settings, effect);
        assert_eq!(checked, Ok(()), "{name}");
        // A write that leaves an owner behind opens the node too early.
        let mut early = patch.clone();
        let owned = r#"{"wasUnschedulable":false,"owners":{"s":"one","t":"two"}}"#;
        early = early.annotation("skyhook.nvidia.com/cordon-owners", Some(owned.to_owned()));
        let Effect::PatchNode { node, at, why, .. } = effect.clone() else {
            continue;
        };
        let early = Effect::PatchNode {
            node,
            at,
            patch: early,
            why,
        };
        let refused = crate::guard::check(&index, &picture.settings, &early);
        assert_eq!(
            refused,
            Err(crate::guard::Broken::UncordonNotOurs),
            "{name}"
        );
    }
}
