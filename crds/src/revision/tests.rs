#![expect(clippy::too_many_lines, reason = "one table, a row per case")]

use super::*;
use crate::package::{Interrupt, InterruptType, PackageStatus, Uninstall};

fn package(name: &str, version: &str) -> Package {
    Package {
        name: name.into(),
        version: version.into(),
        image: format!("r/{name}"),
        ..Package::default()
    }
}

fn data<const N: usize>(packages: [&Package; N]) -> RevisionData {
    let packages = packages.into_iter();
    let packages = packages.map(|p| (p.name.clone(), p.clone()));
    RevisionData::new(packages.collect(), false, BTreeSet::new())
}

fn states(entries: &[(&str, &str, Stage, State)]) -> PackageStates {
    entries
        .iter()
        .map(|(name, version, stage, state)| {
            let status = PackageStatus {
                name: (*name).into(),
                version: (*version).into(),
                image: format!("r/{name}"),
                container_sha: None,
                stage: *stage,
                state: *state,
                restarts: 0,
            };
            (crate::package::key(name, version), status)
        })
        .collect()
}

#[test]
fn work_of_a_node() {
    let a1 = package("aa", "1.0.0");
    let mut configured = a1.clone();
    configured.config_map.insert("k".into(), "v".into());
    let mut interrupting = a1.clone();
    interrupting.interrupt = Some(Interrupt {
        kind: InterruptType::Noop,
        services: Vec::new(),
    });
    let mut with_env = a1.clone();
    with_env.env.push(k8s_openapi::api::core::v1::EnvVar {
        name: "X".into(),
        ..Default::default()
    });
    let mut limited = a1.clone();
    limited.stage_timeout = Some(crate::duration::GoDuration("5m".into()));
    limited.max_attempts = Some(3);
    let done = states(&[("aa", "1.0.0", Stage::Config, State::Complete)]);
    let post = states(&[("aa", "1.0.0", Stage::PostInterrupt, State::Complete)]);
    for (name, states, recorded, wanted, want) in [
        (
            "new node",
            states(&[]),
            None,
            data([&a1]),
            Some(Work::Unfinished),
        ),
        (
            "complete",
            done.clone(),
            Some(data([&a1])),
            data([&a1]),
            None,
        ),
        ("adopted", done.clone(), None, data([&configured]), None),
        (
            "erroring",
            states(&[("aa", "1.0.0", Stage::Apply, State::Erroring)]),
            None,
            data([&a1]),
            Some(Work::Unfinished),
        ),
        (
            "applied only",
            states(&[("aa", "1.0.0", Stage::Apply, State::Complete)]),
            None,
            data([&a1]),
            Some(Work::Unfinished),
        ),
        (
            "new version",
            done.clone(),
            None,
            data([&package("aa", "1.1.0")]),
            Some(Work::Version),
        ),
        ("removed", done.clone(), None, data([]), Some(Work::Removed)),
        (
            "config added",
            done.clone(),
            Some(data([&a1])),
            data([&configured]),
            Some(Work::Config),
        ),
        (
            "config removed",
            done.clone(),
            Some(data([&configured])),
            data([&a1]),
            Some(Work::Config),
        ),
        (
            "interrupt added",
            done.clone(),
            Some(data([&a1])),
            data([&interrupting]),
            Some(Work::Interrupt),
        ),
        (
            "interrupt removed",
            post,
            Some(data([&interrupting])),
            data([&a1]),
            None,
        ),
        (
            "taken back to what is there, from a version that was never begun",
            done.clone(),
            Some(data([&package("aa", "1.1.0")])),
            data([&configured]),
            Some(Work::Config),
        ),
        (
            "taken back from a version that was begun",
            states(&[
                ("aa", "1.0.0", Stage::Config, State::Complete),
                ("aa", "1.1.0", Stage::Upgrade, State::InProgress),
            ]),
            Some(data([&package("aa", "1.1.0")])),
            data([&a1]),
            Some(Work::Removed),
        ),
        (
            "wanted again before it was removed",
            done.clone(),
            Some(data([])),
            data([&configured]),
            Some(Work::Config),
        ),
        (
            "env changed",
            done.clone(),
            Some(data([&a1])),
            data([&with_env]),
            None,
        ),
        (
            "limits of attempts",
            done,
            Some(data([&a1])),
            data([&limited]),
            None,
        ),
    ] {
        let got = work(&states, &BTreeSet::new(), recorded.as_ref(), &wanted);
        assert_eq!(got.get("aa").copied(), want, "{name}");
        assert_eq!(got.len(), usize::from(want.is_some()), "{name}");
    }
}

