//! Property tests, with random specifications, and with the agent or the host killed at random times. The host always
//! reaches the same state, and no stage runs before its predecessor.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use skyhook_crds::lease::Phase;
use skyhook_crds::package::{Interrupt, InterruptType, Uninstall};
use skyhook_crds::{Package, Stage, State};

use super::super::{Doing, Effect, Event, wake_at};
use super::world::{Spec, World, pkg};

fn interrupts() -> impl Strategy<Value = Option<Interrupt>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Interrupt { kind: InterruptType::Reboot, services: vec![] })),
        1 => Just(Some(Interrupt { kind: InterruptType::Noop, services: vec![] })),
        1 => prop::collection::vec("[xyz]", 1..3)
            .prop_map(|services| Some(Interrupt { kind: InterruptType::Service, services })),
    ]
}

fn specs() -> impl Strategy<Value = Spec> {
    let uninstall = prop_oneof![
        3 => Just(None),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(enabled, apply)| Some(Uninstall {
            enabled,
            apply: enabled && apply,
        })),
    ];
    let package = (
        1_u8..4,
        interrupts(),
        interrupts(),
        0_u8..3,
        any::<bool>(),
        uninstall,
    );
    (prop::collection::vec(package, 0..5), any::<bool>()).prop_map(|(packages, serial)| {
        let names = ["aa", "bb", "cc", "dd", "ee"];
        let versions: Vec<String> = packages.iter().map(|p| format!("{}.0.0", p.0)).collect();
        let packages: Vec<Package> = packages
            .into_iter()
            .enumerate()
            .map(
                |(n, (_, interrupt, on_key, config, depends, uninstall))| Package {
                    uninstall,
                    interrupt,
                    config_interrupts: on_key.map(|i| ("k*".to_owned(), i)).into_iter().collect(),
                    config_map: if config == 0 {
                        BTreeMap::new()
                    } else {
                        [(format!("k{config}"), config.to_string())].into()
                    },
                    depends_on: if depends && n > 0 {
                        [(names[n - 1].to_owned(), versions[n - 1].clone())].into()
                    } else {
                        BTreeMap::new()
                    },
                    ..pkg(names[n], &versions[n])
                },
            )
            .collect();
        let spec = Spec::of(&packages);
        if serial { spec.serial() } else { spec }
    })
}

type Outcome = (Stage, State, Option<BTreeMap<String, String>>);

/// The packages on the host, without the way that led there.
fn outcome(world: &World) -> BTreeMap<String, Outcome> {
    world
        .progress()
        .entries
        .iter()
        .map(|(key, e)| (key.clone(), (e.stage, e.state, e.configured.clone())))
        .collect()
}

/// Checks that the stages of each package ran in an order that NVIDIA Skyhook allows.
fn check_order(log: &[String]) {
    let mut last: BTreeMap<&str, &str> = BTreeMap::new();
    for line in log {
        let Some((package, mode)) = line.split_once(' ').filter(|_| line.contains('@')) else {
            continue;
        };
        let before = last.insert(package, mode);
        let is_allowed = match mode {
            "config" => before != Some("uninstall"),
            "post-interrupt" => !matches!(before, Some("apply" | "upgrade" | "uninstall")),
            _ => true,
        };
        assert!(is_allowed, "{package}: {mode} after {before:?} in {log:?}");
    }
}

/// True for a package that depends on one that has to go, directly or not.
fn needs_one_that_goes(spec: &Spec, package: &Package) -> bool {
    package.depends_on.keys().any(|name| {
        let other = &spec.packages[name];
        other.is_to_go() || needs_one_that_goes(spec, other)
    })
}

fn check_complete(world: &World, spec: &Spec) {
    assert_eq!(world.ended(), Some(Phase::Complete));
    let entries = &world.progress().entries;
    for package in spec.packages.values() {
        let mut versions = entries.values().filter(|e| e.name == package.name);
        if package.is_to_go() {
            assert_eq!(versions.next(), None, "it is still there");
        } else if !needs_one_that_goes(spec, package) {
            assert!(entries[&package.key()].is_done(), "{entries:#?}");
        }
    }
    for entry in entries.values() {
        let stays = match spec.packages.get(&entry.name) {
            Some(package) => {
                entry.version == package.version
                    || entry.left_behind
                    || needs_one_that_goes(spec, package)
            }
            None => spec.left_behind.contains(&entry.name),
        };
        assert!(stays, "{entry:#?}");
    }
}

