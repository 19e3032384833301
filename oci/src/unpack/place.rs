//! Writes a merged tree to disk. No path is resolved here: each step goes from the open descriptor of a directory to
//! one name in it, and never through a symlink. If another process replaces a directory with a symlink meanwhile, the
//! unpack fails, and nothing is written outside the target.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::entry::FileId;
use super::tree::{Dir, Node};
use crate::remove::{RemoveError, remove_at};

/// The files in the scratch directory: each layer has a directory of its own there.
pub(super) struct Files<'a> {
    pub(super) scratch: BorrowedFd<'a>,
    pub(super) layers: &'a [OwnedFd],
    /// For each file with several names: how many names it has.
    pub(super) links: BTreeMap<FileId, u32>,
}

impl<'a> Files<'a> {
    pub(super) fn new(scratch: BorrowedFd<'a>, layers: &'a [OwnedFd], root: &Dir) -> Self {
        let mut counts = BTreeMap::new();
        count(root, &mut counts);
        counts.retain(|_, count| *count > 1);
        Self {
            scratch,
            layers,
            links: counts,
        }
    }
}

fn count(dir: &Dir, counts: &mut BTreeMap<FileId, u32>) {
    for node in dir.children.values() {
        match node {
            Node::Dir(dir) => count(dir, counts),
            Node::File(id) => *counts.entry(*id).or_default() += 1,
            Node::Symlink { .. } => {}
        }
    }
}

/// Opens the directory `name` in `dir`. A symlink with this name is not followed.
pub(super) fn open_dir(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Fills `at` with the children of the directory, and then sets its mode and time. With `over`, each child replaces
/// an existing entry of the same name, and all other existing entries stay.
pub(super) fn fill(
    files: &Files<'_>,
    at: &OwnedFd,
    dir: &Dir,
    over: bool,
) -> Result<(), (Vec<u8>, io::Error)> {
    for (name, node) in &dir.children {
        let failed = |error: io::Error| (name.clone(), error);
        match node {
            Node::Dir(child) => {
                let (fd, existed) = make_dir(at, name, over).map_err(|e| failed(e.into()))?;
                fill(files, &fd, child, over && existed)
                    .map_err(|(below, error)| ([name.as_slice(), &below].join(&b'/'), error))?;
            }
            Node::File(id) => file(files, at, name, *id, over).map_err(failed)?,
            Node::Symlink { target, meta } => {
                replacing(files, at, name, over, |dir, name| {
                    rustix::fs::symlinkat(target.as_slice(), dir, name)
                })
                .and_then(|()| {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(at, name.as_slice(), &meta.timestamps(), flags)?;
                    Ok(())
                })
                .map_err(failed)?;
            }
        }
    }
    rustix::fs::fchmod(at, Mode::from_raw_mode(dir.meta.mode))
        .and_then(|()| rustix::fs::futimens(at, &dir.meta.timestamps()))
        .map_err(|errno| (Vec::new(), errno.into()))
}

/// Opens the directory, and makes it when it is missing. Also returns whether it existed.
fn make_dir(at: &OwnedFd, name: &[u8], over: bool) -> rustix::io::Result<(OwnedFd, bool)> {
    let make = || rustix::fs::mkdirat(at, name, Mode::RWXU);
    match make() {
        Ok(()) => Ok((open_dir(at, name)?, false)),
        Err(Errno::EXIST) if over => match open_dir(at, name) {
            Ok(fd) => Ok((fd, true)),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::unlinkat(at, name, AtFlags::empty())?;
                make()?;
                Ok((open_dir(at, name)?, false))
            }
            Err(errno) => Err(errno),
        },
        Err(errno) => Err(errno),
    }
}

