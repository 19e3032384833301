//! Checks a DeploymentPolicy, and turns it into what a roll-out works with.

use kube::core::Expression;

use super::{Budget, Compartment, DEFAULT_COMPARTMENT, DeploymentPolicySpec, Strategy};
use crate::admission::words;
use crate::field::{FieldErrors, Problems};
use crate::selector;

/// Most compartments of a policy.
pub const MOST_COMPARTMENTS: usize = 64;
/// Longest name of a compartment, in bytes: that of a label's value. The status of a Skyhook has an entry for each.
const LONGEST_NAME: usize = 63;

/// A DeploymentPolicy after the checks.
#[derive(Clone, Debug)]
pub struct CheckedPolicy {
    /// For nodes that no compartment matches; it is called [`DEFAULT_COMPARTMENT`].
    pub default: CheckedCompartment,
    pub compartments: Vec<CheckedCompartment>,
    /// True when a completed roll-out and a new version begin with the first batch size again.
    pub resets: bool,
}

/// One compartment after the checks.
#[derive(Clone, Debug)]
pub struct CheckedCompartment {
    pub name: String,
    /// What the labels of a node have to meet. The default compartment's matches every node, and is never asked.
    pub selector: Vec<Expression>,
    pub ceiling: Ceiling,
    /// `None`: no batches, as many nodes at once as the ceiling allows.
    pub pace: Option<Pace>,
}

/// How many nodes of a compartment may be worked on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    Percent(u32),
    Count(u32),
}

impl Ceiling {
    /// The ceiling for so many matched nodes: percent rounds down but gives at least one, and no ceiling is above the
    /// number of nodes.
    #[must_use]
    pub fn of(self, matched: usize) -> usize {
        let asked = match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Self::Percent(percent) => {
                let share = matched as u64 * u64::from(percent) / 100;
                usize::try_from(share).unwrap_or(usize::MAX).max(1)
            }
        };
        asked.min(matched)
    }
}

/// How batches follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub growth: Growth,
    /// Nodes of the first batch.
    pub initial_batch: u32,
    /// Percent of a batch that must succeed.
    pub batch_threshold: u32,
    /// Failed batches in a row that stop the compartment; `None` never stops it.
    pub failure_threshold: Option<u32>,
    /// Percent of progress from which failures no longer slow or stop.
    pub safety_limit: u32,
}

/// How the size of a batch follows from that of the one before. The order is that of caution: where several compartments
/// match a node the first of these wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Growth {
    Fixed,
    Linear { delta: u32 },
    Exponential { factor: u32 },
}

impl DeploymentPolicySpec {
    /// Finds everything that is wrong with the policy.
    pub fn check(&self) -> Result<CheckedPolicy, FieldErrors> {
        let mut problems = Problems::default();
        let default = CheckedCompartment {
            name: DEFAULT_COMPARTMENT.to_owned(),
            selector: Vec::new(),
            ceiling: ceiling(&self.default.budget, "spec.default.budget", &mut problems),
            pace: pace(
                &self.default.strategy,
                "spec.default.strategy",
                &mut problems,
            ),
        };
        if self.compartments.len() > MOST_COMPARTMENTS {
            problems.add(
                "spec.compartments",
                format!(
                    "there are {}, and at most {MOST_COMPARTMENTS} are allowed",
                    self.compartments.len()
                ),
            );
        }
        twins(&self.compartments, &mut problems);
        let compartments = self.compartments.iter().enumerate();
        let compartments = compartments
            .map(|(at, one)| compartment(one, &format!("spec.compartments[{at}]"), &mut problems))
            .collect();
        problems.or(CheckedPolicy {
            default,
            compartments,
            resets: self.reset_batch_state_on_completion.unwrap_or(true),
        })
    }
}

/// Compartments that cannot be told apart, or that match the same nodes.
fn twins(all: &[Compartment], problems: &mut Problems) {
    type Alike = fn(&Compartment, &Compartment) -> bool;
    let rules: [(&str, Alike); 2] = [
        (words::SAME_NAMES, |a, b| a.name == b.name),
        (words::SAME_SELECTORS, |a, b| a.selector == b.selector),
    ];
    for (words, are_alike) in rules {
        let has_twin = |one: &&Compartment| all.iter().filter(|b| are_alike(one, b)).count() > 1;
        let names: Vec<&String> = all.iter().filter(has_twin).map(|one| &one.name).collect();
        if !names.is_empty() {
            problems.add("spec.compartments", words::with(words, &names));
        }
    }
}

