//! The writes before an agent has accepted a lease: the Node is stamped with the lease, and the lease is granted or
//! withdrawn.

use std::borrow::Cow;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::installed::{self, Stamp, is_early};
use skyhook_crds::names;
use skyhook_crds::revision;
use skyhook_crds::stage::Status;

use super::LeaseCase;
use super::stop::is_left_out;
use crate::effect::{BatchCheck, Effect, NodePatch};
use crate::facts::Goal;
use crate::plan::cause::Cause;
use crate::plan::node_order::{self, Claim};
use crate::plan::reason::Withdrawal;
use crate::plan::{Draft, admit, seconds, standing, taint};

/// Version of this program, as it is written on Nodes and Skyhooks.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// A node that is younger may not have had its agent's pod started yet.
const YOUNG: Duration = Duration::from_secs(600);

impl LeaseCase<'_> {
    /// Why a lease that no agent has accepted should be deleted.
    pub(super) fn reason_to_withdraw(&self) -> Option<Withdrawal> {
        if self.lease.metadata.deletion_timestamp.is_some() {
            return Some(Withdrawal::Deleting);
        }
        let (Some(node), Some(skyhook)) = (self.node, self.skyhook) else {
            return Some(Withdrawal::Orphaned);
        };
        if skyhook.goal() != Goal::Nothing && is_left_out(skyhook, node) {
            return Some(Withdrawal::NotSelected);
        }
        if self.over_budget {
            return Some(Withdrawal::OverBudget);
        }
        if let Some(reason) = self.reason_to_stop(node, skyhook) {
            return Some(Withdrawal::Stop(reason));
        }
        let is_out = self.batch.is_out || (self.batch.has_none && self.lease.spec.batch.is_some());
        if is_out && self.lease.spec.granted.is_none() {
            return Some(Withdrawal::NotInBatch);
        }
        if self.claim == Claim::Taken {
            return Some(Withdrawal::OrderTaken);
        }
        let record = node.record(&skyhook.name);
        let kept = node_order::kept(record);
        if kept.is_some()
            && self
                .lease
                .spec
                .order
                .is_some_and(|order| kept != Some(order))
        {
            return Some(Withdrawal::OtherOrder);
        }
        if record.stamp.as_ref().is_some_and(Stamp::is_newer) {
            return Some(Withdrawal::NewerRecord);
        }
        let states = skyhook.checked.as_ref().map_or_else(
            |_| record.states.as_ref().ok().map(Cow::Borrowed),
            |checked| record.states_for(&skyhook.name, checked).ok(),
        );
        if states.as_deref() != Some(&self.lease.spec.installed) {
            return Some(Withdrawal::RecordChanged);
        }
        let result_of = |stamp: Option<&Stamp>| stamp.map(|s| s.lease.clone()).unwrap_or_default();
        if result_of(record.stamp.as_ref()) != result_of(self.lease.spec.stamp.as_ref()) {
            return Some(Withdrawal::OtherRun);
        }
        if admit::is_overtaken(self.view, node, &skyhook.name, &self.lease.spec.revision) {
            return Some(Withdrawal::Overtaken);
        }
        let checked = skyhook.checked.as_ref().ok()?;
        let idle = standing::outstanding(self.view.picture, skyhook, checked, node)
            .is_ok_and(|work| revision::is_idle(&work));
        idle.then_some(Withdrawal::NothingToDo)
    }

    pub(super) fn withdraw(&self, why: Withdrawal, draft: &mut Draft<'_>) {
        draft.push(Effect::WithdrawLease {
            node: self.fact.node.clone(),
            at: self.at(),
            why,
        });
    }

    /// Writes on the Node that the lease is about to be granted. This comes before the grant, and only after the lease
    /// watch has delivered the lease.
    pub(super) fn stamp(&self, draft: &mut Draft<'_>) {
        let Some(node) = self.node else {
            return;
        };
        let record = self.record(node);
        let before = record.stamp.clone().unwrap_or_default();
        let picked = node_order::picked(record).map(str::to_owned);
        let created = node_order::created(self.fact);
        let created = created.and_then(|at| Timestamp::from_second(at).ok());
        let stamp = Stamp {
            granted: self.fact.uid.clone(),
            was_ready: node.ready,
            drain_timed_out: String::new(),
            states: record.digest.clone(),
            entries: record.states.as_ref().ok().map(installed::digests),
            order: self.lease.spec.order.or(before.order),
            picked: picked.unwrap_or_else(|| seconds(created.unwrap_or(self.view.now.wall))),
            ..before
        };
        let skyhook = self.skyhook_name();
        let version_key = names::version(skyhook);
        let mut patch = NodePatch::default()
            .stamp(skyhook, &stamp)
            .status(skyhook, Status::InProgress)
            .conditions(skyhook, Status::InProgress);
        // The version that first worked on the node stays there. Only an early one is replaced, as NVIDIA Skyhook does.
        if is_early(node.annotations.get(&version_key).map(String::as_str)) {
            patch = patch.annotation(&version_key, Some(VERSION.to_owned()));
        }
        patch.unite(taint::protect(&draft.so_far(node), true));
        // The lease watch may not have delivered a withdrawal yet. The stamp of a deleted lease would block the node's
        // next lease, so a GET checks that the lease exists.
        patch.check.lease = Some(self.fact.uid.clone());
        draft.patch(node, patch, Cause::Grant);
    }

    /// Grants the lease if all leases of the picture fit the budgets. If they do not, some leases have to be withdrawn
    /// first.
    pub(super) fn grant(&self, draft: &mut Draft<'_>) {
        let is_alone = !self.ledger.has_control_planes_too_many(&self.fact.node);
        let has_order = self.claim == Claim::Alone;
        if self.skyhook.is_some() && self.fits && is_alone && has_order && self.batch.may_grant {
            let spec = &self.lease.spec;
            draft.push(Effect::GrantLease {
                node: self.fact.node.clone(),
                at: self.at(),
                batch: spec.batch.clone().map(|batch| BatchCheck {
                    skyhook: spec.skyhook.name.clone(),
                    compartment: spec.compartment.clone(),
                    batch,
                    member: self.fact.member.clone(),
                }),
            });
        }
    }

    /// Withdraws the lease if no agent accepts it in time.
    pub(super) fn await_agent(&self, draft: &mut Draft<'_>) {
        let now = self.view.now.mono;
        let clock = self.view.clocks.lease(&self.fact.node);
        let granted = clock.and_then(|clock| clock.granted);
        let deadline = granted.unwrap_or(now) + self.view.settings.accept_timeout;
        if deadline <= now {
            let created = self.node.and_then(|node| node.created);
            let is_young = created.is_some_and(|created| self.view.age(created, None) < YOUNG);
            let why = if is_young {
                Withdrawal::AgentNotYetThere
            } else {
                Withdrawal::AgentNotResponding
            };
            self.withdraw(why, draft);
        } else {
            draft.wake_at(deadline);
        }
    }
}
