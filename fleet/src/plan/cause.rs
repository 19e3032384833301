//! What a Node is written for.

use std::fmt;

/// What a Node is written for. Says which writes go first as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The result of a lease is recorded.
    Result,
    /// A result that somebody's edit of the record stands above.
    ResultBesideEdit,
    /// A cordon is given back whose owner has gone.
    CordonWithoutOwner,
    /// Somebody uncordoned the node.
    Uncordoned,
    /// A lease is about to be granted.
    Grant,
    /// The node is to be drained.
    Cordon,
    /// What was installed is lost with a reboot.
    Reapply,
    /// What the agent reports while it works.
    Progress,
    /// What people are told.
    Status,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Result => "result",
            Self::ResultBesideEdit => "result beside an edit",
            Self::CordonWithoutOwner => "cordon without an owner",
            Self::Uncordoned => "uncordoned by somebody",
            Self::Grant => "grant",
            Self::Cordon => "cordon",
            Self::Reapply => "reapplied after a reboot",
            Self::Progress => "progress",
            Self::Status => "status",
        })
    }
}
