//! Uninstalls that the spec asks for, and versions that are left behind.

mod steps;

use skyhook_crds::Package;
use skyhook_crds::lease::Phase;
use skyhook_crds::package::{InterruptType, Uninstall};

use super::world::{Spec, World, pkg};
use super::{interrupt, reboot};

fn with(package: Package, enabled: bool, apply: bool) -> Package {
    Package {
        uninstall: Some(Uninstall { enabled, apply }),
        ..package
    }
}

/// A package that can be uninstalled.
fn kept(package: Package) -> Package {
    with(package, true, false)
}

/// A package that has to go.
fn going(package: Package) -> Package {
    with(package, true, true)
}

/// A package of which nothing is ever uninstalled.
fn lasting(package: Package) -> Package {
    with(package, false, false)
}

fn rebooting(package: Package) -> Package {
    Package {
        interrupt: reboot(),
        ..package
    }
}

fn configured(package: Package, value: &str) -> Package {
    Package {
        config_map: [("k".to_owned(), value.to_owned())].into(),
        ..package
    }
}

fn after(package: Package, name: &str) -> Package {
    Package {
        depends_on: [(name.to_owned(), "1.0.0".to_owned())].into(),
        ..package
    }
}

fn aa() -> Package {
    pkg("aa", "1.0.0")
}

/// What is on the host: `key stage/state` for each entry.
fn there(world: &World) -> String {
    let entries = world.progress().entries.values();
    let entries = entries.map(|e| format!("{} {}/{}", e.key(), e.stage, e.state));
    entries.collect::<Vec<_>>().join("; ")
}

