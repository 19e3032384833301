//! Turns watch streams into [`Change`] values.

use std::fmt::Debug;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use skyhook_crds::names;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use skyhook_fleet::facts::{WireLease, WireNode, WirePolicy, WireRollout, WireSkyhook};
use skyhook_fleet::index::{Change, Kind};

/// Watches everything that the picture is made of, and sends changes until the receiver goes.
///
/// Guarantees: the changes of one kind come in the order of the API server's stream. After a break, the kind is listed
/// again with a consistent read, between `ListBegins` and `Synced`.
pub fn all(
    client: &Client,
    namespace: &str,
    changes: &mpsc::Sender<Change>,
    metrics: &Metrics,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let sender = || (changes.clone(), metrics.clone());
    tasks.spawn(follow::<WireNode>(
        Api::all(client.clone()),
        watcher::Config::default(),
        Kind::Node,
        sender(),
        |node| Change::Node(Box::new(node)),
        Change::NodeGone,
    ));
    tasks.spawn(follow::<WireSkyhook>(
        Api::all(client.clone()),
        watcher::Config::default(),
        Kind::Skyhook,
        sender(),
        |skyhook| Change::Skyhook(Box::new(skyhook)),
        Change::SkyhookGone,
    ));
    tasks.spawn(follow::<WireLease>(
        Api::all(client.clone()),
        watcher::Config::default(),
        Kind::Lease,
        sender(),
        |lease| Change::Lease(Box::new(lease)),
        Change::LeaseGone,
    ));
    tasks.spawn(follow::<ControllerRevision>(
        Api::namespaced(client.clone(), namespace),
        watcher::Config::default().labels(names::REVISION_OF),
        Kind::Revision,
        sender(),
        |revision| Change::Revision(Box::new(revision)),
        Change::RevisionGone,
    ));
    tasks.spawn(follow::<WirePolicy>(
        Api::all(client.clone()),
        watcher::Config::default(),
        Kind::Policy,
        sender(),
        |policy| Change::Policy(Box::new(policy)),
        Change::PolicyGone,
    ));
    tasks.spawn(follow::<WireRollout>(
        Api::all(client.clone()),
        watcher::Config::default(),
        Kind::Rollout,
        sender(),
        |rollout| Change::Rollout(Box::new(rollout)),
        Change::RolloutGone,
    ));
    tasks
}

async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: Kind,
    (changes, metrics): (mpsc::Sender<Change>, Metrics),
    changed: fn(K) -> Change,
    gone: fn(String) -> Change,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let change = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => changed(object),
            Ok(Event::Delete(object)) => gone(object.name_any()),
            Ok(Event::Init) => Change::ListBegins(kind),
            Ok(Event::InitDone) => Change::Synced(kind),
            Err(error) => {
                tracing::warn!(?kind, %error, "watch broke; it is taken up again");
                metrics.broke(kind);
                let Some(why) = unlistable(&error) else {
                    continue;
                };
                Change::Unlistable { kind, why }
            }
        };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

/// Why a kind cannot be listed, if the API server says so.
fn unlistable(error: &watcher::Error) -> Option<String> {
    let watcher::Error::InitialListFailed(kube::Error::Api(status)) = error else {
        return None;
    };
    match status.code {
        404 => Some(
            "the CustomResourceDefinition is not installed: install those of the chart".to_owned(),
        ),
        403 => Some(format!(
            "{}: grant the coordinator the chart's rights",
            status.message
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_without_its_definition_or_its_rights_cannot_be_listed() {
        let failed = |code: u16, message: &str| {
            let status: kube::core::Status =
                serde_json::from_value(serde_json::json!({ "code": code, "message": message }))
                    .unwrap();
            watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
        };
        for (code, expected) in [
            (
                404,
                Some("the CustomResourceDefinition is not installed: install those of the chart"),
            ),
            (403, Some("no: grant the coordinator the chart's rights")),
            (500, None),
            (410, None),
        ] {
            assert_eq!(
                unlistable(&failed(code, "no")).as_deref(),
                expected,
                "{code}"
            );
        }
        assert_eq!(unlistable(&watcher::Error::NoResourceVersion), None);
    }
}
