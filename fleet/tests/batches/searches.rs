//! What is searched: that the rules hold, and that each of them is needed.

use super::search::{Found, search, walk};
use super::{Config, Fault, Mutation};

/// The bound of a search, in states: `BATCHES_MOST`, or else `most`.
#[expect(
    clippy::disallowed_methods,
    reason = "how long to search comes from the environment"
)]
fn bound(most: usize) -> usize {
    let asked = std::env::var("BATCHES_MOST").ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(most)
}

/// Searches, and says what was found.
#[expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "the number of states and the time are what a search is judged by"
)]
fn found(name: &str, config: &Config, most: usize) -> Found {
    let begun = std::time::Instant::now();
    let found = search(config, most);
    let end = if found.to_the_end {
        "to the end"
    } else {
        "not to the end"
    };
    let took = begun.elapsed().as_secs();
    println!("{name}: {} states, {end}, {took} s", found.states);
    if let Some((rule, way, state)) = &found.broken {
        println!("{rule}, after {} steps:", way.len());
        way.iter().for_each(|action| println!("  {action:?}"));
        println!("{state:?}");
    }
    found
}

fn hold<const N: usize>(most: usize, searches: [(&str, Config); N]) {
    for (name, config) in searches {
        let found = found(name, &config, most);
        assert!(found.broken.is_none(), "{name}");
        assert!(found.to_the_end, "{name}");
    }
}

#[test]
fn batches_hold() {
    let searches = [
        (
            "one coordinator, replaced",
            Config::new(2, 1, 2)
                .fault(Fault::Fails, 1)
                .fault(Fault::Replaced, 1),
        ),
        (
            "one coordinator, ignored",
            Config::new(2, 1, 1)
                .fault(Fault::Ignored, 2)
                .fault(Fault::Late, 1),
        ),
        (
            "one coordinator, moved",
            Config::new(2, 1, 1)
                .fault(Fault::Moved, 1)
                .fault(Fault::Fails, 1),
        ),
        (
            "one coordinator, reset",
            Config::new(2, 1, 2)
                .fault(Fault::Fails, 1)
                .fault(Fault::Reset, 1),
        ),
    ];
    hold(bound(10_000_000), searches);
    // Too many states for CI: the first of them.
    let two = Config::new(2, 2, 1).fault(Fault::Fails, 1);
    let found = found("two coordinators", &two, bound(50_000));
    assert!(found.broken.is_none());
}

/// Far more than CI has time for.
#[test]
#[ignore = "minutes: make model"]
fn batches_hold_in_all_states() {
    let two = |ceiling| Config::new(2, 2, ceiling).fault(Fault::Fails, 1);
    let searches = [
        (
            "one coordinator, all kinds of faults",
            Config::new(2, 1, 2)
                .fault(Fault::Fails, 1)
                .fault(Fault::Recovers, 1)
                .fault(Fault::Replaced, 1)
                .fault(Fault::Ignored, 1)
                .fault(Fault::Late, 1),
        ),
        (
            "three nodes, one coordinator, two failures stop",
            Config::new(3, 1, 3)
                .threshold(2)
                .fault(Fault::Fails, 2)
                .fault(Fault::Recovers, 1)
                .fault(Fault::Replaced, 1)
                .fault(Fault::Ignored, 1),
        ),
        ("two coordinators, one failure", two(2)),
        (
            "ceiling 1, and one Node replaced",
            two(1).fault(Fault::Replaced, 1),
        ),
        (
            "ceiling 1, and ignored and not any more",
            two(1).fault(Fault::Ignored, 2),
        ),
        (
            "two coordinators, one failure, one late write",
            two(2).fault(Fault::Late, 1),
        ),
    ];
    hold(bound(100_000_000), searches);
}

/// Two compartments, and a node that is moved from one into the other.
#[test]
#[ignore = "minutes: make model"]
fn batches_hold_in_two_compartments() {
    let one = Config::new(3, 1, 2).split();
    let two = |ceiling| Config::new(2, 2, ceiling).split();
    let searches = [
        (
            "three nodes in two compartments, one coordinator, moved twice",
            one.fault(Fault::Moved, 2).fault(Fault::Fails, 1),
        ),
        (
            "two nodes in two compartments, two coordinators, moved",
            two(1).fault(Fault::Moved, 1),
        ),
    ];
    hold(bound(100_000_000), searches);
}

/// Without the rule something breaks.
fn is_needed(config: &Config, most: usize) {
    let name = format!("without {:?}", config.mutation);
    assert!(found(&name, config, most).broken.is_some(), "{name}");
}

#[test]
fn rules_are_needed() {
    let most = bound(10_000_000);
    let replaced = |config: Config| config.fault(Fault::Fails, 1).fault(Fault::Replaced, 1);
    let one = |mutation| Config::new(2, 1, 1).without(mutation);
    let two = |ceiling, mutation| Config::new(2, 2, ceiling).prompt().without(mutation);
    is_needed(&replaced(one(Mutation::NoLatch)), most);
    is_needed(&replaced(one(Mutation::CompleteByName)), most);
    let stamps = Config::new(1, 2, 1).prompt().without(Mutation::StampUnseen);
    is_needed(&stamps.fault(Fault::Ignored, 2), most);
    let old = Config::new(1, 2, 1)
        .prompt()
        .without(Mutation::ReleaseOldState);
    is_needed(&old.fault(Fault::Replaced, 1), most);
    let unseen = two(1, Mutation::GrantUnseen);
    is_needed(&unseen.fault(Fault::Ignored, 2), most);
    let left = two(2, Mutation::LeftUnseen);
    let left = left.fault(Fault::Ignored, 1).fault(Fault::Fails, 1);
    is_needed(&left, most);
    let barrier = two(2, Mutation::NoBarrier);
    is_needed(&barrier.fault(Fault::Reset, 1), most);
}

/// Walks at random, with every rule in force.
#[test]
fn no_walk_breaks_a_rule() {
    for config in [
        Config::new(2, 2, 1)
            .fault(Fault::Fails, 1)
            .fault(Fault::Replaced, 1)
            .fault(Fault::Ignored, 2)
            .fault(Fault::Late, 1),
        Config::new(3, 2, 2)
            .split()
            .fault(Fault::Fails, 2)
            .fault(Fault::Recovers, 1)
            .fault(Fault::Replaced, 1)
            .fault(Fault::Moved, 2)
            .fault(Fault::Reset, 1)
            .fault(Fault::Late, 1),
    ] {
        let broken = walk(&config, 1_000, 100);
        assert!(broken.is_none(), "{broken:#?}");
    }
}
