//! How many nodes a coordinator may take for a Skyhook: by its budget, as far as that coordinator can know.

use std::collections::BTreeMap;

use skyhook_fleet::facts::{NodeFact, SkyhookFact};

/// What budgets are counted from, and since when it was so.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// By UID. Whoever has not seen that a spec is invalid goes by the one before.
    skyhooks: BTreeMap<String, Vec<(u64, SkyhookFact)>>,
    nodes: Vec<(u64, Vec<NodeFact>)>,
}

impl Slots {
    /// The spec of a Skyhook is another.
    pub(super) fn respecified(&mut self, now: u64, skyhook: &SkyhookFact) {
        if skyhook.checked.is_ok() {
            let history = self.skyhooks.entry(skyhook.uid.clone()).or_default();
            history.push((now, skyhook.clone()));
        }
    }

    /// The valid specs that a Skyhook has had.
    pub(super) fn specs(&self, skyhook: &str) -> impl Iterator<Item = &SkyhookFact> {
        let history = self.skyhooks.get(skyhook).into_iter().flatten();
        history.map(|(_, skyhook)| skyhook)
    }

    /// Nodes came, went or were given other labels.
    pub(super) fn moved(&mut self, now: u64, nodes: &BTreeMap<String, NodeFact>) {
        self.nodes.push((now, nodes.values().cloned().collect()));
    }

    /// The most slots that a Skyhook can be seen to have by whoever has seen everything until `since`: of what came
    /// later, one watch may have delivered all and another nothing.
    #[must_use]
    pub(super) fn most(&self, skyhook: &str, since: u64) -> usize {
        let history = self.skyhooks.get(skyhook).map_or(&[][..], Vec::as_slice);
        let pairs =
            from(history, since).flat_map(|s| from(&self.nodes, since).map(move |n| (s, n)));
        pairs
            .map(|(skyhook, nodes)| {
                // While it is deleted, it may also have nodes that it does not select: something has to go from them.
                let counts = |node: &&NodeFact| skyhook.deleting || skyhook.selects(node);
                budget(skyhook, nodes.iter().filter(counts).count())
            })
            .max()
            .unwrap_or_default()
    }
}

/// What was so at a time, and all that came after.
pub(super) fn from<T>(history: &[(u64, T)], since: u64) -> impl Iterator<Item = &T> {
    let first = history.iter().rposition(|(at, _)| *at <= since);
    history[first.unwrap_or(0)..].iter().map(|(_, what)| what)
}

/// The budget, as NVIDIA Skyhook counts it: percent rounds down, at least one; none means all.
fn budget(skyhook: &SkyhookFact, selected: usize) -> usize {
    let Some(budget) = &skyhook.spec.interruption_budget else {
        return selected;
    };
    let number = |n: i32| usize::try_from(n).unwrap_or_default();
    match (budget.count, budget.percent) {
        (Some(count), _) => number(count),
        (None, Some(0)) => 0,
        (None, Some(percent)) => (selected * number(percent) / 100).max(1),
        (None, None) => selected,
    }
}
