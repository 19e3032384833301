//! The free space on the file systems of the store and of what is unpacked.
//!
//! The kubelet evicts pods when less than 10 to 15 % of a file system is free. Images that nobody pins only save
//! downloads, so they are removed earlier than that.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::StatVfs;

/// How much of a file system must stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Images that nobody pins are removed while less than this part of the file system is free, in
    /// percent, and also less than `bytes`.
    pub percent: u64,
    /// On a large disk, this many free bytes are enough.
    pub bytes: u64,
    /// A pull or an unpack fails if it would leave fewer free bytes than this. On a small file system, 5 % of its size are
    /// enough.
    pub after_pull: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            percent: 20,
            bytes: 20 << 30,
            after_pull: 256 << 20,
        }
    }
}

/// How much of the file system must be free after a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// As little as [`Room::after_pull`] allows.
    Least,
    /// So much that no image has to be removed after the pull.
    Plenty,
}

/// The size of a file system and its free space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    size: u64,
    pub(crate) free: u64,
}

impl Space {
    pub(crate) fn of(path: &Path) -> rustix::io::Result<Self> {
        rustix::fs::statvfs(path).map(Self::from)
    }

    /// How many bytes should stay free.
    fn wanted(self, room: Room) -> u64 {
        let part = (self.size / 100).saturating_mul(room.percent);
        part.min(room.bytes)
    }

    /// How many bytes must become free.
    pub(crate) fn shortage(self, room: Room) -> u64 {
        self.wanted(room).saturating_sub(self.free)
    }

    /// How many bytes must be free before `bytes` are written.
    pub(crate) fn needed(self, bytes: u64, leave: Leave, room: Room) -> u64 {
        let least = room.after_pull.min(self.size / 20);
        bytes.saturating_add(match leave {
            Leave::Least => least,
            Leave::Plenty => least.max(self.wanted(room)),
        })
    }
}

impl From<StatVfs> for Space {
    fn from(found: StatVfs) -> Self {
        Self {
            size: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        }
    }
}

/// A file system has less free space than is needed, both in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) needed: u64,
    pub(crate) free: u64,
}

impl Room {
    /// What is missing if `bytes` more bytes are to be written to the file system of `fd`.
    pub(crate) fn shortage(
        self,
        fd: impl AsFd,
        bytes: u64,
    ) -> rustix::io::Result<Option<Shortage>> {
        let space = Space::from(rustix::fs::fstatvfs(fd)?);
        let (needed, free) = (space.needed(bytes, Leave::Least, self), space.free);
        Ok((needed > free).then_some(Shortage { needed, free }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_disks_keep_a_part_free_and_large_ones_a_number_of_bytes() {
        const GIB: u64 = 1 << 30;
        for (size, free, want) in [
            (10, 5, 0),
            (10, 1, 1),
            (10, 0, 2),
            (1000, 30, 0),
            (1000, 15, 5),
        ] {
            let space = Space {
                size: size * GIB,
                free: free * GIB,
            };
            let shortage = space.shortage(Room::default());
            assert_eq!(shortage.div_ceil(GIB), want, "{size} {free}: {shortage}");
        }
    }

    #[test]
    fn a_pull_leaves_room_for_others_also_on_small_file_systems() {
        const MIB: u64 = 1 << 20;
        for (size, bytes, want) in [(100_000, 10, 266), (100, 10, 15), (20, 1, 2)] {
            let space = Space {
                size: size * MIB,
                free: 0,
            };
            let needed = space.needed(bytes * MIB, Leave::Least, Room::default());
            assert_eq!(needed, want * MIB);
            let plenty = space.needed(bytes * MIB, Leave::Plenty, Room::default());
            assert_eq!(plenty, bytes * MIB + size * MIB / 100 * 20);
        }
    }
}
