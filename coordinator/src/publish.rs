//! Sends events, without a guarantee. A lost event does no harm, because the status says the same.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use sha2::{Digest as _, Sha256};
use skyhook_crds::Skyhook;
use tokio::sync::mpsc;

use skyhook_fleet::events::{EventFact, Subject};

/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// How many events are remembered, so that an event that is sent again is counted and not created once more.
///
/// A recorder of kube remembers every event of the last six minutes and looks at all of them for each new one. On a
/// large fleet these are tens of thousands.
const REMEMBERED: usize = 256;

/// How many events may wait to be sent. Half of this is reserved for warnings. Further events are lost.
const WAITING: usize = 256;

/// How many events are sent at once.
const AT_ONCE: usize = 4;

/// Sends events as the coordinator.
#[derive(Debug)]
pub struct Publisher {
    queue: mpsc::Sender<EventFact>,
}

/// A recorder, and how many events it was given.
struct Memory {
    client: Client,
    reporter: Reporter,
    recorder: Arc<Recorder>,
    events: usize,
}

impl Memory {
    fn new(client: Client, reporter: Reporter) -> Self {
        let recorder = Arc::new(Recorder::new(client.clone(), reporter.clone()));
        Self {
            client,
            reporter,
            recorder,
            events: 0,
        }
    }

    /// The recorder for the next event: another one when the current one remembers enough.
    fn recorder(&mut self) -> Arc<Recorder> {
        if self.events >= REMEMBERED {
            *self = Self::new(self.client.clone(), self.reporter.clone());
        }
        self.events += 1;
        Arc::clone(&self.recorder)
    }
}

impl Publisher {
    /// Sends through `client`; `instance` is this replica's name.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter {
            controller: "skyhook-controller".to_owned(),
            instance: Some(instance.to_owned()),
        };
        let (queue, events) = mpsc::channel(WAITING);
        tokio::spawn(send_all(events, Memory::new(client, reporter)));
        Self { queue }
    }

    /// Sends in the background.
    pub fn send(&self, events: Vec<EventFact>) {
        for event in events {
            let reason = event.reason;
            let has_room = event.warning || self.queue.capacity() > WAITING / 2;
            if !has_room || self.queue.try_send(event).is_err() {
                tracing::debug!(reason, "event lost: too many wait to be sent");
            }
        }
    }
}

/// Sends what comes, a few at once.
async fn send_all(mut events: mpsc::Receiver<EventFact>, mut memory: Memory) {
    let events = stream::poll_fn(|context| events.poll_recv(context));
    let sent = events.for_each_concurrent(AT_ONCE, |fact| {
        let recorder = memory.recorder();
        async move {
            let (event, subject) = (event(&fact), reference(&fact.subject));
            if let Err(error) = recorder.publish(&event, &subject).await {
                tracing::debug!(%error, reason = fact.reason, "event lost");
            }
        }
    });
    sent.await;
}

fn event(fact: &EventFact) -> Event {
    let mut end = fact.note.len().min(MAX_NOTE);
    while !fact.note.is_char_boundary(end) {
        end -= 1;
    }
    Event {
        type_: if fact.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: fact.reason.to_owned(),
        note: Some(fact.note[..end].to_owned()),
        action: action(fact),
        secondary: None,
    }
}

/// kube's recorder takes events that differ only in their note for the same event, and keeps the first note. So the
/// action contains a digest of the note: otherwise a second message would be shown as the first one. An action that
/// programs look for stays as it is on a Node, which has few of them.
fn action(fact: &EventFact) -> String {
    if let (Some(action), Subject::Node { .. }) = (fact.action, &fact.subject) {
        return action.to_owned();
    }
    let digest = Sha256::digest(fact.note.as_bytes());
    let said: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{}-{said}", fact.action.unwrap_or(fact.reason))
}

fn reference(subject: &Subject) -> ObjectReference {
    match subject {
        Subject::Skyhook { name, uid } => ObjectReference {
            api_version: Some(Skyhook::api_version(&()).into_owned()),
            kind: Some(Skyhook::kind(&()).into_owned()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
        Subject::Node { name, uid } => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn what_is_remembered_of_events_does_not_grow_with_the_fleet() {
        let service = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        let mut memory = Memory::new(Client::new(service, "default"), "one".into());
        let first = memory.recorder();
        for _ in 1..REMEMBERED {
            assert!(Arc::ptr_eq(&first, &memory.recorder()));
        }
        let second = memory.recorder();
        assert!(!Arc::ptr_eq(&first, &second), "it remembers all events");
        assert!(Arc::ptr_eq(&second, &memory.recorder()));
    }

    fn told(warning: bool, n: usize) -> EventFact {
        EventFact {
            subject: Subject::Skyhook {
                name: "s".into(),
                uid: "u".into(),
            },
            warning,
            reason: "State",
            action: None,
            note: format!("note {n}"),
        }
    }

    /// The API server answers nothing.
    #[tokio::test]
    async fn events_that_cannot_be_sent_are_lost_and_warnings_last() {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let service = tower::service_fn(move |_: Request<Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let publisher = Publisher::new(Client::new(service, "default"), "one");
        publisher.send((0..10 * WAITING).map(|n| told(false, n)).collect());
        assert_eq!(publisher.queue.capacity(), WAITING / 2);
        publisher.send((0..10 * WAITING).map(|n| told(true, n)).collect());
        assert_eq!(publisher.queue.capacity(), 0);
        let sent = || requests.load(Ordering::Relaxed);
        let all_begin = async {
            while sent() < AT_ONCE {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let all_begin = tokio::time::timeout(Duration::from_secs(60), all_begin);
        all_begin.await.expect("events are sent");
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(sent(), AT_ONCE);
    }

    #[test]
    fn only_what_says_the_same_is_counted_as_one() {
        let transition = |to: &str| {
            event(&EventFact {
                subject: Subject::Skyhook {
                    name: "s".into(),
                    uid: "u".into(),
                },
                warning: false,
                reason: "State",
                action: None,
                note: format!("Skyhook transitioned [in_progress] -> [{to}]"),
            })
        };
        // The recorder compares these two values, the subject and the reporter.
        let key = |event: &Event| (event.action.clone(), event.reason.clone());
        let (erroring, complete) = (transition("erroring"), transition("complete"));
        assert_ne!(key(&erroring), key(&complete));
        assert_eq!(key(&complete), key(&transition("complete")));
        assert_eq!(complete.reason, "State");
    }

    #[test]
    fn programs_find_the_action_of_an_event_on_a_node() {
        let name = "worker-1".to_owned();
        let uid = "u".to_owned();
        let action = |subject| {
            let fact = EventFact {
                subject,
                action: Some("RestartLimitExceeded"),
                ..told(true, 1)
            };
            event(&fact).action
        };
        let node = Subject::Node {
            name: name.clone(),
            uid: uid.clone(),
        };
        assert_eq!(action(node), "RestartLimitExceeded");
        let on_skyhook = action(Subject::Skyhook { name, uid });
        assert!(
            on_skyhook.starts_with("RestartLimitExceeded-"),
            "{on_skyhook}"
        );
    }
}
