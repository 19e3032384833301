//! Tests of the stages that packages run, on a simulated host that performs every effect.

mod attempts;
mod called_off;
mod interrupts;
mod lifecycle;
mod messages;
mod properties;
mod reboots;
mod record;
mod reruns;
mod room;
mod uninstall;
mod waits;
pub(crate) mod world;

use std::collections::BTreeMap;

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Package, Stage, State};
use world::{Spec, World, pkg, run_lines};

use super::*;

fn interrupt(kind: InterruptType, services: &[&str]) -> Option<Interrupt> {
    Some(Interrupt {
        kind,
        services: services.iter().map(|s| (*s).to_owned()).collect(),
    })
}

fn reboot() -> Option<Interrupt> {
    interrupt(InterruptType::Reboot, &[])
}

#[test]
fn installs() {
    let with = |p: Package, i: Option<Interrupt>| Package { interrupt: i, ..p };
    let after = |p: Package, d: &str| Package {
        depends_on: [(d.to_owned(), "1.0.0".to_owned())].into(),
        ..p
    };
    let p = |name: &str| pkg(name, "1.0.0");
    let service = |s: &[&str]| interrupt(InterruptType::Service, s);
    let rows: Vec<(&str, Spec, &str)> = vec![
        ("plain", Spec::of(&[p("aa")]), "aa apply; aa config"),
        (
            "with an interrupt",
            Spec::of(&[with(p("aa"), reboot())]),
            "aa apply; aa config; reboot; aa post-interrupt",
        ),
        (
            "side by side",
            Spec::of(&[p("aa"), p("bb")]),
            "aa apply; bb apply; aa config; bb config",
        ),
        (
            "one after the other",
            Spec::of(&[after(p("aa"), "bb"), p("bb")]),
            "bb apply; bb config; aa apply; aa config",
        ),
        (
            "serial",
            Spec::of(&[p("aa"), p("bb")]).serial(),
            "aa apply; aa config; bb apply; bb config",
        ),
        (
            "serial, in dependency order",
            Spec::of(&[after(p("aa"), "bb"), p("bb"), p("cc")]).serial(),
            "bb apply; bb config; aa apply; aa config; cc apply; cc config",
        ),
        (
            "interrupts of a wave are merged, the strongest wins",
            Spec::of(&[with(p("aa"), service(&["x"])), with(p("bb"), reboot())]),
            "aa apply; bb apply; aa config; bb config; reboot; aa post-interrupt; bb post-interrupt",
        ),
        (
            "services are united and sorted",
            Spec::of(&[
                with(p("aa"), service(&["y", "x"])),
                with(p("bb"), service(&["w", "x"])),
            ]),
            "aa apply; bb apply; aa config; bb config; service w,x,y; aa post-interrupt; bb post-interrupt",
        ),
        (
            "each wave interrupts for itself",
            Spec::of(&[
                with(after(p("aa"), "bb"), service(&["x"])),
                with(p("bb"), service(&["y"])),
            ]),
            "bb apply; bb config; service y; bb post-interrupt; aa apply; aa config; service x; aa post-interrupt",
        ),
    ];
    for (name, spec, want) in rows {
        let mut world = World::new();
        world.lease(&spec);
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete), "{name}");
        assert_eq!(run_lines(&world.log), want, "{name}");
    }
}

#[test]
fn others_of_a_wave_are_skipped_while_one_interrupts() {
    let with = |p: Package| Package {
        interrupt: reboot(),
        ..p
    };
    let mut world = World::new();
    world.lease(&Spec::of(&[
        with(pkg("aa", "1.0.0")),
        with(pkg("bb", "1.0.0")),
    ]));
    world.settle_until(|effect| matches!(effect, Effect::Interrupt { .. }));
    let shown: Vec<_> = world
        .progress()
        .entries
        .values()
        .map(|e| (e.stage, e.state))
        .collect();
    assert_eq!(
        shown,
        [
            (Stage::Interrupt, State::InProgress),
            (Stage::Interrupt, State::Skipped)
        ]
    );
}

