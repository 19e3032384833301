//! Records of NodeWright, and of early versions of NVIDIA Skyhook.

use super::*;
use crate::events;
use crate::guard::{self, Broken};
use skyhook_crds::installed::Stamp;
use skyhook_crds::names;

const STATE: &str = "skyhook.nvidia.com/nodeState_s";
const THEIRS: &str = "nodewright.nvidia.com/nodeState_s";
const THEIR_STATUS: &str = "nodewright.nvidia.com/status_s";

fn entry(version: &str, stage: &str, state: &str) -> String {
    complete(version)
        .replace("config", stage)
        .replace("\"complete\"", &format!("{state:?}"))
}

/// NodeWright's record on worker-1.
fn theirs(picture: Picture, states: &str, status: &str) -> Picture {
    picture
        .annotated(1, THEIRS, states)
        .annotated(1, THEIR_STATUS, status)
        .annotated(1, "nodewright.nvidia.com/version_s", "v0.20.0")
        .node(1, &["metadata", "labels", THEIR_STATUS], json!(status))
}

/// With an interrupt.
fn interrupting(picture: Picture) -> Picture {
    picture.skyhook(
        &["spec", "packages", "aa", "interrupt"],
        json!({ "type": "reboot" }),
    )
}

/// What is written on worker-1. The guard lets all of the plan pass.
fn patch(picture: &Picture, index: &Index) -> Option<(NodePatch, Vec<Cause>)> {
    let effects = picture.plan_of(index).effects;
    for effect in &effects {
        let checked = guard::check(index, &picture.settings, effect);
        assert_eq!(checked, Ok(()), "{effect:?}");
    }
    effects.into_iter().find_map(|effect| match effect {
        Effect::PatchNode {
            node, patch, why, ..
        } if node == "worker-1" => Some((patch, why.into_iter().collect())),
        _ => None,
    })
}

fn reserved(picture: &Picture, index: &Index) -> Vec<String> {
    let effects = picture.plan_of(index).effects.into_iter();
    let leases = effects.filter_map(|effect| match effect {
        Effect::ReserveLease { node, spec } => Some(format!(
            "{}/{node} {:?}",
            spec.skyhook.name,
            spec.interrupts_left.keys().collect::<Vec<_>>()
        )),
        _ => None,
    });
    leases.filter(|lease| lease.contains("worker-1")).collect()
}

/// The picture after the takeover, and the takeover.
fn taken_over(picture: &Picture) -> (Index, NodePatch) {
    let mut index = picture.index();
    let (patch, _) = patch(picture, &index).expect("the record is taken over");
    let node = testkit::patched(&index.picture.nodes()["worker-1"], &patch);
    index.picture.node(node);
    (index, patch)
}

/// Keys of NodeWright that the Node still has.
fn left(index: &Index) -> Vec<String> {
    let node = &index.picture.nodes()["worker-1"];
    let labels = node.labels.iter().map(|(key, _)| key.to_owned());
    let keys = node.annotations.keys().cloned().chain(labels);
    let types = node.conditions.iter().map(|one| one.type_.clone());
    keys.chain(types)
        .filter(|key| key.starts_with(names::SUCCESSOR))
        .collect()
}

#[test]
fn what_nodewright_completed_is_complete_at_once() {
    for (name, picture) in [
        ("N1", Picture::new()),
        ("N2: with an interrupt", interrupting(Picture::new())),
    ] {
        let picture = theirs(picture, &complete("1.0.0"), "complete");
        let (index, patch) = taken_over(&picture);
        assert_eq!(patch.annotations[STATE], Some(complete("1.0.0")), "{name}");
        let status = &patch.annotations[&names::status("s")];
        assert_eq!(status.as_deref(), Some("complete"), "{name}");
        assert_eq!(left(&index), [""; 0], "{name}");
        let again = self::patch(&picture, &index);
        assert_eq!(again, None, "{name}: the second pass writes nothing");
        assert_eq!(reserved(&picture, &picture.index()), [""; 0], "{name}");
        assert_eq!(reserved(&picture, &index), [""; 0], "{name}");
    }
}

