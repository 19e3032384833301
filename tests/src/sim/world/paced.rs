//! Compartments and batches, held against what is stored.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skyhook_crds::rollout;

use super::slots::from;
use super::{LEASES, NODES, ROLLOUTS, World};
use crate::sim::agent::Core;

/// What the rules about compartments and batches need to remember.
#[derive(Debug, Default)]
pub(super) struct Paced {
    /// Every form of the policy, and since when it was so.
    policies: Vec<(u64, Value)>,
    /// Ceilings that a coordinator could know when it decided to grant, by coordinator and lease.
    ceilings: BTreeMap<(usize, String), usize>,
    /// Granted leases of compartments, by UID.
    granted: BTreeMap<String, Slot>,
    /// Members whose failure was kept: UID of the state, number of the batch, member.
    failed: BTreeSet<(String, i64, String)>,
    /// The run of a compartment, and the greatest number of a batch in which a lease was granted in that run; by UID of
    /// the state and compartment.
    begun: BTreeMap<(String, String), (i64, i64)>,
}

#[derive(Debug)]
struct Slot {
    /// UID of the Skyhook, and compartment.
    of: (String, String),
    /// Leases in the order of their creation.
    order: u64,
    ceiling: usize,
}

/// What a lease says about its batch.
struct Batch {
    state: String,
    number: i64,
    compartment: String,
}

