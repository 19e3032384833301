//! What is in a store, for somebody who only looks: no lock is taken, nothing is made, checked or removed. Another
//! process may change the store meanwhile.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that looks at the files of a store"
)]

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::files::{failed, list, read_record};
use super::pins::PinRecord;
use super::{RefRecord, StoreError};
use crate::digest::{Algorithm, Digest};

/// What is in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Contents {
    /// The images, that of the last use last.
    pub images: Vec<ImageContents>,
    /// Bytes of all blobs, without those that were downloaded in part.
    pub blob_bytes: u64,
    /// Bytes of the blobs that were downloaded in part.
    pub partial_bytes: u64,
}

/// An image of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageContents {
    pub manifest: Digest,
    /// What it was pulled as.
    pub references: Vec<String>,
    /// Who needs it.
    pub pinned_by: Vec<String>,
    /// Bytes of its configuration and its layers, as its manifest says; `None` when that cannot be read.
    pub bytes: Option<u64>,
    /// When it was used last.
    pub used: Option<Timestamp>,
}

/// The sizes in a manifest.
#[derive(Deserialize)]
struct Sizes {
    config: Size,
    layers: Vec<Size>,
}

#[derive(Deserialize)]
struct Size {
    size: u64,
}

impl Contents {
    /// Looks into the store in `dir`. A store that was never used is empty.
    pub fn of(dir: &Path) -> Result<Self, StoreError> {
        let files = |part: &str| match list(&dir.join(part)) {
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => other,
        };
        let pins: Vec<PinRecord> = files("pins")?
            .iter()
            .filter_map(|p| read_record(p))
            .collect();
        let refs: Vec<RefRecord> = files("refs")?
            .iter()
            .filter_map(|p| read_record(p))
            .collect();
        let mut images = Vec::new();
        for path in files("images")? {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(manifest) = name.and_then(Digest::from_hex) else {
                continue;
            };
            let mut references: Vec<String> = refs
                .iter()
                .filter(|record| record.manifest == manifest)
                .map(|record| record.reference.clone())
                .collect();
            references.sort();
            let mut pinned_by: Vec<String> = pins
                .iter()
                .filter(|pin| pin.manifest == manifest)
                .map(|pin| pin.owner.clone())
                .collect();
            pinned_by.sort();
            let used = fs::metadata(&path).and_then(|metadata| metadata.modified());
            images.push(ImageContents {
                bytes: size_of(dir, &manifest),
                used: used.ok().and_then(|used| Timestamp::try_from(used).ok()),
                manifest,
                references,
                pinned_by,
            });
        }
        images.sort_by_key(|image| (image.used, image.manifest));
        let mut blob_bytes = 0;
        for algorithm in Algorithm::ALL {
            blob_bytes += bytes_of(&files(&format!("blobs/{}", algorithm.name()))?)?;
        }
        Ok(Self {
            images,
            blob_bytes,
            partial_bytes: bytes_of(&files("partial")?)?,
        })
    }
}

fn size_of(dir: &Path, manifest: &Digest) -> Option<u64> {
    let algorithm = manifest.algorithm().name();
    let blob = dir.join("blobs").join(algorithm).join(manifest.hex());
    let sizes: Sizes = read_record(&blob)?;
    let layers: u64 = sizes.layers.iter().map(|layer| layer.size).sum();
    Some(sizes.config.size + layers)
}

/// Files that are removed meanwhile do not count.
fn bytes_of(files: &[std::path::PathBuf]) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for path in files {
        let length = |metadata: fs::Metadata| metadata.len();
        bytes += match fs::symlink_metadata(path).map(length) {
            Ok(length) => length,
            Err(source) if source.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(failed("read", path, source)),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Store, StoreConfig, write_record};
    use super::*;

    /// Every file of a directory, with its content.
    fn all(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut open = vec![dir.to_path_buf()];
        while let Some(at) = open.pop() {
            for entry in fs::read_dir(at).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                } else {
                    found.push((entry.path(), fs::read(entry.path()).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_look_sees_everything_and_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("images");
        assert_eq!(Contents::of(&dir).unwrap(), Contents::default());
        assert!(!dir.exists(), "a look makes nothing");
        let store = Store::open(&dir, StoreConfig::default()).unwrap();
        let [whole, damaged] = ["11", "22"].map(|hex| Digest::from_hex(&hex.repeat(32)).unwrap());
        for (digest, manifest) in [
            (
                &whole,
                r#"{"config":{"size":7},"layers":[{"size":30},{"size":5}]}"#,
            ),
            (&damaged, "{"),
        ] {
            fs::write(dir.join("blobs/sha256").join(digest.hex()), manifest).unwrap();
            fs::write(dir.join("images").join(digest.hex()), "").unwrap();
        }
        for reference in ["r/a:2", "r/a:1"] {
            let record = RefRecord {
                reference: reference.to_owned(),
                manifest: whole,
            };
            write_record(&store.record("refs", reference), &record).unwrap();
        }
        let pin = PinRecord {
            owner: "s/a|1".to_owned(),
            manifest: whole,
        };
        write_record(&store.record("pins", "s/a|1"), &pin).unwrap();
        fs::write(dir.join("partial/half"), "12345").unwrap();
        for (at, digest) in [(1, &damaged), (2, &whole)] {
            let file = fs::File::options()
                .append(true)
                .open(dir.join("images").join(digest.hex()))
                .unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at);
            file.set_modified(time).unwrap();
        }
        let before = all(&dir);
        // Somebody works on the store: a look does not wait for that.
        let _alone = store.lock_exclusively().unwrap();
        let image = |manifest, at| ImageContents {
            manifest,
            references: Vec::new(),
            pinned_by: Vec::new(),
            bytes: None,
            used: Timestamp::from_second(at).ok(),
        };
        let want = Contents {
            images: vec![
                image(damaged, 1),
                ImageContents {
                    references: vec!["r/a:1".to_owned(), "r/a:2".to_owned()],
                    pinned_by: vec!["s/a|1".to_owned()],
                    bytes: Some(42),
                    ..image(whole, 2)
                },
            ],
            blob_bytes: 56,
            partial_bytes: 5,
        };
        assert_eq!(Contents::of(&dir).unwrap(), want);
        assert_eq!(all(&dir), before);
    }
}
