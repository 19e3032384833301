//! What a pass leaves behind for the next one: results together with the key that they were computed from.
//!
//! Every pass visits every pair of a node and a Skyhook and every lease, and compares keys; what differs is computed anew.
//! So no event can be forgotten. What can be forgotten is a part of a key: the properties compare each plan with the plan
//! of an empty cache. A key is made of [`Tick`]s, of which none comes twice. Only results that want nothing written are
//! kept: whatever wants a write is decided anew in each pass, on the versions that are held then.

use std::collections::BTreeMap;

use skyhook_crds::stage::Status;

use super::reason::Reason;
use super::standing::Standing;
use super::status::StatusKey;
use crate::clocks::Mono;
use crate::picture::{NodeId, Tick};

/// What passes leave behind. An empty one gives the same plans, and takes longer. One is for one picture and one set of
/// settings.
#[derive(Debug, Default)]
pub struct Cache {
    pub(super) nodes: Vec<NodeCell>,
    pub(super) columns: BTreeMap<String, Column>,
    pub(super) names: Names,
    /// Nodes of the control plane, and the number of what is known of them.
    pub(super) control_plane: (Vec<(NodeId, Tick)>, u64),
    /// Numbers versions of rows and of the control plane.
    pub(super) version: u64,
    pub(super) counted: Counted,
}

/// What the last pass did anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Standings of pairs of a node and a Skyhook.
    pub cells: usize,
    /// Next writes of leases.
    pub leases: usize,
    /// What Nodes are told.
    pub shown: usize,
    /// Statuses of Skyhooks that were put together.
    pub statuses: usize,
}

impl Cache {
    /// What the last pass did anew.
    #[must_use]
    pub const fn counted(&self) -> Counted {
        self.counted
    }

    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

/// Small numbers for texts that many leases have in common.
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

    pub(super) fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("", String::as_str)
    }

    pub(super) const fn len(&self) -> usize {
        self.texts.len()
    }
}

/// One node: what counting needs of it, and what is next for its lease.
#[derive(Debug, Default)]
pub(super) struct NodeCell {
    /// When what this was made of last changed.
    pub(super) touched: Tick,
    pub(super) ready: bool,
    pub(super) control_plane: bool,
    /// Somebody of ours owns a cordon of it.
    pub(super) owned: bool,
    /// It is cordoned, and for its lease alone: nothing is to be given back.
    pub(super) rests: bool,
    pub(super) lease: Option<LeaseBits>,
    /// A lease of it is being created.
    pub(super) creating: bool,
    pub(super) next: Option<NextWrite>,
}

/// What counting needs of a lease.
#[derive(Debug, Clone, Copy)]
pub(super) enum LeaseBits {
    Unreadable,
    Readable {
        skyhook: u32,
        skyhook_uid: u32,
        compartment: u32,
    },
}

/// That nothing is to be written for a lease, and what it was computed from.
#[derive(Debug)]
pub(super) struct NextWrite {
    pub(super) key: LeaseKey,
    pub(super) rest: Rest,
}

/// What the next write for a lease depends on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeaseKey {
    /// Node, lease, and what this process knows of both.
    pub(super) touched: Tick,
    /// Its Skyhook, and what all nodes of that have in common; 0 while there is none of that name.
    pub(super) row: u64,
    pub(super) revisions: Tick,
    pub(super) over_budget: bool,
    /// All leases of its Skyhook fit the budgets.
    pub(super) fits: bool,
    /// The control plane, for a node that belongs to it.
    pub(super) control_plane: u64,
}

/// Until when a result that wants nothing written holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rest {
    /// When to look again at the latest.
    pub(super) wake: Option<Mono>,
    /// When it may be another by time alone.
    pub(super) until: Option<Mono>,
}

impl Rest {
    pub(super) fn holds(&self, now: Mono) -> bool {
        let passed = |at: Option<Mono>| at.is_some_and(|at| at <= now);
        !passed(self.wake) && !passed(self.until)
    }
}

/// All nodes with one Skyhook.
#[derive(Debug, Default)]
pub(super) struct Column {
    /// Never used again for another Skyhook.
    pub(super) id: u32,
    pub(super) key: RowKey,
    /// Number of the key.
    pub(super) version: u64,
    pub(super) cells: Vec<Cell>,
    /// What the status was computed from when it was the one that stands there.
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
    /// The Skyhook is for the node and cannot be rolled out.
    pub(super) parked: bool,
    /// Results before this reboot are lost.
    pub(super) lost: bool,
    /// The node was started for this Skyhook: it holds a cordon.
    pub(super) started: bool,
    /// When the standing may be another by time alone.
    pub(super) until: Option<Mono>,
    /// What the Skyhook's status takes from the Node, whatever its standing.
    pub(super) print: u64,
    pub(super) shown: Option<ShownCell>,
}

/// What the standing of a node with a Skyhook depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CellKey {
    /// Node, lease, and what this process knows of both.
    pub(super) touched: Tick,
    pub(super) row: u64,
    /// The Skyhook that has to be done first; 0 for none.
    pub(super) earlier: u32,
}

/// What a Node is told of one Skyhook.
#[derive(Debug)]
pub(super) struct ShownCell {
    /// The standing that it was computed from.
    pub(super) standing: Standing,
    pub(super) status: Status,
    pub(super) reason: Option<Reason>,
    pub(super) print: u64,
    /// The write that gives the lease, or takes its result, says it.
    pub(super) in_between: bool,
    /// Set when the Node says so already.
    pub(super) rest: Option<Rest>,
}
