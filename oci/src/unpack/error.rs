//! Why an image, a layer or an entry is refused.

use std::io;
use std::path::PathBuf;

use super::tar::TarError;
use crate::digest::{Digest, Mismatch};
use crate::limits::{Limit, LimitExceeded};
use crate::progress::size;

/// Why an image cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("blob {0} in the store is damaged or missing: the next pull downloads it again")]
    Damaged(Digest),
    #[error("layer {layer}")]
    Layer {
        layer: Digest,
        source: Box<LayerError>,
    },
    #[error("the image has no directory /skyhook-package")]
    NoPackage,
    #[error("{} exists already", .0.display())]
    TargetExists(PathBuf),
    #[error("another unpack into {} is running", .0.display())]
    TargetBusy(PathBuf),
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    #[error("entry {name:?}")]
    Entry { name: String, source: EntryError },
    #[error("entry {name:?}")]
    At {
        name: String,
        source: Box<LayerError>,
    },
    #[error("its content is {}, the image config says {}", .0.got, .0.want)]
    DiffId(Box<Mismatch>),
    #[error("its content does not have its digest")]
    Damaged,
    #[error("it cannot be decompressed")]
    Decompress(#[source] io::Error),
    #[error("it is not a tar archive")]
    Tar(#[source] TarError),
    #[error("its archive ends in the middle of an entry")]
    Truncated,
    #[error("its sparse map does not fit the file")]
    SparseMap,
    #[error("its files cannot be written")]
    Write(#[source] io::Error),
    #[error(
        "the file system to unpack to has {} free, and {} are needed there: make room, or put --state-dir on a larger one",
        size(*free),
        size(*needed)
    )]
    NoRoom { needed: u64, free: u64 },
}

/// Why an entry of a layer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("a NUL byte in a name")]
    Nul,
    #[error("a name component of more than 255 bytes")]
    ComponentTooLong,
    #[error("a whiteout that names no file")]
    EmptyWhiteout,
    #[error("an entry below a whiteout")]
    BelowWhiteout,
    #[error("{0} is not allowed in a package")]
    Special(&'static str),
    #[error("a symlink with an empty target")]
    EmptyTarget,
    #[error("a symlink with a target of more than {0} bytes, which Linux does not allow")]
    TargetTooLong(usize),
    #[error("entry type {0:#04x} is unknown")]
    UnknownType(u8),
    #[error("a hard link to {target:?}, which does not exist")]
    LinkMissing { target: String },
    #[error("a hard link to the directory {target:?}")]
    LinkToDirectory { target: String },
    #[error("its parent is not a directory")]
    ParentNotDirectory,
    #[error("more than 40 symlinks on the way to it")]
    TooManySymlinks,
    #[error("/skyhook-package is not a directory")]
    PackageNotDirectory,
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}

impl EntryError {
    pub(crate) fn limit(limit: Limit, allowed: u64) -> Self {
        Self::Limit(LimitExceeded { limit, allowed })
    }

    pub(super) fn at(self, name: &[u8]) -> LayerError {
        LayerError::Entry {
            name: lossy(name),
            source: self,
        }
    }
}

impl LayerError {
    pub(super) fn at(self, name: &[u8]) -> Self {
        Self::At {
            name: lossy(name),
            source: Box::new(self),
        }
    }
}

impl UnpackError {
    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Damaged(_) => "blob_damaged",
            Self::Layer { source, .. } => source.kind(),
            Self::NoPackage => "no_package",
            Self::TargetExists(_) => "target_exists",
            Self::TargetBusy(_) => "target_busy",
            Self::Io { .. } => "io",
        }
    }

    /// Whether another try may succeed. A refused layer has the same bytes the next time, but a disk may recover, and
    /// a damaged blob is downloaded again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Damaged(_) | Self::TargetBusy(_) | Self::Io { .. } => true,
            Self::Layer { source, .. } => source.is_transient(),
            Self::NoPackage | Self::TargetExists(_) => false,
        }
    }
}

impl LayerError {
    fn kind(&self) -> &'static str {
        match self {
            Self::Limit(_) => "limit",
            Self::Entry {
                source: EntryError::Limit(_),
                ..
            } => "limit",
            Self::Entry { .. } => "entry_refused",
            Self::At { source, .. } => source.kind(),
            Self::DiffId(_) => "diff_id",
            Self::Damaged => "blob_damaged",
            Self::Decompress(_) => "decompress",
            Self::Tar(_) | Self::Truncated | Self::SparseMap => "tar",
            Self::Write(_) => "io",
            Self::NoRoom { .. } => "no_room",
        }
    }

    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::At { source, .. } => source.is_transient(),
            Self::Damaged | Self::Write(_) | Self::NoRoom { .. } => true,
            Self::Limit(_)
            | Self::Entry { .. }
            | Self::DiffId(_)
            | Self::Decompress(_)
            | Self::Tar(_)
            | Self::Truncated
            | Self::SparseMap => false,
        }
    }
}

/// A name for an error message. It is cut off after 200 bytes.
pub(super) fn lossy(name: &[u8]) -> String {
    let cut = name.get(..200).unwrap_or(name);
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < name.len() {
        text.push('…');
    }
    text
}
