//! What a Node's annotations say about Skyhooks.

use std::collections::BTreeMap;

use skyhook_crds::installed::{self, CordonRecord, PackageStates, Stamp, StateProblem};
use skyhook_crds::names;

/// What a Node's annotations say about one Skyhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub states: Result<PackageStates, StateProblem>,
    /// Digest of the current value of the annotation `nodeState_<skyhook>`.
    pub digest: String,
    pub stamp: Option<Stamp>,
}

impl Record {
    /// True when somebody other than the coordinator changed the package states.
    #[must_use]
    pub fn is_edited(&self) -> bool {
        self.stamp
            .as_ref()
            .is_some_and(|stamp| !stamp.states.is_empty() && stamp.states != self.digest)
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

pub(super) fn record(annotations: &BTreeMap<String, String>, skyhook: &str) -> Record {
    let key = names::node_state(skyhook);
    let value = annotations.get(&key).map(String::as_str);
    Record {
        states: installed::parse_states(&key, value, false),
        digest: installed::states_digest(value.unwrap_or_default()),
        stamp: Stamp::parse(annotations.get(&names::stamp(skyhook)).map(String::as_str)),
    }
}