/// Runs one specification after the other, each to its end. Returns what ran for the last one, and what is on the host.
fn run(specs: &[Spec]) -> (String, String) {
    let mut world = World::new();
    let mut before = Spec::of(&[]);
    for (at, spec) in specs.iter().enumerate() {
        before = spec.clone().after(&before);
        world.log.clear();
        world.lease(&before);
        world.settle();
        assert_eq!(world.ended(), Some(Phase::Complete), "{at}");
    }
    (world.log.join("; "), there(&world))
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn one_specification_after_another() {
    let one = |package: Package| Spec::of(&[package]);
    let none = || Spec::of(&[]);
    let two = || pkg("aa", "2.0.0");
    let service = |p: Package| Package {
        interrupt: interrupt(InterruptType::Service, &["x"]),
        ..p
    };
    for (name, specs, ran, left) in [
        (
            "what is asked for",
            vec![one(kept(aa())), one(going(aa()))],
            "aa@1.0.0 uninstall",
            "",
        ),
        (
            "with an interrupt",
            vec![one(kept(service(aa()))), one(going(service(aa())))],
            "aa@1.0.0 uninstall; service x",
            "",
        ),
        (
            "the interrupt is that of the spec",
            vec![one(kept(aa())), one(going(rebooting(aa())))],
            "aa@1.0.0 uninstall; reboot",
            "",
        ),
        (
            "it was never installed",
            vec![none(), one(going(rebooting(aa())))],
            "",
            "",
        ),
        (
            "it is not installed while it has to go, whatever changes",
            vec![
                one(kept(aa())),
                one(going(aa())),
                one(going(configured(two(), "1"))),
            ],
            "",
            "",
        ),
        (
            "it is installed again",
            vec![one(kept(aa())), one(going(aa())), one(kept(two()))],
            "aa@2.0.0 apply; aa@2.0.0 config",
            "aa|2.0.0 config/complete",
        ),
        (
            "another version is there than the one in the spec",
            vec![one(kept(aa())), one(going(two()))],
            "aa@1.0.0 uninstall",
            "",
        ),
        (
            "others are installed in the same reboot",
            vec![
                one(kept(rebooting(aa()))),
                Spec::of(&[going(rebooting(aa())), rebooting(pkg("bb", "1.0.0"))]),
            ],
            "aa@1.0.0 uninstall; bb@1.0.0 apply; bb@1.0.0 config; reboot; bb@1.0.0 post-interrupt",
            "bb|1.0.0 post-interrupt/complete",
        ),
        (
            "serial: what goes is first",
            vec![
                Spec::of(&[pkg("zz", "1.0.0"), kept(rebooting(aa()))]).serial(),
                Spec::of(&[pkg("zz", "2.0.0"), going(rebooting(aa()))]).serial(),
            ],
            "aa@1.0.0 uninstall; reboot; zz@2.0.0 upgrade; zz@2.0.0 config",
            "zz|2.0.0 config/complete",
        ),
        (
            "a dependent that is complete stays",
            vec![
                Spec::of(&[kept(aa()), after(pkg("bb", "1.0.0"), "aa")]),
                Spec::of(&[going(aa()), after(pkg("bb", "1.0.0"), "aa")]),
            ],
            "aa@1.0.0 uninstall",
            "bb|1.0.0 config/complete",
        ),
        (
            "a dependent that has something to do is blocked, and what depends on it",
            vec![
                one(kept(aa())),
                Spec::of(&[
                    going(aa()),
                    after(rebooting(pkg("bb", "1.0.0")), "aa"),
                    after(pkg("cc", "1.0.0"), "bb"),
                ]),
            ],
            "aa@1.0.0 uninstall",
            "bb|1.0.0 apply/in_progress; cc|1.0.0 apply/in_progress",
        ),
        (
            "and goes on when the other is there again",
            vec![
                one(kept(aa())),
                Spec::of(&[going(aa()), after(pkg("bb", "1.0.0"), "aa")]),
                Spec::of(&[kept(aa()), after(pkg("bb", "1.0.0"), "aa")]),
            ],
            "aa@1.0.0 apply; aa@1.0.0 config; bb@1.0.0 apply; bb@1.0.0 config",
            "aa|1.0.0 config/complete; bb|1.0.0 config/complete",
        ),
        (
            "removed with enabled: false, nothing runs",
            vec![one(lasting(rebooting(aa()))), none()],
            "",
            "aa|1.0.0 post-interrupt/complete",
        ),
        (
            "and it stays with later revisions",
            vec![one(lasting(aa())), none(), one(pkg("bb", "1.0.0"))],
            "bb@1.0.0 apply; bb@1.0.0 config",
            "aa|1.0.0 config/complete; bb|1.0.0 config/complete",
        ),
        (
            "wanted again, it is there already",
            vec![one(lasting(aa())), none(), one(lasting(aa()))],
            "",
            "aa|1.0.0 config/complete",
        ),
        (
            "and can be uninstalled",
            vec![one(lasting(aa())), none(), one(going(aa()))],
            "aa@1.0.0 uninstall",
            "",
        ),
        (
            "removed with enabled: true, it is uninstalled as without the block",
            vec![one(kept(aa())), none()],
            "aa@1.0.0 uninstall",
            "",
        ),
        (
            "a downgrade with enabled: false keeps the entry",
            vec![one(lasting(two())), one(lasting(aa()))],
            "aa@1.0.0 apply; aa@1.0.0 config",
            "aa|1.0.0 config/complete; aa|2.0.0 config/complete",
        ),
        (
            "which stays when nothing changes, or the block",
            vec![
                one(lasting(two())),
                one(lasting(aa())),
                one(kept(aa())),
                one(aa()),
            ],
            "",
            "aa|1.0.0 config/complete; aa|2.0.0 config/complete",
        ),
        (
            "back to the version that was left behind: an upgrade",
            vec![one(lasting(two())), one(lasting(aa())), one(lasting(two()))],
            "aa@2.0.0 upgrade; aa@2.0.0 config",
            "aa|2.0.0 config/complete",
        ),
        (
            "an upgrade past it takes both entries",
            vec![
                one(lasting(two())),
                one(lasting(aa())),
                one(lasting(pkg("aa", "3.0.0"))),
            ],
            "aa@3.0.0 upgrade; aa@3.0.0 config",
            "aa|3.0.0 config/complete",
        ),
        (
            "an upgrade below it keeps it",
            vec![
                one(lasting(two())),
                one(lasting(aa())),
                one(lasting(pkg("aa", "1.5.0"))),
            ],
            "aa@1.5.0 upgrade; aa@1.5.0 config",
            "aa|1.5.0 config/complete; aa|2.0.0 config/complete",
        ),
        (
            "an uninstall takes what was left behind as well",
            vec![one(lasting(two())), one(lasting(aa())), one(going(aa()))],
            "aa@1.0.0 uninstall; aa@2.0.0 uninstall",
            "",
        ),
        (
            "a downgrade with enabled: true uninstalls, as without the block",
            vec![one(kept(two())), one(kept(aa()))],
            "aa@2.0.0 uninstall; aa@1.0.0 apply; aa@1.0.0 config",
            "aa|1.0.0 config/complete",
        ),
    ] {
        let (log, entries) = run(&specs);
        assert_eq!((log.as_str(), entries.as_str()), (ran, left), "{name}");
    }
}
