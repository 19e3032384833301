//! A model of the lease protocol, checked with stateright.
//!
//! # What is real
//!
//! - Agents and drains ask [`skyhook_crds::lease::protocol`], about real `InterruptionLease` values ([`rules`]).
//! - Coordinators decide with `skyhook_fleet::plan::plan`, over a real `Index` spelled out from the modelled watches,
//!   and drop what `skyhook_fleet::guard::check` refuses ([`planner`]). One action is one API write.
//!
//! # What is modelled
//!
//! - The API server: UIDs, resource versions as "nobody wrote since", finalizers, deletion in two writes, create refused
//!   while the name is taken, garbage collection by owner.
//! - Up to two coordinators without fencing, each as late as it likes in each of its watches. The lease watch is one
//!   ordered stream that holds back [`Config::queue`] events and breaks beyond; a re-list arrives lease by lease. Copies of
//!   Nodes and of the Skyhook jump from a version to the current one. What only memory knows is lost in a crash.
//! - Agents with a journal on disk, the supervisor's step that lives on without them, and hosts that reboot or lose power.
//!   One package with a quiet step and, unless [`Config::interrupts`] is off, a disruptive one. With [`Config::uninstalls`] it
//!   can be uninstalled: by an edit, which can be called off, and before its Skyhook goes.
//! - What [`Fault`] lists; a configuration says how often each may happen.
//!
//! Left out: time (an agent may be late for its deadline at any moment, a drain never is), several Skyhooks (so a cordon has
//! one owner), pods (an empty node may be declared drained, and a pod may appear), labels, and the order given up
//! after `gracefulShutdown` for an agent that does not stop. An administrator's uncordon followed by a cordon, while the
//! cordon is ours and nobody looks, cannot be told from nothing.
//!
//! # Properties
//!
//! Safety in [`Config::properties`](stateright::Model::properties). Liveness: from every reachable state a complete one is
//! reachable without a further fault ([`explore`]).
//!
//! # Bounds explored
//!
//! `tests/model.rs` has the configurations and prints the states of each. In CI 20 of them with 1 to 3 nodes, budget 1, 1 or
//! 2 coordinators, and up to 4 faults of 21 kinds: 536,933 states, to the end. `make model` adds 17 larger ones.
//! Two rules show nothing when switched off: creates that the watch has not delivered need not count (the grant counts what
//! it delivered; counting saves withdrawals), and the resource version on the accept has the one on the withdrawal behind it.

pub mod agent;
pub mod check;
pub mod cluster;
pub mod coordinator;
pub mod explore;
mod hash;
pub mod mutation;
pub mod planner;
pub mod rules;
pub mod state;

use stateright::{Model, Property};

pub use mutation::Mutation;
pub use state::State;
use state::{COORDINATORS, Content, Host, INSTALLS, Journal, MAX_NODES, Node, Scope, Step};

/// What breaks when a Skyhook goes before its packages.
pub const UNINSTALLED: &str = "a deleted Skyhook goes after what can be uninstalled";

/// What may go wrong, or be done from outside; a configuration says how often at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    CoordinatorCrash,
    AgentCrash,
    /// A host loses power.
    PowerLoss,
    /// A write is applied, and its response is lost.
    ResponseLost,
    /// A lease is deleted, and the coordinator dies before it takes the finalizer off.
    DeletedHalf,
    /// A write arrives long after it was given up.
    Late,
    /// A late write arrives twice.
    Repeated,
    /// A lease watch breaks.
    WatchBroken,
    /// A Node is deleted and comes back under its name, with another machine.
    NodeReplaced,
    /// A Node is deleted and registered anew by the same machine.
    NodeReregistered,
    /// Another machine takes over the Node object.
    MachineSwapped,
    SpecChanged,
    SkyhookDeleted,
    /// The Skyhook is disabled, and enabled again.
    SkyhookDisabled,
    /// The Skyhook is paused, and goes on.
    SkyhookPaused,
    RecordEdited,
    /// A pod appeared on a drained node.
    PodAppeared,
    AdminCordoned,
    AdminUncordoned,
    LeaseDeleted,
    LeaseForced,
    AcceptTimedOut,
    StepFailed,
}

impl Fault {
    pub const COUNT: usize = 23;

    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::CoordinatorCrash,
        Self::AgentCrash,
        Self::PowerLoss,
        Self::ResponseLost,
        Self::DeletedHalf,
        Self::Late,
        Self::Repeated,
        Self::WatchBroken,
        Self::NodeReplaced,
        Self::NodeReregistered,
        Self::MachineSwapped,
        Self::SpecChanged,
        Self::SkyhookDeleted,
        Self::SkyhookDisabled,
        Self::SkyhookPaused,
        Self::RecordEdited,
        Self::PodAppeared,
        Self::AdminCordoned,
        Self::AdminUncordoned,
        Self::LeaseDeleted,
        Self::LeaseForced,
        Self::AcceptTimedOut,
        Self::StepFailed,
    ];
}

