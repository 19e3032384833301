//! What goes into [`super::step`] and what comes out of it.

use std::collections::BTreeMap;

use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::lease::{DrainState, InterruptionLease, Phase, StopReason};
use skyhook_crds::package::Interrupt;
use skyhook_oci::RetryClass;

use super::progress::{Half, StepPlan};
use crate::text;

/// Something that happened, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Unix milliseconds.
    pub now: i64,
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A new lease was accepted; the progress is fresh and its entries are reconciled.
    Begun,
    /// The agent was started anew in the boot `boot_id`.
    Restarted {
        boot_id: String,
    },
    /// The lease, as the watch shows it.
    LeaseSeen(LeaseView),
    ImageReady {
        key: String,
        digest: Option<String>,
    },
    ImageFailed {
        key: String,
        reason: String,
        class: RetryClass,
    },
    StageReady {
        key: String,
        plan: StepPlan,
    },
    /// The stage's files could not be put on the host, or its steps not be started. Of a terminal class: another image is
    /// needed, or other settings.
    StageFailed {
        key: String,
        reason: String,
        class: RetryClass,
    },
    StepExited {
        key: String,
        id: u64,
        outcome: Outcome,
    },
    /// The supervisor is gone and left no result, or something other than the agent ended the step.
    StepLost {
        key: String,
        id: u64,
        /// What is known of how it ended.
        problem: String,
    },
    /// An earlier agent died before it had started the step.
    StepNotStarted {
        key: String,
        id: u64,
    },
    /// `phase: Running` is written over the lease that said `Drained`.
    RunningWritten,
    /// The lease changed meanwhile.
    RunningRefused,
    /// Whether this lease still stands, as far as the API answers.
    LeaseLooked {
        lease: String,
        stands: bool,
    },
    /// Nothing is in the way of the interrupt any more. For units that are to be restarted: their invocations now.
    InterruptPrepared {
        before: BTreeMap<String, String>,
    },
    /// Something holds the interrupt up.
    InterruptWaits {
        reason: String,
    },
    /// What the revision that the lease is stopped for has of each package: version and identity.
    RevisionSeen {
        packages: BTreeMap<String, (String, String)>,
    },
    Interrupted,
    InterruptFailed {
        reason: String,
        /// Whether the host may have been asked for the reboot: false only when it is known that it was not.
        asked: bool,
    },
    /// Time went by.
    Ticked,
}

impl Event {
    /// The event as it comes into the machine: texts go from there into the journal, the lease, the Node and the Skyhook,
    /// so each is short, and nothing in it makes a terminal do anything. The whole text is in the agent's log.
    #[must_use]
    pub(super) fn bounded(self) -> Self {
        let bounded = |text: String| text::message(&text);
        match self {
            Self::ImageFailed { key, reason, class } => Self::ImageFailed {
                key,
                reason: bounded(reason),
                class,
            },
            Self::StageFailed { key, reason, class } => Self::StageFailed {
                key,
                reason: bounded(reason),
                class,
            },
            Self::StepExited {
                key,
                id,
                outcome: Outcome::Failed(reason),
            } => Self::StepExited {
                key,
                id,
                outcome: Outcome::Failed(bounded(reason)),
            },
            Self::StepLost { key, id, problem } => Self::StepLost {
                key,
                id,
                problem: bounded(problem),
            },
            Self::InterruptWaits { reason } => Self::InterruptWaits {
                reason: bounded(reason),
            },
            Self::InterruptFailed { reason, asked } => Self::InterruptFailed {
                reason: bounded(reason),
                asked,
            },
            Self::Begun
            | Self::Restarted { .. }
            | Self::LeaseSeen(_)
            | Self::ImageReady { .. }
            | Self::StageReady { .. }
            | Self::StepExited {
                outcome: Outcome::Succeeded,
                ..
            }
            | Self::StepNotStarted { .. }
            | Self::RunningWritten
            | Self::RunningRefused
            | Self::LeaseLooked { .. }
            | Self::InterruptPrepared { .. }
            | Self::RevisionSeen { .. }
            | Self::Interrupted
            | Self::Ticked => self,
        }
    }
}

/// The lease as far as decisions need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseView {
    pub stop: Option<StopReason>,
    pub hold: bool,
    /// Resource version, when the lease says `Drained`.
    pub drained: Option<String>,
    /// Whether the lease's status says `Running`.
    pub running: bool,
}

impl LeaseView {
    /// What the agent of the Node with this UID makes of a lease that it works on.
    #[must_use]
    pub fn of(lease: &InterruptionLease, node_uid: &str) -> Self {
        let duty = protocol::agent_duty(lease, node_uid);
        let drained = lease.spec.drain.state == DrainState::Drained && duty == AgentDuty::Work;
        Self {
            stop: match duty {
                AgentDuty::Stop(reason) => Some(reason),
                AgentDuty::Ignore(_) => Some(StopReason::Deleted),
                AgentDuty::Accept | AgentDuty::Work | AgentDuty::Hold | AgentDuty::Finished => None,
            },
            hold: duty == AgentDuty::Hold,
            drained: lease.metadata.resource_version.clone().filter(|_| drained),
            running: protocol::phase(lease) == Some(Phase::Running),
        }
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Succeeded,
    /// What went wrong, for people: exit status and the end of its errors.
    Failed(String),
}

/// What the shell is asked to do. Each effect is safe to perform again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Have the package's files at hand.
    PullImage { key: String },
    /// Put the files of the entry's stage on the host and say which steps it has.
    PrepareStage { key: String, half: Half },
    /// Start a supervisor for a step.
    RunStep {
        key: String,
        id: u64,
        half: Half,
        index: usize,
    },
    /// Find the supervisor of a step that an earlier agent started, and wait for its result.
    AdoptStep {
        key: String,
        id: u64,
        half: Half,
        index: usize,
    },
    /// Tell the supervisor to end its step.
    EndStep { id: u64 },
    /// Write `phase: Running` over this resource version.
    WriteRunning { resource_version: String },
    /// Ask the API whether the lease still stands.
    LookAtLease,
    /// Say which units are to be restarted; report a reboot, and wait for those who inhibit it.
    PrepareInterrupt { owner: String, interrupt: Interrupt },
    /// Do not go on to prepare the interrupt.
    CallOffInterrupt,
    /// Interrupt the host. Units whose invocation is not the one in `before` any more were restarted already.
    Interrupt {
        owner: String,
        interrupt: Interrupt,
        before: BTreeMap<String, String>,
    },
}