#[test]
fn packages_without_an_interrupt_do_not_wait_for_the_drain() {
    let mut world = World::new();
    world.drained = false;
    world.lease(&Spec::of(&[
        Package {
            interrupt: reboot(),
            ..pkg("aa", "1.0.0")
        },
        pkg("bb", "1.0.0"),
    ]));
    world.settle_quiet();
    assert_eq!(run_lines(&world.log), "bb apply; bb config");
    let report = crate::report::status(world.progress(), &crate::report::HostFacts::default(), 1);
    assert_eq!(
        (report.phase, report.needs_drain, report.needs_drain_reason),
        (
            Some(Phase::AwaitingDrain),
            Some(true),
            "aa: reboot".to_owned()
        )
    );
    world.drained = true;
    world.see();
    world.settle();
    assert_eq!(
        run_lines(&world.log),
        "bb apply; bb config; aa apply; aa config; reboot; aa post-interrupt"
    );
}

#[test]
fn what_fails_shows_at_once_and_is_tried_again() {
    let mut world = World::new();
    world.fail("aa@1.0.0 apply", 3);
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_quiet();
    let entry = world.entry("aa|1.0.0");
    assert_eq!((entry.stage, entry.state), (Stage::Apply, State::Erroring));
    assert_eq!(entry.restarts, 0);
    let wait = wake_at(world.progress(), world.now).unwrap() - world.now;
    assert!((8_000..=10_000).contains(&wait), "{wait}");
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(
        run_lines(&world.log),
        "aa apply; aa apply; aa apply; aa apply; aa config"
    );
    assert_eq!(world.entry("aa|1.0.0").restarts, 3);
}

#[test]
fn a_failed_check_runs_the_check_alone_again() {
    let mut world = World::new();
    world.fail("aa@1.0.0 apply-check", 2);
    world.log_checks = true;
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle();
    assert_eq!(
        run_lines(&world.log),
        "aa apply; aa apply-check; aa apply-check; aa apply-check; aa config; aa config-check"
    );
}

#[test]
fn an_image_that_cannot_be_pulled_is_in_progress() {
    let mut world = World::new();
    world.no_image("aa|1.0.0", 2);
    world.lease(&Spec::of(&[Package {
        interrupt: reboot(),
        ..pkg("aa", "1.0.0")
    }]));
    world.settle_quiet();
    let entry = world.entry("aa|1.0.0");
    assert_eq!(entry.state, State::InProgress);
    assert!(entry.message.contains("image"), "{}", entry.message);
    let report = crate::report::status(world.progress(), &crate::report::HostFacts::default(), 1);
    // The node is not drained for a package without an image.
    assert_eq!(
        (report.phase, report.needs_drain),
        (Some(Phase::Preparing), None)
    );
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
}

#[test]
fn changes_in_mid_run() {
    let a = |config: &str| Package {
        config_map: [("k".to_owned(), config.to_owned())].into(),
        ..pkg("aa", "1.0.0")
    };
    let resources = |p: Package| Package {
        agent_image_override: Some("x".into()),
        ..p
    };
    let rows: Vec<(&str, bool, Package, &str)> = vec![
        ("nothing of it", false, a("1"), "aa@1.0.0 config"),
        (
            "another config: first to the end with the old one",
            false,
            a("2"),
            "aa@1.0.0 config; aa@1.0.0 config",
        ),
        (
            "what it runs with: from the start",
            false,
            resources(a("1")),
            "aa@1.0.0 apply; aa@1.0.0 config",
        ),
        (
            "version",
            false,
            Package {
                version: "1.1.0".into(),
                ..a("1")
            },
            "aa@1.1.0 upgrade; aa@1.1.0 config",
        ),
        (
            "erroring, another config: config at once",
            true,
            a("2"),
            "aa@1.0.0 config",
        ),
        (
            "erroring, version back",
            true,
            Package {
                version: "0.9.0".into(),
                ..a("1")
            },
            "aa@1.0.0 uninstall; aa@0.9.0 apply; aa@0.9.0 config",
        ),
    ];
    for (name, erroring, after, want) in rows {
        let mut world = World::new();
        if erroring {
            world.fail("aa@1.0.0 config", u32::MAX);
        }
        world.lease(&Spec::of(&[a("1")]));
        world.settle_while(|w| w.entry("aa|1.0.0").stage == Stage::Apply);
        if erroring {
            world.settle_quiet();
        }
        world.stop(StopReason::NewRevision);
        world.settle_stopped();
        assert_eq!(world.ended(), Some(Phase::Stopped), "{name}");
        world.fail("aa@1.0.0 config", 0);
        world.log.clear();
        world.lease(&Spec::of(&[after]));
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete), "{name}");
        assert_eq!(world.log.join("; "), want, "{name}");
    }
}

