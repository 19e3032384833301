//! The API server, the kubelets, and everybody outside who may change something.

use skyhook_crds::lease::Phase;

use super::state::{Content, Coordinator, Host, Journal, Late, Lease, Node, Scope, State, Step};
use super::{Config, Fault, Mutation};

/// What happens from outside, or to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The step that runs on a host ends well.
    StepSucceeds(u8),
    StepFails(u8),
    /// A disruptive step takes the machine down.
    GoesDown(u8),
    LosesPower(u8),
    Boots(u8),
    /// The kubelet reports the boot that it runs in, and that the node is Ready.
    KubeletReports(u8),
    /// A lease whose Node is gone is deleted by the garbage collector.
    CollectGarbage(u8),
    /// A write that was given up arrives.
    Arrives,
    ArrivesTwice,
    ReplaceNode(u8),
    ReregisterNode(u8),
    SwapMachine(u8),
    ChangeSpec,
    DeleteSkyhook,
    DisableSkyhook,
    EnableSkyhook,
    PauseSkyhook,
    ResumeSkyhook,
    EditRecord(u8),
    Cordon(u8),
    Uncordon(u8),
    DeleteLease(u8),
    ForceLease(u8),
}

impl Act {
    pub(crate) const fn fault(self) -> Option<Fault> {
        match self {
            Self::StepSucceeds(_)
            | Self::GoesDown(_)
            | Self::Boots(_)
            | Self::KubeletReports(_)
            | Self::CollectGarbage(_)
            | Self::Arrives
            | Self::EnableSkyhook
            | Self::ResumeSkyhook => None,
            Self::StepFails(_) => Some(Fault::StepFailed),
            Self::LosesPower(_) => Some(Fault::PowerLoss),
            Self::ArrivesTwice => Some(Fault::Repeated),
            Self::ReplaceNode(_) => Some(Fault::NodeReplaced),
            Self::ReregisterNode(_) => Some(Fault::NodeReregistered),
            Self::SwapMachine(_) => Some(Fault::MachineSwapped),
            Self::ChangeSpec => Some(Fault::SpecChanged),
            Self::DeleteSkyhook => Some(Fault::SkyhookDeleted),
            Self::DisableSkyhook => Some(Fault::SkyhookDisabled),
            Self::PauseSkyhook => Some(Fault::SkyhookPaused),
            Self::EditRecord(_) => Some(Fault::RecordEdited),
            Self::Cordon(_) => Some(Fault::AdminCordoned),
            Self::Uncordon(_) => Some(Fault::AdminUncordoned),
            Self::DeleteLease(_) => Some(Fault::LeaseDeleted),
            Self::ForceLease(_) => Some(Fault::LeaseForced),
        }
    }
}

/// Offers what can happen now.
pub(crate) fn acts(config: &Config, state: &State, offer: &mut dyn FnMut(Act)) {
    for n in 0..config.nodes {
        host_acts(config, state, n, offer);
        let node = n as u8;
        let lease = state.leases[n];
        if lease.is_some_and(|l| l.node_uid != state.nodes[n].uid && !l.deleting) {
            offer(Act::CollectGarbage(node));
        }
        offer(Act::ReplaceNode(node));
        offer(Act::ReregisterNode(node));
        offer(Act::SwapMachine(node));
        if state.nodes[n].record != Content::NOTHING {
            offer(Act::EditRecord(node));
        }
        if state.nodes[n].unschedulable {
            offer(Act::Uncordon(node));
        } else if state.nodes[n].cordon.is_none() {
            // While the cordon is ours, an uncordon and a cordon in between two looks cannot be told from none.
            offer(Act::Cordon(node));
        }
        if lease.is_some_and(|l| !l.deleting) {
            offer(Act::DeleteLease(node));
        }
        if lease.is_some_and(|l| !l.forced && l.phase.is_some()) {
            offer(Act::ForceLease(node));
        }
    }
    if state.late.is_some() {
        offer(Act::Arrives);
        offer(Act::ArrivesTwice);
    }
    if !state.skyhook.gone && !state.skyhook.deleting {
        if state.skyhook.revision != 1 {
            offer(Act::ChangeSpec);
        }
        offer(Act::DeleteSkyhook);
        offer(if state.skyhook.disabled {
            Act::EnableSkyhook
        } else {
            Act::DisableSkyhook
        });
        offer(if state.skyhook.paused {
            Act::ResumeSkyhook
        } else {
            Act::PauseSkyhook
        });
    }
}

fn host_acts(config: &Config, state: &State, n: usize, offer: &mut dyn FnMut(Act)) {
    let (node, host) = (n as u8, &state.hosts[n]);
    if !host.up {
        return offer(Act::Boots(node));
    }
    if let Scope::Running(step) = host.scope {
        let down = config.reboots && step == Step::Disruptive;
        offer(if down {
            Act::GoesDown(node)
        } else {
            Act::StepSucceeds(node)
        });
        offer(Act::StepFails(node));
    }
    offer(Act::LosesPower(node));
    if state.nodes[n].boot != host.boot {
        offer(Act::KubeletReports(node));
    }
}

