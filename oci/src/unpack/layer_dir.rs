//! Writes the files of a layer to its scratch directory, and stops before the disk is full.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Mode, OFlags};

use super::LayerError;
use crate::space::{Room, Shortage};

/// After so many bytes, the free space on the disk is looked at again, because others also write there.
const LOOK_AGAIN: u64 = 32 << 20;

/// The scratch directory of one layer.
pub(super) struct LayerDir<'a> {
    dir: &'a OwnedFd,
    room: Room,
    /// Bytes that were written since the free space was looked at.
    unseen: Cell<u64>,
}

impl<'a> LayerDir<'a> {
    pub(super) fn new(dir: &'a OwnedFd, room: Room) -> Self {
        let unseen = Cell::new(0);
        Self { dir, room, unseen }
    }

    /// Makes a file. Fails if it is large and does not fit.
    pub(super) fn create(&self, name: u32, size: u64) -> Result<File, LayerError> {
        if size >= LOOK_AGAIN {
            self.look_for_room(size)?;
        }
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(self.dir, name.to_string(), flags, mode);
        Ok(file
            .map_err(|errno| LayerError::Write(errno.into()))?
            .into())
    }

    /// Writes a piece of a file. `left` is how many bytes are to be written, this piece included.
    pub(super) fn write(
        &self,
        file: &File,
        piece: &[u8],
        offset: u64,
        left: u64,
    ) -> Result<(), LayerError> {
        file.write_all_at(piece, offset)
            .map_err(LayerError::Write)?;
        let count = piece.len() as u64;
        self.unseen.set(self.unseen.get() + count);
        if self.unseen.get() >= LOOK_AGAIN {
            self.look_for_room(left - count)?;
        }
        Ok(())
    }

    fn look_for_room(&self, bytes: u64) -> Result<(), LayerError> {
        self.unseen.set(0);
        match self.room.shortage(self.dir, bytes) {
            Ok(None) => Ok(()),
            Ok(Some(Shortage { needed, free })) => Err(LayerError::NoRoom { needed, free }),
            Err(errno) => Err(LayerError::Write(errno.into())),
        }
    }
}
