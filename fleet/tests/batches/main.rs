//! A model of roll-outs in batches: two coordinators that both believe to lead, each with watches that lag as they like,
//! writes that arrive late, nodes that are replaced, ignored and moved between compartments, and packages that fail. It is
//! searched to the end with one coordinator, up to a bound with two, and walked at random.
//!
//! What is real: [`skyhook_fleet::batches`] decides, on the real stored state and the real sorting into compartments. What is
//! modelled: the API server, the two watches (leases as one ordered stream, Nodes and the state each by themselves), and an
//! agent that works and ends.
#![expect(clippy::unwrap_used, reason = "tests")]

mod coordinator;
mod perform;
mod search;
mod searches;
mod state;

use coordinator::{Act, Memo};
use state::{
    Bits, COMPARTMENTS, Compartment, Coordinator, Lease, NODES, Node, Phase, State, Stored,
};

/// What may go wrong, or be done from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A package fails for good.
    Fails,
    /// One that has failed for good succeeds after all.
    Recovers,
    /// A Node is deleted, and another one registered under its name.
    Replaced,
    /// A node is ignored, or no longer.
    Ignored,
    /// A node's label moves it into the other compartment.
    Moved,
    /// A create is given up, and arrives late.
    Late,
    /// Somebody resets the compartment of a node.
    Reset,
}

pub(crate) const FAULTS: usize = 7;

/// A rule that is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Failures are not kept in the state.
    NoLatch,
    /// The stored state is not asked before a grant.
    GrantUnseen,
    /// A member is believed to have left without a look, and is not struck first.
    LeftUnseen,
    /// A lease of a batch that the own copy of the state does not know is released.
    ReleaseOldState,
    /// A Node is stamped with a lease that is gone.
    StampUnseen,
    /// A Node is complete, whichever Node of its name it is.
    CompleteByName,
    /// A lease is granted while another batch of its compartment is worked on.
    NoBarrier,
}

/// One search.
#[derive(Debug)]
pub(crate) struct Config {
    pub nodes: usize,
    pub coordinators: usize,
    pub ceiling: usize,
    /// Failed batches in a row that stop a compartment.
    pub threshold: usize,
    pub faults: [u8; FAULTS],
    pub mutation: Option<Mutation>,
    /// The last node begins in the other compartment.
    pub is_split: bool,
    /// The watches of the first coordinator do not lag. So there are far fewer states, and what is found there can happen
    /// without that as well.
    pub is_prompt: bool,
    memo: Memo,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The lease watch of a coordinator delivers an event.
    Deliver(usize),
    SeeNode(usize, usize),
    SeeState(usize),
    Acts(usize, Act),
    /// The agent begins.
    Begins(usize),
    /// The agent ends well.
    Ends(usize),
    Fault(Fault, usize),
    /// A coordinator's create for a node is given up.
    GivesUp(usize, usize),
    /// It arrives.
    Arrives,
}

impl Action {
    /// The coordinator whose watches deliver something.
    pub(crate) const fn sees(self) -> Option<usize> {
        match self {
            Self::Deliver(who) | Self::SeeNode(who, _) | Self::SeeState(who) => Some(who),
            Self::Acts(..)
            | Self::Begins(_)
            | Self::Ends(_)
            | Self::Fault(..)
            | Self::GivesUp(..)
            | Self::Arrives => None,
        }
    }

    pub(crate) const fn is_fault(self) -> bool {
        matches!(self, Self::Fault(..) | Self::GivesUp(..) | Self::Arrives)
    }
}

impl Config {
    fn new(nodes: usize, coordinators: usize, ceiling: usize) -> Self {
        Self {
            nodes,
            coordinators,
            ceiling,
            threshold: 1,
            faults: [0; FAULTS],
            mutation: None,
            is_split: false,
            is_prompt: false,
            memo: Memo::default(),
        }
    }

    fn fault(mut self, fault: Fault, times: u8) -> Self {
        self.faults[fault as usize] = times;
        self
    }

    fn without(mut self, mutation: Mutation) -> Self {
        self.mutation = Some(mutation);
        self
    }

    fn threshold(mut self, threshold: usize) -> Self {
        self.threshold = threshold;
        self
    }

    fn split(mut self) -> Self {
        self.is_split = true;
        self
    }

    fn prompt(mut self) -> Self {
        self.is_prompt = true;
        self
    }

