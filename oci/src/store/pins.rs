//! Pins: which image an owner, such as an installed package, needs.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that looks at the times of pins"
)]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::files::{list, read_record, remove_if_there, write_record};
use super::{Store, StoreError};
use crate::digest::Digest;

/// The clock of a file system may be behind the clock of the system by this time.
const COARSE: Duration = Duration::from_millis(100);

#[derive(Serialize, Deserialize)]
pub(super) struct PinRecord {
    pub(super) owner: String,
    pub(super) manifest: Digest,
}

impl Store {
    /// Keeps an image for `owner` until [`Store::unpin_others`] removes the pin. An owner has at most one image. Blocks
    /// while another process removes images.
    pub fn pin(&self, owner: &str, manifest: &Digest) -> Result<(), StoreError> {
        let _hold = self.hold_blocking()?;
        self.image(manifest)?;
        let record = PinRecord {
            owner: owner.to_owned(),
            manifest: *manifest,
        };
        write_record(&self.record("pins", owner), &record)
    }

    /// Removes the pins of all owners that are not in `owners`. A pin that was written at the time `since` or later
    /// stays: its owner may be newer than `owners`. Nothing is removed while the store is in use.
    pub fn unpin_others(
        &self,
        owners: &BTreeSet<String>,
        since: SystemTime,
    ) -> Result<(), StoreError> {
        let Some(_alone) = self.lock_exclusively()? else {
            return Ok(());
        };
        for path in list(&self.dir.join("pins"))? {
            let record: Option<PinRecord> = read_record(&path);
            let written = fs::metadata(&path).and_then(|metadata| metadata.modified());
            if record.is_some_and(|record| !owners.contains(&record.owner))
                && written.is_ok_and(|written| written + COARSE < since)
            {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// Owners and the images they pin.
    pub fn pins(&self) -> Result<Vec<(String, Digest)>, StoreError> {
        let mut pins: Vec<_> = list(&self.dir.join("pins"))?
            .iter()
            .filter_map(|path| read_record::<PinRecord>(path))
            .map(|record| (record.owner, record.manifest))
            .collect();
        pins.sort();
        Ok(pins)
    }
}
