//! Changes to one Node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Taint;
use skyhook_crds::installed::{CordonRecord, PackageStates, Stamp};
use skyhook_crds::stage::Status;

use crate::facts::{self, NodeFact, WireCondition};

/// Changes to one Node. [`NodePatch::reduced`] removes values that the Node has already, and an empty patch is not
/// written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodePatch {
    /// Annotation to value; `None` removes it.
    pub annotations: BTreeMap<String, Option<String>>,
    /// Label to value; `None` removes it.
    pub labels: BTreeMap<String, Option<String>>,
    pub unschedulable: Option<bool>,
    /// All taints, in their order: the API server replaces the list as a whole.
    pub taints: Option<Vec<Taint>>,
    /// Conditions, by type; `None` removes one.
    pub conditions: BTreeMap<String, Option<WireCondition>>,
    /// What a live GET of the node's lease must show before the write.
    pub check: LiveCheck,
}

/// Conditions on the node's lease that a GET checks right before the write, because the watch may lag. Without a
/// condition there is no GET.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveCheck {
    /// The node's lease must have this UID.
    pub lease: Option<String>,
    /// The node's lease, if there is one, must not be for any of these Skyhooks.
    pub not_for: BTreeSet<String>,
}

impl NodePatch {
    /// True when there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.annotations.is_empty()
            && self.labels.is_empty()
            && self.unschedulable.is_none()
            && self.taints.is_none()
            && self.conditions.is_empty()
    }

    /// Sets the node's status for a Skyhook, as annotation and as label.
    #[must_use]
    pub fn status(mut self, skyhook: &str, status: Status) -> Self {
        let key = skyhook_crds::names::status(skyhook);
        self.labels
            .insert(key.clone(), Some(status.as_str().to_owned()));
        self.annotations
            .insert(key, Some(status.as_str().to_owned()));
        self
    }

    /// Sets the package states, and the stamp with the digest of these states.
    #[must_use]
    pub fn states(mut self, skyhook: &str, states: &PackageStates, stamp: Stamp) -> Self {
        let value = skyhook_crds::installed::render_states(states);
        let is_worked_on = !stamp.granted.is_empty();
        let stamp = Stamp {
            states: skyhook_crds::installed::states_digest(&value),
            entries: is_worked_on.then(|| skyhook_crds::installed::digests(states)),
            ..stamp.in_form_of(states)
        };
        self.annotations
            .insert(skyhook_crds::names::node_state(skyhook), Some(value));
        self.stamp(skyhook, &stamp)
    }

    /// Sets only the stamp.
    #[must_use]
    pub fn stamp(mut self, skyhook: &str, stamp: &Stamp) -> Self {
        self.annotations
            .insert(skyhook_crds::names::stamp(skyhook), Some(stamp.render()));
        self
    }

    /// Sets or removes an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: Option<String>) -> Self {
        self.annotations.insert(key.to_owned(), value);
        self
    }

    /// Sets the record of cordon owners; an empty record is removed.
    #[must_use]
    pub fn cordon(self, record: &CordonRecord) -> Self {
        let value = (!record.is_empty()).then(|| record.render());
        self.annotation(skyhook_crds::names::CORDON_OWNERS, value)
    }

    /// What the Node says about cordons after the write.
    #[must_use]
    pub fn cordons_left(&self, node: &NodeFact) -> CordonRecord {
        let is_kept = |key: &&String| !self.annotations.contains_key(*key);
        let kept = node.annotations.iter().filter(|(key, _)| is_kept(key));
        let set = self.annotations.iter();
        let set = set.filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let left = kept.chain(set);
        facts::cordon(
            &left
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        )
    }

    /// Sets the two Node conditions of a Skyhook.
    #[must_use]
    pub fn conditions(mut self, skyhook: &str, status: Status) -> Self {
        let complete = status == Status::Complete;
        let erroring = status == Status::Erroring;
        let truth = |holds: bool| if holds { "True" } else { "False" }.to_owned();
        for condition in [
            WireCondition {
                type_: skyhook_crds::names::not_ready_condition(skyhook),
                status: truth(!complete),
                reason: if complete { "Complete" } else { "Incomplete" }.to_owned(),
                message: format!("Skyhook {skyhook} Ready"),
            },
            WireCondition {
                type_: skyhook_crds::names::erroring_condition(skyhook),
                status: truth(erroring),
                reason: if erroring {
                    "Package(s) Erroring or Unknown"
                } else {
                    "Not Erroring"
                }
                .to_owned(),
                message: format!("Package Erroring or Unknown for {skyhook}"),
            },
        ] {
            self.conditions
                .insert(condition.type_.clone(), Some(condition));
        }
        self
    }

    /// Removes all that tells how far a Skyhook is: status, reason, drain and conditions.
    #[must_use]
    pub fn forget(mut self, skyhook: &str) -> Self {
        let status = skyhook_crds::names::status(skyhook);
        self.labels.insert(status.clone(), None);
        for type_ in [
            skyhook_crds::names::not_ready_condition(skyhook),
            skyhook_crds::names::erroring_condition(skyhook),
        ] {
            self.conditions.insert(type_, None);
        }
        let drains = [
            skyhook_crds::names::drain_start(skyhook),
            skyhook_crds::names::drain_blocked(skyhook),
        ];
        for key in drains.into_iter().flatten() {
            self.annotations.insert(key, None);
        }
        self.annotation(&status, None)
            .annotation(&skyhook_crds::names::reason(skyhook), None)
    }

    /// Leaves out values that the node has already.
    #[must_use]
    pub fn reduced(mut self, node: &NodeFact) -> Self {
        self.annotations
            .retain(|key, value| node.annotations.get(key) != value.as_ref());
        self.labels
            .retain(|key, value| node.labels.get(key) != value.as_deref());
        self.conditions.retain(|type_, condition| {
            let mut there = node.conditions.iter();
            there.find(|there| there.type_ == *type_) != condition.as_ref()
        });
        self.unschedulable = self
            .unschedulable
            .filter(|wanted| *wanted != node.unschedulable);
        self.taints = self.taints.filter(|wanted| *wanted != node.taints);
        self
    }

    /// Adds the changes of `other`. Where both patches change the same field, `other` wins.
    pub fn unite(&mut self, other: Self) {
        self.annotations.extend(other.annotations);
        self.labels.extend(other.labels);
        self.conditions.extend(other.conditions);
        self.unschedulable = other.unschedulable.or(self.unschedulable);
        self.taints = other.taints.or(self.taints.take());
        self.check.lease = other.check.lease.or(self.check.lease.take());
        self.check.not_for.extend(other.check.not_for);
    }
}