    pub(crate) fn begin(&self) -> State {
        let mut nodes = [Node::default(); NODES];
        if self.is_split {
            nodes[self.nodes - 1].compartment = 1;
        }
        let stored = Stored {
            next_batch: 1,
            compartments: Default::default(),
        };
        let mut fresh = Bits(0);
        (0..NODES).for_each(|at| fresh.set(at, true));
        let coordinator = Coordinator {
            leases: [None; NODES],
            queue: Vec::new(),
            nodes,
            fresh,
            stored,
            is_fresh: true,
            creating: Bits(0),
            checked: Bits(0),
            gone: Bits(0),
            left: [Bits(0); COMPARTMENTS],
        };
        State {
            nodes,
            leases: [None; NODES],
            stored,
            coordinators: vec![coordinator; self.coordinators],
            next_uid: 1,
            late: None,
            faults: self.faults,
            failed_in: [0; COMPARTMENTS],
            begun: [0; COMPARTMENTS],
            reset_at: [0; COMPARTMENTS],
            broken: None,
        }
    }

    pub(crate) fn actions(&self, state: &State, out: &mut Vec<Action>) {
        let may = |fault: Fault| state.faults[fault as usize] > 0;
        for (who, seen) in state.coordinators.iter().enumerate() {
            if !seen.queue.is_empty() {
                out.push(Action::Deliver(who));
            }
            let stale = (0..self.nodes).filter(|node| !seen.fresh.has(*node));
            out.extend(stale.map(|node| Action::SeeNode(who, node)));
            if !seen.is_fresh {
                out.push(Action::SeeState(who));
            }
            let mut acts = Vec::new();
            coordinator::acts(self, &self.memo, state, who, &mut acts);
            out.extend(acts.into_iter().map(|act| Action::Acts(who, act)));
            if may(Fault::Late) && state.late.is_none() {
                let reserves =
                    |node: &usize| perform::reserves(self, &self.memo, state, who, *node);
                let nodes = (0..self.nodes).filter(reserves);
                out.extend(nodes.map(|node| Action::GivesUp(who, node)));
            }
        }
        if state.late.is_some() {
            out.push(Action::Arrives);
        }
        for node in 0..self.nodes {
            let lease = state.leases[node];
            let here = lease
                .filter(|lease| lease.granted && lease.generation == state.nodes[node].generation);
            match here.map(|lease| lease.phase) {
                Some(Phase::Idle) => out.push(Action::Begins(node)),
                Some(Phase::Working) => {
                    out.push(Action::Ends(node));
                    if may(Fault::Fails) {
                        out.push(Action::Fault(Fault::Fails, node));
                    }
                }
                Some(Phase::Failed) if may(Fault::Recovers) => {
                    out.push(Action::Fault(Fault::Recovers, node));
                }
                Some(Phase::Failed | Phase::Complete) | None => {}
            }
            for fault in [Fault::Replaced, Fault::Ignored, Fault::Moved, Fault::Reset] {
                let of = usize::from(state.nodes[node].compartment);
                // A reset of what is new already changes nothing.
                let is_idle = fault == Fault::Reset && state.stored.compartments[of].is_new();
                if may(fault) && !is_idle {
                    out.push(Action::Fault(fault, node));
                }
            }
        }
    }

    pub(crate) fn next(&self, state: &State, action: Action) -> State {
        let mut next = state.clone();
        match action {
            Action::Deliver(who) => next.coordinators[who].deliver(),
            Action::SeeNode(who, node) => next.see_node(who, node),
            Action::SeeState(who) => next.see_state(who),
            Action::Acts(who, act) => perform::perform(self, &self.memo, &mut next, who, act),
            Action::Begins(node) => next.report(node, Phase::Working),
            Action::Ends(node) => next.report(node, Phase::Complete),
            Action::GivesUp(who, node) => {
                next.faults[Fault::Late as usize] -= 1;
                let lease = perform::reservation(self, &self.memo, &mut next, who, node);
                next.late = lease.map(|lease| (node as u8, lease));
            }
            Action::Arrives => {
                if let Some((node, lease)) = next.late.take()
                    && next.leases[usize::from(node)].is_none()
                {
                    next.write_lease(usize::from(node), Some(lease));
                }
            }
            Action::Fault(fault, node) => {
                next.faults[fault as usize] -= 1;
                next.happens(fault, node);
            }
        }
        if self.is_prompt {
            while !next.coordinators[0].queue.is_empty() {
                next.coordinators[0].deliver();
            }
            (0..self.nodes).for_each(|node| next.see_node(0, node));
            next.see_state(0);
        }
        next.canonical(self.is_prompt)
    }