#[test]
fn work_where_packages_go_or_stay() {
    let plain = |version: &str| package("aa", version);
    let with = |version: &str, enabled, apply| Package {
        uninstall: Some(Uninstall { enabled, apply }),
        ..plain(version)
    };
    let on = |name: &str, package: Package| Package {
        depends_on: [(name.to_owned(), "1.0.0".to_owned())].into(),
        ..package
    };
    let bb = || on("aa", package("bb", "1.0.0"));
    let cc = || on("bb", package("cc", "1.0.0"));
    let (one, two) = (
        ("aa", "1.0.0", Stage::Config, State::Complete),
        ("aa", "2.0.0", Stage::Config, State::Complete),
    );
    let b1 = ("bb", "1.0.0", Stage::Config, State::Complete);
    let at = |stage, state| vec![("aa", "1.0.0", stage, state)];
    let gone = || with("1.0.0", true, true);
    let left_in = |names: &[&str], data: RevisionData| {
        let names = names.iter().map(|name| (*name).to_owned());
        RevisionData::new(data.packages, false, names.collect())
    };
    for (name, there, left, wanted, want) in [
        (
            "to go, and complete",
            vec![one],
            "",
            data([&gone()]),
            "aa Uninstall",
        ),
        ("to go, and gone", vec![], "", data([&gone()]), ""),
        (
            "to go, and failing",
            at(Stage::Uninstall, State::Erroring),
            "",
            data([&gone()]),
            "aa Uninstall",
        ),
        (
            "its interrupt is left",
            at(Stage::UninstallInterrupt, State::Skipped),
            "",
            data([&gone()]),
            "aa Uninstall",
        ),
        (
            "another version is there",
            vec![one],
            "",
            data([&with("2.0.0", true, true)]),
            "aa Uninstall",
        ),
        (
            "only what was left behind is there",
            vec![two],
            "aa|2.0.0",
            data([&gone()]),
            "aa Uninstall",
        ),
        (
            "called off",
            at(Stage::Uninstall, State::InProgress),
            "",
            data([&with("1.0.0", true, false)]),
            "aa Unfinished",
        ),
        (
            "a dependent is complete",
            vec![one, b1],
            "",
            data([&gone(), &bb()]),
            "aa Uninstall",
        ),
        (
            "a dependent is not there, nor is what depends on it",
            vec![],
            "",
            data([&gone(), &bb(), &cc()]),
            "bb Blocked, cc Blocked",
        ),
        (
            "a dependent is complete, so its own dependent is not blocked",
            vec![b1],
            "",
            data([&gone(), &bb(), &cc()]),
            "cc Unfinished",
        ),
        (
            "removed, and stays",
            vec![one],
            "",
            left_in(&["aa"], data([])),
            "",
        ),
        (
            "removed in the middle, and stays",
            at(Stage::Config, State::Erroring),
            "",
            left_in(&["aa"], data([])),
            "",
        ),
        ("removed", vec![one], "", data([]), "aa Removed"),
        (
            "a lower version over one that stays",
            vec![one, two],
            "aa|2.0.0",
            data([&with("1.0.0", false, false)]),
            "",
        ),
        (
            "and its block has changed",
            vec![one, two],
            "aa|2.0.0",
            data([&plain("1.0.0")]),
            "",
        ),
        (
            "back to what was left behind",
            vec![one, two],
            "aa|2.0.0",
            data([&with("2.0.0", false, false)]),
            "aa Version",
        ),
        (
            "a lower version, and nobody has left anything behind yet",
            vec![one, two],
            "",
            data([&with("1.0.0", false, false)]),
            "aa Removed",
        ),
    ] {
        let left = [left.to_owned()].into();
        let got = work(&states(&there), &left, None, &wanted);
        let shown: Vec<String> = got.iter().map(|(n, w)| format!("{n} {w:?}")).collect();
        assert_eq!(shown.join(", "), want, "{name}");
        assert_eq!(
            is_idle(&got),
            !want.contains("aa") && !want.contains("Unf"),
            "{name}"
        );
    }
}

