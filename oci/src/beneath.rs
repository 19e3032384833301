//! Opening a path that must not lead out of a directory: openat2, and the same by hand for kernels
//! before 5.6.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// What a step out of the directory means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    /// The directory is `/`: absolute links start there, and `..` of it is itself.
    IsRoot,
    /// It is an error (EXDEV).
    IsRefused,
}

const MAX_SYMLINKS: u32 = 40;

/// Opens `path` in `dir`; no symlink on the way leads out of it.
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

/// What happens on the way to a path when a part of it does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is an error (ENOENT), except for the last part.
    Refuse,
    /// A directory with this mode is made, except for the last part.
    Make(Mode),
    /// The rest of the path is taken as it stands.
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
    /// Without a name it is the directory itself. With [`Missing::Keep`] it may be more than one part.
    pub(crate) name: Option<Vec<u8>>,
}

/// As [`open`], for kernels without openat2.
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

/// Finds the place that a path leads to, in `root`. It goes from open directory to open directory and reads links itself:
/// what is swapped for a link meanwhile is not followed.
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
                Missing::Keep => {
                    let mut rest = vec![part];
                    rest.extend(pending.into_iter().rev().filter(|part| !part.is_empty()));
                    return at_end(above, Some(rest.join(&b'/')));
                }
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

/// Makes a directory, unless it is there.
pub(crate) fn make(at: BorrowedFd<'_>, name: &[u8], mode: Mode) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(at, name, mode) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Whether anybody could have put this symlink there, as in `/tmp`: the kernel's rule for `fs.protected_symlinks`.
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

    /// Which file it is, or why not.
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
                    // A slash after a file is a mistake that only the kernel makes a point of.
                    if *path != "a/b/file/" {
                        assert_eq!(by_hand, by_kernel, "{path} {outside:?} {flags:?}");
                    }
                }
            }
        }
    }
}
