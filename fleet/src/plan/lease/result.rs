//! Writes an agent's reports on the Node: its progress, and in the end its result with a stamp that names the lease.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::installed::{self, PackageStates, Stamp};
use skyhook_crds::lease::protocol::{self, NodeFacts};
use skyhook_crds::lease::{Phase, StopReason};

use super::LeaseCase;
use crate::effect::{LiveCheck, NodePatch, Target};
use crate::facts::{NodeFact, Record};
use crate::plan::cause::Cause;
use crate::plan::{Draft, cordon, drain, node_order, seconds, taint};
use crate::taints;

impl LeaseCase<'_> {
    /// Records the result and the stamp, and gives the cordon back, all in one write.
    pub(super) fn take_result(&self, draft: &mut Draft<'_>) {
        let (Some(node), Some(status)) = (self.node, &self.lease.status) else {
            return;
        };
        let record = self.record(node);
        let recorded = record.stamp.as_ref();
        let stamp = Stamp {
            format: recorded.map_or(0, |stamp| stamp.format),
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
            settled: false,
            left_behind: self.left_behind(),
            drain_timed_out: self.drain_timed_out_now(),
            states: record.digest.clone(),
            entries: None,
            order: self.lease.spec.order.or(recorded.and_then(|s| s.order)),
            picked: recorded.map(|s| s.picked.clone()).unwrap_or_default(),
        };
        let skyhook = self.skyhook_name();
        // Without a stamp, the Node does not say which lease it was granted to: somebody removed the stamp or made it
        // unreadable. This lease may be one of before, of which only a watch that lags still tells.
        let check = LiveCheck {
            lease: recorded.is_none().then(|| self.fact.uid.clone()),
            ..LiveCheck::default()
        };
        let is_edited = record.is_edited() || self.stop_ordered() == Some(StopReason::Edited);
        let cause = if is_edited {
            Cause::ResultBesideEdit
        } else {
            Cause::Result
        };
        draft.patch(node, drain::marks(skyhook, None).reduced(node), cause);
        // After a stop for a new revision or an edit, work on the node goes on soon. The cordon stays: new pods would have
        // to leave again, and the host may be between an interrupt and what comes after it.
        if !self.goes_on_soon() {
            let patch = cordon::give_back(&draft.so_far(node), [skyhook]);
            draft.patch(node, patch, cause);
        }
        // A taint of ours goes in a later write, and the protection with it.
        if taints::ours(&self.view.settings.runtime_taint, node).is_none() {
            draft.patch(node, taint::protect(&draft.so_far(node), false), cause);
        }
        // Somebody edited the record since the grant. The edit stays, and the node is planned again from it. Other packages
        // are as the agent has left them.
        if is_edited {
            // With the edit, an administrator may ask for another try of a package that has used up its reboots. So the
            // count of reboots starts anew.
            let is_given_up = node_order::is_given_up(record);
            let stamp = Stamp {
                reboots: BTreeMap::new(),
                order: stamp.order.filter(|_| !is_given_up),
                picked: if is_given_up {
                    String::new()
                } else {
                    stamp.picked
                },
                ..stamp
            };
            let patch = match self.with_edits(record) {
                Some(states) => NodePatch::default().states(skyhook, &states, stamp),
                None => NodePatch::default().stamp(skyhook, &stamp),
            };
            draft.patch(node, NodePatch { check, ..patch }, cause);
        } else {
            let is_complete = status.phase == Some(Phase::Complete);
            let stamp = Stamp {
                picked: if is_complete {
                    String::new()
                } else {
                    stamp.picked
                },
                ..stamp
            };
            let patch = NodePatch {
                check,
                ..NodePatch::default().states(skyhook, &self.reported(), stamp)
            };
            draft.patch(node, patch, cause);
        }
    }

    /// True when the agent was stopped because other work on the node comes next. The sweep gives the cordon back if that
    /// work does not come.
    fn goes_on_soon(&self) -> bool {
        match self.stop_ordered() {
            Some(StopReason::NewRevision | StopReason::Edited) => true,
            None
            | Some(
                StopReason::Paused
                | StopReason::Disabled
                | StopReason::Deleted
                | StopReason::DrainTimedOut
                | StopReason::AgentTooOld
                | StopReason::Unknown,
            ) => false,
        }
    }

    /// The time for the stamp if the drain took too long. The back-off after it has to hold after a change of the leading
    /// replica as well.
    fn drain_timed_out_now(&self) -> String {
        if self.stop_ordered() == Some(StopReason::DrainTimedOut) {
            seconds(self.view.now.wall)
        } else {
            String::new()
        }
    }

    /// The record with what the agent has changed beside the edits; `None` to leave it as it is.
    fn with_edits(&self, record: &Record) -> Option<PackageStates> {
        let recorded = record.states.as_ref().ok()?;
        let written = record.stamp.as_ref()?.entries.as_ref()?;
        let states = installed::with_edits(recorded, written, &self.reported());
        (states != *recorded).then_some(states)
    }

    fn reported(&self) -> PackageStates {
        let packages = self.lease.status.iter().flat_map(|status| &status.packages);
        packages
            .filter(|(_, report)| !report.pending)
            .map(|(key, report)| (key.clone(), report.status()))
            .collect()
    }

    /// The versions that the agent has left on the host, and that a lower version was installed over.
    fn left_behind(&self) -> BTreeSet<String> {
        let packages = self.lease.status.iter().flat_map(|status| &status.packages);
        let revision = self.view.picture.revisions().get(&self.lease.spec.revision);
        let data = revision.and_then(|revision| revision.data.as_deref());
        // Nothing was installed over packages that the revision does not have.
        let has = |name: &str| data.is_none_or(|data| data.packages.contains_key(name));
        packages
            .filter(|(_, report)| report.left_behind && has(&report.name))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Copies progress to the Node, at most once per second.
    pub(super) fn mirror(&self, node: &NodeFact, draft: &mut Draft<'_>) {
        let record = self.record(node);
        let (Some(stamp), Some(status)) = (&record.stamp, &self.lease.status) else {
            return;
        };
        let reported = self.reported();
        let reconciled = protocol::phase(self.lease) != Some(Phase::Accepted);
        let is_there =
            record.states.as_ref().ok() == Some(&reported) && stamp.reboots == status.reboots;
        let is_usable = self.is_known() && !self.view.picture.is_agent_too_old(self.lease);
        if !reconciled || !is_usable || record.is_edited() || is_there {
            return;
        }
        if !draft.is_too_soon(&Target::Node(node.name.clone())) {
            let stamp = Stamp {
                reboots: status.reboots.clone(),
                left_behind: self.left_behind(),
                ..stamp.clone()
            };
            let patch = NodePatch::default().states(self.skyhook_name(), &reported, stamp);
            draft.patch(node, patch, Cause::Progress);
        }
    }
}

/// The facts about a Node that the lease protocol needs.
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
