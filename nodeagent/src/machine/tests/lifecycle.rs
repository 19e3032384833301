//! Changes from one specification to another, and the stages that they need.

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Package, Stage, State};

use super::world::{Spec, World, pkg};
use super::{interrupt, reboot};

/// Runs `before` to its end, and then `after`. Returns the world, and the steps that ran for `after`.
fn second(before: &Spec, after: &Spec) -> (World, Vec<String>) {
    let mut world = World::new();
    world.lease(before);
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete), "first");
    world.log.clear();
    world.lease(after);
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete), "second");
    let log = world.log.clone();
    (world, log)
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn every_row_of_the_lifecycle() {
    let cfg = |p: Package, pairs: &[(&str, &str)]| Package {
        config_map: pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..p
    };
    let with = |p: Package, i: Option<Interrupt>| Package { interrupt: i, ..p };
    let on_key = |p: Package, key: &str| Package {
        config_interrupts: [(key.to_owned(), reboot().unwrap())].into(),
        ..p
    };
    let a1 = || pkg("aa", "1.0.0");
    let a2 = || pkg("aa", "2.0.0");
    let env = |p: Package| Package {
        env: vec![k8s_openapi::api::core::v1::EnvVar {
            name: "X".into(),
            ..Default::default()
        }],
        ..p
    };
    let rows: Vec<(&str, Package, Option<Package>, &str)> = vec![
        ("nothing changed", a1(), Some(a1()), ""),
        (
            "upgrade",
            a1(),
            Some(a2()),
            "aa@2.0.0 upgrade; aa@2.0.0 config",
        ),
        (
            "upgrade with an interrupt",
            a1(),
            Some(with(a2(), reboot())),
            "aa@2.0.0 upgrade; aa@2.0.0 config; reboot; aa@2.0.0 post-interrupt",
        ),
        (
            "downgrade",
            a2(),
            Some(a1()),
            "aa@2.0.0 uninstall; aa@1.0.0 apply; aa@1.0.0 config",
        ),
        (
            "downgrade with an interrupt",
            a2(),
            Some(with(a1(), reboot())),
            "aa@2.0.0 uninstall; aa@1.0.0 apply; aa@1.0.0 config; reboot; aa@1.0.0 post-interrupt",
        ),
        (
            "same precedence, other string",
            a1(),
            Some(pkg("aa", "1.0.0+b")),
            "aa@1.0.0+b apply; aa@1.0.0+b config",
        ),
        ("removal", a1(), None, "aa@1.0.0 uninstall"),
        (
            "removal of one that has an interrupt interrupts nothing",
            with(a1(), reboot()),
            None,
            "aa@1.0.0 uninstall",
        ),
        (
            "config key added",
            a1(),
            Some(cfg(a1(), &[("k", "1")])),
            "aa@1.0.0 config",
        ),
        (
            "config key removed counts",
            on_key(cfg(a1(), &[("k", "1")]), "k"),
            Some(on_key(a1(), "k")),
            "aa@1.0.0 config; reboot; aa@1.0.0 post-interrupt",
        ),
        (
            "config change without a match, package interrupt is left alone",
            with(cfg(a1(), &[("k", "1")]), reboot()),
            Some(with(cfg(a1(), &[("k", "2")]), reboot())),
            "aa@1.0.0 config",
        ),
        (
            "config change that matches exactly",
            on_key(cfg(a1(), &[("k", "1")]), "k"),
            Some(on_key(cfg(a1(), &[("k", "2")]), "k")),
            "aa@1.0.0 config; reboot; aa@1.0.0 post-interrupt",
        ),
        (
            "config change that matches a glob",
            on_key(cfg(a1(), &[("service_a.conf", "1")]), "service_*"),
            Some(on_key(cfg(a1(), &[("service_a.conf", "2")]), "service_*")),
            "aa@1.0.0 config; reboot; aa@1.0.0 post-interrupt",
        ),
        (
            "config change that matches nothing",
            on_key(cfg(a1(), &[("k", "1"), ("j", "1")]), "k"),
            Some(on_key(cfg(a1(), &[("k", "1"), ("j", "2")]), "k")),
            "aa@1.0.0 config",
        ),
        (
            "interrupt added",
            a1(),
            Some(with(a1(), reboot())),
            "reboot; aa@1.0.0 post-interrupt",
        ),
        ("interrupt removed", with(a1(), reboot()), Some(a1()), ""),
        ("env alone", a1(), Some(env(a1())), ""),
    ];
    for (name, before, after, want) in rows {
        let after = after.map_or_else(|| Spec::of(&[]), |p| Spec::of(&[p]));
        let (world, log) = second(&Spec::of(&[before]), &after);
        assert_eq!(log.join("; "), want, "{name}");
        let entries = &world.progress().entries;
        assert_eq!(entries.len(), after.packages.len(), "{name}: {entries:?}");
    }
}

