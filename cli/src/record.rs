//! The record of a node: its annotation `nodeState_<skyhook>`, read and edited so that nothing in it is lost that the edit
//! is not about, not even what a later version has written.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use skyhook_crds::installed::Stamp;
use skyhook_crds::names;

/// All entries of a record, by `name|version`.
pub(crate) type Record = BTreeMap<String, Entry>;

/// One entry. The order of the fields is part of the contract, since tools compare bytes.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub(crate) struct Entry {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub image: String,
    #[serde(
        rename = "containerSHA",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub container_sha: String,
    #[serde(default)]
    pub stage: String,
    #[serde(default)]
    pub state: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: i32,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// What a node has on record for a Skyhook.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Read {
    /// No record.
    Nothing,
    Entries(Record),
    /// An annotation that is no record, and why.
    Unreadable(String),
}

impl Read {
    /// The record of a node for a Skyhook.
    #[must_use]
    pub(crate) fn of(node: &Node, skyhook: &str) -> Self {
        let Some(value) = node.annotations().get(&names::node_state(skyhook)) else {
            return Self::Nothing;
        };
        if value.is_empty() {
            return Self::Entries(Record::new());
        }
        match serde_json::from_str(value) {
            Ok(entries) => Self::Entries(entries),
            Err(problem) => Self::Unreadable(problem.to_string()),
        }
    }

    /// The entries, if there is a record that can be read.
    #[must_use]
    pub(crate) fn entries(self) -> Option<Record> {
        match self {
            Self::Entries(entries) => Some(entries),
            Self::Nothing | Self::Unreadable(_) => None,
        }
    }
}

/// The Skyhooks that a node has a record of.
pub(crate) fn skyhooks_of(node: &Node) -> impl Iterator<Item = &str> {
    let prefix = names::node_state("");
    let keys = node.annotations().keys();
    keys.filter_map(move |key| key.strip_prefix(prefix.as_str()))
}

/// The annotation's value: compact JSON, keys sorted.
pub(crate) fn render(record: &Record) -> Result<String, serde_json::Error> {
    serde_json::to_string(record)
}

/// True when a newer version of Skyhook wrote the node's record. An edit by this version could lose something.
#[must_use]
pub(crate) fn is_newer(node: &Node, skyhook: &str) -> bool {
    let stamp = node.annotations().get(&names::stamp(skyhook));
    Stamp::parse(stamp.map(String::as_str)).is_some_and(|stamp| stamp.is_newer())
}

/// How far a Skyhook is on a node, from its record alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub status: &'static str,
    pub complete: usize,
    pub total: usize,
    pub restarts: i32,
}

/// Sums a record up.
#[must_use]
pub(crate) fn summary(record: &Record) -> Summary {
    let count = |state: &str| record.values().filter(|entry| entry.state == state).count();
    let (complete, total) = (count("complete"), record.len());
    let status = if count("erroring") > 0 {
        "erroring"
    } else if complete == total && total > 0 {
        "complete"
    } else if complete > 0 || count("in_progress") > 0 {
        "in_progress"
    } else {
        "unknown"
    };
    let restarts = record.values().map(|entry| entry.restarts);
    Summary {
        status,
        complete,
        total,
        restarts: restarts.fold(0, i32::saturating_add),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;

    #[test]
    fn nothing_of_a_record_is_lost_when_it_is_written_again() {
        for value in [
            r#"{"a|1":{"name":"a","version":"1","image":"r/a","stage":"config","state":"complete"}}"#,
            concat!(
                r#"{"a|1":{"name":"a","version":"1","image":"r/a","containerSHA":"sha256:x","stage":"quarantine","#,
                r#""state":"later","restarts":3,"future":{"x":[1]}}}"#
            ),
            "{}",
        ] {
            let node = node("n", &[("nodeState_s", value)], &[]);
            let record = Read::of(&node, "s").entries().unwrap();
            assert_eq!(render(&record).unwrap(), value);
        }
    }

    #[test]
    fn the_status_of_a_node_follows_from_the_states() {
        for (states, status) in [
            (vec![], "unknown"),
            (vec!["complete", "complete"], "complete"),
            (vec!["complete", "erroring", "in_progress"], "erroring"),
            (vec!["complete", "skipped"], "in_progress"),
            (vec!["in_progress"], "in_progress"),
            (vec!["skipped"], "unknown"),
        ] {
            let entries = states.iter().enumerate().map(|(at, state)| {
                let entry = Entry {
                    state: (*state).to_owned(),
                    restarts: 2,
                    ..Entry::default()
                };
                (format!("p{at}|1"), entry)
            });
            let given = summary(&entries.collect());
            let complete = states.iter().filter(|state| **state == "complete").count();
            let want = Summary {
                status,
                complete,
                total: states.len(),
                restarts: 2 * i32::try_from(states.len()).unwrap(),
            };
            assert_eq!(given, want, "{states:?}");
        }
    }

    #[test]
    fn a_record_is_read_or_said_to_be_unreadable() {
        let read = |value| Read::of(&node("n", &[("nodeState_s", value)], &[]), "s");
        assert_eq!(read(""), Read::Entries(Record::new()));
        assert!(matches!(read("{"), Read::Unreadable(_)));
        assert_eq!(Read::of(&node("n", &[], &[]), "s"), Read::Nothing);
    }
}
