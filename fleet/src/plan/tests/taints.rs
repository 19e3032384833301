//! When the runtime-required taint is taken off, given back or kept, and what else is written with it.

use super::leases::{grant_and, granted, leased, stamp, with_package};
use super::*;
use crate::guard::{self, Broken};
use crate::taints;
use skyhook_crds::installed::{CordonRecord, Stamp};
use skyhook_crds::names;

mod hosts;
mod protects;
mod texts;

pub(super) const OURS: &str = "skyhook.nvidia.com=runtime-required:NoSchedule";
pub(super) const AUTO: &str = "skyhook.nvidia.com/autoTaint_skyhook.nvidia.com";

/// Puts taints, each as `key=value:effect`, on a node.
pub(super) fn tainted(picture: Picture, n: usize, taints: &[&str]) -> Picture {
    let taints: Vec<Value> = taints
        .iter()
        .map(|text| {
            let taint: taints::RuntimeTaint = text.parse().unwrap();
            json!(taint.taint())
        })
        .collect();
    picture.node(n, &["spec", "taints"], json!(taints))
}

/// Skyhook `s` is required on all nodes.
pub(super) fn required(more: Value) -> Picture {
    let mut picture = Picture::new().skyhook(&["spec", "runtimeRequired"], json!(true));
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        picture = picture.skyhook(&["spec", &key], value);
    }
    picture
}

/// Skyhook `s` is complete on worker-1.
fn done(picture: Picture) -> Picture {
    picture.annotated(1, &names::node_state("s"), &complete("1.0.0"))
}

/// The stamp of a result of the lease of worker-1, at the revision that the Skyhook asks for.
fn recorded(picture: &Picture) -> Stamp {
    let checked = picture.index().picture.skyhooks()["s"].checked.clone();
    Stamp {
        lease: "lease".into(),
        revision: checked.unwrap().revision.clone(),
        states: skyhook_crds::installed::states_digest(&complete("1.0.0")),
        ..Stamp::default()
    }
}

fn cordons(was_unschedulable: bool, owners: &[(&str, &str)], protects: &[&str]) -> String {
    let texts = |(skyhook, lease): &(&str, &str)| ((*skyhook).to_owned(), (*lease).to_owned());
    CordonRecord {
        was_unschedulable,
        owners: owners.iter().map(texts).collect(),
        protects: protects.iter().map(|key| (*key).to_owned()).collect(),
    }
    .render()
}

/// What a plan writes on a node, as far as it has to do with taints, cordons and autoscalers. The guard lets all of the plan
/// pass.
pub(super) fn written(picture: &Picture, node: &str) -> Vec<String> {
    written_by(picture, &picture.index(), node)
}

pub(super) fn written_by(picture: &Picture, index: &Index, node: &str) -> Vec<String> {
    let effects = picture.plan_of(index).effects;
    for effect in &effects {
        let checked = guard::check(index, &picture.settings, effect);
        assert_eq!(checked, Ok(()), "{effect:?}");
    }
    let patch = effects.iter().find_map(|effect| match effect {
        Effect::PatchNode {
            node: name, patch, ..
        } if name == node => Some(patch),
        _ => None,
    });
    let Some(patch) = patch else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    if let Some(left) = &patch.taints {
        let left: Vec<String> = left.iter().map(taints::show).collect();
        lines.push(format!("taints [{}]", left.join(", ")));
    }
    match patch.unschedulable {
        Some(true) => lines.push("cordon".to_owned()),
        Some(false) => lines.push("uncordon".to_owned()),
        None => {}
    }
    let meant = ["autoTaint_", "runtimeRequiredCordon", "cordon-owners"];
    for (key, value) in &patch.annotations {
        let name = key.split_once('/').map_or(key.as_str(), |(_, name)| name);
        if meant.iter().any(|meant| name.starts_with(meant))
            || names::PROTECTIONS.contains(&key.as_str())
        {
            let key = key.strip_prefix("skyhook.nvidia.com/").unwrap_or(key);
            lines.push(match value {
                Some(value) => format!("{key}: {value}"),
                None => format!("{key} goes"),
            });
        }
    }
    lines
}

const OFF: [&str; 1] = ["taints [x:NoSchedule, y:NoSchedule]"];
const NOTHING: [&str; 0] = [];

/// Skyhook `s` is complete on worker-1, which carries our taint between two others.
fn between(picture: Picture) -> Picture {
    tainted(done(picture), 1, &["x:NoSchedule", OURS, "y:NoSchedule"])
}

