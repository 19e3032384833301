//! Atomic file writes: after a power cut a file has its old or its new content, never a part.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file writing"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The file operations that a write is made of, in an order that survives a power cut between any two.
pub(crate) trait Disk {
    fn write(&mut self, file: &Path, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self, file: &Path) -> io::Result<()>;
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    fn sync_directory(&mut self, directory: &Path) -> io::Result<()>;
    fn remove(&mut self, file: &Path) -> io::Result<()>;
}

/// Writes `path` through a temporary file beside it: write, fsync, rename, fsync of the directory. The file is readable
/// by root alone.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_on(&mut RealDisk { file: None }, path, bytes)
}

pub(crate) fn write_on(disk: &mut impl Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::other(format!("{} has no directory", path.display())))?;
    let temporary = path.with_extension("tmp");
    let written = disk
        .write(&temporary, bytes)
        .and_then(|()| disk.sync(&temporary))
        .and_then(|()| disk.rename(&temporary, path));
    if let Err(error) = written {
        // Remove the temporary file, so that it does not fill the disk.
        let _removed = disk.remove(&temporary);
        return Err(error);
    }
    disk.sync_directory(directory)
}

struct RealDisk {
    /// The file that was written last.
    file: Option<File>,
}

impl Disk for RealDisk {
    fn write(&mut self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(file)?;
        open.write_all(bytes)?;
        self.file = Some(open);
        Ok(())
    }

    fn sync(&mut self, file: &Path) -> io::Result<()> {
        match self.file.take() {
            Some(open) => open.sync_all(),
            None => File::open(file)?.sync_all(),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&mut self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn remove(&mut self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }
}
