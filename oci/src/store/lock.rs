//! The lock of the store: shared while the store is in use, exclusive while files are removed. A pull holds it only for
//! moments: its lease protects what it needs.
//!
//! Any process that can open the lock file can hold the lock for ever. So a caller does not block, but tries again
//! and again for a limited time.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that locks the store"
)]

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::files::failed;
use super::{Store, StoreError};

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// While this value exists, nothing is removed from the store.
#[derive(Debug)]
pub(crate) struct Hold {
    _lock: File,
}

impl Store {
    /// Prevents removals from the store while the result exists. Blocks this thread.
    pub(crate) fn hold_blocking(&self) -> Result<Hold, StoreError> {
        let deadline = self.lock_deadline();
        loop {
            if let Some(hold) = self.try_hold(deadline)? {
                return Ok(hold);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Does the same as [`Store::hold_blocking`], but asynchronously.
    pub(crate) async fn hold(&self) -> Result<Hold, StoreError> {
        let deadline = self.lock_deadline();
        loop {
            if let Some(hold) = self.try_hold(deadline)? {
                return Ok(hold);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Locks the store for removing files. `None` while the store is in use.
    pub(super) fn lock_exclusively(&self) -> Result<Option<File>, StoreError> {
        self.try_lock(FlockOperation::NonBlockingLockExclusive)
    }

    fn lock_deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.config.lock_patience)
    }

    fn try_hold(&self, deadline: Option<Instant>) -> Result<Option<Hold>, StoreError> {
        match self.try_lock(FlockOperation::NonBlockingLockShared)? {
            Some(lock) => Ok(Some(Hold { _lock: lock })),
            None if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                Err(StoreError::Locked {
                    path: self.lock_path(),
                    seconds: self.config.lock_patience.as_secs(),
                })
            }
            None => Ok(None),
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn try_lock(&self, operation: FlockOperation) -> Result<Option<File>, StoreError> {
        let path = self.lock_path();
        let file = open(&path).map_err(|source| failed("open", &path, source))?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed("lock", &path, errno.into())),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    // An earlier version made the file readable for everybody.
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}
