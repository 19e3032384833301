//! Liveness: from every reachable state a complete one can still be reached without any further fault.
//!
//! stateright judges `eventually` on acyclic paths alone, and these graphs have cycles (a lease is withdrawn and reserved
//! again). In a finite graph the property checked here means that every set of states that a run cannot leave any more
//! contains a complete one: with fair scheduling, every run ends up there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use stateright::Model as _;

use super::{Action, Config, State};

/// What the search found.
#[derive(Debug)]
pub struct Liveness {
    pub states: usize,
    pub transitions: usize,
    pub complete: usize,
    /// The way to a state from which no complete one can be reached, the shortest; none is what is wanted.
    pub stuck: Option<(Vec<Action>, Box<State>)>,
}

struct Graph {
    /// The state that each was first reached from, and by which of its actions.
    parents: Vec<(u32, u16)>,
    /// Steps without a fault, backwards: (to, from).
    edges: Vec<(u32, u32)>,
    complete: Vec<u32>,
    transitions: usize,
}

/// Searches all states.
#[must_use]
pub fn liveness(config: &Config) -> Liveness {
    let graph = graph(config);
    let reaches = backwards(&graph);
    let stuck = reaches.iter().position(|reaches| !reaches);
    Liveness {
        states: graph.parents.len(),
        transitions: graph.transitions,
        complete: graph.complete.len(),
        stuck: stuck.map(|index| path(config, &graph, index as u32)),
    }
}

fn graph(config: &Config) -> Graph {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    let mut graph = Graph {
        parents: Vec::new(),
        edges: Vec::new(),
        complete: Vec::new(),
        transitions: 0,
    };
    let mut frontier = Vec::new();
    for state in config.init_states() {
        numbers.insert(hasher.hash_one(&state), 0);
        graph.parents.push((0, 0));
        frontier.push((0_u32, state));
    }
    let mut actions = Vec::new();
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for (number, state) in frontier {
            if config.is_complete(&state) {
                graph.complete.push(number);
            }
            actions.clear();
            config.actions(&state, &mut actions);
            for (nth, action) in actions.iter().enumerate() {
                let Some(to) = config.next_state(&state, *action) else {
                    continue;
                };
                graph.transitions += 1;
                let count = graph.parents.len() as u32;
                let reached = match numbers.entry(hasher.hash_one(&to)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        new.insert(count);
                        graph.parents.push((number, nth as u16));
                        next.push((count, to));
                        count
                    }
                };
                if action.fault().is_none() {
                    graph.edges.push((reached, number));
                }
            }
        }
        frontier = next;
    }
    graph
}

/// Which states a complete one can be reached from.
fn backwards(graph: &Graph) -> Vec<bool> {
    let count = graph.parents.len();
    let mut starts = vec![0_u32; count + 1];
    for (to, _) in &graph.edges {
        starts[*to as usize + 1] += 1;
    }
    for i in 0..count {
        starts[i + 1] += starts[i];
    }
    let mut fill = starts.clone();
    let mut from = vec![0_u32; graph.edges.len()];
    for (to, of) in &graph.edges {
        from[fill[*to as usize] as usize] = *of;
        fill[*to as usize] += 1;
    }
    let mut reaches = vec![false; count];
    let mut open = graph.complete.clone();
    for start in &open {
        reaches[*start as usize] = true;
    }
    while let Some(state) = open.pop() {
        let (a, b) = (starts[state as usize], starts[state as usize + 1]);
        for of in &from[a as usize..b as usize] {
            if !std::mem::replace(&mut reaches[*of as usize], true) {
                open.push(*of);
            }
        }
    }
    reaches
}

fn path(config: &Config, graph: &Graph, mut number: u32) -> (Vec<Action>, Box<State>) {
    let mut steps = Vec::new();
    while number != 0 {
        let (parent, nth) = graph.parents[number as usize];
        steps.push(nth);
        number = parent;
    }
    let mut state = config.init_states().remove(0);
    let mut path = Vec::new();
    for nth in steps.into_iter().rev() {
        let mut actions = Vec::new();
        config.actions(&state, &mut actions);
        let action = actions[nth as usize];
        path.push(action);
        if let Some(next) = config.next_state(&state, action) {
            state = next;
        }
    }
    (path, Box::new(state))
}
