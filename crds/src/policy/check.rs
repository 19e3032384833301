//! Checks a DeploymentPolicy, and turns it into what a roll-out works with.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector};

use super::{Budget, Compartment, DEFAULT_COMPARTMENT, DeploymentPolicySpec, Strategy};
use crate::field::{FieldErrors, Problems};
use crate::names::{is_label_key, is_label_value};

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
        let mut names = BTreeSet::new();
        let mut compartments: Vec<CheckedCompartment> = Vec::new();
        for (at, given) in self.compartments.iter().enumerate() {
            let path = format!("spec.compartments[{at}]");
            if !names.insert(given.name.as_str()) {
                problems.add(
                    format!("{path}.name"),
                    format!("there is another compartment {:?}", given.name),
                );
            }
            let earlier = &self.compartments[..at];
            if let Some(twin) = earlier.iter().find(|one| one.selector == given.selector) {
                problems.add(
                    format!("{path}.selector"),
                    format!("compartment {:?} has the same selector", twin.name),
                );
            }
            compartments.push(compartment(given, &path, &mut problems));
        }
        problems.or(CheckedPolicy {
            default,
            compartments,
            resets: self.reset_batch_state_on_completion.unwrap_or(true),
        })
    }
}

fn compartment(given: &Compartment, path: &str, problems: &mut Problems) -> CheckedCompartment {
    if given.name.is_empty() {
        problems.add(format!("{path}.name"), "a compartment needs a name");
    } else if given.name == DEFAULT_COMPARTMENT {
        problems.add(
            format!("{path}.name"),
            format!("{DEFAULT_COMPARTMENT} is the name of spec.default: choose another one"),
        );
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
        selector: selector(&given.selector, &format!("{path}.selector"), problems),
        ceiling: ceiling(&given.budget, &format!("{path}.budget"), problems),
        pace: strategy.and_then(|one| pace(one, &format!("{path}.strategy"), problems)),
    }
}

fn selector(given: &LabelSelector, path: &str, problems: &mut Problems) -> Vec<Expression> {
    let wrong = wrong_labels(given);
    if !wrong.is_empty() {
        for problem in wrong {
            problems.add(path, problem);
        }
        return Vec::new();
    }
    let selector = Selector::try_from(given.clone()).unwrap_or_else(|error| {
        problems.add(path, format!("the selector is not valid: {error}"));
        Selector::default()
    });
    selector.into_iter().collect()
}

/// What Kubernetes refuses in a selector, and the conversion of it takes. Such a selector would match no node, or all of them.
fn wrong_labels(given: &LabelSelector) -> Vec<String> {
    let mut wrong = Vec::new();
    let labels = given.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| (key, std::slice::from_ref(value)));
    let expressions = given.match_expressions.iter().flatten();
    for one in expressions.clone() {
        let has_values = one.values.as_ref().is_some_and(|all| !all.is_empty());
        let (operator, key) = (&one.operator, &one.key);
        match operator.as_str() {
            "In" | "NotIn" if !has_values => {
                wrong.push(format!("operator {operator} of label {key:?} needs values"));
            }
            "Exists" | "DoesNotExist" if has_values => {
                wrong.push(format!(
                    "operator {operator} of label {key:?} takes no values"
                ));
            }
            _ => {}
        }
    }
    let expressions = expressions.map(|one| (&one.key, one.values.as_deref().unwrap_or_default()));
    for (key, values) in labels.chain(expressions) {
        if !is_label_key(key) {
            wrong.push(format!("{key:?} is no key of a label"));
        }
        let mut values = values.iter();
        if let Some(value) = values.find(|value| !value.is_empty() && !is_label_value(value)) {
            wrong.push(format!("{value:?} is no value of a label"));
        }
    }
    wrong
}

fn ceiling(given: &Budget, path: &str, problems: &mut Problems) -> Ceiling {
    match (given.percent, given.count) {
        (Some(percent), None) => {
            let path = format!("{path}.percent");
            Ceiling::Percent(within(percent, 1..=100, &path, problems))
        }
        (None, Some(count)) => {
            let path = format!("{path}.count");
            Ceiling::Count(within(count, 1..=i32::MAX, &path, problems))
        }
        (given_percent, _) => {
            let both = given_percent.is_some();
            let problem = if both {
                "percent and count are both set: set one of them"
            } else {
                "neither percent nor count is set: set one of them"
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
        problems.add(path, "set exactly one of fixed, linear and exponential");
        return None;
    }
    let (kind, growth, common) = if let Some(linear) = &given.linear {
        let path = format!("{path}.linear.delta");
        let delta = within(linear.delta, 1..=i32::MAX, &path, problems);
        let common = (
            linear.initial_batch,
            linear.batch_threshold,
            linear.failure_threshold,
            linear.safety_limit,
        );
        ("linear", Growth::Linear { delta }, common)
    } else if let Some(exponential) = &given.exponential {
        let path = format!("{path}.exponential.growthFactor");
        let factor = within(exponential.growth_factor, 2..=i32::MAX, &path, problems);
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
        |value, range, name: &str| within(value, range, &format!("{path}.{name}"), problems);
    Some(Pace {
        growth,
        initial_batch: number(initial_batch, 1..=i32::MAX, "initialBatch"),
        batch_threshold: number(batch_threshold, 1..=100, "batchThreshold"),
        failure_threshold: failure_threshold
            .map(|threshold| number(threshold, 1..=i32::MAX, "failureThreshold")),
        safety_limit: number(safety_limit, 1..=100, "safetyLimit"),
    })
}

/// `value`, or the least of the range and a problem when it is outside.
fn within(value: i32, range: RangeInclusive<i32>, path: &str, problems: &mut Problems) -> u32 {
    let least = *range.start();
    let value = if range.contains(&value) {
        value
    } else {
        let bound = if *range.end() == i32::MAX {
            format!("{least} or more")
        } else {
            format!("from {least} to {}", range.end())
        };
        problems.add(path, format!("it is {value}, and must be {bound}"));
        least
    };
    value.unsigned_abs()
}
