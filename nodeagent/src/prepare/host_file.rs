//! Writing a file of the host that may be there already: the content, the mode and the time are the new file's; owner,
//! group, access control list, SELinux label and other attributes of the file that was there stay.

use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use rustix::fs::{FileType, Stat, XattrFlags};
use rustix::io::Errno;
use skyhook_oci::Entry;

/// Attributes that tell of a file's old content, and say nothing true of the new one. The kernel drops the first itself
/// when a file is written.
const OF_CONTENT: [&[u8]; 3] = [b"security.capability", b"security.ima", b"security.evm"];
/// Bytes that the kernel allows for the names or for one value.
const LONGEST: usize = 64 << 10;

/// What was done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It was as it should be.
    Unchanged,
    Changed,
    /// It is `/dev/null`, to which a unit that is masked is a symlink. It stays what it is.
    Nothing,
}

/// Writes `source` to a file of the host, with its mode and time.
///
/// A new file takes the old one's place, so that nobody sees half of it and a program that runs can be replaced. Other
/// hard links of the old file keep the old content: on hosts whose files are hard links into a repository, as with OSTree,
/// writing to them would damage the repository. A file that cannot be replaced, because something is mounted on it or its
/// attributes cannot be given to another one, is written in place.
pub(super) fn write(target: &Entry, source: &mut File) -> io::Result<Written> {
    let metadata = source.metadata()?;
    let Some(old) = target.stat()? else {
        replace(target, source, None)?;
        return Ok(Written::Changed);
    };
    match FileType::from_raw_mode(old.st_mode) {
        FileType::RegularFile => {}
        // What anybody could have put there is not followed: see `Root`.
        FileType::Symlink => {
            replace(target, source, None)?;
            return Ok(Written::Changed);
        }
        FileType::CharacterDevice if is_null(&old) => return Ok(Written::Nothing),
        kind @ (FileType::Directory
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown) => {
            let message = format!(
                "it is a file in root_dir and {} on the host: remove one of them",
                name(kind)
            );
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
    }
    let mut existing = target.open_file()?;
    if is_same(source, &mut existing)? {
        if existing.metadata()?.modified()? != metadata.modified()? {
            existing.set_times(FileTimes::new().set_modified(metadata.modified()?))?;
        }
        return Ok(Written::Unchanged);
    }
    match replace(target, source, Some(&existing)) {
        Ok(()) => {}
        Err(error) if is_to_write_in_place(&error) => write_in_place(target, source)?,
        Err(error) => return Err(error),
    }
    Ok(Written::Changed)
}

/// The kind of a file, with its article.
pub(super) fn name(kind: FileType) -> &'static str {
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

fn is_null(stat: &Stat) -> bool {
    rustix::fs::major(stat.st_rdev) == 1 && rustix::fs::minor(stat.st_rdev) == 3
}

/// Whether content and mode are the same. Both are at their beginning afterwards.
fn is_same(source: &mut File, existing: &mut File) -> io::Result<bool> {
    let (new, old) = (source.metadata()?, existing.metadata()?);
    if new.len() != old.len() || new.mode() & 0o7777 != old.mode() & 0o7777 {
        return Ok(false);
    }
    let same = have_same_bytes(source, existing)?;
    source.rewind()?;
    Ok(same)
}

fn have_same_bytes(one: &mut File, other: &mut File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; LONGEST], vec![0; LONGEST]);
    loop {
        let n = one.read(&mut left)?;
        if n == 0 {
            return Ok(other.read(&mut right[..1])? == 0);
        }
        match other.read_exact(&mut right[..n]) {
            Ok(()) if left[..n] == right[..n] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

fn replace(target: &Entry, source: &mut File, existing: Option<&File>) -> io::Result<()> {
    let metadata = source.metadata()?;
    let mut new = target.new_file()?;
    if let Some(existing) = existing {
        // Before the content: it may not be readable for all.
        give_attributes(existing, new.file()).map_err(cannot_be_given)?;
    }
    source.rewind()?;
    io::copy(source, new.file())?;
    finish(new.file(), &metadata)?;
    new.put_in_place()
}

/// Mode and time of the file that is laid. The mode comes last: a change of owner takes bits away.
fn finish(file: &File, like: &std::fs::Metadata) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(like.mode() & 0o7777))?;
    file.set_times(FileTimes::new().set_modified(like.modified()?))
}

/// Gives a new file the owner and the attributes of another.
fn give_attributes(from: &File, to: &File) -> io::Result<()> {
    let metadata = from.metadata()?;
    std::os::unix::fs::fchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    let names = match attribute_names(from) {
        Err(Errno::NOTSUP) => return Ok(()),
        names => names?,
    };
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if OF_CONTENT.contains(&name) {
            continue;
        }
        let mut value = vec![0; LONGEST];
        let length = rustix::fs::fgetxattr(from, name, value.as_mut_slice())?;
        if has_value(to, name, &value[..length]) {
            continue;
        }
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

/// Whether the attribute is as it should be: some that every file gets cannot be set.
fn has_value(file: &File, name: &[u8], want: &[u8]) -> bool {
    let mut value = vec![0; LONGEST];
    let read = rustix::fs::fgetxattr(file, name, value.as_mut_slice());
    read.is_ok_and(|length| value[..length] == *want)
}

fn attribute_names(file: impl AsFd) -> rustix::io::Result<Vec<u8>> {
    let mut names = vec![0; LONGEST];
    let length = rustix::fs::flistxattr(file, names.as_mut_slice())?;
    names.truncate(length);
    Ok(names)
}

/// Marks the one failure after which the old file itself can still be written.
#[derive(Debug, thiserror::Error)]
#[error("the owner and the attributes of the file cannot be given to a new one")]
struct NotGiven(#[source] io::Error);

fn cannot_be_given(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), NotGiven(error))
}

fn is_to_write_in_place(error: &io::Error) -> bool {
    // EBUSY: something is mounted on the file.
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
        || error.get_ref().is_some_and(|inner| inner.is::<NotGiven>())
}

/// Writes the content over the old one. Flushed here: what is mounted may be of another file system than its directory.
fn write_in_place(target: &Entry, source: &mut File) -> io::Result<()> {
    let metadata = source.metadata()?;
    let mut file = target.open_to_write()?;
    source.rewind()?;
    let length = io::copy(source, &mut file)?;
    file.flush()?;
    file.set_len(length)?;
    finish(&file, &metadata)?;
    file.sync_all()
}