fn compartment(given: &Compartment, path: &str, problems: &mut Problems) -> CheckedCompartment {
    if given.name.is_empty() {
        problems.add(format!("{path}.name"), "a compartment needs a name");
    } else if given.name == DEFAULT_COMPARTMENT {
        problems.add(format!("{path}.name"), words::DEFAULT_NAME);
    } else if given.name.len() > LONGEST_NAME {
        problems.add(
            format!("{path}.name"),
            format!(
                "it has {} bytes, and at most {LONGEST_NAME} are allowed: choose a shorter one",
                given.name.len()
            ),
        );
    }
    let strategy = given.strategy.as_ref();
    CheckedCompartment {
        name: given.name.clone(),
        selector: selector::check(&given.selector, &format!("{path}.selector"), problems)
            .into_iter()
            .collect(),
        ceiling: ceiling(&given.budget, &format!("{path}.budget"), problems),
        pace: strategy.and_then(|one| pace(one, &format!("{path}.strategy"), problems)),
    }
}

fn ceiling(given: &Budget, path: &str, problems: &mut Problems) -> Ceiling {
    match (given.percent, given.count) {
        (Some(percent), None) => {
            let path = format!("{path}.percent");
            Ceiling::Percent(problems.within(percent, 1..=100, &path))
        }
        (None, Some(count)) => {
            let path = format!("{path}.count");
            Ceiling::Count(problems.within(count, 1..=i32::MAX, &path))
        }
        (given_percent, _) => {
            let both = given_percent.is_some();
            let problem = if both {
                words::BUDGET_BOTH
            } else {
                words::BUDGET_NEITHER
            };
            problems.add(path, problem);
            Ceiling::Count(1)
        }
    }
}

fn pace(given: &Strategy, path: &str, problems: &mut Problems) -> Option<Pace> {
    let set = [
        given.fixed.is_some(),
        given.linear.is_some(),
        given.exponential.is_some(),
    ];
    if set.iter().filter(|is_set| **is_set).count() != 1 {
        problems.add(path, words::STRATEGY);
        return None;
    }
    let (kind, growth, common) = if let Some(linear) = &given.linear {
        let path = format!("{path}.linear.delta");
        let delta = problems.within(linear.delta, 1..=i32::MAX, &path);
        let common = (
            linear.initial_batch,
            linear.batch_threshold,
            linear.failure_threshold,
            linear.safety_limit,
        );
        ("linear", Growth::Linear { delta }, common)
    } else if let Some(exponential) = &given.exponential {
        let path = format!("{path}.exponential.growthFactor");
        let factor = problems.within(exponential.growth_factor, 2..=i32::MAX, &path);
        let common = (
            exponential.initial_batch,
            exponential.batch_threshold,
            exponential.failure_threshold,
            exponential.safety_limit,
        );
        ("exponential", Growth::Exponential { factor }, common)
    } else {
        let fixed = given.fixed.as_ref()?;
        let common = (
            fixed.initial_batch,
            fixed.batch_threshold,
            fixed.failure_threshold,
            fixed.safety_limit,
        );
        ("fixed", Growth::Fixed, common)
    };
    let (initial_batch, batch_threshold, failure_threshold, safety_limit) = common;
    let path = format!("{path}.{kind}");
    let mut number =
        |value, range, name: &str| problems.within(value, range, &format!("{path}.{name}"));
    Some(Pace {
        growth,
        initial_batch: number(initial_batch, 1..=i32::MAX, "initialBatch"),
        batch_threshold: number(batch_threshold, 1..=100, "batchThreshold"),
        failure_threshold: failure_threshold
            .map(|threshold| number(threshold, 1..=i32::MAX, "failureThreshold")),
        safety_limit: number(safety_limit, 1..=100, "safetyLimit"),
    })
}
