//! How long the steps of a stage may take, what older journals say about attempts, and properties of attempts.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use skyhook_crds::Package;
use skyhook_crds::duration::GoDuration;
use skyhook_crds::lease::Phase;

use super::super::super::attempts::{StepLimit, step_limit};
use super::super::super::progress::Limits;
use super::super::super::*;
use super::super::world::{Spec, World, pkg, run_lines};
use super::interrupts::restarting;
use super::{KEY, after, limited};

#[test]
fn the_time_of_a_step_is_limited_by_what_is_left_of_the_stage() {
    let seconds = Duration::from_secs;
    let whole = seconds(300);
    for (name, of_step, of_stage, spent_ms, want) in [
        ("no limit", None, None, 7, None),
        (
            "a limit for each step",
            Some(60),
            None,
            7,
            Some(StepLimit::Step(seconds(60))),
        ),
        (
            "the first step of a stage",
            None,
            Some("5m"),
            0,
            Some(StepLimit::Stage { left: whole, whole }),
        ),
        (
            "another step of the stage",
            None,
            Some("5m"),
            200_000,
            Some(StepLimit::Stage {
                left: seconds(100),
                whole,
            }),
        ),
        (
            "the smaller one",
            Some(60),
            Some("5m"),
            200_000,
            Some(StepLimit::Step(seconds(60))),
        ),
        (
            "0 is no limit",
            Some(60),
            Some("0s"),
            0,
            Some(StepLimit::Step(seconds(60))),
        ),
        (
            "less than a millisecond is a limit",
            None,
            Some("1ns"),
            0,
            Some(StepLimit::Stage {
                left: Duration::from_millis(1),
                whole: Duration::from_millis(1),
            }),
        ),
    ] {
        let mut world = World::new();
        world.lease(&Spec::of(&[Package {
            stage_timeout: of_stage.map(|text: &str| GoDuration(text.into())),
            ..pkg("aa", "1.0.0")
        }]));
        let mut run = world.progress().clone();
        run.entries.get_mut(KEY).expect("it is planned").spent_ms = spent_ms;
        let limit = step_limit(&run, KEY, of_step.map(seconds));
        assert_eq!(limit, want, "{name}");
    }
}

#[test]
fn the_steps_of_an_attempt_share_the_time_and_each_attempt_has_all_of_it() {
    // How long each step would take, which steps run, and how often the stage was tried again.
    for (name, step_ms, want, restarts) in [
        (
            "there is time for both steps",
            150_000,
            "aa apply; aa apply-check; aa config; aa config-check",
            0,
        ),
        (
            "the check has too little time, and all of it in the next attempt",
            200_000,
            "aa apply; aa apply-check; aa apply-check; aa config; aa config-check; aa config-check",
            2,
        ),
        (
            "none is left for the check",
            300_000,
            "aa apply; aa apply-check; aa config; aa config-check",
            2,
        ),
        ("no attempt has enough", 300_001, "aa apply; aa apply", 1),
    ] {
        let mut world = World::new();
        world.log_checks = true;
        world.step_ms = step_ms;
        world.lease(&Spec::of(&[Package {
            stage_timeout: Some(GoDuration("5m".into())),
            ..limited("aa", 2)
        }]));
        world.settle_to_rest();
        assert_eq!(run_lines(&world.log), want, "{name}");
        let entry = world.entry(KEY);
        assert_eq!(entry.restarts, restarts, "{name}");
        assert_eq!(entry.has_given_up(), step_ms > 300_000, "{name}");
    }
}

#[test]
fn limits_are_no_reason_to_end_a_step() {
    let plain = Wanted::of(&pkg("aa", "1.0.0"));
    let limited = Wanted::of(&Package {
        stage_timeout: Some(GoDuration("5m".into())),
        ..limited("aa", 2)
    });
    assert_eq!(plain.identity, limited.identity);
    assert_eq!(plain.config, limited.config);
    let limits = Limits {
        stage_timeout_ms: Some(300_000),
        max_attempts: Some(2),
    };
    assert_eq!((plain.limits, limited.limits), (Limits::default(), limits));
}

/// A package of an agent that did not count attempts: the fields are missing in its journal.
#[test]
fn a_journal_of_an_earlier_agent_can_be_read() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
    let mut journal = serde_json::to_value(world.progress()).unwrap();
    let entry = journal["entries"][KEY].as_object_mut().unwrap();
    for field in ["attempts", "spentMs", "triedAt"] {
        assert!(entry.remove(field).is_some(), "{field}");
    }
    assert_eq!(journal["limits"], serde_json::Value::Null);
    assert_eq!(journal["wanted"]["aa"]["limits"], serde_json::Value::Null);
    let read: Progress = serde_json::from_value(journal).unwrap();
    let mut want = world.progress().clone();
    want.entries.get_mut(KEY).unwrap().tried_at = None;
    assert_eq!(read, want);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// No stage is tried more often than allowed. In the end all packages are complete, unless one has given up. Those that
    /// need nothing of it are complete then, too.
    #[test]
    fn attempts_are_limited_and_the_machine_comes_to_rest(
        packages in prop::collection::vec((0..4_i32, any::<bool>(), any::<bool>()), 1..4),
        faults in prop::collection::vec((0..3_usize, 0..5_usize, 1..5_u32), 0..6),
        serial in any::<bool>(),
    ) {
        let names = ["aa", "bb", "cc"];
        let specified: Vec<Package> = packages
            .iter()
            .enumerate()
            .map(|(n, (most, interrupted, depends))| {
                let package = limited(names[n], *most);
                let package = if *depends && n > 0 {
                    after(package, names[n - 1])
                } else {
                    package
                };
                if *interrupted { restarting(package, names[n]) } else { package }
            })
            .collect();
        let mut world = World::new();
        for (package, mode, times) in faults {
            let name = names[package];
            world.fail(&match ["apply", "apply-check", "config", "post-interrupt", ""][mode] {
                "" => format!("service {name}"),
                mode => format!("{name}@1.0.0 {mode}"),
            }, times);
        }
        let spec = Spec::of(&specified);
        world.log_checks = true;
        world.lease(&if serial { spec.serial() } else { spec });
        world.settle_to_rest();
        let mut tried: BTreeMap<&str, i32> = BTreeMap::new();
        for line in world.log.iter().filter(|line| line.contains('@')) {
            *tried.entry(line.as_str()).or_default() += 1;
        }
        for (line, times) in tried {
            let name = &line[..2];
            let most = packages[names.iter().position(|one| *one == name).unwrap()].0;
            prop_assert!(most == 0 || times <= most, "{}: {} times", line, times);
        }
        let run = world.progress();
        prop_assert_eq!(run.ended == Some(Phase::Complete), !run.has_given_up());
        for package in &specified {
            let entry = &run.entries[&package.key()];
            prop_assert!(package.max_attempts != Some(0) || !entry.has_given_up());
            let waits = serial
                || entry.interrupt().is_some()
                || package.depends_on.keys().any(|name| !run.is_complete(name));
            prop_assert!(waits || entry.is_done() || entry.has_given_up(), "{:#?}", entry);
        }
    }
}
