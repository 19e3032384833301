//! The progress of each Skyhook in numbers. Every pass counts them, whether a status is written or not.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::package::Package;
use skyhook_crds::policy::Growth;
use skyhook_crds::rollout::CompartmentState;
use skyhook_crds::stage::Status;

use super::conditions::TRANSITION;
use crate::facts::SkyhookFact;
use crate::plan::View;
use crate::plan::cache::Cache;
use crate::plan::ledger::Ledger;
use crate::plan::pacing::{Pacing, Place};
use crate::plan::reason::ReasonCode;
use crate::plan::scan::{Order, Row};
use crate::plan::tallies::leases::{self, LeaseCounts};
use crate::plan::tallies::packages::PackageCounts;

/// Instead of the name of a policy, for a Skyhook that names none: the word of NVIDIA Skyhook.
const NO_POLICY: &str = "legacy";

/// The fleet in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// By the Skyhook's name.
    pub skyhooks: BTreeMap<String, SkyhookCounts>,
    /// Slots in use over all Skyhooks.
    pub slots_used: usize,
    /// Slots over all Skyhooks; `None` if their budgets alone count.
    pub slots: Option<usize>,
    /// Leases that cannot be decoded. They count against every budget.
    pub leases_unreadable: usize,
}

/// One Skyhook in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkyhookCounts {
    pub status: Status,
    /// Since when it has this status, if that is on record.
    pub since: Option<Timestamp>,
    /// Selected nodes.
    pub nodes: usize,
    /// Selected nodes by status.
    pub by_status: BTreeMap<Status, usize>,
    /// Selected nodes by reason.
    pub by_reason: BTreeMap<ReasonCode, usize>,
    /// Packages on selected nodes, by `name|version`.
    pub packages: BTreeMap<String, PackageCounts>,
    /// Package versions that are not in `packages`, because there are too many.
    pub packages_omitted: usize,
    /// Its leases, also those on nodes that are not selected any more.
    pub leases: LeaseCounts,
    /// The name of its DeploymentPolicy, or `legacy`.
    pub policy: String,
    pub compartments: BTreeMap<String, CompartmentCounts>,
}

/// One compartment of a Skyhook in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompartmentCounts {
    /// Nodes that may be worked on at once.
    pub ceiling: usize,
    /// Leases that exist or are being created.
    pub used: usize,
    /// Nodes in the compartment.
    pub matched: usize,
    /// Nodes in progress, and those that failed.
    pub in_progress: usize,
    pub complete: usize,
    /// `fixed`, `linear`, `exponential` or `unknown`.
    pub strategy: &'static str,
    pub batches: BatchCounts,
}

/// Where the batches of a compartment stand. A compartment without batches has the values of a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    pub current: i32,
    pub consecutive_failures: i32,
    pub should_stop: bool,
}

/// Counts a fleet, Skyhook by Skyhook.
pub(super) struct Census<'a> {
    fleet: Fleet,
    /// Leases by the number of their Skyhook's UID.
    leases: BTreeMap<u32, LeaseCounts>,
    order: &'a Order<'a>,
    ledger: &'a Ledger<'a>,
}

impl<'a> Census<'a> {
    pub(super) fn new(
        view: &View<'_>,
        order: &'a Order<'a>,
        ledger: &'a Ledger<'a>,
        cache: &Cache,
    ) -> Self {
        let (leases, leases_unreadable) = leases::count(order, &cache.nodes);
        Self {
            fleet: Fleet {
                skyhooks: BTreeMap::new(),
                slots_used: ledger.used_in_all(),
                slots: view.settings.max_concurrent_nodes,
                leases_unreadable,
            },
            leases,
            order,
            ledger,
        }
    }

