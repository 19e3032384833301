//! Agents: one effect at a time, with the journal written before each, as `nodeagent` does it. What may be done about a
//! lease is asked of the shipped rules.

use skyhook_crds::lease::protocol::AgentDuty;
use skyhook_crds::lease::{DrainState, Phase};

use super::state::{Content, Host, Journal, Lease, Scope, State, Step, UNINSTALLS};
use super::{Config, Fault, Mutation, rules};

/// What an agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Its watch brings the lease as it is now.
    Sees,
    Accepts,
    AcceptAnswerLost,
    /// Reconciles journal and record, and takes the lease's revision into the journal.
    Begins,
    Reports,
    /// The report was given up, and arrives later.
    ReportsLate,
    /// Writes `Running` over `Drained`.
    AsksToRun,
    RunningAnswerLost,
    /// Journals the step that comes next. A disruptive one only after a look at the lease.
    Intends(Step),
    Starts,
    /// Journals how a step ended.
    Collects,
    Ends(Phase),
    /// Dies and starts anew: it has its journal, and what runs on the host goes on.
    Restarts,
}

impl Act {
    pub(crate) const fn fault(self) -> Option<Fault> {
        match self {
            Self::Sees
            | Self::Accepts
            | Self::Begins
            | Self::Reports
            | Self::AsksToRun
            | Self::Intends(_)
            | Self::Starts
            | Self::Collects
            | Self::Ends(_) => None,
            Self::AcceptAnswerLost | Self::RunningAnswerLost => Some(Fault::ResponseLost),
            Self::ReportsLate => Some(Fault::Late),
            Self::Restarts => Some(Fault::AgentCrash),
        }
    }
}

/// Offers what the agent of a node can do.
pub(crate) fn acts(config: &Config, state: &State, n: usize, offer: &mut dyn FnMut(Act)) {
    let host = &state.hosts[n];
    if !host.up {
        return;
    }
    if !host.fresh {
        offer(Act::Sees);
    }
    if host.seen.is_some() || host.journal.doing.is_some() {
        offer(Act::Restarts);
    }
    if host.has_result() {
        offer(Act::Collects);
    }
    if let Some(seen) = &host.seen {
        with_lease(config, state, n, seen, offer);
    }
}

fn with_lease(config: &Config, state: &State, n: usize, seen: &Lease, offer: &mut dyn FnMut(Act)) {
    let host = &state.hosts[n];
    let duty = duty(config, host, seen);
    match duty {
        AgentDuty::Accept => {
            if host.is_guarded(state, n, seen, config.lacks(Mutation::AcceptUnguarded)) {
                offer(Act::Accepts);
                offer(Act::AcceptAnswerLost);
            }
            return;
        }
        AgentDuty::Ignore(_) => return,
        AgentDuty::Work | AgentDuty::Hold | AgentDuty::Stop(_) | AgentDuty::Finished => {}
    }
    if host.journal.lease != seen.uid {
        let idle = host.scope == Scope::Empty || config.lacks(Mutation::StepUnawaited);
        // The result of a machine that this one took the place of says nothing about this one.
        let taken_over = rules::is_of_another_machine(seen, host.machine)
            && !config.lacks(Mutation::ForeignResultStands);
        if (duty != AgentDuty::Finished || taken_over) && idle {
            offer(Act::Begins);
        }
        return;
    }
    let live = state.leases[n];
    let by_uid = config.lacks(Mutation::ReportUnguarded) || config.lacks(Mutation::ReportByName);
    let guarded = host.is_guarded(state, n, seen, by_uid);
    if live.is_some_and(|live| {
        let mut reported = live;
        reported.take_status(&host.report(config, seen));
        guarded && live.uid == seen.uid && reported != live
    }) {
        offer(Act::Reports);
        if state.late.is_none() {
            offer(Act::ReportsLate);
        }
    }
    if host.journal.ended.is_none() && duty != AgentDuty::Finished {
        works(config, state, n, seen, duty, offer);
    }
}

fn works(
    config: &Config,
    state: &State,
    n: usize,
    seen: &Lease,
    duty: AgentDuty,
    offer: &mut dyn FnMut(Act),
) {
    let host = &state.hosts[n];
    let journal = &host.journal;
    if let Some((step, boot)) = journal.doing {
        let unread = config.lacks(Mutation::ResultUnread) && host.has_result();
        if host.scope == Scope::Empty || unread {
            match (duty, step) {
                (AgentDuty::Stop(_), _) => offer(Act::Ends(Phase::Stopped)),
                (AgentDuty::Work, Step::Quiet) => offer(Act::Starts),
                (AgentDuty::Work, Step::Disruptive) if boot == host.boot => offer(Act::Starts),
                _ => {}
            }
        }
        return;
    }
    let next = journal.has.unwrap_or_default().next(journal.revision);
    match (duty, next) {
        (AgentDuty::Stop(_), _) => offer(Act::Ends(Phase::Stopped)),
        (AgentDuty::Work, None) => offer(Act::Ends(Phase::Complete)),
        (AgentDuty::Work, Some(Step::Quiet)) => offer(Act::Intends(Step::Quiet)),
        (AgentDuty::Work, Some(Step::Disruptive)) => {
            let drained = rules::judge(seen, host.node_uid).may_run_disruptive;
            if journal.permit || (drained && config.lacks(Mutation::RunningUnwritten)) {
                let stands = state.leases[n].is_some_and(|live| live.uid == journal.lease);
                if stands || config.lacks(Mutation::InterruptUnlooked) {
                    offer(Act::Intends(Step::Disruptive));
                }
            } else if drained
                && host.is_guarded(state, n, seen, config.lacks(Mutation::RunningUnguarded))
            {
                offer(Act::AsksToRun);
                offer(Act::RunningAnswerLost);
            }
        }
        _ => {}
    }
}

