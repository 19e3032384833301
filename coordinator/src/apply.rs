//! Turns effects into API calls. A write carries the version that it was decided on. A failure is returned as an
//! [`Outcome`].

mod labels;
mod live;
mod node;
mod pods;
mod revisions;
mod rollouts;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource as _};
use serde_json::{Value, json};
use skyhook_crds::lease::{Drain, Granted, InterruptionLease, InterruptionLeaseSpec, Stop};
use skyhook_crds::{Skyhook, names};

use skyhook_fleet::effect::{AsOf, BatchCheck, Effect};
use skyhook_fleet::facts::{WireLease, WireNode, WireSkyhook};
use skyhook_fleet::index::Change;
use skyhook_fleet::outcome::Outcome;

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{verb} {object}")]
    Request {
        verb: &'static str,
        object: String,
        #[source]
        source: kube::Error,
    },
    #[error("the lease of node {node} is not what the watch showed")]
    OtherLease { node: String },
    #[error("no open batch has node {node}")]
    NotInBatch { node: String },
    #[error("the Skyhook that {name} was written for is there")]
    Owned { name: String },
}

/// What to do about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// The precondition did not hold, or the object is gone.
    Stale,
    /// The API server is too busy, or it cannot be reached: all writes have to wait this long.
    After(Duration),
    /// Forbidden, not valid, or too large.
    Refused,
    /// The API server failed with this write. It may work the next time.
    Transient,
}

/// How long all writes wait when the API server cannot be reached, or when what stands before it says that it is not
/// there.
const UNREACHABLE: Duration = Duration::from_secs(2);

/// Classifies an error of the API server, or of the connection to it.
#[must_use]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "one class for all other errors"
)]
pub fn retry_class(error: &kube::Error) -> RetryClass {
    match error {
        kube::Error::Api(status) => match status.code {
            404 | 409 => RetryClass::Stale,
            429 => {
                let seconds = status
                    .details
                    .as_ref()
                    .map_or(1, |d| d.retry_after_seconds.max(1));
                RetryClass::After(Duration::from_secs(u64::from(seconds)))
            }
            502..=504 => RetryClass::After(UNREACHABLE),
            400 | 403 | 405 | 413 | 415 | 422 => RetryClass::Refused,
            // etcd's answer to an object above its limit, which the API server passes on with the code 500.
            500 if status.message.contains("request is too large") => RetryClass::Refused,
            _ => RetryClass::Transient,
        },
        // There was no answer: the connection was refused, or it broke.
        kube::Error::HyperError(_) | kube::Error::Service(_) => RetryClass::After(UNREACHABLE),
        // There was no answer that can be decoded, or the request could not be made.
        _ => RetryClass::Transient,
    }
}

