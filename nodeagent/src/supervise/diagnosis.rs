//! Explains why a program could not be started. The kernel has the same error number for several causes.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use skyhook_oci::Root;

use super::Spec;

/// What the user can do when programs on a file system cannot be executed.
const ELSEWHERE: &str =
    "have packages copied elsewhere: the chart's value copyDirRoot, or --copy-dir-root";

/// A message that says why the step could not be started.
pub(super) fn explain(error: &io::Error, spec: &Spec) -> String {
    let program = &spec.program;
    let why = Root::open(&spec.root)
        .ok()
        .and_then(|files| cause(error, spec, &files));
    match why {
        Some(why) => format!("{program} cannot be started: {why}"),
        None => format!("{program} cannot be started: {error}"),
    }
}

fn cause(error: &io::Error, spec: &Spec, files: &Root) -> Option<String> {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error)?;
    let program = Path::new(&spec.program);
    if errno == Errno::TOOBIG {
        return Some("its arguments and its environment are too long together".to_owned());
    }
    if !files.exists(&spec.working_directory) {
        let directory = &spec.working_directory;
        return Some(format!(
            "its working directory {directory} is not on this host"
        ));
    }
    if !files.exists(program) {
        return Some("it is not on this host".to_owned());
    }
    let interpreter = interpreter(files, program);
    match (errno, &interpreter) {
        (Errno::NOENT, Some(name)) => missing(files, name),
        (Errno::NOENT, None) => Some(
            "the loader that it is linked for is not on this host: it is built for another system"
                .to_owned(),
        ),
        (Errno::ACCESS, _) => {
            let named = interpreter.as_deref().map(OsStr::from_bytes).map(Path::new);
            [Some(program), named]
                .into_iter()
                .flatten()
                .find_map(|path| not_executable(files, path))
        }
        _ => None,
    }
}

/// The interpreter in the first line of a script (`#!`). `None` if the file is not a script.
fn interpreter(files: &Root, program: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    let file = files.open_file(program).ok()?;
    file.take(256).read_to_end(&mut start).ok()?;
    let line = start
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = line.trim_ascii_start();
    // For the kernel, a carriage return is not white space, but a part of the name.
    let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t'));
    Some(line[..end.unwrap_or(line.len())].to_vec())
}

fn missing(files: &Root, interpreter: &[u8]) -> Option<String> {
    if let Some(name) = interpreter.strip_suffix(b"\r") {
        return Some(format!(
            "its lines end in CR LF, as on Windows, so the host looks for an interpreter whose name ends in a carriage \
             return ({}\\r): save it with line ends of LF",
            name.escape_ascii()
        ));
    }
    let name = Path::new(OsStr::from_bytes(interpreter));
    (!files.exists(name)).then(|| {
        format!(
            "{}, its interpreter, is not on this host: install it, or name another one in the first line",
            name.display()
        )
    })
}

fn not_executable(files: &Root, path: &Path) -> Option<String> {
    let file = files.open_file(path).ok()?;
    let flags = rustix::fs::fstatvfs(&file).ok()?.f_flag;
    if flags.contains(StatVfsMountFlags::NOEXEC) {
        let mount = mount_point(files, path)?;
        return Some(format!(
            "{} is on the file system at {}, which is mounted noexec: {ELSEWHERE}",
            path.display(),
            mount.display()
        ));
    }
    let mode = file.metadata().ok()?.permissions().mode();
    (mode & 0o111 == 0).then(|| format!("{} may not be executed", path.display()))
}

/// Mount point of the file system that contains `path`: a path in the host's file system.
fn mount_point(files: &Root, path: &Path) -> Option<PathBuf> {
    let located = files.locate(path).ok()?;
    let inside = located.strip_prefix(files.path()).unwrap_or(&located);
    let path = Path::new("/").join(inside);
    let device = |path: &Path| files.metadata(path).ok().map(|found| found.dev());
    let own = device(&path)?;
    let on_it = path
        .ancestors()
        .take_while(|above| device(above) == Some(own));
    on_it.last().map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;

    use super::*;

    #[test]
    fn causes_of_no_such_file() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("work")).unwrap();
        let none = "/work/s cannot be started: No such file or directory (os error 2)";
        for (text, working_directory, want) in [
            (
                None,
                "/work",
                "/work/s cannot be started: it is not on this host",
            ),
            (
                Some("#!/bin/sh\n"),
                "/gone",
                "/work/s cannot be started: its working directory /gone is not on this host",
            ),
            (
                Some("#!/bin/bash\n"),
                "/work",
                "/work/s cannot be started: /bin/bash, its interpreter, is not on this host: install it, or name another one in the first line",
            ),
            (
                Some("#! /usr/bin/python3 -u\n"),
                "/work",
                "/work/s cannot be started: /usr/bin/python3, its interpreter, is not on this host: install it, or name another one in the first line",
            ),
            (
                Some("#!/bin/bash\r\necho\r\n"),
                "/work",
                "/work/s cannot be started: its lines end in CR LF, as on Windows, so the host looks for an interpreter whose name ends in a carriage return (/bin/bash\\r): save it with line ends of LF",
            ),
            (Some("#!/work/s\n"), "/work", none),
            (
                Some("\x7fELF"),
                "/work",
                "/work/s cannot be started: the loader that it is linked for is not on this host: it is built for another system",
            ),
        ] {
            let script = root.path().join("work/s");
            match text {
                Some(text) => fs::write(script, text).unwrap(),
                None => assert!(!script.exists()),
            }
            let spec = Spec {
                root: root.path().to_owned(),
                program: "/work/s".into(),
                working_directory: working_directory.into(),
                ..Spec::default()
            };
            let error = io::Error::from_raw_os_error(2);
            assert_eq!(explain(&error, &spec), want);
        }
        let spec = Spec {
            root: root.path().to_owned(),
            program: "/work/s".into(),
            working_directory: "/work".into(),
            ..Spec::default()
        };
        for (errno, want) in [
            (13, "/work/s cannot be started: /work/s may not be executed"),
            (
                7,
                "/work/s cannot be started: its arguments and its environment are too long together",
            ),
            (
                12,
                "/work/s cannot be started: Cannot allocate memory (os error 12)",
            ),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(explain(&error, &spec), want);
        }
    }
}
