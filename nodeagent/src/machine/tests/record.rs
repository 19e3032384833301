//! The Node's record: versions that are on the host, and versions that are not there yet. And steps without a result.

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::{Package, Stage, State};

use super::super::progress::states;
use super::super::*;
use super::reboot;
use super::world::{Spec, World, pkg, run_lines};
use crate::report::{self, HostFacts};

fn recorded(world: &World) -> Vec<String> {
    states(&world.progress().entries).into_keys().collect()
}

/// Stops the lease before any step of the package has started, and takes a lease for `after`.
fn changed_before_it_began(mut world: World, after: &Spec) -> World {
    world.settle_quiet();
    world.stop(StopReason::NewRevision);
    world.settle_stopped();
    world.log.clear();
    world.drained = true;
    world.lease(after);
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    world
}

#[test]
fn what_never_began_is_neither_upgraded_nor_uninstalled() {
    let after = |p: Package, d: &str| Package {
        depends_on: [(d.to_owned(), "1.0.0".to_owned())].into(),
        ..p
    };
    let waits_for_a_dependency = || {
        let mut world = World::new();
        world.fail("aa@1.0.0 apply", u32::MAX);
        world.lease(&Spec::of(&[
            pkg("aa", "1.0.0"),
            after(pkg("bb", "1.0.0"), "aa"),
        ]));
        world
    };
    let has_no_image = || {
        let mut world = World::new();
        world.no_image("bb|1.0.0", u32::MAX);
        world.lease(&Spec::of(&[pkg("bb", "1.0.0")]));
        world
    };
    let waits_for_the_drain = || {
        let mut world = World::new();
        world.drained = false;
        world.lease(&Spec::of(&[Package {
            interrupt: reboot(),
            ..pkg("bb", "1.0.0")
        }]));
        world
    };
    let only = |version: &str| Spec::of(&[pkg("bb", version)]);
    let rows: [(&str, World, Spec, &str); 7] = [
        (
            "dependency, upwards",
            waits_for_a_dependency(),
            only("1.1.0"),
            "aa uninstall; bb apply; bb config",
        ),
        (
            "no image, upwards",
            has_no_image(),
            only("1.1.0"),
            "bb apply; bb config",
        ),
        (
            "no image, downwards",
            has_no_image(),
            only("0.9.0"),
            "bb apply; bb config",
        ),
        ("no image, removed", has_no_image(), Spec::of(&[]), ""),
        ("drain, removed", waits_for_the_drain(), Spec::of(&[]), ""),
        (
            "drain, upwards",
            waits_for_the_drain(),
            only("1.1.0"),
            "bb apply; bb config",
        ),
        (
            "drain, the same",
            waits_for_the_drain(),
            only("1.0.0"),
            "bb apply; bb config",
        ),
    ];
    for (name, world, after, want) in rows {
        let mut world = world;
        world.settle_quiet();
        assert!(
            !recorded(&world).iter().any(|key| key.starts_with("bb")),
            "{name}"
        );
        let world = changed_before_it_began(world, &after);
        assert_eq!(run_lines(&world.log), want, "{name}");
    }
}

#[test]
fn a_new_version_that_never_began_leaves_the_old_one_as_it_was() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle();
    world.no_image("aa|2.0.0", u32::MAX);
    world.lease(&Spec::of(&[pkg("aa", "2.0.0")]));
    world.settle_quiet();
    assert_eq!(recorded(&world), ["aa|1.0.0"]);
    let report = report::status(world.progress(), &HostFacts::default(), 1);
    assert!(report.packages["aa|2.0.0"].pending);
    assert!(report.message.contains("image"), "{}", report.message);
    let world = changed_before_it_began(world, &Spec::of(&[pkg("aa", "1.0.0")]));
    assert_eq!(run_lines(&world.log), "");
}

#[test]
fn a_package_is_on_record_when_its_first_step_starts() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_until(|effect| matches!(effect, Effect::PrepareStage { .. }));
    assert_eq!(recorded(&world), Vec::<String>::new());
    world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
    assert_eq!(recorded(&world), ["aa|1.0.0"]);
}

#[test]
fn the_parked_version_of_a_downgrade_is_on_record() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "2.0.0")]));
    world.settle();
    world.fail("aa@2.0.0 uninstall", u32::MAX);
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_quiet();
    assert_eq!(recorded(&world), ["aa|1.0.0", "aa|2.0.0"]);
    let parked = world.entry("aa|1.0.0");
    assert_eq!(
        (parked.stage, parked.state),
        (Stage::Uninstall, State::Skipped)
    );
    // No step of the parked version has started: the next revision drops it.
    world.fail("aa@2.0.0 uninstall", 0);
    let world = changed_before_it_began(world, &Spec::of(&[]));
    assert_eq!(run_lines(&world.log), "aa uninstall");
    assert_eq!(recorded(&world), Vec::<String>::new());
}

