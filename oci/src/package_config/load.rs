//! Reads `config.json` from an unpacked package. No file outside the package's directory is opened.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Report, StepFile, check};
use crate::beneath::{self, Outside};
use crate::root::Root;

const MAX_BYTES: u64 = 4 << 20;

/// Reads and checks the `config.json` in the directory of a package. Only a failure to read it is an `Err`: other
/// problems are in the report.
pub fn load(package: &Root) -> io::Result<Report> {
    let dir = package.as_fd();
    let mut text = Vec::new();
    let file = File::from(open(dir, Path::new("config.json"), OFlags::RDONLY)?);
    if file.take(MAX_BYTES + 1).read_to_end(&mut text)? as u64 > MAX_BYTES {
        let message = format!("config.json has more than {MAX_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(check(&text, &|path| step_file(dir, path)))
}

fn open(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    beneath::open(dir, path, flags, Outside::IsRefused)
}

fn step_file(dir: BorrowedFd<'_>, path: &str) -> StepFile {
    match open(dir, &Path::new("skyhook_dir").join(path), OFlags::PATH) {
        Ok(fd) => match rustix::fs::fstat(&fd) {
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() => {
                StepFile::Present
            }
            _ => StepFile::Missing,
        },
        Err(Errno::XDEV) => StepFile::Outside,
        Err(_) => StepFile::Missing,
    }
}