/// Safety rules that only a transition can break; the others are read off the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broken {
    /// A host was interrupted without a lease that says Drained and Running, or with its cordon gone.
    pub undrained: bool,
    pub two_steps: bool,
    pub run_again: bool,
    pub edit_overwritten: bool,
    /// A lease vanished while its agent held it, by nobody's order.
    pub lost_lease: bool,
    /// A host was taken back to a revision that had been replaced.
    pub rolled_back: bool,
}

/// How large the model is, what may go wrong in it, and which rule is broken.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub name: &'static str,
    pub nodes: usize,
    pub budget: u8,
    pub coordinators: usize,
    /// Lease events that a watch holds back before it breaks.
    pub queue: usize,
    /// Steps of an agent are split at every effect; otherwise a step runs and ends at once.
    pub fine_host: bool,
    /// Any node may be the next, not the first by name alone.
    pub any_order: bool,
    /// The package has a disruptive step.
    pub interrupts: bool,
    /// That step reboots the host.
    pub reboots: bool,
    /// The nodes carry a complete record of the first revision by another implementation.
    pub adopted: bool,
    /// The package can be uninstalled: [`Fault::SpecChanged`] asks for that, and once more calls it off.
    pub uninstalls: bool,
    pub faults: [u8; Fault::COUNT],
    pub mutation: Option<Mutation>,
}

impl Config {
    /// A roll-out without faults.
    #[must_use]
    pub const fn new(name: &'static str, nodes: usize, budget: u8) -> Self {
        Self {
            name,
            nodes,
            budget,
            coordinators: COORDINATORS,
            queue: 2,
            fine_host: false,
            any_order: false,
            interrupts: true,
            reboots: false,
            adopted: false,
            uninstalls: false,
            faults: [0; Fault::COUNT],
            mutation: None,
        }
    }

    /// Allows a fault, this often.
    #[must_use]
    pub const fn fault(mut self, fault: Fault, times: u8) -> Self {
        self.faults[fault as usize] = times;
        self
    }

    #[must_use]
    pub const fn one_coordinator(mut self) -> Self {
        self.coordinators = 1;
        self
    }

    #[must_use]
    pub const fn fine(mut self) -> Self {
        self.fine_host = true;
        self
    }

    #[must_use]
    pub const fn any_order(mut self) -> Self {
        self.any_order = true;
        self
    }

    #[must_use]
    pub const fn quiet(mut self) -> Self {
        self.interrupts = false;
        self
    }

    #[must_use]
    pub const fn reboots(mut self) -> Self {
        self.reboots = true;
        self
    }

    #[must_use]
    pub const fn adopted(mut self) -> Self {
        self.adopted = true;
        self
    }

    #[must_use]
    pub const fn uninstalls(mut self) -> Self {
        self.uninstalls = true;
        self
    }

    #[must_use]
    pub const fn without(mut self, mutation: Mutation) -> Self {
        self.mutation = Some(mutation);
        self
    }

    /// The faults that may happen, with how often.
    #[must_use]
    pub fn faults(&self) -> String {
        let allowed = Fault::ALL
            .into_iter()
            .filter(|fault| self.faults[*fault as usize] > 0);
        allowed.fold(String::new(), |text, fault| {
            format!("{text}, {} {fault:?}", self.faults[fault as usize])
        })
    }

    pub(crate) fn lacks(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// One transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Coordinator(u8, coordinator::Act),
    Agent(u8, agent::Act),
    /// Something that happens to the cluster from outside.
    Cluster(cluster::Act),
}

impl Action {
    /// The fault that the action is, if it is one.
    #[must_use]
    pub const fn fault(&self) -> Option<Fault> {
        match self {
            Self::Coordinator(_, act) => act.fault(),
            Self::Agent(_, act) => act.fault(),
            Self::Cluster(act) => act.fault(),
        }
    }
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            left: self.faults,
            ..State::default()
        };
        if self.uninstalls {
            state.skyhook.revision = INSTALLS;
        }
        for node in 0..self.nodes {
            let content = if self.adopted {
                state.skyhook.wants()
            } else {
                Content::NOTHING
            };
            state.nodes[node] = Node {
                uid: 1,
                ready: true,
                boot: 1,
                machine: 1,
                record: content,
                ..Node::default()
            };
            state.hosts[node] = Host {
                machine: 1,
                boot: 1,
                up: true,
                content,
                node_uid: 1,
                fresh: true,
                journal: Journal::default(),
                ..Host::default()
            };
        }
        for coordinator in &mut state.coordinators {
            coordinator.nodes = state.nodes;
            coordinator.fresh = [true; MAX_NODES];
            coordinator.skyhook = state.skyhook;
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for coordinator in 0..self.coordinators {
            coordinator::acts(self, state, coordinator, &mut |act| {
                actions.push(Action::Coordinator(coordinator as u8, act));
            });
        }
        for node in 0..self.nodes {
            agent::acts(self, state, node, &mut |act| {
                actions.push(Action::Agent(node as u8, act));
            });
        }
        cluster::acts(self, state, &mut |act| actions.push(Action::Cluster(act)));
        actions.retain(|action| action.fault().is_none_or(|f| state.left[f as usize] > 0));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        if let Some(fault) = action.fault() {
            state.left[fault as usize] -= 1;
        }
        match action {
            Action::Coordinator(who, act) => coordinator::act(self, &mut state, who as usize, act),
            Action::Agent(node, act) => agent::act(self, &mut state, node as usize, act),
            Action::Cluster(act) => cluster::act(self, &mut state, act),
        }
        state.normalise(self.nodes, self.coordinators);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("granted leases fit the budget", Self::fits_budget),
            Property::always(
                "interrupted hosts fit the budget",
                Self::interrupts_fit_budget,
            ),
            Property::always("hosts at work fit the budget", Self::work_fits_budget),
            Property::always(
                "nothing disruptive without Drained for that lease",
                |_, s: &State| !s.broken.undrained,
            ),
            Property::always("never two steps at once on a host", |_, s: &State| {
                !s.broken.two_steps
            }),
            Property::always("a finished step is not run again", |_, s: &State| {
                !s.broken.run_again
            }),
            Property::always("an edit is not written over", |_, s: &State| {
                !s.broken.edit_overwritten
            }),
            Property::always(
                "an accepted lease stays until its result is on the Node",
                |_, s: &State| !s.broken.lost_lease,
            ),
            Property::always("a replaced revision is not brought back", |_, s: &State| {
                !s.broken.rolled_back
            }),
            Property::always("an administrator's cordon stays", Self::admin_cordons_stay),
            Property::always("a record says what is on the host", Self::records_are_true),
            Property::always(UNINSTALLED, Self::is_uninstalled_when_gone),
            Property::sometimes("everything is complete", Self::is_complete),
        ]
    }
}

