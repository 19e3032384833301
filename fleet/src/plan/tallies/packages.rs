//! Packages by state and stage. Most nodes of a Skyhook say the same about their packages: what they say is a *shape*. Each
//! cell notes the number of its shape, and a pass counts numbers.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::installed::PackageStates;
use skyhook_crds::stage::{Stage, State};

use crate::facts::{Origin, Record};

/// Package versions of one Skyhook that are told apart.
pub(in crate::plan) const MOST: usize = 128;

/// One version of a package, on all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackageCounts {
    /// Nodes by state of the package.
    pub by_state: BTreeMap<State, usize>,
    /// Nodes by stage of the package.
    pub by_stage: BTreeMap<Stage, usize>,
    /// Nodes on which a stage is complete, by stage. It grows with every stage that ends well.
    pub ended: BTreeMap<Stage, usize>,
    /// How often the package was tried again, over all nodes.
    pub restarts: u64,
}

/// Identifies a shape: digest of the annotation, and whether it is read in the early form.
type Key = (String, bool);

#[derive(Debug)]
struct Shape {
    key: Key,
    /// By `name|version`.
    packages: Vec<(String, Stage, State, i32)>,
}

/// The number of a shape in its [`Shapes`]; 0 is that of a node that contributes nothing.
pub(in crate::plan) type Number = u32;

/// The shapes of one Skyhook.
#[derive(Debug, Default)]
pub(in crate::plan) struct Shapes {
    numbers: BTreeMap<Key, Number>,
    /// The shape with the number `n` is at `n - 1`.
    all: Vec<Shape>,
    /// Numbers that the last count did not meet.
    free: Vec<Number>,
}

impl Shapes {
    /// The number of what a record says.
    pub(in crate::plan) fn number(&mut self, record: &Record) -> Number {
        let Ok(states) = &record.states else {
            return 0;
        };
        if states.is_empty() {
            return 0;
        }
        let key = (record.digest.clone(), record.origin == Origin::Early);
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let shape = Shape {
            key: key.clone(),
            packages: entries(states),
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.all[number as usize - 1] = shape;
                number
            }
            None => {
                self.all.push(shape);
                Number::try_from(self.all.len()).unwrap_or(Number::MAX)
            }
        };
        self.numbers.insert(key, number);
        number
    }

    /// Counts packages by the numbers that the cells of all nodes have. A shape that no cell has is forgotten. Of more
    /// than [`MOST`] package versions, those of the spec are kept before others; returns also how many are left out.
    pub(in crate::plan) fn count(
        &mut self,
        cells: impl Iterator<Item = Number>,
        spec: &BTreeSet<String>,
    ) -> (BTreeMap<String, PackageCounts>, usize) {
        let mut nodes = vec![0_usize; self.all.len()];
        for number in cells {
            let at = (number as usize).checked_sub(1);
            if let Some(nodes) = at.and_then(|at| nodes.get_mut(at)) {
                *nodes += 1;
            }
        }
        let mut counts: BTreeMap<String, PackageCounts> = BTreeMap::new();
        self.free.clear();
        for (at, (shape, nodes)) in self.all.iter().zip(nodes).enumerate() {
            if nodes == 0 {
                self.numbers.remove(&shape.key);
                self.free.push(Number::try_from(at + 1).unwrap_or_default());
                continue;
            }
            for (key, stage, state, restarts) in &shape.packages {
                if !counts.contains_key(key) {
                    counts.insert(key.clone(), PackageCounts::default());
                }
                let Some(of) = counts.get_mut(key) else {
                    continue;
                };
                *of.by_state.entry(*state).or_default() += nodes;
                *of.by_stage.entry(*stage).or_default() += nodes;
                if *state == State::Complete {
                    *of.ended.entry(*stage).or_default() += nodes;
                }
                let restarts = u64::try_from(*restarts).unwrap_or_default();
                of.restarts += restarts * nodes as u64;
            }
        }
        let omitted = counts.len().saturating_sub(MOST);
        if omitted > 0 {
            let mut order: Vec<String> = counts.keys().cloned().collect();
            order.sort_by_key(|key| !spec.contains(key));
            for key in order.split_off(MOST) {
                counts.remove(&key);
            }
        }
        (counts, omitted)
    }
}