#[test]
fn a_package_that_nvidia_skyhook_left_before_its_interrupt_is_interrupted() {
    let cron = interrupt(InterruptType::Service, &["cron"]);
    let own = |interrupt| Package {
        interrupt,
        ..pkg("aa", "1.0.0")
    };
    for (name, left, package, want) in [
        (
            "its own interrupt",
            reboot(),
            own(reboot()),
            "reboot; aa@1.0.0 post-interrupt",
        ),
        (
            "the one of a key that changed",
            cron.clone(),
            own(reboot()),
            "service cron; aa@1.0.0 post-interrupt",
        ),
        (
            "the one of a key, and it has none of its own",
            cron,
            own(None),
            "service cron; aa@1.0.0 post-interrupt",
        ),
    ] {
        let mut world = World::new();
        world.adopt_waiting("aa", "1.0.0", left.unwrap());
        world.lease(&Spec::of(&[package]));
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete), "{name}");
        assert_eq!(world.log.join("; "), want, "{name}");
    }
}

#[test]
fn the_first_change_of_a_package_that_was_taken_over_before_its_interrupt_is_applied() {
    for stage in [Stage::Interrupt, Stage::PostInterrupt] {
        let with = |value: &str| Package {
            interrupt: reboot(),
            config_map: [("k".to_owned(), value.to_owned())].into(),
            ..pkg("aa", "1.0.0")
        };
        let mut world = World::new();
        world.adopt("aa", "1.0.0", stage, State::Skipped);
        world.lease(&Spec::of(&[with("1")]));
        world.settle();
        world.log.clear();
        world.lease(&Spec::of(&[with("2")]));
        world.settle();
        assert_eq!(world.log.join("; "), "aa@1.0.0 config", "{stage:?}");
    }
}

#[test]
fn a_post_interrupt_that_came_to_depend_on_the_next_wave_does_not_hold_it_up() {
    let mut world = World::new();
    world.adopt("aa", "1.0.0", Stage::Config, State::Complete);
    world.adopt("bb", "1.0.0", Stage::PostInterrupt, State::InProgress);
    world.lease(&Spec::of(&[
        Package {
            interrupt: reboot(),
            ..pkg("aa", "2.0.0")
        },
        Package {
            depends_on: [("aa".to_owned(), "2.0.0".to_owned())].into(),
            ..pkg("bb", "1.0.0")
        },
    ]));
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete), "{:?}", world.log);
}

#[test]
fn a_pull_that_an_earlier_lease_began_is_begun_again() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "2.0.0")]));
    world.settle();
    let downgrade = Spec::of(&[pkg("aa", "1.0.0")]);
    world.lease(&downgrade);
    assert!(
        !world.queue.is_empty(),
        "the image of what leaves is pulled"
    );
    world.queue.clear();
    world.stop(StopReason::NewRevision);
    assert_eq!(world.ended(), Some(Phase::Stopped));
    world.queue.clear();
    world.lease(&downgrade);
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete), "{:?}", world.log);
}
