//! Sends events, without a guarantee. A lost event does no harm, because the status says the same.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use sha2::{Digest as _, Sha256};
use skyhook_crds::Skyhook;

use skyhook_fleet::events::{EventFact, Subject};

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
    use super::*;

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