/// Makes it happen.
pub(crate) fn act(config: &Config, state: &mut State, act: Act) {
    match act {
        Act::StepSucceeds(n) => step_succeeds(config, state, n.into()),
        Act::StepFails(n) => {
            let host = &mut state.hosts[n as usize];
            if let Scope::Running(step) = host.scope {
                host.scope = Scope::Failed(step);
            }
        }
        Act::GoesDown(n) => {
            step_succeeds(config, state, n.into());
            down(state, n.into());
            state.ghosts[n as usize].rebooting = true;
        }
        Act::LosesPower(n) => down(state, n.into()),
        Act::Boots(n) => boots(config, state, n.into()),
        Act::KubeletReports(n) => {
            let Host { boot, machine, .. } = state.hosts[n as usize];
            state.ghosts[n as usize].rebooting = false;
            state.write_node(n.into(), |node| {
                node.boot = boot;
                node.machine = machine;
                node.ready = true;
            });
        }
        Act::CollectGarbage(n) | Act::DeleteLease(n) => state.delete_lease(config, n.into()),
        Act::Arrives => arrives(config, state, true),
        Act::ArrivesTwice => arrives(config, state, false),
        Act::ReplaceNode(n) => replace(state, n.into(), true),
        Act::ReregisterNode(n) => replace(state, n.into(), false),
        Act::SwapMachine(n) => {
            new_machine(state, n.into());
            let Host { boot, machine, .. } = state.hosts[n as usize];
            state.write_node(n.into(), |node| {
                node.boot = boot;
                node.machine = machine;
            });
        }
        // An uninstall is asked for, or called off.
        Act::ChangeSpec => state.skyhook.revision ^= 1,
        Act::DeleteSkyhook => state.skyhook.deleting = true,
        Act::DisableSkyhook => state.skyhook.disabled = true,
        Act::EnableSkyhook => state.skyhook.disabled = false,
        Act::PauseSkyhook => state.skyhook.paused = true,
        Act::ResumeSkyhook => state.skyhook.paused = false,
        Act::EditRecord(n) => {
            let ghost = &mut state.ghosts[n as usize];
            ghost.edited = true;
            ghost.unobeyed = true;
            ghost.rerun_asked = true;
            state.write_node(n.into(), |node| node.record = Content::NOTHING);
        }
        Act::Cordon(n) => {
            state.ghosts[n as usize].admin_cordon = true;
            state.write_node(n.into(), |node| node.unschedulable = true);
        }
        Act::Uncordon(n) => {
            let ghost = &mut state.ghosts[n as usize];
            ghost.admin_cordon = false;
            ghost.admin_uncordon = true;
            state.write_node(n.into(), |node| node.unschedulable = false);
        }
        Act::ForceLease(n) => {
            let ghost = &mut state.ghosts[n as usize];
            ghost.cut_off = true;
            ghost.rerun_asked = true;
            state.write_lease(config, n.into(), |lease| lease.forced = true);
        }
    }
}

fn step_succeeds(config: &Config, state: &mut State, n: usize) {
    let host = &mut state.hosts[n];
    if let Scope::Running(step) = host.scope {
        let revision = host.journal.revision;
        // An interrupt alone installs nothing.
        if step == Step::Quiet || host.content.awaits_interrupt(revision) {
            host.content = config.after(host.content, step, revision);
        }
        host.scope = Scope::Succeeded(step);
    }
}

fn down(state: &mut State, n: usize) {
    let host = &mut state.hosts[n];
    host.up = false;
    // A result file that was written survives; what ran does not.
    match host.scope {
        Scope::Running(_) => host.scope = Scope::Empty,
        Scope::Empty | Scope::Succeeded(_) | Scope::Failed(_) => {}
    }
    host.seen = None;
    host.fresh = false;
}

/// A new boot ID proves a reboot, whatever caused it; of another interrupt nobody knows, and it is done again.
fn boots(config: &Config, state: &mut State, n: usize) {
    let host = &mut state.hosts[n];
    host.up = true;
    host.boot += 1;
    if let (Some((Step::Disruptive, _)), Scope::Empty) = (host.journal.doing, host.scope) {
        if config.reboots {
            if host.content.awaits_interrupt(host.journal.revision) {
                host.content = host.content.interrupted(host.journal.revision);
            }
            host.scope = Scope::Succeeded(Step::Disruptive);
        } else {
            host.journal.doing = None;
        }
    }
}

fn new_machine(state: &mut State, n: usize) {
    let old = state.hosts[n];
    state.hosts[n] = Host {
        machine: old.machine + 1,
        boot: old.boot + 1,
        up: true,
        journal: Journal::default(),
        ..Host::default()
    };
    state.ghosts[n].rebooting = false;
}

