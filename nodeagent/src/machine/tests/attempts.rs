//! How often a stage is tried, and what happens when the attempts are used up.

mod interrupts;
mod time;

use skyhook_crds::lease::{InterruptionLeaseSpec, Parked, Phase, StopReason};
use skyhook_crds::{InterruptionLease, Package, Stage, State};

use super::super::progress::states;
use super::super::reconcile::{Source, of_lease};
use super::super::*;
use super::world::{Spec, World, pkg, run_lines};
use crate::report::{self, HostFacts};

const KEY: &str = "aa|1.0.0";
/// A number of faults that never end.
const ALWAYS: u32 = u32::MAX;

fn limited(name: &str, most: i32) -> Package {
    Package {
        max_attempts: Some(most),
        ..pkg(name, "1.0.0")
    }
}

fn after(package: Package, dependency: &str) -> Package {
    Package {
        depends_on: [(dependency.to_owned(), "1.0.0".to_owned())].into(),
        ..package
    }
}

fn parked(world: &World) -> Option<Parked> {
    report::status(world.progress(), &HostFacts::default(), 1).parked
}

/// A world in which the package aa has given up in apply, after two attempts.
fn given_up(packages: &[Package]) -> World {
    let mut world = World::new();
    world.fail("aa@1.0.0 apply", 2);
    world.lease(&Spec::of(packages));
    world.settle_to_rest();
    assert!(world.entry(KEY).has_given_up());
    world
}

/// How often a stage is tried: the package's own limit, that of the agent, what fails, what runs, and the attempts after
/// which the package gives up.
#[test]
fn a_stage_is_tried_so_often() {
    let always = |what| vec![(what, ALWAYS)];
    let rows = [
        (
            "three times",
            Some(3),
            None,
            always("aa@1.0.0 apply"),
            "aa apply; aa apply; aa apply",
            Some(3),
        ),
        (
            "once",
            Some(1),
            None,
            always("aa@1.0.0 apply"),
            "aa apply",
            Some(1),
        ),
        (
            "as the agent's settings say",
            None,
            Some(2),
            always("aa@1.0.0 apply"),
            "aa apply; aa apply",
            Some(2),
        ),
        (
            "for ever, whatever the agent's settings say",
            Some(0),
            Some(2),
            vec![("aa@1.0.0 apply", 3)],
            "aa apply; aa apply; aa apply; aa apply; aa apply-check; aa config; aa config-check",
            None,
        ),
        (
            "it succeeds in time",
            Some(2),
            None,
            vec![("aa@1.0.0 apply", 1)],
            "aa apply; aa apply; aa apply-check; aa config; aa config-check",
            None,
        ),
        (
            "each stage has its own attempts",
            Some(2),
            None,
            vec![("aa@1.0.0 apply", 1), ("aa@1.0.0 config", 1)],
            "aa apply; aa apply; aa apply-check; aa config; aa config; aa config-check",
            None,
        ),
        (
            "a check is tried again without the step before it",
            Some(2),
            None,
            always("aa@1.0.0 apply-check"),
            "aa apply; aa apply-check; aa apply-check",
            Some(2),
        ),
    ];
    for (name, own, default, faults, want, attempts) in rows {
        let mut world = World::new();
        world.log_checks = true;
        world.limits.max_attempts = default;
        for (what, times) in faults {
            world.fail(what, times);
        }
        world.lease(&Spec::of(&[Package {
            max_attempts: own,
            ..pkg("aa", "1.0.0")
        }]));
        world.settle_to_rest();
        assert_eq!(run_lines(&world.log), want, "{name}");
        let ended = attempts.is_none().then_some(Phase::Complete);
        assert_eq!(world.ended(), ended, "{name}");
        let told = parked(&world).map(|parked| (parked.stage, parked.attempts));
        assert_eq!(told, attempts.map(|n| (Stage::Apply, n)), "{name}");
    }
}