fn file(
    files: &Files<'_>,
    at: &OwnedFd,
    name: &[u8],
    (layer, index): FileId,
    over: bool,
) -> io::Result<()> {
    let from = &files.layers[layer as usize];
    let index_name = index.to_string();
    if files.links.contains_key(&(layer, index)) {
        return replacing(files, at, name, over, |dir, name| {
            rustix::fs::linkat(from, index_name.as_str(), dir, name, AtFlags::empty())
        });
    }
    match rename(from, index_name.as_bytes(), at, name, over) {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) if over => {
            remove_at(at, name).map_err(RemoveError::into_io)?;
            rename(from, index_name.as_bytes(), at, name, false)?;
        }
        result => result?,
    }
    Ok(())
}

/// Renames an entry. Without `over` it fails if the new name exists.
pub(super) fn rename(
    from: impl AsFd,
    old: &[u8],
    to: impl AsFd,
    new: &[u8],
    over: bool,
) -> rustix::io::Result<()> {
    if over {
        return rustix::fs::renameat(from, old, to, new);
    }
    match rustix::fs::renameat_with(&from, old, &to, new, RenameFlags::NOREPLACE) {
        // The kernel or the file system does not support NOREPLACE.
        Err(Errno::INVAL | Errno::NOSYS) => rename_to_new(from, old, to, new),
        result => result,
    }
}

/// Renames an entry without NOREPLACE, and fails if the new name exists. For a directory, nothing can happen between the
/// check and the rename: an empty directory, which only this process can have made, is replaced.
fn rename_to_new(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) -> rustix::io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statat(&from, old, flags)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        rustix::fs::mkdirat(&to, new, Mode::RWXU)?;
        return rustix::fs::renameat(from, old, &to, new).inspect_err(|_| {
            // It is empty, or another process has filled it: then it stays.
            let _removed = rustix::fs::unlinkat(&to, new, AtFlags::REMOVEDIR);
        });
    }
    match rustix::fs::statat(&to, new, flags) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => rustix::fs::renameat(from, old, to, new),
        Err(errno) => Err(errno),
    }
}

/// Makes `name` in `at`. If it exists and `over` is set, the new entry is made in the scratch directory and then
/// replaces the existing one in one rename.
fn replacing(
    files: &Files<'_>,
    at: &OwnedFd,
    name: &[u8],
    over: bool,
    make: impl Fn(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<()>,
) -> io::Result<()> {
    const NEW: &[u8] = b"new";
    match make(at.as_fd(), name) {
        Err(Errno::EXIST) if over => {}
        result => return Ok(result?),
    }
    make(files.scratch, NEW)?;
    match rustix::fs::renameat(files.scratch, NEW, at, name) {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
            remove_at(at, name).map_err(RemoveError::into_io)?;
            rustix::fs::renameat(files.scratch, NEW, at, name)?;
        }
        result => result?,
    }
    // If both names are hard links of the same file, the rename does nothing and both names stay.
    match rustix::fs::unlinkat(files.scratch, NEW, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;

    use super::*;

    #[test]
    fn a_file_system_without_noreplace_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for (old, new) in [
            ("file", "file2"),
            ("file", "empty"),
            ("dir", "file2"),
            ("dir", "empty"),
            ("dir", "full"),
            ("file", "gone"),
            ("dir", "gone2"),
        ] {
            for name in ["dir", "empty", "full"] {
                fs::create_dir_all(path.join(name)).unwrap();
            }
            for name in ["file", "file2", "dir/content", "full/content"] {
                fs::write(path.join(name), name).unwrap();
            }
            let at =
                rustix::fs::openat(rustix::fs::CWD, path, OFlags::PATH, Mode::empty()).unwrap();
            let renamed = rename_to_new(&at, old.as_bytes(), &at, new.as_bytes());
            let want = match new {
                "gone" | "gone2" => Ok(()),
                _ => Err(Errno::EXIST),
            };
            assert_eq!(renamed, want, "{old} to {new}");
            assert_eq!(path.join(old).exists(), want.is_err(), "{old} to {new}");
        }
        assert_eq!(fs::read_to_string(path.join("gone")).unwrap(), "file");
        assert_eq!(
            fs::read_to_string(path.join("gone2/content")).unwrap(),
            "dir/content"
        );
        assert_eq!(fs::read_to_string(path.join("file2")).unwrap(), "file2");
    }
}