/// Runs both specifications. `deaths` says at which effects the agent is killed: the number of the effect; whether the
/// agent dies after the effect and before its end is in the journal, or else before the effect; and whether the host
/// loses its power as well.
fn run(before: &Spec, after: &Spec, deaths: &[(usize, bool, bool)]) -> (World, usize) {
    let mut world = World::new();
    let mut performed = 0;
    let after = after.clone().after(before);
    for spec in [before, &after] {
        world.lease(spec);
        for _ in 0..20_000 {
            if let Some(effect) = world.queue.pop_front() {
                let death = deaths.iter().find(|(at, _, _)| *at == performed);
                performed += 1;
                match death {
                    None => world.perform(effect),
                    Some((_, late, power)) => {
                        if *late && let Effect::RunStep { key, id, half, .. } = &effect {
                            // The step ran, and its supervisor wrote the result.
                            world.run_step(key, *id, *half);
                        }
                        if *power {
                            world.power_cut();
                        } else {
                            world.kill_agent();
                        }
                    }
                }
                continue;
            }
            if world.ended().is_some() {
                break;
            }
            let at = wake_at(world.progress(), world.now)
                .unwrap_or_else(|| panic!("waits for nothing: {:#?}", world.progress()));
            world.now = world.now.max(at);
            world.input_queued(Event::Ticked);
        }
        check_complete(&world, spec);
    }
    check_order(&world.log);
    (world, performed)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_pair_of_specifications_ends_where_it_should(before in specs(), after in specs()) {
        run(&before, &after, &[]);
    }

    #[test]
    fn deaths_change_nothing(
        before in specs(),
        after in specs(),
        deaths in prop::collection::vec((0_usize..120, any::<bool>(), any::<bool>()), 1..4),
    ) {
        let (calm, _) = run(&before, &after, &[]);
        let (world, _) = run(&before, &after, &deaths);
        prop_assert_eq!(outcome(&world), outcome(&calm));
    }

    #[test]
    fn two_steps_of_one_package_never_run_at_once(before in specs(), after in specs()) {
        let mut world = World::new();
        for spec in [&before, &after] {
            world.lease(spec);
            // Performs the newest effect first, so that steps start before earlier ones end.
            while world.ended().is_none() {
                let running: Vec<&str> = world
                    .progress()
                    .entries
                    .values()
                    .filter(|e| matches!(e.doing, Doing::Step(_) | Doing::Preparing { .. }))
                    .map(|e| e.name.as_str())
                    .collect();
                let names: BTreeSet<&str> = running.iter().copied().collect();
                prop_assert_eq!(names.len(), running.len());
                prop_assert!(!spec.serial || running.len() <= 1, "{:?}", running);
                match world.queue.pop_back() {
                    Some(effect) => world.perform(effect),
                    None => {
                        world.now = wake_at(world.progress(), world.now).expect("waits for something");
                        world.input_queued(Event::Ticked);
                    }
                }
            }
            world.queue.clear();
        }
    }
}

#[test]
fn death_at_every_effect_of_an_install_and_an_upgrade() {
    let reboot = Some(Interrupt {
        kind: InterruptType::Reboot,
        services: vec![],
    });
    let with = |version: &str| Package {
        interrupt: reboot.clone(),
        ..pkg("aa", version)
    };
    let before = Spec::of(&[with("1.0.0"), pkg("bb", "2.0.0"), pkg("cc", "1.0.0")]);
    let after = Spec::of(&[with("2.0.0"), pkg("bb", "1.0.0")]);
    die_at_every_effect(&before, &after);
}

#[test]
fn death_at_every_effect_of_an_uninstall() {
    let reboot = Some(Interrupt {
        kind: InterruptType::Reboot,
        services: vec![],
    });
    let aa = |apply| Package {
        interrupt: reboot.clone(),
        uninstall: Some(Uninstall {
            enabled: true,
            apply,
        }),
        ..pkg("aa", "1.0.0")
    };
    let before = Spec::of(&[aa(false), pkg("bb", "1.0.0")]);
    let after = Spec::of(&[aa(true), pkg("bb", "2.0.0")]);
    die_at_every_effect(&before, &after);
    // Taken back.
    die_at_every_effect(&after, &before);
}

fn die_at_every_effect(before: &Spec, after: &Spec) {
    let (calm, effects) = run(before, after, &[]);
    for at in 0..effects {
        for late in [false, true] {
            for power in [false, true] {
                let (world, _) = run(before, after, &[(at, late, power)]);
                assert_eq!(
                    outcome(&world),
                    outcome(&calm),
                    "at {at}, late {late}, power {power}"
                );
                let reboots = world.log.iter().filter(|l| *l == "reboot").count();
                // A power failure after the agent asked for the reboot counts as that reboot.
                assert!(reboots <= 2, "{:?}", world.log);
            }
        }
    }
}
