//! Writes a blob. The blob is hashed while it is written, and gets its name if the digest is right.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use super::files::{failed, sync_parent};
use super::partial::Partial;
use super::{Store, StoreError};
use crate::digest::{Digest, Hasher, Mismatch};
use crate::space::Leave;

/// After so many bytes, a partial blob is flushed. So this is the most that a power cut can make a pull download again.
/// The free space on the disk is looked at then too, because others also write there.
const FLUSH: u64 = 32 << 20;

/// A blob that is being written. What is left of it when it is dropped without `commit` depends on its file.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    store: Store,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: BlobFile,
    hasher: Hasher,
    written: u64,
    flushed: u64,
}

/// The file of a blob that is not complete yet.
#[derive(Debug)]
pub(super) enum BlobFile {
    /// It is removed when it is dropped.
    Temporary(tempfile::NamedTempFile),
    /// It stays, and the next download of the blob continues it.
    Partial(Partial),
}

impl BlobFile {
    fn file(&mut self) -> &mut File {
        match self {
            Self::Temporary(file) => file.as_file_mut(),
            Self::Partial(partial) => &mut partial.file,
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Temporary(file) => file.path().to_path_buf(),
            Self::Partial(partial) => partial.path.clone(),
        }
    }

    /// Gives the file the name of the complete blob.
    fn persist(self, path: &PathBuf) -> std::io::Result<()> {
        match self {
            Self::Temporary(file) => file.persist(path).map(drop).map_err(|error| error.error),
            Self::Partial(partial) => partial.persist(path),
        }
    }
}

impl BlobWriter {
    /// How many bytes of the blob were written, by this writer and by those before it.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

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
        if let Err(source) = self.file.file().write_all(bytes) {
            let error = failed("write", &self.file.path(), source);
            // The disk may be full. Then other programs need the space more than this blob does.
            self.remove();
            return Err(error);
        }
        self.hasher.update(bytes);
        self.written = got;
        if got - self.flushed >= FLUSH {
            self.flush()?;
            self.store.has_room_for(self.size - got, Leave::Least)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let flushed = self.file.file().sync_data();
        flushed.map_err(|source| failed("flush", &self.file.path(), source))?;
        self.flushed = self.written;
        Ok(())
    }

    /// Removes the file, so that the next download of the blob begins at its start.
    pub(crate) fn remove(&mut self) {
        if let BlobFile::Partial(partial) = &self.file {
            partial.remove();
        }
    }

    /// Compares the digest, flushes the file, and gives it its name. A file with the wrong digest is removed.
    pub(crate) fn commit(mut self) -> Result<(), StoreError> {
        if self.written != self.size {
            return Err(StoreError::WrongSize {
                digest: self.digest,
                want: self.size,
                got: self.written,
            });
        }
        let (want, got) = (self.digest, self.hasher.clone().finish());
        if got != want {
            self.remove();
            return Err(StoreError::WrongDigest(Box::new(Mismatch { want, got })));
        }
        self.flush()?;
        self.file
            .persist(&self.path)
            .map_err(|source| failed("name", &self.path, source))?;
        sync_parent(&self.path)
    }
}

impl Store {
    /// Starts to write a small blob, which must have this digest and this size.
    pub(crate) fn writer(&self, digest: Digest, size: u64) -> Result<BlobWriter, StoreError> {
        let tmp = self.dir.join("tmp");
        let file = tempfile::NamedTempFile::new_in(&tmp)
            .map_err(|source| failed("create a file in", &tmp, source))?;
        let hasher = Hasher::new(digest.algorithm());
        Ok(self.blob_writer(digest, size, BlobFile::Temporary(file), hasher, 0))
    }

    /// Starts to write a blob, or continues where an earlier download of it has ended. Blocks this thread while it
    /// hashes what is there.
    pub(crate) fn continued(&self, digest: Digest, size: u64) -> Result<BlobWriter, StoreError> {
        let Some(mut partial) = self.partial(digest)? else {
            return self.writer(digest, size);
        };
        let (hasher, written) = partial.read(digest.algorithm(), size)?;
        Ok(self.blob_writer(digest, size, BlobFile::Partial(partial), hasher, written))
    }

    fn blob_writer(
        &self,
        digest: Digest,
        size: u64,
        file: BlobFile,
        hasher: Hasher,
        written: u64,
    ) -> BlobWriter {
        BlobWriter {
            store: self.clone(),
            digest,
            size,
            path: self.blob(&digest),
            file,
            hasher,
            written,
            flushed: written,
        }
    }
}
