//! Edits of the Node's record, as the command line of NVIDIA Skyhook makes them to run packages again: each is obeyed, and no
//! other package is touched.

use skyhook_crds::installed::{PackageStates, Stamp};
use skyhook_crds::lease::{InterruptionLeaseSpec, Phase, StopReason};
use skyhook_crds::package::InterruptType;
use skyhook_crds::{InterruptionLease, Package, Stage, State};

use super::super::progress::states;
use super::super::reconcile::{Source, of_lease};
use super::super::*;
use super::interrupt;
use super::world::{Spec, World, pkg, run_lines};

const KEY: &str = "aa|1.0.0";

/// aa has an interrupt, bb has none.
fn spec() -> Spec {
    Spec::of(&[
        Package {
            interrupt: interrupt(InterruptType::Service, &["x"]),
            max_attempts: Some(1),
            ..pkg("aa", "1.0.0")
        },
        pkg("bb", "1.0.0"),
    ])
}

/// What an edit does to the entry of aa.
#[derive(Clone, Copy, Debug)]
enum Edit {
    /// `package rerun`, and `reset --package`.
    Remove,
    /// `package rerun --stage`, and `update-state`.
    Set(Stage, State),
    /// `node reset` and `reset`: the whole record is removed.
    RemoveAll,
}

fn edited(mut recorded: PackageStates, edit: Edit) -> PackageStates {
    match edit {
        Edit::Remove => drop(recorded.remove(KEY)),
        Edit::Set(stage, state) => {
            let status = recorded.get_mut(KEY).expect("it is recorded");
            (status.stage, status.state) = (stage, state);
        }
        Edit::RemoveAll => recorded.clear(),
    }
    recorded
}

/// The agent is stopped for the edit, and takes the next lease, with the edited record, at the same revision.
fn obey(world: &mut World, edit: Edit) {
    if world.ended().is_none() {
        world.stop(StopReason::Edited);
        world.settle_stopped();
        assert_eq!(world.ended(), Some(Phase::Stopped));
    }
    let journal = world.progress().entries.clone();
    let installed = edited(states(&journal), edit);
    let stamp = Stamp {
        lease: "lease-1".into(),
        ..Stamp::default()
    };
    let spec = InterruptionLeaseSpec {
        installed,
        stamp: Some(stamp),
        ..InterruptionLeaseSpec::default()
    };
    let lease = InterruptionLease::new("worker-1", spec);
    let (entries, source) = of_lease(Some(&journal), &lease, "", "");
    assert_eq!(source, Source::Node);
    world.log.clear();
    world.run.as_mut().expect("there is one").entries = entries;
    world.lease_at(&self::spec(), "s-1");
}

/// The lines of each package and of interrupts, in their order: packages run side by side.
fn in_order(lines: &str) -> [Vec<&str>; 2] {
    let (bb, aa) = lines.split("; ").partition(|line| line.starts_with("bb"));
    [aa, bb]
}

#[test]
fn each_edit_is_obeyed_whatever_the_package_did() {
    let whole = "aa apply; aa config; service x; aa post-interrupt";
    let all = "aa apply; bb apply; aa config; bb config; service x; aa post-interrupt";
    let again = |stage| Edit::Set(stage, State::InProgress);
    let rows = [
        (Edit::Remove, whole),
        (again(Stage::Apply), whole),
        (
            again(Stage::Config),
            "aa config; service x; aa post-interrupt",
        ),
        (again(Stage::Interrupt), "service x; aa post-interrupt"),
        (again(Stage::PostInterrupt), "aa post-interrupt"),
        // Config is an end as well: it is said that nothing is left to do.
        (Edit::Set(Stage::Config, State::Complete), ""),
        (Edit::RemoveAll, all),
    ];
    type Before = fn(&mut World);
    let kinds: [(&str, Before); 3] = [
        ("complete", World::settle),
        ("at work on post-interrupt", |world| {
            world.settle_while(|world| world.entry(KEY).stage != Stage::PostInterrupt);
            // The step runs to its end after the stop.
            world.settle_until(|effect| matches!(effect, Effect::RunStep { .. }));
        }),
        ("given up", |world| {
            world.fail("aa@1.0.0 post-interrupt", 1);
            world.settle_to_rest();
            assert!(world.entry(KEY).has_given_up());
        }),
    ];
    for (name, before) in kinds {
        for (edit, want) in rows {
            let mut world = World::new();
            world.lease(&spec());
            before(&mut world);
            let other = world.entry("bb|1.0.0").status();
            let recorded = states(&world.progress().entries);
            if edited(recorded.clone(), edit) == recorded {
                // The package is at this very work.
                continue;
            }
            obey(&mut world, edit);
            world.settle();
            assert_eq!(
                in_order(&run_lines(&world.log)),
                in_order(want),
                "{name}, {edit:?}"
            );
            assert_eq!(world.ended(), Some(Phase::Complete), "{name}, {edit:?}");
            assert_eq!(world.entry("bb|1.0.0").status(), other, "{name}, {edit:?}");
        }
    }
}
