//! A directory that is used as `/`, such as the root of a host that is mounted into a container. Symlinks, also
//! absolute ones, are resolved inside the directory and cannot lead out of it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::beneath::{self, Last, Missing, Outside, Place};
use crate::remove::{self, RemoveError};
use crate::replace::{Durability, NewFile, replace_at, replace_with_symlink};

/// The mode of directories that are made for a missing part of a path, less the umask.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);

/// An open directory in which all paths start. A path with `/` at its start means the same as one without.
#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
    /// The part of paths that messages leave out. Empty for a directory that is not the root of a host.
    hidden: PathBuf,
    dir: Arc<OwnedFd>,
}

/// A name in an open directory, for example the name that a path leads to. [`Root::entry`] follows a symlink at the
/// end of a path; [`Root::entry_itself`] does not.
#[derive(Debug)]
pub struct Entry {
    dir: OwnedFd,
    name: OsString,
}

impl Root {
    /// Opens the directory at `path`, which is a path of this process. Its symlinks are trusted.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, &path, flags, Mode::empty())?;
        Ok(Self {
            path,
            hidden: PathBuf::new(),
            dir: Arc::new(dir),
        })
    }

    /// Opens the root directory of a host. Messages have paths as the host has them: [`Root::shown`] leaves out the path
    /// of this directory.
    pub fn open_host(path: impl AsRef<Path>) -> io::Result<Self> {
        let root = Self::open(path)?;
        Ok(Self {
            hidden: path_of(root.as_fd())?,
            ..root
        })
    }

    /// A path of this process, as messages show it.
    #[must_use]
    pub fn shown(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.hidden) {
            Ok(inside) if !self.hidden.as_os_str().is_empty() => Path::new("/").join(inside),
            Ok(_) | Err(_) => path.to_path_buf(),
        }
    }

    /// The path of the directory in this process.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the root of this process.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.path == Path::new("/")
    }

    /// The directory at `path`, as a root of its own.
    pub fn directory(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        let dir = self.open_with(path.as_ref(), OFlags::DIRECTORY | OFlags::PATH)?;
        self.inside(dir)
    }

    /// Makes the directory at `path` and its parents, if they are missing, and returns the directory as a root of its
    /// own. The mode of new directories is 0755, less the umask.
    pub fn create_dirs(&self, path: impl AsRef<Path>) -> io::Result<Self> {
        let place = self.place(path.as_ref(), Missing::Make(DIRECTORY), Last::Follow)?;
        let Some(name) = place.name else {
            return self.inside(place.dir);
        };
        beneath::make(place.dir.as_fd(), &name, DIRECTORY)?;
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&place.dir, name.as_slice(), flags, Mode::empty())?;
        self.inside(dir)
    }

    /// An open directory inside this one, as a root of its own.
    fn inside(&self, dir: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            path: path_of(dir.as_fd())?,
            hidden: self.hidden.clone(),
            dir: Arc::new(dir),
        })
    }

    /// Opens the file for reading. It must be a regular file: a named pipe or a device could block its reader for ever.
    pub fn open_file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        regular(self.open_with(path.as_ref(), flags)?)
    }

    /// Does the same as [`Self::open_file`]. A symlink that is absolute, or that leads out of the directory, is an error
    /// (EXDEV).
    pub fn open_file_beneath(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        regular(self.open_beneath(path.as_ref(), flags)?)
    }

    /// The file's content.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The file's content, which is text.
    pub fn read_to_string(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let mut text = String::new();
        self.open_file(path)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// The metadata of the file at `path`. Symlinks are followed.
    pub fn metadata(&self, path: impl AsRef<Path>) -> io::Result<Metadata> {
        File::from(self.open_with(path.as_ref(), OFlags::PATH)?).metadata()
    }

    /// Whether there is a file or directory at `path`. Symlinks are followed.
    #[must_use]
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.open_with(path.as_ref(), OFlags::PATH).is_ok()
    }

    /// The names in the directory at `path`, sorted.
    pub fn list(&self, path: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        let dir = self.open_with(path.as_ref(), OFlags::DIRECTORY | OFlags::RDONLY)?;
        names(dir.as_fd())
    }

    /// The name that `path` leads to. A symlink at the end of the path is followed. The parents must exist, but the
    /// name itself need not exist.
    pub fn entry(&self, path: impl AsRef<Path>) -> io::Result<Entry> {
        Entry::of(self.place(path.as_ref(), Missing::Refuse, Last::Follow)?)
    }

    /// Does the same as [`Self::entry`], and makes missing parents with mode 0755, less the umask.
    pub fn entry_making_parents(&self, path: impl AsRef<Path>) -> io::Result<Entry> {
        Entry::of(self.place(path.as_ref(), Missing::Make(DIRECTORY), Last::Follow)?)
    }

    /// The name that `path` leads to. A symlink at the end of the path is not followed.
    pub fn entry_itself(&self, path: impl AsRef<Path>) -> io::Result<Entry> {
        Entry::of(self.place(path.as_ref(), Missing::Refuse, Last::Keep)?)
    }

    /// Replaces the file at `path` and makes missing parents. A symlink at the end of the path is followed. The new
    /// file has this mode, less the umask.
    pub fn replace(
        &self,
        path: impl AsRef<Path>,
        bytes: &[u8],
        mode: u32,
        durability: Durability,
    ) -> io::Result<()> {
        self.entry_making_parents(path)?
            .replace(bytes, mode, durability)
    }

    /// Removes a file, a symlink, or a directory with its content. It is no error if `path` does not exist. If
    /// something is mounted at or below a directory, the directory is left unchanged.
    pub fn remove_tree(&self, path: impl AsRef<Path>) -> Result<(), RemoveError> {
        match self.entry_itself(path.as_ref()) {
            Ok(entry) => entry
                .remove_tree()
                .map_err(|error| error.shown_as(|path| self.shown(path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(RemoveError::Io {
                path: path.as_ref().to_path_buf(),
                source,
            }),
        }
    }

    /// The path in this process of the file at `path`, with all symlinks and all `..` resolved. Parts that do not exist
    /// are kept. This is for sockets and programs, which need a path, and is safe only if nobody but root
    /// can change the directories.
    pub fn locate(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let place = self.place(path.as_ref(), Missing::Keep, Last::Follow)?;
        let directory = path_of(place.dir.as_fd())?;
        Ok(match place.name {
            Some(name) => directory.join(OsStr::from_bytes(&name)),
            None => directory,
        })
    }

    /// Opens `path`. A symlink that is absolute, or that leads out of the directory, is an error (EXDEV).
    pub fn open_beneath(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        beneath::open(&self.dir, path, flags, Outside::IsRefused)
    }

    pub(crate) fn open_with(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        beneath::open(&self.dir, path, flags, Outside::IsRoot)
    }

    pub(crate) fn place(
        &self,
        path: &Path,
        missing: Missing,
        last: Last,
    ) -> rustix::io::Result<Place> {
        let path = path.as_os_str().as_bytes();
        beneath::place(self.dir.as_fd(), path, Outside::IsRoot, missing, last)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Entry {
    fn of(place: Place) -> io::Result<Self> {
        match place.name {
            Some(name) => Ok(Self {
                dir: place.dir,
                name: OsString::from_vec(name),
            }),
            None => Err(Errno::ISDIR.into()),
        }
    }

    /// The entry `name` of an open directory. `name` must be a single name, and not a path.
    pub fn at(dir: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        if matches!(name.as_bytes(), b"" | b"." | b"..") || name.as_bytes().contains(&b'/') {
            return Err(Errno::INVAL.into());
        }
        Ok(Self {
            dir: rustix::io::fcntl_dupfd_cloexec(dir, 0)?,
            name: name.to_owned(),
        })
    }

    /// The directory that the name is in.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// The status of the file with this name, or `None` if there is none. A symlink is not followed.
    pub fn stat(&self) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes a directory with this mode, less the umask, unless it exists. A file or symlink with this name is
    /// removed.
    pub fn create_directory(&self, mode: u32) -> io::Result<OwnedFd> {
        loop {
            let mode = Mode::from_raw_mode(mode);
            beneath::make(self.dir(), self.name.as_bytes(), mode)?;
            match self.open_directory() {
                Err(error) if error.kind() == io::ErrorKind::NotADirectory || is_loop(&error) => {
                    rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty())?;
                }
                result => return result,
            }
        }
    }

    /// Opens the file with this name for reading. It must be a regular file, and a symlink is not followed.
    pub fn open_file(&self) -> io::Result<File> {
        self.open(OFlags::RDONLY)
    }

    /// Opens the file with this name for writing, and does not truncate it. It must be a regular file, and a symlink is
    /// not followed.
    pub fn open_to_write(&self) -> io::Result<File> {
        self.open(OFlags::WRONLY)
    }

    fn open(&self, flags: OFlags) -> io::Result<File> {
        let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &self.name, flags | safe, Mode::empty())?;
        regular(file)
    }

    /// Opens the directory with this name. A symlink is not followed.
    pub fn open_directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(
            &self.dir,
            &self.name,
            flags,
            Mode::empty(),
        )?)
    }

    /// Replaces the file with this name, which must not be a directory. The new file has this mode, less the umask.
    pub fn replace(&self, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        replace_at(&self.dir, &self.name, bytes, mode, durability)
    }

    /// Makes an empty file that can replace the file with this name. Its mode is 0600, less the umask.
    pub fn new_file(&self) -> io::Result<NewFile> {
        NewFile::create(&self.dir, &self.name, Mode::RUSR | Mode::WUSR)
    }

    /// Makes a symlink that replaces the file with this name, which must not be a directory.
    pub fn symlink(&self, target: impl AsRef<OsStr>) -> io::Result<()> {
        replace_with_symlink(&self.dir, &self.name, target.as_ref())
    }

    /// Gives the file or directory with this name another name in the same directory.
    pub fn rename(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            &self.dir,
            &self.name,
            &self.dir,
            name.as_ref(),
        )?)
    }

    /// Does the same as [`Root::remove_tree`] for this name. If it is a symlink, only the symlink is removed.
    pub fn remove_tree(&self) -> Result<(), RemoveError> {
        remove::remove_at(&self.dir, self.name.as_bytes())
    }
}

/// Opens the file at `path`, which is a path of this process, for reading. Its symlinks are trusted. It must be a regular
/// file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    regular(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// The open file, if it is a regular one.
fn regular(file: OwnedFd) -> io::Result<File> {
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        FileType::Directory => Err(Errno::ISDIR.into()),
        kind @ (FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown) => {
            let message = format!("it is {}, and not a regular file", kind_of_file(kind));
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

/// Name of a file type in messages, with its article.
#[must_use]
pub fn kind_of_file(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something unknown",
    }
}

fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// The names in an open directory, sorted.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    names.sort();
    Ok(names)
}

/// The path of an open directory in this process.
fn path_of(dir: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests;
