//! Gives each node name a small number, and notes for each number the tick of its last change.

use std::collections::BTreeMap;

/// The number of a node name. A name keeps its number while a Node or a lease has that name. Later, another name may
/// get the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A point in the order of changes. No tick is given out twice: two equal ticks mean that nothing has changed in
/// between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

#[derive(Debug, Default)]
pub(super) struct Ids {
    by_name: BTreeMap<String, NodeId>,
    touched: Vec<Tick>,
    free: Vec<NodeId>,
    last: Tick,
}

impl Ids {
    /// Starts the next tick.
    pub(super) fn tick(&mut self) -> Tick {
        self.last = Tick(self.last.0 + 1);
        self.last
    }

    pub(super) const fn last(&self) -> Tick {
        self.last
    }

    /// Gives a name a number unless it has one, and notes that something about the name changed.
    pub(super) fn place(&mut self, name: &str) {
        let tick = self.tick();
        let id = match self.by_name.get(name) {
            Some(id) => *id,
            None => {
                let id = self.free.pop().unwrap_or_else(|| {
                    self.touched.push(tick);
                    NodeId(u32::try_from(self.touched.len() - 1).unwrap_or(u32::MAX))
                });
                self.by_name.insert(name.to_owned(), id);
                id
            }
        };
        self.touched[id.index()] = tick;
    }

    /// Notes that something about a name changed.
    pub(super) fn touch(&mut self, name: &str) {
        let tick = self.tick();
        if let Some(id) = self.by_name.get(name) {
            self.touched[id.index()] = tick;
        }
    }

    /// Frees the number of a name.
    pub(super) fn release(&mut self, name: &str) {
        if let Some(id) = self.by_name.remove(name) {
            self.tick();
            self.free.push(id);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, NodeId)> {
        self.by_name.iter().map(|(name, id)| (name.as_str(), *id))
    }

    pub(super) fn touched(&self, id: NodeId) -> Tick {
        self.touched.get(id.index()).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_used_again_is_never_taken_for_unchanged() {
        let mut ids = Ids::default();
        ids.place("a");
        let (id, before) = (ids.by_name["a"], ids.touched(ids.by_name["a"]));
        ids.release("a");
        ids.place("b");
        assert_eq!(ids.by_name["b"], id);
        assert!(ids.touched(id) > before);
        assert_eq!(ids.all().collect::<Vec<_>>(), [("b", id)]);
    }

    #[test]
    fn a_name_without_a_number_is_nobodys() {
        let mut ids = Ids::default();
        let before = ids.last();
        ids.touch("a");
        assert!(ids.last() > before, "but something changed");
        assert_eq!(ids.all().count(), 0);
    }
}
