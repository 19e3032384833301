//! Reads `config.json` from an unpacked package. No file outside the package's directory is opened.

use std::io::{self, Read};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Report, StepFile, check};
use crate::root::Root;

const MAX_BYTES: u64 = 4 << 20;

/// Reads and checks the `config.json` in the directory of a package. Only a failure to read it is an `Err`: other
/// problems are in the report.
pub fn load(package: &Root) -> io::Result<Report> {
    let mut text = Vec::new();
    let file = package.open_file_beneath("config.json")?;
    if file.take(MAX_BYTES + 1).read_to_end(&mut text)? as u64 > MAX_BYTES {
        let message = format!("config.json has more than {MAX_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(check(&text, &|path| step_file(package, path)))
}

fn step_file(package: &Root, path: &str) -> StepFile {
    match package.open_beneath(&Path::new("skyhook_dir").join(path), OFlags::PATH) {
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
