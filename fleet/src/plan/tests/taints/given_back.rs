//! T4: what happens where no Skyhook requires the taint, and what the guard refuses.

use super::*;

#[test]
fn only_what_was_ours_is_given_back() {
    let nobody = || {
        let elsewhere = json!({ "nodeSelectors": { "matchLabels": { "a": "b" } } });
        tainted(required(elsewhere), 1, &["x:NoSchedule", OURS])
    };
    let given_back = [
        "taints [x:NoSchedule]",
        "autoTaint_skyhook.nvidia.com: false",
    ];
    let nodewrights = [
        "taints [x:NoSchedule]",
        "nodewright.nvidia.com/autoTaint_skyhook.nvidia.com goes",
        "autoTaint_skyhook.nvidia.com: false",
    ];
    let theirs = names::successor(AUTO);
    let none = |picture: Picture| Picture {
        skyhooks: Vec::new(),
        ..picture
    };
    let ignored =
        |picture: Picture| picture.node(1, &["metadata", "labels", names::IGNORE], json!("true"));
    for (name, picture, want) in [
        (
            "T4a: ours",
            nobody().annotated(1, AUTO, "true"),
            &given_back[..],
        ),
        ("T4b: a kubelet's", nobody(), &NOTHING),
        (
            "T4b: ours once",
            nobody().annotated(1, AUTO, "false"),
            &NOTHING,
        ),
        (
            "T4d: no Skyhook at all",
            none(nobody().annotated(1, AUTO, "true")),
            &given_back,
        ),
        (
            "T4g: on an ignored node",
            ignored(none(nobody().annotated(1, AUTO, "true"))),
            &given_back,
        ),
        (
            "T4f: an ignored node joined tainted",
            ignored(tainted(required(json!({})), 1, &["x:NoSchedule", OURS])),
            &NOTHING,
        ),
        (
            "NodeWright's",
            nobody().annotated(1, &theirs, "true"),
            &nodewrights,
        ),
        (
            "T4h: of an earlier setting",
            tainted(
                done(required(json!({}))),
                1,
                &["x:NoSchedule", "early:NoExecute"],
            )
            .annotated(1, "skyhook.nvidia.com/autoTaint_early", "true"),
            &["taints [x:NoSchedule]", "autoTaint_early: false"],
        ),
        (
            "only those that we put there",
            tainted(none(Picture::new()), 1, &[OURS, "early:NoSchedule"]).annotated(
                1,
                "skyhook.nvidia.com/autoTaint_early",
                "true",
            ),
            &[
                "taints [skyhook.nvidia.com=runtime-required:NoSchedule]",
                "autoTaint_early: false",
            ],
        ),
    ] {
        assert_eq!(written(&picture, "worker-1"), want, "{name}");
    }
}

/// T4c: the finalizer goes after the taint, and the condition Ready says what is waited for.
#[test]
fn a_deleted_skyhook_takes_its_taint_along() {
    let deleting = |picture: Picture| {
        let time = json!("2026-01-01T00:00:00Z");
        picture.skyhook(&["metadata", "deletionTimestamp"], time)
    };
    let tainted_ = || tainted(required(json!({})), 1, &[OURS]);
    let marked = || deleting(tainted_().annotated(1, AUTO, "true"));
    let released = |picture: &Picture| {
        let effects = picture.plan().effects;
        effects
            .iter()
            .any(|effect| effect.kind() == "ReleaseSkyhook")
    };
    let ready = |picture: &Picture| {
        let effects = picture.plan().effects;
        effects.iter().find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => {
                let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
                ready.map(|ready| ready.message.clone())
            }
            _ => None,
        })
    };
    assert!(!released(&marked()));
    assert_eq!(
        ready(&marked()).as_deref(),
        Some("takes the runtime-required taint off: worker-1")
    );
    assert_eq!(
        written(&marked(), "worker-1"),
        ["taints []", "autoTaint_skyhook.nvidia.com: false"]
    );
    for (name, picture, want) in [
        ("a kubelet's taint stays", deleting(tainted_()), true),
        (
            "another one requires it",
            marked().another(also(json!({}))),
            true,
        ),
        (
            "what protects the node is still there",
            deleting(required(json!({})))
                .annotated(1, names::DO_NOT_DISRUPT, "true")
                .annotated(
                    1,
                    names::CORDON_OWNERS,
                    &cordons(false, &[], &[names::DO_NOT_DISRUPT]),
                ),
            false,
        ),
    ] {
        assert_eq!(released(&picture), want, "{name}");
    }
}

