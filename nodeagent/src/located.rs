//! Paths of the host in this process and in messages.

use std::fmt;
use std::path::{Path, PathBuf};

/// A path of the host, for calls that need a path of this process. The two differ in a pod, where the host's files are
/// below a mount point. Messages show the path of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    path: PathBuf,
    shown: PathBuf,
}

impl Located {
    pub(crate) fn new(path: PathBuf, shown: &Path) -> Self {
        Self {
            path,
            shown: shown.to_path_buf(),
        }
    }

    /// The path in this process.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path below this one.
    #[must_use]
    pub fn join(&self, inside: impl AsRef<Path>) -> Self {
        Self {
            path: self.path.join(&inside),
            shown: self.shown.join(inside),
        }
    }

    /// How messages show a path of this process that is below this one.
    #[must_use]
    pub fn shown(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.path) {
            Ok(inside) => self.shown.join(inside),
            Err(_) => path.to_path_buf(),
        }
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown.display().fmt(f)
    }
}

/// A path that is the same on the host and in this process.
impl From<&Path> for Located {
    fn from(path: &Path) -> Self {
        Self::new(path.to_path_buf(), path)
    }
}
