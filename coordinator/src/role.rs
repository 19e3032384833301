//! Keeps the Role that lets agents read, by name, the Secrets and ConfigMaps that Skyhooks refer to.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event as Seen};
use serde_json::json;
use skyhook_crds::names;
use skyhook_fleet::references::References;
use tokio::sync::watch;
use tokio::time::sleep;

/// How long a Role that could not be written waits for the next try.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the rules of the Role `name` equal to `wanted`, also if somebody else changes or deletes the Role. If no
/// Skyhook refers to anything, the Role is deleted, so that nothing is left after an uninstall. While `wanted` is
/// `None`, another replica leads, and nothing is written.
pub async fn keep(
    client: Client,
    namespace: String,
    name: String,
    mut wanted: watch::Receiver<Option<References>>,
) {
    let api: Api<Role> = Api::namespaced(client, &namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher::watcher(api.clone(), config)
        .default_backoff()
        .boxed();
    // Unknown until the first list is complete.
    let mut live: Option<Option<Vec<PolicyRule>>> = None;
    let mut listed = None;
    loop {
        let rules = wanted.borrow_and_update().as_ref().map(References::rules);
        let differs = match (&rules, &live) {
            (Some(rules), Some(live)) if rules.is_empty() => live.is_some(),
            (Some(rules), Some(live)) => live.as_ref() != Some(rules),
            (None, _) | (_, None) => false,
        };
        if let Some(rules) = rules.filter(|_| differs) {
            match apply(&api, &name, &rules).await {
                Ok(()) => live = Some((!rules.is_empty()).then_some(rules)),
                Err(error) => {
                    tracing::warn!(role = name, %error, "the Role with what Skyhooks refer to cannot be written");
                    sleep(RETRY).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            event = events.next() => match event {
                Some(Ok(Seen::Apply(role))) => live = Some(Some(role.rules.unwrap_or_default())),
                Some(Ok(Seen::Delete(_))) => live = Some(None),
                Some(Ok(Seen::Init)) => listed = None,
                Some(Ok(Seen::InitApply(role))) => listed = Some(role.rules.unwrap_or_default()),
                Some(Ok(Seen::InitDone)) => live = Some(listed.take()),
                Some(Err(error)) => tracing::debug!(role = name, %error, "watch broke; it is taken up again"),
                None => return,
            },
        }
    }
}

async fn apply(api: &Api<Role>, name: &str, rules: &[PolicyRule]) -> kube::Result<()> {
    if rules.is_empty() {
        return match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            answer => answer.map(drop),
        };
    }
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": names::COORDINATOR}},
        "rules": rules,
    });
    let params = PatchParams::apply(names::COORDINATOR).force();
    api.patch(name, &params, &Patch::Apply(&role))
        .await
        .map(drop)
}
