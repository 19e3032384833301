//! Opens a path that must not lead out of a directory. Kernels before 5.6 have no openat2; for them the path is
//! resolved here, part by part.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// What happens when a path or a symlink leads out of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    /// The directory is used as `/`: absolute symlinks start there, and its `..` is the directory itself.
    IsRoot,
    /// It is an error (EXDEV).
    IsRefused,
}

const MAX_SYMLINKS: u32 = 40;

/// Opens `path` in `dir`. No symlink in the path can lead out of `dir`.
pub(crate) fn open(
    dir: impl AsFd,
    path: &Path,
    flags: OFlags,
    outside: Outside,
) -> rustix::io::Result<OwnedFd> {
    let dir = dir.as_fd();
    let resolve = match outside {
        Outside::IsRoot => ResolveFlags::IN_ROOT,
        Outside::IsRefused => ResolveFlags::BENEATH,
    };
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS) => walk(dir, path.as_os_str().as_bytes(), flags, outside),
        result => result,
    }
}

/// What happens when a part of a path does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is an error (ENOENT), except for the last part.
    Refuse,
    /// A directory with this mode is made, except for the last part.
    Make(Mode),
    /// The rest of the path is kept. Its `..` removes the part before it, as if that were a directory.
    Keep,
}

/// What happens when the last part of a path is a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    Follow,
    Keep,
}

/// Where a path leads to: a name in an open directory.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) dir: OwnedFd,
    /// `None` means the directory itself. With [`Missing::Keep`] the name may have several parts.
    pub(crate) name: Option<Vec<u8>>,
}

/// Does the same as [`open`], for kernels without openat2.
fn walk(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    outside: Outside,
) -> rustix::io::Result<OwnedFd> {
    let last = match flags.contains(OFlags::NOFOLLOW) {
        true => Last::Keep,
        false => Last::Follow,
    };
    let place = place(root, path, outside, Missing::Refuse, last)?;
    match place.name {
        Some(name) => {
            let flags = flags | OFlags::NOFOLLOW;
            rustix::fs::openat(&place.dir, name, flags, Mode::empty())
        }
        None => rustix::fs::openat(&place.dir, ".", flags, Mode::empty()),
    }
}

/// Finds the place in `root` that a path leads to. It opens one directory after the other and resolves symlinks
/// itself. So it stays in `root`, even if another process replaces a directory with a symlink meanwhile.
pub(crate) fn place(
    root: BorrowedFd<'_>,
    path: &[u8],
    outside: Outside,
    missing: Missing,
    last: Last,
) -> rustix::io::Result<Place> {
    if path.starts_with(b"/") && outside == Outside::IsRefused {
        return Err(Errno::XDEV);
    }
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut pending = parts(path);
    let mut links = 0;
    let at_end = |mut above: Vec<OwnedFd>, name| {
        let dir = above.pop().map_or_else(
            || rustix::io::fcntl_dupfd_cloexec(root, 0),
            rustix::io::Result::Ok,
        )?;
        Ok(Place { dir, name })
    };
    while let Some(part) = pending.pop() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                if above.pop().is_none() && outside == Outside::IsRefused {
                    return Err(Errno::XDEV);
                }
                continue;
            }
            _ => {}
        }
        let at = above.last().map_or(root, AsFd::as_fd);
        let is_last = pending.iter().all(Vec::is_empty);
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(at, part.as_slice(), look, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) if is_last => return at_end(above, Some(part)),
            Err(Errno::NOENT) => match missing {
                Missing::Refuse => return Err(Errno::NOENT),
                Missing::Make(mode) => {
                    make(at, &part, mode)?;
                    pending.push(part);
                    continue;
                }
                Missing::Keep => match kept(part, &mut pending) {
                    Some(name) => return at_end(above, Some(name)),
                    None => continue,
                },
            },
            Err(errno) => return Err(errno),
        };
        let stat = rustix::fs::fstat(&found)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink if is_last && last == Last::Keep => return at_end(above, Some(part)),
            FileType::Symlink if is_planted(at, &stat)? => {
                return match is_last {
                    true => at_end(above, Some(part)),
                    false => Err(Errno::ACCESS),
                };
            }
            FileType::Symlink => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                if target.as_bytes().starts_with(b"/") {
                    match outside {
                        Outside::IsRoot => above.clear(),
                        Outside::IsRefused => return Err(Errno::XDEV),
                    }
                }
                pending.extend(parts(target.as_bytes()));
            }
            _ if is_last => return at_end(above, Some(part)),
            FileType::Directory => above.push(found),
            FileType::RegularFile
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => return Err(Errno::NOTDIR),
        }
    }
    at_end(above, None)
}

