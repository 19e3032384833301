//! The archive: a compressed tar file, which only its owner can read.
#![expect(
    clippy::disallowed_methods,
    reason = "writes the file that the user asks for"
)]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Writes files into an archive at `path`, which must not exist. Returns its size in bytes.
pub(super) fn write(path: &Path, files: &BTreeMap<String, String>, mtime: u64) -> Result<u64> {
    let shown = path.display();
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("creating {shown}"))?;
    let written = pack(&file, files, mtime).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half an archive is of no use.
        let _removed = std::fs::remove_file(path);
        return Err(error).with_context(|| format!("writing {shown}"));
    }
    Ok(file.metadata()?.len())
}

fn pack(out: impl Write, files: &BTreeMap<String, String>, mtime: u64) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(mtime);
        archive.append_data(&mut header, name, text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar.gz");
        // The name of a node may be that long.
        let long = format!("logs/{}.log", "n".repeat(253));
        let files: BTreeMap<String, String> = [("README.txt", "hello\n"), (&long, "")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let bytes = write(&path, &files, 7).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.len(), metadata.permissions().mode() & 0o777),
            (bytes, 0o600)
        );
        let unzipped = flate2::read::GzDecoder::new(fs::File::open(&path).unwrap());
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(unzipped).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(name, text);
        }
        assert_eq!(found, files);
        let again = write(&path, &files, 7).unwrap_err();
        assert!(format!("{again:#}").contains("File exists"), "{again:#}");
        assert_eq!(
            fs::metadata(&path).unwrap().len(),
            bytes,
            "the old one is left alone"
        );
    }
}
