//! When the runtime-required taint is taken off, given back or kept, and what else is written with it.

use super::leases::{grant_and, granted, leased, stamp, with_package};
use super::*;
use crate::guard::{self, Broken};
use crate::taints;
use skyhook_crds::installed::{CordonRecord, Stamp};
use skyhook_crds::names;

mod cordons;
mod given_back;
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
