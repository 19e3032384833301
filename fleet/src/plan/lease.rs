//! The next write for every lease that exists.
//!
//! The diagram shows the coordinator's states of a lease, with the write that leads from each state to the next one.
//! The agent's states are described at `Phase`.
//!
//! ```text
//!  (created) ─► Reserved ──stamp the Node──► Stamped ──grant──► Granted
//!                  │                            │                  │ no agent accepts it in time
//!                  └──────────┬─────────────────┴──────────────────┤
//!                       the reason for it is gone                  │ the agent accepts
//!                             ▼                                    ▼
//!                        Withdrawn ──delete──► (gone)           Working: drain, progress, orders to stop
//!                                                                  │ the agent ends      │ it was to stop, and its
//!                                       Node not back   ┌──────────┤                     │ Skyhook is gone: after
//!                                            Stranded ◄─┤          ▼                     │ the grace period
//!                                                  │    └─────► Result ──record──┐       ▼
//!                              as for Working ◄────┘                             ▼   (abandoned)
//!                                                                            Recorded ──delete──► (gone)
//! ```
//!
//! An accepted lease also ends when its Node no longer exists (`NodeGone`), or when an administrator releases it by
//! force. A lease that cannot be decoded ends only by force.

mod grant;
mod result;
mod stop;

use std::collections::BTreeSet;

use skyhook_crds::installed::Stamp;
use skyhook_crds::lease::InterruptionLease;
use skyhook_crds::lease::protocol::{self, ResultDuty};
use skyhook_crds::stage::Stage;

use super::cache::{BatchBits, Cache, LeaseBits, LeaseKey, NextWrite};
use super::ledger::Ledger;
use super::node_order::{self, Claim};
use super::reason::Withdrawal;
use super::scan::{Order, Row};
use super::{Draft, View, admit, drain, version};
use crate::effect::{AsOf, Effect, Target};
use crate::facts::{LeaseFact, NodeFact, Record, SkyhookFact};

pub use grant::VERSION;
pub use result::facts;
pub(super) use stop::abandoned_at;

