//! Watches the agents' DaemonSet, to report why its pods are not admitted.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event as Seen};
use kube::{Client, ResourceExt as _};
use skyhook_fleet::index::Change;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// How long pods may be missing before the events are read for the cause.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the events are read again while pods are missing.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Sends to `changes` why agents' pods are missing, if the DaemonSet controller could not create them.
pub async fn watch(client: Client, namespace: String, name: String, changes: mpsc::Sender<Change>) {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut watched = watcher::watcher(api, config).default_backoff().boxed();
    let mut missing = 0;
    let mut ask_at: Option<Instant> = None;
    loop {
        let far = Instant::now() + Duration::from_secs(86_400);
        match timeout_at(ask_at.unwrap_or(far), watched.next()).await {
            Ok(Some(Ok(Seen::Apply(set) | Seen::InitApply(set)))) => {
                let now_missing = missing_pods(&set);
                if now_missing > 0 && ask_at.is_none() {
                    ask_at = Some(Instant::now() + PATIENCE);
                } else if now_missing == 0 {
                    ask_at = None;
                    if missing > 0 && changes.send(Change::AgentsRefused(None)).await.is_err() {
                        return;
                    }
                }
                missing = now_missing;
            }
            Ok(Some(Ok(Seen::Init | Seen::InitDone | Seen::Delete(_)))) => {}
            Ok(Some(Err(error))) => {
                tracing::debug!(daemonset = name, %error, "watch broke; it is taken up again");
            }
            Ok(None) => return,
            Err(_) => {
                ask_at = Some(Instant::now() + ASK_AGAIN);
                let why = why_refused(&client, &namespace, &name).await;
                let change = Change::AgentsRefused(why);
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn missing_pods(set: &DaemonSet) -> i32 {
    set.status.as_ref().map_or(0, |status| {
        status.desired_number_scheduled - status.current_number_scheduled
    })
}

/// The last error that the DaemonSet controller got from the API server, as its event reports it.
async fn why_refused(client: &Client, namespace: &str, name: &str) -> Option<String> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let of =
        format!("involvedObject.kind=DaemonSet,involvedObject.name={name},reason=FailedCreate");
    match api.list(&ListParams::default().fields(&of)).await {
        Ok(events) => events
            .into_iter()
            .max_by_key(|event| {
                let last = event.last_timestamp.as_ref().map(|time| time.0);
                last.or_else(|| event.creation_timestamp().map(|time| time.0))
            })
            .and_then(|event| event.message)
            .map(|said| explain(namespace, &said)),
        Err(error) => {
            tracing::debug!(%error, "events of the agents' DaemonSet cannot be read");
            None
        }
    }
}

/// The API server's message, and what to do if Pod Security is the cause.
fn explain(namespace: &str, said: &str) -> String {
    let mut text = format!("the agents' pods are refused in namespace {namespace}: {said}");
    if said.contains("PodSecurity") {
        text.push_str(&format!(
            "; allow them: kubectl label namespace {namespace} --overwrite \
             pod-security.kubernetes.io/enforce=privileged"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_by_pod_security_comes_with_the_command_that_ends_it() {
        let said =
            "Error creating: pods \"a-\" is forbidden: violates PodSecurity \"baseline:latest\"";
        let text = explain("skyhook", said);
        assert!(text.contains(said), "{text}");
        assert!(
            text.ends_with("enforce=privileged") && text.contains("label namespace skyhook"),
            "{text}"
        );
        let quota = explain("skyhook", "exceeded quota");
        assert!(!quota.contains("kubectl"), "{quota}");
    }

    #[test]
    fn pods_are_missing_when_fewer_exist_than_are_wanted() {
        for (desired, current, want) in [(3, 3, 0), (3, 1, 2), (0, 0, 0)] {
            let set: DaemonSet = serde_json::from_value(json!({
                "metadata": {}, "status": {
                    "desiredNumberScheduled": desired, "currentNumberScheduled": current,
                    "numberMisscheduled": 0, "numberReady": 0,
                },
            }))
            .expect("a DaemonSet");
            assert_eq!(missing_pods(&set), want);
        }
    }
}
