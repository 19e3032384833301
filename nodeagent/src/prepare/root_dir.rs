//! Copies ("lays") a package's `root_dir/` to the host's `/`.
//!
//! | in `root_dir/` | on the host |
//! |---|---|
//! | file | content, mode and time come from the package; owner and attributes of the old file stay: [`host_file`] |
//! | directory, also an empty one | created with the package's mode; an existing directory keeps its mode |
//! | symlink whose target is in the package | a copy of the target |
//! | symlink that is absolute, leads out of the package, or has no target | the symlink itself |
//! | anything else | an error |
//!
//! NVIDIA Skyhook does the same with two exceptions, which would harm the host. It sets the mode of existing
//! directories: the umask with which the image was built could then change the mode of `/tmp` or `/etc`. And it follows
//! symlinks that lead out of the package, to files of its own container.
//!
//! Symlinks on the host are followed inside the host's root directory, also when a file is to be written in their
//! place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use skyhook_oci::{Root, kind_of_file, names};

use super::files::PackageDir;
use super::host_file::{self, Written};
use super::{StageError, io_error, laying_error};
use crate::host::Host;

/// The file systems that a stage has written to: device number, and an open directory on that file system.
#[derive(Debug, Default)]
pub(super) struct FileSystems(BTreeMap<u64, OwnedFd>);

impl FileSystems {
    /// Adds the file system of an open directory.
    pub(super) fn note(&mut self, directory: impl AsFd) -> io::Result<()> {
        let device = rustix::fs::fstat(&directory)?.st_dev;
        if let Entry::Vacant(new) = self.0.entry(device) {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            new.insert(rustix::fs::openat(directory, ".", flags, Mode::empty())?);
        }
        Ok(())
    }

    /// Flushes each file system once. Files that the journal calls written must survive a power failure.
    pub(super) fn sync(&self) -> io::Result<()> {
        for directory in self.0.values() {
            rustix::fs::syncfs(directory)?;
        }
        Ok(())
    }
}

/// Copies `root_dir/` to the host, if the package has one.
pub(super) fn lay(
    package: &PackageDir,
    host: &Host,
    written: &mut FileSystems,
) -> Result<(), StageError> {
    let mut laying = Laying {
        package: &package.files,
        package_path: &package.path,
        host: &host.files,
        written,
        above: Vec::new(),
    };
    let root_dir = Path::new("root_dir");
    let found = match laying.source(Path::new(""), OFlags::PATH) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(laying.failed(root_dir, "reading")(errno.into())),
    };
    match kind(&found) {
        Ok((FileType::Directory, stat)) => laying.children(Path::new(""), &stat),
        Ok(_) => Ok(()),
        Err(errno) => Err(laying.failed(root_dir, "reading")(errno.into())),
    }
}

struct Laying<'a> {
    package: &'a Root,
    /// Path of the package in the host's file system.
    package_path: &'a Path,
    host: &'a Root,
    written: &'a mut FileSystems,
    /// Device and inode of the directories of the package that are being copied, outermost first.
    above: Vec<(u64, u64)>,
}

/// What is created on the host for a name in `root_dir/`.
enum Source {
    Directory(Stat),
    File,
    Symlink(Vec<u8>),
}

