//! `deployment-policy reset`: a roll-out begins with its first batch again.

use anyhow::{Context as _, Result};
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use serde_json::{Map, Value, json};
use skyhook_crds::Skyhook;
use skyhook_crds::policy::BatchState;

use super::package::skyhook;
use crate::args::Confirmed;
use crate::edit::{self, Part};
use crate::session::Session;

/// Runs `deployment-policy reset`.
pub(crate) async fn run(session: &mut Session<'_>, args: &Confirmed) -> Result<()> {
    let name = &args.name;
    let client = session.client().await?;
    let object = skyhook(&client, name).await?;
    let Some(summary) = summary(&object) else {
        return session.print(&format!(
            "Skyhook {name:?} has no compartment statuses to reset\n"
        ));
    };
    session.print(&summary)?;
    if session.global.dry_run {
        return session.print(DRY_RUN);
    }
    let question = format!(
        "\nThis will reset the batch state for Skyhook {name:?}.\nThe next reconciliation will start from batch 1.\nContinue? \
         [y/N]: "
    );
    if !args.confirm.confirm && !session.ask_yes(&question)? {
        return session.print("Aborted\n");
    }
    write(&client, object, batches).await?;
    session.print(&format!(
        "\nSuccessfully reset batch state for Skyhook {name:?}\n"
    ))
}

const DRY_RUN: &str = "
[dry-run] Would reset batch state to:
  - CurrentBatch: 1
  - ConsecutiveFailures: 0
  - CompletedNodes: 0
  - FailedNodes: 0
  - ShouldStop: false

[dry-run] No changes applied
";

/// Writes the status of a Skyhook.
pub(crate) async fn write(
    client: &Client,
    object: Skyhook,
    change: impl Fn(&Skyhook) -> Option<Value>,
) -> Result<()> {
    let api: Api<Skyhook> = Api::all(client.clone());
    let done = edit::change(&api, object, Part::Status, |object| Ok(change(object))).await;
    done.context("patching skyhook status")
}

/// The compartments that have a batch state.
fn with_batches(skyhook: &Skyhook) -> impl Iterator<Item = (&String, &BatchState)> {
    let compartments = skyhook
        .status
        .iter()
        .flat_map(|status| &status.compartment_statuses);
    compartments.filter_map(|(name, compartment)| Some((name, compartment.batch_state.as_ref()?)))
}

/// What will be reset; `None` when there are no compartments.
fn summary(skyhook: &Skyhook) -> Option<String> {
    let status = skyhook.status.as_ref();
    let total = status.map_or(0, |status| status.compartment_statuses.len());
    if total == 0 {
        return None;
    }
    let with = with_batches(skyhook).count();
    let mut text = format!(
        "Skyhook: {}\nCompartments: {total} total, {with} with batch state\n",
        skyhook.name_any()
    );
    if with > 0 {
        text.push_str("\nCurrent batch state:\n");
    }
    for (name, batch) in with_batches(skyhook) {
        text.push_str(&format!(
            "  - {name}: batch {}, {} completed, {} failed\n",
            batch.current_batch, batch.completed_nodes, batch.failed_nodes
        ));
    }
    Some(text)
}

/// A patch that sets every batch state to `{currentBatch: 1}`, and nothing else.
fn batches(skyhook: &Skyhook) -> Option<Value> {
    let compartments: Map<String, Value> = with_batches(skyhook)
        .map(|(name, batch)| {
            let given = serde_json::to_value(batch).unwrap_or_default();
            let mut fields = given.as_object().cloned().unwrap_or_default();
            for (_, value) in &mut fields {
                *value = Value::Null;
            }
            fields.insert("currentBatch".to_owned(), json!(1));
            (name.clone(), json!({ "batchState": fields }))
        })
        .collect();
    (!compartments.is_empty()).then(|| json!({ "status": { "compartmentStatuses": compartments } }))
}

/// The same, and the numbers of the nodes begin with 0.
pub(crate) fn batches_and_order(skyhook: &Skyhook) -> Option<Value> {
    skyhook.status.as_ref()?;
    let mut patch = batches(skyhook).unwrap_or_else(|| json!({ "status": {} }));
    patch["status"]["nodeOrderOffset"] = json!(0);
    patch["status"]["nodePriority"] = Value::Null;
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn gpu_init(compartments: &Value) -> Skyhook {
        let status = json!({ "compartmentStatuses": compartments, "nodeOrderOffset": 4 });
        testing::skyhook("gpu-init", &json!({}), &status)
    }

    fn two() -> Skyhook {
        let counts = |batch: Value| json!({ "matched": 4, "ceiling": 2, "inProgress": 0, "completed": 1, "progressPercent": 25, "batchState": batch });
        gpu_init(&json!({
            "gpu": counts(json!({ "currentBatch": 3, "completedNodes": 2, "failedNodes": 1, "shouldStop": true })),
            "__default__": counts(json!({ "currentBatch": 1 })),
            "none": counts(json!(null)),
        }))
    }

    #[test]
    fn the_batches_of_every_compartment_are_shown() {
        let want = "\
Skyhook: gpu-init
Compartments: 3 total, 2 with batch state

Current batch state:
  - __default__: batch 1, 0 completed, 0 failed
  - gpu: batch 3, 2 completed, 1 failed
";
        assert_eq!(summary(&two()).as_deref(), Some(want));
        assert_eq!(summary(&gpu_init(&json!({}))), None);
    }

    #[test]
    fn nothing_but_the_batches_is_written() {
        let compartments = json!({
            "__default__": { "batchState": { "currentBatch": 1 } },
            "gpu": { "batchState": { "currentBatch": 1, "completedNodes": null, "failedNodes": null, "shouldStop": null } },
        });
        let want = json!({ "status": { "compartmentStatuses": compartments } });
        assert_eq!(batches(&two()), Some(want));
        let want = json!({ "status": {
            "compartmentStatuses": compartments, "nodeOrderOffset": 0, "nodePriority": null,
        } });
        assert_eq!(batches_and_order(&two()), Some(want));
        assert_eq!(batches(&gpu_init(&json!({}))), None);
        let want = json!({ "status": { "nodeOrderOffset": 0, "nodePriority": null } });
        assert_eq!(batches_and_order(&gpu_init(&json!({}))), Some(want));
    }
}