#[test]
fn stop_and_hold() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_until(|e| matches!(e, Effect::RunStep { .. }));
    world.hold(true);
    world.settle_quiet();
    assert_eq!(world.ended(), None);
    assert_eq!(
        run_lines(&world.log),
        "aa apply",
        "the step ends, no other starts"
    );
    world.hold(false);
    world.settle();
    assert_eq!(run_lines(&world.log), "aa apply; aa config");

    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_until(|e| matches!(e, Effect::RunStep { .. }));
    let effects = world.stop(StopReason::Deleted);
    assert!(effects.is_empty(), "{effects:?}");
    world.now = wake_at(world.progress(), world.now).expect("patience has an end");
    let effects = world.input(Event::Ticked);
    assert!(
        matches!(effects.as_slice(), [Effect::EndStep { .. }]),
        "{effects:?}"
    );
    world.settle_stopped();
    assert_eq!(world.ended(), Some(Phase::Stopped));
    assert_eq!(world.entry("aa|1.0.0").state, State::InProgress);
}

#[test]
fn a_package_of_two_hundred_waits_for_its_own_dependencies_only() {
    let name = |n: usize| {
        format!("p{}", "abcdefghij".chars().nth(n / 20).unwrap()) + &"x".repeat(n % 20 + 1)
    };
    let packages: Vec<Package> = (0..200)
        .map(|n| Package {
            depends_on: if n % 20 == 0 {
                BTreeMap::new()
            } else {
                [(name(n - 1), "1.0.0".to_owned())].into()
            },
            interrupt: if n % 7 == 0 { reboot() } else { None },
            ..pkg(&name(n), "1.0.0")
        })
        .collect();
    let mut world = World::new();
    world.lease(&Spec::of(&packages));
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(
        world.log.iter().filter(|l| l.ends_with(" apply")).count(),
        200
    );
}

#[test]
fn what_other_implementations_left_is_resumed() {
    for (stage, state, has_interrupt, want) in [
        (Stage::Config, State::Complete, true, ""),
        (Stage::PostInterrupt, State::Complete, true, ""),
        (Stage::Apply, State::Complete, false, "aa config"),
        (Stage::Apply, State::Erroring, false, "aa apply; aa config"),
        (
            Stage::Config,
            State::InProgress,
            true,
            "aa config; reboot; aa post-interrupt",
        ),
        (
            Stage::Interrupt,
            State::Skipped,
            true,
            "reboot; aa post-interrupt",
        ),
        (Stage::Interrupt, State::Complete, true, "aa post-interrupt"),
        (
            Stage::PostInterrupt,
            State::Unknown,
            true,
            "aa post-interrupt",
        ),
        (
            Stage::Upgrade,
            State::InProgress,
            false,
            "aa upgrade; aa config",
        ),
        (
            Stage::Uninstall,
            State::Complete,
            false,
            "aa apply; aa config",
        ),
    ] {
        let mut world = World::new();
        let package = Package {
            interrupt: if has_interrupt { reboot() } else { None },
            ..pkg("aa", "1.0.0")
        };
        world.adopt("aa", "1.0.0", stage, state);
        world.lease(&Spec::of(&[package]));
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete), "{stage} {state}");
        assert_eq!(run_lines(&world.log), want, "{stage} {state}");
    }
}
