//! Blobs that were downloaded in part. They outlive a broken pull and the agent itself, so that the next pull of the
//! blob downloads only the rest. Nothing is believed about their content: it is hashed again, and the digest of the
//! whole blob is checked before the blob gets its name.
//!
//! Whoever writes a partial blob holds a lock on its file. Another process that downloads the same blob at the same time
//! uses a temporary file instead, and so does a pull that downloads it from another registry.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that keeps partial blobs"
)]

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::files::{failed, list};
use super::{Store, StoreError};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::replace::{Lock, lock};

/// How long to wait for the writer of a pull that was called off: it may still have bytes to write.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);
const BUFFER: usize = 256 << 10;

/// The open and locked file of a partial blob.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) path: PathBuf,
    pub(super) file: File,
    name: String,
    dir: OwnedFd,
}

/// A partial blob in the list of all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PartialBlob {
    /// When it was written last.
    pub(super) written: SystemTime,
    pub(super) path: PathBuf,
    pub(super) digest: Option<Digest>,
    pub(super) bytes: u64,
}

impl Partial {
    /// Hashes the content. Returns its length, which is where to write on. A file that is too long or that cannot be
    /// read is emptied.
    pub(super) fn read(
        &mut self,
        algorithm: Algorithm,
        size: u64,
    ) -> Result<(Hasher, u64), StoreError> {
        let io = |source| failed("read", &self.path, source);
        let length = self.file.metadata().map_err(io)?.len();
        if length <= size {
            match hash(&mut self.file, algorithm) {
                Ok((hasher, length)) => return Ok((hasher, length)),
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "a partial blob cannot be read: it is downloaded from its start");
                }
            }
        }
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|source| failed("empty", &self.path, source))?;
        Ok((Hasher::new(algorithm), 0))
    }

    pub(super) fn persist(self, path: &Path) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, self.name.as_str(), CWD, path)?;
        Ok(())
    }

    pub(super) fn remove(&self) {
        match rustix::fs::unlinkat(&self.dir, self.name.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                tracing::warn!(path = %self.path.display(), %errno, "a partial blob cannot be removed");
            }
        }
    }
}

fn hash(file: &mut File, algorithm: Algorithm) -> io::Result<(Hasher, u64)> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; BUFFER];
    let mut length = 0;
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher, length)),
            count => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

fn name_of(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// The size of a file without its holes, which it may have after a power cut.
fn bytes_on_disk(metadata: &Metadata) -> u64 {
    metadata.len().min(metadata.blocks().saturating_mul(512))
}

impl Store {
    /// Opens the partial blob with this digest, and makes it if it does not exist. `None` if another process or another pull
    /// writes it.
    pub(super) fn partial(&self, digest: Digest) -> Result<Option<Partial>, StoreError> {
        let directory = self.dir.join("partial");
        let name = name_of(&digest);
        let path = directory.join(&name);
        let io = |errno: Errno| failed("open", &path, errno.into());
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let dir = rustix::fs::openat(CWD, &directory, flags, Mode::empty()).map_err(io)?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let file = rustix::fs::openat(&dir, name.as_str(), flags, mode).map_err(io)?;
            match lock(&file, &dir, name.as_bytes()).map_err(io)? {
                Lock::Held => {
                    // The name must outlive a power cut, or the flushed content is lost.
                    rustix::fs::fsync(&dir).map_err(io)?;
                    let file = File::from(file);
                    return Ok(Some(Partial {
                        path,
                        file,
                        name,
                        dir,
                    }));
                }
                // Its writer has just finished or removed it.
                Lock::Gone => {}
                Lock::Busy if Instant::now() > give_up => return Ok(None),
                Lock::Busy => std::thread::sleep(PAUSE),
            }
        }
    }

    /// How many bytes of this blob an earlier download has left.
    pub(crate) fn partial_bytes(&self, digest: &Digest) -> u64 {
        let path = self.dir.join("partial").join(name_of(digest));
        fs::symlink_metadata(path).map_or(0, |metadata| bytes_on_disk(&metadata))
    }

    /// All partial blobs.
    pub(super) fn partials(&self) -> Result<Vec<PartialBlob>, StoreError> {
        let mut found = Vec::new();
        for path in list(&self.dir.join("partial"))? {
            let name = path.file_name().and_then(|name| name.to_str());
            let digest = name.and_then(|name| name.replacen('-', ":", 1).parse().ok());
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // It has just become a blob.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(failed("read", &path, source)),
            };
            let written = metadata.modified();
            let written = written.map_err(|source| failed("read", &path, source))?;
            found.push(PartialBlob {
                written,
                digest,
                bytes: bytes_on_disk(&metadata),
                path,
            });
        }
        Ok(found)
    }
}
