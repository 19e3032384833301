//! How often the agent asks for a reboot, and what a reboot waits for.

use std::collections::BTreeMap;

use skyhook_crds::lease::Phase;
use skyhook_crds::{Package, Stage, State};

use super::super::*;
use super::world::{Spec, World, pkg, run_lines};
use super::{interrupt, reboot};
use crate::machine::progress::RebootCap;
use crate::report::{self, HostFacts};
use skyhook_crds::package::InterruptType;

fn rebooting(name: &str, version: &str) -> Package {
    Package {
        interrupt: reboot(),
        ..pkg(name, version)
    }
}

fn reboots(world: &World) -> usize {
    world.log.iter().filter(|line| *line == "reboot").count()
}

fn shown(world: &World) -> (Stage, State) {
    let entry = world.entry("aa|1.0.0");
    (entry.stage, entry.state)
}

/// The reported counts of reboots. The coordinator keeps them and gives them to the agent with the next lease.
fn reported(world: &World) -> BTreeMap<String, u32> {
    report::status(world.progress(), &HostFacts::default(), 1).reboots
}

/// Performs all effects except the first step of this package. Returns that effect, so that the test can perform it
/// later.
fn all_but_the_step_of(world: &mut World, package: &str) -> Option<Effect> {
    let mut held = None;
    while let Some(effect) = world.queue.pop_front() {
        if matches!(&effect, Effect::RunStep { key, .. } if key == package) {
            held = Some(effect);
        } else {
            world.perform(effect);
        }
    }
    held
}

/// Lets so much time pass that only retries are left.
fn settle_long(world: &mut World) {
    for _ in 0..40 {
        world.settle_quiet();
        let Some(at) = wake_at(world.progress(), world.now) else {
            return;
        };
        world.now = at;
        world.input_queued(Event::Ticked);
    }
}

#[test]
fn a_host_that_forgets_everything_at_each_boot_is_rebooted_three_times() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting("aa", "1.0.0")]));
    let fresh = world.progress().clone();
    for round in 1..=4 {
        if world.queue.is_empty() {
            world.input_queued(Event::LeaseAccepted);
            world.see();
        }
        let before = reboots(&world);
        while !world.queue.is_empty() && reboots(&world) == before {
            let effect = world.queue.pop_front().expect("it is not empty");
            world.perform(effect);
        }
        if round == 4 {
            break;
        }
        assert_eq!(reboots(&world), round, "{:?}", world.log);
        // The journal is lost: only the counts that were reported before the last reboot are known.
        let known = reported(&world);
        assert_eq!(known, [("aa|1.0.0".to_owned(), round as u32)].into());
        world.queue.clear();
        world.run = Some(Progress {
            reboots: known,
            boot_id: world.boot.to_string(),
            next_step: world.progress().next_step,
            ..fresh.clone()
        });
    }
    settle_long(&mut world);
    assert_eq!(reboots(&world), 3);
    assert_eq!(shown(&world), (Stage::Interrupt, State::Erroring));
    let message = &world.entry("aa|1.0.0").message;
    for part in ["3 times", "forgets", "change the package's version"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(
        world.entry("aa|1.0.0").restarts,
        0,
        "a refusal is no attempt"
    );
}

#[test]
fn where_the_boot_id_never_changes_three_reboots_are_asked_for() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting("aa", "1.0.0")]));
    let mut asked = 0;
    for _ in 0..200 {
        let Some(effect) = world.queue.pop_front() else {
            let Some(at) = wake_at(world.progress(), world.now) else {
                break;
            };
            world.now = at;
            world.input_queued(Event::Ticked);
            continue;
        };
        if matches!(effect, Effect::Interrupt { .. }) {
            asked += 1;
            // Everything on the host starts again, but with the same boot ID.
            world.kill_agent();
        } else {
            world.perform(effect);
        }
    }
    assert_eq!(asked, 3);
    assert_eq!(shown(&world), (Stage::Interrupt, State::Erroring));
    let message = &world.entry("aa|1.0.0").message;
    assert!(message.contains("boot ID"), "{message}");
}

#[test]
fn the_cap_is_a_setting() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting("aa", "1.0.0")]));
    if let Some(run) = world.run.as_mut() {
        run.reboot_cap = RebootCap(1);
        run.reboots = [("aa|1.0.0".to_owned(), 1)].into();
    }
    settle_long(&mut world);
    assert_eq!(reboots(&world), 0);
    let message = &world.entry("aa|1.0.0").message;
    assert!(
        message.contains("once") && message.contains("cap is 1"),
        "{message}"
    );
}

#[test]
fn a_package_that_came_to_its_end_starts_anew() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting("aa", "1.0.0")]));
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(reported(&world), BTreeMap::new());
}

