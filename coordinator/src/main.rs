//! `skyhook-coordinator`: parses flags, sets logging up, runs the loop until it is told to stop.

#![expect(clippy::disallowed_methods, reason = "the shell owns the clock")]

use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use k8s_openapi::jiff::Timestamp;
use kube::client::ClientBuilder;
use kube::{Client, Config};
use skyhook_coordinator::config::Settings;
use skyhook_coordinator::metrics::Metrics;
use skyhook_coordinator::metrics::requests::Counting;
use skyhook_coordinator::run;
use skyhook_coordinator::uninstall::removal::{self, RemovalArgs};
use skyhook_coordinator::uninstall::{self, CleanupArgs};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Grants interruption leases for the nodes of a cluster and keeps the record of what is installed on them.
#[derive(Parser, Debug)]
#[command(
    name = "skyhook-coordinator",
    version,
    args_conflicts_with_subcommands = false
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do instead of coordinating.
#[derive(Subcommand, Debug)]
enum Command {
    /// Delete all Skyhooks and see that nothing of them holds up an uninstall.
    Cleanup(CleanupArgs),
    /// Wait until no CustomResourceDefinition of Skyhook is being deleted, and see that nothing holds that up.
    FinishRemoval(RemovalArgs),
}

fn main() -> anyhow::Result<()> {
    let Cli { settings, command } = Cli::parse();
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    // The program mostly waits. One thread is enough, and saves memory.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(async {
            let metrics = Metrics::new(settings.nodewright_metrics);
            match command {
                None => serve(settings, metrics).await,
                Some(Command::Cleanup(args)) => {
                    uninstall::run(client(&metrics).await?, &settings, &args).await
                }
                Some(Command::FinishRemoval(args)) => {
                    removal::run(client(&metrics).await?, &args).await
                }
            }
        })
}

async fn client(metrics: &Metrics) -> anyhow::Result<Client> {
    let mut config = Config::infer()
        .await
        .context("find the API server (KUBECONFIG, or the pod's service account)")?;
    // A PodDisruptionBudget refuses an eviction with 429 as well. If the client itself tried again, nobody would see
    // the refusal.
    config.default_retry = false;
    // A watch whose connection is lost says nothing. A healthy watch gets a bookmark every minute.
    config.read_timeout = Some(WATCH_SILENCE);
    let builder = ClientBuilder::try_from(config).context("build the API client")?;
    let counting = Counting(metrics.clone());
    Ok(builder.with_layer(&counting).build())
}

/// How long a connection to the API server may be silent.
const WATCH_SILENCE: Duration = Duration::from_secs(150);

async fn serve(settings: Settings, metrics: Metrics) -> anyhow::Result<()> {
    let client = client(&metrics).await?;
    let (stop, stopped) = watch::channel(false);
    let (ready, is_ready) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    if let Some(address) = settings.probe_address {
        tokio::spawn(skyhook_coordinator::probe::serve(address, is_ready));
    }
    if let Some(address) = settings.metrics_address {
        let scraped = metrics.clone();
        tokio::spawn(skyhook_coordinator::metrics::serve(
            address,
            scraped,
            Timestamp::now,
        ));
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        identity = settings.identity,
        "started"
    );
    let running = run::run(client, &settings, &metrics, stopped, ready);
    tokio::pin!(running);
    let result = tokio::select! {
        result = &mut running => result,
        _ = terminate.recv() => { stop.send_replace(true); running.await }
        _ = interrupt.recv() => { stop.send_replace(true); running.await }
    };
    tracing::info!("stopped");
    result
}
