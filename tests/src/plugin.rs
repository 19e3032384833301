//! What NVIDIA Skyhook's plugin for kubectl sends, byte for byte, when it resets the batches of a Skyhook.
//!
//! It reads the object into types of its own, sets every `batchState` to `{currentBatch: 1}`, and sends its copy of the
//! whole status as a merge patch without a resource version. What its types do not know is not in the patch. Fields with
//! the value zero are not in it either, so what the API server has of them stays.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use http::Request;
use kube::Client;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Go's zero values, which `omitempty` leaves out.
fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The status in the order in which Go writes its fields.
#[derive(Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(skip_serializing_if = "is_zero")]
    observed_generation: i64,
    #[serde(skip_serializing_if = "is_zero")]
    node_state: BTreeMap<String, BTreeMap<String, PackageStatus>>,
    #[serde(skip_serializing_if = "is_zero")]
    node_status: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_zero")]
    status: String,
    #[serde(skip_serializing_if = "is_zero")]
    conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "is_zero")]
    node_boot_ids: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_zero")]
    node_priority: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_zero")]
    node_order_offset: i64,
    #[serde(skip_serializing_if = "is_zero")]
    config_updates: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "is_zero")]
    compartment_statuses: BTreeMap<String, CompartmentStatus>,
    #[serde(skip_serializing_if = "is_zero")]
    nodes_in_progress: i64,
    #[serde(skip_serializing_if = "is_zero")]
    complete_nodes: String,
    #[serde(skip_serializing_if = "is_zero")]
    package_list: String,
}

#[derive(Serialize, Deserialize, Debug, Default, PartialEq)]
#[serde(default)]
struct PackageStatus {
    name: String,
    version: String,
    image: String,
    #[serde(rename = "containerSHA", skip_serializing_if = "is_zero")]
    container_sha: String,
    stage: String,
    #[serde(skip_serializing_if = "is_zero")]
    state: String,
    #[serde(skip_serializing_if = "is_zero")]
    restarts: i64,
}

#[derive(Serialize, Deserialize, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    #[serde(skip_serializing_if = "is_zero")]
    observed_generation: i64,
    last_transition_time: String,
    reason: String,
    message: String,
}

#[derive(Serialize, Deserialize, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct CompartmentStatus {
    matched: i64,
    ceiling: i64,
    in_progress: i64,
    completed: i64,
    progress_percent: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_state: Option<BatchState>,
}

/// All that is left of a batch state after the reset.
#[derive(Serialize, Deserialize, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct BatchState {
    #[serde(skip_serializing_if = "is_zero")]
    current_batch: i64,
}

/// The patch for a Skyhook as the plugin has read it.
pub fn reset_patch(skyhook: &Value) -> Result<String> {
    let mut status: Status = serde_json::from_value(skyhook["status"].clone())
        .context("the status as the plugin has it")?;
    for compartment in status.compartment_statuses.values_mut() {
        compartment.batch_state = Some(BatchState { current_batch: 1 });
    }
    let body = serde_json::to_string(&status)?;
    Ok(format!(r#"{{"status":{}}}"#, escaped(&body)))
}

/// Go writes these characters in JSON as escapes, for the sake of HTML.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out
}

/// The Skyhook as the API server has it now.
pub async fn read(client: &Client, name: &str) -> Result<Value> {
    let path = format!("/apis/skyhook.nvidia.com/v1alpha1/skyhooks/{name}");
    Ok(client.request(Request::get(path).body(Vec::new())?).await?)
}

/// Sends a patch of a Skyhook's status as it is.
pub async fn send(client: &Client, name: &str, patch: String) -> Result<()> {
    let path = format!("/apis/skyhook.nvidia.com/v1alpha1/skyhooks/{name}/status");
    let request = Request::patch(path)
        .header("Content-Type", "application/merge-patch+json")
        .body(patch.into_bytes())?;
    client.request::<Value>(request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The bytes follow from the plugin's types and from Go's rules for JSON.
    #[test]
    fn the_patch_is_the_plugins() {
        let skyhook = json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": "s" },
            "spec": { "packages": {} },
            "status": {
                "completeNodes": "1/3", "nodesInProgress": 1, "packageList": "a:1.0.0", "revision": "ours",
                "observedGeneration": 2, "status": "in_progress", "nodesListed": 3, "nodesOmitted": 0,
                "nodeOrderOffset": 2, "nodeOrderShown": { "run": 0, "offset": 2 },
                "nodePriority": { "b": "2026-11-27T00:00:00Z" },
                "nodeStatus": { "b": "in_progress", "a": "complete" },
                "nodeReasons": { "b": { "reason": "Preparing", "since": "2026-11-27T00:00:00Z" } },
                "nodeState": { "a": { "a|1.0.0": {
                    "image": "r/a", "name": "a", "version": "1.0.0", "stage": "config", "state": "complete", "restarts": 0,
                } } },
                "conditions": [{
                    "type": "skyhook.nvidia.com/Transition", "status": "False", "reason": "in_progress",
                    "message": "Transitioned [unknown] -> [in_progress]", "observedGeneration": 2,
                    "lastTransitionTime": "2026-11-27T00:00:00Z",
                }],
                "compartmentStatuses": { "gpu": {
                    "matched": 3, "ceiling": 2, "inProgress": 1, "completed": 1, "progressPercent": 33,
                    "batchState": { "currentBatch": 2, "completedNodes": 1, "lastBatchSize": 1 },
                    "run": 1, "published": "0123456789abcdef",
                } },
            },
        });
        let want = concat!(
            r#"{"status":{"observedGeneration":2,"#,
            r#""nodeState":{"a":{"a|1.0.0":{"name":"a","version":"1.0.0","image":"r/a","stage":"config","state":"complete"}}},"#,
            r#""nodeStatus":{"a":"complete","b":"in_progress"},"status":"in_progress","#,
            r#""conditions":[{"type":"skyhook.nvidia.com/Transition","status":"False","observedGeneration":2,"#,
            r#""lastTransitionTime":"2026-11-27T00:00:00Z","reason":"in_progress","#,
            r#""message":"Transitioned [unknown] -\u003e [in_progress]"}],"#,
            r#""nodePriority":{"b":"2026-11-27T00:00:00Z"},"nodeOrderOffset":2,"#,
            r#""compartmentStatuses":{"gpu":{"matched":3,"ceiling":2,"inProgress":1,"completed":1,"progressPercent":33,"#,
            r#""batchState":{"currentBatch":1}}},"nodesInProgress":1,"completeNodes":"1/3","packageList":"a:1.0.0"}}"#,
        );
        assert_eq!(reset_patch(&skyhook).unwrap(), want);
    }
}
