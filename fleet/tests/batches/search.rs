//! Searches all states: none is broken, and from each a complete one can be reached without a further fault.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher as _;

use foldhash::quality::FixedState;

use super::state::State;
use super::{Action, Config};

/// What a search found.
#[derive(Debug)]
pub(crate) struct Found {
    pub states: usize,
    /// False when it stopped at its bound.
    pub to_the_end: bool,
    /// What is wrong, and the shortest way to it.
    pub broken: Option<(&'static str, Vec<Action>, Box<State>)>,
}

/// That from some state no complete one can be reached.
pub(crate) const STUCK: &str = "it is stuck";

/// Searches up to `most` states. A search that is cut off says nothing about what gets stuck.
pub(crate) fn search(config: &Config, most: usize) -> Found {
    let hasher = FixedState::default();
    let mut numbers: HashMap<u64, u32, FixedState> = HashMap::default();
    // The state before, and which of its actions leads here.
    let mut parents: Vec<(u32, u8)> = Vec::new();
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut complete = Vec::new();
    let begin = config.begin();
    numbers.insert(hasher.hash_one(&begin), 0);
    parents.push((0, 0));
    let mut frontier = vec![(0_u32, begin)];
    let mut actions = Vec::new();
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for (number, state) in frontier {
            if config.is_complete(&state) {
                complete.push(number);
            }
            actions.clear();
            config.actions(&state, &mut actions);
            for (at, action) in actions.iter().enumerate() {
                let to = config.next(&state, *action);
                let count = parents.len() as u32;
                let reached = match numbers.entry(hasher.hash_one(&to)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        new.insert(count);
                        parents.push((number, at as u8));
                        if let Some(rule) = to.broken {
                            let way = way(config, &parents, count);
                            return Found {
                                states: parents.len(),
                                to_the_end: false,
                                broken: Some((rule, way, Box::new(to))),
                            };
                        }
                        next.push((count, to));
                        count
                    }
                };
                if !action.is_fault() {
                    edges.push((reached, number));
                }
            }
            if parents.len() > most {
                return Found {
                    states: parents.len(),
                    to_the_end: false,
                    broken: None,
                };
            }
        }
        frontier = next;
    }
    let stuck = stuck(parents.len(), &edges, complete);
    let broken = stuck.map(|number| {
        let way = way(config, &parents, number);
        let state = way
            .iter()
            .fold(config.begin(), |state, action| config.next(&state, *action));
        (STUCK, way, Box::new(state))
    });
    Found {
        states: parents.len(),
        to_the_end: true,
        broken,
    }
}

/// The actions that lead to a state.
fn way(config: &Config, parents: &[(u32, u8)], mut number: u32) -> Vec<Action> {
    let mut choices = Vec::new();
    while number != 0 {
        let (parent, choice) = parents[number as usize];
        choices.push(usize::from(choice));
        number = parent;
    }
    let mut state = config.begin();
    let mut actions = Vec::new();
    let steps = choices.into_iter().rev();
    steps
        .map(|choice| {
            actions.clear();
            config.actions(&state, &mut actions);
            let action = actions[choice];
            state = config.next(&state, action);
            action
        })
        .collect()
}

/// The first state from which no complete one can be reached. `edges` lead backwards.
fn stuck(count: usize, edges: &[(u32, u32)], complete: Vec<u32>) -> Option<u32> {
    let mut starts = vec![0_u32; count + 1];
    for (to, _) in edges {
        starts[*to as usize + 1] += 1;
    }
    for at in 0..count {
        starts[at + 1] += starts[at];
    }
    let mut fill = starts.clone();
    let mut from = vec![0_u32; edges.len()];
    for (to, of) in edges {
        from[fill[*to as usize] as usize] = *of;
        fill[*to as usize] += 1;
    }
    let mut reaches = vec![false; count];
    for state in &complete {
        reaches[*state as usize] = true;
    }
    let mut open = complete;
    while let Some(state) = open.pop() {
        let (a, b) = (starts[state as usize], starts[state as usize + 1]);
        for of in &from[a as usize..b as usize] {
            if !std::mem::replace(&mut reaches[*of as usize], true) {
                open.push(*of);
            }
        }
    }
    reaches
        .iter()
        .position(|reaches| !reaches)
        .map(|at| at as u32)
}

/// Walks at random, the same way each time, `walks` times and at most `length` steps far. Says what broke, and how.
pub(crate) fn walk(
    config: &Config,
    walks: usize,
    length: usize,
) -> Option<(&'static str, Vec<Action>)> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut actions = Vec::new();
    for _ in 0..walks {
        let mut state = config.begin();
        let mut way = Vec::new();
        // The watches of one coordinator lag far behind in most walks.
        let lagging = next(3);
        while way.len() < length {
            actions.clear();
            config.actions(&state, &mut actions);
            if next(16) != 0 {
                actions.retain(|action| action.sees() != Some(lagging));
            }
            if actions.is_empty() {
                config.actions(&state, &mut actions);
            }
            if actions.is_empty() {
                break;
            }
            let action = actions[next(actions.len())];
            state = config.next(&state, action);
            way.push(action);
            if let Some(rule) = state.broken {
                return Some((rule, way));
            }
        }
    }
    None
}
