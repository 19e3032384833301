//! Builders for tests: pictures of a cluster from a few words.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::effect::NodePatch;
use crate::facts::{NodeFact, WireNode};
use crate::index::{Change, Index, Kind, Mono};

/// A Node object that is Ready.
#[must_use]
pub fn node_object(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "uid": format!("uid-of-{name}"), "resourceVersion": "1" },
        "status": {
            "nodeInfo": { "bootID": format!("boot-of-{name}"), "machineID": "m" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// The slim copy of [`node_object`].
#[must_use]
pub fn node(name: &str) -> NodeFact {
    NodeFact::new(wire(node_object(name)))
}

/// Adds a label to a Node.
pub fn label(node: &mut NodeFact, key: &str, value: &str) {
    let mut labels = labels_of(node);
    labels.insert(key.to_owned(), value.to_owned());
    node.labels = labels.into();
}

fn labels_of(node: &NodeFact) -> BTreeMap<String, String> {
    let labels = node.labels.iter();
    labels
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// A Node as the API server would have it after a write.
#[must_use]
pub fn patched(node: &NodeFact, patch: &NodePatch) -> NodeFact {
    let mut annotations = node.annotations.clone();
    let mut labels = labels_of(node);
    for (from, into) in [
        (&patch.annotations, &mut annotations),
        (&patch.labels, &mut labels),
    ] {
        for (key, value) in from {
            match value {
                Some(value) => into.insert(key.clone(), value.clone()),
                None => into.remove(key),
            };
        }
    }
    let mut conditions = node.conditions.clone();
    conditions.retain(|c| !patch.conditions.contains_key(&c.type_));
    conditions.extend(patch.conditions.values().flatten().cloned());
    let version: u64 = node.resource_version.parse().unwrap_or_default();
    let mut conditions: Vec<Value> = conditions
        .iter()
        .map(|c| json!({ "type": c.type_, "status": c.status, "reason": c.reason, "message": c.message }))
        .collect();
    conditions.push(json!({
        "type": "Ready", "status": if node.ready { "True" } else { "False" },
        "lastTransitionTime": node.ready_since.map(|at| at.to_string()),
    }));
    NodeFact::new(wire(json!({
        "metadata": {
            "name": node.name, "uid": node.uid, "resourceVersion": (version + 1).to_string(),
            "annotations": annotations, "labels": labels,
        },
        "spec": {
            "unschedulable": patch.unschedulable.unwrap_or(node.unschedulable),
            "taints": patch.taints.as_ref().unwrap_or(&node.taints),
        },
        "status": { "nodeInfo": { "bootID": node.boot_id, "machineID": node.machine_id }, "conditions": conditions },
    })))
}

/// Decodes what the test wrote itself.
fn wire(object: Value) -> WireNode {
    serde_json::from_value(object).unwrap_or_default()
}

/// An index with the given objects, in which every kind is listed completely.
#[must_use]
pub fn index(nodes: &[Value], skyhooks: &[Value], leases: &[Value], revisions: &[Value]) -> Index {
    let mut index = Index::default();
    let now = Mono::ZERO;
    for object in nodes {
        index.apply(Change::Node(Box::new(decoded(object))), now);
    }
    for object in skyhooks {
        index.apply(Change::Skyhook(Box::new(decoded(object))), now);
    }
    for object in leases {
        index.apply(Change::Lease(Box::new(decoded(object))), now);
    }
    for object in revisions {
        index.apply(Change::Revision(Box::new(decoded(object))), now);
    }
    for kind in Kind::ALL {
        index.apply(Change::Synced(kind), now);
    }
    index
}

fn decoded<T: serde::de::DeserializeOwned + Default>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_default()
}