/// The shipped rule, asked for the Node UID that the agent knows.
fn duty(config: &Config, host: &Host, seen: &Lease) -> AgentDuty {
    let mut lease = *seen;
    if config.lacks(Mutation::NodeUidIgnored) {
        lease.node_uid = host.node_uid;
    }
    rules::judge(&lease, host.node_uid).duty
}

impl Host {
    fn has_result(&self) -> bool {
        match (self.journal.doing, self.scope) {
            (Some((doing, _)), Scope::Succeeded(step) | Scope::Failed(step)) => doing == step,
            _ => false,
        }
    }

    /// Whether a write over the lease that was seen goes through.
    fn is_guarded(&self, state: &State, n: usize, seen: &Lease, by_uid: bool) -> bool {
        self.fresh || (by_uid && state.leases[n].is_some_and(|live| live.uid == seen.uid))
    }

    /// The status that the agent reports for the lease in its journal.
    fn report(&self, config: &Config, seen: &Lease) -> Lease {
        let journal = &self.journal;
        let has = journal.has.unwrap_or_default();
        let next = has.next(journal.revision);
        let phase = match (journal.ended, next) {
            (Some(phase), _) => phase,
            (None, _) if journal.failed && config.lacks(Mutation::ErroringHidesRunning) => {
                Phase::Erroring
            }
            (None, _) if journal.permit => Phase::Running,
            (None, _) if journal.failed => Phase::Erroring,
            (None, Some(Step::Disruptive)) => Phase::AwaitingDrain,
            (None, Some(Step::Quiet) | None) => Phase::Preparing,
        };
        let stale_boot = config.lacks(Mutation::BootUnrefreshed) && journal.ended.is_some();
        Lease {
            phase: Some(phase),
            needs_drain: next.is_some() && config.interrupts,
            boot: if stale_boot { seen.boot } else { self.boot },
            machine: self.machine,
            packages: has,
            ..*seen
        }
    }
}

/// Does it, and, where steps are not told apart, everything that follows from it on the host.
pub(crate) fn act(config: &Config, state: &mut State, n: usize, act: Act) {
    perform(config, state, n, act);
    if config.fine_host || act.fault().is_some() {
        return;
    }
    loop {
        let mut next = None;
        acts(config, state, n, &mut |act| {
            let follows = match act {
                Act::Begins
                | Act::Collects
                | Act::Intends(Step::Quiet)
                | Act::Ends(_)
                | Act::Reports => true,
                Act::Sees
                | Act::Accepts
                | Act::AcceptAnswerLost
                | Act::ReportsLate
                | Act::AsksToRun
                | Act::RunningAnswerLost
                | Act::Intends(Step::Disruptive)
                | Act::Starts
                | Act::Restarts => false,
            };
            next = next.or_else(|| follows.then_some(act));
        });
        let Some(next) = next else { return };
        perform(config, state, n, next);
    }
}

fn perform(config: &Config, state: &mut State, n: usize, act: Act) {
    match act {
        Act::Sees => sees(state, n),
        Act::Accepts => writes_phase(config, state, n, Phase::Accepted, true),
        Act::AcceptAnswerLost => writes_phase(config, state, n, Phase::Accepted, false),
        Act::Begins => begins(config, state, n),
        Act::Reports | Act::ReportsLate => {
            let host = &state.hosts[n];
            let Some(seen) = host.seen else { return };
            let report = host.report(config, &seen);
            if act == Act::ReportsLate {
                state.late = Some(super::state::Late::Report {
                    node: n as u8,
                    lease: report,
                });
            } else {
                state.report(config, n, &report);
                sees(state, n);
            }
        }
        Act::AsksToRun => {
            writes_phase(config, state, n, Phase::Running, true);
            state.hosts[n].journal.permit = true;
        }
        Act::RunningAnswerLost => writes_phase(config, state, n, Phase::Running, false),
        Act::Intends(step) => intends(config, state, n, step),
        Act::Starts => starts(config, state, n),
        Act::Collects => collects(config, state, n),
        Act::Ends(phase) => {
            let journal = &mut state.hosts[n].journal;
            journal.doing = None;
            journal.ended = Some(phase);
        }
        Act::Restarts => restarts(config, state, n),
    }
}