impl Batch {
    fn of(lease: &Value) -> Option<Self> {
        let spec = &lease["spec"];
        Some(Self {
            state: spec["batch"]["state"].as_str()?.to_owned(),
            number: spec["batch"]["number"].as_i64()?,
            compartment: spec["compartment"].as_str()?.to_owned(),
        })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Paced {
    /// The policy has another form.
    pub(super) fn respecified(&mut self, now: u64, policy: &Value) {
        self.policies.push((now, policy["spec"].clone()));
    }

    /// A coordinator that has seen everything until `since` decided to grant a lease.
    pub(super) fn decided(&mut self, index: usize, lease: &Value, since: u64) {
        let name = &lease["spec"]["compartment"];
        let counts = from(&self.policies, since).filter_map(|policy| {
            let all = policy["compartments"].as_array()?;
            let one = all.iter().find(|one| one["name"] == *name)?;
            one["budget"]["count"].as_u64()
        });
        // Without a count in any form there is nothing to hold against it.
        let most = counts.max().and_then(|most| usize::try_from(most).ok());
        let key = (index, text(&lease["metadata"]["uid"]));
        self.ceilings.insert(key, most.unwrap_or(usize::MAX));
    }

    /// A lease was granted. Says how many its compartment has now, if these are too many.
    fn granted(
        &mut self,
        index: Option<usize>,
        uid: &str,
        lease: &Value,
    ) -> Option<(usize, usize)> {
        let ceiling = index.and_then(|index| self.ceilings.get(&(index, uid.to_owned())));
        let order = uid.rsplit('-').next().and_then(|n| n.parse().ok());
        let spec = &lease["spec"];
        let of = (text(&spec["skyhook"]["uid"]), text(&spec["compartment"]));
        let slot = Slot {
            of: of.clone(),
            order: order.unwrap_or_default(),
            ceiling: ceiling.copied().unwrap_or(usize::MAX),
        };
        self.granted.insert(uid.to_owned(), slot);
        let all = || self.granted.values().filter(|slot| slot.of == of);
        // Of one too many, the one that was created last was granted from a picture that held all others.
        let ceiling = all().max_by_key(|slot| slot.order)?.ceiling;
        let count = all().count();
        (count > ceiling).then_some((count, ceiling))
    }

    pub(super) fn released(&mut self, uid: &str) {
        self.granted.remove(uid);
    }

    /// The state of a roll-out was written.
    fn wrote(&mut self, state: &Value) {
        let compartments = state["spec"]["compartments"].as_object();
        for one in compartments.into_iter().flat_map(|all| all.values()) {
            let number = one["batch"].as_i64().unwrap_or_default();
            let failed = one["failed"].as_array().into_iter().flatten();
            for at in failed.filter_map(Value::as_u64) {
                let member = usize::try_from(at).map(|at| text(&one["members"][at]));
                let uid = text(&state["metadata"]["uid"]);
                self.failed
                    .insert((uid, number, member.unwrap_or_default()));
            }
        }
    }

    /// A lease of a batch was granted in a run of its compartment. Says which later batch had begun before, if one had.
    fn begins(&mut self, batch: &Batch, run: i64) -> Option<i64> {
        let key = (batch.state.clone(), batch.compartment.clone());
        let begun = self.begun.entry(key).or_insert((run, 0));
        if begun.0 != run {
            *begun = (run, 0);
        }
        let later = (begun.1 > batch.number).then_some(begun.1);
        begun.1 = begun.1.max(batch.number);
        later
    }
}

/// True when a package fails on the node of the lease.
fn fails(lease: &Value) -> bool {
    let packages = lease["status"]["packages"].as_object();
    packages.is_some_and(|all| all.values().any(|one| one["state"] == "erroring"))
}

impl<C: Core> World<'_, C> {
    /// The state of a roll-out was written. A node that fails as its batch ends has failed in it. It holds no later batch
    /// up, although it may be well again soon.
    pub(super) fn observe_batches(&mut self, state: &Value) {
        self.checks.paced.wrote(state);
        let uid = text(&state["metadata"]["uid"]);
        let failed = self.api.list(LEASES).filter_map(|(_, lease)| {
            let batch = Batch::of(lease).filter(|batch| batch.state == uid && fails(lease))?;
            let current = state["spec"]["compartments"][&batch.compartment]["batch"].as_i64()?;
            let member = rollout::member(lease["spec"]["node"]["uid"].as_str()?);
            (current > batch.number).then_some((batch.state, batch.number, member))
        });
        let failed: Vec<_> = failed.collect();
        self.checks.paced.failed.extend(failed);
    }

    /// Holds the rules about compartments and batches against a grant by a coordinator.
    pub(super) fn observe_paced_grant(&mut self, index: Option<usize>, uid: &str, lease: &Value) {
        if lease["spec"]["compartment"].is_null() {
            return;
        }
        let name = text(&lease["spec"]["compartment"]);
        if let Some((count, ceiling)) = self.checks.paced.granted(index, uid, lease) {
            self.fail(format!(
                "{count} leases of compartment {name} are granted, its ceiling is {ceiling}"
            ));
        }
        let Some(batch) = Batch::of(lease) else {
            return;
        };
        let skyhook = text(&lease["spec"]["skyhook"]["name"]);
        let run = self.api.get(ROLLOUTS, &skyhook).and_then(|state| {
            let is_same = state["metadata"]["uid"] == *batch.state;
            let run = state["spec"]["compartments"][&batch.compartment]["run"].as_i64();
            run.filter(|_| is_same)
        });
        // Somebody deleted the state between the look at it and the grant.
        let Some(run) = run else {
            return;
        };
        let number = batch.number;
        if let Some(later) = self.checks.paced.begins(&batch, run) {
            self.fail(format!(
                "batch {number} of {name} goes on after batch {later} began"
            ));
        }
        let held_up_by = self.at_work_beside(&batch, lease);
        if let Some((node, other)) = held_up_by {
            self.fail(format!(
                "batch {number} of {name} begins while {node} works in batch {other}"
            ));
        }
    }

    /// A node that certainly works in another batch of the same state and compartment, and the number of that.
    fn at_work_beside(&self, batch: &Batch, lease: &Value) -> Option<(String, i64)> {
        let tier = |node: &Value| node["metadata"]["labels"]["tier"].clone();
        let own = lease["spec"]["node"]["name"].as_str();
        let own = tier(self.api.get(NODES, own.unwrap_or_default())?);
        let mut all = self.api.list(LEASES).filter_map(|(node, other)| {
            let its = Batch::of(other)?;
            let there = self.api.get(NODES, node)?;
            let uid = &other["spec"]["node"]["uid"];
            let key = (
                its.state.clone(),
                its.number,
                rollout::member(uid.as_str()?),
            );
            let works = ["Preparing", "AwaitingDrain", "Running"]
                .iter()
                .any(|phase| other["status"]["phase"] == *phase);
            let is_meant = its.state == batch.state
                && its.compartment == batch.compartment
                && its.number != batch.number;
            // A node that was moved lately may hold up another compartment than its lease names. It is not looked at.
            let is_there = there["metadata"]["uid"] == *uid && tier(there) == own;
            let is_kept = self.checks.paced.failed.contains(&key);
            (is_meant && is_there && works && !fails(other) && !is_kept)
                .then(|| (node.clone(), its.number))
        });
        all.next()
    }
}

#[cfg(test)]
mod tests;
