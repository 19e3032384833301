//! What of Nodes is of use: the parts that are Skyhook's, or that it looks at. And whose agents are asked.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use skyhook_crds::InterruptionLease;
use skyhook_crds::names::{GROUP, PROTECTIONS, SUCCESSOR};

use crate::agents::on_node;
use crate::patterns::matching;

/// The keys of labels that selectors in these objects name.
pub(super) fn selected_by(objects: &[Value]) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    objects.iter().for_each(|object| collect(object, &mut keys));
    keys
}

fn collect(value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Array(all) => all.iter().for_each(|one| collect(one, keys)),
        Value::Object(fields) => {
            let labels = fields.get("matchLabels").and_then(Value::as_object);
            keys.extend(labels.into_iter().flatten().map(|(key, _)| key.clone()));
            let expressions = fields.get("matchExpressions").and_then(Value::as_array);
            let expressions = expressions.into_iter().flatten();
            let named = expressions.filter_map(|one| one.get("key")?.as_str());
            keys.extend(named.map(str::to_owned));
            fields.values().for_each(|field| collect(field, keys));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A Node without what is not of use. `keys`: labels that selectors name.
pub(super) fn reduced(node: &Node, keys: &BTreeSet<String>) -> Value {
    let is_ours = |key: &str| {
        let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
        [GROUP, SUCCESSOR].contains(&prefix) || PROTECTIONS.contains(&key)
    };
    let is_role = |key: &str| key.starts_with("node-role.kubernetes.io/");
    let labels = node.labels().iter();
    let labels = labels.filter(|(key, _)| is_ours(key) || is_role(key) || keys.contains(*key));
    let annotations = node.annotations().iter();
    let annotations = annotations.filter(|(key, _)| is_ours(key));
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    json!({
        "metadata": {
            "name": node.name_any(), "uid": node.uid(), "resourceVersion": node.resource_version(),
            "creationTimestamp": node.metadata.creation_timestamp,
            "labels": labels.collect::<std::collections::BTreeMap<_, _>>(),
            "annotations": annotations.collect::<std::collections::BTreeMap<_, _>>(),
        },
        "spec": {
            "unschedulable": spec.and_then(|spec| spec.unschedulable),
            "taints": spec.and_then(|spec| spec.taints.as_ref()),
        },
        "status": {
            "allocatable": status.and_then(|status| status.allocatable.as_ref()),
            "conditions": status.and_then(|status| status.conditions.as_ref()),
            "nodeInfo": status.and_then(|status| status.node_info.as_ref()),
        },
    })
}

/// Whose agents are asked: those that match the patterns. Without patterns those that are worked on and those whose agent
/// does not run, and then others, at most `most`.
pub(super) fn chosen(
    nodes: &[Node],
    leases: &[InterruptionLease],
    pods: &[Pod],
    patterns: &[String],
    most: usize,
) -> Result<Vec<String>> {
    let names: Vec<String> = nodes.iter().map(Node::name_any).collect();
    if !patterns.is_empty() {
        let matched = matching(patterns, names.iter().map(String::as_str));
        return Ok(matched.context("matching nodes")?.into_iter().collect());
    }
    let is_worked_on = |name: &String| leases.iter().any(|lease| lease.spec.node.name == *name);
    let mut sorted: Vec<(bool, bool, String)> = names
        .into_iter()
        .map(|name| {
            let runs = on_node(pods, &name, "").is_ok();
            (!is_worked_on(&name), runs, name)
        })
        .collect();
    sorted.sort();
    Ok(sorted
        .into_iter()
        .map(|(_, _, name)| name)
        .take(most)
        .collect())
}
