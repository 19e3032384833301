//! Results of the last pass that the next pass may use again. Each result is stored with its key: the versions of
//! everything that it was computed from.
//!
//! Every pass visits every lease and every pair of a node and a Skyhook, and compares keys. A result whose key has
//! changed is computed anew. There are no notifications, so none can be lost. A key can be incomplete: to find such a
//! mistake, the property tests compare each plan with the plan of an empty cache. Keys are made of [`Tick`]s and of
//! numbers that are never used twice.
//!
//! A result is kept only when it asks for no write. A write is decided anew in each pass, on the versions that the
//! picture holds then.

use std::collections::BTreeMap;

use skyhook_crds::policy::Matches;
use skyhook_crds::stage::Status;

use super::node_order::Claim;
use super::reason::Reason;
use super::standing::Standing;
use super::status::StatusKey;
use super::tallies::{leases, packages};
use crate::clocks::Mono;
use crate::picture::{NodeId, Tick};

/// The results of the last pass. An empty cache gives the same plans, but it takes longer. A cache belongs to one
/// picture and to one set of settings.
#[derive(Debug, Default)]
pub struct Cache {
    pub(super) nodes: Vec<NodeCell>,
    pub(super) columns: BTreeMap<String, Column>,
    pub(super) names: Names,
    /// The control-plane nodes with their ticks, and a number that changes when any of these change.
    pub(super) control_plane: (Vec<(NodeId, Tick)>, u64),
    /// The last number that was given to a version of a column or of the control plane.
    pub(super) version: u64,
    pub(super) counted: Counted,
}

/// How many results the last pass computed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Nodes with their leases: what the ledger counts, and which revisions they refer to.
    pub nodes: usize,
    /// Standings of pairs of a node and a Skyhook.
    pub cells: usize,
    /// Next writes of leases.
    pub leases: usize,
    /// Statuses and reasons for Nodes.
    pub shown: usize,
    /// Statuses of Skyhooks.
    pub statuses: usize,
}

impl Cache {
    /// How many results the last pass computed anew.
    #[must_use]
    pub const fn counted(&self) -> Counted {
        self.counted
    }

    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

/// Gives small numbers to texts that many leases share, such as names of Skyhooks.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: BTreeMap<String, u32>,
    texts: Vec<String>,
}

impl Names {
    pub(super) fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).unwrap_or(u32::MAX);
        self.numbers.insert(text.to_owned(), number);
        self.texts.push(text.to_owned());
        number
    }

    pub(super) fn find(&self, text: &str) -> Option<u32> {
        self.numbers.get(text).copied()
    }

    pub(super) fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("", String::as_str)
    }

    pub(super) const fn len(&self) -> usize {
        self.texts.len()
    }
}

/// One node: the facts that the ledger counts, and the next write for its lease.
#[derive(Debug, Default)]
pub(super) struct NodeCell {
    /// The node's tick when this cell was computed.
    pub(super) touched: Tick,
    pub(super) ready: bool,
    pub(super) control_plane: bool,
    /// At least one Skyhook owns a cordon of the node.
    pub(super) owned: bool,
    /// The node is cordoned, and only the Skyhook of its lease owns the cordon. The sweep has nothing to give back.
    pub(super) rests: bool,
    pub(super) lease: Option<LeaseBits>,
    /// A lease of the node is being created.
    pub(super) creating: bool,
    pub(super) taint: TaintBits,
    /// The node is to be tainted before anything else is written there. Every pass sets it anew.
    pub(super) pending: bool,
    /// Numbers of the names of all Skyhooks that the Node says something about.
    pub(super) told: Vec<u32>,
    /// The Node says something about a drain.
    pub(super) has_drain_marks: bool,
    /// Numbers of the names of the revisions that the lease and the records on the Node refer to.
    pub(super) refers: Vec<u32>,
    pub(super) next: Option<NextWrite>,
}

/// The facts about a node that decisions about taints need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TaintBits {
    /// It may be tainted: nobody has worked on the node, it is a host, it is not ignored, and it carries no taint of ours.
    pub(super) is_open: bool,
    /// An administrator keeps every Skyhook off the node, or the node is not a host.
    pub(super) is_off: bool,
    /// It carries a runtime-required taint.
    pub(super) carries: bool,
    /// An annotation says that we put that taint there.
    pub(super) put_by_us: bool,
    /// Something that keeps autoscalers from removing the node is ours.
    pub(super) protects: bool,
    /// It was cordoned when the taint was taken off, and somebody has uncordoned it since.
    pub(super) uncordoned: bool,
}

/// The facts about a lease that the ledger counts.
#[derive(Debug, Clone, Copy)]
pub(super) enum LeaseBits {
    Unreadable,
    Readable {
        skyhook: u32,
        skyhook_uid: u32,
        compartment: u32,
        /// `SKYHOOK_NODE_ORDER`.
        order: Option<i64>,
        /// It is not granted, and of no batch.
        waits: bool,
        bits: leases::Bits,
    },
}

/// Says that a lease needs no write, and what this was computed from.
#[derive(Debug)]
pub(super) struct NextWrite {
    pub(super) key: LeaseKey,
    pub(super) rest: Rest,
}

