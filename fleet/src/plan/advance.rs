//! The next write for every lease that exists: grant it, withdraw it, stop it, take its result, release it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skyhook_crds::installed::{self, PackageStates, Stamp};
use skyhook_crds::lease::protocol::{self, NodeFacts, ResultDuty};
use skyhook_crds::lease::{InterruptionLease, Phase, StopReason};
use skyhook_crds::names;
use skyhook_crds::stage::Status;

use super::cache::{Cache, LeaseBits, LeaseKey, NextWrite};
use super::ledger::Ledger;
use super::reason::Withdrawal;
use super::scan::{Order, Row};
use super::{Draft, View, admit, cordon, drain, standing, version, why};
use crate::effect::{Effect, NodePatch, Target};
use crate::facts::{LeaseFact, NodeFact, Record, SkyhookFact};

/// Carries every lease on. What is next for one is looked at anew when something changed that it depends on, and in every
/// pass while something is to be written.
pub(super) fn leases(
    view: &View<'_>,
    rows: &[Row<'_>],
    order: &Order<'_>,
    ledger: &Ledger<'_>,
    cache: &mut Cache,
    draft: &mut Draft<'_>,
) {
    let excess = admit::excess(view, rows, ledger);
    let excess: BTreeSet<&str> = excess.iter().map(|fact| fact.node.as_str()).collect();
    let control_plane = version_of_control_plane(order, cache);
    // By the number of a Skyhook's name.
    let mut known: Vec<(u64, bool)> = vec![(0, false); cache.names.len()];
    for row in rows {
        let number = cache.names.number(&row.skyhook.name) as usize;
        let fits = ledger.refusal(row.skyhook, 0).is_none();
        if let Some(known) = known.get_mut(number) {
            *known = (row.column.version, fits);
        }
    }
    for (name, id) in order {
        let cell = &mut cache.nodes[id.index()];
        let (row, fits) = match cell.lease {
            None => continue,
            Some(LeaseBits::Unreadable) => (0, false),
            Some(LeaseBits::Readable { skyhook, .. }) => {
                known.get(skyhook as usize).copied().unwrap_or_default()
            }
        };
        let key = LeaseKey {
            touched: cell.touched,
            row,
            revisions: view.picture.revisions_changed(),
            over_budget: !excess.is_empty() && excess.contains(name),
            fits,
            control_plane: if cell.control_plane { control_plane } else { 0 },
        };
        let known = cell.next.as_ref().filter(|next| next.key == key);
        if let Some(next) = known.filter(|next| next.rest.holds(view.now.mono)) {
            draft.rests(next.rest);
            continue;
        }
        cache.counted.leases += 1;
        draft.begin_unit();
        next_write(view, ledger, name, key.over_budget, draft);
        cell.next = draft.end_unit().map(|rest| NextWrite { key, rest });
    }
}

/// A number that is another when anything about the control plane's nodes is.
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

/// What is next for one lease.
fn next_write(
    view: &View<'_>,
    ledger: &Ledger<'_>,
    node: &str,
    over_budget: bool,
    draft: &mut Draft<'_>,
) {
    let Some(fact) = view.picture.leases().get(node) else {
        return;
    };
    if view
        .inflight
        .is_unsettled(&Target::Lease(fact.node.clone()))
    {
        draft.is_held_back();
        return;
    }
    let Ok(lease) = &fact.lease else {
        if fact.forced {
            draft.push(Effect::ReleaseLease {
                node: fact.node.clone(),
                at: version(&fact.uid, &fact.resource_version),
            });
        }
        return;
    };
    let nodes = view.picture.nodes();
    let skyhooks = view.picture.skyhooks();
    let case = Case {
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
        over_budget,
    };
    if protocol::is_accepted(lease) {
        case.accepted(draft);
    } else {
        case.not_accepted(draft);
    }
}

/// One lease with what belongs to it. Node and Skyhook are those with the UIDs in the lease.
struct Case<'a> {
    view: &'a View<'a>,
    ledger: &'a Ledger<'a>,
    fact: &'a LeaseFact,
    lease: &'a InterruptionLease,
    node: Option<&'a NodeFact>,
    skyhook: Option<&'a SkyhookFact>,
    over_budget: bool,
}

