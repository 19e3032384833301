//! The lease protocol, model-checked: no rule is broken and every run ends complete, and each rule that is switched off
//! is missed. `skyhook_tests::model` says what is modelled.

use std::collections::BTreeSet;

use skyhook_integration::skip::aloud;
use skyhook_tests::model::{Config, Fault, Mutation, check};

const fn one(name: &'static str, nodes: usize) -> Config {
    Config::new(name, nodes, 1).one_coordinator()
}

const fn two(name: &'static str, nodes: usize) -> Config {
    Config::new(name, nodes, 1)
}

/// What CI explores to the end.
fn configurations() -> Vec<Config> {
    vec![
        two("grants", 2).quiet(),
        two("one node", 1)
            .fault(Fault::AdminCordoned, 1)
            .fault(Fault::AdminUncordoned, 1),
        two("edit", 1).fault(Fault::RecordEdited, 1),
        two("late report", 1)
            .fine()
            .fault(Fault::Late, 1)
            .fault(Fault::PodAppeared, 1),
        one("three nodes", 3),
        one("spec", 2)
            .adopted()
            .fault(Fault::SpecChanged, 1)
            .fault(Fault::RecordEdited, 1),
        one("delete", 2)
            .fault(Fault::SkyhookDeleted, 1)
            .fault(Fault::AgentCrash, 1),
        one("uninstall", 1)
            .uninstalls()
            .fault(Fault::SpecChanged, 2)
            .fault(Fault::SkyhookDeleted, 1),
        one("uninstalling delete", 2)
            .uninstalls()
            .adopted()
            .fault(Fault::SkyhookDeleted, 1)
            .fault(Fault::AgentCrash, 1),
        one("uninstalling host", 1)
            .uninstalls()
            .adopted()
            .fine()
            .reboots()
            .fault(Fault::SkyhookDeleted, 1)
            .fault(Fault::PowerLoss, 1)
            .fault(Fault::StepFailed, 1),
        one("disable", 2).fault(Fault::SkyhookDisabled, 1),
        one("pause", 2)
            .fault(Fault::SkyhookPaused, 1)
            .fault(Fault::PodAppeared, 1),
        one("replace", 2).fault(Fault::NodeReplaced, 1),
        one("reregister", 1)
            .fine()
            .fault(Fault::NodeReregistered, 1)
            .fault(Fault::StepFailed, 1),
        one("swap", 1)
            .fault(Fault::MachineSwapped, 1)
            .fault(Fault::SkyhookDisabled, 1),
        one("pods", 2)
            .fault(Fault::PodAppeared, 1)
            .fault(Fault::ResponseLost, 1),
        one("leases", 1)
            .fault(Fault::LeaseDeleted, 1)
            .fault(Fault::LeaseForced, 1),
        one("timeouts", 2)
            .fault(Fault::AcceptTimedOut, 1)
            .fault(Fault::CoordinatorCrash, 1)
            .fault(Fault::DeletedHalf, 1),
        one("host", 1)
            .fine()
            .fault(Fault::AgentCrash, 2)
            .fault(Fault::PowerLoss, 1)
            .fault(Fault::StepFailed, 1),
        one("reboots", 2).reboots().fault(Fault::PowerLoss, 1),
    ]
}

/// What `make model` adds.
fn larger() -> Vec<Config> {
    vec![
        two("grants in any order", 2).quiet().any_order(),
        two("late create", 2)
            .quiet()
            .fault(Fault::Late, 1)
            .fault(Fault::Repeated, 1),
        two("watch broken", 2).quiet().fault(Fault::WatchBroken, 1),
        two("crash", 2)
            .quiet()
            .fault(Fault::CoordinatorCrash, 1)
            .fault(Fault::AcceptTimedOut, 1),
        two("two spec", 1).adopted().fault(Fault::SpecChanged, 1),
        two("two disable", 1).fault(Fault::SkyhookDisabled, 1),
        two("two pause", 1)
            .fine()
            .fault(Fault::SkyhookPaused, 1)
            .fault(Fault::AdminUncordoned, 1)
            .fault(Fault::PodAppeared, 1),
        two("pause and delete", 1)
            .fault(Fault::SkyhookPaused, 2)
            .fault(Fault::SkyhookDeleted, 1),
        two("two delete", 1)
            .fault(Fault::SkyhookDeleted, 1)
            .fault(Fault::LeaseDeleted, 1),
        two("two replace", 1)
            .fault(Fault::NodeReplaced, 1)
            .fault(Fault::CoordinatorCrash, 1),
        two("two reregister", 1)
            .fine()
            .fault(Fault::NodeReregistered, 1),
        two("two uninstalls", 1)
            .uninstalls()
            .adopted()
            .fault(Fault::SkyhookDeleted, 1)
            .fault(Fault::SpecChanged, 1),
        one("uninstall and pause", 1)
            .uninstalls()
            .fine()
            .fault(Fault::SkyhookDeleted, 1)
            .fault(Fault::SkyhookPaused, 1)
            .fault(Fault::AgentCrash, 1)
            .fault(Fault::CoordinatorCrash, 1),
        one("uninstall of two", 2)
            .uninstalls()
            .adopted()
            .fault(Fault::SpecChanged, 2)
            .fault(Fault::SkyhookDeleted, 1),
        one("three nodes in any order", 3)
            .any_order()
            .fault(Fault::RecordEdited, 1),
        one("two hosts", 2)
            .fine()
            .reboots()
            .fault(Fault::AgentCrash, 1)
            .fault(Fault::PowerLoss, 1),
        one("swap and spec", 2)
            .fault(Fault::MachineSwapped, 1)
            .fault(Fault::SpecChanged, 1),
    ]
}

