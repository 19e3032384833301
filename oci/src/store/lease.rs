//! Leases: which blobs a running pull needs. The collector leaves these blobs alone, whichever process pulls. So a pull
//! need not hold the store's lock while it waits for a registry, and a slow pull does not keep the store from being
//! cleaned up.
//!
//! A pull makes its lease and adds blobs to it only while it holds the store's lock, and before it writes or looks for
//! these blobs. So the collector, which holds the lock alone, knows all of them. The lease is a file that the pull has
//! locked: if its process ends in any way, the lease has no lock any more and counts for nothing.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that keeps leases"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::files::{failed, list, remove_if_there};
use super::lock::Hold;
use super::{Store, StoreError};
use crate::digest::Digest;

/// The lease of one pull. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease(NamedTempFile);

impl Lease {
    /// Adds blobs. From now on they stay in the store until the lease ends.
    pub(crate) fn add(
        &self,
        _hold: &Hold,
        blobs: impl IntoIterator<Item = Digest>,
    ) -> Result<(), StoreError> {
        let lines: String = blobs.into_iter().map(|blob| format!("{blob}\n")).collect();
        let written = self.0.as_file().write_all(lines.as_bytes());
        written.map_err(|source| failed("write", self.0.path(), source))
    }
}

impl Store {
    /// Makes a lease without blobs.
    pub(crate) fn lease(&self, _hold: &Hold) -> Result<Lease, StoreError> {
        let dir = self.dir.join("leases");
        let file = NamedTempFile::new_in(&dir)
            .map_err(|source| failed("create a file in", &dir, source))?;
        flock(file.as_file(), FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed("lock", file.path(), errno.into()))?;
        Ok(Lease(file))
    }

    /// The blobs that running pulls need. `None` if no pull is running. The caller has locked the store exclusively.
    /// Leases of pulls that were killed are removed.
    pub(super) fn leased(&self) -> Result<Option<BTreeSet<Digest>>, StoreError> {
        let mut leased = None;
        for path in list(&self.dir.join("leases"))? {
            match read(&path) {
                Ok(Some(text)) => leased
                    .get_or_insert_with(BTreeSet::new)
                    // If the disk was full, the last line may be incomplete. That pull has failed.
                    .extend(text.lines().filter_map(|line| line.parse::<Digest>().ok())),
                Ok(None) => remove_if_there(&path)?,
                // That pull has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("read", &path, source)),
            }
        }
        Ok(leased)
    }
}

/// The content of a lease. `None` if its pull does not run any more.
fn read(path: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => fs::read_to_string(path).map(Some),
        Err(errno) => Err(errno.into()),
    }
}
