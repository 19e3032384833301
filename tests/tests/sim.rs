//! The simulated cluster, over as many seeds as fit.
//!
//! `SIM_SEED=n` replays one seed, `SIM_SEEDS=n` runs that many instead of a minute's worth, `SIM_SECONDS=n` as many as
//! fit into that time, `SIM_FROM=n` starts there, `SIM_KEEP_GOING=1` does not stop at the first that fails.

#![expect(
    clippy::disallowed_methods,
    reason = "how many seeds fit is a matter of wall time, and what to run comes from the environment"
)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skyhook_integration::skip::aloud;
use skyhook_tests::sim::agent::machine::Machine;
use skyhook_tests::sim::agent::scripted::Scripted;
use skyhook_tests::sim::{self, Run};
use tokio::runtime::Runtime;

/// Seeds that broke something once.
const REGRESSIONS: [u64; 44] = [
    2, 3, 10, 34, 131, 186, 276, 308, 411, 435, 437, 452, 525, 561, 664, 870, 1107, 1191, 1318,
    2049, 2516, 3304, 3532, 3936, 5292, 10915, 11216, 12021, 12272, 14515, 14517, 17718, 24674,
    25289, 26596, 31289, 35902, 46319, 65640, 72792, 74797, 85722, 111471, 149,
];

const BUDGET: Duration = Duration::from_secs(60);
/// As many as this also when that takes longer than a minute: two idle cores do twice as many in it.
const AT_LEAST: u64 = 2000;
/// Lines of the trace of a seed that fails; `SIM_SEED` shows all.
const LINES: usize = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Every fourth seed is played by the scripted agent, which does less at once and nothing that the protocol does not
/// ask for; the others by the core that ships.
fn play(runtime: &Runtime, seed: u64, traced: bool) -> Run {
    if seed.is_multiple_of(4) {
        sim::run::<Scripted>(runtime, seed, traced)
    } else {
        sim::run::<Machine>(runtime, seed, traced)
    }
}

/// Runs one seed; one that fails is run again for its trace.
fn check(runtime: &Runtime, seed: u64) -> Run {
    let run = play(runtime, seed, false);
    if run.failure.is_none() {
        return run;
    }
    play(runtime, seed, true)
}

#[derive(Debug, Default)]
struct Sums {
    seeds: u64,
    requests: u64,
    passes: u64,
    kills: u64,
    grants: u64,
    virtual_ms: u64,
    failures: Vec<(u64, Run)>,
}

/// Runs seeds from `from` on until `limit` of them, or until the time is up and there were at least `least`.
fn run(from: u64, least: u64, limit: u64, budget: Duration) -> Sums {
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let sums = Mutex::new(Sums::default());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let runtime = sim::runtime().expect("a runtime without I/O can be built");
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = seed >= from + least && started.elapsed() >= budget;
                    if enough || seed >= from + limit {
                        break;
                    }
                    let run = check(&runtime, seed);
                    let mut sums = sums.lock().expect("no thread panics with the lock");
                    sums.seeds += 1;
                    sums.requests += run.requests;
                    sums.passes += run.passes;
                    sums.kills += run.kills;
                    sums.grants += run.grants;
                    sums.virtual_ms += run.took;
                    if let Some(failure) = &run.failure {
                        eprintln!("seed {seed}: {failure}");
                        sums.failures.push((seed, run));
                        if number("SIM_KEEP_GOING").is_none() {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    sums.into_inner().expect("no thread panics with the lock")
}

#[test]
fn seeds() {
    if let Some(seed) = number("SIM_SEED") {
        let runtime = sim::runtime().expect("a runtime without I/O can be built");
        let run = play(&runtime, seed, true);
        println!("{}", sim::explain(seed, &run, usize::MAX));
        assert_eq!(run.failure, None, "seed {seed}");
        return;
    }
    let started = Instant::now();
    let from = number("SIM_FROM").unwrap_or(1);
    let sums = match (number("SIM_SEEDS"), number("SIM_SECONDS")) {
        (Some(seeds), None) => run(from, seeds, seeds, Duration::ZERO),
        (seeds, Some(seconds)) => run(
            from,
            1,
            seeds.unwrap_or(u64::MAX / 2),
            Duration::from_secs(seconds),
        ),
        (None, None) => run(from, AT_LEAST, u64::MAX / 2, BUDGET),
    };
    let seconds = started.elapsed().as_secs_f64();
    if let Some((seed, run)) = sums.failures.first() {
        println!("{}", sim::explain(*seed, run, LINES));
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = sums.seeds as f64 / seconds;
    aloud(&format!(
        "simulation: {} seeds in {seconds:.1} s ({rate:.1}/s): {} grants, {} requests, {} passes, {} kills, {} h of virtual time, {} failures",
        sums.seeds,
        sums.grants,
        sums.requests,
        sums.passes,
        sums.kills,
        sums.virtual_ms / 3_600_000,
        sums.failures.len(),
    ));
    assert!(
        sums.failures.is_empty(),
        "{} seeds failed",
        sums.failures.len()
    );
}

#[test]
fn seeds_that_broke_something_once() {
    let runtime = sim::runtime().expect("a runtime without I/O can be built");
    for seed in REGRESSIONS {
        let run = check(&runtime, seed);
        assert!(run.failure.is_none(), "{}", sim::explain(seed, &run, LINES));
    }
}

/// A seed that fails must fail again.
#[test]
fn a_seed_repeats_exactly() {
    let runtime = sim::runtime().expect("a runtime without I/O can be built");
    for seed in [3, 4, 5] {
        let once = play(&runtime, seed, true);
        let again = play(&runtime, seed, true);
        assert_eq!(once.failure, None, "seed {seed}");
        assert!(once.trace == again.trace, "seed {seed} does not repeat");
        assert_eq!(once.requests, again.requests);
    }
}
