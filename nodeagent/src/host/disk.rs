//! How much room something takes on the host's disk.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use skyhook_oci::mounts_below;

/// Bytes of all files below `directory`. Does not follow symlinks, and does not enter other mounts.
#[must_use]
pub fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    // Paths in mountinfo have no symlinks.
    let Ok(directory) = fs::canonicalize(directory) else {
        return 0;
    };
    let mounted: BTreeSet<PathBuf> = mounts_below(&directory)
        .unwrap_or_default()
        .into_iter()
        .collect();
    let mut bytes = 0;
    let mut left = vec![directory];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if mounted.contains(&path) {
                continue;
            }
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    bytes
}
