//! What a layer says about a name in the package.

use rustix::fs::{Timespec, Timestamps};

/// A file in the scratch directory: the position of its layer, and its number in that layer.
pub(crate) type FileId = (u32, u32);

/// Mode bits and modification time (seconds, nanoseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, u32),
}

impl Meta {
    /// The access time is set to now.
    pub(crate) fn timestamps(self) -> Timestamps {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let (tv_sec, nanoseconds) = self.mtime;
        let last_modification = Timespec {
            tv_sec,
            tv_nsec: nanoseconds.into(),
        };
        Timestamps {
            last_access: now,
            last_modification,
        }
    }
}

/// One entry of a layer that belongs to the package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerEntry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    File(FileId),
    Symlink(Vec<u8>),
    /// Path below the package's directory.
    Hardlink(Vec<u8>),
    Whiteout,
    Opaque,
}
