//! The way of an uninstall through its steps and its interrupt, and what ends it.

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Package, Stage, State};

use super::super::super::{Doing, Effect, Event, Wanted, plan};
use super::super::reboot;
use super::super::world::{Spec, World, pkg};
use super::{aa, configured, going, kept, lasting, rebooting, there};
use crate::report;

/// A world in which `spec` is complete, and then is to go.
fn at_uninstall(package: &Package) -> World {
    let mut world = World::new();
    world.lease(&Spec::of(&[kept(package.clone())]));
    world.settle();
    world.log.clear();
    world.lease(&Spec::of(&[going(package.clone())]));
    world
}

#[test]
fn a_package_goes_from_any_stage_and_state() {
    for stage in [
        Stage::Apply,
        Stage::Upgrade,
        Stage::Config,
        Stage::Interrupt,
        Stage::PostInterrupt,
        Stage::Uninstall,
    ] {
        for state in [
            State::Complete,
            State::InProgress,
            State::Erroring,
            State::Unknown,
        ] {
            let mut world = World::new();
            world.adopt("aa", "1.0.0", stage, state);
            world.lease(&Spec::of(&[going(aa())]));
            assert_eq!(there(&world), "aa|1.0.0 uninstall/in_progress");
            world.settle();
            assert_eq!(world.ended(), Some(Phase::Complete), "{stage} {state}");
            assert_eq!(world.log.join("; "), "aa@1.0.0 uninstall");
            assert_eq!(there(&world), "");
        }
    }
}

#[test]
fn what_never_began_is_dropped() {
    let mut world = World::new();
    world.no_image("aa|1.0.0", 1_000_000);
    world.lease(&Spec::of(&[kept(aa())]));
    world.settle_quiet();
    world.stop(StopReason::NewRevision);
    world.settle_stopped();
    world.lease(&Spec::of(&[going(aa())]));
    world.settle();
    assert_eq!((world.log.join("; "), there(&world)), Default::default());
}

#[test]
fn the_node_is_drained_before_the_uninstall_of_one_with_an_interrupt() {
    let mut world = World::new();
    world.lease(&Spec::of(&[kept(rebooting(aa()))]));
    world.settle();
    world.drained = false;
    world.log.clear();
    world.lease(&Spec::of(&[going(rebooting(aa()))]));
    world.settle_quiet();
    let status = report::status(world.progress(), &report::HostFacts::default(), 1);
    assert_eq!(status.needs_drain, Some(true));
    assert_eq!(status.phase, Some(Phase::AwaitingDrain));
    assert_eq!(status.needs_drain_reason, "aa: reboot");
    assert!(world.log.is_empty(), "{:?}", world.log);
    world.drained = true;
    world.see();
    world.settle();
    assert_eq!(world.log.join("; "), "aa@1.0.0 uninstall; reboot");
}

#[test]
fn an_uninstall_that_is_called_off_stops_at_the_end_of_its_step_and_installs_again() {
    let mut world = at_uninstall(&rebooting(aa()));
    world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
    let running = world.queue.pop_back().expect("a step");
    let effects = world.stop(StopReason::NewRevision);
    assert_eq!(effects, [], "the step is not ended");
    let same = Spec::of(&[kept(rebooting(aa()))]);
    let packages = Wanted::of(&same.packages["aa"]);
    let packages = [("aa".to_owned(), (packages.version, packages.identity))].into();
    assert_eq!(world.input(Event::RevisionSeen { packages }), []);
    assert_eq!(world.ended(), None, "it waits for the step");
    world.perform(running);
    world.settle_stopped();
    assert_eq!(world.ended(), Some(Phase::Stopped));
    assert_eq!(there(&world), "aa|1.0.0 uninstall/in_progress");
    world.lease(&same);
    assert_eq!(there(&world), "aa|1.0.0 apply/in_progress");
    world.settle();
    let ran =
        "aa@1.0.0 uninstall; aa@1.0.0 apply; aa@1.0.0 config; reboot; aa@1.0.0 post-interrupt";
    assert_eq!(world.log.join("; "), ran);
}

