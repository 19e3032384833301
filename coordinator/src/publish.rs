//! Sends events. Best effort: an event that is lost changes nothing, the status says the same.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use skyhook_crds::Skyhook;

use crate::events::{EventFact, Subject};

/// Longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Sends events as the coordinator.
#[derive(Clone)]
pub struct Publisher(Recorder);

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
        Self(Recorder::new(client, reporter))
    }

    /// Sends in the background.
    pub fn send(&self, events: Vec<EventFact>) {
        if events.is_empty() {
            return;
        }
        let recorder = self.0.clone();
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
        action: fact.reason.to_owned(),
        secondary: None,
    }
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
