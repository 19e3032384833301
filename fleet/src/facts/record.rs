//! What a Node's annotations say about Skyhooks.

use std::borrow::Cow;
use std::collections::BTreeMap;

use skyhook_crds::installed::{self, CordonRecord, PackageStates, Stamp, StateProblem};
use skyhook_crds::names;
use skyhook_crds::stage::Status;

use super::{Checked, NodeFact};

/// Who wrote a Node's record of a Skyhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// We, or a version of NVIDIA Skyhook whose records we understand as they are.
    Ours,
    /// An early version of NVIDIA Skyhook.
    Early,
    /// NodeWright.
    Successor,
}

/// What a Node's annotations say about one Skyhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// An entry of another implementation may lack its image: see [`Record::states_for`].
    pub states: Result<PackageStates, StateProblem>,
    /// Digest of the current value of the annotation `nodeState_<skyhook>`.
    pub digest: String,
    pub stamp: Option<Stamp>,
    pub origin: Origin,
    /// The implementation that wrote the record called the node complete.
    pub said_complete: bool,
}

impl Record {
    /// True when somebody other than the coordinator changed the package states.
    #[must_use]
    pub fn is_edited(&self) -> bool {
        self.stamp
            .as_ref()
            .is_some_and(|stamp| !stamp.states.is_empty() && stamp.states != self.digest)
    }

    /// True when the Node is another machine now than when its result was recorded. A machine ID that is not known, on
    /// either side, does not count as a difference.
    #[must_use]
    pub fn is_of_another_machine(&self, node: &NodeFact) -> bool {
        let stamp = self.stamp.as_ref().filter(|stamp| stamp.has_result());
        stamp.is_some_and(|stamp| {
            let known = !stamp.node_machine_id.is_empty() && !node.machine_id.is_empty();
            known && stamp.node_machine_id != node.machine_id
        })
    }

    /// The package states, with missing images filled in from the spec of the Skyhook.
    pub fn states_for(
        &self,
        skyhook: &str,
        checked: &Checked,
    ) -> Result<Cow<'_, PackageStates>, Cow<'_, StateProblem>> {
        let states = self.states.as_ref().map_err(Cow::Borrowed)?;
        if states.values().all(|one| !one.image.is_empty()) {
            return Ok(Cow::Borrowed(states));
        }
        let (states, left_out) = installed::with_images(states, &checked.data.packages);
        match left_out.first() {
            Some(package) if self.origin != Origin::Early => {
                Err(Cow::Owned(StateProblem::Malformed {
                    annotation: self.annotation(skyhook),
                    problem: format!("{package}: the field image is missing"),
                }))
            }
            Some(_) | None => Ok(Cow::Owned(states)),
        }
    }

    /// The annotation that the package states are in.
    #[must_use]
    pub fn annotation(&self, skyhook: &str) -> String {
        let ours = names::node_state(skyhook);
        match self.origin {
            Origin::Successor => names::successor(&ours),
            Origin::Ours | Origin::Early => ours,
        }
    }
}

/// The owners in our annotation, and in addition the cordons of NVIDIA Skyhook, which does not write that annotation.
pub(crate) fn cordon(annotations: &BTreeMap<String, String>) -> CordonRecord {
    let mut cordon = CordonRecord::parse(annotations.get(names::CORDON_OWNERS).map(String::as_str));
    let prefix = names::cordon("");
    for skyhook in annotations
        .keys()
        .filter_map(|key| key.strip_prefix(&prefix))
    {
        cordon.owners.entry(skyhook.to_owned()).or_default();
    }
    // The node stays cordoned when the last owner gives its cordon back.
    let after_taint = names::RUNTIME_REQUIRED_CORDON;
    cordon.was_unschedulable |= annotations.contains_key(after_taint)
        || annotations.contains_key(&names::successor(after_taint));
    cordon
}

/// Reads the record of a Skyhook. Once we have written a stamp, only our record counts. Without one, NodeWright's counts
/// before that of NVIDIA Skyhook, which NodeWright leaves behind for a day.
pub(super) fn record(annotations: &BTreeMap<String, String>, skyhook: &str) -> Record {
    let value = |key: &str| annotations.get(key).map(String::as_str);
    let stamp = Stamp::parse(value(&names::stamp(skyhook)));
    let ours = names::node_state(skyhook);
    let theirs = names::successor(&ours);
    let version = value(&names::version(skyhook));
    let origin = if stamp.is_some() {
        Origin::Ours
    } else if annotations.contains_key(&theirs) {
        Origin::Successor
    } else if annotations.contains_key(&ours) && is_early(version, value(&ours)) {
        Origin::Early
    } else {
        Origin::Ours
    };
    let (key, status) = match origin {
        Origin::Successor => (theirs, names::successor(&names::status(skyhook))),
        Origin::Ours | Origin::Early => (ours, names::status(skyhook)),
    };
    let states = value(&key);
    Record {
        states: installed::parse_states(&key, states, origin == Origin::Early),
        digest: installed::states_digest(states.unwrap_or_default()),
        stamp,
        origin,
        said_complete: value(&status) == Some(Status::Complete.as_str()),
    }
}

/// True for the record of an early version. A record without a version is one only if it has the form of one: the
/// annotation may be lost.
fn is_early(version: Option<&str>, states: Option<&str>) -> bool {
    installed::is_early(version) && (version.is_some() || !installed::is_whole(states))
}
