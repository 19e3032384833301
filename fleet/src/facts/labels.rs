//! The labels of a Node, in little memory. A Node may carry more than a hundred labels, most of which are the same on
//! thousands of Nodes, and any of them may be asked for by the selector of a later Skyhook. So all are kept, and equal
//! texts are stored once ([`Texts`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::core::{Expression, Selector};

/// The labels of a Node, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        let labels = labels.into_iter();
        Self(
            labels
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        )
    }
}

impl Labels {
    /// The value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(there, _)| (**there).cmp(key));
        at.ok().and_then(|at| self.0.get(at)).map(|(_, v)| &**v)
    }

    /// True when there is a label with this key.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// All labels, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// True when a selector selects these labels.
    #[must_use]
    pub fn are_selected(&self, selector: &Wants) -> bool {
        selector.0.iter().all(|wanted| self.meet(wanted))
    }

    /// True when the labels meet an expression of a selector.
    #[must_use]
    pub fn meet(&self, wanted: &Expression) -> bool {
        match wanted {
            Expression::In(key, values) => self.get(key).is_some_and(|v| values.contains(v)),
            Expression::NotIn(key, values) => self.get(key).is_none_or(|v| !values.contains(v)),
            Expression::Exists(key) => self.contains_key(key),
            Expression::DoesNotExist(key) => !self.contains_key(key),
            Expression::Equal(key, value) => self.get(key) == Some(value.as_str()),
            Expression::NotEqual(key, value) => self.get(key) != Some(value.as_str()),
        }
    }
}

/// A label selector, in the form that [`Labels`] are matched with: all expressions have to be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants(Vec<Expression>);

impl From<Selector> for Wants {
    fn from(selector: Selector) -> Self {
        Self(selector.into_iter().collect())
    }
}

/// Texts that several Nodes share.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    held: BTreeSet<Arc<str>>,
    /// How many texts may be held before those that nobody uses any more are dropped.
    most: usize,
}

impl Texts {
    /// Replaces the texts of `labels` by equal texts that are held already. Labels that are equal to those of the earlier
    /// version of the Node share everything with them.
    pub(crate) fn share(&mut self, labels: &mut Labels, before: Option<&Labels>) {
        if let Some(before) = before.filter(|before| *before == labels) {
            *labels = before.clone();
            return;
        }
        let shared = labels
            .0
            .iter()
            .map(|(key, value)| (self.one(key), self.one(value)));
        *labels = Labels(shared.collect());
        if self.held.len() > self.most {
            self.held.retain(|text| Arc::strong_count(text) > 1);
            self.most = 2 * self.held.len() + 1024;
        }
    }

    fn one(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(held) = self.held.get(text) {
            return Arc::clone(held);
        }
        self.held.insert(Arc::clone(text));
        Arc::clone(text)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt as _;

    use super::*;

    fn map(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        let labels = labels.iter();
        labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_selector_selects_what_kubernetes_selects() {
        let set = || ["a".to_owned(), "b".to_owned()].into();
        let expressions = [
            Expression::In("k".into(), set()),
            Expression::NotIn("k".into(), set()),
            Expression::Exists("k".into()),
            Expression::DoesNotExist("k".into()),
            Expression::Equal("k".into(), "a".into()),
            Expression::NotEqual("k".into(), "a".into()),
        ];
        let mut selectors: Vec<Selector> = vec![Selector::default()];
        selectors.extend(expressions.iter().cloned().map(Selector::from));
        for one in &expressions {
            let both = [one.clone(), Expression::Exists("other".into())];
            selectors.push(both.into_iter().collect());
        }
        for labels in [
            map(&[]),
            map(&[("k", "a")]),
            map(&[("k", "c")]),
            map(&[("j", "a"), ("k", "b"), ("other", "")]),
        ] {
            for selector in &selectors {
                let ours = Labels::from(labels.clone()).are_selected(&selector.clone().into());
                assert_eq!(ours, selector.matches(&labels), "{selector} {labels:?}");
            }
        }
    }

    /// The labels of a Node of a cloud, with 100 that are the same everywhere.
    fn of_node(name: &str) -> Labels {
        let mut labels: BTreeMap<String, String> = (0..100)
            .map(|n| (format!("feature.example/{n}"), format!("value-{n}")))
            .collect();
        labels.insert("kubernetes.io/hostname".into(), name.to_owned());
        labels.into()
    }

    #[test]
    fn what_all_nodes_carry_is_stored_once() {
        let mut texts = Texts::default();
        let nodes: Vec<Labels> = (0..1000)
            .map(|n| {
                let mut labels = of_node(&format!("node-{n}"));
                texts.share(&mut labels, None);
                labels
            })
            .collect();
        assert_eq!(texts.held.len(), 201 + 1000, "keys, values and host names");
        let first = |labels: &Labels| labels.0[0].clone();
        let all_same = nodes
            .iter()
            .all(|node| Arc::ptr_eq(&first(node).1, &first(&nodes[0]).1));
        assert!(all_same);
        assert_eq!(nodes[7].get("kubernetes.io/hostname"), Some("node-7"));
        // What is left for each Node: two pointers with their lengths for each label.
        let bytes = std::mem::size_of_val(&*nodes[0].0);
        assert!(bytes <= 101 * 32, "{bytes}");
    }

    #[test]
    fn a_heartbeat_takes_no_memory_and_texts_of_nobody_are_dropped() {
        let mut texts = Texts::default();
        let mut before = of_node("a");
        texts.share(&mut before, None);
        let mut after = of_node("a");
        texts.share(&mut after, Some(&before));
        assert!(Arc::ptr_eq(&before.0, &after.0));
        for n in 0..20_000 {
            texts.share(&mut of_node(&format!("node-{n}")), None);
        }
        assert!(texts.held.len() < 3000, "{}", texts.held.len());
        texts.share(&mut after, None);
        let first = |labels: &Labels| labels.0[0].0.clone();
        assert!(Arc::ptr_eq(&first(&before), &first(&after)), "in use");
    }
}
