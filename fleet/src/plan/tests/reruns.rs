//! Edits of the record of a node that is worked on: the edit stays, and so does what the agent has done beside it.

use super::leases::{grant_and, granted, leased, phase, stamp};
use super::*;
use skyhook_crds::installed::{PackageStates, Stamp, digests, render_states, states_digest};
use skyhook_crds::names;
use skyhook_crds::package::PackageStatus;

/// `name stage state`, separated by commas.
fn states(text: &str) -> PackageStates {
    let entries = text.split(", ").filter(|entry| !entry.is_empty());
    let entries = entries.map(|entry| {
        let parts: Vec<&str> = entry.split(' ').collect();
        let status: PackageStatus = serde_json::from_value(json!({
            "name": parts[0], "version": "1.0.0", "image": format!("r/{}", parts[0]),
            "stage": parts[1], "state": parts[2],
        }))
        .unwrap();
        (format!("{}|1.0.0", parts[0]), status)
    });
    entries.collect()
}

/// worker-1 with this record. The coordinator wrote the other one last, and the agent reports the third.
fn node(recorded: &str, written: &str, reported: &str, phase_name: &str, stop: Value) -> Picture {
    let written = states(written);
    let of_lease = Stamp {
        states: states_digest(&render_states(&written)),
        entries: Some(digests(&written)),
        ..granted()
    };
    let mut status = phase(phase_name);
    status["packages"] = serde_json::to_value(states(reported)).unwrap();
    let picture = Picture::new()
        .skyhook(
            &["spec", "packages"],
            json!({
                "aa": { "version": "1.0.0", "image": "r/aa" },
                "bb": { "version": "1.0.0", "image": "r/bb" },
            }),
        )
        .annotated(
            1,
            &names::node_state("s"),
            &render_states(&states(recorded)),
        );
    leased(stamp(picture, of_lease), grant_and(stop), status)
}

/// The record and the stamp after the writes of this pass.
fn written(picture: &Picture) -> (PackageStates, Stamp) {
    let mut annotations = picture.nodes[0]["metadata"]["annotations"].clone();
    for effect in picture.plan().effects {
        if let Effect::PatchNode { node, patch, .. } = effect
            && node == "worker-1"
        {
            for (key, value) in patch.annotations {
                annotations[key] = json!(value);
            }
        }
    }
    let text = |key: String| annotations[key].as_str().unwrap_or_default().to_owned();
    let states = serde_json::from_str(&text(names::node_state("s"))).unwrap();
    let stamp = Stamp::parse(Some(&text(names::stamp("s")))).unwrap();
    (states, stamp)
}

#[test]
fn an_edit_of_one_package_keeps_what_the_agent_did_for_the_others() {
    let stop = json!({ "stop": { "reason": "Edited", "since": "t" } });
    for (name, recorded, before, reported, want) in [
        (
            "a rerun while another package goes on",
            "aa apply in_progress, bb config in_progress",
            "aa config complete, bb config in_progress",
            "aa config complete, bb config complete",
            "aa apply in_progress, bb config complete",
        ),
        (
            "a rerun without a stage",
            "bb apply in_progress",
            "aa config complete, bb apply in_progress",
            "aa config complete, bb config in_progress",
            "bb config in_progress",
        ),
        (
            "a reset of the node",
            "",
            "aa config complete, bb apply in_progress",
            "aa config complete, bb config in_progress",
            "",
        ),
    ] {
        let picture = node(recorded, before, reported, "Stopped", stop.clone());
        let (states, stamp) = written(&picture);
        assert_eq!(states, self::states(want), "{name}");
        assert_eq!(stamp.lease, "lease", "{name}");
        assert_eq!(stamp.entries, None, "{name}");
        let is_known = stamp.states == states_digest(&render_states(&states));
        assert!(is_known, "{name}: it looks edited again");
    }
}

#[test]
fn what_the_coordinator_writes_is_no_edit() {
    let before = "aa config complete, bb apply in_progress";
    let reported = "aa config complete, bb config in_progress";
    let picture = node(before, before, reported, "Running", json!({}));
    let (states, stamp) = written(&picture);
    assert_eq!(states, self::states(reported));
    assert_eq!(stamp.entries, Some(digests(&states)));
    // The same when the lease is about to be granted.
    let mut reserved = node(before, before, "", "Accepted", json!({}));
    reserved.leases[0]["spec"]["granted"] = Value::Null;
    reserved.leases[0]["spec"]["installed"] = serde_json::to_value(self::states(before)).unwrap();
    reserved.leases[0].as_object_mut().unwrap().remove("status");
    let idle = Stamp {
        states: states_digest(&render_states(&self::states(before))),
        ..Stamp::default()
    };
    let reserved = stamp_of(reserved, &idle);
    let (states, stamp) = written(&reserved);
    assert_eq!(stamp.granted, "lease");
    assert_eq!(stamp.entries, Some(digests(&states)));
}

fn stamp_of(picture: Picture, idle: &Stamp) -> Picture {
    let mut picture = stamp(picture, idle.clone());
    picture.leases[0]["spec"]["stamp"] = serde_json::to_value(idle).unwrap();
    picture
}
