//! Attempts and interrupts: no drain for work that cannot end, and how often an interrupt is tried.

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_crds::package::InterruptType;
use skyhook_crds::{Package, Stage};

use super::super::super::*;
use super::super::world::{Spec, World, pkg, run_lines};
use super::super::{interrupt, reboot};
use super::{ALWAYS, KEY, after, limited, parked};
use crate::report::{self, HostFacts};

pub(super) fn restarting(package: Package, unit: &str) -> Package {
    Package {
        interrupt: interrupt(InterruptType::Service, &[unit]),
        ..package
    }
}

/// Before Running: a healthy node is not kept empty for work that cannot end.
#[test]
fn a_node_is_not_drained_while_a_package_has_given_up() {
    let rebooting = Package {
        interrupt: reboot(),
        ..pkg("bb", "1.0.0")
    };
    for (name, package) in [
        ("another package needs an interrupt", rebooting.clone()),
        ("it waits for the one", after(rebooting, "aa")),
        ("none needs one", pkg("bb", "1.0.0")),
    ] {
        let mut world = World::new();
        world.drained = false;
        world.fail("aa@1.0.0 apply", ALWAYS);
        world.lease(&Spec::of(&[limited("aa", 2), package]));
        world.settle_to_rest();
        let needs_drain = |world: &World| {
            let status = report::status(world.progress(), &HostFacts::default(), 1);
            (status.needs_drain, status.phase)
        };
        let want = (Some(false), Some(Phase::Erroring));
        assert_eq!(needs_drain(&world), want, "{name}");
        // The drain was under way, and has ended in this moment.
        world.drained = true;
        world.see();
        assert_eq!(world.queue, [], "{name}");
        assert_eq!(needs_drain(&world), want, "{name}");
    }
}

#[test]
fn a_restart_of_services_is_tried_so_often_and_a_reboot_for_ever() {
    let mut world = World::new();
    world.fail("service x,y", ALWAYS);
    world.fail("service y", 1);
    world.lease(&Spec::of(&[
        restarting(limited("aa", 2), "x"),
        restarting(limited("bb", 2), "y"),
    ]));
    world.settle_to_rest();
    // The other member of the wave is interrupted without it, and has its own attempts.
    assert_eq!(
        run_lines(&world.log),
        "aa apply; bb apply; aa config; bb config; service x,y; service x,y; service y; service y; bb post-interrupt"
    );
    let told = parked(&world).expect("aa has given up");
    assert_eq!(
        (&*told.package, told.stage, told.attempts),
        ("aa", Stage::Interrupt, 2)
    );
    let status = report::status(world.progress(), &HostFacts::default(), 1);
    // After Running the cordon stays: the host may be half configured.
    assert_eq!(status.phase, Some(Phase::Running));
    assert_eq!(status.needs_drain, Some(true));
    assert!(world.entry("bb|1.0.0").is_done());

    let mut world = World::new();
    world.lease(&Spec::of(&[Package {
        interrupt: reboot(),
        ..limited("aa", 1)
    }]));
    for _ in 0..5 {
        world.settle_until(|effect| matches!(effect, Effect::Interrupt { .. }));
        world.queue.clear();
        world.input_queued(Event::InterruptFailed {
            reason: "x".into(),
            asked: false,
        });
        world.now = wake_at(world.progress(), world.now).expect("it is tried again");
        world.input_queued(Event::Ticked);
    }
    assert_eq!(parked(&world), None);
}

#[test]
fn an_interrupt_that_was_given_up_is_made_under_another_revision() {
    let mut world = World::new();
    world.fail("service x", 1);
    let spec = Spec::of(&[restarting(limited("aa", 1), "x")]);
    world.lease(&spec);
    world.settle_to_rest();
    assert!(world.entry(KEY).has_given_up());
    world.stop(StopReason::NewRevision);
    world.lease(&spec);
    world.settle();
    assert_eq!(
        run_lines(&world.log),
        "aa apply; aa config; service x; service x; aa post-interrupt"
    );
}