#[test]
fn a_revision_has_the_oldest_form_that_says_all_of_it() {
    let plain = package("aa", "1.0.0");
    let with = |enabled| Package {
        uninstall: Some(Uninstall {
            enabled,
            apply: false,
        }),
        ..plain.clone()
    };
    assert_eq!(data([&plain]).format, 0);
    assert_eq!(data([&with(true)]).format, 1);
    assert_eq!(data([&with(false)]).format, 1);
    let left = RevisionData::new(BTreeMap::new(), false, ["aa".to_owned()].into());
    assert_eq!(left.format, 1);
    let json = serde_json::to_value(&left).unwrap();
    assert_eq!(json["leftBehind"], serde_json::json!(["aa"]));
    assert_eq!(RevisionData::read(json).unwrap(), left);
}

#[test]
fn names_follow_the_content() {
    let one = data([&package("aa", "1.0.0")]);
    let two = data([&package("aa", "1.0.1")]);
    assert_eq!(name("s", "uid", &one), name("s", "uid", &one.clone()));
    assert_ne!(name("s", "uid", &one), name("s", "uid", &two));
    assert_ne!(
        name("s", "uid", &one),
        name("s", "other", &one),
        "a Skyhook made anew has revisions of its own"
    );
    assert_eq!(name("sample", "uid", &one).len(), "sample-".len() + 10);
}

#[test]
fn interrupts_that_nvidia_skyhook_left_undone() {
    let interrupt = |kind, services: &[&str]| Interrupt {
        kind,
        services: services.iter().map(|s| (*s).to_owned()).collect(),
    };
    let reboot = interrupt(InterruptType::Reboot, &[]);
    let cron = interrupt(InterruptType::Service, &["cron"]);
    let plain = package("aa", "1.0.0");
    let rebooting = Package {
        interrupt: Some(reboot.clone()),
        config_interrupts: [("cron*".to_owned(), cron.clone())].into(),
        ..plain.clone()
    };
    let by_key_alone = Package {
        interrupt: None,
        ..rebooting.clone()
    };
    let at = |stage, state| states(&[("aa", "1.0.0", stage, state)]);
    let waiting = || at(Stage::Config, State::Complete);
    let older = || states(&[("aa", "0.9.0", Stage::Config, State::Complete)]);
    for (name, states, updates, package, want) in [
        ("no interrupt", waiting(), vec![], &plain, None),
        ("its own", waiting(), vec![], &rebooting, Some(&reboot)),
        ("another version", older(), vec![], &rebooting, None),
        (
            "not configured",
            at(Stage::Config, State::InProgress),
            vec![],
            &rebooting,
            None,
        ),
        (
            "it was interrupted",
            at(Stage::PostInterrupt, State::Complete),
            vec![],
            &rebooting,
            None,
        ),
        (
            "keys changed that need no interrupt",
            waiting(),
            vec!["motd"],
            &rebooting,
            None,
        ),
        (
            "a key changed that needs another one",
            waiting(),
            vec!["motd", "cron.conf"],
            &rebooting,
            Some(&cron),
        ),
        (
            "only keys need one",
            waiting(),
            vec!["cron.conf"],
            &by_key_alone,
            Some(&cron),
        ),
        (
            "only keys need one, and none changed",
            waiting(),
            vec![],
            &by_key_alone,
            None,
        ),
    ] {
        let updates = updates.into_iter().map(str::to_owned).collect();
        let updates = [("aa".to_owned(), updates)].into();
        let left = left_undone(&states, &updates, &data([package]));
        assert_eq!(left.get("aa"), want, "{name}");
        assert_eq!(left.len(), usize::from(want.is_some()), "{name}");
    }
}

#[test]
fn a_revision_of_a_newer_form_keeps_its_form_alone() {
    let package = package("a", "1");
    let known = data([&package]);
    let mut later = serde_json::to_value(&known).unwrap();
    assert_eq!(later.get("format"), None, "names of revisions stay");
    assert_eq!(RevisionData::read(later.clone()).unwrap(), known);
    later["format"] = 2.into();
    later["packages"] = serde_json::json!([{ "another": "form" }]);
    let read = RevisionData::read(later).unwrap();
    assert!(read.is_newer());
    let want = RevisionData {
        format: 2,
        ..RevisionData::default()
    };
    assert_eq!(read, want);
    let broken = serde_json::json!({ "packages": 1 });
    assert!(RevisionData::read(broken).is_err());
}