fn all_hold(configurations: Vec<Config>) {
    let mut failed = BTreeSet::new();
    let mut total = 0;
    for config in configurations {
        let report = check::check(&config, None);
        println!("{report}");
        total += report.states;
        if report.broken.is_some() {
            failed.insert(config.name);
        }
    }
    aloud(&format!("model: {total} states in all"));
    assert!(failed.is_empty(), "broken in {failed:?}");
}

#[test]
fn the_protocol_holds() {
    all_hold(configurations());
}

/// `MODEL_FROM=n` begins with the n-th, counted from 0.
#[test]
#[ignore = "twenty million states: make model"]
#[expect(
    clippy::disallowed_methods,
    reason = "where to begin comes from the environment"
)]
fn the_protocol_holds_in_larger_models() {
    let from = std::env::var("MODEL_FROM").ok();
    let from = from.and_then(|from| from.parse().ok()).unwrap_or(0);
    all_hold(larger().into_iter().skip(from).collect());
}

const BUDGET: &str = "granted leases fit the budget";
const INTERRUPTED: &str = "interrupted hosts fit the budget";
const DRAINED: &str = "nothing disruptive without Drained for that lease";
const ONE_STEP: &str = "never two steps at once on a host";
const ONCE: &str = "a finished step is not run again";
const EDIT: &str = "an edit is not written over";
const HELD: &str = "an accepted lease stays until its result is on the Node";
const CORDON: &str = "an administrator's cordon stays";
const ROLLED_BACK: &str = "a replaced revision is not brought back";
const RECORD: &str = "a record says what is on the host";
const UNINSTALLED: &str = skyhook_tests::model::UNINSTALLED;
const STUCK: &str = check::STUCK;
/// Nothing shows: the rule saves work, or another one stands behind it.
const NOTHING: &str = "nothing";