fn sees(state: &mut State, n: usize) {
    let host = &mut state.hosts[n];
    host.seen = state.leases[n];
    host.node_uid = state.nodes[n].uid;
    host.fresh = true;
    // The write went through, though its answer was lost.
    if let Some(seen) = host.seen.filter(|seen| seen.uid == host.journal.lease)
        && seen.phase == Some(Phase::Running)
        && seen.drain == DrainState::Drained
    {
        host.journal.permit = true;
    }
}

fn writes_phase(config: &Config, state: &mut State, n: usize, phase: Phase, answered: bool) {
    let (boot, machine) = (state.hosts[n].boot, state.hosts[n].machine);
    state.write_lease(config, n, |lease| {
        lease.phase = Some(phase);
        lease.boot = boot;
        lease.machine = machine;
    });
    if answered {
        sees(state, n);
    }
}

/// Who wins when record and journal differ.
fn begins(config: &Config, state: &mut State, n: usize) {
    let host = &mut state.hosts[n];
    let Some(seen) = host.seen else { return };
    let other = rules::is_of_another_machine(&seen, host.machine);
    let has = match (host.journal.has, seen.result) {
        _ if other && !config.lacks(Mutation::MachineIgnored) => Content::NOTHING,
        (Some(journal), _) if config.lacks(Mutation::JournalAlwaysWins) => journal,
        (Some(journal), None) if !config.lacks(Mutation::RecordAlwaysWins) => journal,
        (Some(_) | None, _) => seen.installed,
    };
    host.journal = Journal {
        lease: seen.uid,
        revision: seen.revision,
        has: Some(has),
        ..Journal::default()
    };
    if seen.phase == Some(Phase::Running) && seen.drain == DrainState::Drained {
        host.journal.permit = true;
    }
    if seen.has_ended() {
        host.journal.ended = Some(Phase::Stopped);
    }
}

fn intends(config: &Config, state: &mut State, n: usize, step: Step) {
    if step == Step::Disruptive {
        let (host, node, ghost) = (&state.hosts[n], &state.nodes[n], &state.ghosts[n]);
        let granted = state.leases[n].is_some_and(|live| {
            live.uid == host.journal.lease
                && live.drain == DrainState::Drained
                && live.phase == Some(Phase::Running)
        });
        let cordoned = node.unschedulable || ghost.admin_uncordon;
        state.broken.undrained |= !granted || !(cordoned || ghost.cut_off);
    }
    let host = &mut state.hosts[n];
    host.journal.failed = false;
    host.journal.doing = Some((step, host.boot));
    let unaware = [Mutation::ActBeforeJournal, Mutation::StepUnawaited];
    if !config.fine_host || unaware.into_iter().any(|rule| config.lacks(rule)) {
        starts(config, state, n);
    }
}

fn starts(config: &Config, state: &mut State, n: usize) {
    let Some((step, _)) = state.hosts[n].journal.doing else {
        return;
    };
    run(state, n, step);
    let goes_down = config.reboots && step == Step::Disruptive;
    if !config.fine_host && !goes_down {
        super::cluster::act(config, state, super::cluster::Act::StepSucceeds(n as u8));
        collects(config, state, n);
    }
}

fn run(state: &mut State, n: usize, step: Step) {
    let host = &mut state.hosts[n];
    let revision = host.journal.revision;
    state.broken.two_steps |= matches!(host.scope, Scope::Running(_));
    let finished = match step {
        Step::Quiet => {
            [Content::begun(revision), Content::complete(revision)].contains(&host.content)
        }
        Step::Disruptive => host.content == Content::complete(revision),
    };
    // An uninstall may be called off.
    let newer = host
        .content
        .revision()
        .is_some_and(|there| there > revision && there != UNINSTALLS);
    state.broken.rolled_back |= newer && !state.ghosts[n].rerun_asked;
    state.broken.run_again |= finished && !state.ghosts[n].rerun_asked;
    host.scope = Scope::Running(step);
    if step == Step::Quiet {
        state.ghosts[n].unobeyed = false;
    }
}

fn collects(config: &Config, state: &mut State, n: usize) {
    let host = &mut state.hosts[n];
    match host.scope {
        Scope::Succeeded(step) => {
            let had = host.journal.has.unwrap_or_default();
            host.journal.has = Some(config.after(had, step, host.journal.revision));
        }
        Scope::Failed(_) => host.journal.failed = true,
        Scope::Empty | Scope::Running(_) => return,
    }
    host.journal.doing = None;
    host.scope = Scope::Empty;
}

fn restarts(config: &Config, state: &mut State, n: usize) {
    let host = &mut state.hosts[n];
    host.seen = None;
    host.fresh = false;
    if config.lacks(Mutation::ActBeforeJournal) && host.scope != Scope::Empty {
        host.journal.doing = None;
    }
    // Nobody knows whether an interrupt was begun: it is looked at and done again.
    if let (Some((Step::Disruptive, boot)), Scope::Empty) = (host.journal.doing, host.scope)
        && boot == host.boot
    {
        host.journal.doing = None;
    }
}
