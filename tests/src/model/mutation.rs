//! Rules that can be switched off, one at a time, to show that the model notices.

/// One rule of the protocol, broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// Rule 1: a lease is created at a revision older than the one that the node's result is of.
    OldRevisionGranted,
    /// Rule 2: a lease is taken into the picture from the response to its create.
    GrantFromResponse,
    /// Rules 1 and 2: leases that were not granted do not count.
    UngrantedUncounted,
    /// Rule 1: creates of one's own that the watch has not delivered do not count.
    CreatingUncounted,
    /// Rule 2: grants are decided while a re-list is half delivered.
    GrantInMidList,
    /// Rule 2: granted without the Node stamped first.
    GrantUnstamped,
    /// Rule 2: the Node is stamped without a live GET of the lease.
    StampFromCache,
    /// Rule 2: `installed` is not compared again before the grant.
    InstalledUnchecked,
    /// Rule 2: whether the Node carries a result is not compared again before the grant.
    ResultUnchecked,
    /// Guards: the grant is a server-side apply by name, which makes a deleted lease anew.
    GrantByApply,
    /// Rule 1: the create replaces a lease that exists.
    CreateReplaces,
    /// Rule 3: accepted without the resource version as precondition.
    AcceptUnguarded,
    /// Rule 3: leases that name another Node UID are accepted.
    NodeUidIgnored,
    /// Rule 3: withdrawn by UID alone, without the resource version.
    WithdrawUnguarded,
    /// Rule 5: `Drained` is set although the node is not cordoned for this lease.
    DrainedUncordoned,
    /// Rule 5: `Drained` is taken back after the agent took it.
    RetractRunning,
    /// Rule 5: a pause ends with the node said to be drained since before it.
    DrainedOverPause,
    /// Rule 5: the cordon forgets what was there before.
    CordonForgets,
    /// Rule 6: `Running` is written by UID alone.
    RunningUnguarded,
    /// Rule 6: the host is interrupted on seeing `Drained`.
    RunningUnwritten,
    /// Rule 6 and "who wins": the boot ID in the status is not refreshed after a restart.
    BootUnrefreshed,
    /// Rule 7: a result counts before the node is back in the boot that it names.
    BootUnchecked,
    /// Rule 7: the slot is given back before the result is on the Node.
    ReleaseUnrecorded,
    /// Rule 7: a result is written to a Node that is stamped with another lease by now.
    ResultOfEarlierLease,
    /// Rule 7: the result does not move the stamp.
    StampUnmoved,
    /// Guards: an agent's report is written by name alone.
    ReportByName,
    /// Guards: an agent's report carries the UID but no resource version, so that a late one overwrites a later one.
    ReportUnguarded,
    /// Guards: the sweep of cordons trusts its cache.
    SweepFromCache,
    /// Guards: a Node is written by UID alone.
    NodeUnguarded,
    /// Who wins: the result that another machine reported, under a lease that is still there, is left as it is.
    ForeignResultStands,
    /// Who wins: the machine ID is not compared.
    MachineIgnored,
    /// Who wins: the journal wins over an edited record.
    JournalAlwaysWins,
    /// Who wins: the Node's record wins although it carries no result.
    RecordAlwaysWins,
    /// Who wins: a result is written over an edit.
    EditOverwritten,
    /// Who wins: a lease's work starts while a step of an earlier one runs.
    StepUnawaited,
    /// Rule 11: a step is started before the journal says so.
    ActBeforeJournal,
    /// Rule 11: the result file of a step is not looked for after a restart.
    ResultUnread,
    /// Endings: a lease that is being deleted loses its finalizer though an agent holds it.
    FinalizerEarly,
    /// Endings: the Node is believed gone without a live GET.
    GoneFromCache,
    /// Endings: the agent does not look at the lease before it interrupts.
    InterruptUnlooked,
    /// Endings: the phase of a failed wave hides that it runs.
    ErroringHidesRunning,
    /// Endings: a deleted Skyhook goes although a record has packages that can be uninstalled.
    DeletedWithPackages,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 42] = [
        Self::OldRevisionGranted,
        Self::GrantFromResponse,
        Self::UngrantedUncounted,
        Self::CreatingUncounted,
        Self::GrantInMidList,
        Self::GrantUnstamped,
        Self::StampFromCache,
        Self::InstalledUnchecked,
        Self::ResultUnchecked,
        Self::GrantByApply,
        Self::CreateReplaces,
        Self::AcceptUnguarded,
        Self::NodeUidIgnored,
        Self::WithdrawUnguarded,
        Self::DrainedUncordoned,
        Self::RetractRunning,
        Self::DrainedOverPause,
        Self::CordonForgets,
        Self::RunningUnguarded,
        Self::RunningUnwritten,
        Self::BootUnrefreshed,
        Self::BootUnchecked,
        Self::ReleaseUnrecorded,
        Self::ResultOfEarlierLease,
        Self::StampUnmoved,
        Self::ReportByName,
        Self::ReportUnguarded,
        Self::SweepFromCache,
        Self::NodeUnguarded,
        Self::ForeignResultStands,
        Self::MachineIgnored,
        Self::JournalAlwaysWins,
        Self::RecordAlwaysWins,
        Self::EditOverwritten,
        Self::StepUnawaited,
        Self::ActBeforeJournal,
        Self::ResultUnread,
        Self::FinalizerEarly,
        Self::GoneFromCache,
        Self::InterruptUnlooked,
        Self::ErroringHidesRunning,
        Self::DeletedWithPackages,
    ];
}