/// Each rule, where its absence shows, and what it shows as.
#[expect(clippy::too_many_lines, reason = "a table")]
fn rules() -> Vec<(Mutation, Config, &'static str)> {
    use Mutation as M;
    vec![
        (
            M::OldRevisionGranted,
            two("", 1).adopted().fault(Fault::SpecChanged, 1),
            ROLLED_BACK,
        ),
        (M::GrantFromResponse, two("", 2).quiet().any_order(), BUDGET),
        (
            M::UngrantedUncounted,
            two("", 2).quiet().any_order(),
            BUDGET,
        ),
        (
            M::CreatingUncounted,
            one("", 2).quiet().any_order(),
            NOTHING,
        ),
        (
            M::GrantInMidList,
            two("", 2).quiet().any_order().fault(Fault::WatchBroken, 1),
            BUDGET,
        ),
        (
            M::GrantUnstamped,
            one("", 1)
                .adopted()
                .fault(Fault::SpecChanged, 1)
                .fault(Fault::RecordEdited, 1),
            EDIT,
        ),
        (
            M::StampFromCache,
            two("", 1).adopted().fault(Fault::SpecChanged, 1),
            STUCK,
        ),
        (
            M::InstalledUnchecked,
            one("", 1)
                .adopted()
                .fault(Fault::SpecChanged, 1)
                .fault(Fault::RecordEdited, 1),
            EDIT,
        ),
        (
            M::ResultUnchecked,
            two("", 1).fault(Fault::RecordEdited, 1),
            EDIT,
        ),
        (M::GrantByApply, two("", 2).quiet().any_order(), BUDGET),
        (M::CreateReplaces, two("", 1), HELD),
        (
            M::AcceptUnguarded,
            one("", 1)
                .fine()
                .fault(Fault::AcceptTimedOut, 1)
                .fault(Fault::DeletedHalf, 1),
            NOTHING,
        ),
        (
            M::NodeUidIgnored,
            one("", 1).fault(Fault::NodeReplaced, 1),
            DRAINED,
        ),
        (
            M::WithdrawUnguarded,
            one("", 1).fault(Fault::AcceptTimedOut, 1),
            HELD,
        ),
        (M::DrainedUncordoned, one("", 1), DRAINED),
        (
            M::RetractRunning,
            one("", 1).fine().fault(Fault::PodAppeared, 1),
            DRAINED,
        ),
        (
            M::DrainedOverPause,
            one("", 1).fault(Fault::SkyhookPaused, 1),
            DRAINED,
        ),
        (
            M::CordonForgets,
            one("", 1).fault(Fault::AdminCordoned, 1),
            CORDON,
        ),
        (
            M::RunningUnguarded,
            one("", 1).fine().fault(Fault::PodAppeared, 1),
            DRAINED,
        ),
        (
            M::RunningUnwritten,
            one("", 1).fine().fault(Fault::PodAppeared, 1),
            DRAINED,
        ),
        (
            M::BootUnrefreshed,
            one("", 1).fine().fault(Fault::PowerLoss, 1),
            STUCK,
        ),
        (M::BootUnchecked, one("", 2).reboots(), INTERRUPTED),
        (M::ReleaseUnrecorded, one("", 1), HELD),
        (
            M::ResultOfEarlierLease,
            two("", 1).quiet().fault(Fault::SpecChanged, 1),
            HELD,
        ),
        (M::StampUnmoved, one("", 1), ONCE),
        (
            M::ReportByName,
            two("", 1)
                .fine()
                .fault(Fault::Late, 1)
                .fault(Fault::SpecChanged, 1),
            DRAINED,
        ),
        (
            M::ReportUnguarded,
            one("", 1)
                .fine()
                .fault(Fault::Late, 1)
                .fault(Fault::PodAppeared, 1),
            DRAINED,
        ),
        (
            M::SweepFromCache,
            two("", 1).adopted().fault(Fault::SpecChanged, 1),
            DRAINED,
        ),
        (
            M::NodeUnguarded,
            two("", 1).fault(Fault::RecordEdited, 1),
            EDIT,
        ),
        (
            M::ForeignResultStands,
            one("", 1)
                .fault(Fault::MachineSwapped, 1)
                .fault(Fault::SkyhookDisabled, 1),
            STUCK,
        ),
        (
            M::MachineIgnored,
            one("", 1)
                .fault(Fault::MachineSwapped, 1)
                .fault(Fault::SkyhookDisabled, 1),
            RECORD,
        ),
        (
            M::JournalAlwaysWins,
            one("", 1).fault(Fault::RecordEdited, 1),
            EDIT,
        ),
        (
            M::RecordAlwaysWins,
            one("", 1).fault(Fault::NodeReregistered, 1),
            ONCE,
        ),
        (
            M::EditOverwritten,
            one("", 1).fault(Fault::RecordEdited, 1),
            EDIT,
        ),
        (
            M::StepUnawaited,
            one("", 1).fine().fault(Fault::LeaseForced, 1),
            ONE_STEP,
        ),
        (
            M::ActBeforeJournal,
            one("", 1).fine().fault(Fault::AgentCrash, 1),
            ONE_STEP,
        ),
        (
            M::ResultUnread,
            one("", 1).fine().fault(Fault::AgentCrash, 1),
            ONCE,
        ),
        (
            M::FinalizerEarly,
            one("", 1).fault(Fault::LeaseDeleted, 1),
            HELD,
        ),
        (
            M::GoneFromCache,
            two("", 1).fault(Fault::NodeReregistered, 1),
            HELD,
        ),
        (
            M::InterruptUnlooked,
            one("", 1).fine().fault(Fault::NodeReregistered, 1),
            DRAINED,
        ),
        (
            M::ErroringHidesRunning,
            one("", 1)
                .fine()
                .fault(Fault::StepFailed, 1)
                .fault(Fault::PodAppeared, 1),
            DRAINED,
        ),
        (
            M::DeletedWithPackages,
            one("", 1)
                .uninstalls()
                .adopted()
                .fault(Fault::SkyhookDeleted, 1),
            UNINSTALLED,
        ),
    ]
}

#[test]
fn a_rule_that_is_switched_off_is_missed() {
    let mut wrong = Vec::new();
    for (rule, config, shows_as) in rules() {
        let report = check::check(&config.without(rule), Some(1_500_000));
        let found = report
            .broken
            .as_ref()
            .map_or("nothing", |broken| broken.rule);
        println!(
            "{rule:?}: {found} ({} states, {} steps, {:?})",
            report.states,
            report.broken.as_ref().map_or(0, |b| b.steps.len()),
            report.took
        );
        if found != shows_as {
            wrong.push((rule, found));
        }
    }
    assert_eq!(wrong, []);
    let tried: BTreeSet<Mutation> = rules().into_iter().map(|(rule, ..)| rule).collect();
    assert_eq!(tried, Mutation::ALL.into());
}