#[test]
fn a_reboot_waits_for_every_step_that_runs_and_no_new_one_starts() {
    let mut world = World::new();
    world.lease(&Spec::of(&[
        pkg("aa-slow", "1.0.0"),
        rebooting("bb", "1.0.0"),
        Package {
            depends_on: [("cc".to_owned(), "1.0.0".to_owned())].into(),
            ..pkg("dd", "1.0.0")
        },
        pkg("cc", "1.0.0"),
    ]));
    let slow = all_but_the_step_of(&mut world, "aa-slow|1.0.0");
    assert_eq!(reboots(&world), 0, "{:?}", world.log);
    let report = report::status(world.progress(), &HostFacts::default(), 1);
    assert!(
        report.waits_for.contains("reboot") && report.waits_for.contains("aa-slow 1.0.0"),
        "{}",
        report.waits_for
    );
    assert_eq!(report.message, report.waits_for);
    // The reboot waits for the end of this step; the next step waits for the reboot.
    world.perform(slow.expect("it was started"));
    let next = world.queue.pop_front();
    assert_eq!(next, Some(Effect::LookAtLease), "{:?}", world.queue);
    world.queue.push_front(Effect::LookAtLease);
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    let lines = run_lines(&world.log);
    let at = |what: &str| {
        lines
            .find(what)
            .unwrap_or_else(|| panic!("{what} in {lines}"))
    };
    assert!(at("aa-slow apply") < at("reboot"), "{lines}");
    assert!(at("reboot") < at("aa-slow config"), "{lines}");
    assert_eq!(reboots(&world), 1);
    for entry in world.progress().entries.values() {
        assert_eq!(entry.restarts, 0, "{entry:?}");
    }
}

#[test]
fn a_restart_of_services_waits_for_its_own_wave_alone() {
    let mut world = World::new();
    world.lease(&Spec::of(&[
        pkg("aa-slow", "1.0.0"),
        Package {
            interrupt: interrupt(InterruptType::Service, &["cron"]),
            ..pkg("bb", "1.0.0")
        },
    ]));
    let slow = all_but_the_step_of(&mut world, "aa-slow|1.0.0");
    assert!(slow.is_some());
    assert!(
        world.log.contains(&"service cron".to_owned()),
        "{:?}",
        world.log
    );
}

#[test]
fn a_failed_interrupt_lets_other_packages_go_on() {
    let mut world = World::new();
    world.lease(&Spec::of(&[
        pkg("aa", "1.0.0"),
        Package {
            interrupt: interrupt(InterruptType::Service, &["no-such"]),
            ..pkg("bb", "1.0.0")
        },
    ]));
    world.fail("aa@1.0.0 apply", 1);
    world.settle_until(|effect| matches!(effect, Effect::Interrupt { .. }));
    world.queue.clear();
    world.input_queued(Event::InterruptFailed {
        reason: "no-such.service does not exist".into(),
        asked: true,
    });
    for _ in 0..20 {
        world.settle_while(|w| {
            w.queue
                .front()
                .is_some_and(|e| !matches!(e, Effect::Interrupt { .. }))
        });
        if matches!(world.queue.front(), Some(Effect::Interrupt { .. })) {
            world.queue.clear();
            world.input_queued(Event::InterruptFailed {
                reason: "no-such.service does not exist".into(),
                asked: true,
            });
        }
        let Some(at) = wake_at(world.progress(), world.now) else {
            break;
        };
        world.now = at;
        world.input_queued(Event::Ticked);
    }
    assert!(world.entry("aa|1.0.0").is_done(), "{:?}", world.log);
}

#[test]
fn a_reboot_that_nobody_could_be_asked_for_does_not_count() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting("aa", "1.0.0")]));
    for _ in 0..5 {
        world.settle_until(|effect| matches!(effect, Effect::Interrupt { .. }));
        world.queue.clear();
        assert_eq!(reported(&world), [("aa|1.0.0".to_owned(), 1)].into());
        world.input_queued(Event::InterruptFailed {
            reason: "the system bus does not answer".into(),
            asked: false,
        });
        assert_eq!(reported(&world), BTreeMap::new());
        world.now = wake_at(world.progress(), world.now).expect("it is tried again");
        world.input_queued(Event::Ticked);
    }
    world.settle();
    assert_eq!((world.ended(), reboots(&world)), (Some(Phase::Complete), 1));
}

#[test]
fn another_version_begins_to_count_anew_and_so_does_the_way_back() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting("aa", "1.0.0")]));
    if let Some(run) = world.run.as_mut() {
        run.reboots = [("aa|1.0.0".to_owned(), 3)].into();
    }
    settle_long(&mut world);
    assert_eq!(shown(&world), (Stage::Interrupt, State::Erroring));
    world.stop(skyhook_crds::lease::StopReason::NewRevision);
    world.settle_stopped();
    let known = reported(&world);
    assert_eq!(known.len(), 1);
    world.lease(&Spec::of(&[rebooting("aa", "1.1.0")]));
    if let Some(run) = world.run.as_mut() {
        run.reboots = known;
    }
    world.input_queued(Event::LeaseAccepted);
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(reported(&world), BTreeMap::new());
}

#[test]
fn a_step_that_takes_the_host_down_is_a_failure_in_the_end() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    for boot in 1..=3 {
        world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
        let Some(Effect::RunStep { key, id, .. }) = world.queue.pop_back() else {
            panic!("it is next");
        };
        world.power_cut();
        world
            .queue
            .retain(|effect| !matches!(effect, Effect::AdoptStep { .. }));
        let problem = "its supervisor was killed".to_owned();
        world.input_queued(Event::StepLost { key, id, problem });
        let state = world.entry("aa|1.0.0").state;
        let want = if boot < 3 {
            State::InProgress
        } else {
            State::Erroring
        };
        assert_eq!(state, want, "boot {boot}");
    }
    let message = &world.entry("aa|1.0.0").message;
    assert!(message.contains("went down 3 times"), "{message}");
    world.settle();
    assert_eq!(world.entry("aa|1.0.0").restarts, 1);
}
