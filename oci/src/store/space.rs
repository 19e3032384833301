//! The free space on the file system of the store.

use super::files::failed;
use super::{Store, StoreError};
use crate::space::{Leave, Space};

impl Store {
    /// How many bytes must become free on the store's file system, so that at least `needed` bytes are free.
    pub(super) fn shortage(&self, needed: u64) -> Result<u64, StoreError> {
        let space = self.space()?;
        let missing = needed.saturating_sub(space.free);
        Ok(space.shortage(self.config.room).max(missing))
    }

    /// Fails if `bytes` more bytes do not fit into the store's file system.
    pub(crate) fn has_room_for(&self, bytes: u64, leave: Leave) -> Result<(), StoreError> {
        let space = self.space()?;
        let (needed, free) = (space.needed(bytes, leave, self.config.room), space.free);
        if bytes == 0 || needed <= free {
            return Ok(());
        }
        Err(StoreError::NoRoom {
            path: self.dir.to_path_buf(),
            needed,
            free,
        })
    }

    fn space(&self) -> Result<Space, StoreError> {
        Space::of(&self.dir)
            .map_err(|errno| failed("look at the file system of", &self.dir, errno.into()))
    }
}
