//! Runs the checker over one configuration: safety with stateright, liveness over the graph of all states.

#![expect(
    clippy::disallowed_methods,
    reason = "how long it took is part of the report"
)]

use std::fmt;
use std::time::{Duration, Instant};

use stateright::{Checker as _, HasDiscoveries, Model as _};

use super::{Action, Config, State, explore};

/// What is reported of a state from which no complete one can be reached.
pub const STUCK: &str = "every run can end complete";

/// What was explored, and what was found.
#[derive(Debug)]
pub struct Report {
    pub config: Config,
    /// States that differ.
    pub states: usize,
    /// Transitions, to new states and to known ones.
    pub transitions: usize,
    /// States in which everything is complete.
    pub complete: usize,
    pub depth: usize,
    pub took: Duration,
    pub broken: Option<Counterexample>,
}

/// How a rule comes to be broken.
#[derive(Debug)]
pub struct Counterexample {
    pub rule: &'static str,
    pub steps: Vec<Action>,
    pub state: Box<State>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config {
            name,
            nodes,
            coordinators,
            budget,
            queue,
            ..
        } = self.config;
        write!(
            f,
            "{name}: {nodes} nodes, budget {budget}, {coordinators} coordinators, {queue} events held back{}: \
             {} states, {} transitions, depth {}, {} complete, {:.1} s",
            self.config.faults(),
            self.states,
            self.transitions,
            self.depth,
            self.complete,
            self.took.as_secs_f32(),
        )?;
        if let Some(broken) = &self.broken {
            write!(f, "\nBROKEN: {}", broken.rule)?;
            for step in &broken.steps {
                write!(f, "\n  {step:?}")?;
            }
            write!(f, "\n{:#?}", broken.state)?;
        }
        Ok(())
    }
}

/// Explores all states of the configuration, or until a rule is found broken, or `limit` transitions were made.
#[must_use]
pub fn check(config: &Config, limit: Option<usize>) -> Report {
    let began = Instant::now();
    let builder = config.checker().finish_when(HasDiscoveries::AnyFailures);
    // One thread finds the shortest counterexample, and always the same.
    let builder = match limit {
        Some(limit) => builder.target_state_count(limit),
        None => builder.threads(2),
    };
    let checker = builder.spawn_bfs().join();
    let mut report = Report {
        config: *config,
        states: checker.unique_state_count(),
        transitions: checker.state_count(),
        complete: 0,
        depth: checker.max_depth(),
        took: began.elapsed(),
        broken: None,
    };
    let broken = checker
        .discoveries()
        .into_iter()
        .filter(|(rule, _)| config.property(rule).expectation.discovery_is_failure());
    report.broken = broken
        .map(|(rule, path)| Counterexample {
            rule,
            state: Box::new(path.last_state().clone()),
            steps: path.into_actions(),
        })
        .min_by_key(|found| (found.steps.len(), found.rule));
    let all = limit.is_none_or(|limit| report.transitions < limit);
    if report.broken.is_none() && all {
        let liveness = explore::liveness(config);
        report.complete = liveness.complete;
        report.broken = liveness.stuck.map(|(steps, state)| Counterexample {
            rule: STUCK,
            steps,
            state,
        });
    }
    report.took = began.elapsed();
    report
}
