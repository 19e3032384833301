//! Writes a file of the host that may exist already. Content, mode and modification time come from the new file. Owner,
//! group, access control list, SELinux label and other extended attributes of the existing file stay.

use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use rustix::fs::{FileType, Stat, XattrFlags};
use rustix::io::Errno;
use skyhook_oci::{Entry, kind_of_file};

/// Extended attributes that are valid only for the old content, so the new file does not get them. The kernel itself
/// removes the first one when a file is written.
const OF_CONTENT: [&[u8]; 3] = [b"security.capability", b"security.ima", b"security.evm"];
/// The kernel's limit in bytes for the list of attribute names, and for one attribute value.
const LONGEST: usize = 64 << 10;

/// What came of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Laid {
    /// The host has the file now, or had it before.
    Done,
    /// The file is `/dev/null` and was not changed. A masked systemd unit is a symlink to `/dev/null`.
    Masked,
}

/// Writes `source` to a file of the host, with its mode and modification time.
///
/// A new file replaces the old one atomically, so no reader sees a partial file, and the file of a running program can
/// be replaced. Other hard links to the old file keep the old content. On an OSTree host, for example, files are hard
/// links into a repository, and writing to such a file would damage the repository. The old file is written in place if
/// it cannot be replaced: because something is mounted on it, or because a new file cannot get its attributes.
pub(super) fn write(target: &Entry, source: &mut File) -> io::Result<Laid> {
    let metadata = source.metadata()?;
    let Some(old) = target.stat()? else {
        replace(target, source, None)?;
        return Ok(Laid::Done);
    };
    match FileType::from_raw_mode(old.st_mode) {
        FileType::RegularFile => {}
        // `Root` follows trusted symlinks. A symlink that is left here may come from any user: replace it.
        FileType::Symlink => {
            replace(target, source, None)?;
            return Ok(Laid::Done);
        }
        FileType::CharacterDevice if is_null(&old) => return Ok(Laid::Masked),
        kind @ (FileType::Directory
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown) => {
            let message = format!(
                "it is a file in root_dir and {} on the host: remove one of them",
                kind_of_file(kind)
            );
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
    }
    let mut existing = target.open_file()?;
    if is_same(source, &mut existing)? {
        if existing.metadata()?.modified()? != metadata.modified()? {
            existing.set_times(FileTimes::new().set_modified(metadata.modified()?))?;
        }
        return Ok(Laid::Done);
    }
    match replace(target, source, Some(&existing)) {
        Ok(()) => {}
        Err(error) if is_to_write_in_place(&error) => write_in_place(target, source)?,
        Err(error) => return Err(error),
    }
    Ok(Laid::Done)
}

fn is_null(stat: &Stat) -> bool {
    rustix::fs::major(stat.st_rdev) == 1 && rustix::fs::minor(stat.st_rdev) == 3
}

/// True when content and mode are the same. Rewinds `source`.
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
        // Set the attributes before the content is written: not all users may be allowed to read the content.
        give_attributes(existing, new.file()).map_err(cannot_be_given)?;
    }
    source.rewind()?;
    io::copy(source, new.file())?;
    finish(new.file(), &metadata)?;
    new.put_in_place()
}

/// Sets mode and modification time. Must be called after `give_attributes`: a change of owner clears the set-ID bits.
fn finish(file: &File, like: &std::fs::Metadata) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(like.mode() & 0o7777))?;
    file.set_times(FileTimes::new().set_modified(like.modified()?))
}

/// Copies owner, group and extended attributes from one file to another.
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

/// True when the file has this attribute with this value already. The kernel sets some attributes on every new file and
/// does not allow anybody to set them.
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

/// Marks the error that a new file cannot get the owner or the attributes of the old one. Then the old file is written
/// in place.
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

/// Overwrites the content of the existing file, and flushes it. The flush of the directory's file system does not cover
/// the file: something may be mounted on the file, from another file system.
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
