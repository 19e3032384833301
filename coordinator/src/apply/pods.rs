//! Reading and evicting the pods of a node that drains.

use k8s_openapi::api::core::v1::Pod;
use kube::Resource as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use serde_json::json;

use super::{Applier, ApplyError, failed};
use skyhook_fleet::effect::Effect;
use skyhook_fleet::index::Change;
use skyhook_fleet::pods::PodFact;

impl Applier {
    pub(super) async fn survey_pods(
        &self,
        node: &str,
        lease_uid: &str,
        consistent: bool,
    ) -> Result<Option<Change>, ApplyError> {
        let api: Api<Pod> = Api::all(self.client.clone());
        let mut params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        if !consistent {
            params = params.match_any();
        }
        let pods = api
            .list(&params)
            .await
            .map_err(|source| failed("list", "pods of node", node, source))?;
        Ok(Some(Change::Pods {
            node: node.to_owned(),
            lease_uid: lease_uid.to_owned(),
            pods: pods.items.into_iter().map(PodFact::new).collect(),
            consistent,
        }))
    }

    /// Evicts a pod. If the API server, a PodDisruptionBudget or a webhook refuses, this is no error: the answer says
    /// why, and the eviction is tried again later.
    pub(super) async fn evict(&self, effect: &Effect) -> Result<Option<Change>, ApplyError> {
        let Effect::EvictPod {
            node,
            lease_uid,
            namespace,
            pod,
            pod_uid,
            grace_period,
            by_deletion,
        } = effect
        else {
            return Ok(None);
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let delete = DeleteParams {
            grace_period_seconds: *grace_period,
            preconditions: Some(Preconditions {
                uid: Some(pod_uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let answer = if *by_deletion {
            api.delete(pod, &delete).await.map(|_| ())
        } else {
            self.eviction(namespace, pod, &delete).await
        };
        let problem = match answer {
            Ok(()) => None,
            // Gone, or another pod under the same name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => None,
            Err(kube::Error::Api(status)) => Some(refusal(&status)),
            Err(error) => Some(error.to_string()),
        };
        Ok(Some(Change::Evicted {
            node: node.clone(),
            lease_uid: lease_uid.clone(),
            pod_uid: pod_uid.clone(),
            problem,
        }))
    }

    /// Posts the Eviction directly. kube's own call spells `deleteOptions` in a way that the API server ignores, so
    /// that UID and grace period would be lost.
    async fn eviction(
        &self,
        namespace: &str,
        pod: &str,
        delete: &DeleteParams,
    ) -> Result<(), kube::Error> {
        let body = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "name": pod, "namespace": namespace },
            "deleteOptions": delete,
        });
        let body = serde_json::to_vec(&body).map_err(kube::Error::SerdeError)?;
        let request = kube::core::Request::new(Pod::url_path(&(), Some(namespace)))
            .create_subresource("eviction", pod, &PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        let _status: serde_json::Value = self.client.request(request).await?;
        Ok(())
    }
}

/// What the API server, a PodDisruptionBudget or a webhook said against an eviction.
fn refusal(status: &kube::core::Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let causes: Vec<&str> = causes
        .map(|cause| cause.message.as_str())
        .filter(|message| !message.is_empty())
        .collect();
    let why = if causes.is_empty() {
        status.message.clone()
    } else {
        causes.join("; ")
    };
    format!("eviction refused ({}): {why}", status.code)
}
