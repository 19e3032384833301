//! Calls to the Kubernetes API: one watch on the agent's own lease, its status, and the objects that a revision refers
//! to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{TryStreamExt as _, pin_mut};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Node, Secret};
use kube::api::{ListParams, ObjectList, Patch, PatchParams, WatchEvent};
use kube::{Api, Client};
use serde_json::{Value, json};
use skyhook_crds::package::Resources;
use skyhook_crds::quantity::Quantity;
use skyhook_crds::revision::RevisionData;
use skyhook_crds::{InterruptionLease, names};
use skyhook_oci::Credentials;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep, timeout};

use crate::machine::retry::API;
use crate::prepare::metadata::NodeFacts;

/// How long one watch lasts. With the usual five minutes, 5,000 nodes would open 17 watches per second.
const WATCH_SECONDS: u32 = 1800;
/// A watch that ends sooner than this was not closed because its time was over.
const SHORT_WATCH: Duration = Duration::from_secs(5);
/// How long a watch may be silent before the connection counts as dead. The server sends a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(180);
/// The status code (410 Gone) for a resource version that the API server does not have any more. It is the status of the
/// answer to a watch, or the code of an event of the watch.
const EXPIRED: u16 = 410;
/// Timeout of a call. A load balancer may drop an answer, and without a timeout the agent would wait forever.
const DEADLINE: Duration = Duration::from_secs(30);

/// The pull secret that is used wherever it exists.
pub const PULL_SECRET: &str = "node-init-secret";

/// Why a call to the API failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("{what} was changed meanwhile")]
    Conflict { what: String },
    #[error("{what} was refused: {message}")]
    Refused { what: String, message: String },
    /// There was no answer, or a temporary error. The call may have succeeded.
    #[error("{what}: the API does not answer: {problem}")]
    Silent { what: String, problem: String },
    #[error("{what} cannot be read: {problem}")]
    Malformed { what: String, problem: String },
}

/// An event of the watch.
#[derive(Clone, Debug)]
pub enum LeaseEvent {
    Seen(Box<InterruptionLease>),
    /// The node has no lease.
    Gone,
}

/// The API client of one node's agent.
#[derive(Clone)]
pub struct LeaseApi {
    client: Client,
    node: String,
    namespace: String,
    /// Timeout of every call.
    deadline: Duration,
}