impl Laying<'_> {
    /// Opens `inside`, a path below `root_dir`. Fails if a symlink leads out of the package.
    fn source(&self, inside: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.package
            .open_beneath(&Path::new("root_dir").join(inside), flags)
    }

    fn failed(
        &self,
        path: &Path,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> StageError + use<> {
        io_error(&self.package_path.join(path), action)
    }

    /// Copies the entries of the directory `inside` to the host.
    fn children(&mut self, inside: &Path, stat: &Stat) -> Result<(), StageError> {
        let directory = Path::new("root_dir").join(inside);
        let names = self
            .source(inside, OFlags::DIRECTORY | OFlags::RDONLY)
            .map_err(io::Error::from)
            .and_then(|fd| names(fd.as_fd()))
            .map_err(self.failed(&directory, "reading"))?;
        self.above.push((stat.st_dev, stat.st_ino));
        for name in names {
            self.lay(&inside.join(name))?;
        }
        self.above.pop();
        Ok(())
    }

    fn lay(&mut self, inside: &Path) -> Result<(), StageError> {
        let path = Path::new("root_dir").join(inside);
        let to = Path::new("/").join(inside);
        let source = self.look(inside).map_err(self.failed(&path, "reading"))?;
        let place = self.host.entry_making_parents(&to);
        let failed = || laying_error(&to, "copying from root_dir");
        match source {
            Source::Directory(stat) => {
                // A symlink on the host to a directory counts as a directory, and stays.
                let is_there = self.host.metadata(&to).is_ok_and(|found| found.is_dir());
                if !is_there {
                    place
                        .and_then(|entry| self.make_directory(&entry, stat.st_mode))
                        .map_err(failed())?;
                }
                self.children(inside, &stat)
            }
            Source::File => {
                let mut file = self
                    .package
                    .open_file_beneath(&path)
                    .map_err(self.failed(&path, "reading"))?;
                let laid = place.and_then(|entry| {
                    let written = host_file::write(&entry, &mut file)?;
                    if written == Written::Nothing {
                        tracing::warn!(file = %to.display(), "the host has a symlink to /dev/null here: the file from root_dir is not written");
                    }
                    self.written.note(entry.dir())
                });
                laid.map_err(failed())
            }
            Source::Symlink(target) => self
                .host
                .entry_itself(&to)
                .and_then(|entry| self.make_symlink(&entry, &target))
                .map_err(failed()),
        }
    }

    /// Decides what is created on the host for a name in `root_dir/`.
    fn look(&self, inside: &Path) -> io::Result<Source> {
        let itself = self.source(inside, OFlags::PATH | OFlags::NOFOLLOW)?;
        let (found, stat) = kind(&itself)?;
        if found != FileType::Symlink {
            return source_of(found, stat);
        }
        let target = rustix::fs::readlinkat(&itself, "", Vec::new())?;
        let symlink = Source::Symlink(target.into_bytes());
        let (found, stat) = match self.source(inside, OFlags::PATH) {
            Ok(found) => kind(&found)?,
            // The symlink leads out of the package, or its target does not exist.
            Err(Errno::XDEV | Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(symlink),
            Err(errno) => return Err(errno.into()),
        };
        // The symlink leads to a directory that contains it: following it would never end.
        if self.above.contains(&(stat.st_dev, stat.st_ino)) {
            return Ok(symlink);
        }
        source_of(found, stat)
    }

    fn make_directory(&mut self, entry: &skyhook_oci::Entry, mode: u32) -> io::Result<()> {
        if let Some(stat) = entry.stat()? {
            return Err(in_the_way("a directory", &stat));
        }
        let made = File::from(entry.create_directory(0o700)?);
        made.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        self.written.note(entry.dir())
    }

    fn make_symlink(&mut self, entry: &skyhook_oci::Entry, target: &[u8]) -> io::Result<()> {
        match entry.stat()? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(in_the_way("a symlink", &stat));
            }
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                let there = rustix::fs::readlinkat(entry.dir(), entry.name(), Vec::new())?;
                if there.as_bytes() == target {
                    return Ok(());
                }
            }
            Some(_) | None => {}
        }
        entry.symlink(OsStr::from_bytes(target))?;
        self.written.note(entry.dir())
    }
}

fn kind(file: &OwnedFd) -> rustix::io::Result<(FileType, Stat)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat))
}

fn source_of(kind: FileType, stat: Stat) -> io::Result<Source> {
    match kind {
        FileType::Directory => Ok(Source::Directory(stat)),
        FileType::RegularFile => Ok(Source::File),
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => {
            let message = format!(
                "it is {}: root_dir may only have files, directories and symlinks",
                kind_of_file(kind)
            );
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

fn in_the_way(what: &str, there: &Stat) -> io::Error {
    let kind = kind_of_file(FileType::from_raw_mode(there.st_mode));
    let message = format!("it is {what} in root_dir and {kind} on the host: remove one of them");
    io::Error::new(io::ErrorKind::AlreadyExists, message)
}

/// Copies the agent's own `/etc/resolv.conf` to the host, for packages that set `COPY_RESOLV`.
pub(super) fn copy_resolv(host: &Host, written: &mut FileSystems) -> Result<(), StageError> {
    let path = PathBuf::from("/etc/resolv.conf");
    let mut copy = || {
        let mut source = Root::open("/")?.open_file(&path)?;
        let entry = host.files.entry_making_parents(&path)?;
        host_file::write(&entry, &mut source)?;
        written.note(entry.dir())
    };
    copy().map_err(laying_error(&path, "copying the agent's file to the host"))
}

#[cfg(test)]
mod tests;
