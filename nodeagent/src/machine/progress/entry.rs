//! What an entry of the journal says about its version of a package.

use skyhook_crds::package::{Interrupt, PackageStatus, key};
use skyhook_crds::revision::is_finished;
use skyhook_crds::{Stage, State};

use super::{Doing, Entry, ImageState, Wanted, time};
use crate::text;

impl Entry {
    /// A package that is not on the host yet.
    #[must_use]
    pub fn new(name: &str, wanted: &Wanted, stage: Stage, state: State, since: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: wanted.version.clone(),
            image: wanted.image.clone(),
            container_sha: wanted.container_sha.clone(),
            stage,
            state,
            restarts: 0,
            image_digest: None,
            message: String::new(),
            since: since.to_owned(),
            cycle: None,
            configured: None,
            had_interrupt: false,
            doing: Doing::Idle,
            failures: 0,
            attempts: 0,
            spent_ms: 0,
            tried_at: None,
            image_state: ImageState::Unknown,
            started: false,
            lost_with_host: 0,
            left_behind: false,
        }
    }

    /// A package that is in the Node's record and not in the journal.
    #[must_use]
    pub fn adopted(status: &PackageStatus) -> Self {
        let wanted = Wanted {
            version: status.version.clone(),
            image: status.image.clone(),
            container_sha: status.container_sha.clone(),
            ..Wanted::default()
        };
        let entry = Self {
            restarts: status.restarts,
            ..Self::new(&status.name, &wanted, status.stage, status.state, "")
        };
        Self {
            // The record lists a package from the start of its first step on. Only a parked version is listed earlier.
            started: !entry.is_parked(),
            ..entry
        }
    }

    /// `name|version`.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.name, &self.version)
    }

    /// True when the package has completed its cycle.
    #[must_use]
    pub fn is_done(&self) -> bool {
        is_finished(self.stage, self.state)
    }

    /// True for a parked version: the new version of a downgrade, which waits until the old version is uninstalled.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.stage == Stage::Uninstall && self.state == State::Skipped
    }

    /// True while the version is uninstalled because the spec asks for it: it keeps its interrupt.
    #[must_use]
    pub fn is_taken_away(&self) -> bool {
        let start = self.cycle.as_ref().and_then(|cycle| cycle.start);
        self.stage == Stage::Uninstall && start == Some(Stage::Uninstall)
    }

    /// The stage in which the package waits for its interrupt.
    #[must_use]
    pub const fn interrupt_stage(&self) -> Stage {
        match self.stage {
            Stage::UninstallInterrupt => Stage::UninstallInterrupt,
            Stage::Uninstall
            | Stage::Upgrade
            | Stage::Apply
            | Stage::Config
            | Stage::Interrupt
            | Stage::PostInterrupt
            | Stage::Unknown => Stage::Interrupt,
        }
    }

    /// True in the stages in which the package waits for its interrupt, and no step runs.
    #[must_use]
    pub const fn awaits_interrupt(&self) -> bool {
        matches!(self.stage, Stage::Interrupt | Stage::UninstallInterrupt)
    }

    /// True when the package has used up its attempts.
    #[must_use]
    pub const fn has_given_up(&self) -> bool {
        match self.doing {
            Doing::GaveUp { .. } => true,
            Doing::Idle
            | Doing::Preparing { .. }
            | Doing::Ready(_)
            | Doing::Step(_)
            | Doing::Retry { .. } => false,
        }
    }

    /// True while no step of the version has started and the Node's record does not list it.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.started && !self.is_parked()
    }

    /// The interrupt that the package still waits for.
    #[must_use]
    pub fn interrupt(&self) -> Option<&Interrupt> {
        self.cycle.as_ref().and_then(|c| c.interrupt.as_ref())
    }

    /// The entry of the Node's annotation.
    #[must_use]
    pub fn status(&self) -> PackageStatus {
        PackageStatus {
            name: self.name.clone(),
            version: self.version.clone(),
            image: self.image.clone(),
            container_sha: self.container_sha.clone(),
            stage: self.stage,
            state: self.state,
            restarts: self.restarts,
        }
    }

    /// Sets the message. A text that is longer than [`text::LONGEST`] is cut in the middle.
    pub(crate) fn say(&mut self, message: &str) {
        self.message = text::cut(message, text::LONGEST);
    }

    /// Sets `stage` and `state`. If one of them changes, also sets `since`.
    pub(crate) fn set(&mut self, stage: Stage, state: State, now: i64) {
        if (self.stage, self.state) != (stage, state) {
            self.since = time(now);
        }
        self.stage = stage;
        self.state = state;
    }
}
