//! The cluster as the model has it.

use std::collections::BTreeMap;

use skyhook_crds::rollout::{CompartmentState, RolloutStateSpec};

/// Most nodes.
pub(crate) const NODES: usize = 3;
/// Compartments.
pub(crate) const COMPARTMENTS: usize = 2;
/// Names of the compartments.
pub(crate) const NAMES: [&str; COMPARTMENTS] = ["x", "y"];
/// Most events that a lease watch holds back.
pub(crate) const QUEUE: usize = 2;

/// A set of small numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Bits(pub u8);

impl Bits {
    pub(crate) const fn has(self, at: usize) -> bool {
        self.0 & (1 << at) != 0
    }

    pub(crate) const fn set(&mut self, at: usize, on: bool) {
        self.0 = self.0 & !(1 << at) | ((on as u8) << at);
    }
}

/// A Node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node {
    /// Which Node of this name it is.
    pub generation: u8,
    pub complete: bool,
    pub ignored: bool,
    pub compartment: u8,
    /// UID of the lease that it is stamped with; 0: none.
    pub stamp: u8,
}

/// How far the agent is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    #[default]
    Idle,
    Working,
    /// Given up, for good as far as it knows.
    Failed,
    Complete,
}

/// A lease, named after its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lease {
    pub uid: u8,
    pub generation: u8,
    /// The compartment in its spec.
    pub compartment: u8,
    pub batch: u8,
    pub granted: bool,
    pub phase: Phase,
}

/// One compartment of the stored state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Compartment {
    pub batch: u8,
    pub shown: u8,
    pub target: u8,
    pub cut: bool,
    pub base: u8,
    /// `node * 16 + generation`, in the order of picking.
    pub members: [u8; NODES],
    pub count: u8,
    pub failed: Bits,
    pub struck: Bits,
    pub consecutive_failures: u8,
    pub last_batch_size: u8,
    pub last_batch_failed: bool,
    pub stopped: bool,
}

impl Default for Compartment {
    fn default() -> Self {
        Self {
            batch: 0,
            shown: 1,
            target: 0,
            cut: false,
            base: 0,
            members: [0; NODES],
            count: 0,
            failed: Bits(0),
            struck: Bits(0),
            consecutive_failures: 0,
            last_batch_size: 0,
            last_batch_failed: false,
            stopped: false,
        }
    }
}

/// The stored state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Stored {
    pub next_batch: u8,
    pub compartments: [Compartment; COMPARTMENTS],
}

/// What stands for a node in a batch.
pub(crate) fn id(node: usize, generation: u8) -> String {
    format!("{}", node * 16 + usize::from(generation))
}

fn bits(positions: &[i32]) -> Bits {
    let mut bits = Bits(0);
    for position in positions {
        bits.set(*position as usize, true);
    }
    bits
}

fn positions(bits: Bits) -> Vec<i32> {
    (0..NODES)
        .filter(|at| bits.has(*at))
        .map(|at| at as i32)
        .collect()
}

impl Stored {
    pub(crate) fn spec(&self) -> RolloutStateSpec {
        let compartments: BTreeMap<String, CompartmentState> = self
            .compartments
            .iter()
            .zip(NAMES)
            .map(|(one, name)| (name.to_owned(), one.state()))
            .collect();
        RolloutStateSpec {
            next_batch: self.next_batch.into(),
            compartments,
            ..RolloutStateSpec::default()
        }
    }

    pub(crate) fn from_spec(spec: &RolloutStateSpec) -> Self {
        Self {
            next_batch: spec.next_batch as u8,
            compartments: NAMES.map(|name| Compartment::from_state(&spec.compartments[name])),
        }
    }
}

impl Compartment {
    fn state(&self) -> CompartmentState {
        CompartmentState {
            run: 1,
            batch: self.batch.into(),
            shown: self.shown.into(),
            target: self.target.into(),
            cut: self.cut,
            base: self.base.into(),
            members: self.ids().iter().map(ToString::to_string).collect(),
            order_base: 0,
            failed: positions(self.failed),
            struck: positions(self.struck),
            consecutive_failures: self.consecutive_failures.into(),
            last_batch_size: self.last_batch_size.into(),
            last_batch_failed: self.last_batch_failed,
            stopped: self.stopped.then(String::new),
        }
    }

    fn from_state(state: &CompartmentState) -> Self {
        let mut members = [0; NODES];
        for (at, id) in state.members.iter().enumerate() {
            members[at] = id.parse().unwrap();
        }
        Self {
            batch: state.batch as u8,
            shown: state.shown as u8,
            target: state.target as u8,
            cut: state.cut,
            base: state.base as u8,
            members,
            count: state.members.len() as u8,
            failed: bits(&state.failed),
            struck: bits(&state.struck),
            consecutive_failures: state.consecutive_failures as u8,
            last_batch_size: state.last_batch_size as u8,
            last_batch_failed: state.last_batch_failed,
            stopped: state.stopped.is_some(),
        }
    }

