//! Reboots that nobody asked for, and what a stop for a new revision says.

use skyhook_crds::installed::{Stamp, states_digest};

use super::leases::{grant_and, granted, leased, stamp, with_package};
use super::*;

/// Worker-1 complete, with a result of this boot and epoch.
fn result(boot: &str, epoch: &str) -> Picture {
    let states = complete("1.0.0");
    let result = Stamp {
        lease: "old".into(),
        boot_id: boot.into(),
        epoch: epoch.into(),
        machine_id: "m".into(),
        states: states_digest(&states),
        ..Stamp::default()
    };
    let picture = Picture::new().annotated(1, "skyhook.nvidia.com/nodeState_s", &states);
    let mut picture = stamp(picture, result);
    picture.settings.reapply_on_reboot = true;
    picture
}

#[test]
fn only_a_reboot_that_nobody_asked_for_empties_the_record() {
    const HERE: &str = "boot-of-worker-1";
    let other = |boot: &str, epoch: &str| {
        Stamp {
            lease: "other".into(),
            boot_id: boot.into(),
            epoch: epoch.into(),
            ..Stamp::default()
        }
        .render()
    };
    let with_other = |boot: &str, epoch: &str| {
        result("before", "before").annotated(1, "skyhook.nvidia.com/stamp_t", &other(boot, epoch))
    };
    let off = |mut picture: Picture| {
        picture.settings.reapply_on_reboot = false;
        picture
    };
    for (name, picture, epoch) in [
        ("the same boot", result(HERE, HERE), None),
        ("our own reboot", result(HERE, "before"), None),
        ("another boot", result("before", "before"), Some(HERE)),
        (
            "another boot, not switched on",
            off(result("before", "before")),
            None,
        ),
        (
            "our own reboot, for another Skyhook",
            with_other(HERE, "before"),
            None,
        ),
        (
            "another Skyhook's result of after it",
            with_other(HERE, HERE),
            Some(HERE),
        ),
        (
            "another Skyhook's result of before it",
            with_other("before", "before"),
            Some(HERE),
        ),
        ("an agent that reports no epoch", result("before", ""), None),
        (
            "a lease is under way",
            leased(result("before", "before"), json!({}), json!(null)),
            None,
        ),
        (
            "disabled",
            result("before", "before").skyhook(
                &["metadata", "annotations"],
                json!({ "skyhook.nvidia.com/disable": "true" }),
            ),
            None,
        ),
    ] {
        let plan = picture.plan();
        let written = plan.effects.iter().find_map(|effect| match effect {
            Effect::PatchNode { patch, why, .. } if why.contains(&Cause::Reapply) => {
                let stamp = patch.annotations["skyhook.nvidia.com/stamp_s"].clone();
                let states = patch.annotations["skyhook.nvidia.com/nodeState_s"].clone();
                assert_eq!(states.as_deref(), Some("{}"), "{name}");
                Stamp::parse(stamp.as_deref())
            }
            _ => None,
        });
        let got = written.map(|stamp| (stamp.boot_id, stamp.epoch, stamp.lease));
        let want = epoch.map(|epoch| (HERE.to_owned(), epoch.to_owned(), "old".to_owned()));
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn an_emptied_record_is_worked_on_under_the_budget() {
    let emptied = Stamp {
        lease: "old".into(),
        boot_id: "boot-of-worker-1".into(),
        epoch: "boot-of-worker-1".into(),
        states: states_digest("{}"),
        ..Stamp::default()
    };
    let mut picture = stamp(
        Picture::new().annotated(1, "skyhook.nvidia.com/nodeState_s", "{}"),
        emptied,
    );
    picture.settings.reapply_on_reboot = true;
    assert_eq!(picture.reserved(), ["s/worker-1"]);
}

#[test]
fn a_stop_names_the_revision_and_the_next_one_too() {
    let base = || stamp(Picture::new(), granted());
    let current = base()
        .index()
        .picture
        .skyhooks()
        .values()
        .find_map(|s| Some(s.checked.as_ref().ok()?.revision.clone()))
        .unwrap();
    let stopped = |revision: &str| json!({ "reason": StopReason::NewRevision, "since": "t", "revision": revision });
    for (name, stop, want) in [
        ("not told yet", json!(null), Some(current.clone())),
        ("told of another", stopped("s-older"), Some(current.clone())),
        ("told of this", stopped(&current), None),
        (
            "told to stop for another reason",
            json!({ "reason": StopReason::Edited, "since": "t" }),
            None,
        ),
    ] {
        let spec = grant_and(json!({ "revision": "s-old", "stop": stop }));
        let plan = leased(base(), spec, with_package("Running", "in_progress")).plan();
        let got = plan.effects.iter().find_map(|effect| match effect {
            Effect::StopLease { stop, revision, .. } => {
                assert_eq!(*stop, Some(StopReason::NewRevision), "{name}");
                revision.clone()
            }
            _ => None,
        });
        assert_eq!(got, want, "{name}");
    }
}