impl Case<'_> {
    fn at(&self) -> crate::effect::Version {
        version(&self.fact.uid, &self.fact.resource_version)
    }

    fn skyhook_name(&self) -> &str {
        &self.lease.spec.skyhook.name
    }

    fn not_accepted(&self, draft: &mut Draft<'_>) {
        let withdraw = |draft: &mut Draft<'_>, why: Withdrawal| {
            draft.push(Effect::WithdrawLease {
                node: self.fact.node.clone(),
                at: self.at(),
                why,
            });
        };
        if let Some(why) = self.reason_to_withdraw() {
            return withdraw(draft, why);
        }
        let (Some(node), Some(_)) = (self.node, self.skyhook) else {
            return;
        };
        if self.lease.spec.granted.is_none() {
            return self.grant(node, draft);
        }
        let clock = self
            .view
            .clocks
            .lease(&self.fact.node)
            .and_then(|clock| clock.granted);
        let deadline = clock.unwrap_or(self.view.now.mono) + self.view.settings.accept_timeout;
        if deadline <= self.view.now.mono {
            withdraw(draft, Withdrawal::AgentNotResponding);
        } else {
            draft.wake_at(deadline);
        }
    }

    /// Why a lease that no agent has accepted should go.
    fn reason_to_withdraw(&self) -> Option<Withdrawal> {
        if self.lease.metadata.deletion_timestamp.is_some() {
            return Some(Withdrawal::Deleting);
        }
        let (Some(node), Some(skyhook)) = (self.node, self.skyhook) else {
            return Some(Withdrawal::Orphaned);
        };
        if self.over_budget {
            return Some(Withdrawal::OverBudget);
        }
        if let Some(reason) = self.reason_to_stop(node, skyhook) {
            return Some(Withdrawal::Stop(reason));
        }
        let record = node.record(&skyhook.name);
        if record.stamp.as_ref().is_some_and(Stamp::is_newer) {
            return Some(Withdrawal::NewerRecord);
        }
        if record.states.as_ref().ok() != Some(&self.lease.spec.installed) {
            return Some(Withdrawal::RecordChanged);
        }
        let result_of =
            |stamp: Option<&Stamp>| stamp.map(|stamp| stamp.lease.clone()).unwrap_or_default();
        if result_of(record.stamp.as_ref()) != result_of(self.lease.spec.stamp.as_ref()) {
            return Some(Withdrawal::OtherRun);
        }
        if admit::is_overtaken(self.view, node, &skyhook.name, &self.lease.spec.revision) {
            return Some(Withdrawal::Overtaken);
        }
        let checked = skyhook.checked.as_ref().ok()?;
        let idle = standing::outstanding(self.view, skyhook, checked, node)
            .is_ok_and(|work| work.is_empty());
        idle.then_some(Withdrawal::NothingToDo)
    }

    /// Stamps the Node, then grants: both decided on the picture that the lease watch delivered.
    fn grant(&self, node: &NodeFact, draft: &mut Draft<'_>) {
        let record = node.record(self.skyhook_name());
        let stamp = record.stamp.clone().unwrap_or_default();
        if stamp.granted == self.fact.uid {
            // Others may have to be withdrawn first: a grant needs a picture in which all leases fit.
            if self
                .skyhook
                .is_some_and(|skyhook| self.ledger.fits(skyhook, &node.name))
            {
                draft.push(Effect::GrantLease {
                    node: self.fact.node.clone(),
                    at: self.at(),
                });
            }
            return;
        }
        let stamp = Stamp {
            granted: self.fact.uid.clone(),
            was_ready: node.ready,
            states: record.digest.clone(),
            ..stamp
        };
        let version_key = names::version(self.skyhook_name());
        let mut patch = NodePatch::default()
            .stamp(self.skyhook_name(), &stamp)
            .status(self.skyhook_name(), Status::InProgress)
            .conditions(self.skyhook_name(), Status::InProgress);
        if is_to_be_stamped(node.annotations.get(&version_key)) {
            patch = patch.annotation(&version_key, Some(VERSION.to_owned()));
        }
        // The lease watch may lag behind a withdrawal: a stamp with a lease that is gone would keep the next one out.
        patch.check.lease = Some(self.fact.uid.clone());
        draft.patch(node, patch, why::GRANT);
    }

    fn accepted(&self, draft: &mut Draft<'_>) {
        let Some(node) = self.node else {
            draft.push(Effect::ReleaseLeaseOfGoneNode {
                node: self.fact.node.clone(),
                at: self.at(),
                node_uid: self.lease.spec.node.uid.clone(),
            });
            return;
        };
        let record = node.record(self.skyhook_name());
        let facts = facts(node, record);
        if protocol::release_reason(self.lease, Some(&facts)).is_some() {
            draft.push(Effect::ReleaseLease {
                node: self.fact.node.clone(),
                at: self.at(),
            });
            return;
        }
        // A picture in which the Node is ahead of the leases: what this lease says is history there.
        let ours = record
            .stamp
            .as_ref()
            .is_none_or(|stamp| stamp.granted == self.fact.uid);
        // A newer version was here: its record is neither understood nor written over.
        let newer = record.stamp.as_ref().is_some_and(Stamp::is_newer);
        match protocol::result_duty(self.lease, &facts) {
            ResultDuty::Take if ours && !newer => self.take_result(node, record, draft),
            ResultDuty::NotYet => {
                self.order_stop(node, record, draft);
                if ours {
                    self.drain(node, draft);
                    self.mirror(node, record, draft);
                }
            }
            // The agent has ended, and the Node may never be what its result needs.
            ResultDuty::Take | ResultDuty::AwaitBoot | ResultDuty::AwaitReady => {
                if self.view.picture.is_given_up(self.lease) {
                    self.abandon(draft);
                }
            }
            ResultDuty::Recorded => {}
        }
    }

    /// One write: the result, the stamp that says whose it is, and the cordon given back.
    fn take_result(&self, node: &NodeFact, record: &Record, draft: &mut Draft<'_>) {
        let Some(status) = &self.lease.status else {
            return;
        };
        let stamp = Stamp {
            format: installed::FORMAT,
            lease: self.fact.uid.clone(),
            revision: self.lease.spec.revision.clone(),
            boot_id: status.boot_id.clone(),
            machine_id: status.machine_id.clone(),
            host_id: status.host_id.clone(),
            reboots: status.reboots.clone(),
            epoch: status.epoch.clone(),
            node_machine_id: node.machine_id.clone(),
            granted: String::new(),
            was_ready: false,
            states: record.digest.clone(),
        };
        let skyhook = self.skyhook_name();
        let is_edited = record.is_edited() || self.stop() == Some(StopReason::Edited);
        // A new revision goes on with the node: giving the cordon back would only invite pods that have to leave again.
        if self.stop() != Some(StopReason::NewRevision) {
            draft.patch(node, cordon::give_back(node, [skyhook]), "");
        }
        // Somebody changed the record since the grant: their word stands, and the node is planned again.
        if is_edited {
            // Whoever edits it may want what was given up: reboots are counted anew.
            let stamp = Stamp {
                reboots: BTreeMap::new(),
                ..stamp
            };
            draft.patch(
                node,
                NodePatch::default().stamp(skyhook, &stamp),
                why::RESULT_BESIDE_EDIT,
            );
        } else {
            draft.patch(
                node,
                NodePatch::default().states(skyhook, &self.reported(), stamp),
                why::RESULT,
            );
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

    fn stop(&self) -> Option<StopReason> {
        self.lease.spec.stop.as_ref().map(|stop| stop.reason)
    }

    fn reported(&self) -> PackageStates {
        let packages = self.lease.status.iter().flat_map(|status| &status.packages);
        packages
            .filter(|(_, report)| !report.pending)
            .map(|(key, report)| (key.clone(), report.status()))
            .collect()
    }

    /// Tells the agent to stop, or to go on after a pause.
    fn order_stop(&self, node: &NodeFact, record: &Record, draft: &mut Draft<'_>) {
        let wanted = match self.skyhook {
            None => Some(StopReason::Deleted),
            Some(_) if record.is_edited() => Some(StopReason::Edited),
            Some(skyhook) => self
                .reason_to_stop(node, skyhook)
                .or_else(|| self.drain_timed_out(skyhook, draft)),
        };
        let current = self.stop();
        // An order other than a pause stands: the agent may have obeyed it already.
        let stands = !matches!(current, None | Some(StopReason::Paused));
        let revision = self.stored_revision(wanted);
        // The agent ends steps by it: a further change may ask for one more.
        let further = wanted == current
            && revision.is_some()
            && revision
                != self
                    .lease
                    .spec
                    .stop
                    .as_ref()
                    .and_then(|s| s.revision.clone());
        if wanted.is_none()
            && current == Some(StopReason::Paused)
            && let Some(take_back) = drain::take_back(self.view, self.fact, self.lease)
        {
            draft.push(take_back);
        } else if (wanted != current && !stands) || further {
            draft.push(Effect::StopLease {
                node: self.fact.node.clone(),
                at: self.at(),
                stop: wanted,
                revision,
            });
        } else if stands && self.view.picture.is_given_up(self.lease) {
            self.abandon(draft);
        }
    }

    /// The revision that a stop is for, once agents can read it.
    fn stored_revision(&self, stop: Option<StopReason>) -> Option<String> {
        let checked = self.skyhook?.checked.as_ref().ok()?;
        let is_stored = self
            .view
            .picture
            .revisions()
            .contains_key(&checked.revision);
        (stop == Some(StopReason::NewRevision) && is_stored).then(|| checked.revision.clone())
    }

    fn drain_timed_out(&self, skyhook: &SkyhookFact, draft: &mut Draft<'_>) -> Option<StopReason> {
        let checked = skyhook.checked.as_ref().ok()?;
        let deadline = drain::deadline(self.view, self.lease, checked)?;
        if deadline <= self.view.now.mono {
            return Some(StopReason::DrainTimedOut);
        }
        draft.wake_at(deadline);
        None
    }

    /// An agent that does not stop in time, or a node that does not come back with its result, does not keep a Skyhook
    /// from being deleted or disabled.
    fn abandon(&self, draft: &mut Draft<'_>) {
        let packages = self
            .view
            .picture
            .revisions()
            .get(&self.lease.spec.revision)
            .and_then(|r| r.data.as_ref());
        let grace = packages
            .iter()
            .flat_map(|data| data.packages.values())
            .filter_map(|package| package.graceful_shutdown.as_ref()?.value().ok())
            .fold(DEFAULT_GRACE, Duration::max);
        let Some(given_up) = self
            .view
            .clocks
            .lease(&self.fact.node)
            .and_then(|clock| clock.given_up)
        else {
            return;
        };
        let deadline = given_up + grace + ABANDON_AFTER;
        if deadline <= self.view.now.mono {
            draft.push(Effect::AbandonLease {
                node: self.fact.node.clone(),
                at: self.at(),
            });
        } else {
            draft.wake_at(deadline);
        }
    }

    fn reason_to_stop(&self, node: &NodeFact, skyhook: &SkyhookFact) -> Option<StopReason> {
        if skyhook.deleting || (skyhook.checked.is_ok() && !skyhook.selects(node)) {
            return Some(StopReason::Deleted);
        }
        if skyhook.is_disabled() {
            return Some(StopReason::Disabled);
        }
        // A pause holds whatever else changes: lease, slot and cordon stay until it is over.
        if skyhook.is_paused() {
            return Some(StopReason::Paused);
        }
        // A spec that cannot be rolled out is another one too: what is parked holds no slot.
        let checked = skyhook.checked.as_ref().ok();
        let same = checked.is_some_and(|checked| checked.revision == self.lease.spec.revision);
        (!same).then_some(StopReason::NewRevision)
    }

    /// Copies progress to the Node, at most once per second.
    fn mirror(&self, node: &NodeFact, record: &Record, draft: &mut Draft<'_>) {
        let (Some(stamp), Some(status)) = (&record.stamp, &self.lease.status) else {
            return;
        };
        let reported = self.reported();
        let reconciled = protocol::phase(self.lease) != Some(Phase::Accepted);
        let is_there =
            record.states.as_ref().ok() == Some(&reported) && stamp.reboots == status.reboots;
        if !reconciled || record.is_edited() || is_there {
            return;
        }
        if !draft.is_too_soon(&Target::Node(node.name.clone())) {
            let stamp = Stamp {
                reboots: status.reboots.clone(),
                ..stamp.clone()
            };
            let patch = NodePatch::default().states(self.skyhook_name(), &reported, stamp);
            draft.patch(node, patch, why::PROGRESS);
        }
    }
}

/// The version at the first touch stays; those of which the reference says so are brought up to date.
fn is_to_be_stamped(version: Option<&String>) -> bool {
    version.is_none_or(|version| {
        let old = ["v0.5.", "v0.6.", "v0.7."];
        version.is_empty() || old.iter().any(|old| version.starts_with(old))
    })
}

/// gracefulShutdown of a package that sets none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// How much longer than its packages' grace period an agent has to stop.
const ABANDON_AFTER: Duration = Duration::from_secs(60);

/// Version of this program, as Nodes and Skyhooks are stamped with it.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// What the protocol needs to know of a Node.
#[must_use]
pub fn facts<'a>(node: &'a NodeFact, record: &'a Record) -> NodeFacts<'a> {
    let stamp = record.stamp.as_ref();
    NodeFacts {
        uid: &node.uid,
        boot_id: &node.boot_id,
        ready: node.ready,
        was_ready: stamp.is_some_and(|stamp| stamp.was_ready),
        result_of: stamp
            .map(|stamp| stamp.lease.as_str())
            .filter(|lease| !lease.is_empty()),
    }
}
