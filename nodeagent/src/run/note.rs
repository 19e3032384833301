//! Notes: the messages that tasks and the watch send to the agent's loop.

use std::collections::BTreeSet;
use std::rc::Rc;

use skyhook_crds::InterruptionLease;
use skyhook_crds::package::Resources;
use skyhook_crds::revision::RevisionData;
use skyhook_oci::{RetryClass, chain};

use super::writer::Written;
use crate::host::exec::StepEnd;
use crate::image::PackageImageError;
use crate::lease::{ApiError, LeaseEvent};
use crate::machine::reconcile::Source;
use crate::machine::{Entries, Event, Half};
use crate::prepare::metadata::NodeFacts;
use crate::prepare::{Prepared, StageError};
use crate::supervise::ProcessLimit;

/// A message from a task or from the watch to the agent's loop.
#[derive(Debug)]
pub(super) enum Note {
    Lease(LeaseEvent),
    Event(Event),
    /// An attempt to take a lease has ended.
    Attempted(Box<Attempt>),
    Prepared {
        key: String,
        prepared: Box<Prepared>,
        ready: bool,
    },
    StepDone(Box<StepDone>),
    Written(Box<Written>),
    Refreshed(Box<Result<InterruptionLease, ApiError>>),
    Node(Box<NodeFacts>),
    Facts(Box<RunFacts>),
    /// Bytes on the host's disk that belong to Skyhook.
    Disk(u64),
    /// The agent has looked for deleted Skyhooks.
    Missing {
        /// Skyhooks in the journal of which nothing is seen. `None` when the API does not answer.
        missing: Option<BTreeSet<String>>,
        /// Garbage is collected now.
        collects: bool,
    },
    /// Handle the latest version of the lease again, although the lease has not changed.
    LookAgain,
    Woken,
}

/// Data that the agent reads once per lease.
#[derive(Clone, Debug, Default)]
pub(super) struct RunFacts {
    pub node: NodeFacts,
    pub default_resources: Option<Resources>,
    pub limits: Vec<ProcessLimit>,
}

/// The result of an attempt to take a lease.
#[derive(Debug)]
pub(super) struct Attempt {
    pub uid: String,
    pub entries: Entries,
    pub source: Source,
    /// The lease after it was accepted, with all that the machine needs.
    pub result: Result<Taken, ApiError>,
}

#[derive(Debug)]
pub(super) struct Taken {
    pub lease: InterruptionLease,
    pub revision: RevisionData,
    pub facts: RunFacts,
    /// The revision from which the entries of a lost journal were completed.
    pub recovered: Option<(String, RevisionData)>,
    /// Why this agent may do nothing under the lease.
    pub too_old: Option<String>,
}

/// A step that has ended, or could not be started.
#[derive(Debug)]
pub(super) struct StepDone {
    pub key: String,
    pub id: u64,
    pub half: Half,
    pub index: usize,
    pub result: Result<(StepEnd, Rc<Prepared>), Failed>,
}

/// Why something failed, and whether a retry may succeed.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub reason: String,
    pub class: RetryClass,
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self {
            reason,
            class: RetryClass::Transient,
        }
    }
}

impl From<StageError> for Failed {
    fn from(error: StageError) -> Self {
        Self {
            reason: error.explained(),
            class: error.retry_class(),
        }
    }
}

impl From<PackageImageError> for Failed {
    fn from(error: PackageImageError) -> Self {
        Self {
            reason: chain(&error),
            class: error.retry_class(),
        }
    }
}

#[cfg(test)]
mod tests {
    use skyhook_oci::{ReferenceError, StoreError};

    use super::*;

    #[test]
    fn an_image_that_cannot_be_pulled_keeps_its_class() {
        let no_tag = ReferenceError::VersionIsNoTag {
            version: "a b".into(),
        };
        let no_room = StoreError::NoRoom {
            path: "/var/lib/skyhook-agent/images".into(),
            needed: 2,
            free: 1,
        };
        for (error, want) in [
            (PackageImageError::from(no_tag), RetryClass::Terminal),
            (PackageImageError::from(no_room), RetryClass::Transient),
        ] {
            let failed = Failed::from(error);
            assert_eq!(failed.class, want, "{}", failed.reason);
        }
    }
}
