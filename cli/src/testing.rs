//! Objects for tests.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Map, Value, json};
use skyhook_crds::names::GROUP;
use skyhook_crds::{InterruptionLease, Skyhook};

fn keyed(pairs: &[(&str, &str)]) -> Value {
    let pairs = pairs.iter().map(|(key, value)| {
        let key = if key.contains('/') {
            (*key).to_owned()
        } else {
            format!("{GROUP}/{key}")
        };
        (key, Value::from(*value))
    });
    pairs.collect::<Map<String, Value>>().into()
}

/// A Node with these annotations and labels. Keys without a prefix get ours.
pub(crate) fn node(name: &str, annotations: &[(&str, &str)], labels: &[(&str, &str)]) -> Node {
    object(json!({
        "metadata": {
            "name": name, "uid": name, "resourceVersion": "7",
            "annotations": keyed(annotations), "labels": keyed(labels),
        },
    }))
}

/// Any object.
pub(crate) fn object<K: serde::de::DeserializeOwned>(json: Value) -> K {
    serde_json::from_value(json).expect("an object")
}

/// A Skyhook.
pub(crate) fn skyhook(name: &str, spec: &Value, status: &Value) -> Skyhook {
    object(json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
        "metadata": { "name": name, "uid": name, "resourceVersion": "9" }, "spec": spec, "status": status,
    }))
}

/// A lease of a node for a Skyhook.
pub(crate) fn lease(node: &str, skyhook: &str, more: &Value, status: &Value) -> InterruptionLease {
    let mut lease = json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "InterruptionLease",
        "metadata": { "name": node, "uid": format!("lease-of-{node}"), "resourceVersion": "3" },
        "spec": {
            "node": { "name": node, "uid": node }, "skyhook": { "name": skyhook, "uid": skyhook },
            "revision": "r", "granted": { "by": "c", "at": "2026-11-27T10:00:00Z" },
        },
        "status": status,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        lease["spec"][key] = value.clone();
    }
    object(lease)
}

/// The text of an annotation for entries given as `name version stage state`, separated by commas.
pub(crate) fn record(entries: &str) -> String {
    let entries = entries.split(", ").filter(|entry| !entry.is_empty());
    let fields = entries.map(|entry| {
        let mut words = entry.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (name, version) = (word(), word());
        let image = format!("r/{name}");
        let key = format!("{name}|{version}");
        let entry = crate::record::Entry {
            image,
            name,
            version,
            stage: word(),
            state: word(),
            ..crate::record::Entry::default()
        };
        (key, entry)
    });
    crate::record::render(&fields.collect()).expect("a record")
}