#[test]
fn a_changed_environment_ends_the_step_and_a_changed_configuration_does_not() {
    let with_env = Package {
        env: vec![k8s_openapi::api::core::v1::EnvVar {
            name: "X".into(),
            ..Default::default()
        }],
        ..aa()
    };
    for (name, package, ends) in [
        ("env", going(with_env), true),
        ("configuration", going(configured(aa(), "2")), false),
        ("version", going(pkg("aa", "2.0.0")), false),
    ] {
        let mut world = at_uninstall(&aa());
        world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
        world.stop(StopReason::NewRevision);
        let wanted = Wanted::of(&package);
        let packages = [("aa".to_owned(), (wanted.version, wanted.identity))].into();
        let effects = world.input(Event::RevisionSeen { packages });
        assert_eq!(!effects.is_empty(), ends, "{name}");
    }
}

#[test]
fn a_failing_uninstall_is_tried_again_with_what_the_new_revision_says() {
    let mut world = at_uninstall(&configured(aa(), "1"));
    world.fail("aa@1.0.0 uninstall", 3);
    world.settle_while(|world| !matches!(world.entry("aa|1.0.0").doing, Doing::Retry { .. }));
    assert_eq!(there(&world), "aa|1.0.0 uninstall/erroring");
    world.stop(StopReason::NewRevision);
    world.settle_stopped();
    let revision = "s-fixed";
    world.lease_at(&Spec::of(&[going(configured(aa(), "2"))]), revision);
    let entry = world.entry("aa|1.0.0");
    let cycle = entry.cycle.as_ref().expect("a cycle");
    assert_eq!(cycle.revision, revision);
    assert_eq!(
        cycle.skyhook.generation, 1,
        "the copy on the host that it was installed from is used"
    );
    assert_eq!(entry.doing, Doing::Idle, "it is tried at once");
    world.settle();
    assert_eq!(there(&world), "");
}

#[test]
fn an_uninstall_gives_up_like_any_stage() {
    let limited = Package {
        max_attempts: Some(2),
        ..aa()
    };
    let mut world = at_uninstall(&limited);
    world.fail("aa@1.0.0 uninstall", 100);
    world.settle_to_rest();
    assert_eq!(world.log.len(), 2);
    assert!(world.entry("aa|1.0.0").has_given_up());
    let status = report::status(world.progress(), &report::HostFacts::default(), 1);
    let parked = status.parked.expect("it is parked");
    assert_eq!((parked.stage, parked.attempts), (Stage::Uninstall, 2));
    world.fail("aa@1.0.0 uninstall", 0);
    world.lease(&Spec::of(&[going(Package {
        env: Vec::new(),
        ..limited
    })]));
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
}

/// A world at the interrupt of an uninstall, stopped before the interrupt is performed.
fn at_the_interrupt(package: &Package) -> World {
    let mut world = at_uninstall(package);
    world.settle_until(|effect| matches!(effect, Effect::LookAtLease));
    let doing = "aa|1.0.0 uninstall-interrupt/in_progress";
    assert_eq!(there(&world), doing);
    world.stop(StopReason::NewRevision);
    world.settle_stopped();
    assert_eq!(world.ended(), Some(Phase::Stopped));
    world.log.clear();
    world
}

#[test]
fn the_interrupt_of_an_uninstall_is_performed_whatever_the_spec_says_then() {
    let one = |package: Package| Spec::of(&[package]);
    let whole = "aa@1.0.0 apply; aa@1.0.0 config; reboot; aa@1.0.0 post-interrupt";
    for (name, spec, ran, left) in [
        ("still to go", one(going(rebooting(aa()))), "reboot", ""),
        ("without an interrupt now", one(going(aa())), "reboot", ""),
        (
            "another version",
            one(going(pkg("aa", "2.0.0"))),
            "reboot",
            "",
        ),
        ("removed", Spec::of(&[]), "reboot", ""),
        (
            "taken back",
            one(kept(rebooting(aa()))),
            &format!("reboot; {whole}"),
            "aa|1.0.0 post-interrupt/complete",
        ),
        (
            "taken back, with a new version",
            one(kept(pkg("aa", "2.0.0"))),
            "reboot; aa@2.0.0 apply; aa@2.0.0 config",
            "aa|2.0.0 config/complete",
        ),
        (
            "taken back, with an older version and without the block",
            one(pkg("aa", "0.9.0")),
            "reboot; aa@0.9.0 apply; aa@0.9.0 config",
            "aa|0.9.0 config/complete",
        ),
    ] {
        let mut world = at_the_interrupt(&rebooting(aa()));
        world.lease(&spec);
        let waits = plan::pending_interrupts(world.progress());
        assert_eq!(
            waits.get("aa"),
            reboot().as_ref(),
            "{name}: it is drained anew"
        );
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete), "{name}");
        let given = (world.log.join("; "), there(&world));
        assert_eq!((given.0.as_str(), given.1.as_str()), (ran, left), "{name}");
    }
}

