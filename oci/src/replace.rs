//! Replaces a file. A reader finds either the whole old content or the whole new content.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// What a power cut may do to a file that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After a power cut the file may be the old one, the new one, or empty. As long as the host runs, it is the old
    /// one or the new one.
    WhileUp,
    /// The file and its directory are on the disk before the write returns.
    PowerCut,
}

/// The file operations of one write. A test can implement them to simulate a power cut between any two of them.
pub trait Disk {
    /// Writes the bytes to a temporary file.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Flushes the temporary file.
    fn sync(&mut self) -> io::Result<()>;
    /// Gives the temporary file the name of the file that it replaces.
    fn rename(&mut self) -> io::Result<()>;
    /// Flushes the directory.
    fn sync_directory(&mut self) -> io::Result<()>;
    /// Removes the temporary file.
    fn remove(&mut self) -> io::Result<()>;
}

/// Replaces a file on `disk`.
pub fn replace_on(disk: &mut impl Disk, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let written = disk
        .write(bytes)
        .and_then(|()| match durability {
            Durability::WhileUp => Ok(()),
            Durability::PowerCut => disk.sync(),
        })
        .and_then(|()| disk.rename());
    if let Err(error) = written {
        // If the disk is full, the incomplete file must not take space.
        let _removed = disk.remove();
        return Err(error);
    }
    match durability {
        Durability::WhileUp => Ok(()),
        Durability::PowerCut => disk.sync_directory(),
    }
}

/// Replaces the file at `path`, which is a path of this process. Its symlinks are trusted. The mode of the new file
/// is 0600, less the umask.
pub fn replace_file(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let message = format!("{} is not the path of a file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, parent, flags, Mode::empty())?;
    let mode = Mode::RUSR | Mode::WUSR;
    replace_at(dir, name, bytes, mode, durability)
}

/// Replaces the file `name` in `dir`. The new file has this mode, less the umask.
pub(crate) fn replace_at(
    dir: impl AsFd,
    name: &OsStr,
    bytes: &[u8],
    mode: Mode,
    durability: Durability,
) -> io::Result<()> {
    let mut disk = RealDisk {
        file: NewFile::create(dir, name, mode)?,
    };
    replace_on(&mut disk, bytes, durability)
}

/// A new file with a temporary name, in the same directory as the file that it will replace. If it is dropped before
/// [`NewFile::put_in_place`], it is removed.
#[derive(Debug)]
pub struct NewFile {
    dir: OwnedFd,
    name: OsString,
    temporary: OsString,
    file: File,
    is_in_place: bool,
}

/// How long a writer waits for another writer of the same file, before it tries again.
const PAUSE: Duration = Duration::from_millis(1);

impl NewFile {
    /// Makes an empty file for `name` in `dir`. Waits while another thread or process makes a new file for the same
    /// name.
    pub(crate) fn create(dir: impl AsFd, name: &OsStr, mode: Mode) -> io::Result<Self> {
        let temporary = temporary(name);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = flags | OFlags::RDWR;
        let dir = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
        loop {
            match rustix::fs::openat(&dir, &temporary, flags, mode) {
                // The writer of a temporary file holds a lock on it. A file without a lock was left by a process that
                // was killed.
                Ok(file) if !take_lock(&file, &dir, &temporary)? => std::thread::sleep(PAUSE),
                Ok(file) => {
                    return Ok(Self {
                        dir,
                        name: name.to_owned(),
                        temporary,
                        file: file.into(),
                        is_in_place: false,
                    });
                }
                Err(Errno::EXIST) => remove_left_over(&dir, &temporary)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The new file, for writing its content.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its final name. An existing file with this name is replaced.
    pub fn put_in_place(mut self) -> io::Result<()> {
        self.rename()
    }

    fn rename(&mut self) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, &self.temporary, &self.dir, &self.name)?;
        self.is_in_place = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_in_place {
            // If this fails, the next writer of the same file removes the temporary file.
            let _removed = rustix::fs::unlinkat(&self.dir, &self.temporary, AtFlags::empty());
        }
    }
}

/// The suffix of temporary names.
const END: &[u8] = b".skyhook-new";

/// Whether this is a temporary name. The file is being written, or was left by a process that was killed.
pub(crate) fn is_in_the_making(name: &OsStr) -> bool {
    name.as_bytes().ends_with(END)
}

/// The temporary name for `name`. A long name is cut off, so two files may have the same temporary name. They are
/// written one after the other.
fn temporary(name: &OsStr) -> OsString {
    const LONGEST_NAME: usize = 255;
    let mut bytes = vec![b'.'];
    bytes.extend_from_slice(name.as_bytes());
    bytes.truncate(LONGEST_NAME - END.len());
    bytes.extend_from_slice(END);
    OsString::from_vec(bytes)
}

/// What came of an attempt to lock a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    Held,
    /// Another holds the lock.
    Busy,
    /// The name is gone, or belongs to another file now: the previous holder of the lock has removed this one.
    Gone,
}

/// Locks an open file or directory that has, or had, this name in `dir`.
pub(crate) fn lock(file: impl AsFd, dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Lock> {
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Lock::Busy),
        Err(errno) => return Err(errno),
    }
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino) => Ok(Lock::Held),
        Ok(_) | Err(Errno::NOENT) => Ok(Lock::Gone),
        Err(errno) => Err(errno),
    }
}

