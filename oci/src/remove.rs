//! Removes a directory with its content, and nothing else: no symlink is followed, and no other mount is entered.
//! This matters, because a step of a package may leave the host's root, or a disk, mounted in its directory.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that removes files"
)]

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Why a directory was not removed, or only partly.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error(
        "{} is left alone, because something is mounted at {}: unmount that (umount {})",
        path.display(),
        mount_point.display(),
        mount_point.display()
    )]
    Mounted { path: PathBuf, mount_point: PathBuf },
    #[error("{} cannot be removed", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl RemoveError {
    fn io(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source: source.into(),
        }
    }

    /// The error with other paths in its message. `shown` returns the path to show for a path of this process.
    #[must_use]
    pub fn shown_as(mut self, shown: impl Fn(&Path) -> PathBuf) -> Self {
        self.show_as(shown);
        self
    }

    fn show_as(&mut self, shown: impl Fn(&Path) -> PathBuf) {
        match self {
            Self::Mounted { path, mount_point } => {
                *path = shown(path);
                *mount_point = shown(mount_point);
            }
            Self::Io { path, .. } => *path = shown(path),
        }
    }

    /// Converts the error for callers that only return an [`io::Error`].
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => source,
            mounted @ Self::Mounted { .. } => io::Error::new(io::ErrorKind::ResourceBusy, mounted),
        }
    }

    /// Does the same as [`RemoveError::shown_as`] for an error of [`RemoveError::into_io`].
    pub(crate) fn show_io_as(error: &mut io::Error, shown: impl Fn(&Path) -> PathBuf) {
        let inner = error.get_mut();
        if let Some(removal) = inner.and_then(|inner| inner.downcast_mut::<Self>()) {
            removal.show_as(shown);
        }
    }
}

/// Removes a file, a symlink, or a directory with its content. It is no error if `path` does not exist. If something
/// is mounted at or below a directory, the directory is left unchanged.
pub fn remove_tree(path: &Path) -> Result<(), RemoveError> {
    let failed = |source: io::Error| RemoveError::io(path, source);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(failed(Errno::INVAL.into()));
    };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(parent) => remove_at(&parent, name.as_bytes()),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Does the same as [`remove_tree`], for `name` in an open directory.
pub(crate) fn remove_at(at: impl AsFd, name: &[u8]) -> Result<(), RemoveError> {
    remove_by(at.as_fd(), name, Way::Kernel)
}

/// The mount points below a directory. The directory itself is not included.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = fs::canonicalize(directory)?;
    let mut mounts = mounts_at_or_below(&directory)?;
    mounts.retain(|mount| *mount != directory);
    Ok(mounts)
}

/// How another mount is detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// openat2 refuses to enter another mount.
    Kernel,
    /// For kernels before 5.6: mount IDs are compared.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests ask for it by name"))]
    ByHand,
}

fn remove_by(at: BorrowedFd<'_>, name: &[u8], way: Way) -> Result<(), RemoveError> {
    let name_only = Path::new(OsStr::from_bytes(name));
    let path = path_of(at)
        .map_err(|e| RemoveError::io(name_only, e))?
        .join(name_only);
    // Before anything is removed, check that nothing is mounted in the directory.
    if is_directory(at, name).map_err(|errno| RemoveError::io(&path, errno))? {
        let mounts = mounts_at_or_below(&path).map_err(|e| RemoveError::io(&path, e))?;
        if let Some(mount_point) = mounts.into_iter().next() {
            return Err(RemoveError::Mounted { path, mount_point });
        }
    }
    descend(at, name, &path, way)
}

fn is_directory(at: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// How many directories are open at the same time. The upper directories of a deeper tree are closed. They are opened
/// again through `..` later, and their device and inode must be the same then.
const OPEN: usize = 16;

/// A directory on the path to the one that is being emptied.
struct Level {
    name: Vec<u8>,
    /// Device and inode.
    identity: (u64, u64),
    /// `None` while the directory is closed, because too many others are open.
    directory: Option<OwnedFd>,
}

/// The open directories from the top of the tree down to the one that is being emptied. `whole` is the path of the
/// top, and `at` is its parent.
struct Descent<'a> {
    at: BorrowedFd<'a>,
    whole: &'a Path,
    way: Way,
    levels: Vec<Level>,
}

/// Removes `name` in `at` with its content. `whole` is the path of `name`. The number of open descriptors and the
/// size of the stack do not depend on the depth of the tree.
fn descend(at: BorrowedFd<'_>, name: &[u8], whole: &Path, way: Way) -> Result<(), RemoveError> {
    let mut descent = Descent {
        at,
        whole,
        way,
        levels: Vec::new(),
    };
    descent.enter(name)?;
    while let Some(level) = descent.levels.last() {
        let directory = level.directory.as_ref().map(AsFd::as_fd);
        // The deepest directory is always open: it was entered or opened again just now.
        let child = match directory {
            Some(directory) => descent.unlink_files(directory)?,
            None => None,
        };
        match child {
            Some(child) => descent.enter(&child)?,
            None => descent.leave()?,
        }
    }
    Ok(())
}

