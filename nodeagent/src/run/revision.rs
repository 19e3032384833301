//! Reads the new revision for which a lease is stopped. The machine then ends running steps of packages that the new
//! revision changes.

use std::time::Duration;

use skyhook_crds::lease::StopReason;
use tokio::time::sleep;

use super::agent::Agent;
use super::note::Note;
use crate::lease::ApiError;
use crate::machine::{Event, Wanted};

const ATTEMPTS: u32 = 30;
const PAUSE: Duration = Duration::from_secs(2);

impl Agent {
    /// Reads the revision in the lease's stop and sends its packages to the machine. Does so once for each revision.
    pub(super) fn compare_revision(&mut self) {
        let stop = self.lease.as_ref().and_then(|l| l.spec.stop.as_ref());
        let revision = stop
            .filter(|stop| stop.reason == StopReason::NewRevision)
            .and_then(|stop| stop.revision.clone());
        let is_at_work = self.run().is_some_and(|run| run.ended.is_none());
        let Some(name) = revision.filter(|name| is_at_work && self.compared.as_ref() != Some(name))
        else {
            return;
        };
        self.compared = Some(name.clone());
        let (api, notes) = (self.api.clone(), self.notes.clone());
        tokio::task::spawn_local(async move {
            for _ in 0..ATTEMPTS {
                match api.revision(&name).await {
                    Ok(data) => {
                        let packages = Wanted::of_revision(&data)
                            .into_iter()
                            .map(|(name, wanted)| (name, (wanted.version, wanted.identity)))
                            .collect();
                        let _sent = notes.send(Note::Event(Event::RevisionSeen { packages }));
                        return;
                    }
                    Err(error @ (ApiError::Malformed { .. } | ApiError::Conflict { .. })) => {
                        tracing::warn!(%error, "the new revision cannot be read: running steps go on");
                        return;
                    }
                    Err(
                        error @ (ApiError::NotFound { .. }
                        | ApiError::Refused { .. }
                        | ApiError::Silent { .. }),
                    ) => {
                        tracing::info!(%error, "the new revision cannot be read yet: trying again")
                    }
                }
                sleep(PAUSE).await;
            }
        });
    }
}