#[test]
fn an_old_version_that_was_parked_again_is_uninstalled_when_it_is_not_wanted() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle();
    world.fail("aa@2.0.0 upgrade", u32::MAX);
    world.lease(&Spec::of(&[pkg("aa", "2.0.0")]));
    world.settle_quiet();
    // Back to 1.0.0: version 2.0.0 is partly on the host and is uninstalled first. Version 1.0.0 waits for that.
    world.stop(StopReason::NewRevision);
    world.settle_stopped();
    world.fail("aa@2.0.0 uninstall", u32::MAX);
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_quiet();
    assert!(world.entry("aa|1.0.0").is_parked());
    world.fail("aa@2.0.0 uninstall", 0);
    let world = changed_before_it_began(world, &Spec::of(&[]));
    assert_eq!(world.log, ["aa@1.0.0 uninstall", "aa@2.0.0 uninstall"]);
}

/// Runs until a step of this half is about to start, and returns the step's package and number.
fn started(world: &mut World, half: Half) -> (String, u64) {
    world.settle_until(|e| matches!(e, Effect::RunStep { half: h, .. } if *h == half));
    match world.queue.pop_back() {
        Some(Effect::RunStep { key, id, .. }) => (key, id),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_step_without_a_result_is_a_failure() {
    for (half, again) in [
        (Half::Main, "aa apply; aa config"),
        (Half::Check, "aa apply; aa config"),
    ] {
        let mut world = World::new();
        world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
        let (key, id) = started(&mut world, half);
        world.input_queued(Event::StepLost {
            key: key.clone(),
            id,
            problem: "its supervisor was killed".into(),
        });
        world.settle_quiet();
        let entry = world.entry(&key);
        assert_eq!(
            (entry.stage, entry.state, entry.message.as_str()),
            (Stage::Apply, State::Erroring, "its supervisor was killed")
        );
        let wait = wake_at(world.progress(), world.now).expect("it is tried again") - world.now;
        assert!((8_000..=10_000).contains(&wait), "{wait}");
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete));
        assert_eq!(run_lines(&world.log), again);
        assert_eq!(world.entry(&key).restarts, 1);
    }
}

#[test]
fn a_step_that_is_lost_every_time_is_tried_ever_less_often() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    let begin = world.now;
    for _ in 0..10 {
        let (key, id) = started(&mut world, Half::Main);
        let problem = "its scope was stopped".to_owned();
        world.input_queued(Event::StepLost { key, id, problem });
        world.now = wake_at(world.progress(), world.now).expect("it is tried again");
        world.input_queued(Event::Ticked);
    }
    let minutes = (world.now - begin) / 60_000;
    assert!(
        (20..=60).contains(&minutes),
        "{minutes} min for ten attempts"
    );
}

#[test]
fn what_dies_with_the_host_is_no_failure() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    let (key, id) = started(&mut world, Half::Main);
    world.power_cut();
    world
        .queue
        .retain(|effect| !matches!(effect, Effect::AdoptStep { .. }));
    let problem = "its supervisor was killed".to_owned();
    world.input_queued(Event::StepLost {
        key: key.clone(),
        id,
        problem,
    });
    let entry = world.entry(&key);
    assert_eq!((entry.state, entry.restarts), (State::InProgress, 0));
    world.settle();
    assert_eq!(world.entry(&key).restarts, 0);
}

#[test]
fn a_step_that_was_never_started_is_no_failure() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    let (key, _) = started(&mut world, Half::Main);
    world.kill_agent();
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(world.entry(&key).restarts, 0);
}

