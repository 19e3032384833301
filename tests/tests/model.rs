//! The lease protocol, model-checked: no rule is broken and every run ends complete, and each rule that is switched off
//! is missed. `skyhook_tests::model` says what is modelled.

use std::collections::BTreeSet;

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
        two("one node", 1).fault(Fault::AdminCordoned, 1).fault(Fault::AdminUncordoned, 1),
        two("edit", 1).fault(Fault::RecordEdited, 1),
        two("late report", 1).fine().fault(Fault::Late, 1).fault(Fault::PodAppeared, 1),
        one("three nodes", 3),
        one("spec", 2).adopted().fault(Fault::SpecChanged, 1).fault(Fault::RecordEdited, 1),
        one("delete", 2).fault(Fault::SkyhookDeleted, 1).fault(Fault::AgentCrash, 1),
        one("disable", 2).fault(Fault::SkyhookDisabled, 1),
        one("replace", 2).fault(Fault::NodeReplaced, 1),
        one("reregister", 1).fine().fault(Fault::NodeReregistered, 1).fault(Fault::StepFailed, 1),
        one("swap", 1).fault(Fault::MachineSwapped, 1).fault(Fault::SkyhookDisabled, 1),
        one("pods", 2).fault(Fault::PodAppeared, 1).fault(Fault::ResponseLost, 1),
        one("leases", 1).fault(Fault::LeaseDeleted, 1).fault(Fault::LeaseForced, 1),
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
        two("spec, two coordinators", 1).adopted().fault(Fault::SpecChanged, 1),
    ]
}

fn all_hold(configurations: Vec<Config>) {
    let mut failed = BTreeSet::new();
    let mut total = 0;
    for config in configurations {
        let report = check::check(&config);
        println!("{report}");
        total += report.states;
        if report.broken.is_some() {
            failed.insert(config.name);
        }
    }
    println!("{total} states in all");
    assert!(failed.is_empty(), "broken in {failed:?}");
}

#[test]
fn the_protocol_holds() {
    all_hold(configurations());
}

#[test]
#[ignore = "minutes: make model"]
fn the_protocol_holds_in_larger_models() {
    all_hold(larger());
}

/// Each rule, where its absence shows, and what it shows as.
fn rules() -> Vec<(Mutation, Config, &'static str)> {
    use Mutation as M;
    vec![
        (M::OldRevisionGranted, two("", 1).adopted().fault(Fault::SpecChanged, 1), "?"),
        (M::GrantFromResponse, two("", 2).quiet(), "?"),
        (M::UngrantedUncounted, two("", 2).quiet(), "?"),
        (M::CreatingUncounted, two("", 2).quiet(), "?"),
        (M::GrantInMidList, two("", 2).quiet().fault(Fault::WatchBroken, 1), "?"),
        (M::GrantUnstamped, one("", 1), "?"),
        (M::StampFromCache, two("", 1).adopted().fault(Fault::SpecChanged, 1), "?"),
        (M::InstalledUnchecked, one("", 1).adopted().fault(Fault::SpecChanged, 1).fault(Fault::RecordEdited, 1), "?"),
        (M::ResultUnchecked, two("", 1).fault(Fault::RecordEdited, 1), "?"),
        (M::GrantByApply, two("", 2).quiet(), "?"),
        (M::CreateReplaces, two("", 1), "?"),
        (M::AcceptUnguarded, one("", 1).fine().fault(Fault::AcceptTimedOut, 1).fault(Fault::DeletedHalf, 1), "?"),
        (M::NodeUidIgnored, one("", 1).fault(Fault::NodeReplaced, 1), "?"),
        (M::WithdrawUnguarded, one("", 1).fault(Fault::AcceptTimedOut, 1), "?"),
        (M::DrainedUncordoned, one("", 1), "?"),
        (M::RetractRunning, one("", 1).fine().fault(Fault::PodAppeared, 1), "?"),
        (M::CordonForgets, one("", 1).fault(Fault::AdminCordoned, 1), "?"),
        (M::RunningUnguarded, one("", 1).fine().fault(Fault::PodAppeared, 1), "?"),
        (M::RunningUnwritten, one("", 1).fine().fault(Fault::PodAppeared, 1), "?"),
        (M::BootUnrefreshed, one("", 1).fine().fault(Fault::PowerLoss, 1), "?"),
        (M::BootUnchecked, one("", 2).reboots(), "?"),
        (M::ReleaseUnrecorded, one("", 1), "?"),
        (M::ResultOfEarlierLease, two("", 1).quiet().fault(Fault::SpecChanged, 1), "?"),
        (M::StampUnmoved, one("", 1), "?"),
        (M::ReportByName, two("", 1).fine().fault(Fault::Late, 1).fault(Fault::SpecChanged, 1), "?"),
        (M::ReportUnguarded, one("", 1).fine().fault(Fault::Late, 1).fault(Fault::PodAppeared, 1), "?"),
        (M::SweepFromCache, two("", 1).adopted().fault(Fault::SpecChanged, 1), "?"),
        (M::NodeUnguarded, two("", 1).fault(Fault::RecordEdited, 1), "?"),
        (M::ForeignResultStands, one("", 1).fault(Fault::MachineSwapped, 1).fault(Fault::SkyhookDisabled, 1), "?"),
        (M::MachineIgnored, one("", 1).fault(Fault::MachineSwapped, 1).fault(Fault::SkyhookDisabled, 1), "?"),
        (M::JournalAlwaysWins, one("", 1).fault(Fault::RecordEdited, 1), "?"),
        (M::RecordAlwaysWins, one("", 1).fault(Fault::NodeReregistered, 1), "?"),
        (M::EditOverwritten, one("", 1).fault(Fault::RecordEdited, 1), "?"),
        (M::StepUnawaited, one("", 1).fine().fault(Fault::LeaseForced, 1), "?"),
        (M::ActBeforeJournal, one("", 1).fine().fault(Fault::AgentCrash, 1), "?"),
        (M::ResultUnread, one("", 1).fine().fault(Fault::AgentCrash, 1), "?"),
        (M::FinalizerEarly, one("", 1).fault(Fault::LeaseDeleted, 1), "?"),
        (M::GoneFromCache, two("", 1).fault(Fault::NodeReregistered, 1), "?"),
        (M::InterruptUnlooked, one("", 1).fine().fault(Fault::NodeReregistered, 1), "?"),
        (M::ErroringHidesRunning, one("", 1).fine().fault(Fault::StepFailed, 1).fault(Fault::PodAppeared, 1), "?"),
    ]
}

#[test]
fn a_rule_that_is_switched_off_is_missed() {
    let mut wrong = Vec::new();
    for (rule, config, shows_as) in rules() {
        let report = check::check(&config.without(rule));
        let found = report.broken.as_ref().map_or("nothing", |broken| broken.rule);
        println!("{rule:?}: {found} ({} states, {} steps, {:?})", report.states, report.broken.as_ref().map_or(0, |b| b.steps.len()), report.took);
        if found != shows_as {
            wrong.push((rule, found));
        }
    }
    assert_eq!(wrong, []);
    let tried: BTreeSet<Mutation> = rules().into_iter().map(|(rule, ..)| rule).collect();
    assert_eq!(tried, Mutation::ALL.into());
}
