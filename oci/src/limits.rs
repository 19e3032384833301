//! Limits on the size of an image. An image that goes over a limit is refused, and the error names the limit.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// The limits for one image. The defaults are much larger than a package needs, but a decompression bomb goes over at
/// least one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one manifest, index or image config.
    pub manifest_bytes: u64,
    /// Layers in one image.
    pub layers: u64,
    /// Bytes of all layers as the registry sends them.
    pub image_bytes: u64,
    /// Bytes of all layers after decompression, including files that are skipped.
    pub stream_bytes: u64,
    /// Bytes of the files under `/skyhook-package`.
    pub package_bytes: u64,
    /// Entries under `/skyhook-package`, whiteouts included, and directories that only the names of other entries imply.
    pub package_entries: u64,
    /// Entries in all layers, including entries that are skipped.
    pub scanned_entries: u64,
    /// Bytes of one path or link target.
    pub path_bytes: u64,
    /// Bytes of all paths and link targets under `/skyhook-package`.
    pub names_bytes: u64,
    /// Components of paths and link targets that are looked up to find the places of all entries.
    pub path_steps: u64,
    /// Path components below `/skyhook-package`.
    pub depth: u64,
    /// Decompressed bytes per byte of the compressed layer. It is not checked for the first 64 MiB of a layer.
    pub ratio: u64,
    /// Bytes of PAX and GNU headers in front of one entry.
    pub metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            layers: 256,
            image_bytes: 8 << 30,
            stream_bytes: 64 << 30,
            package_bytes: 16 << 30,
            package_entries: 200_000,
            scanned_entries: 4_000_000,
            path_bytes: 4096,
            names_bytes: 32 << 20,
            path_steps: 10_000_000,
            depth: 64,
            ratio: 200,
            metadata_bytes: 1 << 20,
        }
    }
}

/// One of the fields of [`Limits`], by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    ManifestBytes,
    Layers,
    ImageBytes,
    StreamBytes,
    PackageBytes,
    PackageEntries,
    ScannedEntries,
    PathBytes,
    NamesBytes,
    PathSteps,
    Depth,
    Ratio,
    MetadataBytes,
}

impl Limit {
    pub fn name(self) -> &'static str {
        match self {
            Self::ManifestBytes => "manifest_bytes",
            Self::Layers => "layers",
            Self::ImageBytes => "image_bytes",
            Self::StreamBytes => "stream_bytes",
            Self::PackageBytes => "package_bytes",
            Self::PackageEntries => "package_entries",
            Self::ScannedEntries => "scanned_entries",
            Self::PathBytes => "path_bytes",
            Self::NamesBytes => "names_bytes",
            Self::PathSteps => "path_steps",
            Self::Depth => "depth",
            Self::Ratio => "ratio",
            Self::MetadataBytes => "metadata_bytes",
        }
    }
}

/// An image goes over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("over the limit {limit} = {allowed}")]
pub struct LimitExceeded {
    pub limit: Limit,
    pub allowed: u64,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Limits {
    pub(crate) fn check(&self, limit: Limit, value: u64) -> Result<(), LimitExceeded> {
        let allowed = self.allowed(limit);
        if value > allowed {
            Err(LimitExceeded { limit, allowed })
        } else {
            Ok(())
        }
    }

    fn allowed(&self, limit: Limit) -> u64 {
        match limit {
            Limit::ManifestBytes => self.manifest_bytes,
            Limit::Layers => self.layers,
            Limit::ImageBytes => self.image_bytes,
            Limit::StreamBytes => self.stream_bytes,
            Limit::PackageBytes => self.package_bytes,
            Limit::PackageEntries => self.package_entries,
            Limit::ScannedEntries => self.scanned_entries,
            Limit::PathBytes => self.path_bytes,
            Limit::NamesBytes => self.names_bytes,
            Limit::PathSteps => self.path_steps,
            Limit::Depth => self.depth,
            Limit::Ratio => self.ratio,
            Limit::MetadataBytes => self.metadata_bytes,
        }
    }
}

/// How much of each limit is used. All layers of an image share this value, because they are read in parallel.
#[derive(Debug)]
pub(crate) struct Budget<'a> {
    pub(crate) limits: &'a Limits,
    stream_bytes: AtomicU64,
    package_bytes: AtomicU64,
    package_entries: AtomicU64,
    scanned_entries: AtomicU64,
    names_bytes: AtomicU64,
    path_steps: AtomicU64,
    warnings: AtomicU64,
}

/// How many warnings one image may cause. It may have many entries of the same kind.
const MAX_WARNINGS: u64 = 20;

impl<'a> Budget<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            stream_bytes: AtomicU64::new(0),
            package_bytes: AtomicU64::new(0),
            package_entries: AtomicU64::new(0),
            scanned_entries: AtomicU64::new(0),
            names_bytes: AtomicU64::new(0),
            path_steps: AtomicU64::new(0),
            warnings: AtomicU64::new(0),
        }
    }

    /// Logs what was done about an entry that a package should not have.
    pub(crate) fn warn(&self, entry: &[u8], what: &str) {
        let number = self.warnings.fetch_add(1, Ordering::Relaxed);
        if number < MAX_WARNINGS {
            let entry = String::from_utf8_lossy(entry);
            tracing::warn!(%entry, "unpacking an image: {what}");
        } else if number == MAX_WARNINGS {
            tracing::warn!("unpacking an image: there are more such entries");
        }
    }

    pub(crate) fn take_stream(&self, bytes: u64) -> Result<(), LimitExceeded> {
        self.take(&self.stream_bytes, bytes, Limit::StreamBytes)
    }

    /// This is called before the bytes are written, so nothing is written if a header announces too many bytes.
    pub(crate) fn take_package_bytes(&self, bytes: u64) -> Result<(), LimitExceeded> {
        self.take(&self.package_bytes, bytes, Limit::PackageBytes)
    }

    pub(crate) fn take_package_entry(&self) -> Result<(), LimitExceeded> {
        self.take(&self.package_entries, 1, Limit::PackageEntries)
    }

    pub(crate) fn take_scanned_entry(&self) -> Result<(), LimitExceeded> {
        self.take(&self.scanned_entries, 1, Limit::ScannedEntries)
    }

    pub(crate) fn take_names_bytes(&self, bytes: usize) -> Result<(), LimitExceeded> {
        self.take(&self.names_bytes, bytes as u64, Limit::NamesBytes)
    }

    pub(crate) fn take_path_step(&self) -> Result<(), LimitExceeded> {
        self.take(&self.path_steps, 1, Limit::PathSteps)
    }

    /// Checks the limit before it adds, so the sum cannot overflow.
    fn take(&self, used: &AtomicU64, more: u64, limit: Limit) -> Result<(), LimitExceeded> {
        let add = |used: u64| {
            used.checked_add(more)
                .filter(|&sum| sum <= self.limits.allowed(limit))
        };
        match used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(()),
            Err(_) => Err(LimitExceeded {
                limit,
                allowed: self.limits.allowed(limit),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_shared_never_wraps_and_names_the_limit() {
        let limits = Limits {
            package_bytes: 10,
            ..Limits::default()
        };
        let budget = Budget::new(&limits);
        assert_eq!(budget.take_package_bytes(6), Ok(()));
        let over = LimitExceeded {
            limit: Limit::PackageBytes,
            allowed: 10,
        };
        assert_eq!(budget.take_package_bytes(u64::MAX), Err(over));
        assert_eq!(budget.take_package_bytes(4), Ok(()));
        assert_eq!(budget.take_package_bytes(1), Err(over));
        assert_eq!(over.to_string(), "over the limit package_bytes = 10");
    }
}