/// Another required Skyhook. Nothing of it is installed.
fn also(spec: Value) -> Value {
    let mut spec = spec;
    spec["priority"] = json!(300);
    if spec.get("runtimeRequired").is_none() {
        spec["runtimeRequired"] = json!(true);
    }
    skyhook("t", spec)
}

fn annotated_skyhook(mut object: Value, key: &str) -> Value {
    set(
        &mut object,
        &["metadata", "annotations"],
        json!({ key: "true" }),
    );
    object
}

#[test]
fn the_taint_goes_when_every_skyhook_that_requires_it_is_complete() {
    let base = || between(required(json!({})));
    let elsewhere = json!({ "matchLabels": { "a": "b" } });
    let cycle = |nodes: Value| {
        also(json!({
            "nodeSelectors": nodes,
            "packages": {
                "aa": { "version": "1.0.0", "image": "r/aa", "dependsOn": { "bb": "1.0.0" } },
                "bb": { "version": "1.0.0", "image": "r/bb", "dependsOn": { "aa": "1.0.0" } },
            },
        }))
    };
    let mut deleting = also(json!({}));
    let time = json!("2026-01-01T00:00:00Z");
    set(&mut deleting, &["metadata", "deletionTimestamp"], time);
    let unreadable = json!({ "matchLabels": 7 });
    for (name, picture, want) in [
        ("T1a: complete", base(), &OFF[..]),
        (
            "T1b: another is not",
            base().another(also(json!({}))),
            &NOTHING,
        ),
        (
            "T1c: and it is paused",
            base().another(annotated_skyhook(also(json!({})), names::PAUSE)),
            &NOTHING,
        ),
        (
            "T1c: disabled",
            base().another(annotated_skyhook(also(json!({})), names::DISABLE)),
            &NOTHING,
        ),
        (
            "T1c: without its policy",
            base().another(also(json!({ "deploymentPolicy": "gone" }))),
            &NOTHING,
        ),
        (
            "T1d: not valid",
            base().another(cycle(json!(null))),
            &NOTHING,
        ),
        (
            "T1d: not valid, and for other nodes",
            base().another(cycle(elsewhere.clone())),
            &OFF,
        ),
        (
            "T1e: it cannot be decoded",
            base().another(also(json!({ "packages": 7 }))),
            &NOTHING,
        ),
        (
            "T1e: it cannot be decoded, and is for other nodes",
            base().another(also(json!({ "packages": 7, "nodeSelectors": elsewhere }))),
            &OFF,
        ),
        (
            "T1f: nobody knows for which nodes",
            base().another(also(json!({ "nodeSelectors": unreadable }))),
            &NOTHING,
        ),
        (
            "T1f: nobody knows for which nodes, and it is not required",
            base().another(also(
                json!({ "nodeSelectors": unreadable, "runtimeRequired": false }),
            )),
            &OFF,
        ),
        (
            "T1g: required is of a wrong type",
            base().another(also(json!({ "runtimeRequired": "yes" }))),
            &NOTHING,
        ),
        ("T1h: it is being deleted", base().another(deleting), &OFF),
        (
            "T1i: complete and paused",
            base().skyhook(
                &["metadata", "annotations"],
                json!({ names::PAUSE: "true" }),
            ),
            &OFF,
        ),
        (
            "T1i: complete and disabled",
            base().skyhook(
                &["metadata", "annotations"],
                json!({ names::DISABLE: "true" }),
            ),
            &OFF,
        ),
        (
            "T1i: complete, on an ignored node",
            base().node(1, &["metadata", "labels", names::IGNORE], json!("true")),
            &OFF,
        ),
        (
            "R4: put on a complete node by hand",
            tainted(done(required(json!({}))), 1, &[OURS]),
            &["taints []"],
        ),
        (
            "T10c: both default keys",
            tainted(
                done(required(json!({}))),
                1,
                &[
                    OURS,
                    "x:NoSchedule",
                    "nodewright.nvidia.com=runtime-required:NoSchedule",
                ],
            ),
            &["taints [x:NoSchedule]"],
        ),
        (
            "T10d: with another value",
            tainted(
                done(required(json!({}))),
                1,
                &["skyhook.nvidia.com=other:NoSchedule"],
            ),
            &["taints []"],
        ),
        (
            "T10e: with another effect it is somebody else's",
            tainted(
                done(required(json!({}))),
                1,
                &["skyhook.nvidia.com=runtime-required:NoExecute"],
            ),
            &NOTHING,
        ),
        (
            "T7b: not complete, and created while the taint is there",
            base().another(also(json!({}))),
            &NOTHING,
        ),
        (
            "T7a: no taint, and a new one is required",
            done(required(json!({}))).another(also(json!({}))),
            &NOTHING,
        ),
    ] {
        assert_eq!(written(&picture, "worker-1"), want, "{name}");
    }
    // The annotation of T1a, and the other node of T1f.
    let marked = base().annotated(1, AUTO, "true");
    assert_eq!(
        written(&marked, "worker-1"),
        [OFF[0], "autoTaint_skyhook.nvidia.com: false"]
    );
    let kept = base().annotated(1, AUTO, "false");
    assert_eq!(written(&kept, "worker-1"), OFF);
    let second = tainted(base(), 2, &[OURS])
        .annotated(2, &names::node_state("s"), &complete("1.0.0"))
        .another(also(json!({ "nodeSelectors": unreadable })));
    assert_eq!(written(&second, "worker-2"), NOTHING);
}

