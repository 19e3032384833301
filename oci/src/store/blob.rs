//! Writes a blob. The blob is hashed while it is written, and gets its name if the digest is right.

use std::io::Write;
use std::path::PathBuf;

use super::files::{failed, sync_parent};
use super::{Store, StoreError};
use crate::digest::{Digest, Hasher};

/// A blob that is being written. If it is dropped without `commit`, its file is removed.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: tempfile::NamedTempFile,
    hasher: Hasher,
    written: u64,
}

impl BlobWriter {
    /// Writes bytes. If there would be more bytes than the announced size, it fails and writes none of them.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let got = self.written + bytes.len() as u64;
        if got > self.size {
            return Err(StoreError::WrongSize {
                digest: self.digest,
                want: self.size,
                got,
            });
        }
        self.file
            .write_all(bytes)
            .map_err(|source| failed("write", self.file.path(), source))?;
        self.hasher.update(bytes);
        self.written = got;
        Ok(())
    }

    /// Compares the digest, flushes the file, and gives it its name.
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        let Self {
            digest,
            size,
            path,
            file,
            hasher,
            written,
        } = self;
        if written != size {
            return Err(StoreError::WrongSize {
                digest,
                want: size,
                got: written,
            });
        }
        let got = hasher.finish();
        if got != digest {
            return Err(StoreError::WrongDigest { want: digest, got });
        }
        file.as_file()
            .sync_data()
            .map_err(|source| failed("flush", file.path(), source))?;
        file.persist(&path)
            .map_err(|error| failed("name", &path, error.error))?;
        sync_parent(&path)
    }
}

impl Store {
    /// Starts to write a blob, which must have this digest and this size.
    pub(crate) fn writer(&self, digest: Digest, size: u64) -> Result<BlobWriter, StoreError> {
        let tmp = self.dir.join("tmp");
        let file = tempfile::NamedTempFile::new_in(&tmp)
            .map_err(|source| failed("create a file in", &tmp, source))?;
        let path = self.blob(&digest);
        Ok(BlobWriter {
            digest,
            size,
            path,
            file,
            hasher: Hasher::new(),
            written: 0,
        })
    }
}