/// Decides the next write for every lease. This is decided anew when something that it depends on has changed, and in
/// every pass while a write is outstanding.
pub(super) fn carry_on(
    view: &View<'_>,
    rows: &[Row<'_>],
    order: &Order<'_>,
    ledger: &Ledger<'_>,
    cache: &mut Cache,
    draft: &mut Draft<'_>,
) {
    let excess = admit::excess(view, rows, order, ledger);
    let excess: BTreeSet<&str> = excess.iter().map(|fact| fact.node.as_str()).collect();
    let control_plane = version_of_control_plane(order, cache);
    let claims = node_order::claims(view, order, cache);
    // For the number of each Skyhook's name: its row, and for each place whether all leases fit.
    let mut known: Vec<Option<(&Row<'_>, Vec<bool>)>> = Vec::new();
    known.resize_with(cache.names.len(), || None);
    for row in rows {
        let places = row.pacing.all();
        let fits = places.map(|(place, _)| ledger.refusal(row.skyhook, place, 0).is_none());
        if let Some(number) = cache.names.find(&row.skyhook.name) {
            known[number as usize] = Some((row, fits.collect()));
        }
    }
    for (name, id) in order {
        let cell = &mut cache.nodes[id.index()];
        let (row, fits, batch) = match cell.lease {
            None => continue,
            Some(LeaseBits::Unreadable) => (0, false, BatchBits::default()),
            Some(LeaseBits::Readable {
                skyhook,
                compartment,
                ..
            }) => match known.get(skyhook as usize) {
                Some(Some((row, fits))) => {
                    let compartment = cache.names.text(compartment);
                    let places = row.pacing.places_of(compartment, *id);
                    let fits = places.iter().all(|place| fits.get(place.0) == Some(&true));
                    let batch = row.batches.as_ref();
                    let batch = batch.map_or(BatchBits::NONE, |batches| batches.bits(name));
                    (row.column.version, fits, batch)
                }
                Some(None) | None => (0, false, BatchBits::ANY),
            },
        };
        let key = LeaseKey {
            touched: cell.touched,
            row,
            revisions: view.picture.revisions_changed(),
            over_budget: !excess.is_empty() && excess.contains(name),
            fits,
            batch,
            claim: claims.get(id).copied().unwrap_or_default(),
            control_plane: if cell.control_plane { control_plane } else { 0 },
        };
        let known = cell.next.as_ref().filter(|next| next.key == key);
        if let Some(next) = known.filter(|next| next.rest.holds(view.now.mono)) {
            draft.rests(next.rest);
            continue;
        }
        cache.counted.leases += 1;
        draft.begin_unit();
        next_write(view, ledger, name, &key, draft);
        cell.next = draft.end_unit().map(|rest| NextWrite { key, rest });
    }
}

/// A number that changes when anything about the control-plane nodes changes.
fn version_of_control_plane(order: &Order<'_>, cache: &mut Cache) -> u64 {
    let nodes = order.iter().filter_map(|(_, id)| {
        let cell = &cache.nodes[id.index()];
        cell.control_plane.then_some((*id, cell.touched))
    });
    let nodes: Vec<_> = nodes.collect();
    if cache.control_plane.0 != nodes || cache.control_plane.1 == 0 {
        cache.control_plane = (nodes, cache.next_version());
    }
    cache.control_plane.1
}

/// The state of a lease, as the coordinator sees it. It is computed at most once per lease and pass.
#[derive(Debug, PartialEq, Eq)]
enum LeaseState {
    /// No agent has accepted the lease, and there is a reason to delete it.
    Withdrawn(Withdrawal),
    /// The lease exists and takes a slot. Its Node is not stamped yet.
    Reserved,
    /// The Node is stamped with the lease. The lease is not granted yet.
    Stamped,
    /// The lease is granted. No agent has accepted it yet.
    Granted,
    /// An agent has accepted the lease and still works.
    Working,
    /// The agent has ended, and its result may be recorded now.
    Result,
    /// The agent has ended, and its result cannot be recorded now: the node is not back after a reboot, or the Node is
    /// stamped for another lease, or a newer version of Skyhook wrote its record or the result.
    Stranded,
    /// The result is on the Node, or an administrator releases the lease by force.
    Recorded,
    /// The lease's Node no longer exists, or another Node has its name.
    NodeGone,
}

/// One lease with its Node and its Skyhook. These two are `None` unless the objects have the UIDs that the lease names.
struct LeaseCase<'a> {
    view: &'a View<'a>,
    ledger: &'a Ledger<'a>,
    fact: &'a LeaseFact,
    lease: &'a InterruptionLease,
    node: Option<&'a NodeFact>,
    skyhook: Option<&'a SkyhookFact>,
    over_budget: bool,
    /// All leases fit the budgets that the lease falls under.
    fits: bool,
    batch: BatchBits,
    claim: Claim,
}

/// Decides the next write for one lease.
fn next_write(
    view: &View<'_>,
    ledger: &Ledger<'_>,
    node: &str,
    key: &LeaseKey,
    draft: &mut Draft<'_>,
) {
    let Some(fact) = view.picture.leases().get(node) else {
        return;
    };
    let target = Target::Lease(fact.node.clone());
    if view.inflight.is_unsettled(&target) {
        draft.is_held_back();
        return;
    }
    let Ok(lease) = &fact.lease else {
        // A lease that cannot be decoded keeps its slot until somebody corrects it, or orders its release by force.
        if fact.forced {
            release(fact, draft);
        }
        return;
    };
    let nodes = view.picture.nodes();
    let skyhooks = view.picture.skyhooks();
    let case = LeaseCase {
        view,
        ledger,
        fact,
        lease,
        node: nodes
            .get(&fact.node)
            .filter(|node| node.uid == lease.spec.node.uid),
        skyhook: skyhooks
            .get(&lease.spec.skyhook.name)
            .filter(|skyhook| skyhook.uid == lease.spec.skyhook.uid),
        over_budget: key.over_budget,
        fits: key.fits,
        batch: key.batch,
        claim: key.claim,
    };
    case.write_next(draft);
}

fn release(fact: &LeaseFact, draft: &mut Draft<'_>) {
    draft.push(Effect::ReleaseLease {
        node: fact.node.clone(),
        at: version(&fact.uid, &fact.resource_version),
    });
}

impl LeaseCase<'_> {
    fn at(&self) -> AsOf {
        version(&self.fact.uid, &self.fact.resource_version)
    }

    fn skyhook_name(&self) -> &str {
        &self.lease.spec.skyhook.name
    }

    fn record<'n>(&self, node: &'n NodeFact) -> &'n Record {
        node.record(self.skyhook_name())
    }

    /// True unless the Node is stamped for another lease. Then our picture of the leases is out of date, and the Node
    /// must not be written for this lease.
    fn is_current_on(&self, node: &NodeFact) -> bool {
        let stamp = self.record(node).stamp.as_ref();
        stamp.is_none_or(|stamp| stamp.granted == self.fact.uid)
    }

    /// True when every stage in the agent's report is known here. A newer agent may report others. They cannot be written
    /// to the Node.
    fn is_known(&self) -> bool {
        let mut packages = self.lease.status.iter().flat_map(|status| &status.packages);
        packages.all(|(_, report)| report.stage != Stage::Unknown)
    }

    fn state(&self) -> LeaseState {
        if !protocol::is_accepted(self.lease) {
            if let Some(why) = self.reason_to_withdraw() {
                return LeaseState::Withdrawn(why);
            }
            let stamp = self.node.and_then(|node| self.record(node).stamp.as_ref());
            let is_stamped = stamp.is_some_and(|stamp| stamp.granted == self.fact.uid);
            return match (self.lease.spec.granted.is_some(), is_stamped) {
                (true, _) => LeaseState::Granted,
                (false, true) => LeaseState::Stamped,
                (false, false) => LeaseState::Reserved,
            };
        }
        let Some(node) = self.node else {
            return LeaseState::NodeGone;
        };
        let record = self.record(node);
        let facts = facts(node, record);
        if protocol::release_reason(self.lease, Some(&facts)).is_some() {
            return LeaseState::Recorded;
        }
        // A newer version of Skyhook wrote the record. This version does not understand it, and does not overwrite it.
        let newer = record.stamp.as_ref().is_some_and(Stamp::is_newer);
        match protocol::result_duty(self.lease, &facts) {
            ResultDuty::NotYet => LeaseState::Working,
            ResultDuty::Take if self.is_current_on(node) && !newer && self.is_known() => {
                LeaseState::Result
            }
            ResultDuty::Take | ResultDuty::AwaitBoot | ResultDuty::AwaitReady => {
                LeaseState::Stranded
            }
            ResultDuty::Recorded => LeaseState::Recorded,
        }
    }

    fn write_next(&self, draft: &mut Draft<'_>) {
        match self.state() {
            LeaseState::Withdrawn(why) => self.withdraw(why, draft),
            LeaseState::Reserved => self.stamp(draft),
            LeaseState::Stamped => self.grant(draft),
            LeaseState::Granted => self.await_agent(draft),
            LeaseState::Working => {
                let Some(node) = self.node else {
                    return;
                };
                self.order_stop(node, draft);
                if self.is_current_on(node) {
                    self.drain(node, draft);
                    self.mirror(node, draft);
                }
            }
            LeaseState::Result => self.take_result(draft),
            LeaseState::Stranded => {
                if self.view.picture.is_given_up(self.lease) && self.batch.may_release {
                    self.abandon(draft);
                }
            }
            // A failure must be kept in the state of the roll-out before the lease goes.
            LeaseState::Recorded | LeaseState::NodeGone if !self.batch.may_release => {}
            LeaseState::Recorded => release(self.fact, draft),
            LeaseState::NodeGone => {
                draft.push(Effect::ReleaseLeaseOfGoneNode {
                    node: self.fact.node.clone(),
                    at: self.at(),
                    node_uid: self.lease.spec.node.uid.clone(),
                });
            }
        }
    }

    fn drain(&self, node: &NodeFact, draft: &mut Draft<'_>) {
        if let Some(Ok(checked)) = self.skyhook.map(|skyhook| &skyhook.checked) {
            drain::carry_on(
                self.view,
                self.ledger,
                self.fact,
                self.lease,
                node,
                checked,
                draft,
            );
        }
    }
}
