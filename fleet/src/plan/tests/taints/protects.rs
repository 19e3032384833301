//! T11: what keeps autoscalers from removing a node.

use super::*;
use crate::clocks::Backoff;
use crate::plan::reason::ReasonCode;

const BOTH: [&str; 2] = names::PROTECTIONS;

fn on(protects: &[&str], owners: &[(&str, &str)]) -> Vec<String> {
    let mut lines: Vec<String> = protects.iter().map(|key| format!("{key}: true")).collect();
    lines.push(format!(
        "cordon-owners: {}",
        cordons(false, owners, protects)
    ));
    lines
}

/// Both are ours, and on the node.
fn protected(picture: Picture) -> Picture {
    let picture = picture.annotated(1, names::CORDON_OWNERS, &cordons(false, &[], &BOTH));
    BOTH.iter()
        .fold(picture, |picture, key| picture.annotated(1, key, "true"))
}

fn gone() -> Vec<String> {
    let mut lines: Vec<String> = BOTH.iter().map(|key| format!("{key} goes")).collect();
    lines.push("cordon-owners goes".to_owned());
    lines
}

#[test]
fn a_leased_node_is_protected_until_its_result_is_written() {
    let reserved = || leased(Picture::new(), json!({}), Value::Null);
    let scale_down = names::SCALE_DOWN_DISABLED;
    let result = |picture: Picture| {
        leased(
            stamp(picture, granted()),
            grant_and(json!({})),
            with_package("Complete", "complete"),
        )
    };
    let open = |picture: Picture| tainted(picture, 1, &[OURS]);
    for (name, picture, want) in [
        (
            "T11a: the stamp before the grant",
            reserved(),
            on(&BOTH, &[]),
        ),
        (
            "T11b: one was there",
            reserved().annotated(1, scale_down, "false"),
            on(&BOTH[1..], &[]),
        ),
        (
            "T11b: both were there",
            reserved()
                .annotated(1, scale_down, "true")
                .annotated(1, names::DO_NOT_DISRUPT, "true"),
            Vec::new(),
        ),
        (
            "T11c: the result",
            result(protected(Picture::new())),
            gone(),
        ),
        (
            "T11c: the result, and one was there before",
            result(
                Picture::new()
                    .annotated(1, scale_down, "true")
                    .annotated(1, names::DO_NOT_DISRUPT, "true")
                    .annotated(1, names::CORDON_OWNERS, &cordons(false, &[], &BOTH[1..])),
            ),
            vec![format!("{} goes", BOTH[1]), "cordon-owners goes".to_owned()],
        ),
        (
            "T11d: the result, and the taint is still there",
            result(open(protected(required(json!({}))))),
            Vec::new(),
        ),
        (
            "T11c: the taint goes after the result",
            leased(
                stamp(
                    done(open(protected(required(json!({}))))),
                    recorded(&required(json!({}))),
                ),
                grant_and(json!({})),
                with_package("Complete", "complete"),
            ),
            [vec!["taints []".to_owned()], gone()].concat(),
        ),
        (
            "T11i: the lease is gone without a result",
            protected(Picture::new().skyhook(
                &["metadata", "annotations"],
                json!({ names::PAUSE: "true" }),
            )),
            gone(),
        ),
        (
            "T11g: somebody changed one",
            protected(Picture::new()).annotated(1, scale_down, "false"),
            gone().split_off(1),
        ),
        (
            "T11h: the result, and somebody removed one",
            result(protected(Picture::new()).node(
                1,
                &["metadata", "annotations", scale_down],
                Value::Null,
            )),
            gone().split_off(1),
        ),
        (
            "T11h: somebody removed one, and it is worked on",
            leased(
                stamp(
                    protected(Picture::new()).node(
                        1,
                        &["metadata", "annotations", scale_down],
                        Value::Null,
                    ),
                    granted(),
                ),
                grant_and(json!({})),
                with_package("Running", "in_progress"),
            ),
            Vec::new(),
        ),
    ] {
        let picture = Picture {
            nodes: picture.nodes.iter().map(without_null).collect(),
            ..picture
        };
        assert_eq!(written(&picture, "worker-1"), want, "{name}");
    }
}

/// A Node whose annotations that are null are not there.
fn without_null(node: &Value) -> Value {
    let mut node = node.clone();
    if let Some(annotations) = node["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|_, value| !value.is_null());
    }
    node
}

