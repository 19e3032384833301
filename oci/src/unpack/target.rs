//! Where a package is unpacked to.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::UnpackError;
use crate::beneath::{Last, Missing};
use crate::root::Root;

/// The directory that a package is unpacked to: a path in a root directory, which it must not leave.
#[derive(Debug, Clone)]
pub struct Target {
    /// `None` means the root of this process.
    root: Option<Root>,
    path: PathBuf,
}

/// The open parent of a target, and the target's name in it.
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: Vec<u8>,
}

impl Target {
    /// A path in the file system of this process.
    pub fn path(path: impl AsRef<Path>) -> Self {
        Self {
            root: None,
            path: path.as_ref().to_path_buf(),
        }
    }

    /// A path inside `root`: every symlink on the way is resolved as if `root` were `/`, so none
    /// leads out of it.
    pub fn in_root(root: &Root, path: impl AsRef<Path>) -> Self {
        Self {
            root: Some(root.clone()),
            path: path.as_ref().to_path_buf(),
        }
    }

    pub(super) fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// The path of the target in its root.
    pub(super) fn display_path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Opens the parent directory, and makes missing directories in its path with mode 0755, less the umask.
    pub(super) fn open(&self) -> Result<Place, UnpackError> {
        let failed = |what| {
            let path = self.display_path();
            move |source: io::Error| UnpackError::Io { what, path, source }
        };
        let (root, path) = match &self.root {
            Some(root) => (root.clone(), self.path.clone()),
            None => {
                // A relative path starts in the working directory of this process.
                let path = std::path::absolute(&self.path).map_err(failed("find"))?;
                let root = Root::open("/").map_err(failed("open the root of"))?;
                (root, path)
            }
        };
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(failed("use '..' in")(Errno::INVAL.into()));
        }
        let Some(name) = path.file_name() else {
            return Err(failed("unpack to")(Errno::INVAL.into()));
        };
        let missing = Missing::Make(Mode::from_raw_mode(0o755));
        let place = root
            .place(&path, missing, Last::Keep)
            .map_err(|errno| failed("create the parent of")(errno.into()))?;
        Ok(Place {
            parent: place.dir,
            name: name.as_bytes().to_vec(),
        })
    }
}
