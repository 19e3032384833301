//! Files that are either the old or the new whole, whenever the power goes.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file writing"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes `path` through a temporary file beside it: write, fsync, rename, fsync of the directory. The file is readable
/// by root alone.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path
        .parent()
        .ok_or_else(|| io::Error::other(format!("{} has no directory", path.display())))?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    drop(file);
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // A full disk must not be kept full by what did not fit.
        let _removed = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}
