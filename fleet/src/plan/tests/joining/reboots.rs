//! T6: after a reboot that nobody asked for the taint comes back.

use super::*;

/// A result of worker-1 for Skyhook `s`, which wants new nodes tainted.
fn result(boot: &str, epoch: &str) -> Stamp {
    Stamp {
        lease: "old".into(),
        boot_id: boot.into(),
        epoch: epoch.into(),
        machine_id: "m".into(),
        states: states_digest(&complete("1.0.0")),
        ..Stamp::default()
    }
}

fn rebooted(mut picture: Picture, result: Stamp) -> Picture {
    picture.settings.reapply_on_reboot = true;
    let key = names::node_state("s");
    stamp(picture.annotated(1, &key, &complete("1.0.0")), result)
}

#[test]
fn a_reboot_that_nobody_asked_for_brings_the_taint_back() {
    const HERE: &str = "boot-of-worker-1";
    let back = [ours(), MARK.to_owned()];
    // T6a: one write.
    let unleased = rebooted(auto(), result("before", "before"));
    assert_eq!(written(&unleased, "worker-1"), back, "T6a");
    let effects = unleased.plan().effects;
    let (patch, why) = effects
        .iter()
        .find_map(|effect| match effect {
            Effect::PatchNode { patch, why, .. } => Some((patch, why)),
            _ => None,
        })
        .unwrap();
    let states = patch.annotations[&names::node_state("s")].as_deref();
    let stamp_ = Stamp::parse(patch.annotations[&names::stamp("s")].as_deref()).unwrap();
    assert_eq!(states, Some("{}"), "T6a");
    assert_eq!(
        (stamp_.boot_id.as_str(), stamp_.epoch.as_str()),
        (HERE, HERE),
        "T6a"
    );
    assert!(
        why.contains(&Cause::Reapply) && why.contains(&Cause::AutoTaint),
        "T6a"
    );

    let under = |result: Stamp, drain: &str, phase_: &str, status: Value| {
        let mut all = with_package(phase_, "complete");
        for (key, value) in status.as_object().cloned().unwrap_or_default() {
            all[key] = value;
        }
        let result = Stamp {
            granted: "lease".into(),
            was_ready: true,
            ..result
        };
        let spec = grant_and(json!({ "drain": { "state": drain } }));
        leased(rebooted(auto(), result), spec, all)
    };
    let reboots = |picture: Picture| {
        let interrupt = json!({ "type": "reboot" });
        let picture = picture.skyhook(&["spec", "packages", "aa", "interrupt"], interrupt);
        let revision = picture.index().picture.skyhooks()["s"].checked.clone();
        let mut picture = picture;
        picture.leases[0]["spec"]["revision"] = json!(revision.unwrap().revision);
        picture
    };
    let unknown = |mut picture: Picture| {
        picture.leases[0]["spec"]["revision"] = json!("s-gone");
        picture
    };
    let off = |mut picture: Picture| {
        picture.settings.reapply_on_reboot = false;
        picture
    };
    let of = |boot: &str, epoch: &str| json!({ "bootID": boot, "epoch": epoch });
    let accepted = |boot: &str| {
        under(
            result(boot, boot),
            "NotRequested",
            "Accepted",
            json!({ "bootID": "" }),
        )
    };
    let no_result = Stamp {
        granted: "lease".into(),
        ..Stamp::default()
    };
    for (name, picture, tainted) in [
        (
            "T6b: not auto",
            rebooted(required(json!({})), result("before", "before")),
            false,
        ),
        (
            "T6c: switched off",
            off(rebooted(auto(), result("before", "before"))),
            false,
        ),
        (
            "T6a: our own",
            rebooted(auto(), result(HERE, "before")),
            false,
        ),
        (
            "T6d: the agent reports another epoch",
            under(
                result("before", "before"),
                "NotRequested",
                "Running",
                of(HERE, HERE),
            ),
            true,
        ),
        (
            "T6d: switched off",
            off(under(
                result("before", "before"),
                "NotRequested",
                "Running",
                of(HERE, HERE),
            )),
            false,
        ),
        (
            "T6e: it booted, and Skyhook cannot have asked for it",
            under(
                result("before", "before"),
                "NotRequested",
                "Running",
                of("before", "before"),
            ),
            true,
        ),
        (
            "T6e: drained for something that does not reboot",
            under(
                result("before", "before"),
                "Drained",
                "Running",
                of("before", "before"),
            ),
            true,
        ),
        (
            "T6e: a reboot comes, and the node is not drained yet",
            reboots(under(
                result("before", "before"),
                "Draining",
                "AwaitingDrain",
                of("before", "before"),
            )),
            true,
        ),
        (
            "T6f: it may be our reboot",
            reboots(under(
                result("before", "before"),
                "Drained",
                "Running",
                of("before", "before"),
            )),
            false,
        ),
        (
            "T6f: failing",
            reboots(under(
                result("before", "before"),
                "Drained",
                "Erroring",
                of("before", "before"),
            )),
            false,
        ),
        (
            "T6f: nobody knows the revision",
            unknown(under(
                result("before", "before"),
                "Drained",
                "Running",
                of("before", "before"),
            )),
            false,
        ),
        (
            "T6f: the agent reports the boot before the kubelet does",
            reboots(under(
                result(HERE, HERE),
                "Drained",
                "Running",
                of("next", HERE),
            )),
            false,
        ),
        (
            "T6g: our own reboot is over",
            reboots(under(
                result("before", "before"),
                "Drained",
                "Running",
                of(HERE, "before"),
            )),
            false,
        ),
        (
            "T6h: it was not ours",
            reboots(under(
                result("before", "before"),
                "Drained",
                "Running",
                of(HERE, HERE),
            )),
            true,
        ),
        (
            "T6i: never a result",
            under(
                no_result.clone(),
                "NotRequested",
                "Running",
                of("before", "before"),
            ),
            true,
        ),
        (
            "T6i: never a result, and it may be ours",
            reboots(under(
                no_result.clone(),
                "Drained",
                "Running",
                of("before", "before"),
            )),
            false,
        ),
        (
            "T6i: never a result, and no reboot",
            under(no_result, "NotRequested", "Running", of(HERE, HERE)),
            false,
        ),
        ("T6k: not accepted", accepted("before"), true),
        ("T6k: not accepted, and no reboot", accepted(HERE), false),
        (
            "T6j: the new epoch is on record",
            under(
                result(HERE, HERE),
                "NotRequested",
                "Running",
                of(HERE, HERE),
            ),
            false,
        ),
        (
            "an agent that reports no epoch",
            under(
                result("before", "before"),
                "NotRequested",
                "Running",
                of(HERE, ""),
            ),
            false,
        ),
    ] {
        let given = written(&picture, "worker-1");
        let taint: Vec<&String> = given
            .iter()
            .filter(|line| line.starts_with("taints") || line.starts_with("autoTaint"))
            .collect();
        let want: Vec<&String> = back.iter().filter(|_| tainted).collect();
        assert_eq!(taint, want, "{name}");
    }
    // T6d: the record stays as it is.
    let leased = under(
        result("before", "before"),
        "NotRequested",
        "Running",
        of(HERE, HERE),
    );
    let all = keys(&leased, &leased.index(), "worker-1");
    assert!(!all.contains(&names::node_state("s")), "{all:?}");
}

/// What the record says is not there any more, and the record is emptied in the same write.
#[test]
fn a_reboot_that_has_undone_a_result_keeps_the_taint() {
    let picture = |epoch: &str| {
        let picture = required(json!({}));
        let checked = picture.index().picture.skyhooks()["s"].checked.clone();
        let result = Stamp {
            revision: checked.unwrap().revision.clone(),
            ..result(epoch, epoch)
        };
        tainted(rebooted(picture, result), 1, &[OURS])
    };
    let off = written(&picture("boot-of-worker-1"), "worker-1");
    assert!(off.contains(&"taints []".to_owned()), "{off:?}");
    let kept = written(&picture("before"), "worker-1");
    assert!(!kept.contains(&"taints []".to_owned()), "{kept:?}");
}
