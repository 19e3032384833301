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

/// The cluster that a seed is played in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One to six nodes, all of which are well in the end.
    Small,
    /// A hundred nodes.
    Fleet,
    /// One to six nodes, of which some never get well again.
    Forsaken,
    /// A few nodes, and Skyhooks that a policy paces. The policy changes, goes and comes back.
    Paced,
    /// A hundred nodes that drain for ever, thirty that finish, and an API server that takes 200 ms for each answer.
    Slow,
}

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
    /// For each node that was given back after its result, how many milliseconds that took.
    pub given_back: Vec<u64>,
}

/// Drives futures that only ever wait for each other; it has no clock and no I/O.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().build()
}

/// Runs one seed.
#[must_use]
pub fn run<C: Core>(runtime: &Runtime, shape: Shape, seed: u64, traced: bool) -> Run {
    let mut rng = Rng::new(seed);
    let settings = world::setup::settings(shape, C::REAPPLIES, &mut rng);
    World::<C>::new(runtime, &settings, shape, rng, traced).run()
}

/// The report of a seed that failed, with the last lines of its trace.
#[must_use]
pub fn explain(shape: Shape, seed: u64, run: &Run, lines: usize) -> String {
    let failure = run.failure.as_deref().unwrap_or("nothing failed");
    let skipped = run.trace.len().saturating_sub(lines);
    format!(
        "seed {seed}: {failure}\n{}\n{shape:?}, seed {seed}: {failure}\nreplay: SIM_SHAPE={shape:?} SIM_SEED={seed} cargo test -p skyhook-tests --test sim",
        run.trace[skipped..].join("\n")
    )
}