#[test]
fn what_nodewright_left_in_the_middle_goes_on() {
    let none: &[&str] = &[];
    for (name, states, lease) in [
        ("N3", complete("1.0.0"), "s/worker-1 [\"aa\"]"),
        (
            "N4",
            entry("1.0.0", "apply", "in_progress"),
            "s/worker-1 []",
        ),
        ("N4", entry("1.0.0", "config", "erroring"), "s/worker-1 []"),
        (
            "N4",
            entry("1.0.0", "interrupt", "skipped"),
            "s/worker-1 []",
        ),
        (
            "N5",
            entry("1.0.0", "uninstall-interrupt", "in_progress"),
            "s/worker-1 []",
        ),
        (
            "N5",
            entry("1.0.0", "uninstall-interrupt", "complete"),
            "s/worker-1 []",
        ),
        (
            "N6",
            entry("1.0.0", "uninstall-interrupt", "complete").replace("aa", "bb"),
            "s/worker-1 []",
        ),
    ] {
        let picture = theirs(interrupting(Picture::new()), &states, "in_progress");
        assert_eq!(reserved(&picture, &picture.index()), none, "{name}");
        let (index, patch) = taken_over(&picture);
        assert_eq!(patch.annotations[STATE], Some(states.clone()), "{name}");
        assert_eq!(left(&index), none, "{name}");
        assert_eq!(reserved(&picture, &index), [lease], "{name}: {states}");
    }
}

#[test]
fn which_record_counts() {
    let stamp = Stamp {
        lease: "earlier".into(),
        ..Stamp::default()
    };
    // N7: our stamp is there.
    let ours = theirs(Picture::new(), "{}", "in_progress")
        .annotated(1, STATE, &complete("1.0.0"))
        .annotated(1, &names::stamp("s"), &stamp.render());
    let node = ours.index().picture.nodes()["worker-1"].clone();
    assert!(node.record("s").states.as_ref().unwrap().len() == 1, "N7");
    let (index, patch) = taken_over(&ours);
    assert!(!patch.annotations.contains_key(STATE), "N7");
    assert_eq!(left(&index), [""; 0], "N7");
    // N8: NodeWright leaves the record of NVIDIA Skyhook behind for a day.
    let stale = theirs(Picture::new(), &complete("1.0.0"), "complete").annotated(
        1,
        STATE,
        &entry("0.9.0", "apply", "in_progress"),
    );
    let (_, patch) = taken_over(&stale);
    assert_eq!(patch.annotations[STATE], Some(complete("1.0.0")), "N8");
    // N11: there is no such Skyhook.
    let other = Picture::new().annotated(1, "nodewright.nvidia.com/nodeState_other", "{}");
    let written = patch_of(&other);
    let is_theirs = |key: &String| key.starts_with(names::SUCCESSOR);
    assert!(!written.annotations.keys().any(is_theirs), "N11");
    // N12: the administrator keeps Skyhooks off the node.
    let ignored = theirs(Picture::new(), "{}", "in_progress").node(
        1,
        &["metadata", "labels", "nodewright.nvidia.com/ignore"],
        json!("true"),
    );
    assert_eq!(ignored.reason("s", "worker-1"), "NodeIgnored", "N12");
    let written = patch_of(&ignored);
    assert!(!written.annotations.keys().any(is_theirs), "N12");
    // N14: nobody can tell what is installed.
    let malformed = theirs(Picture::new(), "{", "complete");
    assert_eq!(
        malformed.reason("s", "worker-1"),
        "NodeStateMalformed",
        "N14"
    );
    let written = patch_of(&malformed);
    assert!(!written.annotations.keys().any(is_theirs), "N14");
    let node = malformed.index().picture.nodes()["worker-1"].clone();
    let problem = node.record("s").states.clone().unwrap_err().to_string();
    assert!(problem.contains(THEIRS), "N14: {problem}");
}

fn patch_of(picture: &Picture) -> NodePatch {
    let written = patch(picture, &picture.index());
    written.map(|(patch, _)| patch).unwrap_or_default()
}

