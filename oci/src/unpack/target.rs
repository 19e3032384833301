//! Where a package is unpacked to.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::UnpackError;
use crate::beneath::{self, Outside};

/// A directory, named from the root it must not leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    root: PathBuf,
    path: PathBuf,
}

/// The open parent of a target, and the target's name in it.
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: Vec<u8>,
}

impl Target {
    /// A path of this process's own file system, whose symlinks are trusted.
    pub fn path(path: impl AsRef<Path>) -> Self {
        Self {
            root: PathBuf::from("/"),
            path: path.as_ref().to_path_buf(),
        }
    }

    /// A path inside `root`: every symlink on the way is resolved as if `root` were `/`, so none
    /// leads out of it.
    pub fn in_root(root: impl AsRef<Path>, path: impl AsRef<Path>) -> Self {
        Self {
            root: root.as_ref().to_path_buf(),
            path: path.as_ref().to_path_buf(),
        }
    }

    pub(super) fn display_path(&self) -> PathBuf {
        let relative = self.path.strip_prefix("/").unwrap_or(&self.path);
        if self.root == Path::new("/") {
            self.path.clone()
        } else {
            self.root.join(relative)
        }
    }

    /// Opens the parent, creating what is missing of it with mode 0755.
    pub(super) fn open(&self) -> Result<Place, UnpackError> {
        let io = |what| {
            let path = self.display_path();
            move |errno: Errno| UnpackError::Io {
                what,
                path,
                source: errno.into(),
            }
        };
        // What is relative is relative to the root; without one, to where this process is.
        let absolute = match self.root == Path::new("/") {
            true => std::path::absolute(&self.path).map_err(|source| UnpackError::Io {
                what: "find",
                path: self.path.clone(),
                source,
            })?,
            false => self.path.clone(),
        };
        let mut names: Vec<&OsStr> = Vec::new();
        for component in absolute.components() {
            match component {
                Component::Normal(name) => names.push(name),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                Component::ParentDir => return Err(io("use '..' in")(Errno::INVAL)),
            }
        }
        let (name, parents) = names
            .split_last()
            .ok_or_else(|| io("unpack to")(Errno::INVAL))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = rustix::fs::openat(CWD, &self.root, flags, Mode::empty())
            .map_err(io("open the root of"))?;
        let mut parent = PathBuf::new();
        let mut fd = None;
        for part in parents {
            parent.push(part);
            let at = fd.as_ref().unwrap_or(&root);
            fd = Some(enter(&root, at, &parent, part, flags).map_err(io("create the parent of"))?);
        }
        Ok(Place {
            parent: fd.unwrap_or(root),
            name: name.as_bytes().to_vec(),
        })
    }
}

/// Opens `path` inside `root`; `at` is its parent and `name` its last part, for making it.
fn enter(
    root: &OwnedFd,
    at: &OwnedFd,
    path: &Path,
    name: &OsStr,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let open = || beneath::open(root, path, flags, Outside::IsRoot);
    match open() {
        Err(Errno::NOENT) => {
            match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            open()
        }
        result => result,
    }
}
