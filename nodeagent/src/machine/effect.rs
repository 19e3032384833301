//! Inputs and effects of [`super::step`].

use std::collections::BTreeMap;

use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::lease::{DrainState, InterruptionLease, Phase, StopReason};
use skyhook_crds::package::Interrupt;
use skyhook_oci::RetryClass;

use super::progress::{Half, StepPlan};
use crate::text;

/// An event, and the time when it happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Unix milliseconds.
    pub now: i64,
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A new lease was accepted. The progress is new, and its entries are reconciled with the Node's record.
    LeaseAccepted,
    /// The agent was started, in the boot `boot_id`, and has read this progress from the journal.
    Restarted {
        boot_id: String,
    },
    /// The lease was seen in the watch, or read from the API.
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
    /// The stage's files could not be put on the host, or a step could not be started. With a terminal class, the user
    /// must change the image or the settings.
    StageFailed {
        key: String,
        reason: String,
        class: RetryClass,
    },
    StepExited {
        key: String,
        id: u64,
        outcome: Outcome,
        /// How long the step ran, in milliseconds.
        took_ms: u64,
    },
    /// The supervisor died without a result, or something other than the agent ended the step.
    StepLost {
        key: String,
        id: u64,
        /// How the step ended, as far as the agent knows.
        problem: String,
    },
    /// An earlier agent died before it had started the step.
    StepNotStarted {
        key: String,
        id: u64,
    },
    /// `phase: Running` was written to the lease that said `Drained`.
    RunningWritten,
    /// `phase: Running` was not written, because the lease has changed.
    RunningRefused,
    /// The lease was read before an interrupt. `stands` is true when the lease still asks for this work, and also when
    /// the API does not answer.
    LeaseLooked {
        lease: String,
        stands: bool,
    },
    /// The interrupt can be performed now. `before` has the units to restart, with their invocation IDs.
    InterruptPrepared {
        before: BTreeMap<String, String>,
    },
    /// The interrupt has to wait, for the given reason.
    InterruptWaits {
        reason: String,
    },
    /// The lease is stopped for a new revision, which has these packages: version and identity by name.
    RevisionSeen {
        packages: BTreeMap<String, (String, String)>,
    },
    /// The Node was read again: what packages request and it does not have, by package.
    NodeLooked {
        lacking: BTreeMap<String, String>,
    },
    Interrupted,
    InterruptFailed {
        reason: String,
        /// False when it is certain that systemd was not asked for a reboot.
        asked: bool,
    },
    /// Time has passed.
    Ticked,
}

impl Event {
    /// The event with every text cut to the length of a message and without control sequences. These texts are written
    /// to the journal, the lease, the Node and the Skyhook. The agent's log has the whole text.
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
                took_ms,
            } => Self::StepExited {
                key,
                id,
                outcome: Outcome::Failed(bounded(reason)),
                took_ms,
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
            Self::LeaseAccepted
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
            | Self::NodeLooked { .. }
            | Self::Interrupted
            | Self::Ticked => self,
        }
    }
}

/// The parts of the lease that the machine needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseView {
    pub stop: Option<StopReason>,
    pub hold: bool,
    /// Resource version of the lease, when it says `Drained`.
    pub drained: Option<String>,
    /// Whether the lease's status says `Running`.
    pub running: bool,
}

impl LeaseView {
    /// What the lease asks of the agent that works on it. `node_uid` is the UID of the agent's Node.
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
    /// What went wrong, as a message: exit status and the end of the output.
    Failed(String),
}

/// What the shell has to do. Performing an effect twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Pull the package's image into the store.
    PullImage { key: String },
    /// Put the files of the package on the host, and answer with the steps of the stage.
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
    /// Tell the supervisor to end the step.
    EndStep { id: u64 },
    /// Write `phase: Running` with this resource version as the precondition.
    WriteRunning { resource_version: String },
    /// Read the lease and answer whether it still asks for this work.
    LookAtLease,
    /// Read the Node and answer what packages request and it does not have.
    LookAtNode,
    /// Before a restart of services: find their units. Before a reboot: report the reboot and wait for inhibitors.
    PrepareInterrupt { owner: String, interrupt: Interrupt },
    /// Stop preparing the interrupt.
    CallOffInterrupt,
    /// Interrupt the host. Units whose invocation ID differs from the one in `before` were restarted already.
    Interrupt {
        owner: String,
        interrupt: Interrupt,
        before: BTreeMap<String, String>,
    },
}