    pub(super) fn take(&mut self, row: &mut Row<'_>, counts: Counts, cache: &Cache) {
        let skyhook = row.skyhook;
        let checked = skyhook.checked.as_ref();
        let packages = checked.map(|checked| checked.data.packages.values());
        let spec: BTreeSet<String> = packages.into_iter().flatten().map(Package::key).collect();
        let cells = self.order.iter();
        let cells = cells.filter_map(|(_, id)| row.column.cells.get(id.index()));
        let shapes = cells.map(|cell| cell.shape);
        let (packages, packages_omitted) = row.column.shapes.count(shapes, &spec);
        let uid = cache.names.find(&skyhook.uid);
        let leases = uid.and_then(|uid| self.leases.remove(&uid));
        let compartments = row.pacing.all().map(|(place, name)| {
            let nodes = counts.places.get(&place).copied().unwrap_or_default();
            (name.to_owned(), compartment(row, place, nodes, self.ledger))
        });
        let policy = Some(skyhook.spec.deployment_policy.as_str());
        let policy = policy.filter(|name| !name.is_empty());
        let counts = SkyhookCounts {
            since: since(skyhook, counts.overall),
            status: counts.overall,
            nodes: counts.nodes,
            compartments: compartments.collect(),
            by_status: counts.by_status,
            by_reason: counts.by_reason,
            packages,
            packages_omitted,
            leases: leases.unwrap_or_default(),
            policy: policy.unwrap_or(NO_POLICY).to_owned(),
        };
        self.fleet.skyhooks.insert(skyhook.name.clone(), counts);
    }

    pub(super) fn finish(self) -> Fleet {
        self.fleet
    }
}

/// Since when a Skyhook has a status: the condition that says so is written when the status turns.
fn since(skyhook: &SkyhookFact, status: Status) -> Option<Timestamp> {
    let mut conditions = skyhook.status.as_ref()?.conditions.iter();
    let turned = conditions.find(|one| one.type_ == TRANSITION && one.reason == status.as_str());
    turned.map(|one| one.last_transition_time.0)
}

fn compartment(
    row: &Row<'_>,
    place: Place,
    nodes: Nodes,
    ledger: &Ledger<'_>,
) -> CompartmentCounts {
    let state = row.batches.as_ref().and_then(|all| all.state.as_ref());
    let state = state.and_then(|state| state.compartments.get(row.pacing.name(place)));
    let fresh = CompartmentState::new(1);
    let state = state.unwrap_or(&fresh);
    let strategy = match (&row.pacing, row.pacing.pace(place).map(|pace| pace.growth)) {
        (Pacing::Budget, _) | (_, Some(Growth::Fixed)) => "fixed",
        (_, Some(Growth::Linear { .. })) => "linear",
        (_, Some(Growth::Exponential { .. })) => "exponential",
        (Pacing::Policy(_) | Pacing::Unknown, None) => "unknown",
    };
    CompartmentCounts {
        ceiling: ledger.ceiling_at(row.skyhook, place),
        used: ledger.used_at(row.skyhook, place),
        matched: nodes.matched,
        in_progress: nodes.in_progress,
        complete: nodes.complete,
        strategy,
        batches: BatchCounts {
            current: state.shown,
            consecutive_failures: state.consecutive_failures,
            should_stop: state.stopped.is_some(),
        },
    }
}

/// Nodes of one compartment.
#[derive(Clone, Copy, Default)]
pub(super) struct Nodes {
    pub(super) matched: usize,
    pub(super) in_progress: usize,
    pub(super) complete: usize,
}

/// Status, reason and compartment of a node.
type Kind = (Status, Option<ReasonCode>, Place);

/// Counts of the nodes of one Skyhook.
pub(super) struct Counts {
    pub(super) nodes: usize,
    by_status: BTreeMap<Status, usize>,
    by_reason: BTreeMap<ReasonCode, usize>,
    /// Nodes by compartment.
    pub(super) places: BTreeMap<Place, Nodes>,
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
            places: BTreeMap::new(),
            overall: Status::Unknown,
            print: 0,
        };
        // Neighbours mostly have the same status, reason and compartment. They are summed up first, which saves look-ups in the map.
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
            let reason = shown.reason.as_ref().map(|r| r.code);
            let kind = Some((shown.status, reason, row.pacing.place(*id)));
            if last.0 == kind {
                last.1 += 1;
            } else {
                counts.add(last);
                last = (kind, 1);
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

    fn add(&mut self, (kind, nodes): (Option<Kind>, usize)) {
        let Some((status, code, place)) = kind else {
            return;
        };
        let of = self.places.entry(place).or_default();
        of.matched += nodes;
        match status {
            Status::InProgress | Status::Erroring => of.in_progress += nodes,
            Status::Complete => of.complete += nodes,
            Status::Unknown
            | Status::Blocked
            | Status::Waiting
            | Status::Disabled
            | Status::Paused => {}
        }
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
