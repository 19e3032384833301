//! Packages whose uninstall is asked for, and what is left behind on hosts.

use super::leases::{effects, grant_and, granted, leased, phase, stamp};
use super::taints::tainted;
use super::*;
use crate::index::Change;
use skyhook_crds::installed::Stamp;
use skyhook_crds::skyhook::SkyhookStatus;

fn package(version: &str, uninstall: Option<(bool, bool)>) -> Value {
    let mut package = json!({ "version": version, "image": "r/p" });
    if let Some((enabled, apply)) = uninstall {
        package["uninstall"] = json!({ "enabled": enabled, "apply": apply });
    }
    package
}

const GONE: Option<(bool, bool)> = Some((true, true));
const KEPT: Option<(bool, bool)> = Some((true, false));
const STAYS: Option<(bool, bool)> = Some((false, false));

/// A record: `name version stage state`, separated by commas.
fn record(entries: &str) -> String {
    let entries = entries.split(", ").filter(|entry| !entry.is_empty());
    let entries = entries.map(|entry| {
        let part: Vec<&str> = entry.split(' ').collect();
        let status = json!({
            "name": part[0], "version": part[1], "image": "r/p", "stage": part[2], "state": part[3],
        });
        (format!("{}|{}", part[0], part[1]), status)
    });
    Value::Object(entries.collect()).to_string()
}

/// The Skyhook with these packages, and a record on each worker, as far as there are any.
fn cluster(packages: Value, records: &[&str]) -> Picture {
    let mut picture = Picture::new()
        .skyhook(&["spec", "packages"], packages)
        .skyhook(&["spec", "interruptionBudget"], json!(null));
    for (n, entries) in records.iter().enumerate() {
        picture = picture.annotated(n + 1, "skyhook.nvidia.com/nodeState_s", &record(entries));
    }
    picture
}

fn status(picture: &Picture) -> SkyhookStatus {
    let plan = picture.plan();
    let mut statuses = plan.effects.iter().filter_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some((**status).clone()),
        _ => None,
    });
    statuses.next().expect("a status is written")
}

/// `type reason: message` of the conditions about uninstalls.
fn conditions(status: &SkyhookStatus) -> Vec<String> {
    let all = status.conditions.iter();
    all.filter(|one| ["Blocked", "UninstallInProgress", "UninstallFailed"].contains(&&*one.type_))
        .map(|one| format!("{} {}: {}", one.type_, one.reason, one.message))
        .collect()
}

fn ready(status: &SkyhookStatus) -> String {
    let mut all = status.conditions.iter();
    let ready = all.find(|one| one.type_ == "Ready").expect("Ready");
    format!("{}: {}", ready.reason, ready.message)
}

#[test]
fn only_nodes_that_carry_the_package_are_worked_on() {
    let done = "aa 1.0.0 config complete";
    for (name, packages, records, want) in [
        (
            "to go",
            json!({ "aa": package("1.0.0", GONE) }),
            [done, "", "aa 1.0.0 uninstall erroring"],
            vec!["s/worker-1", "s/worker-3"],
        ),
        (
            "whatever the version is",
            json!({ "aa": package("2.0.0", GONE) }),
            [done, "", ""],
            vec!["s/worker-1"],
        ),
        (
            "its interrupt is left",
            json!({ "aa": package("1.0.0", GONE) }),
            ["aa 1.0.0 uninstall-interrupt skipped", "", ""],
            vec!["s/worker-1"],
        ),
        (
            "taken back",
            json!({ "aa": package("1.0.0", KEPT) }),
            [done, "", "aa 1.0.0 uninstall in_progress"],
            vec!["s/worker-2", "s/worker-3"],
        ),
    ] {
        assert_eq!(cluster(packages, &records).reserved(), want, "{name}");
    }
}