    /// Every node is complete, has failed for good, is ignored, or its compartment has stopped or has no slot that a node
    /// which has failed does not hold; nothing is under way.
    pub(crate) fn is_complete(&self, state: &State) -> bool {
        (0..self.nodes).all(|at| {
            let (node, lease) = (&state.nodes[at], &state.leases[at]);
            let failed = lease.is_some_and(|lease| {
                lease.phase == Phase::Failed && lease.generation == node.generation
            });
            let stopped = state.stored.compartments[usize::from(node.compartment)].stopped;
            let is_over = node.complete || node.ignored || failed || stopped;
            (lease.is_none() || failed) && (is_over || self.is_full(state, node.compartment))
        })
    }

    /// True when nodes that have failed for good hold all slots of a compartment. A node that was moved holds one in both.
    fn is_full(&self, state: &State, compartment: u8) -> bool {
        let nodes = || state.nodes.iter().zip(&state.leases).take(self.nodes);
        let matched = nodes().filter(|(node, _)| node.compartment == compartment);
        let held = nodes().filter(|(node, lease)| {
            let failed = lease.filter(|lease| lease.phase == Phase::Failed);
            failed.is_some_and(|lease| [lease.compartment, node.compartment].contains(&compartment))
        });
        held.count() >= self.ceiling.min(matched.count())
    }
}

impl State {
    fn see_node(&mut self, who: usize, node: usize) {
        self.coordinators[who].nodes[node] = self.nodes[node];
        self.coordinators[who].fresh.set(node, true);
    }

    fn see_state(&mut self, who: usize) {
        let seen = &mut self.coordinators[who];
        let both = seen
            .stored
            .compartments
            .iter()
            .zip(&self.stored.compartments);
        for ((old, new), left) in both.zip(&mut seen.left) {
            if (old.batch, old.struck) != (new.batch, new.struck) {
                *left = Bits(0);
            }
        }
        seen.stored = self.stored;
        seen.is_fresh = true;
    }

    fn report(&mut self, node: usize, phase: Phase) {
        let lease = self.leases[node].map(|lease| Lease { phase, ..lease });
        self.write_lease(node, lease);
    }

    fn happens(&mut self, fault: Fault, node: usize) {
        let lease = self.leases[node];
        match fault {
            Fault::Fails => {
                self.fails(lease);
                self.report(node, Phase::Failed);
            }
            Fault::Recovers => {
                // Nobody has seen the failure, so nothing has to follow from it.
                if let Some(lease) = lease {
                    let of = usize::from(lease.compartment);
                    let open = &self.stored.compartments[of];
                    let is_kept = open.batch != lease.batch || open.failed.0 != 0;
                    if self.failed_in[of] == lease.batch && !is_kept {
                        self.failed_in[of] = 0;
                    }
                }
                self.report(node, Phase::Complete);
            }
            Fault::Replaced => {
                let was = self.nodes[node].generation;
                let own = lease.filter(|lease| lease.generation == was);
                self.fails(own.filter(|lease| lease.phase == Phase::Working));
                let compartment = self.nodes[node].compartment;
                self.write_node(node, |copy| {
                    *copy = Node {
                        generation: copy.generation + 1,
                        compartment,
                        ..Node::default()
                    };
                });
            }
            Fault::Ignored => self.write_node(node, |copy| copy.ignored = !copy.ignored),
            Fault::Moved => self.write_node(node, |copy| copy.compartment = 1 - copy.compartment),
            Fault::Reset => self.reset(usize::from(self.nodes[node].compartment)),
            Fault::Late => {}
        }
    }

    /// A compartment starts anew. What happens in earlier batches from then on counts for nothing.
    fn reset(&mut self, of: usize) {
        self.stored.compartments[of] = Compartment::default();
        self.failed_in[of] = 0;
        self.reset_at[of] = self.stored.next_batch;
        for coordinator in &mut self.coordinators {
            coordinator.is_fresh = false;
        }
    }

    fn fails(&mut self, lease: Option<Lease>) {
        if let Some(lease) = lease {
            let at = usize::from(lease.compartment);
            let of = &mut self.failed_in[at];
            if lease.batch >= self.reset_at[at] && (*of == 0 || *of > lease.batch) {
                *of = lease.batch;
            }
        }
    }
}