/// Writes effects.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    namespace: String,
    identity: String,
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Applier {
    /// Writes through `client`, as `identity`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
        }
    }

    /// Makes the write. `wall` is the time that is written for people.
    pub async fn apply(&self, effect: &Effect, wall: &str) -> Outcome {
        match self.write(effect, wall).await {
            Ok(change) => Outcome::Done(change),
            Err(
                ApplyError::OtherLease { .. }
                | ApplyError::NotInBatch { .. }
                | ApplyError::Owned { .. },
            ) => Outcome::Stale,
            Err(ApplyError::Request {
                verb,
                object,
                source,
            }) => {
                let error = format!("{verb} {object}: {source}");
                match retry_class(&source) {
                    RetryClass::Stale => Outcome::Stale,
                    RetryClass::After(after) => Outcome::Busy { after, error },
                    RetryClass::Refused => Outcome::Refused { error },
                    RetryClass::Transient => Outcome::Retry { error },
                }
            }
        }
    }

    async fn write(&self, effect: &Effect, wall: &str) -> Result<Option<Change>, ApplyError> {
        match effect {
            Effect::AdoptSkyhook {
                name,
                at,
                finalizers,
            } => {
                let annotations = json!({ names::VERSION: skyhook_fleet::plan::VERSION });
                self.skyhook_meta(name, at, finalizers, &annotations).await
            }
            Effect::ReleaseSkyhook {
                name,
                at,
                finalizers,
            } => self.skyhook_meta(name, at, finalizers, &json!({})).await,
            Effect::WriteSkyhookStatus {
                name, at, status, ..
            } => self.skyhook_status(name, at, status).await,
            Effect::CreateRevision { .. }
            | Effect::RenumberRevision { .. }
            | Effect::DisownRevision { .. }
            | Effect::PruneRevision { .. } => self.revision(effect).await,
            Effect::PatchNode {
                node, at, patch, ..
            } => self.node(node, at, patch, wall).await,
            Effect::ReserveLease { node, spec } => self.reserve_lease(node, spec).await,
            Effect::WriteRollout { .. }
            | Effect::DeleteRollout { .. }
            | Effect::LookForLeases { .. }
            | Effect::LookForState { .. } => self.rollout(effect).await,
            Effect::GrantLease { node, at, batch } => {
                self.grant(node, at, batch.as_ref(), wall).await
            }
            Effect::StopLease {
                node,
                at,
                stop,
                revision,
                message,
            } => {
                let stop = stop.map(|reason| Stop {
                    reason,
                    since: wall.to_owned(),
                    revision: revision.clone(),
                    message: (*message).to_owned(),
                });
                self.lease_spec(node, at, &json!({ "stop": stop })).await
            }
            Effect::SetDrain { node, at, drain } => {
                self.lease_spec(node, at, &json!({ "drain": whole(drain) }))
                    .await
            }
            Effect::SurveyPods {
                node,
                lease_uid,
                consistent,
            } => self.survey_pods(node, lease_uid, *consistent).await,
            Effect::EvictPod { .. } => self.evict(effect).await,
            Effect::WithdrawLease { node, at, .. }
            | Effect::AbandonLease { node, at }
            | Effect::ReleaseLease { node, at } => self.delete_lease(node, at).await,
            Effect::ReleaseLeaseOfGoneNode { node, at, node_uid } => {
                self.release_of_gone_node(node, at, node_uid).await
            }
        }
    }

    async fn grant(
        &self,
        node: &str,
        at: &AsOf,
        batch: Option<&BatchCheck>,
        wall: &str,
    ) -> Result<Option<Change>, ApplyError> {
        if let Some(check) = batch {
            self.check_batch(node, check).await?;
        }
        let granted = Granted {
            by: self.identity.clone(),
            at: wall.to_owned(),
        };
        self.lease_spec(node, at, &json!({ "granted": granted }))
            .await
    }

    async fn skyhook_meta(
        &self,
        name: &str,
        at: &AsOf,
        finalizers: &[String],
        annotations: &Value,
    ) -> Result<Option<Change>, ApplyError> {
        let api: Api<WireSkyhook> = Api::all(self.client.clone());
        let body = json!({
            "metadata": {
                "uid": at.uid,
                "resourceVersion": at.resource_version,
                "finalizers": finalizers,
                "annotations": annotations,
            }
        });
        let written = api.patch(name, &manager(), &Patch::Merge(&body)).await;
        let written = written.map_err(|source| failed("patch", "skyhook", name, source))?;
        Ok(Some(Change::Skyhook(Box::new(written))))
    }

    async fn skyhook_status(
        &self,
        name: &str,
        at: &AsOf,
        status: &skyhook_crds::SkyhookStatus,
    ) -> Result<Option<Change>, ApplyError> {
        // This replaces the status, because a merge would keep entries that are no longer in it. The server keeps the
        // rest of the stored object. The resource version guards against changes in between.
        let body = json!({
            "apiVersion": Skyhook::api_version(&()),
            "kind": Skyhook::kind(&()),
            "metadata": { "name": name, "uid": at.uid, "resourceVersion": at.resource_version },
            "status": status,
        });
        let params = post();
        let failed = |source| failed("put", "skyhook status", name, source);
        let body = serde_json::to_vec(&body).map_err(|e| failed(kube::Error::SerdeError(e)))?;
        let request = kube::core::Request::new(Skyhook::url_path(&(), None))
            .replace_subresource("status", name, &params, body)
            .map_err(|e| failed(kube::Error::BuildRequest(e)))?;
        let written: WireSkyhook = self.client.request(request).await.map_err(failed)?;
        Ok(Some(Change::Skyhook(Box::new(written))))
    }

    async fn reserve_lease(
        &self,
        node: &str,
        spec: &InterruptionLeaseSpec,
    ) -> Result<Option<Change>, ApplyError> {
        let api: Api<InterruptionLease> = Api::all(self.client.clone());
        let mut lease = InterruptionLease::new(node, spec.clone());
        lease.metadata.labels = Some(labels::of_lease(spec));
        lease.metadata.finalizers = Some(vec![names::LEASE_FINALIZER.to_owned()]);
        lease.metadata.owner_references = Some(vec![owner::<Node>(node, &spec.node.uid, None)]);
        let created = api.create(&post(), &lease).await;
        created.map_err(|source| failed("create", "interruptionlease", node, source))?;
        Ok(None)
    }

    /// Deletes the lease of a Node that no longer exists. The picture is not enough to be sure of this, so a GET comes
    /// first.
    async fn release_of_gone_node(
        &self,
        node: &str,
        at: &AsOf,
        node_uid: &str,
    ) -> Result<Option<Change>, ApplyError> {
        let nodes: Api<WireNode> = Api::all(self.client.clone());
        let live = nodes
            .get_opt(node)
            .await
            .map_err(|source| failed("get", "node", node, source))?;
        match live {
            Some(live) if live.metadata.uid.as_deref() == Some(node_uid) => {
                Ok(Some(Change::Node(Box::new(live))))
            }
            Some(_) | None => self.delete_lease(node, at).await,
        }
    }

    async fn lease_spec(
        &self,
        node: &str,
        at: &AsOf,
        spec: &Value,
    ) -> Result<Option<Change>, ApplyError> {
        let api: Api<WireLease> = Api::all(self.client.clone());
        let body = json!({ "metadata": guard(at), "spec": spec });
        let written = api.patch(node, &manager(), &Patch::Merge(&body)).await;
        written.map_err(|source| failed("patch", "interruptionlease", node, source))?;
        Ok(None)
    }

    /// Deletes the lease, then removes our finalizer from the version that the DELETE returned. If an agent writes in
    /// between, the second request is refused as a conflict.
    async fn delete_lease(&self, node: &str, at: &AsOf) -> Result<Option<Change>, ApplyError> {
        let api: Api<WireLease> = Api::all(self.client.clone());
        let error = |verb, source| failed(verb, "interruptionlease", node, source);
        let deleted = api
            .delete(node, &guarded_delete(at))
            .await
            .map_err(|source| error("delete", source))?;
        let Some(left) = deleted.left() else {
            return Ok(None);
        };
        let finalizers: Vec<String> = left
            .metadata
            .finalizers
            .unwrap_or_default()
            .into_iter()
            .filter(|finalizer| finalizer != names::LEASE_FINALIZER)
            .collect();
        let body = json!({
            "metadata": {
                "uid": at.uid,
                "resourceVersion": left.metadata.resource_version,
                "finalizers": finalizers,
            }
        });
        api.patch(node, &manager(), &Patch::Merge(&body))
            .await
            .map_err(|source| error("patch", source))?;
        Ok(None)
    }
}