#[test]
fn cordons_of_nodewright_are_taken_over() {
    let held = |status: &str, states: &str| {
        theirs(Picture::new(), states, status)
            .annotated(1, "nodewright.nvidia.com/cordon_s", "true")
            .node(1, &["spec", "unschedulable"], json!(true))
    };
    // N9: complete, and in the middle.
    let done = held("complete", &complete("1.0.0"));
    let (mut index, _) = taken_over(&done);
    let (given_back, _) = patch(&done, &index).expect("the cordon is given back");
    assert_eq!(given_back.unschedulable, Some(false), "N9");
    let node = testkit::patched(&index.picture.nodes()["worker-1"], &given_back);
    index.picture.node(node);
    assert_eq!(left(&index), [""; 0], "N9");
    let middle = held("in_progress", &entry("1.0.0", "config", "in_progress"));
    let (index, _) = taken_over(&middle);
    let node = &index.picture.nodes()["worker-1"];
    assert!(node.cordon.owners.contains_key("s"), "N9");
    assert!(node.unschedulable, "N9");
    // N10: the node is to stay cordoned.
    let after = done.annotated(1, "nodewright.nvidia.com/runtimeRequiredCordon", "true");
    let (index, patch) = taken_over(&after);
    let moved = &patch.annotations[names::RUNTIME_REQUIRED_CORDON];
    assert_eq!(moved.as_deref(), Some("true"), "N10");
    assert_eq!(left(&index), [""; 0], "N10");
    let given_back = self::patch(&after, &index).expect("the cordon is given back");
    assert_eq!(given_back.0.unschedulable, None, "N10");
}

#[test]
fn a_taint_of_nodewright_goes_with_the_takeover() {
    // N13, and NodeWright put it there.
    let picture = theirs(
        Picture::new().skyhook(&["spec", "runtimeRequired"], json!(true)),
        &complete("1.0.0"),
        "complete",
    )
    .annotated(
        1,
        "nodewright.nvidia.com/autoTaint_nodewright.nvidia.com",
        "true",
    )
    .node(
        1,
        &["spec", "taints"],
        json!([{ "key": names::SUCCESSOR, "value": "runtime-required", "effect": "NoSchedule" }]),
    );
    let (index, patch) = taken_over(&picture);
    assert_eq!(patch.taints, Some(Vec::new()), "N13");
    assert_eq!(left(&index), [""; 0], "N13");
}

#[test]
fn records_of_early_versions_are_mended() {
    let version = names::version("s");
    let early = |value: &str| {
        Picture::new()
            .annotated(1, STATE, value)
            .annotated(1, &version, "v0.5.0")
    };
    let without_image = |key: &str, version: &str| {
        format!(
            r#"{{"{key}":{{"name":"{key}","version":"{version}","stage":"config","state":"complete"}}}}"#
        )
    };
    // V5, and V1: what is complete is mended in one write.
    let old = json!({ "type": "skyhook.nvidia.com/s/Old", "status": "True" });
    let done = early(&without_image("aa", "1.0.0"))
        .annotated(1, &names::status("s"), "complete")
        .node(1, &["status", "conditions"], json!([old]));
    let (index, patch) = taken_over(&done);
    assert_eq!(patch.annotations[STATE], Some(complete("1.0.0")));
    assert_eq!(
        patch.annotations[&version].as_deref(),
        Some(crate::plan::lease::VERSION)
    );
    assert_eq!(patch.conditions["skyhook.nvidia.com/s/Old"], None);
    assert_eq!(self::patch(&done, &index), None);
    for (name, value, want) in [
        (
            "V2: no version",
            r#"{"aa":{"name":"aa","stage":"config","state":"complete"}}"#.to_owned(),
            "{}".to_owned(),
        ),
        (
            "V3: not in the spec",
            without_image("gone", "1.0.0"),
            "{}".to_owned(),
        ),
        (
            "V4: another version",
            without_image("aa", "0.9.0"),
            complete("0.9.0"),
        ),
    ] {
        let picture = early(&value);
        assert_eq!(reserved(&picture, &picture.index()), [""; 0], "{name}");
        let (index, patch) = taken_over(&picture);
        assert_eq!(patch.annotations[STATE], Some(want), "{name}");
        assert_eq!(reserved(&picture, &index), ["s/worker-1 []"], "{name}");
    }
    // V7: no version is written there.
    let unknown = early(&without_image("aa", "1.0.0")).annotated(1, &version, "");
    let (_, patch) = taken_over(&unknown);
    assert_eq!(patch.annotations[STATE], Some(complete("1.0.0")), "V7");
    // V6: a later version, edited by hand.
    let later = |key: &str| {
        let value = without_image(key, "1.0.0").replacen(key, &format!("{key}|1.0.0"), 1);
        Picture::new()
            .annotated(1, STATE, &value)
            .annotated(1, &version, "v0.13.0")
    };
    assert_eq!(later("aa").reason("s", "worker-1"), "", "V6");
    let reason = later("gone").reason("s", "worker-1");
    assert_eq!(reason, "NodeStateMalformed", "V6");
    // V8: a record that lacks nothing stays as it is.
    let whole = Picture::new()
        .annotated(1, STATE, &complete("1.0.0"))
        .annotated(1, &version, "v0.13.0");
    let written = patch_of(&whole);
    for key in [STATE, &version, &names::stamp("s")] {
        assert!(!written.annotations.contains_key(key), "V8: {key}");
    }
}

