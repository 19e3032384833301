//! Packages that request more than the node has.

use std::collections::BTreeMap;

use skyhook_crds::lease::Phase;
use skyhook_crds::package::Resources;
use skyhook_crds::quantity::Quantity;
use skyhook_crds::{Package, State};

use super::super::room::lacking;
use super::super::*;
use super::reboot;
use super::world::{Spec, World, pkg, run_lines};
use crate::report::{self, HostFacts};

fn quantity(text: &str) -> Option<Quantity> {
    (!text.is_empty()).then(|| Quantity(text.to_owned()))
}

/// Requests of CPU and memory, and a limit of CPU. Empty: there is none.
fn resources(cpu: &str, memory: &str, cpu_limit: &str) -> Resources {
    Resources {
        cpu_request: quantity(cpu),
        cpu_limit: quantity(cpu_limit),
        memory_request: quantity(memory),
        memory_limit: None,
    }
}

#[test]
fn what_a_package_requests_and_the_node_does_not_have() {
    let has = |text: &str| -> BTreeMap<String, String> {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        pairs.collect()
    };
    for (name, own, defaults, node, want) in [
        ("no requests", None, None, "cpu=2", None),
        (
            "it has room",
            Some(resources("2", "4Gi", "")),
            None,
            "cpu=2 memory=4096Mi",
            None,
        ),
        (
            "too little CPU",
            Some(resources("10", "1Gi", "")),
            None,
            "cpu=1930m memory=4Gi",
            Some("requests cpu 10, and the node has 1930m"),
        ),
        (
            "too little of both",
            Some(resources("10", "8Gi", "")),
            None,
            "cpu=2 memory=4Gi",
            Some("requests cpu 10, and the node has 2, and memory 8Gi, and the node has 4Gi"),
        ),
        (
            "a limit without a request is the request",
            Some(resources("", "", "10")),
            None,
            "cpu=2",
            Some("requests cpu 10, and the node has 2"),
        ),
        (
            "the default of the namespace",
            None,
            Some(resources("3", "", "")),
            "cpu=2",
            Some("requests cpu 3, and the node has 2"),
        ),
        (
            "its own instead of the default",
            Some(resources("1", "", "")),
            Some(resources("3", "", "")),
            "cpu=2",
            None,
        ),
        (
            "the Node does not say what it has",
            Some(resources("10", "8Gi", "")),
            None,
            "",
            None,
        ),
    ] {
        let package = Package {
            resources: own,
            ..pkg("aa", "1.0.0")
        };
        let packages = [("aa".to_owned(), package)].into();
        let lacks = lacking(&packages, defaults.as_ref(), &has(node));
        assert_eq!(lacks.get("aa").map(String::as_str), want, "{name}");
    }
}

fn world(packages: &[Package]) -> World {
    let mut world = World::new();
    world.lacking = [(
        "aa".to_owned(),
        "requests cpu 10, and the node has 2".to_owned(),
    )]
    .into();
    world.lease(&Spec::of(packages));
    world.settle_quiet();
    world
}

#[test]
fn it_waits_and_others_go_on() {
    let mut world = world(&[
        pkg("aa", "1.0.0"),
        Package {
            depends_on: [("aa".to_owned(), "1.0.0".to_owned())].into(),
            ..pkg("bb", "1.0.0")
        },
        pkg("cc", "1.0.0"),
    ]);
    assert_eq!(run_lines(&world.log), "cc apply; cc config");
    let status = report::status(world.progress(), &HostFacts::default(), 1);
    let aa = &status.packages["aa|1.0.0"];
    assert_eq!((aa.state, aa.pending), (State::InProgress, true));
    assert_eq!(aa.lacks, "requests cpu 10, and the node has 2");
    assert!(aa.message.contains(&aa.lacks), "{}", aa.message);
    assert_eq!(status.packages["bb|1.0.0"].lacks, "");
    assert_eq!(status.phase, Some(Phase::Preparing));
    // The Node is looked at again from time to time.
    for _ in 0..3 {
        world.now = wake_at(world.progress(), world.now).expect("it looks again");
        assert_eq!(world.input(Event::Ticked), [Effect::LookAtNode]);
    }
    world.kill_agent();
    world.settle_quiet();
    assert_eq!(run_lines(&world.log), "cc apply; cc config");
    world.lacking.clear();
    world.now = wake_at(world.progress(), world.now).expect("it looks again");
    world.input_queued(Event::Ticked);
    world.settle();
    assert_eq!(world.ended(), Some(Phase::Complete));
    assert_eq!(
        run_lines(&world.log),
        "cc apply; cc config; aa apply; aa config; bb apply; bb config"
    );
}

#[test]
fn a_node_is_not_drained_for_it() {
    let rebooting = |name: &str| Package {
        interrupt: reboot(),
        ..pkg(name, "1.0.0")
    };
    let after = |package: Package| Package {
        depends_on: [("aa".to_owned(), "1.0.0".to_owned())].into(),
        ..package
    };
    for (name, packages, want) in [
        ("itself", vec![rebooting("aa")], Some(false)),
        (
            "what waits for it",
            vec![pkg("aa", "1.0.0"), after(rebooting("bb"))],
            Some(false),
        ),
        (
            "another package is",
            vec![rebooting("aa"), rebooting("bb")],
            Some(true),
        ),
    ] {
        let mut world = World::new();
        world.drained = false;
        world.lacking = [("aa".to_owned(), "requests more".to_owned())].into();
        world.lease(&Spec::of(&packages));
        world.settle_quiet();
        let status = report::status(world.progress(), &HostFacts::default(), 1);
        assert_eq!(status.needs_drain, want, "{name}");
        // No pull of an image that nothing needs.
        assert_eq!(
            world.entry("aa|1.0.0").image_state,
            progress::ImageState::Unknown
        );
    }
}

#[test]
fn what_is_complete_or_goes_away_waits_for_nothing() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0"), pkg("bb", "1.0.0")]));
    world.settle();
    world.lacking = [("aa", "requests more"), ("bb", "requests more")]
        .map(|(name, lacks)| (name.to_owned(), lacks.to_owned()))
        .into();
    world.log.clear();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle();
    assert_eq!(run_lines(&world.log), "bb uninstall");
    assert_eq!(world.ended(), Some(Phase::Complete));
}
