//! The agent of a node: what the core of it decides, behind [`Core`], and what its shell does around that in a world
//! where hosts are faked: journal, lease etiquette, reports.

pub mod machine;
pub mod scripted;
pub mod shell;

use std::collections::BTreeMap;
use std::fmt::Debug;

use skyhook_crds::Stage;
use skyhook_crds::installed::PackageStates;
use skyhook_crds::lease::{InterruptionLease, PackageReport, Phase};
use skyhook_crds::package::Interrupt;
use skyhook_crds::revision::RevisionData;
use skyhook_nodeagent::machine::LeaseView;

/// What a core is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Begun,
    /// The agent was started anew in this boot.
    Restarted {
        boot_id: String,
    },
    LeaseSeen(LeaseView),
    ImageReady {
        key: String,
    },
    StageReady {
        key: String,
        main: usize,
        checks: usize,
    },
    StepExited {
        key: String,
        id: u64,
        succeeded: bool,
    },
    /// The agent died before it had started the step, or the host went down.
    StepNotStarted {
        key: String,
        id: u64,
    },
    RunningWritten,
    RunningRefused,
    LeaseLooked {
        lease: String,
        stands: bool,
    },
    InterruptPrepared,
    Interrupted,
    Ticked,
}

/// What a core asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    PullImage { key: String },
    PrepareStage { key: String },
    RunStep(Step),
    AdoptStep(Step),
    EndStep { id: u64 },
    WriteRunning { resource_version: String },
    LookAtLease,
    PrepareInterrupt,
    Interrupt(Interrupt),
}

/// One step of a package's stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    pub id: u64,
    pub key: String,
    pub stage: Stage,
    pub check: bool,
    pub index: usize,
    /// Which content it uses: a cycle that began with older content ends with that before the new one has its turn.
    pub content: String,
    /// True when the package interrupts the host in this run, so that the step must wait for the drain.
    pub disruptive: bool,
}

/// What a core reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Unset while nothing is decided.
    pub phase: Option<Phase>,
    pub needs_drain: Option<bool>,
    /// Unset by an agent that does not tell.
    pub begun: Option<bool>,
    /// Unset by an agent that knows of none.
    pub packages: Option<BTreeMap<String, PackageReport>>,
}

/// What a lease gives a core to begin with.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a, K> {
    pub lease: &'a InterruptionLease,
    pub data: &'a RevisionData,
    /// What the host's journal knows of the Skyhook.
    pub known: Option<&'a K>,
    pub machine_id: &'a str,
    pub boot_id: &'a str,
    /// The last boot that Skyhook did not ask for, if such a boot undoes packages.
    pub epoch: Option<&'a str>,
    /// No step on this host had a number this high.
    pub next_step: u64,
    /// Unix milliseconds.
    pub now: i64,
}

/// Decides what happens on one host under one lease. It is journalled as it stands after every event.
pub trait Core: Clone + Debug {
    /// What outlives a lease.
    type Known: Clone + Debug;

    /// Takes an accepted lease.
    fn begin(start: &Start<'_, Self::Known>) -> Self;
    /// Takes an event in.
    #[must_use]
    fn step(self, now: i64, event: Event) -> (Self, Vec<Action>);
    /// When it wants to be woken, in Unix milliseconds.
    fn wake_at(&self, now: i64) -> Option<i64>;
    /// True while something runs on the host.
    fn is_busy(&self) -> bool;
    /// What to report.
    fn report(&self) -> Report;
    /// What is on the host, for the lease that comes next.
    fn known(&self) -> Self::Known;
    /// The package states in that.
    fn states(known: &Self::Known) -> PackageStates;
    /// Whether that is everything in a revision, with its configuration, and nothing else.
    fn is_at(known: &Self::Known, data: &RevisionData) -> bool;
    /// The number of the next step.
    fn next_step(&self) -> u64;
    /// True for one that uninstalls what the spec asks it to.
    const UNINSTALLS: bool;
    /// True for one that runs its packages again after a reboot that Skyhook did not ask for.
    const REAPPLIES: bool;
    /// There was such a reboot.
    fn reapply(&mut self, _now: i64) {}
}