#[test]
fn it_is_said_what_the_last_attempt_said_and_who_can_go_on() {
    let world = given_up(&[limited("aa", 2)]);
    let status = report::status(world.progress(), &HostFacts::default(), 1);
    let parked = status.parked.expect("it has given up");
    for part in [
        "gave up after 2 attempts. To go on, ",
        "kubectl skyhook package rerun aa --skyhook s --node",
        "reset the node",
        "change the package",
        "The last attempt said: on order",
    ] {
        assert!(parked.message.contains(part), "{}", parked.message);
    }
    assert!(status.message.contains(&parked.message));
    assert_eq!((&*parked.package, &*parked.version), ("aa", "1.0.0"));
    assert!(!parked.since.is_empty());
    assert_eq!(status.phase, Some(Phase::Erroring));
    assert_eq!(world.entry(KEY).state, State::Erroring);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_uses_up_an_attempt() {
    type Happens = fn(&mut World, u64);
    let rows: [(&str, Happens, bool); 8] = [
        (
            "a step fails",
            |world, id| {
                world.input_queued(Event::StepExited {
                    key: KEY.into(),
                    id,
                    outcome: Outcome::Failed("x".into()),
                    took_ms: 1,
                });
            },
            true,
        ),
        (
            "a step is lost in the same boot",
            |world, id| {
                world.input_queued(Event::StepLost {
                    key: KEY.into(),
                    id,
                    problem: "x".into(),
                });
            },
            true,
        ),
        (
            "a step is lost with the host",
            |world, id| {
                world.power_cut();
                world.queue.clear();
                world.input_queued(Event::StepLost {
                    key: KEY.into(),
                    id,
                    problem: "x".into(),
                });
            },
            false,
        ),
        (
            "a step cannot be started",
            |world, _| {
                world.input_queued(Event::StageFailed {
                    key: KEY.into(),
                    reason: "x".into(),
                    class: RetryClass::Transient,
                });
            },
            false,
        ),
        (
            "the agent is killed before the step is started",
            |world, _| world.kill_agent(),
            false,
        ),
        (
            "the host loses its power before the step is started",
            |world, _| world.power_cut(),
            false,
        ),
        (
            "the image cannot be pulled",
            |world, _| {
                world.input_queued(Event::ImageFailed {
                    key: KEY.into(),
                    reason: "x".into(),
                    class: RetryClass::Transient,
                });
                world.kill_agent();
            },
            false,
        ),
        (
            "a pause",
            |world, _| {
                world.hold(true);
                world.hold(false);
                world.kill_agent();
            },
            false,
        ),
    ];
    for (name, happens, want) in rows {
        let mut world = World::new();
        world.lease(&Spec::of(&[limited("aa", 2)]));
        for _ in 0..7 {
            let id = loop {
                match world.queue.pop_front() {
                    Some(Effect::RunStep { id, .. }) => break Some(id),
                    Some(effect) => world.perform(effect),
                    None => match wake_at(world.progress(), world.now) {
                        Some(at) => {
                            world.now = at;
                            world.input_queued(Event::Ticked);
                        }
                        None => break None,
                    },
                }
            };
            let Some(id) = id else { break };
            happens(&mut world, id);
        }
        assert_eq!(world.entry(KEY).has_given_up(), want, "{name}");
        assert!(want || world.entry(KEY).attempts == 0, "{name}");
    }
}

#[test]
fn a_step_that_ends_because_the_lease_is_stopped_is_no_attempt() {
    let mut world = World::new();
    world.lease(&Spec::of(&[limited("aa", 1)]));
    world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
    let Some(Effect::RunStep { id, .. }) = world.queue.pop_back() else {
        panic!("it is next");
    };
    world.stop(StopReason::Disabled);
    world.input_queued(Event::StepExited {
        key: KEY.into(),
        id,
        outcome: Outcome::Failed("ended".into()),
        took_ms: 1,
    });
    assert_eq!(world.ended(), Some(Phase::Stopped));
    let entry = world.entry(KEY);
    assert_eq!((entry.attempts, entry.has_given_up()), (0, false));
}

#[test]
fn what_brings_a_package_back_that_has_given_up() {
    let spec = Spec::of(&[limited("aa", 2)]);
    let more = Spec::of(&[limited("aa", 3)]);
    type Happens = fn(&mut World, &Spec, &Spec);
    let rows: [(&str, Happens, bool); 7] = [
        ("time passes", |world, _, _| world.now += 86_400_000, false),
        (
            "the agent is killed",
            |world, _, _| world.kill_agent(),
            false,
        ),
        ("the host boots", |world, _, _| world.power_cut(), false),
        (
            "a pause",
            |world, _, _| {
                world.hold(true);
                world.hold(false);
            },
            false,
        ),
        (
            "another lease at the same revision",
            |world, spec, _| {
                world.stop(StopReason::Disabled);
                assert_eq!(world.ended(), Some(Phase::Stopped));
                world.lease_at(spec, "s-1");
            },
            false,
        ),
        (
            "another revision, in which nothing of the package is changed",
            |world, spec, _| {
                world.stop(StopReason::NewRevision);
                world.lease(spec);
            },
            true,
        ),
        (
            "another revision that allows more attempts",
            |world, _, more| {
                world.stop(StopReason::NewRevision);
                world.lease(more);
            },
            true,
        ),
    ];
    for (name, happens, want) in rows {
        let mut world = given_up(&[limited("aa", 2)]);
        happens(&mut world, &spec, &more);
        world.settle_to_rest();
        let ended = want.then_some(Phase::Complete);
        assert_eq!(world.ended(), ended, "{name}");
        assert_eq!(parked(&world).is_none(), want, "{name}");
        let tries = world.log.iter().filter(|line| line.ends_with(" apply"));
        assert_eq!(tries.count(), 2 + usize::from(want), "{name}");
    }
}

#[test]
fn an_edit_of_one_package_brings_back_that_package_alone() {
    let mut world = World::new();
    world.fail("aa@1.0.0 apply", ALWAYS);
    world.fail("bb@1.0.0 config", ALWAYS);
    let spec = Spec::of(&[limited("aa", 1), limited("bb", 1)]);
    world.lease(&spec);
    world.settle_to_rest();
    let journal = world.progress().entries.clone();
    let recorded = states(&journal);
    for (name, key, edited, want) in [
        (
            "aa from apply",
            KEY,
            Some((Stage::Apply, State::InProgress)),
            "aa apply",
        ),
        ("aa is removed from the record", KEY, None, "aa apply"),
        (
            "bb from config",
            "bb|1.0.0",
            Some((Stage::Config, State::InProgress)),
            "bb config",
        ),
        (
            "bb from apply",
            "bb|1.0.0",
            Some((Stage::Apply, State::InProgress)),
            "bb apply; bb config",
        ),
    ] {
        let mut installed = recorded.clone();
        match edited {
            Some((stage, state)) => {
                let status = installed.get_mut(key).expect("it is recorded");
                (status.stage, status.state) = (stage, state);
            }
            None => {
                installed.remove(key);
            }
        }
        let stamp = skyhook_crds::installed::Stamp {
            lease: "lease-1".into(),
            ..Default::default()
        };
        let lease = InterruptionLease::new(
            "worker-1",
            InterruptionLeaseSpec {
                installed,
                stamp: Some(stamp),
                ..InterruptionLeaseSpec::default()
            },
        );
        let (entries, source) = of_lease(Some(&journal), &lease, "", "");
        assert_eq!(source, Source::Node, "{name}");
        let mut world = world.clone();
        world.log.clear();
        world.stop(StopReason::Edited);
        world.run.as_mut().expect("there is one").entries = entries;
        world.lease_at(&spec, "s-1");
        world.settle_to_rest();
        assert_eq!(run_lines(&world.log), want, "{name}");
        // Both have given up again, and the other one was never left in between.
        for (key, before) in &journal {
            let after = world.entry(key);
            assert!(after.has_given_up(), "{name}: {key}");
            if !want.starts_with(&before.name) {
                let of = |entry: &Entry| (entry.status(), entry.doing.clone(), entry.attempts);
                assert_eq!(of(after), of(before), "{name}: {key}");
            }
        }
    }
}

#[test]
fn other_packages_go_on_without_those_that_wait_for_it() {
    let mut world = given_up(&[
        limited("aa", 2),
        after(pkg("bb", "1.0.0"), "aa"),
        pkg("cc", "1.0.0"),
    ]);
    assert_eq!(
        run_lines(&world.log),
        "aa apply; cc apply; cc config; aa apply"
    );
    assert_eq!(world.ended(), None);
    world.stop(StopReason::Edited);
    assert_eq!(world.ended(), Some(Phase::Stopped));
}