#[test]
fn a_clock_that_is_set_back_delays_nothing() {
    const DAY: i64 = 86_400_000;
    let erring: fn(&mut World) = |world| world.fail("aa@1.0.0 apply", 1);
    let no_image: fn(&mut World) = |world| world.no_image("aa|1.0.0", 1);
    for fault in [erring, no_image] {
        let mut world = World::new();
        world.now = 100 * DAY;
        fault(&mut world);
        world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
        world.settle_quiet();
        world.now -= DAY;
        assert_eq!(wake_at(world.progress(), world.now), Some(world.now));
        world.input_queued(Event::Ticked);
        world.settle_quiet();
        assert_eq!(world.ended(), Some(Phase::Complete));
    }
    // Also with a clock that is set back, a step is ended in time, and an interrupt is retried.
    let mut world = World::new();
    world.now = 100 * DAY;
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    started(&mut world, Half::Main);
    world.stop(StopReason::Deleted);
    world.now -= DAY;
    let effects = world.input(Event::Ticked);
    assert!(
        matches!(effects.as_slice(), [Effect::EndStep { .. }]),
        "{effects:?}"
    );
    let mut world = World::new();
    world.now = 100 * DAY;
    world.lease(&Spec::of(&[Package {
        interrupt: reboot(),
        ..pkg("aa", "1.0.0")
    }]));
    world.settle_until(|effect| matches!(effect, Effect::Interrupt { .. }));
    world.queue.clear();
    world.input_queued(Event::InterruptFailed {
        reason: "x".into(),
        asked: true,
    });
    world.now -= DAY;
    let effects = world.input(Event::Ticked);
    assert_eq!(effects, [Effect::LookAtLease]);
}

#[test]
fn a_host_that_cannot_be_worked_on_says_why_and_starts_nothing() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.queue.clear();
    if let Some(run) = world.run.as_mut() {
        run.unable = Some("systemd 219 is too old".into());
    }
    world.input_queued(Event::Ticked);
    assert!(world.queue.is_empty(), "{:?}", world.queue);
    let report = report::status(world.progress(), &HostFacts::default(), 1);
    assert_eq!(
        (report.phase, report.message.as_str()),
        (Some(Phase::Erroring), "systemd 219 is too old")
    );
    assert_eq!(wake_at(world.progress(), world.now), None);
    world.stop(StopReason::Deleted);
    assert_eq!(world.ended(), Some(Phase::Stopped));
}

#[test]
fn an_agent_that_is_too_old_touches_nothing() {
    let mut world = World::new();
    world.adopt("aa", "1.0.0", Stage::Config, State::Complete);
    world.adopt("bb", "1.0.0", Stage::Apply, State::Erroring);
    world.lease_beyond("needs an agent of at least the coordinator's version");
    let before = world.entries().clone();
    world.input_queued(Event::Ticked);
    assert!(world.queue.is_empty(), "{:?}", world.queue);
    assert_eq!(world.progress().entries, before);
    let report = report::status(world.progress(), &HostFacts::default(), 1);
    assert_eq!(
        (report.phase, report.message.as_str(), report.needs_drain),
        (
            Some(Phase::Erroring),
            "needs an agent of at least the coordinator's version",
            None
        )
    );
    assert_eq!(wake_at(world.progress(), world.now), None);
    world.kill_agent();
    assert_eq!(world.progress().entries, before);
    world.stop(StopReason::AgentTooOld);
    assert_eq!(world.ended(), Some(Phase::Stopped));
    assert_eq!(world.progress().entries, before);
}

#[test]
fn a_lease_knows_from_its_first_step_on_that_one_has_begun() {
    let mut world = World::new();
    world.no_image("aa|1.0.0", u32::MAX);
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_quiet();
    assert_eq!(world.progress().begun, Some(false), "only a pull was tried");
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
    assert_eq!(world.progress().begun, Some(true));
    world.settle();
    assert_eq!(world.progress().begun, Some(true));
    // Nothing has to be done under the next lease.
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle();
    assert_eq!(world.progress().begun, Some(false));
}

/// NodeWright uninstalled a package, and its record says that the interrupt after that is left.
#[test]
fn what_nodewright_has_uninstalled_is_applied_anew_or_dropped() {
    let wanted = |version: &str| {
        Spec::of(&[Package {
            interrupt: reboot(),
            ..pkg("bb", version)
        }])
    };
    let whole = "bb apply; bb config; reboot; bb post-interrupt";
    for (name, spec, lines, record) in [
        ("it is wanted", wanted("1.0.0"), whole, vec!["bb|1.0.0"]),
        (
            "a newer version is wanted",
            wanted("1.1.0"),
            whole,
            vec!["bb|1.1.0"],
        ),
        (
            "an older version is wanted",
            wanted("0.9.0"),
            whole,
            vec!["bb|0.9.0"],
        ),
        ("it is not wanted", Spec::of(&[]), "", vec![]),
    ] {
        for state in [State::InProgress, State::Complete, State::Erroring] {
            let mut world = World::new();
            world.adopt("bb", "1.0.0", Stage::UninstallInterrupt, state);
            world.lease(&spec);
            world.settle();
            assert_eq!(world.ended(), Some(Phase::Complete), "{name}, {state}");
            assert_eq!(run_lines(&world.log), lines, "{name}, {state}");
            assert_eq!(recorded(&world), record, "{name}, {state}");
        }
    }
}
