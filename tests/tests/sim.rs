//! The simulated cluster, over as many seeds as fit.
//!
//! `SIM_SEED=n` replays one seed, in the cluster that `SIM_SHAPE` names; `SIM_SEEDS=n` runs that many instead of a minute's
//! worth, `SIM_SECONDS=n` as many as fit into that time, `SIM_FROM=n` starts there, `SIM_KEEP_GOING=1` does not stop at the
//! first that fails.

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
use skyhook_tests::sim::{self, Run, Shape};
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds that broke something once.
const REGRESSIONS: [u64; 68] = [
    2, 3, 10, 34, 131, 186, 276, 308, 411, 435, 437, 452, 525, 561, 664, 870, 1107, 1191, 1318,
    2049, 2516, 3304, 3532, 3936, 5292, 10915, 11216, 12021, 12272, 14515, 14517, 17718, 24674,
    25289, 26596, 31289, 35902, 46319, 65640, 72792, 74797, 85722, 111471, 149, 1809, 405, 415,
    1333, 2190, 5433, 8026, 10305, 17898, 98749, 99405, 346, 357, 382, 839, 1018, 1930, 3958, 8474,
    11745, 13057, 446, 695, 1822,
];
/// The same of nodes that never get well.
const FORSAKEN_REGRESSIONS: [u64; 7] = [207, 582, 797, 975, 1213, 1661, 3586];

const BUDGET: Duration = Duration::from_secs(60);
/// As many as this also when that takes longer than a minute: two idle cores do twice as many in it.
const AT_LEAST: u64 = 2000;
/// Seeds of fleets, and of small clusters in which some things never get well, that are played each time.
const FLEETS: u64 = 2;
const FORSAKEN: u64 = 40;
const PACED: u64 = 60;
/// Lines of the trace of a seed that fails; `SIM_SEED` shows all.
const LINES: usize = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Every fourth seed is played by the scripted agent, which does less at once and nothing that the protocol does not
/// ask for; the others by the core that ships.
fn play(runtime: &Runtime, shape: Shape, seed: u64, traced: bool) -> Run {
    if seed.is_multiple_of(4) {
        sim::run::<Scripted>(runtime, shape, seed, traced)
    } else {
        sim::run::<Machine>(runtime, shape, seed, traced)
    }
}

/// Runs one seed; one that fails is run again for its trace.
fn check(runtime: &Runtime, shape: Shape, seed: u64) -> Run {
    let run = play(runtime, shape, seed, false);
    if run.failure.is_none() {
        return run;
    }
    play(runtime, shape, seed, true)
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
fn run(shape: Shape, from: u64, least: u64, limit: u64, budget: Duration) -> Sums {
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
                    let run = check(&runtime, shape, seed);
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

/// Seeds from `SIM_FROM` on, as the environment says or as many as `least` and what fits into `budget`.
fn sums(shape: Shape, least: u64, limit: u64, budget: Duration) -> Sums {
    let from = number("SIM_FROM").unwrap_or(1);
    match (number("SIM_SEEDS"), number("SIM_SECONDS")) {
        (Some(seeds), None) => run(shape, from, seeds, seeds, Duration::ZERO),
        (seeds, Some(seconds)) => {
            let limit = seeds.unwrap_or(u64::MAX / 2);
            run(shape, from, 1, limit, Duration::from_secs(seconds))
        }
        (None, None) => run(shape, from, least, limit, budget),
    }
}

fn report(shape: Shape, sums: &Sums, seconds: f64) {
    if let Some((seed, run)) = sums.failures.first() {
        println!("{}", sim::explain(shape, *seed, run, LINES));
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = sums.seeds as f64 / seconds;
    aloud(&format!(
        "simulation of {shape:?}: {} seeds in {seconds:.1} s ({rate:.1}/s): {} grants, {} requests, {} passes, {} kills, {} h of virtual time, {} failures",
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
fn seeds() {
    if let Some(seed) = number("SIM_SEED") {
        let shape = match std::env::var("SIM_SHAPE").as_deref() {
            Ok("Fleet") => Shape::Fleet,
            Ok("Forsaken") => Shape::Forsaken,
            Ok("Slow") => Shape::Slow,
            Ok("Paced") => Shape::Paced,
            Ok(_) | Err(_) => Shape::Small,
        };
        let runtime = sim::runtime().expect("a runtime without I/O can be built");
        let run = play(&runtime, shape, seed, true);
        println!("{}", sim::explain(shape, seed, &run, usize::MAX));
        assert_eq!(run.failure, None, "seed {seed}");
        return;
    }
    let started = Instant::now();
    let sums = sums(Shape::Small, AT_LEAST, u64::MAX / 2, BUDGET);
    report(Shape::Small, &sums, started.elapsed().as_secs_f64());
}

#[test]
fn fleets() {
    let started = Instant::now();
    let sums = sums(Shape::Fleet, FLEETS, FLEETS, Duration::ZERO);
    report(Shape::Fleet, &sums, started.elapsed().as_secs_f64());
}

#[test]
fn policies_that_come_and_go() {
    let started = Instant::now();
    let sums = sums(Shape::Paced, PACED, PACED, Duration::ZERO);
    report(Shape::Paced, &sums, started.elapsed().as_secs_f64());
}

#[test]
fn nodes_that_never_get_well() {
    let started = Instant::now();
    let sums = sums(Shape::Forsaken, FORSAKEN, FORSAKEN, Duration::ZERO);
    report(Shape::Forsaken, &sums, started.elapsed().as_secs_f64());
}

/// With 200 ms for each answer and a hundred nodes that drain, a node is uncordoned within 2 s of its result.
#[test]
fn a_slow_api_server_holds_up_no_node_that_is_done() {
    let runtime = sim::runtime().expect("a runtime without I/O can be built");
    let run = check(&runtime, Shape::Slow, 1);
    assert!(
        run.failure.is_none(),
        "{}",
        sim::explain(Shape::Slow, 1, &run, LINES)
    );
    let longest = run.given_back.iter().max().copied().unwrap_or(u64::MAX);
    println!(
        "{} nodes given back, within {longest} ms of their results",
        run.given_back.len()
    );
    assert!(longest <= 2000, "{:?}", run.given_back);
}

#[test]
fn seeds_that_broke_something_once() {
    let runtime = sim::runtime().expect("a runtime without I/O can be built");
    let small = REGRESSIONS.map(|seed| (Shape::Small, seed));
    let forsaken = FORSAKEN_REGRESSIONS.map(|seed| (Shape::Forsaken, seed));
    for (shape, seed) in small.into_iter().chain(forsaken) {
        let run = check(&runtime, shape, seed);
        let told = sim::explain(shape, seed, &run, LINES);
        assert!(run.failure.is_none(), "{told}");
    }
}

/// A seed that fails must fail again.
#[test]
fn a_seed_repeats_exactly() {
    let runtime = sim::runtime().expect("a runtime without I/O can be built");
    for seed in [3, 4, 5] {
        let once = play(&runtime, Shape::Small, seed, true);
        let again = play(&runtime, Shape::Small, seed, true);
        assert_eq!(once.failure, None, "seed {seed}");
        assert!(once.trace == again.trace, "seed {seed} does not repeat");
        assert_eq!(once.requests, again.requests);
    }
}