#[test]
fn what_the_status_says_of_uninstalls() {
    let going =
        "UninstallInProgress UninstallInProgress: one or more packages are being uninstalled";
    let failing = "UninstallFailed UninstallPodFailing: one or more uninstall pods are failing";
    let done = "aa 1.0.0 config complete";
    let both = "aa 1.0.0 config complete, bb 1.0.0 config complete";
    let on_aa = || {
        let mut bb = package("1.0.0", None);
        bb["dependsOn"] = json!({ "aa": "1.0.0" });
        json!({ "aa": package("1.0.0", GONE), "bb": bb })
    };
    let blocked = |how: &str| {
        format!("Blocked DependencyUninstalled: package bb is blocked: dependency aa {how}")
    };
    for (name, packages, records, want) in [
        (
            "asked for",
            json!({ "aa": package("1.0.0", GONE) }),
            [done, "", ""],
            vec![going.to_owned()],
        ),
        (
            "failing",
            json!({ "aa": package("1.0.0", GONE) }),
            ["aa 1.0.0 uninstall erroring", done, ""],
            vec![going.to_owned(), failing.to_owned()],
        ),
        (
            "an install that has failed goes as well",
            json!({ "aa": package("1.0.0", GONE) }),
            ["aa 1.0.0 apply erroring", "", ""],
            vec![going.to_owned()],
        ),
        (
            "taken back at its interrupt, which fails",
            json!({ "aa": package("1.0.0", KEPT) }),
            ["aa 1.0.0 uninstall-interrupt erroring", done, done],
            vec![going.to_owned(), failing.to_owned()],
        ),
        (
            "gone",
            json!({ "aa": package("1.0.0", GONE) }),
            ["", "", ""],
            vec![],
        ),
        (
            "not asked for",
            json!({ "aa": package("1.0.0", KEPT) }),
            ["aa 1.0.0 uninstall erroring", "", ""],
            vec![],
        ),
        (
            "a dependent is not there yet",
            on_aa(),
            [done, "", ""],
            vec![going.to_owned(), blocked("is being uninstalled")],
        ),
        (
            "a dependent is complete on one node",
            on_aa(),
            ["bb 1.0.0 config complete", "", ""],
            vec![blocked("has been uninstalled")],
        ),
        (
            "a dependent is complete on all nodes",
            on_aa(),
            [both, "bb 1.0.0 config complete", "bb 1.0.0 config complete"],
            vec![going.to_owned()],
        ),
    ] {
        let status = status(&cluster(packages, &records));
        assert_eq!(conditions(&status), want, "{name}");
    }
}

#[test]
fn what_ready_says_of_packages_that_go() {
    let gone = cluster(json!({ "aa": package("1.0.0", GONE) }), &["", "", ""]);
    let want = "Complete: 3/3 nodes complete; package aa is on no node, and is not installed while uninstall.apply is true";
    assert_eq!(ready(&status(&gone)), want);
    let other = cluster(
        json!({ "aa": package("2.0.0", GONE) }),
        &["aa 1.0.0 config complete", "", ""],
    );
    let said = ready(&status(&other));
    let want = "package aa: version 1.0.0 is uninstalled, and version 2.0.0 waits until uninstall.apply is false";
    assert!(said.contains(want), "{said}");
}

#[test]
fn a_node_where_all_that_is_left_is_blocked_gets_no_lease_and_says_so() {
    let mut bb = package("1.0.0", None);
    bb["dependsOn"] = json!({ "aa": "1.0.0" });
    let mut cc = package("1.0.0", None);
    cc["dependsOn"] = json!({ "bb": "1.0.0" });
    let packages = json!({ "aa": package("1.0.0", GONE), "bb": bb, "cc": cc });
    let picture = cluster(packages, &["", "aa 1.0.0 config complete", ""]);
    assert_eq!(picture.reserved(), ["s/worker-2"]);
    assert_eq!(picture.reason("s", "worker-1"), "DependencyUninstalled");
    let status = status(&picture);
    let said = &status.node_reasons["worker-1"].message;
    let want = "package bb is blocked: dependency aa has been uninstalled. Set uninstall.apply";
    assert!(said.starts_with(want), "{said}");
}

/// The lease of such a node ends, because its agent can do nothing: the node is not complete by that.
#[test]
fn a_node_where_all_that_is_left_is_blocked_is_not_complete_when_its_lease_ends() {
    let mut bb = package("1.0.0", None);
    bb["dependsOn"] = json!({ "aa": "1.0.0" });
    let packages = json!({ "aa": package("1.0.0", GONE), "bb": bb });
    let picture = || {
        let picture = cluster(packages.clone(), &[""]);
        let picture = picture.skyhook(&["spec", "runtimeRequired"], json!(true));
        tainted(
            picture,
            1,
            &["skyhook.nvidia.com=runtime-required:NoSchedule"],
        )
    };
    let recorded = Stamp {
        lease: "lease".into(),
        ..granted()
    };
    for (name, stamped) in [("taken", granted()), ("recorded", recorded)] {
        let picture = stamp(picture(), stamped);
        let picture = leased(picture, grant_and(json!({})), phase("Complete"));
        for effect in picture.plan().effects {
            let Effect::PatchNode { node, patch, .. } = effect else {
                continue;
            };
            let label = patch.labels.get("skyhook.nvidia.com/status_s");
            let label = label.and_then(Option::as_deref);
            assert!(node != "worker-1" || label != Some("complete"), "{name}");
            assert_eq!(patch.taints, None, "{name}");
        }
    }
}

