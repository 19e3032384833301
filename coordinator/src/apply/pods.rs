//! Reading and evicting the pods of a node that drains.

use k8s_openapi::api::core::v1::Pod;
use kube::Resource as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use serde_json::json;

use super::{Applier, ApplyError, RetryClass, failed, retry_class};
use skyhook_fleet::effect::Effect;
use skyhook_fleet::index::Change;
use skyhook_fleet::pods::{PodFact, Refusal, RefusedBy};

/// What the API server says to a deletion for which the chart gives the coordinator no right.
const NO_DELETION: &str = "cannot delete resource \"pods\"";
const ALLOW_DELETION: &str = "; set rbac.allowDisableEviction in the values of the chart, or drainConfig.disableEviction to false";

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

    /// Evicts a pod. If a PodDisruptionBudget, a webhook or the API server refuses, this is no error: the answer says
    /// why, and the eviction is tried again later. It is an error if the API server is too busy.
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
        let verb = if *by_deletion { "delete" } else { "evict" };
        let problem = problem(answer)
            .map_err(|source| failed(verb, "pod", &format!("{namespace}/{pod}"), source))?;
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

/// Why the pod is not evicted; `None` if it is, or if no such pod exists any more. An error if the API server is too
/// busy or cannot be reached: this says nothing about the pod.
fn problem(answer: kube::Result<()>) -> kube::Result<Option<Refusal>> {
    match answer {
        Ok(()) => Ok(None),
        // Gone, or another pod under the same name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 429 && !is_overload(&status) => {
            Ok(Some(refusal(&status)))
        }
        Err(error) if matches!(retry_class(&error), RetryClass::After(_)) => Err(error),
        Err(kube::Error::Api(status)) => Ok(Some(refusal(&status))),
        Err(error) => Ok(Some(Refusal {
            by: RefusedBy::Server,
            text: error.to_string(),
        })),
    }
}

/// True if the API server limits requests. Two other refusals of an eviction have the same code, 429: that of a
/// PodDisruptionBudget, and that of a webhook that wants to move the pod itself, as KubeVirt has one.
fn is_overload(status: &kube::core::Status) -> bool {
    status.code == 429 && refused_by(status) == RefusedBy::Server
}

/// Who refused an eviction. A PodDisruptionBudget gives a cause of its own.
fn refused_by(status: &kube::core::Status) -> RefusedBy {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    if status.code == 429 && causes.any(|cause| cause.reason == "DisruptionBudget") {
        RefusedBy::DisruptionBudget
    } else if status.message.contains("admission webhook") && status.message.contains("denied") {
        RefusedBy::Webhook
    } else {
        RefusedBy::Server
    }
}

/// What the API server, a PodDisruptionBudget or a webhook said against an eviction.
fn refusal(status: &kube::core::Status) -> Refusal {
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
    // Without this right, Skyhooks with drainConfig.disableEviction cannot drain.
    let lacks_right = status.code == 403 && status.message.contains(NO_DELETION);
    let way_out = if lacks_right { ALLOW_DELETION } else { "" };
    Refusal {
        by: refused_by(status),
        text: format!("eviction refused ({}): {why}{way_out}", status.code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, message: &str, causes: &serde_json::Value) -> kube::Result<()> {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "TooManyRequests",
            "code": code, "details": { "causes": causes },
        });
        let status: kube::core::Status = serde_json::from_value(status).unwrap();
        Err(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn only_an_overload_is_no_answer_about_the_pod() {
        let budget = json!([{ "reason": "DisruptionBudget", "message": "The disruption budget web needs 2 healthy pods" }]);
        let none = json!([]);
        let webhook = "admission webhook \"virt.kubevirt.io\" denied the request: the VM is moved";
        let more_than_one =
            "This pod has more than one PodDisruptionBudget, which is not supported.";
        for (name, answer, want) in [
            ("evicted", Ok(()), Some(None)),
            ("gone", answer(404, "not found", &none), Some(None)),
            ("another pod", answer(409, "conflict", &none), Some(None)),
            (
                "a budget",
                answer(429, "Cannot evict pod", &budget),
                Some(Some((
                    RefusedBy::DisruptionBudget,
                    "eviction refused (429): The disruption budget web needs 2 healthy pods",
                ))),
            ),
            (
                "a webhook",
                answer(429, webhook, &none),
                Some(Some((
                    RefusedBy::Webhook,
                    "eviction refused (429): admission webhook \"virt.kubevirt.io\" denied the request: the VM is moved",
                ))),
            ),
            (
                "a webhook, with another code",
                answer(403, webhook, &none),
                Some(Some((
                    RefusedBy::Webhook,
                    "eviction refused (403): admission webhook \"virt.kubevirt.io\" denied the request: the VM is moved",
                ))),
            ),
            (
                "two budgets",
                answer(500, more_than_one, &none),
                Some(Some((
                    RefusedBy::Server,
                    "eviction refused (500): This pod has more than one PodDisruptionBudget, which is not supported.",
                ))),
            ),
            (
                "forbidden",
                answer(403, "forbidden: no", &none),
                Some(Some((
                    RefusedBy::Server,
                    "eviction refused (403): forbidden: no",
                ))),
            ),
            (
                "priority and fairness",
                answer(429, "Too many requests, please try again later.", &none),
                None,
            ),
            (
                "not reached",
                Err(kube::Error::Service("connection refused".into())),
                None,
            ),
            ("shutting down", answer(503, "shutting down", &none), None),
        ] {
            let want = want.map(|refusal| {
                refusal.map(|(by, text)| Refusal {
                    by,
                    text: text.to_owned(),
                })
            });
            assert_eq!(problem(answer).ok(), want, "{name}");
        }
    }

    /// The chart gives the coordinator this right only where a value says so.
    #[test]
    fn a_deletion_without_the_right_says_which_value_gives_it() {
        let said =
            "pods \"x\" is forbidden: User \"u\" cannot delete resource \"pods\" in API group \"\"";
        let refusal = problem(answer(403, said, &json!([]))).unwrap().unwrap();
        assert_eq!(refusal.by, RefusedBy::Server);
        let want = format!(
            "eviction refused (403): {said}; set rbac.allowDisableEviction in the values of the chart, or \
             drainConfig.disableEviction to false"
        );
        assert_eq!(refusal.text, want);
    }

    #[test]
    fn an_eviction_that_is_refused_for_overload_slows_all_writes_down() {
        let error = problem(answer(
            429,
            "Too many requests, please try again later.",
            &json!([]),
        ));
        let class = super::super::retry_class(&error.unwrap_err());
        assert_eq!(
            class,
            super::super::RetryClass::After(std::time::Duration::from_secs(1))
        );
    }
}
