//! The state of the modelled cluster: small, copied by value, and normalised so that equal situations are equal states.

use skyhook_crds::lease::{DrainState, Phase, StopReason};

/// Nodes that fit into a state; a configuration may use fewer.
pub const MAX_NODES: usize = 3;
/// Coordinators that write at the same time: a leader, and one that was deposed and does not know it.
pub const COORDINATORS: usize = 2;

/// UID of a lease, unique per node; 0 is none. Renumbered by [`State::normalise`].
pub type Uid = u8;

/// The revision whose package can be uninstalled.
pub const INSTALLS: u8 = 2;
/// The revision that uninstalls the package of [`INSTALLS`]. It is complete when nothing is there.
pub const UNINSTALLS: u8 = 3;
/// Revisions that exist: for tables.
pub const REVISIONS: [u8; 4] = [0, 1, INSTALLS, UNINSTALLS];

/// What is on a host, or is recorded of it: nothing, or a revision of the one package, begun or complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content(pub u8);

impl Content {
    pub const NOTHING: Self = Self(0);
    /// Codes that exist: for tables.
    pub const ALL: [Self; 8] = [
        Self(0),
        Self(1),
        Self(2),
        Self(3),
        Self(4),
        Self(5),
        Self(6),
        Self(7),
    ];

    /// The first step of a revision has ended, the disruptive one has not.
    #[must_use]
    pub const fn begun(revision: u8) -> Self {
        Self(1 + 2 * revision)
    }

    #[must_use]
    pub const fn complete(revision: u8) -> Self {
        if revision == UNINSTALLS {
            Self::NOTHING
        } else {
            Self(2 + 2 * revision)
        }
    }

    /// The revision that is there, or begun.
    #[must_use]
    pub const fn revision(self) -> Option<u8> {
        if self.0 == 0 {
            None
        } else {
            Some((self.0 - 1) / 2)
        }
    }

    /// True when the next step towards a revision is the disruptive one. An uninstall that is called off after its quiet step
    /// ends with its interrupt first.
    #[must_use]
    pub fn awaits_interrupt(self, revision: u8) -> bool {
        self == Self::begun(revision) || self == Self::begun(UNINSTALLS)
    }

    /// What is there when the disruptive step has ended well.
    #[must_use]
    pub fn interrupted(self, revision: u8) -> Self {
        if self == Self::begun(UNINSTALLS) {
            Self::NOTHING
        } else {
            Self::complete(revision)
        }
    }

    /// The next step towards a revision.
    #[must_use]
    pub fn next(self, revision: u8) -> Option<Step> {
        if self == Self::complete(revision) {
            None
        } else if self.awaits_interrupt(revision) {
            Some(Step::Disruptive)
        } else {
            Some(Step::Quiet)
        }
    }
}

/// Steps of a package on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// May run while the node serves its workloads.
    Quiet,
    /// Interrupts the host.
    Disruptive,
}

/// The Node's stamp annotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub lease: Uid,
    pub revision: u8,
    pub boot: u8,
    pub machine: u8,
    /// The machine that the Node itself named when the result was taken.
    pub node_machine: u8,
    pub granted: Uid,
    pub was_ready: bool,
    /// The record that the coordinator wrote last.
    pub states: Option<Content>,
}

/// The Node's cordon annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cordon {
    pub owner: Uid,
    pub was_unschedulable: bool,
}

/// A Node object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    pub uid: u8,
    pub record: Content,
    pub mark: Option<Mark>,
    pub cordon: Option<Cordon>,
    pub unschedulable: bool,
    pub boot: u8,
    pub machine: u8,
    pub ready: bool,
}

impl Node {
    /// The result that it carries: of which lease, and by which machine.
    #[must_use]
    pub fn result(&self) -> Option<(Uid, u8)> {
        let mark = self.mark.filter(|mark| mark.lease != 0);
        mark.map(|mark| (mark.lease, mark.machine))
    }
}

/// An `InterruptionLease` object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    pub uid: Uid,
    pub node_uid: u8,
    pub revision: u8,
    pub installed: Content,
    /// The result that the Node carried when the lease was written: of which lease, and by which machine.
    pub result: Option<(Uid, u8)>,
    pub granted: bool,
    pub drain: DrainState,
    pub stop: Option<StopReason>,
    pub deleting: bool,
    pub forced: bool,
    pub phase: Option<Phase>,
    pub needs_drain: bool,
    pub boot: u8,
    pub machine: u8,
    pub packages: Content,
}

/// The Skyhook object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Skyhook {
    pub revision: u8,
    pub disabled: bool,
    pub paused: bool,
    pub deleting: bool,
    pub gone: bool,
}

impl Skyhook {
    /// What is on the hosts when it is complete, or gone.
    #[must_use]
    pub const fn wants(&self) -> Content {
        if self.deleting && self.revision == INSTALLS {
            Content::NOTHING
        } else {
            Content::complete(self.revision)
        }
    }
}

/// A list of the leases that a coordinator takes in after its watch broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listing {
    pub leases: [Option<Lease>; MAX_NODES],
    /// Nodes before this one have been delivered.
    pub delivered: u8,
}

/// One coordinator: what its watches delivered, and what only its memory knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coordinator {
    pub nodes: [Node; MAX_NODES],
    /// Whether the copy of the Node has the current resource version.
    pub fresh: [bool; MAX_NODES],
    pub leases: [Option<Lease>; MAX_NODES],
    /// Events of the lease watch that were not delivered yet, in order.
    pub queue: Vec<(u8, Option<Lease>)>,
    /// The watch is so far behind that it has to be listed again.
    pub broken: bool,
    pub listing: Option<Listing>,
    pub skyhook: Skyhook,
    pub creating: [bool; MAX_NODES],
}