fn entries(states: &PackageStates) -> Vec<(String, Stage, State, i32)> {
    let all = states.iter();
    let all = all.map(|(key, one)| (key.clone(), one.stage, one.state, one.restarts));
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::NodeFact;

    fn record(node: &NodeFact) -> Record {
        node.record("s").clone()
    }

    fn node(states: &serde_json::Value) -> NodeFact {
        let mut node = crate::testkit::node_object("worker-1");
        let key = skyhook_crds::names::node_state("s");
        node["metadata"]["annotations"] = serde_json::json!({ key: states.to_string() });
        NodeFact::new(serde_json::from_value(node).unwrap())
    }

    fn says(version: &str, stage: &str, state: &str, restarts: i32) -> Record {
        let key = format!("a|{version}");
        record(&node(&serde_json::json!({ key: {
            "name": "a", "version": version, "image": "r/a", "stage": stage, "state": state, "restarts": restarts,
        } })))
    }

    #[test]
    fn nodes_are_summed_over_shapes() {
        let mut shapes = Shapes::default();
        let config = shapes.number(&says("1.0.0", "config", "erroring", 3));
        let apply = shapes.number(&says("1.0.0", "apply", "erroring", 1));
        let done = shapes.number(&says("1.0.0", "config", "complete", 0));
        assert_eq!([config, apply, done], [1, 2, 3]);
        assert_eq!(shapes.number(&says("1.0.0", "config", "complete", 0)), done);
        let cells = [config, apply, apply, done, 0];
        let (counts, omitted) = shapes.count(cells.into_iter(), &BTreeSet::new());
        // One state in two stages: the sum, not the last one.
        let want = PackageCounts {
            by_state: [(State::Erroring, 3), (State::Complete, 1)].into(),
            by_stage: [(Stage::Config, 2), (Stage::Apply, 2)].into(),
            ended: [(Stage::Config, 1)].into(),
            restarts: 5,
        };
        assert_eq!(counts, [("a|1.0.0".to_owned(), want)].into());
        assert_eq!(omitted, 0);
    }

    #[test]
    fn a_shape_that_nobody_has_is_forgotten_and_its_number_used_again() {
        let mut shapes = Shapes::default();
        let first = shapes.number(&says("1.0.0", "apply", "complete", 0));
        let second = shapes.number(&says("1.0.0", "config", "complete", 0));
        let (counts, _) = shapes.count([second].into_iter(), &BTreeSet::new());
        assert_eq!(counts["a|1.0.0"].by_stage, [(Stage::Config, 1)].into());
        let third = shapes.number(&says("2.0.0", "apply", "complete", 0));
        assert_eq!(third, first);
        assert_eq!(shapes.all.len(), 2);
        let again = shapes.number(&says("1.0.0", "apply", "complete", 0));
        assert_eq!(again, 3, "it is new");
        let cells = [second, third, again];
        let (counts, _) = shapes.count(cells.into_iter(), &BTreeSet::new());
        assert_eq!(counts.len(), 2);
        assert_eq!(counts["a|2.0.0"].by_stage, [(Stage::Apply, 1)].into());
    }

    #[test]
    fn what_cannot_be_read_and_an_empty_record_count_nothing() {
        let mut shapes = Shapes::default();
        let broken = record(&node(&serde_json::json!("no map")));
        assert!(broken.states.is_err(), "{broken:?}");
        assert_eq!(shapes.number(&broken), 0);
        assert_eq!(shapes.number(&record(&node(&serde_json::json!({})))), 0);
    }

    #[test]
    fn versions_of_the_spec_are_kept_before_others() {
        let mut shapes = Shapes::default();
        let versions = (0..=MOST).map(|n| format!("1.0.{n}"));
        let numbers: Vec<Number> = versions
            .map(|version| shapes.number(&says(&version, "apply", "complete", 0)))
            .collect();
        let spec: BTreeSet<String> = ["a|1.0.99".to_owned()].into();
        let (counts, omitted) = shapes.count(numbers.into_iter(), &spec);
        assert_eq!((counts.len(), omitted), (MOST, 1));
        assert!(counts.contains_key("a|1.0.99"));
        assert!(!counts.contains_key("a|1.0.98"), "the last of the others");
    }
}