impl Descent<'_> {
    /// The path of an entry in the deepest directory.
    fn path(&self, name: &[u8]) -> PathBuf {
        let mut path = self.whole.to_path_buf();
        for level in self.levels.iter().skip(1) {
            path.push(OsStr::from_bytes(&level.name));
        }
        if !self.levels.is_empty() {
            path.push(OsStr::from_bytes(name));
        }
        path
    }

    fn failed(&self, name: &[u8], errno: Errno) -> RemoveError {
        RemoveError::io(&self.path(name), errno)
    }

    /// Enters the directory `name` in the deepest directory. If `name` is not a directory, it is unlinked.
    fn enter(&mut self, name: &[u8]) -> Result<(), RemoveError> {
        let parent = match self.levels.last().and_then(|l| l.directory.as_ref()) {
            Some(directory) => directory.as_fd(),
            None => self.at,
        };
        let directory = match open_on_same_mount(parent, name, self.way) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return unlink(parent, name, AtFlags::empty())
                    .map_err(|errno| self.failed(name, errno));
            }
            // Something was mounted here after the table of mounts was read.
            Err(Errno::XDEV) => {
                return Err(RemoveError::Mounted {
                    path: self.whole.to_path_buf(),
                    mount_point: self.path(name),
                });
            }
            Err(errno) => return Err(self.failed(name, errno)),
        };
        // A directory without write permission must be removed too, also if this process is not root.
        let identity = rustix::fs::fchmod(&directory, Mode::RWXU)
            .and_then(|()| identity(directory.as_fd()))
            .map_err(|errno| self.failed(name, errno))?;
        self.levels.push(Level {
            name: name.to_owned(),
            identity,
            directory: Some(directory),
        });
        if let Some(above) = self.levels.len().checked_sub(OPEN + 1) {
            self.levels[above].directory = None;
        }
        Ok(())
    }

    /// Removes the entries up to the first directory, and returns the name of this directory.
    fn unlink_files(&self, directory: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, RemoveError> {
        let entries =
            rustix::fs::Dir::read_from(directory).map_err(|errno| self.failed(b"", errno))?;
        for entry in entries {
            let entry = entry.map_err(|errno| self.failed(b"", errno))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
                return Ok(Some(name.to_owned()));
            }
            unlink(directory, name, AtFlags::empty()).map_err(|errno| self.failed(name, errno))?;
        }
        Ok(None)
    }

    /// Removes the deepest directory, which is empty, and goes back to its parent.
    fn leave(&mut self) -> Result<(), RemoveError> {
        let Some(done) = self.levels.pop() else {
            return Ok(());
        };
        let parent = match self.levels.last_mut() {
            None => self.at,
            Some(level) => {
                if level.directory.is_none() {
                    level.directory = done
                        .directory
                        .as_ref()
                        .map(|below| parent_of(below.as_fd(), level.identity))
                        .transpose()
                        .map_err(|errno| RemoveError::io(self.whole, errno))?;
                }
                match &level.directory {
                    Some(directory) => directory.as_fd(),
                    None => self.at,
                }
            }
        };
        unlink(parent, &done.name, AtFlags::REMOVEDIR)
            .map_err(|errno| self.failed(&done.name, errno))
    }
}

fn unlink(at: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(at, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Opens the parent of `directory`. The error is ESTALE if the parent is not the expected one, because another
/// process has moved `directory`.
fn parent_of(directory: BorrowedFd<'_>, expected: (u64, u64)) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let parent = rustix::fs::openat(directory, "..", flags, Mode::empty())?;
    if identity(parent.as_fd())? == expected {
        Ok(parent)
    } else {
        Err(Errno::STALE)
    }
}

fn identity(directory: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Opens the directory `name` in `at`; EXDEV when it is the root of another mount.
fn open_on_same_mount(at: BorrowedFd<'_>, name: &[u8], way: Way) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let opened = match way {
        Way::Kernel => rustix::fs::openat2(at, name, flags, Mode::empty(), resolve),
        Way::ByHand => Err(Errno::NOSYS),
    };
    match opened {
        // Some sandboxes return EPERM for system calls that they do not know.
        Err(Errno::NOSYS | Errno::PERM) => {}
        result => return result,
    }
    let directory = rustix::fs::openat(at, name, flags, Mode::empty())?;
    if mount_id(directory.as_fd())? == mount_id(at)? {
        Ok(directory)
    } else {
        Err(Errno::XDEV)
    }
}

/// The ID of the mount that an open file is on. It is not read with statx, because most kernels without openat2 do
/// not have that field of statx either.
fn mount_id(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
        .ok_or(Errno::IO)
}

/// The path of an open directory, as the table of mounts has it.
fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn mounts_at_or_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(mount_points(&table)
        .filter(|mount| mount.starts_with(directory))
        .collect())
}

fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let point = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(point))))
    })
}

/// Decodes octal escapes, such as `\040` for a space.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match digits {
            Some(digits) => {
                let value = digits
                    .iter()
                    .fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(u8::try_from(value).unwrap_or(b'?'));
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
