//! Interrupts that fail or do not complete, and steps that end early.

use std::collections::BTreeMap;

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::package::InterruptType;
use skyhook_crds::{Package, Stage, State};

use super::super::*;
use super::world::{Spec, World, pkg, run_lines};
use super::{interrupt, reboot};

fn rebooting() -> Package {
    Package {
        interrupt: reboot(),
        ..pkg("aa", "1.0.0")
    }
}

fn restarting() -> Package {
    Package {
        interrupt: interrupt(InterruptType::Service, &["x", "y"]),
        ..pkg("aa", "1.0.0")
    }
}

fn at_the_interrupt(package: Package) -> World {
    let mut world = World::new();
    world.lease(&Spec::of(&[package]));
    world.settle_until(|e| matches!(e, Effect::Interrupt { .. }));
    world.queue.clear();
    world
}

fn preparing(package: Package) -> World {
    let mut world = World::new();
    world.lease(&Spec::of(&[package]));
    world.settle_until(|e| matches!(e, Effect::PrepareInterrupt { .. }));
    world.queue.clear();
    world
}

fn reboots(world: &World) -> usize {
    world.log.iter().filter(|l| *l == "reboot").count()
}

#[test]
fn a_reboot_that_comes_after_it_was_given_up_on_is_the_reboot() {
    let mut world = at_the_interrupt(rebooting());
    world.input_queued(Event::InterruptFailed {
        reason: "still up".into(),
        asked: true,
    });
    let entry = world.entry("aa|1.0.0");
    assert_eq!(
        (entry.stage, entry.state, entry.message.as_str()),
        (Stage::Interrupt, State::Erroring, "still up")
    );
    world.power_cut();
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(reboots(&world), 0, "{:?}", world.log);
    assert!(run_lines(&world.log).ends_with("aa post-interrupt"));
}

#[test]
fn a_reboot_that_nobody_asked_for_is_not_the_reboot() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting()]));
    world.settle_until(|e| matches!(e, Effect::LookAtLease));
    world.power_cut();
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(reboots(&world), 1, "{:?}", world.log);
}

