//! Why a Node is written.

use std::fmt;

/// Why a Node is written. The class of the write, and so its turn, depends on this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The result of a lease is recorded.
    Result,
    /// The result of a lease is recorded without its package states, because somebody edited the record.
    ResultBesideEdit,
    /// A cordon whose owner is gone is given back.
    CordonWithoutOwner,
    /// The agent does not need the cordon any more, though its lease goes on.
    CordonNotNeeded,
    /// Somebody uncordoned the node.
    Uncordoned,
    /// A runtime-required taint is taken off.
    Untaint,
    /// The runtime-required taint is put on the node before anything else is.
    AutoTaint,
    /// What keeps autoscalers from removing the node is set or taken back.
    Protect,
    /// A lease is about to be granted.
    Grant,
    /// The node is to be drained.
    Cordon,
    /// The record of another implementation is taken over.
    Adopted,
    /// A reboot has undone what was installed.
    Reapply,
    /// What the agent reports while it works.
    Progress,
    /// The status and the reason that people read.
    Status,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Result => "result",
            Self::ResultBesideEdit => "result beside an edit",
            Self::CordonWithoutOwner => "cordon without an owner",
            Self::CordonNotNeeded => "cordon not needed",
            Self::Uncordoned => "uncordoned by somebody",
            Self::Untaint => "taint taken off",
            Self::AutoTaint => "tainted",
            Self::Protect => "protection against autoscalers",
            Self::Grant => "grant",
            Self::Cordon => "cordon",
            Self::Adopted => "record taken over",
            Self::Reapply => "reapplied after a reboot",
            Self::Progress => "progress",
            Self::Status => "status",
        })
    }
}
