//! The agent's main loop: one task that sends events to the machine and performs the effects.
//!
//! Every event goes through [`agent::Agent::feed`]. [`agent::Agent::commit`] then writes the journal, performs the
//! effects and reports, in that order. Effects run as local tasks, which send events back:
//!
//! | effect | performed by | event |
//! |---|---|---|
//! | `PullImage` | `pull` in `effects` | `ImageReady`, `ImageFailed` |
//! | `PrepareStage` | `prepare` in `effects` | `StageReady`, `StageFailed` |
//! | `RunStep` | `run_step` in `effects`, then `step_done` in `judge` | `StepExited`, `StepLost`, `StageFailed` |
//! | `AdoptStep` | `adopt_step` in `effects`, then `step_done` in `judge` | the same, `StepNotStarted` |
//! | `EndStep` | `Supervisors::end` | none: the step exits |
//! | `WriteRunning` | `call` in `status` | `RunningWritten`, `RunningRefused` |
//! | `LookAtLease` | `look` in `effects` | `LeaseLooked` |
//! | `LookAtNode` | `look_at_node` in `effects` | `NodeLooked` |
//! | `PrepareInterrupt` | `prepare_interrupt` in `interrupt` | `InterruptPrepared`, `InterruptWaits`, `InterruptFailed` |
//! | `CallOffInterrupt` | `call_off_interrupt` in `interrupt` | none |
//! | `Interrupt` | `interrupt` in `interrupt` | `Interrupted`, `InterruptWaits`, `InterruptFailed`; after a reboot `Restarted` |

use std::fs::File;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};
use tracing_subscriber::EnvFilter;

use crate::config::{ReadyArgs, RunArgs, Settings};
use crate::host::Host;
use crate::host::systemd::{Bus, too_old};
use crate::lease::LeaseApi;

mod agent;
mod begin;
mod effects;
mod housekeeping;
mod interrupt;
mod judge;
mod note;
mod presence;
mod probe;
mod recover;
mod revision;
mod status;
mod steps;
mod time;
mod writer;

use agent::Agent;
use note::Note;
use probe::Probes;

/// Runs the agent until SIGTERM.
pub fn main(args: RunArgs) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(io::stderr)
        .with_env_filter(
            EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| EnvFilter::new("info,kube_client=warn")),
        )
        .init();
    let settings = args.settings()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("the runtime cannot be built")?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, run(settings));
    // Do not wait long for blocking work that still runs: everything important is in the journal.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// Waits until this is the only agent on the host. Returns the host, the lock that other agents wait for, and the socket
/// for probes.
async fn claim_host(settings: &Settings) -> anyhow::Result<(Host, File, Probes)> {
    let host = Host::open(&settings.host_root)?;
    let state = host.locate(&settings.state_dir)?;
    presence::make_state_directory(&state).with_context(|| format!("{state} cannot be created"))?;
    let only = presence::only_agent(&state).await?;
    let probes = Probes::open(state.path())
        .with_context(|| format!("the socket for probes in {state} cannot be created"))?;
    Ok((host, only, probes))
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (host, _only, probes) = tokio::select! {
        claimed = claim_host(&settings) => claimed?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut reached = false;
    let client = client().await?;
    let api = LeaseApi::new(client, settings.node.clone(), settings.namespace.clone());
    let (notes, mut inbox) = unbounded_channel();
    let bus = Rc::new(Bus::of(&host.files));
    let unable = problem_of(&bus).await;
    let mut agent = Agent::start(settings, host, api.clone(), bus, unable, notes)?;
    let (seen, mut leases) = unbounded_channel();
    tokio::task::spawn_local(api.watch(seen));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "the agent has started");
    loop {
        let wake = agent.wake_at().unwrap_or_else(far);
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(note) = inbox.recv() => {
                agent.take(note);
                // Take all waiting notes first, so that they share one write of the journal.
                while let Ok(note) = inbox.try_recv() {
                    agent.take(note);
                }
            }
            Some(event) = leases.recv() => {
                reached = true;
                agent.take(Note::Lease(event));
            }
            () = sleep_until(wake) => agent.take(Note::Woken),
            Ok(stream) = probes.asked() => {
                probe::answer(stream, reached);
                continue;
            }
        }
        agent.commit();
    }
    tracing::info!("the agent stops; running steps go on under their supervisors");
    Ok(())
}

/// A message if systemd on this host is too old for the agent. `None` if it is new enough, or does not answer yet.
async fn problem_of(bus: &Bus) -> Option<String> {
    match bus.version().await {
        Ok(version) => {
            let problem = too_old(&version);
            match &problem {
                Some(problem) => tracing::error!(%problem, "the systemd of this host is too old"),
                None => tracing::info!(systemd = %version, "the host's systemd answers"),
            }
            problem
        }
        Err(error) => {
            tracing::warn!(error = %skyhook_oci::chain(&error), "the host's systemd does not answer");
            None
        }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer()
        .await
        .context("neither KUBECONFIG nor a service account leads to the API")?;
    // The agent has its own retries.
    config.default_retry = false;
    kube::Client::try_from(config).context("the API client cannot be built")
}

/// The command for exec probes. The readiness probe succeeds when the agent runs, its loop does not hang and its watch
/// has reached the API. The liveness probe (`--live`) fails only when the loop hangs.
pub fn ready(args: &ReadyArgs) -> anyhow::Result<()> {
    let host = Host::open(&args.state.host_root)?;
    let state = host.locate(&args.state.state_dir)?;
    if args.live {
        probe::live(state.path())
    } else {
        probe::ready(&state)
    }
}

#[cfg(test)]
mod tests;
