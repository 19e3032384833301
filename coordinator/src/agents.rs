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

/// What is known about the DaemonSet.
#[derive(Debug, Default)]
struct Sight {
    /// When the events are read next; `None` while no pod is missing.
    ask_at: Option<Instant>,
    /// A refusal was reported, and has not ended since.
    is_reported: bool,
    /// A list is under way that has not shown the DaemonSet.
    is_unlisted: bool,
}

impl Sight {
    /// Takes in what the watch delivered. Returns true if this ends a refusal that was reported.
    fn sees(&mut self, seen: &Seen<DaemonSet>, now: Instant) -> bool {
        let missing = match seen {
            Seen::Apply(set) | Seen::InitApply(set) => {
                self.is_unlisted = false;
                missing_pods(set)
            }
            // No pod of a DaemonSet that does not exist is refused.
            Seen::Delete(_) => 0,
            Seen::InitDone if self.is_unlisted => 0,
            Seen::Init => {
                self.is_unlisted = true;
                return false;
            }
            Seen::InitDone => return false,
        };
        if missing > 0 {
            self.ask_at.get_or_insert(now + PATIENCE);
            return false;
        }
        self.ask_at = None;
        std::mem::take(&mut self.is_reported)
    }

    /// The events were read.
    fn asked(&mut self, is_refused: bool, now: Instant) {
        self.ask_at = Some(now + ASK_AGAIN);
        self.is_reported = is_refused;
    }
}

/// Sends to `changes` why agents' pods are missing, if the DaemonSet controller could not create them.
pub async fn watch(client: Client, namespace: String, name: String, changes: mpsc::Sender<Change>) {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut watched = watcher::watcher(api, config).default_backoff().boxed();
    let mut sight = Sight::default();
    loop {
        let far = Instant::now() + Duration::from_secs(86_400);
        let change = match timeout_at(sight.ask_at.unwrap_or(far), watched.next()).await {
            Ok(Some(Ok(seen))) => {
                let ends = sight.sees(&seen, Instant::now());
                ends.then_some(Change::AgentsRefused(None))
            }
            Ok(Some(Err(error))) => {
                tracing::debug!(daemonset = name, %error, "watch broke; it is taken up again");
                None
            }
            Ok(None) => return,
            Err(_) if sight.ask_at.is_none() => None,
            Err(_) => {
                let why = why_refused(&client, &namespace, &name).await;
                sight.asked(why.is_some(), Instant::now());
                Some(Change::AgentsRefused(why))
            }
        };
        if let Some(change) = change
            && changes.send(change).await.is_err()
        {
            return;
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

    fn daemon_set(desired: i32, current: i32) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {}, "status": {
                "desiredNumberScheduled": desired, "currentNumberScheduled": current,
                "numberMisscheduled": 0, "numberReady": 0,
            },
        }))
        .expect("a DaemonSet")
    }

    #[test]
    fn pods_are_missing_when_fewer_exist_than_are_wanted() {
        for (desired, current, want) in [(3, 3, 0), (3, 1, 2), (0, 0, 0)] {
            assert_eq!(missing_pods(&daemon_set(desired, current)), want);
        }
    }

    #[test]
    fn a_refusal_ends_with_the_last_missing_pod_and_with_the_daemon_set() {
        let missing = || Seen::Apply(daemon_set(3, 1));
        for (name, then, want) in [
            ("nothing new", vec![missing()], false),
            ("all pods exist", vec![Seen::Apply(daemon_set(3, 3))], true),
            ("it is deleted", vec![Seen::Delete(daemon_set(3, 1))], true),
            (
                "it is deleted and made anew",
                vec![Seen::Delete(daemon_set(3, 1)), missing()],
                true,
            ),
            (
                "a new list does not show it",
                vec![Seen::Init, Seen::InitDone],
                true,
            ),
            (
                "a new list shows it",
                vec![
                    Seen::Init,
                    Seen::InitApply(daemon_set(3, 1)),
                    Seen::InitDone,
                ],
                false,
            ),
        ] {
            let now = Instant::now();
            let mut sight = Sight::default();
            assert!(!sight.sees(&missing(), now), "{name}: not reported yet");
            assert_eq!(sight.ask_at, Some(now + PATIENCE), "{name}");
            sight.asked(true, now);
            let ends = then.iter().filter(|seen| sight.sees(seen, now)).count();
            assert_eq!(ends, usize::from(want), "{name}");
            let is_missing = !want || name.ends_with("anew");
            assert_eq!(sight.ask_at.is_some(), is_missing, "{name}");
        }
    }
}