#[test]
fn an_agent_killed_in_a_restart_knows_what_was_restarted() {
    let before: BTreeMap<String, String> = [("x.service".to_owned(), "1".to_owned())].into();
    let mut world = preparing(restarting());
    let effects = world.input(Event::InterruptPrepared {
        before: before.clone(),
    });
    let carried = |effects: &[Effect]| match effects {
        [Effect::Interrupt { before, .. }] => before.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(carried(&effects), before);
    // A restarted agent reads the lease again and continues with the remaining units. A power failure restarts all
    // units.
    for (power, want) in [(false, before.clone()), (true, BTreeMap::new())] {
        let mut world = world.clone();
        if power {
            world.power_cut();
        } else {
            world.kill_agent();
        }
        world.settle_until(|e| matches!(e, Effect::Interrupt { .. }));
        let effect = world.queue.pop_back().expect("it is next");
        assert_eq!(carried(&[effect]), want, "power {power}");
    }
    // A failed interrupt continues with the remaining units: units that were restarted are not restarted again.
    world.input_queued(Event::InterruptFailed {
        reason: "x".into(),
        asked: true,
    });
    world.now = wake_at(world.progress(), world.now).expect("it is tried again");
    world.input_queued(Event::Ticked);
    world.settle_until(|e| matches!(e, Effect::Interrupt { .. }));
    let effect = world.queue.pop_back().expect("it is next");
    assert_eq!(carried(&[effect]), before);
}

#[test]
fn what_an_interrupt_waits_for_is_said() {
    let mut world = at_the_interrupt(rebooting());
    world.input_queued(Event::InterruptWaits {
        reason: "waits for apt".into(),
    });
    let report = crate::report::status(world.progress(), &crate::report::HostFacts::default(), 1);
    assert_eq!(report.message, "reboot: waits for apt");
}

#[test]
fn a_change_of_what_a_step_runs_with_ends_it() {
    let a = pkg("aa", "1.0.0");
    let rows: Vec<(&str, Option<Package>, bool)> = vec![
        ("nothing of it", Some(a.clone()), false),
        (
            "config alone",
            Some(Package {
                config_map: [("k".to_owned(), "2".to_owned())].into(),
                ..a.clone()
            }),
            false,
        ),
        (
            "interrupt alone",
            Some(Package {
                interrupt: reboot(),
                ..a.clone()
            }),
            false,
        ),
        (
            "image",
            Some(Package {
                image: "r/other".into(),
                ..a.clone()
            }),
            true,
        ),
        (
            "digest",
            Some(Package {
                container_sha: Some("sha256:0".into()),
                ..a.clone()
            }),
            true,
        ),
        (
            "agent image",
            Some(Package {
                agent_image_override: Some("r/agent".into()),
                ..a.clone()
            }),
            true,
        ),
        ("version", Some(pkg("aa", "1.1.0")), true),
        ("removed", None, true),
    ];
    for (name, after, ends) in rows {
        let seen = || Event::RevisionSeen {
            packages: after
                .iter()
                .map(|p| {
                    let wanted = Wanted::of(p);
                    (p.name.clone(), (wanted.version, wanted.identity))
                })
                .collect(),
        };
        let mut world = World::new();
        world.lease(&Spec::of(std::slice::from_ref(&a)));
        world.settle_until(|e| matches!(e, Effect::RunStep { .. }));
        assert_eq!(world.input(seen()), [], "{name}: not told to stop");
        assert_eq!(world.stop(StopReason::NewRevision), [], "{name}");
        let effects = world.input(seen());
        assert_eq!(
            matches!(effects.as_slice(), [Effect::EndStep { .. }]),
            ends,
            "{name}: {effects:?}"
        );
        let mut world = World::new();
        world.lease(&Spec::of(std::slice::from_ref(&a)));
        world.settle();
        world.lease(&Spec::of(&[]));
        world.settle_until(|e| matches!(e, Effect::RunStep { .. }));
        world.stop(StopReason::NewRevision);
        assert_eq!(world.input(seen()), [], "{name}: an uninstall goes on");
    }
}

#[test]
fn after_a_reboot_of_a_host_that_forgets_everything_is_done_again() {
    let mut world = World::new();
    world.lease(&Spec::of(&[rebooting(), pkg("bb", "1.0.0")]));
    world.settle_until(|e| matches!(e, Effect::LookAtLease));
    assert!(world.log.contains(&"bb@1.0.0 config".to_owned()));
    world.log.clear();
    world.queue.clear();
    let now = world.now;
    if let Some(run) = world.run.as_mut() {
        reapply(run, now);
    }
    world.power_cut();
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(
        run_lines(&world.log),
        "aa apply; bb apply; aa config; bb config; reboot; aa post-interrupt"
    );
    // Work that had ended is lost as well, even if the coordinator has its result.
    if let Some(run) = world.run.as_mut() {
        reapply(run, now);
    }
    assert_eq!(world.ended(), Some(Phase::Stopped));
    assert_eq!(world.progress().entries, BTreeMap::new());
}

#[test]
fn an_answer_that_comes_late_interrupts_nothing() {
    let mut world = World::new();
    world.lease(&Spec::of(&[restarting()]));
    world.settle_until(|e| matches!(e, Effect::LookAtLease));
    let late = Event::LeaseLooked {
        lease: world.progress().lease.clone(),
        stands: true,
    };
    world.queue.clear();
    world.stop(StopReason::NewRevision);
    assert_eq!(world.ended(), Some(Phase::Stopped));
    // The watch shows the lease with the agent's own result.
    world.input(Event::LeaseSeen(LeaseView::default()));
    assert_eq!(world.input(late.clone()), [], "its work has ended");
    world.lease(&Spec::of(&[restarting()]));
    world.settle_until(|e| matches!(e, Effect::LookAtLease));
    assert_eq!(world.input(late), [], "it was about another lease");
    let state = world.entry("aa|1.0.0").state;
    assert_eq!(state, State::InProgress);
}
