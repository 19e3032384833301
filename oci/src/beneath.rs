//! Opening a path that must not lead out of a directory: openat2, and the same by hand for kernels
//! before 5.6.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
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
    dir: &OwnedFd,
    path: &Path,
    flags: OFlags,
    outside: Outside,
) -> rustix::io::Result<OwnedFd> {
    let resolve = match outside {
        Outside::IsRoot => ResolveFlags::IN_ROOT,
        Outside::IsRefused => ResolveFlags::BENEATH,
    };
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS) => walk(dir.as_fd(), path.as_os_str().as_bytes(), flags, outside),
        result => result,
    }
}

/// Goes component by component from open directory to open directory, and reads links itself: what
/// is swapped for a link meanwhile is not followed.
fn walk(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    outside: Outside,
) -> rustix::io::Result<OwnedFd> {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        path.rsplit(|&byte| byte == b'/')
            .map(<[u8]>::to_vec)
            .collect()
    };
    if path.starts_with(b"/") && outside == Outside::IsRefused {
        return Err(Errno::XDEV);
    }
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut pending = parts(path);
    let mut links = 0;
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
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(at, part.as_slice(), look, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind == FileType::Symlink {
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
        } else if pending.iter().all(Vec::is_empty) && kind != FileType::Directory {
            return rustix::fs::openat(at, part, flags | OFlags::NOFOLLOW, Mode::empty());
        } else if kind == FileType::Directory {
            above.push(found);
        } else {
            return Err(Errno::NOTDIR);
        }
    }
    let at = above.last().map_or(root, AsFd::as_fd);
    rustix::fs::openat(at, ".", flags, Mode::empty())
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
                for flags in [OFlags::RDONLY, OFlags::PATH, OFlags::DIRECTORY] {
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