/// A result is what counts, and not what an agent reports while it works.
#[test]
fn the_taint_follows_the_result_by_one_write() {
    let base = |stamp_: Stamp, phase: &str, state: &str| {
        let picture = tainted(required(json!({})), 1, &[OURS]).annotated(
            1,
            &names::node_state("s"),
            &complete("1.0.0"),
        );
        let picture = stamp(picture, stamp_);
        leased(picture, grant_and(json!({})), with_package(phase, state))
    };
    let recorded = recorded(&required(json!({})));
    let mirrored = Stamp {
        states: recorded.states.clone(),
        ..granted()
    };
    for (name, picture, want) in [
        (
            "the agent works, and its progress looks complete",
            base(mirrored.clone(), "Running", "complete"),
            &NOTHING[..],
        ),
        (
            "the agent has ended, and the result is written now",
            base(mirrored, "Complete", "complete"),
            &NOTHING,
        ),
        (
            "the result is on record",
            base(recorded.clone(), "Complete", "complete"),
            &["taints []"],
        ),
        (
            "R2: the result is of an older revision",
            base(recorded, "Complete", "complete")
                .skyhook(&["spec", "packages", "aa", "version"], json!("2.0.0")),
            &NOTHING,
        ),
    ] {
        assert_eq!(written(&picture, "worker-1"), want, "{name}");
    }
}

/// The watch of the leases may not have delivered the lease that the Node is stamped for.
#[test]
fn a_lease_that_is_not_seen_yet_keeps_the_taint() {
    let checks = |stamp_: Option<Stamp>| {
        let picture = done(tainted(required(json!({})), 1, &[OURS]));
        let picture = match stamp_ {
            Some(stamp_) => stamp(picture, stamp_),
            None => picture,
        };
        let effects = picture.plan().effects;
        let checks = effects.iter().find_map(|effect| match effect {
            Effect::PatchNode { patch, why, .. } if why.contains(&Cause::Untaint) => {
                Some(patch.check.not_for.clone())
            }
            _ => None,
        });
        checks.expect("the taint goes")
    };
    assert_eq!(checks(Some(granted())), ["s".to_owned()].into());
    assert_eq!(checks(Some(recorded(&required(json!({}))))), [].into());
    assert_eq!(checks(None), [].into());
}

