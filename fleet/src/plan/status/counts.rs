//! The progress of each Skyhook in numbers. Every pass counts them, whether a status is written or not.

use std::collections::BTreeMap;

use skyhook_crds::stage::Status;

use crate::facts::SkyhookFact;
use crate::plan::ledger::Ledger;
use crate::plan::reason::ReasonCode;
use crate::plan::scan::{Order, Row};

/// The fleet in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// By the Skyhook's name.
    pub skyhooks: BTreeMap<String, SkyhookCounts>,
    /// Slots in use over all Skyhooks.
    pub slots_used: usize,
}

/// One Skyhook in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkyhookCounts {
    pub status: Status,
    /// Selected nodes.
    pub nodes: usize,
    /// Selected nodes by status.
    pub by_status: BTreeMap<Status, usize>,
    /// Selected nodes by reason.
    pub by_reason: BTreeMap<ReasonCode, usize>,
    pub compartments: BTreeMap<String, CompartmentCounts>,
}

/// One compartment of a Skyhook in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompartmentCounts {
    /// Nodes that may be worked on at once.
    pub ceiling: usize,
    /// Leases that exist or are being created.
    pub used: usize,
}

impl Fleet {
    pub(super) fn take(&mut self, row: &Row<'_>, counts: Counts, ledger: &Ledger<'_>) {
        let skyhook = row.skyhook;
        self.slots_used = ledger.used_in_all();
        let compartments = row.pacing.all().map(|(place, name)| {
            let counts = CompartmentCounts {
                ceiling: ledger.ceiling_at(skyhook, place),
                used: ledger.used_at(skyhook, place),
            };
            (name.to_owned(), counts)
        });
        let compartments = compartments.collect();
        let counts = SkyhookCounts {
            status: counts.overall,
            nodes: counts.nodes,
            by_status: counts.by_status,
            by_reason: counts.by_reason,
            compartments,
        };
        self.skyhooks.insert(skyhook.name.clone(), counts);
    }
}

/// Counts of the nodes of one Skyhook.
pub(super) struct Counts {
    pub(super) nodes: usize,
    by_status: BTreeMap<Status, usize>,
    by_reason: BTreeMap<ReasonCode, usize>,
    pub(super) overall: Status,
    /// A digest of the facts about nodes that the status uses.
    pub(super) print: u64,
}

impl Counts {
    pub(super) fn new(row: &Row<'_>, order: &Order<'_>, under_way: bool) -> Self {
        let mut counts = Self {
            nodes: 0,
            by_status: BTreeMap::new(),
            by_reason: BTreeMap::new(),
            overall: Status::Unknown,
            print: 0,
        };
        // Neighbours mostly have the same status and reason. They are summed up first, which saves look-ups in the map.
        let mut last = (None, 0);
        for (_, id) in order {
            let Some(cell) = row.cell(*id) else {
                continue;
            };
            counts.print = counts.print.wrapping_add(cell.print);
            let shown = cell.shown.as_ref().filter(|_| cell.standing.is_some());
            let Some(shown) = shown else {
                continue;
            };
            counts.print = counts.print.wrapping_add(shown.print);
            let place = Some((shown.status, shown.reason.as_ref().map(|r| r.code)));
            if last.0 == place {
                last.1 += 1;
            } else {
                counts.add(last);
                last = (place, 1);
            }
        }
        counts.add(last);
        counts.overall = match counts.first(row.skyhook) {
            // There are leases, so the roll-out goes on, although no node is in progress at this moment.
            Status::Blocked | Status::Waiting if under_way => Status::InProgress,
            status @ (Status::Unknown
            | Status::Complete
            | Status::Blocked
            | Status::Waiting
            | Status::Disabled
            | Status::Paused
            | Status::InProgress
            | Status::Erroring) => status,
        };
        counts
    }

    fn add(&mut self, (place, nodes): (Option<(Status, Option<ReasonCode>)>, usize)) {
        let Some((status, code)) = place else {
            return;
        };
        self.nodes += nodes;
        *self.by_status.entry(status).or_default() += nodes;
        if let Some(code) = code {
            *self.by_reason.entry(code).or_default() += nodes;
        }
    }

    /// Nodes with a status.
    pub(super) fn of(&self, status: Status) -> usize {
        self.by_status.get(&status).copied().unwrap_or_default()
    }

    pub(super) fn in_progress(&self) -> usize {
        self.of(Status::InProgress) + self.of(Status::Erroring)
    }

    /// The first status, in a fixed order, that applies. Because the order is fixed, the status cannot change back and
    /// forth between two that both apply.
    fn first(&self, skyhook: &SkyhookFact) -> Status {
        if skyhook.is_paused() {
            return Status::Paused;
        }
        if skyhook.checked.is_err() {
            return Status::Blocked;
        }
        if self.of(Status::Complete) == self.nodes {
            return Status::Complete;
        }
        if skyhook.is_disabled() {
            return Status::Disabled;
        }
        let order = [
            Status::InProgress,
            Status::Erroring,
            Status::Blocked,
            Status::Waiting,
        ];
        let mut order = order.into_iter();
        let first = order.find(|status| self.of(*status) > 0);
        first.unwrap_or(Status::Unknown)
    }
}
