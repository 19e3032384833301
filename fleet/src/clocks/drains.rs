//! What is known about a node that drains: its pods, and the answers to evictions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Mono;
use crate::pods::{PodFact, Refusal};

/// The pods of a node, as one list showed them.
#[derive(Clone, Debug, Default)]
pub struct PodList {
    pub at: Mono,
    pub pods: Vec<PodFact>,
    /// True for a consistent list. False for a list from the API server's watch cache, which may be some seconds old.
    pub consistent: bool,
}

/// The pods of a node that drains, as the last two lists showed them.
#[derive(Clone, Debug, Default)]
pub struct DrainWatch {
    pub lease_uid: String,
    pub last: PodList,
    pub previous: Option<PodList>,
    /// When the last consistent list was taken.
    pub consistent_at: Option<Mono>,
    /// By the pod's UID.
    pub evictions: BTreeMap<String, EvictionTry>,
}

/// The answer to the last eviction of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvictionTry {
    pub at: Mono,
    pub attempts: u32,
    /// What the API server said; `None` when it accepted.
    pub problem: Option<Refusal>,
}

impl EvictionTry {
    /// When to try again: 1 s, doubling to 15 s.
    #[must_use]
    pub fn next(&self) -> Mono {
        let doubled = 1_u64 << self.attempts.saturating_sub(1).min(4);
        self.at + Duration::from_secs(doubled.min(15))
    }
}

impl DrainWatch {
    /// Takes in a list of the node's pods, taken for a lease.
    pub(super) fn listed(&mut self, lease_uid: String, list: PodList) {
        if self.lease_uid == lease_uid {
            self.previous = Some(std::mem::take(&mut self.last));
        } else {
            *self = Self {
                lease_uid,
                ..Self::default()
            };
        }
        if list.consistent {
            self.consistent_at = Some(list.at);
        }
        self.evictions
            .retain(|uid, _| list.pods.iter().any(|pod| pod.uid == *uid));
        self.last = list;
    }
}
