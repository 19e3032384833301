//! A stop or a pause while an interrupt is being prepared or a step is being ended.

use std::collections::BTreeMap;

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::package::InterruptType;
use skyhook_crds::{Package, Stage, State};

use super::super::*;
use super::world::{Spec, World, pkg};
use super::{interrupt, reboot};
use crate::report::{self, HostFacts};

fn rebooting(name: &str) -> Package {
    Package {
        interrupt: reboot(),
        ..pkg(name, "1.0.0")
    }
}

fn restarting(name: &str) -> Package {
    Package {
        interrupt: interrupt(InterruptType::Service, &["cron"]),
        ..pkg(name, "1.0.0")
    }
}

fn preparing(package: Package) -> World {
    let mut world = World::new();
    world.lease(&Spec::of(&[package]));
    world.settle_until(|effect| matches!(effect, Effect::PrepareInterrupt { .. }));
    world.queue.clear();
    world
}

/// Reports the end of the preparation, even if the machine does not wait for it any more.
fn prepared(world: &mut World) -> Vec<Effect> {
    world.input(Event::InterruptPrepared {
        before: BTreeMap::new(),
    })
}

fn reboots(world: &World) -> usize {
    world.log.iter().filter(|line| *line == "reboot").count()
}

fn counted(world: &World) -> BTreeMap<String, u32> {
    report::status(world.progress(), &HostFacts::default(), 1).reboots
}

#[test]
fn a_stop_calls_off_an_interrupt_that_has_touched_nothing() {
    for package in [rebooting("aa"), restarting("aa")] {
        for reason in [
            StopReason::NewRevision,
            StopReason::Paused,
            StopReason::Disabled,
            StopReason::Deleted,
            StopReason::Edited,
            StopReason::DrainTimedOut,
        ] {
            let mut world = preparing(package.clone());
            assert_eq!(world.stop(reason), [Effect::CallOffInterrupt], "{reason:?}");
            assert_eq!(world.ended(), Some(Phase::Stopped), "{reason:?}");
            assert_eq!(counted(&world), BTreeMap::new(), "{reason:?}");
            assert_eq!(prepared(&mut world), [], "{reason:?}: it comes too late");
        }
    }
}

#[test]
fn a_pause_calls_off_an_interrupt_that_has_touched_nothing() {
    let mut world = preparing(rebooting("aa"));
    assert_eq!(counted(&world), [("aa|1.0.0".to_owned(), 1)].into());
    world.hold(true);
    assert_eq!(world.queue.make_contiguous(), [Effect::CallOffInterrupt]);
    world.settle_quiet();
    assert_eq!(counted(&world), BTreeMap::new());
    assert_eq!(prepared(&mut world), [], "it comes too late");
    world.hold(false);
    world.settle();
    assert_eq!((world.ended(), reboots(&world)), (Some(Phase::Complete), 1));
}

#[test]
fn what_has_begun_is_not_called_off() {
    for package in [rebooting("aa"), restarting("aa")] {
        let mut world = preparing(package);
        let effects = prepared(&mut world);
        assert!(
            matches!(effects.as_slice(), [Effect::Interrupt { .. }]),
            "{effects:?}"
        );
        assert_eq!(world.stop(StopReason::Paused), []);
        assert_eq!(world.ended(), None);
    }
}

#[test]
fn a_reboot_is_counted_once_however_often_the_agent_is_started_before_it_asks() {
    let mut world = preparing(rebooting("aa"));
    for _ in 0..5 {
        world.kill_agent();
        world.settle_until(|effect| matches!(effect, Effect::PrepareInterrupt { .. }));
        assert_eq!(counted(&world), [("aa|1.0.0".to_owned(), 1)].into());
    }
    world.settle();
    assert_eq!((world.ended(), reboots(&world)), (Some(Phase::Complete), 1));

    // After the preparation, systemd may have been asked for the reboot.
    let mut world = preparing(rebooting("aa"));
    prepared(&mut world);
    world.kill_agent();
    world.settle_until(|effect| matches!(effect, Effect::PrepareInterrupt { .. }));
    assert_eq!(counted(&world), [("aa|1.0.0".to_owned(), 2)].into());
}

fn capped(packages: &[Package]) -> World {
    let mut world = World::new();
    world.lease(&Spec::of(packages));
    if let Some(run) = world.run.as_mut() {
        run.reboots = [("aa|1.0.0".to_owned(), 3)].into();
    }
    for _ in 0..20 {
        world.settle_quiet();
        let Some(at) = wake_at(world.progress(), world.now) else {
            break;
        };
        world.now = at;
        world.input_queued(Event::Ticked);
    }
    world
}

#[test]
fn a_package_that_may_not_reboot_holds_up_none_that_needs_no_reboot() {
    let later = Package {
        depends_on: [("bb".to_owned(), "1.0.0".to_owned())].into(),
        ..restarting("cc")
    };
    let world = capped(&[rebooting("aa"), restarting("bb"), later]);
    assert_eq!(reboots(&world), 0);
    let aa = world.entry("aa|1.0.0");
    assert_eq!((aa.stage, aa.state), (Stage::Interrupt, State::Erroring));
    assert!(aa.message.contains("3 times"), "{}", aa.message);
    for key in ["bb|1.0.0", "cc|1.0.0"] {
        assert!(world.entry(key).is_done(), "{key}: {:?}", world.log);
    }
    assert_eq!(counted(&world), [("aa|1.0.0".to_owned(), 3)].into());
}

#[test]
fn a_package_that_may_not_reboot_takes_part_in_the_reboot_of_another() {
    let world = capped(&[rebooting("aa"), rebooting("bb"), restarting("cc")]);
    assert_eq!((world.ended(), reboots(&world)), (Some(Phase::Complete), 1));
}

#[test]
fn a_step_that_is_to_end_is_known_after_a_restart() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
    world.stop(StopReason::Deleted);
    world.now = wake_at(world.progress(), world.now).expect("patience has an end");
    let effects = world.input(Event::Ticked);
    let [Effect::EndStep { id }] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    let is_to_end = |world: &World| {
        let doing = &world.entry("aa|1.0.0").doing;
        matches!(doing, Doing::Step(cursor) if cursor.is_to_end)
    };
    assert!(is_to_end(&world));
    // The agent may have died before it told the supervisor to end the step.
    let boot_id = world.boot.to_string();
    let effects = world.input(Event::Restarted { boot_id });
    assert!(
        effects.contains(&Effect::EndStep { id: *id }),
        "{effects:?}"
    );
    assert!(is_to_end(&world));
}