#[test]
fn the_guard_refuses_what_would_free_a_node_too_early() {
    let picture = between(required(json!({}))).annotated(1, AUTO, "true");
    let open = tainted(
        required(json!({})),
        1,
        &["x:NoSchedule", OURS, "y:NoSchedule"],
    )
    .annotated(1, &names::node_state("s"), "{}");
    let unreadable = picture
        .clone()
        .another(also(json!({ "nodeSelectors": { "matchLabels": 7 } })));
    let nobody = Picture {
        skyhooks: Vec::new(),
        ..between(Picture::new())
    };
    let parsed = |text: &str| text.parse::<taints::RuntimeTaint>().unwrap().taint();
    for (name, picture, left, want) in [
        (
            "ours goes",
            &picture,
            vec!["x:NoSchedule", "y:NoSchedule"],
            Ok(()),
        ),
        (
            "somebody else's goes as well",
            &picture,
            vec!["y:NoSchedule"],
            Err(Broken::TaintNotOurs),
        ),
        (
            "the order changes",
            &picture,
            vec!["y:NoSchedule", "x:NoSchedule"],
            Err(Broken::TaintNotOurs),
        ),
        (
            "another one comes",
            &picture,
            vec!["x:NoSchedule", "y:NoSchedule", "z:NoSchedule"],
            Err(Broken::TaintNotOurs),
        ),
        (
            "the Skyhook is not complete",
            &open,
            vec!["x:NoSchedule", "y:NoSchedule"],
            Err(Broken::UntaintEarly),
        ),
        (
            "nobody knows for which nodes one is",
            &unreadable,
            vec!["x:NoSchedule", "y:NoSchedule"],
            Err(Broken::UntaintEarly),
        ),
        (
            "nobody requires it, and we have not put it there",
            &nobody,
            vec!["x:NoSchedule", "y:NoSchedule"],
            Err(Broken::TaintNotOurs),
        ),
    ] {
        let effect = Effect::PatchNode {
            node: "worker-1".into(),
            at: version("uid-of-worker-1", "1"),
            patch: NodePatch {
                taints: Some(left.into_iter().map(parsed).collect()),
                ..NodePatch::default()
            },
            why: [Cause::Untaint].into(),
        };
        let given = guard::check(&picture.index(), &picture.settings, &effect);
        assert_eq!(given, want, "{name}");
    }
    // A node that was cordoned when its taint went is not uncordoned by us.
    let mark = names::RUNTIME_REQUIRED_CORDON;
    let kept = Picture::new()
        .annotated(1, mark, "true")
        .annotated(
            1,
            names::CORDON_OWNERS,
            &cordons(false, &[("s", "one")], &[]),
        )
        .node(1, &["spec", "unschedulable"], json!(true));
    let effect = Effect::PatchNode {
        node: "worker-1".into(),
        at: version("uid-of-worker-1", "1"),
        patch: NodePatch {
            unschedulable: Some(false),
            ..NodePatch::default().annotation(names::CORDON_OWNERS, None)
        },
        why: [Cause::CordonWithoutOwner].into(),
    };
    let given = guard::check(&kept.index(), &kept.settings, &effect);
    assert_eq!(given, Err(Broken::UncordonNotOurs));
}
