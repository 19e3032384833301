//! Waits of the machine, and retries after failures.

use skyhook_crds::lease::{Phase, StopReason};
use skyhook_oci::RetryClass;

use super::super::{Effect, Event, Half, wake_at};
use super::world::{Spec, World, pkg};

fn one(version: &str) -> Spec {
    Spec::of(&[pkg("aa", version)])
}

/// `World::input` fails if the machine waits for a time that has passed.
#[test]
fn what_is_left_behind_is_not_waited_for() {
    let no_image: fn(&mut World) = |world| world.no_image("aa|1.0.0", 1);
    let failing: fn(&mut World) = |world| world.fail("aa@1.0.0 apply", 1);
    for fault in [no_image, failing] {
        let mut world = World::new();
        fault(&mut world);
        world.lease(&one("1.0.0"));
        world.settle_quiet();
        // The image of the next version can be pulled only long after the time of the first version's retry.
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
        class: RetryClass::Transient,
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
    // The agent is killed before it told the supervisor.
    world.kill_agent();
    assert!(ends(world.queue.make_contiguous()), "{:?}", world.queue);
}

/// Number of pulls within this time while the image cannot be pulled, and the last message of the package.
fn pulls_within(class: RetryClass, ms: i64) -> (usize, String) {
    let mut world = World::new();
    world.pull_class = class;
    world.no_image("aa|1.0.0", u32::MAX);
    world.lease(&one("1.0.0"));
    let until = world.now + ms;
    let mut pulls = 0;
    loop {
        while let Some(effect) = world.queue.pop_front() {
            pulls += usize::from(matches!(effect, Effect::PullImage { .. }));
            world.perform(effect);
        }
        world.now = wake_at(world.progress(), world.now).expect("it is tried again");
        if world.now > until {
            return (pulls, world.entry("aa|1.0.0").message.clone());
        }
        let effects = world.input(Event::Ticked);
        world.queue.extend(effects);
    }
}

#[test]
fn a_wrong_tag_is_asked_for_ever_more_seldom_and_a_registry_that_wants_peace_gets_it() {
    const DAY: i64 = 86_400_000;
    let (transient, message) = pulls_within(RetryClass::Transient, DAY);
    assert!((280..400).contains(&transient), "{transient}");
    assert_eq!(message, "image cannot be pulled: no such image");
    let (terminal, message) = pulls_within(RetryClass::Terminal, DAY);
    assert!((14..20).contains(&terminal), "{terminal}");
    let (reason, next) = message.split_once("; the next try is at ").unwrap();
    assert_eq!(reason, "image cannot be pulled: no such image");
    assert!(
        next.ends_with(", or at once when the Skyhook is changed or the agent's pod is deleted"),
        "{next}"
    );
    let hour = RetryClass::After(std::time::Duration::from_secs(3600));
    assert_eq!(pulls_within(hour, DAY).0, 1 + 24);
}

/// A new revision and a restarted agent pull at once.
#[test]
fn what_waits_for_hours_is_tried_at_once_after_a_change_or_a_restart() {
    let waiting = || {
        let mut world = World::new();
        world.pull_class = RetryClass::Terminal;
        world.no_image("aa|1.0.0", 12);
        world.lease(&one("1.0.0"));
        while let Some(effect) = world.queue.pop_front() {
            world.perform(effect);
            if world.queue.is_empty() && !world.entry("aa|1.0.0").message.contains("next try") {
                world.now = wake_at(world.progress(), world.now).expect("it is tried again");
                let effects = world.input(Event::Ticked);
                world.queue.extend(effects);
            }
        }
        assert!(world.entry("aa|1.0.0").message.contains("next try"));
        world
    };
    let pulls = |world: &World, key: &str| {
        let pull = Effect::PullImage { key: key.into() };
        world.queue.contains(&pull)
    };
    let mut restarted = waiting();
    restarted.kill_agent();
    assert!(pulls(&restarted, "aa|1.0.0"), "{:?}", restarted.queue);
    let mut edited = waiting();
    edited.lease(&one("1.0.1"));
    assert!(pulls(&edited, "aa|1.0.1"), "{:?}", edited.queue);
    let mut again = waiting();
    again.lease(&one("1.0.0"));
    assert!(pulls(&again, "aa|1.0.0"), "{:?}", again.queue);
    // A clock that is set back by hours delays nothing.
    let mut back = waiting();
    back.now -= 86_400_000;
    assert_eq!(wake_at(back.progress(), back.now), Some(back.now));
}

#[test]
fn an_image_that_cannot_be_used_is_not_pulled_at_every_retry() {
    let mut world = World::new();
    world.lease(&one("1.0.0"));
    let (mut prepared, mut pulled) = (0, 0);
    let until = world.now + 86_400_000;
    while world.now < until {
        while let Some(effect) = world.queue.pop_front() {
            pulled += u32::from(matches!(effect, Effect::PullImage { .. }));
            if let Effect::PrepareStage { key, .. } = &effect {
                prepared += 1;
                let effects = world.input(Event::StageFailed {
                    key: key.clone(),
                    reason: "an entry is refused".into(),
                    class: RetryClass::Terminal,
                });
                world.queue.extend(effects);
            } else {
                world.perform(effect);
            }
        }
        world.now = wake_at(world.progress(), world.now).expect("it is tried again");
        let effects = world.input(Event::Ticked);
        world.queue.extend(effects);
    }
    assert!(
        prepared < 20 && pulled < 20,
        "{prepared} and {pulled} times"
    );
    let message = &world.entry("aa|1.0.0").message;
    assert!(
        message.starts_with("an entry is refused; the next try is at "),
        "{message}"
    );
}