    /// True when nothing has happened to it since the beginning or a reset.
    pub(crate) fn is_new(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn ids(&self) -> &[u8] {
        &self.members[..usize::from(self.count)]
    }
}

/// What a coordinator has seen, each in its own time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Coordinator {
    pub leases: [Option<Lease>; NODES],
    /// Events of the lease watch that are still on their way, the oldest first.
    pub queue: Vec<(u8, Option<Lease>)>,
    pub nodes: [Node; NODES],
    /// Nodes whose copy is the version that is stored.
    pub fresh: Bits,
    pub stored: Stored,
    pub is_fresh: bool,
    /// Nodes for which it has created a lease that the watch has not delivered.
    pub creating: Bits,
    /// Leases for which the stored state was asked.
    pub checked: Bits,
    /// Leases whose Node was found to be gone.
    pub gone: Bits,
    /// Struck members, by compartment, that were found to have no lease.
    pub left: [Bits; COMPARTMENTS],
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub nodes: [Node; NODES],
    pub leases: [Option<Lease>; NODES],
    pub stored: Stored,
    pub coordinators: Vec<Coordinator>,
    pub next_uid: u8,
    /// A create that was given up and has not arrived.
    pub late: Option<(u8, Lease)>,
    /// How often each fault may still happen.
    pub faults: [u8; super::FAULTS],
    /// By compartment: the number of the earliest batch in which a member has failed for good.
    pub failed_in: [u8; COMPARTMENTS],
    /// By compartment: the greatest number of a batch in which a lease was granted.
    pub begun: [u8; COMPARTMENTS],
    /// By compartment: the first number of a batch after the last reset.
    pub reset_at: [u8; COMPARTMENTS],
    pub broken: Option<&'static str>,
}

impl State {
    /// Writes a lease: both watches will say so.
    pub(crate) fn write_lease(&mut self, node: usize, lease: Option<Lease>) {
        self.leases[node] = lease;
        for coordinator in &mut self.coordinators {
            if coordinator.queue.len() == QUEUE {
                coordinator.deliver();
            }
            coordinator.queue.push((node as u8, lease));
        }
    }

    pub(crate) fn write_node(&mut self, node: usize, change: impl FnOnce(&mut Node)) {
        change(&mut self.nodes[node]);
        for coordinator in &mut self.coordinators {
            coordinator.fresh.set(node, false);
        }
    }

    /// Gives lease UIDs and batch numbers the smallest values that say the same. Where coordinators are all alike their order
    /// says nothing.
    pub(crate) fn canonical(mut self, are_told_apart: bool) -> Self {
        if !are_told_apart {
            self.coordinators.sort();
        }
        let mut uids = [0_u8; 64];
        let mut next = 1;
        self.each_uid(&mut |uid| {
            let known = &mut uids[usize::from(*uid)];
            if *known == 0 {
                *known = next;
                next += 1;
            }
            *uid = *known;
        });
        self.next_uid = next;
        let mut used = [false; 64];
        self.each_batch(&mut |batch| used[usize::from(*batch)] = true);
        let mut ranks = [0_u8; 64];
        let mut rank = 0;
        for (number, is_used) in used.iter().enumerate() {
            if *is_used && number != 0 {
                rank += 1;
                ranks[number] = rank;
            }
        }
        self.each_batch(&mut |batch| *batch = ranks[usize::from(*batch)]);
        self
    }

    fn each_lease(&mut self, mut each: impl FnMut(&mut Lease)) {
        self.leases.iter_mut().flatten().for_each(&mut each);
        if let Some((_, lease)) = &mut self.late {
            each(lease);
        }
        for coordinator in &mut self.coordinators {
            coordinator.leases.iter_mut().flatten().for_each(&mut each);
            for (_, lease) in &mut coordinator.queue {
                lease.iter_mut().for_each(&mut each);
            }
        }
    }

    fn each_uid(&mut self, each: &mut impl FnMut(&mut u8)) {
        self.each_lease(|lease| each(&mut lease.uid));
        let copies = self.coordinators.iter_mut().flat_map(|c| &mut c.nodes);
        for node in self.nodes.iter_mut().chain(copies) {
            if node.stamp != 0 {
                each(&mut node.stamp);
            }
        }
    }

    fn each_batch(&mut self, each: &mut impl FnMut(&mut u8)) {
        self.each_lease(|lease| each(&mut lease.batch));
        let copies = self.coordinators.iter_mut().map(|c| &mut c.stored);
        for stored in std::iter::once(&mut self.stored).chain(copies) {
            each(&mut stored.next_batch);
            for compartment in &mut stored.compartments {
                if compartment.batch != 0 {
                    each(&mut compartment.batch);
                }
            }
        }
        let kept = [&mut self.failed_in, &mut self.begun, &mut self.reset_at];
        for batch in kept.into_iter().flatten().filter(|batch| **batch != 0) {
            each(batch);
        }
    }
}

impl Coordinator {
    /// Takes the oldest event of the lease watch in.
    pub(crate) fn deliver(&mut self) {
        let (node, lease) = self.queue.remove(0);
        let node = usize::from(node);
        let known = self.leases[node].map(|lease| lease.uid);
        if known != lease.map(|lease| lease.uid) {
            self.checked.set(node, false);
            self.gone.set(node, false);
        }
        self.leases[node] = lease;
        self.creating.set(node, false);
    }

    /// True when no event about the node's lease is on its way.
    pub(crate) fn is_current(&self, node: usize) -> bool {
        self.queue.iter().all(|(of, _)| usize::from(*of) != node)
    }
}