/// T11j: the cordon is given back, and what protects the node stays.
#[test]
fn a_cordon_goes_without_the_protection() {
    let picture = tainted(required(json!({})), 1, &[OURS]);
    let picture = protected(picture)
        .annotated(
            1,
            names::CORDON_OWNERS,
            &cordons(false, &[("gone", "one")], &BOTH),
        )
        .annotated(1, &names::cordon("gone"), "true")
        .node(1, &["spec", "unschedulable"], json!(true));
    let kept = format!("cordon-owners: {}", cordons(false, &[], &BOTH));
    assert_eq!(written(&picture, "worker-1"), ["uncordon", kept.as_str()]);
}

#[test]
fn a_tainted_node_is_protected_while_it_waits_for_its_turn_and_not_for_a_person() {
    let base = || tainted(required(json!({})), 1, &[OURS]);
    let annotated =
        |key: &str| base().skyhook(&["metadata", "annotations"], json!({ key: "true" }));
    let budget =
        |count: i32| base().skyhook(&["spec", "interruptionBudget"], json!({ "count": count }));
    let all = on(&BOTH, &[]);
    let earlier = base()
        .skyhook(&["spec", "priority"], json!(300))
        .another(skyhook("a", json!({ "runtimeRequired": true })));
    let none = Vec::new;
    for (name, picture, want) in [
        ("T11e: a slot is free", base(), all.clone()),
        ("T11e: budget 0", budget(0), all.clone()),
        ("T11e: paused", annotated(names::PAUSE), all.clone()),
        ("T11e: an earlier Skyhook", earlier, all.clone()),
        (
            "T11f: another taint",
            tainted(base(), 1, &[OURS, "x:NoSchedule"]),
            none(),
        ),
        (
            "T11f: ignored",
            base().node(1, &["metadata", "labels", names::IGNORE], json!("true")),
            none(),
        ),
        (
            "T11f: without its policy",
            base().skyhook(
                &["spec"],
                json!({ "runtimeRequired": true, "deploymentPolicy": "gone", "packages": packages() }),
            ),
            none(),
        ),
        (
            "T11f: malformed",
            base().annotated(1, &names::node_state("s"), "{"),
            none(),
        ),
        (
            "T11f: a newer record",
            stamp(
                base(),
                Stamp {
                    format: 7,
                    ..Stamp::default()
                },
            ),
            none(),
        ),
        ("T11f: disabled", annotated(names::DISABLE), none()),
        (
            "T11f: it waited before",
            protected(annotated(names::DISABLE)),
            gone(),
        ),
        (
            "a taint that nobody requires",
            tainted(Picture::new(), 1, &[OURS]),
            none(),
        ),
    ] {
        assert_eq!(written(&picture, "worker-1"), want, "{name}");
    }
    // T5a: another node has the only slot.
    let full = tainted(base(), 2, &[OURS]);
    assert_eq!(written(&full, "worker-2"), all, "T5a");
    // T5c: a Node that was registered anew gets a lease, and its agent finds everything installed.
    let anew = || tainted(required(json!({})), 1, &[OURS]);
    assert_eq!(anew().reserved(), ["s/worker-1"], "T5c");
    let reported = leased(
        stamp(protected(anew()), granted()),
        grant_and(json!({})),
        with_package("Complete", "complete"),
    );
    let result = reported.plan().effects.into_iter();
    let mut result = result.filter_map(|effect| match effect {
        Effect::PatchNode { patch, .. } => Some(patch),
        _ => None,
    });
    let result = result.next().expect("the result is written");
    assert_eq!(result.taints, None, "T5c: the taint goes after the result");
    let mut index = reported.index();
    let node = testkit::patched(&index.picture.nodes()["worker-1"], &result);
    index.picture.node(node);
    let untaint = ["taints []".to_owned()].into_iter().chain(gone());
    assert_eq!(
        written_by(&reported, &index, "worker-1"),
        untaint.collect::<Vec<_>>(),
        "T5c"
    );
    // T11e: a back-off.
    let mut index = base().index();
    index.back_off(
        "worker-1".into(),
        Backoff {
            skyhook: None,
            until: Mono::from_secs(2000),
            code: ReasonCode::AgentNotResponding,
            message: "",
        },
    );
    assert_eq!(
        written_by(&base(), &index, "worker-1"),
        all,
        "T11e: back-off"
    );
}
