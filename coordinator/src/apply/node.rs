//! Writes of Nodes.

use kube::api::{Api, Patch};
use serde_json::{Value, json};

use skyhook_fleet::effect::{AsOf, NodePatch};
use skyhook_fleet::facts::{WireCondition, WireNode};
use skyhook_fleet::index::Change;

use super::{Applier, ApplyError, failed, guard, manager};

impl Applier {
    /// Annotations, labels and conditions are written with one PATCH of the status subresource, which leaves the rest
    /// of the object unchanged. Only cordons and taints need a PATCH of the object itself, which comes first.
    pub(super) async fn node(
        &self,
        name: &str,
        at: &AsOf,
        patch: &NodePatch,
        wall: &str,
    ) -> Result<Option<Change>, ApplyError> {
        self.check_live(name, &patch.check).await?;
        let api: Api<WireNode> = Api::all(self.client.clone());
        let mut metadata = guard(at);
        metadata["annotations"] = json!(patch.annotations);
        metadata["labels"] = json!(patch.labels);
        let mut body = json!({ "metadata": metadata });
        let mut first = None;
        if patch.unschedulable.is_some() || patch.taints.is_some() {
            body["spec"] = spec(patch);
            let written = api.patch(name, &manager(), &Patch::Strategic(&body)).await;
            let written = written.map_err(|source| failed("patch", "node", name, source))?;
            if patch.conditions.is_empty() {
                return Ok(Some(Change::Node(Box::new(written))));
            }
            first = Some(written.clone());
            body = json!({ "metadata": { "uid": at.uid, "resourceVersion": written.metadata.resource_version } });
        }
        if !patch.conditions.is_empty() {
            let conditions: Vec<Value> = patch
                .conditions
                .iter()
                .map(|(type_, wanted)| condition(type_, wanted.as_ref(), wall))
                .collect();
            body["status"] = json!({ "conditions": conditions });
        }
        let written = api
            .patch_status(name, &manager(), &Patch::Strategic(&body))
            .await;
        let written = match (written, first) {
            (Ok(written), _) => written,
            // The first PATCH succeeded, so the write counts as done. The next pass decides about the conditions again.
            (Err(_), Some(first)) => first,
            (Err(source), None) => return Err(failed("patch", "node status", name, source)),
        };
        Ok(Some(Change::Node(Box::new(written))))
    }
}

/// The fields of the Node's spec that change. The API server stores false as an absent field. It replaces the list of
/// taints as a whole.
fn spec(patch: &NodePatch) -> Value {
    let mut spec = json!({});
    if let Some(unschedulable) = patch.unschedulable {
        spec["unschedulable"] = json!(unschedulable.then_some(true));
    }
    if let Some(taints) = &patch.taints {
        spec["taints"] = json!(taints);
    }
    spec
}

/// A condition in a strategic merge patch, which finds it by its type; `None` removes it.
fn condition(type_: &str, wanted: Option<&WireCondition>, wall: &str) -> Value {
    let Some(condition) = wanted else {
        return json!({ "type": type_, "$patch": "delete" });
    };
    json!({
        "type": type_,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastHeartbeatTime": wall,
        "lastTransitionTime": wall,
    })
}