#[test]
fn the_node_is_cordoned_afterwards_where_somebody_wants_it() {
    let after = || required(json!({ "runtimeRequiredCordonAfter": true }));
    let base = || between(after());
    const CORDONED: [&str; 3] = [OFF[0], "cordon", "runtimeRequiredCordon: true"];
    let wants_cordon = json!({
        "runtimeRequired": true, "runtimeRequiredCordonAfter": true,
        "interruptionBudget": { "count": 1 },
    });
    let both = between(required(json!({})))
        .another(skyhook("t", wants_cordon))
        .annotated(1, &names::node_state("t"), &complete("1.0.0"));
    // Skyhook t drains the node, and is not required.
    let draining = || {
        let mut status = with_package("AwaitingDrain", "in_progress");
        status["needsDrain"] = json!(true);
        let spec = json!({ "drain": { "state": "Draining", "since": "2023-11-14T22:13:10Z" } });
        let held = Stamp {
            granted: "lease".into(),
            was_ready: true,
            ..Stamp::default()
        };
        let mut picture = leased(base(), grant_and(spec), status)
            .another(skyhook("t", json!({ "priority": 300 })))
            .annotated(1, &names::stamp("t"), &held.render())
            .annotated(1, &names::cordon("t"), "true")
            .annotated(
                1,
                names::CORDON_OWNERS,
                &cordons(false, &[("t", "lease")], &[]),
            )
            .node(1, &["spec", "unschedulable"], json!(true));
        let checked = picture.index().picture.skyhooks()["t"].checked.clone();
        let lease = &mut picture.leases[0]["spec"];
        lease["skyhook"] = json!({ "name": "t", "uid": "uid-of-t" });
        lease["revision"] = json!(checked.unwrap().revision);
        picture
    };
    let held = format!("cordon-owners: {}", cordons(true, &[("t", "lease")], &[]));
    for (name, picture, want) in [
        ("T2a", base(), &CORDONED[..]),
        ("T2b: no taint there", done(after()), &NOTHING),
        (
            "T2c: another holds a cordon",
            draining(),
            &[OFF[0], &held, "runtimeRequiredCordon: true"],
        ),
        ("T2d: one of two wants it", both, &CORDONED),
    ] {
        assert_eq!(written(&picture, "worker-1"), want, "{name}");
    }
    // T2c: what the other one gives back leaves the node cordoned.
    let node = draining().index().picture.nodes()["worker-1"].clone();
    let patch = NodePatch::default()
        .annotation(names::RUNTIME_REQUIRED_CORDON, Some("true".into()))
        .annotation(
            names::CORDON_OWNERS,
            Some(cordons(true, &[("t", "lease")], &[])),
        );
    let node = testkit::patched(&node, &patch);
    let given_back = testkit::patched(&node, &cordon::give_back(&node, ["t"]));
    assert!(given_back.unschedulable && given_back.cordon.owners.is_empty());
}

#[test]
fn the_cordon_after_the_taint_stays_until_somebody_uncordons() {
    let mark = names::RUNTIME_REQUIRED_CORDON;
    let marked = |unschedulable: bool| {
        done(required(json!({}))).annotated(1, mark, "true").node(
            1,
            &["spec", "unschedulable"],
            json!(unschedulable),
        )
    };
    assert_eq!(
        written(&marked(true), "worker-1"),
        NOTHING,
        "T2i, T2h: it stays"
    );
    let gone = ["runtimeRequiredCordon goes"];
    assert_eq!(written(&marked(false), "worker-1"), gone, "T2e");
    let effects = marked(false).plan().effects;
    let why = effects.iter().find_map(|effect| match effect {
        Effect::PatchNode { why, .. } => Some(why.contains(&Cause::Uncordoned)),
        _ => None,
    });
    assert_eq!(why, Some(true), "T2e");
    let successor = done(required(json!({}))).annotated(1, &names::successor(mark), "true");
    let gone = ["nodewright.nvidia.com/runtimeRequiredCordon goes"];
    assert_eq!(written(&successor, "worker-1"), gone, "T2e: NodeWright's");

    // T2f: a drain needs the cordon, and the annotation goes all the same.
    let mut status = with_package("AwaitingDrain", "in_progress");
    status["needsDrain"] = json!(true);
    let spec = json!({ "drain": { "state": "Draining", "since": "2023-11-14T22:13:10Z" } });
    let draining = leased(
        stamp(Picture::new().annotated(1, mark, "true"), granted()),
        grant_and(spec),
        status,
    );
    let taken = format!("cordon-owners: {}", cordons(false, &[("s", "lease")], &[]));
    let want = ["cordon", taken.as_str(), "runtimeRequiredCordon goes"];
    assert_eq!(written(&draining, "worker-1"), want, "T2f");
    let node = draining.index().picture.nodes()["worker-1"].clone();
    let patch = cordon::take(&node, "s", "lease").annotation(mark, None);
    let node = testkit::patched(&node, &patch);
    let node = testkit::patched(&node, &cordon::give_back(&node, ["s"]));
    assert!(!node.unschedulable, "T2f: it is uncordoned afterwards");

    // T2g and T2h: a cordon of NVIDIA Skyhook, and one that is taken later.
    for (name, owners) in [("T2g", true), ("T2h", false)] {
        let mut node = testkit::node("n");
        node.unschedulable = true;
        let mut patch = NodePatch::default().annotation(mark, Some("true".into()));
        if owners {
            patch = patch.annotation(&names::cordon("s"), Some("true".into()));
        }
        let node = testkit::patched(&node, &patch);
        assert!(node.cordon.was_unschedulable, "{name}");
        let node = testkit::patched(&node, &cordon::take(&node, "s", "lease"));
        let node = testkit::patched(&node, &cordon::give_back(&node, ["s"]));
        assert!(node.unschedulable, "{name}");
        assert!(node.annotations.contains_key(mark), "{name}");
    }
}

/// T4: what happens where no Skyhook requires the taint.
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