/// The parts of a path, the last one first.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.rsplit(|&byte| byte == b'/')
        .map(<[u8]>::to_vec)
        .collect()
}

/// The rest of a path from `part` on, which does not exist. `None` when `..` leads back to the directory that `part`
/// would be in: then `pending` is what is left of the path from there.
fn kept(part: Vec<u8>, pending: &mut Vec<Vec<u8>>) -> Option<Vec<u8>> {
    let mut rest = vec![part];
    while let Some(part) = pending.pop() {
        match part.as_slice() {
            b"" | b"." => {}
            b".." => {
                rest.pop();
                if rest.is_empty() {
                    return None;
                }
            }
            _ => rest.push(part),
        }
    }
    Some(rest.join(&b'/'))
}

/// Makes a directory, unless it exists.
pub(crate) fn make(at: BorrowedFd<'_>, name: &[u8], mode: Mode) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(at, name, mode) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Whether another user may have put this symlink into a directory that everybody can write to, such as `/tmp`. This
/// is the kernel's rule for `fs.protected_symlinks`.
fn is_planted(directory: BorrowedFd<'_>, link: &Stat) -> rustix::io::Result<bool> {
    let directory = rustix::fs::fstat(directory)?;
    let sticky_and_open = Mode::SVTX | Mode::WOTH;
    Ok(
        Mode::from_raw_mode(directory.st_mode).contains(sticky_and_open)
            && link.st_uid != directory.st_uid
            && link.st_uid != rustix::process::geteuid().as_raw(),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    /// The device and inode of the opened file, or the error.
    fn which(result: rustix::io::Result<OwnedFd>) -> Result<(u64, u64), Errno> {
        let stat = rustix::fs::fstat(result?)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    #[test]
    fn by_hand_it_is_as_the_kernel_does_it() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("a/b")).unwrap();
        std::fs::write(inside.join("a/b/file"), "").unwrap();
        std::fs::write(dir.path().join("secret"), "").unwrap();
        let links = [
            ("abs", "/a/b"),
            ("rel", "a/b"),
            ("up", ".."),
            ("a/up", "../.."),
            ("out", "../secret"),
            ("loop", "loop"),
            ("chain", "rel/../b/file"),
            ("etc", "/etc/passwd"),
            ("a/dots", "../../../../a"),
            ("gone", "nowhere"),
            ("deep", "a/up/a/b"),
        ];
        for (link, target) in links {
            symlink(target, inside.join(link)).unwrap();
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &inside, flags, Mode::empty()).unwrap();
        let paths = [
            ".",
            "",
            "a",
            "a/",
            "a/b",
            "a/b/file",
            "a/b/file/",
            "a/b/file/x",
            "/a/b",
            "abs",
            "abs/file",
            "rel/file",
            "up",
            "up/secret",
            "up/a",
            "a/up",
            "a/up/a",
            "out",
            "loop",
            "loop/x",
            "chain",
            "etc",
            "a/dots/b",
            "gone",
            "no/such",
            "deep/file",
            "..",
            "../secret",
            "a/../..",
            "a/../a/./b//file",
        ];
        for outside in [Outside::IsRoot, Outside::IsRefused] {
            for path in paths.iter().filter(|path| !path.is_empty()) {
                for flags in [
                    OFlags::RDONLY,
                    OFlags::PATH,
                    OFlags::DIRECTORY,
                    OFlags::PATH | OFlags::NOFOLLOW,
                ] {
                    let flags = flags | OFlags::CLOEXEC;
                    let by_kernel = which(open(&root, Path::new(path), flags, outside));
                    let by_hand = which(walk(root.as_fd(), path.as_bytes(), flags, outside));
                    // Only the kernel returns an error for a slash after the name of a file.
                    if *path != "a/b/file/" {
                        assert_eq!(by_hand, by_kernel, "{path} {outside:?} {flags:?}");
                    }
                }
            }
        }
    }
}