/// What the next write for a lease depends on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeaseKey {
    /// The node's tick: covers the Node, its lease, and what this process knows about both.
    pub(super) touched: Tick,
    /// Version of the column of the lease's Skyhook; 0 while no Skyhook has that name.
    pub(super) row: u64,
    pub(super) revisions: Tick,
    pub(super) over_budget: bool,
    /// The existing leases fit the budget of its Skyhook and the cluster-wide budget.
    pub(super) fits: bool,
    pub(super) batch: BatchBits,
    pub(super) claim: Claim,
    /// Version of the control plane, for a control-plane node; 0 for any other node.
    pub(super) control_plane: u64,
}

/// What the batches of its Skyhook allow for a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BatchBits {
    /// It is of no open batch, and it names one or its compartment has batches: an ungranted one is withdrawn.
    pub(super) is_out: bool,
    /// Its Skyhook has no batches: an ungranted one that names a batch is withdrawn.
    pub(super) has_none: bool,
    pub(super) may_grant: bool,
    pub(super) may_release: bool,
}

impl BatchBits {
    /// For leases that have no part in the batches of a Skyhook.
    pub(super) const ANY: Self = Self {
        is_out: false,
        has_none: false,
        may_grant: true,
        may_release: true,
    };
    /// For the leases of a Skyhook without batches.
    pub(super) const NONE: Self = Self {
        has_none: true,
        ..Self::ANY
    };
}

/// How long a result that asks for no write stays valid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rest {
    /// The result asks for a pass at this time, and is computed anew then.
    pub(super) wake: Option<Mono>,
    /// The result may change at this time although nothing else changes. It asks for no pass then.
    pub(super) until: Option<Mono>,
}

impl Rest {
    pub(super) fn holds(&self, now: Mono) -> bool {
        let passed = |at: Option<Mono>| at.is_some_and(|at| at <= now);
        !passed(self.wake) && !passed(self.until)
    }
}

/// All nodes, for one Skyhook.
#[derive(Debug, Default)]
pub(super) struct Column {
    /// Identifies the column. No other Skyhook ever gets the same number.
    pub(super) id: u32,
    pub(super) key: RowKey,
    /// A number that changes whenever the key changes.
    pub(super) version: u64,
    pub(super) cells: Vec<Cell>,
    /// What Nodes say about the Skyhook's packages.
    pub(super) shapes: packages::Shapes,
    /// What the Skyhook's status was computed from, when the computed status was equal to the stored one.
    pub(super) status: Option<StatusKey>,
}

/// What all standings of a Skyhook's nodes depend on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RowKey {
    pub(super) skyhook: Option<Tick>,
    pub(super) revisions: Tick,
    pub(super) policies: Tick,
}

/// One node with one Skyhook.
#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) key: CellKey,
    /// `None` for a node that is not selected.
    pub(super) standing: Option<Standing>,
    /// The Skyhook is parked (its spec is not valid) and is for this node.
    pub(super) parked: bool,
    /// A reboot has undone the recorded result, so the packages have to be applied again.
    pub(super) lost: bool,
    /// The Node's record is another implementation's, or keys of another one are left beside ours.
    pub(super) foreign: bool,
    /// The node has a lease of the Skyhook, and its record says that it is complete all the same.
    pub(super) complete: bool,
    /// The node has to keep the runtime-required taint until the Skyhook is complete there.
    pub(super) required: bool,
    /// The Skyhook's selector matches the node, which is not a host.
    pub(super) not_host: bool,
    /// Work on the node has begun for this Skyhook: the Skyhook owns a cordon of the node.
    pub(super) started: bool,
    /// The last lease of the node ended before the node was complete.
    pub(super) in_midst: bool,
    /// One more than the greatest `SKYHOOK_NODE_ORDER` that the node has. It is also set for nodes that are not selected.
    pub(super) after_order: i64,
    /// Which compartments' selectors match the node, if its Skyhook has a policy.
    pub(super) matches: Matches,
    /// The standing may change at this time although nothing else changes.
    pub(super) until: Option<Mono>,
    /// A digest of the facts about the Node and its lease that the Skyhook's status uses. It is also set for nodes that
    /// are not selected.
    pub(super) print: u64,
    /// What the Node says about the Skyhook's packages; 0 for a node that is not selected.
    pub(super) shape: packages::Number,
    pub(super) shown: Option<ShownCell>,
}

impl Cell {
    /// True when the node gets a lease before nodes that nothing has been done on.
    pub(super) const fn goes_on(&self) -> bool {
        self.started || self.in_midst
    }
}

/// What the standing of a node with a Skyhook depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CellKey {
    /// The node's tick: covers the Node, its lease, and what this process knows about both.
    pub(super) touched: Tick,
    pub(super) row: u64,
    /// ID of the column of the Skyhook that has to be complete on the node first; 0 for none.
    pub(super) earlier: u32,
    /// ID of the column of the Skyhook that has to be complete on all of its nodes first; 0 for none.
    pub(super) gate: u32,
    /// The node is to be tainted before anything else is written there.
    pub(super) pending: bool,
}

/// What a Node says about one Skyhook.
#[derive(Debug)]
pub(super) struct ShownCell {
    /// The standing that this was computed from.
    pub(super) standing: Standing,
    pub(super) status: Status,
    /// The message may be cut off: it is used for the Skyhook's status only.
    pub(super) reason: Option<Reason>,
    /// A digest of all of this, with the whole message.
    pub(super) print: u64,
    /// The status is part of the write that stamps the Node for a lease, or that records the lease's result. It needs
    /// no write of its own.
    pub(super) in_between: bool,
    /// Set when the Node needs no write.
    pub(super) rest: Option<Rest>,
}