/// In a merge patch a missing key keeps its old value, so unset fields are sent as null.
fn whole(drain: &Drain) -> Value {
    let Drain {
        state,
        since,
        blockers,
        more,
    } = drain;
    json!({ "state": state, "since": since, "blockers": blockers, "more": more })
}

/// The UID and the resource version that a write was decided on. The API server checks both.
fn guard(at: &AsOf) -> Value {
    json!({ "uid": at.uid, "resourceVersion": at.resource_version })
}

fn owner<K: kube::Resource<DynamicType = ()>>(
    name: &str,
    uid: &str,
    controller: Option<bool>,
) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller,
        block_owner_deletion: None,
    }
}

/// The annotation with the Skyhook that an object was written for, in place of an owner reference.
fn written_for(skyhook_uid: &str) -> BTreeMap<String, String> {
    [(names::WRITTEN_FOR.to_owned(), skyhook_uid.to_owned())].into()
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(names::COORDINATOR.to_owned()),
        ..PostParams::default()
    }
}

fn manager() -> PatchParams {
    PatchParams {
        field_manager: Some(names::COORDINATOR.to_owned()),
        ..PatchParams::default()
    }
}

fn guarded_delete(at: &AsOf) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions {
        uid: Some(at.uid.clone()),
        resource_version: Some(at.resource_version.clone()),
    })
}

fn failed(verb: &'static str, kind: &str, name: &str, source: kube::Error) -> ApplyError {
    ApplyError::Request {
        verb,
        object: format!("{kind}/{name}"),
        source,
    }
}

#[cfg(test)]
mod tests;