#[test]
fn an_uninstall_that_was_asked_for_keeps_its_interrupt_when_the_package_is_removed_meanwhile() {
    let mut world = at_uninstall(&rebooting(aa()));
    world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
    world.stop(StopReason::NewRevision);
    world.settle_stopped();
    world.lease(&Spec::of(&[]));
    world.settle();
    assert_eq!(world.log.join("; "), "aa@1.0.0 uninstall; reboot");
    assert_eq!(there(&world), "");
}

#[test]
fn an_interrupt_of_an_uninstall_without_a_journal() {
    for (name, state, package, ran) in [
        ("left", State::InProgress, going(rebooting(aa())), "reboot"),
        ("failed", State::Erroring, going(rebooting(aa())), "reboot"),
        ("performed", State::Complete, going(rebooting(aa())), ""),
        ("nobody knows it", State::InProgress, going(aa()), ""),
    ] {
        let mut world = World::new();
        world.adopt("aa", "1.0.0", Stage::UninstallInterrupt, state);
        world.lease(&Spec::of(&[package]));
        world.settle();
        let given = (world.log.join("; "), there(&world));
        assert_eq!((given.0.as_str(), given.1.as_str()), (ran, ""), "{name}");
    }
}

#[test]
fn a_failing_interrupt_of_an_uninstall_is_tried_again_until_it_gives_up() {
    let restarting = Package {
        interrupt: Some(Interrupt {
            kind: InterruptType::Service,
            services: vec!["x".into()],
        }),
        max_attempts: Some(2),
        ..aa()
    };
    let mut world = at_uninstall(&restarting);
    world.fail("service x", 1);
    world.settle();
    assert_eq!(
        world.log.join("; "),
        "aa@1.0.0 uninstall; service x; service x"
    );
    assert_eq!(there(&world), "");

    let mut world = at_uninstall(&restarting);
    world.fail("service x", 100);
    world.settle_to_rest();
    assert_eq!(there(&world), "aa|1.0.0 uninstall-interrupt/erroring");
    let status = report::status(world.progress(), &report::HostFacts::default(), 1);
    let parked = status.parked.expect("it is parked");
    assert_eq!(parked.stage, Stage::UninstallInterrupt);
    world.fail("service x", 0);
    world.lease(&Spec::of(&[going(restarting)]));
    world.settle();
    assert_eq!(there(&world), "");
}

#[test]
fn an_upgrade_that_was_begun_is_not_the_version_that_is_left_behind() {
    let two = pkg("aa", "2.0.0");
    let mut world = World::new();
    world.lease(&Spec::of(&[lasting(aa())]));
    world.settle();
    world.fail("aa@2.0.0 upgrade", 1);
    world.lease(&Spec::of(&[lasting(two)]));
    world.settle_while(|world| {
        let entry = world.progress().entries.get("aa|2.0.0");
        !entry.is_some_and(|e| matches!(e.doing, Doing::Retry { .. }))
    });
    world.log.clear();
    world.stop(StopReason::NewRevision);
    world.settle_stopped();
    world.lease(&Spec::of(&[lasting(aa())]));
    world.settle();
    assert_eq!(world.log.join("; "), "aa@1.0.0 apply; aa@1.0.0 config");
    let left = "aa|1.0.0 config/complete; aa|2.0.0 upgrade/erroring";
    assert_eq!(there(&world), left);
    let status = report::status(world.progress(), &report::HostFacts::default(), 1);
    assert!(status.packages["aa|2.0.0"].left_behind);
}