impl Coordinator {
    /// True when the copy of the lease has the current resource version.
    #[must_use]
    pub fn is_current(&self, node: usize) -> bool {
        let delivered = self.listing.is_none_or(|list| node < list.delivered.into());
        !self.broken && delivered && self.queue.iter().all(|(n, _)| *n as usize != node)
    }
}

/// The step that a supervisor runs on the host, or its result file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    #[default]
    Empty,
    Running(Step),
    Succeeded(Step),
    Failed(Step),
}

/// What the agent has on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Journal {
    pub lease: Uid,
    pub revision: u8,
    /// What is on the host; `None` when the host never saw the Skyhook.
    pub has: Option<Content>,
    /// `Running` was written over `Drained`.
    pub permit: bool,
    /// A step that was meant to run, and the boot that it was meant in.
    pub doing: Option<(Step, u8)>,
    pub failed: bool,
    pub ended: Option<Phase>,
}

/// One host with its agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    pub machine: u8,
    pub boot: u8,
    pub up: bool,
    /// What is really there.
    pub content: Content,
    pub scope: Scope,
    pub journal: Journal,
    /// UID of its Node, as the agent knows it.
    pub node_uid: u8,
    /// The lease as the agent's watch delivered it.
    pub seen: Option<Lease>,
    pub fresh: bool,
}

/// What the checker knows besides, to judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ghost {
    /// An administrator has cordoned the node.
    pub admin_cordon: bool,
    /// An administrator has uncordoned the node while it was ours.
    pub admin_uncordon: bool,
    /// Somebody edited the record, and no lease was written from the edited one yet.
    pub edited: bool,
    /// The edit asked for the steps to run again, and none has yet.
    pub unobeyed: bool,
    /// Steps may run again: the record was edited, or the host replaced.
    pub rerun_asked: bool,
    /// The Node was deleted, or its lease forced, while the host worked: it is out of the budget's reach.
    pub cut_off: bool,
    /// The host went down for a disruptive step, and its kubelet has not reported the new boot.
    pub rebooting: bool,
}

/// A write that left its sender and has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Late {
    Create { node: u8, lease: Lease },
    Report { node: u8, lease: Lease },
}

/// The whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub nodes: [Node; MAX_NODES],
    pub leases: [Option<Lease>; MAX_NODES],
    pub skyhook: Skyhook,
    pub coordinators: [Coordinator; COORDINATORS],
    pub hosts: [Host; MAX_NODES],
    pub late: Option<Late>,
    pub ghosts: [Ghost; MAX_NODES],
    /// Faults that may still happen.
    pub left: [u8; crate::model::Fault::COUNT],
    /// Safety rules that a transition has broken.
    pub broken: crate::model::Broken,
}

impl State {
    /// Renumbers lease UIDs by age among those that anything still refers to, and orders the coordinators, which are
    /// alike.
    pub fn normalise(&mut self, nodes: usize, coordinators: usize) {
        for node in 0..nodes {
            let mut seen = [false; 256];
            self.for_each_uid(node, &mut |uid| seen[*uid as usize] = true);
            let mut names = [0_u8; 256];
            let mut next = 0;
            for uid in 1..256 {
                if seen[uid] {
                    next += 1;
                    names[uid] = next;
                }
            }
            self.for_each_uid(node, &mut |uid| *uid = names[*uid as usize]);
        }
        if coordinators == COORDINATORS && self.coordinators[0] > self.coordinators[1] {
            self.coordinators.swap(0, 1);
        }
    }

    /// A UID that nothing refers to, later than all that exist.
    #[must_use]
    pub fn next_uid(&mut self, node: usize) -> Uid {
        let mut newest = 0;
        self.for_each_uid(node, &mut |uid| newest = newest.max(*uid));
        newest + 1
    }

    fn for_each_uid(&mut self, node: usize, f: &mut impl FnMut(&mut Uid)) {
        lease_uid(&mut self.leases[node], f);
        node_uids(&mut self.nodes[node], f);
        for coordinator in &mut self.coordinators {
            node_uids(&mut coordinator.nodes[node], f);
            lease_uid(&mut coordinator.leases[node], f);
            if let Some(listing) = &mut coordinator.listing {
                lease_uid(&mut listing.leases[node], f);
            }
            for (_, lease) in coordinator
                .queue
                .iter_mut()
                .filter(|(n, _)| *n as usize == node)
            {
                lease_uid(lease, f);
            }
        }
        let host = &mut self.hosts[node];
        f(&mut host.journal.lease);
        lease_uid(&mut host.seen, f);
        if let Some(Late::Report { node: of, lease } | Late::Create { node: of, lease }) =
            &mut self.late
            && *of as usize == node
        {
            lease_uids(lease, f);
        }
    }
}

fn lease_uid(lease: &mut Option<Lease>, f: &mut impl FnMut(&mut Uid)) {
    if let Some(lease) = lease {
        lease_uids(lease, f);
    }
}

fn lease_uids(lease: &mut Lease, f: &mut impl FnMut(&mut Uid)) {
    f(&mut lease.uid);
    if let Some((result, _)) = &mut lease.result {
        f(result);
    }
}

fn node_uids(node: &mut Node, f: &mut impl FnMut(&mut Uid)) {
    if let Some(mark) = &mut node.mark {
        f(&mut mark.lease);
        f(&mut mark.granted);
    }
    if let Some(cordon) = &mut node.cordon {
        f(&mut cordon.owner);
    }
}
