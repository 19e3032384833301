//! Removing a directory with all that is in it, and nothing else: no symlink is followed, and no other mount is entered.
//! A step may leave the host's root, or a disk, mounted in its directory.

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

/// Why a directory was not removed, or not whole.
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

    /// For callers who tell of files only by [`io::Error`].
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => source,
            mounted @ Self::Mounted { .. } => {
                io::Error::new(io::ErrorKind::ResourceBusy, mounted.to_string())
            }
        }
    }
}

/// Removes the file, the symlink, or the directory with all that is in it. What is gone already is fine. A directory at or
/// below which something is mounted is left as it is.
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

/// As [`remove_tree`], of `name` in an open directory.
pub(crate) fn remove_at(at: impl AsFd, name: &[u8]) -> Result<(), RemoveError> {
    remove_by(at.as_fd(), name, Way::Kernel)
}

/// Mount points below a directory, itself excluded.
pub fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = fs::canonicalize(directory)?;
    let mut mounts = mounts_at_or_below(&directory)?;
    mounts.retain(|mount| *mount != directory);
    Ok(mounts)
}

/// How another mount is noticed on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// openat2 refuses to enter one.
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
    // Nothing is removed before it is known that all of it may be.
    if is_directory(at, name).map_err(|errno| RemoveError::io(&path, errno))? {
        let mounts = mounts_at_or_below(&path).map_err(|e| RemoveError::io(&path, e))?;
        if let Some(mount_point) = mounts.into_iter().next() {
            return Err(RemoveError::Mounted { path, mount_point });
        }
    }
    descend(at, name, &path, &path, way)
}

fn is_directory(at: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes what is at `path`, on the way to removing `whole`.
fn descend(
    at: BorrowedFd<'_>,
    name: &[u8],
    path: &Path,
    whole: &Path,
    way: Way,
) -> Result<(), RemoveError> {
    let failed = |errno: Errno| RemoveError::io(path, errno);
    let unlink = |flags| match rustix::fs::unlinkat(at, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(errno)),
    };
    let directory = match open_on_same_mount(at, name, way) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return unlink(AtFlags::empty()),
        // Mounted since the look at the table.
        Err(Errno::XDEV) => {
            return Err(RemoveError::Mounted {
                path: whole.to_path_buf(),
                mount_point: path.to_path_buf(),
            });
        }
        Err(errno) => return Err(failed(errno)),
    };
    // A package directory without write permission still has to go when not running as root.
    rustix::fs::fchmod(&directory, Mode::RWXU).map_err(failed)?;
    for entry in rustix::fs::Dir::read_from(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let child = entry.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        let below = path.join(OsStr::from_bytes(child));
        if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
            descend(directory.as_fd(), child, &below, whole, way)?;
        } else {
            match rustix::fs::unlinkat(&directory, child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(RemoveError::io(&below, errno)),
            }
        }
    }
    drop(directory);
    unlink(AtFlags::REMOVEDIR)
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
        // Some sandboxes forbid what they do not know.
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

/// Which mount an open file is on. Kernels that lack openat2 mostly lack the mount ID of statx too.
fn mount_id(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .and_then(|id| id.trim().parse().ok())
        .ok_or(Errno::IO)
}

/// Where an open directory is, as the table of mounts names it.
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

/// `\040` for a space, and the like.
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