/// Locks a temporary file. Returns false if another writer has locked it, or has removed it as left over.
fn take_lock(file: &OwnedFd, dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    Ok(lock(file, dir, name.as_bytes())? == Lock::Held)
}

/// Removes a temporary file, unless it belongs to this user and its writer holds the lock. A file of another user is
/// removed too. No symlink is followed.
fn remove_left_over(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // The lock is held until the file is removed: a writer that has made the file and not locked it yet would take it
    // otherwise, and lose it.
    let _lock = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => {
            let ours = rustix::process::geteuid().as_raw();
            if rustix::fs::fstat(&file)?.st_uid == ours && !take_lock(&file, dir, name)? {
                std::thread::sleep(PAUSE);
                return Ok(());
            }
            Some(file)
        }
        Err(Errno::NOENT) => return Ok(()),
        // For example a symlink or a socket, which cannot be opened with these flags.
        Err(_) => None,
    };
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes the symlink `name` in `dir`. An existing file or symlink with this name is replaced.
pub(crate) fn replace_with_symlink(dir: impl AsFd, name: &OsStr, target: &OsStr) -> io::Result<()> {
    let temporary = temporary(name);
    let dir = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
    loop {
        match rustix::fs::symlinkat(target, &dir, &temporary) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                remove_left_over(&dir, &temporary)?;
                continue;
            }
            Err(errno) => return Err(errno.into()),
        }
        match rustix::fs::renameat(&dir, &temporary, &dir, name) {
            // Another writer of the same name has removed the temporary symlink as left over. Try again.
            Err(Errno::NOENT) => {}
            Err(errno) => {
                let _removed = rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty());
                return Err(errno.into());
            }
            Ok(()) => return Ok(()),
        }
    }
}

struct RealDisk {
    file: NewFile,
}

impl Disk for RealDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.file.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.file.sync_all()
    }

    fn rename(&mut self) -> io::Result<()> {
        self.file.rename()
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        sync_directory(&self.file.dir)
    }

    fn remove(&mut self) -> io::Result<()> {
        // `NewFile` removes it when it is dropped.
        Ok(())
    }
}

/// Flushes a directory. It is opened again, because the descriptor may be one of `O_PATH`, which cannot be flushed.
pub(crate) fn sync_directory(dir: impl AsFd) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    Ok(rustix::fs::fsync(dir)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::thread::ScopedJoinHandle;

    use super::*;

    #[test]
    fn the_lock_of_a_directory_that_was_replaced_is_of_no_use() {
        let directory = tempfile::tempdir().unwrap();
        let parent = File::open(directory.path()).unwrap();
        let path = directory.path().join("d");
        fs::create_dir(&path).unwrap();
        let (first, second) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        assert_eq!(lock(&first, &parent, b"d"), Ok(Lock::Held));
        assert_eq!(lock(&second, &parent, b"d"), Ok(Lock::Busy));
        fs::remove_dir(&path).unwrap();
        drop(first);
        assert_eq!(lock(&second, &parent, b"d"), Ok(Lock::Gone));
        fs::create_dir(&path).unwrap();
        assert_eq!(lock(&second, &parent, b"d"), Ok(Lock::Gone));
    }

    #[test]
    fn a_temporary_name_is_never_too_long() {
        for (name, want) in [("a", 14), (&"x".repeat(242), 255), (&"x".repeat(255), 255)] {
            assert_eq!(temporary(OsStr::new(name)).len(), want);
        }
    }

    #[test]
    fn what_lies_under_the_temporary_name_is_not_followed_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "kept").unwrap();
        let (file, planted) = (dir.path().join("f"), dir.path().join(".f.skyhook-new"));
        let write = || replace_file(&file, b"new", Durability::PowerCut).unwrap();
        symlink(&precious, &planted).unwrap();
        write();
        fs::write(
            &planted,
            "left by a writer that was killed, and longer than the next",
        )
        .unwrap();
        write();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!planted.exists());
    }

    /// Two packages may write the same file at the same time.
    #[test]
    fn writers_of_one_file_do_not_mix_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        replace_file(&file, b"", Durability::WhileUp).unwrap();
        let write = |byte: u8| {
            let bytes = vec![byte; 20_000];
            (0..300).try_for_each(|_| replace_file(&file, &bytes, Durability::WhileUp))
        };
        std::thread::scope(|scope| {
            let writers = [b'a', b'b', b'c'].map(|byte| scope.spawn(move || write(byte)));
            // The reader ends with the writers, also when one of them fails.
            while !writers.iter().all(ScopedJoinHandle::is_finished) {
                let read = fs::read(&file).unwrap();
                assert!(read.is_empty() || read.len() == 20_000, "{}", read.len());
                assert!(read.windows(2).all(|pair| pair[0] == pair[1]));
            }
            for writer in writers {
                writer.join().unwrap().unwrap();
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