#[test]
fn a_takeover_that_loses_the_record_is_refused() {
    let picture = theirs(Picture::new(), &complete("1.0.0"), "complete");
    let index = picture.index();
    let mut effects = picture.plan().effects.into_iter();
    let found = effects.find_map(|effect| match effect {
        Effect::PatchNode { ref node, .. } if node == "worker-1" => Some(effect),
        _ => None,
    });
    let mut effect = found.expect("the record is taken over");
    assert_eq!(guard::check(&index, &picture.settings, &effect), Ok(()));
    if let Effect::PatchNode { patch, .. } = &mut effect {
        patch.annotations.remove(STATE);
    }
    assert_eq!(
        guard::check(&index, &picture.settings, &effect),
        Err(Broken::TakeoverLoses)
    );
}

#[test]
fn a_takeover_that_fails_holds_up_its_node_alone() {
    let middle = entry("1.0.0", "config", "in_progress");
    let picture = theirs(Picture::new(), &middle, "in_progress");
    let found = |index: &Index| {
        let mut effects = picture.plan_of(index).effects.into_iter();
        effects
            .find(|effect| matches!(effect, Effect::PatchNode { node, .. } if node == "worker-1"))
    };
    let others = |index: &Index| {
        let effects = picture.plan_of(index).effects.into_iter();
        let nodes = effects.filter_map(|effect| match effect {
            Effect::ReserveLease { node, .. } => Some(node),
            _ => None,
        });
        nodes.collect::<Vec<_>>()
    };
    // N15: the Node has changed meanwhile, or the API server refuses the write.
    for (name, waits) in [("409", true), ("403", false)] {
        let mut index = picture.index();
        let effect = found(&index).expect("the record is taken over");
        index.begins(&effect);
        assert_eq!(found(&index), None, "{name}: it is under way");
        index.ends(&effect);
        index.is_refused(&effect, waits, Mono::ZERO);
        assert_eq!(found(&index).is_none(), waits, "{name}");
        assert_eq!(others(&index), ["worker-2"], "{name}");
        let told = events::refused(&index, &effect, "denied");
        assert_eq!(told[0].reason, "WriteRefused", "{name}");
        let mut node = picture.nodes[0].clone();
        node["metadata"]["resourceVersion"] = json!("9");
        let node = serde_json::from_value(node).unwrap();
        index.apply(crate::index::Change::Node(Box::new(node)), Mono::ZERO);
        let Some(Effect::PatchNode { patch, at, .. }) = found(&index) else {
            panic!("{name}: it is tried again");
        };
        assert_eq!(patch.annotations[STATE], Some(middle.clone()), "{name}");
        assert_eq!(at.resource_version, "9", "{name}");
    }
    assert_eq!(picture.reason("s", "worker-1"), "Settling");
}

#[test]
fn all_records_on_a_node_are_taken_over_in_one_write() {
    // N17.
    let other = skyhook("t", json!({ "priority": 300 }));
    let theirs_of_t = names::successor(&names::node_state("t"));
    let picture = theirs(Picture::new(), &complete("1.0.0"), "complete")
        .another(other)
        .annotated(1, &theirs_of_t, &entry("1.0.0", "apply", "in_progress"));
    let (index, patch) = taken_over(&picture);
    for skyhook in ["s", "t"] {
        let state = &patch.annotations[&names::node_state(skyhook)];
        assert!(state.is_some(), "{skyhook}");
        assert!(
            patch.annotations[&names::stamp(skyhook)].is_some(),
            "{skyhook}"
        );
    }
    assert_eq!(left(&index), [""; 0]);
}
