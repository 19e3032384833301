//! What a lease says of its host, and what the Node keeps of it.

use std::collections::BTreeMap;

use skyhook_crds::installed::{Stamp, states_digest};
use skyhook_crds::names;

use super::leases::{grant_and, granted, leased, phase, stamp, with_package};
use super::*;
use crate::effect::NodePatch;
use crate::events::events;

fn patch_of(picture: &Picture) -> NodePatch {
    let patches: Vec<NodePatch> = picture
        .plan()
        .effects
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } if node == "worker-1" => Some(patch),
            _ => None,
        })
        .collect();
    let [patch] = &patches[..] else {
        panic!("one write of the Node: {patches:?}");
    };
    patch.clone()
}

fn stamp_in(patch: &NodePatch) -> Stamp {
    let text = patch.annotations[&names::stamp("s")].as_deref();
    Stamp::parse(text).expect("it is a stamp")
}

fn working(status: Value) -> Picture {
    leased(
        stamp(Picture::new(), granted()),
        grant_and(json!({})),
        status,
    )
}

#[test]
fn a_package_that_only_waits_is_not_part_of_the_nodes_record() {
    let mut status = with_package("Running", "in_progress");
    let mut waiting = status["packages"]["aa|1.0.0"].clone();
    waiting["name"] = json!("bb");
    waiting["pending"] = json!(true);
    status["packages"]["bb|1.0.0"] = waiting;
    for state in ["Running", "Stopped"] {
        status["phase"] = json!(state);
        let patch = patch_of(&working(status.clone()));
        let record = patch.annotations[&names::node_state("s")]
            .clone()
            .expect("a record is written");
        assert!(record.contains("aa|1.0.0"), "{state}: {record}");
        assert!(!record.contains("bb"), "{state}: {record}");
    }
}

#[test]
fn the_stamp_keeps_the_hosts_id_and_how_often_it_was_rebooted() {
    let mut status = with_package("Stopped", "in_progress");
    status["hostID"] = json!("h");
    status["reboots"] = json!({ "aa|1.0.0": 2 });
    let kept = stamp_in(&patch_of(&working(status.clone())));
    assert_eq!(kept.host_id, "h");
    assert_eq!(kept.reboots, [("aa|1.0.0".to_owned(), 2)].into());
    // While the agent works, a new count of reboots is enough for a write: the host may lose the count in the next
    // reboot.
    let mut status = phase("Running");
    status["reboots"] = json!({ "aa|1.0.0": 3 });
    let kept = stamp_in(&patch_of(&working(status.clone())));
    assert_eq!(kept.reboots, [("aa|1.0.0".to_owned(), 3)].into());
    let there = Stamp {
        reboots: kept.reboots.clone(),
        states: states_digest("{}"),
        ..granted()
    };
    let picture = leased(stamp(Picture::new(), there), grant_and(json!({})), status).annotated(
        1,
        &names::node_state("s"),
        "{}",
    );
    let why = super::leases::effects(&picture.plan());
    assert!(!why.contains(&"PatchNode progress".to_owned()), "{why:?}");
}

#[test]
fn an_edit_counts_reboots_anew() {
    let mut status = with_package("Stopped", "erroring");
    status["reboots"] = json!({ "aa|1.0.0": 3 });
    let spec = grant_and(json!({ "stop": { "reason": "Edited", "since": "t" } }));
    let picture = leased(stamp(Picture::new(), granted()), spec, status);
    assert_eq!(stamp_in(&patch_of(&picture)).reboots, BTreeMap::new());
}

#[test]
fn what_an_interrupt_waits_for_is_the_nodes_reason() {
    let mut status = phase("Running");
    status["waitsFor"] = json!("reboot: waits until the running step ends: apply of a-slow 1.0.0");
    let picture = working(status);
    assert_eq!(picture.reason("s", "worker-1"), "AwaitingInterrupt");
}

#[test]
fn a_host_whose_disk_was_written_anew_is_named() {
    let on_host = |id: &str, phase_name: &str| {
        let there = Stamp {
            lease: "earlier".into(),
            revision: "s-1".into(),
            host_id: id.into(),
            ..granted()
        };
        let mut status = phase(phase_name);
        status["hostID"] = json!("h");
        leased(stamp(Picture::new(), there), grant_and(json!({})), status)
    };
    for (id, want) in [
        ("before", "HostReplaced"),
        ("h", "Preparing"),
        ("", "Preparing"),
    ] {
        let picture = on_host(id, "Preparing");
        assert_eq!(picture.reason("s", "worker-1"), want, "{id:?}");
        // The event comes once, together with the result, also when the lease ends quickly.
        for (phase_name, count) in [("Preparing", 0), ("Complete", 1)] {
            let picture = on_host(id, phase_name);
            let index = picture.index();
            let effects = picture.plan().effects;
            let told = effects.iter().flat_map(|effect| events(&index, effect));
            let told = told.filter(|event| event.reason == "HostReplaced").count();
            let count = if id == "before" { count } else { 0 };
            assert_eq!(told, count, "{id:?} {phase_name}");
        }
    }
}
