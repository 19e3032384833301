//! Sends events, without a guarantee. A lost event does no harm, because the status says the same.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use sha2::{Digest as _, Sha256};
use skyhook_crds::Skyhook;

use skyhook_fleet::events::{EventFact, Subject};

/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// How many events are remembered, so that an event that is sent again is counted and not created once more.
///
/// A recorder of kube remembers every event of the last six minutes and looks at all of them for each new one. On a
/// large fleet these are tens of thousands.
const REMEMBERED: usize = 256;

/// Sends events as the coordinator.
pub struct Publisher {
    client: Client,
    reporter: Reporter,
    memory: Mutex<Memory>,
}

/// A recorder, and how many events it was given.
struct Memory {
    recorder: Arc<Recorder>,
    events: usize,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher")
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
        let recorder = Arc::new(Recorder::new(client.clone(), reporter.clone()));
        let memory = Mutex::new(Memory {
            recorder,
            events: 0,
        });
        Self {
            client,
            reporter,
            memory,
        }
    }

    /// The recorder that remembers the last events: another one when the current one remembers enough.
    fn recorder(&self, events: usize) -> Arc<Recorder> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.events >= REMEMBERED {
            let (client, reporter) = (self.client.clone(), self.reporter.clone());
            *memory = Memory {
                recorder: Arc::new(Recorder::new(client, reporter)),
                events: 0,
            };
        }
        memory.events += events;
        Arc::clone(&memory.recorder)
    }

    /// Sends in the background.
    pub fn send(&self, events: Vec<EventFact>) {
        if events.is_empty() {
            return;
        }
        let recorder = self.recorder(events.len());
        tokio::spawn(async move {
            for fact in events {
                if let Err(error) = recorder
                    .publish(&event(&fact), &reference(&fact.subject))
                    .await
                {
                    tracing::debug!(%error, reason = fact.reason, "event lost");
                }
            }
        });
    }
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
/// action contains a digest of the note: otherwise a second message would be shown as the first one.
fn action(fact: &EventFact) -> String {
    let digest = Sha256::digest(fact.note.as_bytes());
    let said: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{}-{said}", fact.reason)
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
    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    /// A publisher that reaches no API server.
    fn publisher() -> Publisher {
        let service = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        Publisher::new(Client::new(service, "default"), "one")
    }

    #[tokio::test]
    async fn what_is_remembered_of_events_does_not_grow_with_the_fleet() {
        let publisher = publisher();
        let first = publisher.recorder(1);
        for _ in 1..REMEMBERED {
            assert!(Arc::ptr_eq(&first, &publisher.recorder(1)));
        }
        let second = publisher.recorder(1);
        assert!(!Arc::ptr_eq(&first, &second), "it remembers all events");
        assert!(Arc::ptr_eq(&second, &publisher.recorder(1)));
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
}