impl std::fmt::Debug for LeaseApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseApi")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl LeaseApi {
    #[must_use]
    pub fn new(client: Client, node: String, namespace: String) -> Self {
        Self {
            client,
            node,
            namespace,
            deadline: DEADLINE,
        }
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn leases(&self) -> Api<InterruptionLease> {
        Api::all(self.client.clone())
    }

    /// Makes a call with a timeout. All calls use this function.
    async fn call<T>(
        &self,
        what: &str,
        future: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        match timeout(self.deadline, future).await {
            Ok(answer) => judge(what, answer),
            Err(_) => Err(silent(
                what,
                &format!("no answer in {} s", self.deadline.as_secs()),
            )),
        }
    }

    /// Lists once, and then watches until the receiver is dropped. A lost watch is resumed at its resource version.
    pub async fn watch(self, events: UnboundedSender<LeaseEvent>) {
        let mut failures = 0;
        loop {
            match self.list().await {
                Ok((lease, mut version)) => {
                    if events.send(lease).is_err() {
                        return;
                    }
                    let listed = Instant::now();
                    if self.follow(&events, &mut version).await.is_none() {
                        return;
                    }
                    // The version has expired. A broken API may say so of every version.
                    if listed.elapsed() < SHORT_WATCH {
                        failures += 1;
                        sleep(API.delay(failures, &self.node)).await;
                    } else {
                        failures = 0;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the lease cannot be listed");
                    failures += 1;
                    sleep(API.delay(failures, &self.node)).await;
                }
            }
        }
    }

    async fn list(&self) -> Result<(LeaseEvent, String), ApiError> {
        let params = ListParams::default().fields(&format!("metadata.name={}", self.node));
        let mut list: ObjectList<InterruptionLease> =
            self.call("leases", self.leases().list(&params)).await?;
        let version = list.metadata.resource_version.take().unwrap_or_default();
        let event = match list.items.pop() {
            Some(lease) => LeaseEvent::Seen(Box::new(lease)),
            None => LeaseEvent::Gone,
        };
        Ok((event, version))
    }

    /// Watches from `version` on. Returns `None` when the receiver is dropped, and `Some` when the version has
    /// expired.
    async fn follow(
        &self,
        events: &UnboundedSender<LeaseEvent>,
        version: &mut String,
    ) -> Option<()> {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            match self.watch_once(events, version).await {
                // A proxy may close every watch at once.
                Ok(Ended::Closed) if started.elapsed() < SHORT_WATCH => {
                    failures += 1;
                    sleep(API.delay(failures, &self.node)).await;
                }
                Ok(Ended::Closed) => failures = 0,
                Ok(Ended::Expired) => return Some(()),
                Ok(Ended::Unheard) => return None,
                Err(error) => {
                    tracing::warn!(%error, "the watch on the lease was lost");
                    failures += 1;
                    sleep(API.delay(failures, &self.node)).await;
                }
            }
        }
    }

    async fn watch_once(
        &self,
        events: &UnboundedSender<LeaseEvent>,
        version: &mut String,
    ) -> Result<Ended, ApiError> {
        let uri = format!(
            "/apis/{}/v1alpha1/interruptionleases?watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}\
             &fieldSelector=metadata.name%3D{}&resourceVersion={version}",
            names::GROUP,
            self.node
        );
        let request = http::Request::get(uri)
            .body(Vec::new())
            .map_err(|e| silent("watch", &e))?;
        let asked = async {
            match self
                .client
                .request_events::<InterruptionLease>(request)
                .await
            {
                Err(kube::Error::Api(status)) if status.code == EXPIRED => Ok(None),
                answer => answer.map(Some),
            }
        };
        let Some(stream) = self.call("watch", asked).await? else {
            return Ok(Ended::Expired);
        };
        pin_mut!(stream);
        loop {
            let Ok(item) = timeout(SILENCE, stream.try_next()).await else {
                return Ok(Ended::Closed);
            };
            let event = match item {
                Ok(None) => return Ok(Ended::Closed),
                Err(error) => return Err(silent("watch", &error)),
                Ok(Some(event)) => event,
            };
            let event = match event {
                WatchEvent::Added(lease) | WatchEvent::Modified(lease) => {
                    *version = lease.metadata.resource_version.clone().unwrap_or_default();
                    LeaseEvent::Seen(Box::new(lease))
                }
                WatchEvent::Deleted(lease) => {
                    *version = lease.metadata.resource_version.unwrap_or_default();
                    LeaseEvent::Gone
                }
                WatchEvent::Bookmark(bookmark) => {
                    version.clone_from(&bookmark.metadata.resource_version);
                    continue;
                }
                WatchEvent::Error(status) if status.code == EXPIRED => return Ok(Ended::Expired),
                WatchEvent::Error(status) => return Err(silent("watch", &status.message)),
            };
            if events.send(event).is_err() {
                return Ok(Ended::Unheard);
            }
        }
    }

    /// Reads the lease.
    pub async fn lease(&self) -> Result<InterruptionLease, ApiError> {
        self.call("lease", self.leases().get(&self.node)).await
    }

    /// Patches the status of the lease, with UID and resource version as preconditions: a delayed write must not
    /// overwrite a newer status.
    pub async fn patch_status(
        &self,
        uid: &str,
        version: &str,
        change: Value,
    ) -> Result<InterruptionLease, ApiError> {
        let patch = json!({
            "metadata": { "uid": uid, "resourceVersion": version },
            "status": change,
        });
        let params = PatchParams {
            field_manager: Some(names::AGENT.to_owned()),
            ..PatchParams::default()
        };
        let leases = self.leases();
        let patch = Patch::Merge(&patch);
        self.call(
            "lease status",
            leases.patch_status(&self.node, &params, &patch),
        )
        .await
    }

    /// Reads the content of a revision.
    pub async fn revision(&self, name: &str) -> Result<RevisionData, ApiError> {
        let what = format!("revision {name}");
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &self.namespace);
        let revision = self.call(&what, api.get(name)).await?;
        let data = revision.data.map(|raw| raw.0).unwrap_or_default();
        RevisionData::read(data).map_err(|e| ApiError::Malformed {
            what,
            problem: e.to_string(),
        })
    }

    /// Reads the Node.
    pub async fn node(&self) -> Result<NodeFacts, ApiError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = self
            .call(&format!("node {}", self.node), api.get(&self.node))
            .await?;
        Ok(NodeFacts::of(&node))
    }

    /// Default resources of containers in the namespace: the first entry for containers in its LimitRanges.
    pub async fn default_resources(&self) -> Result<Option<Resources>, ApiError> {
        let api: Api<LimitRange> = Api::namespaced(self.client.clone(), &self.namespace);
        let ranges = self
            .call("limit ranges", api.list(&ListParams::default()))
            .await?;
        let item = ranges
            .items
            .into_iter()
            .filter_map(|range| range.spec)
            .flat_map(|spec| spec.limits)
            .find(|item| item.type_ == "Container");
        Ok(item.map(|item| {
            let limits = item.default.unwrap_or_default();
            let requests = item.default_request.unwrap_or_default();
            let quantity = |map: &BTreeMap<String, _>, key: &str| {
                map.get(key).map(
                    |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
                        Quantity(q.0.clone())
                    },
                )
            };
            Resources {
                cpu_request: quantity(&requests, "cpu"),
                cpu_limit: quantity(&limits, "cpu"),
                memory_request: quantity(&requests, "memory"),
                memory_limit: quantity(&limits, "memory"),
            }
        }))
    }

    /// Reads Secrets. Secrets that do not exist are left out.
    pub async fn secrets(
        &self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, BTreeMap<String, Vec<u8>>>, ApiError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut found = BTreeMap::new();
        for name in names {
            match self.call(&format!("secret {name}"), api.get(name)).await {
                Ok(secret) => {
                    let data = secret.data.unwrap_or_default();
                    let data = data.into_iter().map(|(k, v)| (k, v.0)).collect();
                    found.insert(name.clone(), data);
                }
                Err(ApiError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Reads ConfigMaps. ConfigMaps that do not exist are left out.
    pub async fn config_maps(
        &self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>, ApiError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut found = BTreeMap::new();
        for name in names {
            match self
                .call(&format!("config map {name}"), api.get(name))
                .await
            {
                Ok(map) => {
                    found.insert(name.clone(), map.data.unwrap_or_default());
                }
                Err(ApiError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Reads the credentials for registries from pull secrets. A secret that cannot be used harms itself alone: the error
    /// of a pull names it. Of logins for the same images, the one of the earlier secret is tried first. Only the secret
    /// that every installation may have need not exist.
    pub async fn credentials(&self, secrets: &[String]) -> Credentials {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut all = Credentials::anonymous();
        for name in secrets {
            let source = format!("pull secret {name}");
            let more = match self.call(&source, api.get(name)).await {
                Ok(secret) => pull_secret(&secret),
                Err(ApiError::NotFound { .. }) if name == PULL_SECRET => continue,
                Err(error) => Err(match error {
                    ApiError::NotFound { .. } => "it does not exist".to_owned(),
                    ApiError::Refused { message, .. } => format!("it may not be read: {message}"),
                    ApiError::Silent { problem, .. } | ApiError::Malformed { problem, .. } => {
                        format!("it cannot be read: {problem}")
                    }
                    ApiError::Conflict { .. } => error.to_string(),
                }),
            };
            let more = match more {
                Ok(more) => more.from_source(&source),
                Err(problem) => Credentials::unusable(&source, problem),
            };
            for problem in more.all_problems() {
                tracing::warn!(%problem, "credentials for registries cannot be used");
            }
            all = all.merge(more);
        }
        all
    }
}

/// The credentials in a pull secret of either type. The error never contains its content.
fn pull_secret(secret: &Secret) -> Result<Credentials, String> {
    let keys = [".dockerconfigjson", ".dockercfg"];
    let data = secret.data.as_ref();
    let content = |key: &str| data?.get(key).filter(|content| !content.0.is_empty());
    match keys.into_iter().find_map(content) {
        Some(content) => {
            Credentials::from_docker_config(&content.0).map_err(|error| error.to_string())
        }
        None => Err(format!(
            "it has no key {}: make it with the type kubernetes.io/dockerconfigjson",
            keys.join(" and no key ")
        )),
    }
}

enum Ended {
    /// The watch has ended: watch again from the same resource version.
    Closed,
    /// The resource version has expired: list again.
    Expired,
    /// The receiver of the events was dropped.
    Unheard,
}

fn silent(what: &str, problem: &dyn std::fmt::Display) -> ApiError {
    ApiError::Silent {
        what: what.to_owned(),
        problem: problem.to_string(),
    }
}

fn judge<T>(what: &str, answer: kube::Result<T>) -> Result<T, ApiError> {
    let what = what.to_owned();
    match answer {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(match status.code {
            404 => ApiError::NotFound { what },
            409 => ApiError::Conflict { what },
            400 | 401 | 403 | 422 => ApiError::Refused {
                what,
                message: status.message.clone(),
            },
            _ => silent(&what, &status.message),
        }),
        Err(kube::Error::SerdeError(e)) => Err(ApiError::Malformed {
            what,
            problem: e.to_string(),
        }),
        Err(e) => Err(silent(&what, &skyhook_oci::chain(&e))),
    }
}

#[cfg(test)]
mod tests;