impl Config {
    fn fits_budget(&self, state: &State) -> bool {
        let granted = state
            .leases
            .iter()
            .flatten()
            .filter(|lease| lease.granted)
            .count();
        granted <= self.budget.into()
    }

    fn interrupts_fit_budget(&self, state: &State) -> bool {
        let interrupted = (0..self.nodes).filter(|n| {
            let (host, ghost) = (&state.hosts[*n], &state.ghosts[*n]);
            let disrupted = host.scope == Scope::Running(Step::Disruptive);
            !ghost.cut_off && (disrupted || ghost.rebooting)
        });
        interrupted.count() <= self.budget.into()
    }

    fn work_fits_budget(&self, state: &State) -> bool {
        let at_work = (0..self.nodes).filter(|n| {
            !state.ghosts[*n].cut_off && matches!(state.hosts[*n].scope, Scope::Running(_))
        });
        at_work.count() <= self.budget.into()
    }

    fn admin_cordons_stay(&self, state: &State) -> bool {
        (0..self.nodes).all(|n| !state.ghosts[n].admin_cordon || state.nodes[n].unschedulable)
    }

    fn records_are_true(&self, state: &State) -> bool {
        (0..self.nodes).all(|n| {
            let (node, host) = (&state.nodes[n], &state.hosts[n]);
            let result = node
                .mark
                .is_some_and(|m| m.lease != 0 && m.machine == host.machine);
            let ours = node.mark.is_some_and(|m| m.states == Some(node.record));
            let working = state.leases[n].is_some_and(|lease| lease.granted);
            !(result && ours)
                || working
                || node.record != state.skyhook.wants()
                || host.content == node.record
                || state.ghosts[n].edited
        })
    }

    fn is_uninstalled_when_gone(&self, state: &State) -> bool {
        let stays = |n: usize| {
            let (host, ghost) = (&state.hosts[n], &state.ghosts[n]);
            let is_told = !ghost.cut_off && !ghost.rerun_asked;
            is_told && (host.content != Content::NOTHING || host.scope != Scope::Empty)
        };
        !state.skyhook.gone || state.skyhook.revision < INSTALLS || !(0..self.nodes).any(stays)
    }

    /// True when nothing is left to do: every node is complete, and nothing of ours is in the way; or the Skyhook is gone.
    #[must_use]
    pub fn is_complete(&self, state: &State) -> bool {
        let idle = (0..self.nodes).all(|n| {
            let host = &state.hosts[n];
            state.leases[n].is_none()
                && state.nodes[n].cordon.is_none()
                && host.up
                && host.scope == Scope::Empty
        });
        let complete = || {
            let want = state.skyhook.wants();
            (0..self.nodes).all(|n| state.nodes[n].record == want && self.has(state, n, want))
        };
        idle && if state.skyhook.deleting {
            state.skyhook.gone
        } else {
            complete()
        }
    }

    /// What is on a host when a step has ended well.
    pub(crate) fn after(&self, had: Content, step: Step, revision: u8) -> Content {
        match step {
            Step::Quiet if self.interrupts => Content::begun(revision),
            Step::Quiet => Content::complete(revision),
            Step::Disruptive => had.interrupted(revision),
        }
    }

    /// Nobody can tell that a machine took a Node over that carries a complete record and no result of ours.
    fn has(&self, state: &State, node: usize, want: Content) -> bool {
        state.hosts[node].content == want || state.nodes[node].result().is_none()
    }
}
