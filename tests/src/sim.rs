//! A simulated cluster: the coordinator's core and its writes, and the agents' cores, against an API server in memory, in
//! virtual time. Everything random comes from the seed, so that a seed that fails fails again.

pub mod agent;
pub mod api;
pub mod net;
pub mod rng;
pub mod world;

use tokio::runtime::Runtime;

use agent::Core;
use rng::Rng;
use world::World;

/// What a seed came to.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    /// What happened, when it was asked for; the last events only.
    pub trace: Vec<String>,
    /// Requests that reached the API server.
    pub requests: u64,
    pub passes: u64,
    pub kills: u64,
    /// Leases that were granted.
    pub grants: u64,
    /// Virtual milliseconds.
    pub took: u64,
}

/// Drives futures that only ever wait for each other; it has no clock and no I/O.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().build()
}

/// Runs one seed.
#[must_use]
pub fn run<C: Core>(runtime: &Runtime, seed: u64, traced: bool) -> Run {
    let mut rng = Rng::new(seed);
    let settings = world::setup::settings(&mut rng);
    World::<C>::new(runtime, &settings, rng, traced).run()
}

/// The report of a seed that failed, with the last lines of its trace.
#[must_use]
pub fn explain(seed: u64, run: &Run, lines: usize) -> String {
    let failure = run.failure.as_deref().unwrap_or("nothing failed");
    let skipped = run.trace.len().saturating_sub(lines);
    format!(
        "seed {seed}: {failure}\n{}\nseed {seed}: {failure}\nreplay: SIM_SEED={seed} cargo test -p skyhook-tests --test sim",
        run.trace[skipped..].join("\n")
    )
}
