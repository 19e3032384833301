//! What the machine waits for, and what it does again after a failure.

use skyhook_crds::lease::{Phase, StopReason};

use super::super::{Effect, Event, Half};
use super::world::{Spec, World, pkg};

fn one(version: &str) -> Spec {
    Spec::of(&[pkg("aa", version)])
}

/// `World::input` fails when the machine waits for a time that has passed.
#[test]
fn what_is_left_behind_is_not_waited_for() {
    let no_image: fn(&mut World) = |world| world.no_image("aa|1.0.0", 1);
    let failing: fn(&mut World) = |world| world.fail("aa@1.0.0 apply", 1);
    for fault in [no_image, failing] {
        let mut world = World::new();
        fault(&mut world);
        world.lease(&one("1.0.0"));
        world.settle_quiet();
        // The next one's image cannot be pulled until long after the first would be tried again.
        world.no_image("aa|1.0.1", 3);
        world.lease(&one("1.0.1"));
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete));
    }
}

#[test]
fn a_stage_that_cannot_be_prepared_has_its_image_looked_at_again() {
    let mut world = World::new();
    world.lease(&one("1.0.0"));
    world.settle_until(|effect| matches!(effect, Effect::PrepareStage { .. }));
    world.queue.clear();
    let key = "aa|1.0.0".to_owned();
    let effects = world.input(Event::StageFailed {
        key: key.clone(),
        reason: "a layer is damaged".into(),
    });
    assert_eq!(effects, vec![Effect::PullImage { key: key.clone() }]);
    world.queue.extend(effects);
    world.settle_quiet();
    assert_eq!(world.entry(&key).message, "a layer is damaged");
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
}

#[test]
fn a_step_is_told_to_end_again_by_the_agent_that_comes_after() {
    let mut world = World::new();
    world.lease(&one("1.0.0"));
    world.settle_until(|effect| {
        matches!(
            effect,
            Effect::RunStep {
                half: Half::Main,
                ..
            }
        )
    });
    world.stop(StopReason::Disabled);
    world.now += 31_000;
    let ends = |effects: &[Effect]| {
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::EndStep { .. }))
    };
    assert!(ends(&world.input(Event::Ticked)));
    assert!(!ends(&world.input(Event::Ticked)), "once is enough");
    // Killed before it did so.
    world.kill_agent();
    assert!(ends(world.queue.make_contiguous()), "{:?}", world.queue);
}