/// The picture after the Skyhook had these packages, with the names of what is left behind then.
fn after(packages: &Value, picture: &Picture) -> (Vec<String>, Vec<String>) {
    let before = cluster(packages.clone(), &[]);
    let mut index = before.index();
    let mut current = picture.skyhooks[0].clone();
    set(&mut current, &["metadata", "resourceVersion"], json!("2"));
    for node in &picture.nodes {
        let mut node = node.clone();
        set(&mut node, &["metadata", "resourceVersion"], json!("99"));
        let node = serde_json::from_value(node).unwrap();
        index.apply(Change::Node(Box::new(node)), Mono::ZERO);
    }
    let skyhook = serde_json::from_value(current).unwrap();
    index.apply(Change::Skyhook(Box::new(skyhook)), Mono::ZERO);
    let checked = index.picture.skyhooks()["s"].checked.clone().unwrap();
    let revision = json!({
        "metadata": {
            "name": checked.revision, "uid": "r2", "resourceVersion": "2",
            "labels": { "skyhook.nvidia.com/name": "s" },
            "annotations": { "skyhook.nvidia.com/owner": "uid-of-s" },
        },
        "revision": 2,
        "data": checked.data,
    });
    let revision = serde_json::from_value(revision).unwrap();
    index.apply(Change::Revision(Box::new(revision)), Mono::ZERO);
    let again = index.picture.skyhooks()["s"].checked.clone().unwrap();
    assert_eq!(again.revision, checked.revision, "it stays what it is");
    let plan = picture.plan_of(&index);
    let reserved = plan.effects.iter().filter_map(|effect| match effect {
        Effect::ReserveLease { node, .. } => Some(node.clone()),
        _ => None,
    });
    let left = again.data.left_behind.iter().cloned();
    (left.collect(), reserved.collect())
}

#[test]
fn a_package_that_is_removed_with_enabled_false_is_left_behind() {
    let none = json!({});
    let done = "aa 1.0.0 config complete";
    for (name, before, now, left, reserved) in [
        ("enabled: false", STAYS, none.clone(), vec!["aa"], vec![]),
        ("no block", None, none.clone(), vec![], vec!["worker-1"]),
        ("enabled: true", KEPT, none, vec![], vec!["worker-1"]),
        (
            "still there",
            STAYS,
            json!({ "aa": package("1.0.0", STAYS) }),
            vec![],
            vec!["worker-2", "worker-3"],
        ),
    ] {
        let before = json!({ "aa": package("1.0.0", before) });
        let picture = cluster(now, &[done]);
        let (given, leased) = after(&before, &picture);
        assert_eq!(
            (given, leased),
            (
                left.iter().map(|name| (*name).to_owned()).collect(),
                reserved.iter().map(|name| (*name).to_owned()).collect(),
            ),
            "{name}"
        );
    }
}

#[test]
fn a_version_that_is_left_behind_is_on_the_stamp_and_asks_for_nothing() {
    let packages = || json!({ "aa": package("1.0.0", STAYS) });
    let both = "aa 1.0.0 config complete, aa 2.0.0 config complete";
    let mut report = phase("Complete");
    report["format"] = json!(1);
    for (version, left) in [("1.0.0", false), ("2.0.0", true)] {
        report["packages"][format!("aa|{version}")] = json!({
            "name": "aa", "version": version, "image": "r/p", "stage": "config", "state": "complete",
            "leftBehind": left,
        });
    }
    let picture = leased(
        stamp(cluster(packages(), &[]), granted()),
        grant_and(json!({})),
        report,
    );
    let plan = picture.plan();
    assert_eq!(effects(&plan), ["PatchNode result"]);
    let stamp = plan.effects.iter().find_map(|effect| match effect {
        Effect::PatchNode { patch, .. } => {
            let text = patch.annotations.get("skyhook.nvidia.com/stamp_s")?;
            Stamp::parse(text.as_deref())
        }
        _ => None,
    });
    let stamp = stamp.expect("a stamp");
    assert_eq!(stamp.format, 1);
    assert_eq!(stamp.left_behind, ["aa|2.0.0".to_owned()].into());

    let rested = |packages: Value| {
        let rested = cluster(packages, &[both]);
        let index = rested.index();
        let checked = index.picture.skyhooks()["s"].checked.clone().unwrap();
        let stamp = Stamp {
            revision: checked.revision.clone(),
            ..stamp.clone()
        };
        rested.annotated(1, "skyhook.nvidia.com/stamp_s", &stamp.render())
    };
    let nobody = vec!["s/worker-2".to_owned(), "s/worker-3".to_owned()];
    assert_eq!(rested(packages()).reserved(), nobody);
    assert_eq!(
        rested(json!({ "aa": package("1.0.0", None) })).reserved(),
        nobody,
        "also when the block is gone"
    );
    let back = rested(json!({ "aa": package("2.0.0", STAYS) })).plan();
    let forms = back.effects.iter().filter_map(|effect| match effect {
        Effect::ReserveLease { node, spec } => Some((node.clone(), spec.format)),
        _ => None,
    });
    let forms: Vec<(String, i32)> = forms.collect();
    assert_eq!(
        forms[0],
        ("worker-1".to_owned(), 1),
        "only who knows the form may take it"
    );
    assert_eq!(forms[1].1, 0);
}
