//! Texts from other programs are cut and freed of control sequences before the machine keeps them.

use skyhook_crds::package::InterruptType;
use skyhook_crds::{Package, Stage, State};
use skyhook_oci::RetryClass;

use super::super::*;
use super::interrupt;
use super::world::{Spec, World, pkg};
use crate::report::{self, HostFacts};

const LONG: &str = "\x1b[2J\x1b[31mred\x1b[0m\rline\u{7}";

/// A text that is much longer than a message, and has control sequences for terminals.
fn nasty() -> String {
    format!("begin {} end", LONG.repeat(1_000_000 / LONG.len()))
}

/// Length of the longest text in the journal and in the lease's status.
fn longest(world: &World) -> usize {
    fn walk(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::String(text) => {
                assert!(!text.contains(['\x1b', '\u{7}', '\r']), "{text:?}");
                text.len()
            }
            serde_json::Value::Array(all) => all.iter().map(walk).max().unwrap_or(0),
            serde_json::Value::Object(all) => all.values().map(walk).max().unwrap_or(0),
            serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
                0
            }
        }
    }
    let status = report::status(world.progress(), &HostFacts::default(), 1);
    let journal = serde_json::to_value(world.progress()).unwrap();
    walk(&journal).max(walk(&serde_json::to_value(status).unwrap()))
}

fn restarting() -> Package {
    Package {
        interrupt: interrupt(InterruptType::Service, &["cron"]),
        ..pkg("aa", "1.0.0")
    }
}

fn at(is_it: impl Fn(&Effect) -> bool) -> (World, u64) {
    let mut world = World::new();
    world.lease(&Spec::of(&[restarting()]));
    world.settle_until(is_it);
    let id = match world.queue.pop_back() {
        Some(Effect::RunStep { id, .. }) => id,
        _ => 0,
    };
    (world, id)
}

#[test]
fn no_text_is_longer_than_a_message() {
    let key = || "aa|1.0.0".to_owned();
    type Is = fn(&Effect) -> bool;
    type Make = fn(String, u64, String) -> Event;
    let rows: [(&str, Is, Make); 6] = [
        (
            "image",
            |e| matches!(e, Effect::PullImage { .. }),
            |key, _, reason| Event::ImageFailed {
                key,
                reason,
                class: RetryClass::Transient,
            },
        ),
        (
            "config.json",
            |e| matches!(e, Effect::PrepareStage { .. }),
            |key, _, reason| Event::StageFailed {
                key,
                reason,
                class: RetryClass::Transient,
            },
        ),
        (
            "step",
            |e| matches!(e, Effect::RunStep { .. }),
            |key, id, reason| Event::StepExited {
                key,
                id,
                outcome: Outcome::Failed(reason),
                took_ms: 0,
            },
        ),
        (
            "lost step",
            |e| matches!(e, Effect::RunStep { .. }),
            |key, id, problem| Event::StepLost { key, id, problem },
        ),
        (
            "inhibitor",
            |e| matches!(e, Effect::Interrupt { .. }),
            |_, _, reason| Event::InterruptWaits { reason },
        ),
        (
            "unit",
            |e| matches!(e, Effect::Interrupt { .. }),
            |_, _, reason| Event::InterruptFailed {
                reason,
                asked: true,
            },
        ),
    ];
    for (name, is_it, make) in rows {
        let (mut world, id) = at(is_it);
        world.input(make(key(), id, nasty()));
        // The machine adds a few words to the text.
        let longest = longest(&world);
        assert!((1_000..=2_048).contains(&longest), "{name}: {longest}");
    }
}

#[test]
fn the_reasons_of_many_failed_checks_are_a_message_together() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_until(|e| matches!(e, Effect::PrepareStage { .. }));
    world.queue.clear();
    world.input_queued(Event::StageReady {
        key: "aa|1.0.0".into(),
        plan: StepPlan {
            main: vec![],
            checks: 500,
        },
    });
    let mut most = 0;
    while let Some(Effect::RunStep { key, id, index, .. }) = world.queue.pop_front() {
        let outcome = Outcome::Failed(format!("check-{index:03} {}", nasty()));
        world.input_queued(Event::StepExited {
            key,
            id,
            outcome,
            took_ms: 0,
        });
        most = most.max(serde_json::to_string(world.progress()).unwrap().len());
    }
    let entry = world.entry("aa|1.0.0");
    assert_eq!((entry.stage, entry.state), (Stage::Apply, State::Erroring));
    assert!(longest(&world) <= 2_048, "{}", longest(&world));
    assert!(most < 64 << 10, "the journal has {most} bytes meanwhile");
    for part in ["check-000", "check-031", "others failed as well"] {
        assert!(entry.message.contains(part), "{}", entry.message);
    }
}

/// The machine adds the time of the next try to the text.
#[test]
fn the_message_of_a_wrong_tag_is_short_and_says_when_the_next_try_is() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    for _ in 0..20 {
        world.settle_until(|e| matches!(e, Effect::PullImage { .. }));
        world.queue.clear();
        world.input_queued(Event::ImageFailed {
            key: "aa|1.0.0".into(),
            reason: nasty(),
            class: RetryClass::Terminal,
        });
        world.now = wake_at(world.progress(), world.now).expect("it is tried again");
        world.input_queued(Event::Ticked);
        let message = &world.entry("aa|1.0.0").message;
        assert!(message.starts_with("image cannot be pulled: begin"));
        assert!(message.len() <= 2_048, "{}", message.len());
    }
    let message = &world.entry("aa|1.0.0").message;
    assert!(message.contains("; the next try is at "), "{message}");
    assert!(longest(&world) <= 2_048, "{}", longest(&world));
}

#[test]
fn the_message_of_an_interrupt_with_many_services_is_short() {
    let services: Vec<String> = (0..500).map(|n| format!("unit-{n:03}.service")).collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let with = |name: &str| Package {
        interrupt: interrupt(InterruptType::Service, &services),
        ..pkg(name, "1.0.0")
    };
    let mut world = World::new();
    world.lease(&Spec::of(&[with("aa"), with("bb")]));
    world.settle_until(|e| matches!(e, Effect::LookAtLease));
    assert!(longest(&world) <= 2_048, "{}", longest(&world));
    let waiting = &world.entry("bb|1.0.0").message;
    assert!(
        waiting.starts_with("waiting for the restart of ") && waiting.ends_with(" by aa|1.0.0")
    );
    world.queue.clear();
    let lease = world.progress().lease.clone();
    world.input_queued(Event::LeaseLooked {
        lease,
        stands: true,
    });
    world.input_queued(Event::InterruptWaits {
        reason: "an inhibitor".into(),
    });
    let message = &world.entry("aa|1.0.0").message;
    assert!(message.starts_with("restart of ") && message.ends_with(": an inhibitor"));
    assert!(longest(&world) <= 2_048, "{}", longest(&world));
}