fn replace(state: &mut State, n: usize, machine: bool) {
    if machine {
        new_machine(state, n);
    }
    let uid = state.nodes[n].uid + 1;
    let host = &mut state.hosts[n];
    host.fresh = false;
    let (boot, new) = (host.boot, host.machine);
    let ghost = &mut state.ghosts[n];
    ghost.admin_cordon = false;
    ghost.edited = false;
    ghost.unobeyed = false;
    // What the same machine runs goes on, without a lease.
    ghost.cut_off = !machine;
    state.write_node(n, |node| {
        *node = Node {
            uid,
            ready: true,
            boot,
            machine: new,
            ..Node::default()
        }
    });
}

fn arrives(config: &Config, state: &mut State, last: bool) {
    let Some(late) = state.late else { return };
    if last {
        state.late = None;
    }
    match late {
        Late::Create { node, lease } => {
            state.create_lease(config, node.into(), lease);
        }
        Late::Report { node, lease } => {
            state.report(config, node.into(), &lease);
        }
    }
}

impl State {
    /// Writes a Node: no copy of it is current any more.
    pub(crate) fn write_node(&mut self, n: usize, change: impl FnOnce(&mut Node)) {
        change(&mut self.nodes[n]);
        for coordinator in &mut self.coordinators {
            coordinator.fresh[n] = false;
        }
        if self.nodes[n].uid != self.hosts[n].node_uid {
            self.hosts[n].fresh = false;
        }
    }

    /// Writes a lease that exists.
    pub(crate) fn write_lease(
        &mut self,
        config: &Config,
        n: usize,
        change: impl FnOnce(&mut Lease),
    ) {
        if let Some(lease) = &mut self.leases[n] {
            let before = *lease;
            change(lease);
            if before != *lease {
                self.lease_written(config, n);
            }
        }
    }

    /// Creates a lease, unless there is one. Says whether it did.
    pub(crate) fn create_lease(&mut self, config: &Config, n: usize, lease: Lease) -> bool {
        if self.leases[n].is_some() {
            return false;
        }
        let uid = self.next_uid(n);
        self.leases[n] = Some(Lease { uid, ..lease });
        if lease.installed == self.nodes[n].record {
            self.ghosts[n].edited = false;
        }
        self.lease_written(config, n);
        true
    }

    /// Deletes a lease: its finalizer keeps it.
    pub(crate) fn delete_lease(&mut self, config: &Config, n: usize) {
        self.write_lease(config, n, |lease| lease.deleting = true);
        if config.lacks(Mutation::FinalizerEarly) {
            self.remove_lease(config, n);
        }
    }

    /// The lease and its finalizer go.
    pub(crate) fn remove_lease(&mut self, config: &Config, n: usize) {
        let Some(lease) = self.leases[n].take() else {
            return;
        };
        let node = &self.nodes[n];
        let recorded = node.mark.is_some_and(|mark| mark.lease == lease.uid);
        let held = lease.phase.is_some() && !recorded && !lease.forced;
        self.broken.lost_lease |= held && node.uid == lease.node_uid;
        self.lease_written(config, n);
    }

    /// An agent's report: everything in the status, to the lease with that UID.
    pub(crate) fn report(&mut self, config: &Config, n: usize, report: &Lease) {
        let by_name = config.lacks(Mutation::ReportByName);
        if self.leases[n].is_some_and(|lease| lease.uid == report.uid || by_name) {
            self.write_lease(config, n, |lease| lease.take_status(report));
        }
    }

    fn lease_written(&mut self, config: &Config, n: usize) {
        let lease = self.leases[n];
        for coordinator in &mut self.coordinators[..config.coordinators] {
            coordinator.hears(config, n, lease);
        }
        self.hosts[n].fresh = false;
        // A late report that carries a resource version will be refused.
        let guarded =
            !config.lacks(Mutation::ReportUnguarded) && !config.lacks(Mutation::ReportByName);
        if let Some(Late::Report { node, .. }) = self.late
            && usize::from(node) == n
            && guarded
        {
            self.late = None;
        }
    }
}

impl Coordinator {
    fn hears(&mut self, config: &Config, n: usize, lease: Option<Lease>) {
        if self.broken {
            return;
        }
        if self.queue.len() >= config.queue {
            self.queue.clear();
            self.listing = None;
            self.broken = true;
        } else {
            self.queue.push((n as u8, lease));
        }
    }
}

impl Lease {
    /// Takes an agent's status over from `report`.
    pub(crate) fn take_status(&mut self, report: &Self) {
        self.phase = report.phase;
        self.needs_drain = report.needs_drain;
        self.boot = report.boot;
        self.machine = report.machine;
        self.packages = report.packages;
    }

    /// True when its agent does nothing more.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase.is_some_and(Phase::is_terminal)
    }
}
