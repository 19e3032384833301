//! A package's copy directory on the host, with the files that the agent adds: `configmaps/` and `node-metadata/`.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use skyhook_oci::{Durability, Entry, Root};

use super::{StageError, io_error};
use crate::host::Host;

/// File mode of the files that the agent adds to a package.
const FILE: u32 = 0o644;

/// A package's copy directory on the host. Paths in it are resolved with this directory as the root, so no symlink can
/// lead out of it.
#[derive(Debug)]
pub(super) struct PackageDir {
    pub(super) files: Root,
    /// Path in the host's file system.
    pub(super) path: PathBuf,
}

impl PackageDir {
    pub(super) fn open(host: &Host, path: &str) -> io::Result<Self> {
        Ok(Self {
            files: host.files.directory(path)?,
            path: path.into(),
        })
    }

    /// Writes `configmaps/`: one file per key, with exactly the bytes of the value. A package without a configMap gets
    /// no such directory.
    pub(super) fn write_config(&self, config: &BTreeMap<String, String>) -> Result<(), StageError> {
        if config.is_empty() {
            return Ok(());
        }
        self.write_all("configmaps", config)
    }

    /// Writes files into a directory of the package. Files with the same name are replaced, other files stay. Symlinks
    /// are replaced and not followed: the image or a step may have created them.
    pub(super) fn write_all(
        &self,
        directory: &str,
        files: &BTreeMap<String, String>,
    ) -> Result<(), StageError> {
        let path = self.path.join(directory);
        let at = Entry::at(&self.files, directory)
            .and_then(|entry| entry.create_directory(0o755))
            .map_err(io_error(&path, "creating"))?;
        for (name, content) in files {
            let path = path.join(name);
            let entry = Entry::at(&at, name).map_err(io_error(&path, "writing"))?;
            let stat = entry.stat().map_err(io_error(&path, "writing"))?;
            let mode = match &stat {
                // Keep the mode: a step may have made the file executable.
                Some(stat) if is(stat, FileType::RegularFile) => stat.st_mode & 0o7777,
                Some(stat) if is(stat, FileType::Directory) => {
                    self.files.remove_tree(Path::new(directory).join(name))?;
                    FILE
                }
                Some(_) | None => FILE,
            };
            entry
                .replace(content.as_bytes(), mode, Durability::WhileUp)
                .map_err(io_error(&path, "writing"))?;
        }
        Ok(())
    }
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// Copies a directory tree into an open directory. Keeps file modes, modification times and symlinks. Other files in
/// the target stay.
pub fn copy_tree(from: &Path, to: BorrowedFd<'_>) -> io::Result<()> {
    let directory = File::open(from)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = Entry::at(to, entry.file_name())?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let made = target.create_directory(0o755)?;
            copy_tree(&entry.path(), std::os::fd::AsFd::as_fd(&made))?;
            File::from(made).set_permissions(entry.metadata()?.permissions())?;
            continue;
        }
        if target
            .stat()?
            .is_some_and(|stat| is(&stat, FileType::Directory))
        {
            target.remove_tree().map_err(io::Error::other)?;
        }
        if kind.is_symlink() {
            target.symlink(fs::read_link(entry.path())?)?;
        } else {
            let mut source = Entry::at(&directory, entry.file_name())?.open_file()?;
            let metadata = source.metadata()?;
            let mut new = target.new_file()?;
            io::copy(&mut source, new.file())?;
            new.file().set_permissions(metadata.permissions())?;
            let times = FileTimes::new().set_modified(metadata.modified()?);
            new.file().set_times(times)?;
            new.put_in_place()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_named_pipe_is_not_copied() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pipe = from.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let copied = copy_tree(from.path(), File::open(to.path()).unwrap().as_fd());
            sender.send(copied.map_err(|e| e.to_string()))
        });
        let copied = receiver.recv_timeout(std::time::Duration::from_secs(10));
        let error = copied.expect("it waits for the pipe").unwrap_err();
        assert_eq!(error, "it is a named pipe, and not a regular file");
    }
}
