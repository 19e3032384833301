//! Keeps the store within its size. The least recently used images are removed first, and pinned images never.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that removes blobs"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::SystemTime;

use super::files::{failed, list, read_record, remove_if_there};
use super::{RefRecord, Store, StoreError};
use crate::digest::Digest;

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: u64,
    pub blobs: u64,
    pub bytes: u64,
    /// The store was in use, so nothing was removed.
    pub skipped: bool,
}

impl Store {
    /// Bytes of all blobs.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        Ok(self.blobs()?.values().sum())
    }

    /// Removes every blob that no image needs. Then removes the least recently used images, until the rest fits into
    /// `max_bytes` and the file system has the configured room. A pinned image stays, even if the store is too large.
    /// Nothing is removed while a pull or an unpack is running.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        self.collect_until_free(0)
    }

    /// Does the same as [`Store::collect`], and removes more images if fewer than `needed` bytes of the file system
    /// would be free.
    pub(crate) fn collect_until_free(&self, needed: u64) -> Result<Collected, StoreError> {
        let Some(_alone) = self.lock_exclusively()? else {
            return Ok(Collected {
                skipped: true,
                ..Collected::default()
            });
        };
        let pinned: BTreeSet<Digest> = self.pins()?.into_iter().map(|(_, image)| image).collect();
        let sizes = self.blobs()?;
        let mut kept: BTreeMap<Digest, BTreeSet<Digest>> = BTreeMap::new();
        let mut evictable: Vec<(SystemTime, Digest)> = Vec::new();
        let mut collected = Collected::default();
        for (used, manifest) in self.images()? {
            match self.needs(&manifest) {
                Some(blobs) => {
                    kept.insert(manifest, blobs);
                    if !pinned.contains(&manifest) {
                        evictable.push((used, manifest));
                    }
                }
                // The image is incomplete, but pinned. Its blobs are kept, so the next pull has fewer to download.
                None if pinned.contains(&manifest) => {
                    kept.insert(manifest, self.present(&manifest));
                }
                None => collected.images += self.forget(&manifest)?,
            }
        }
        evictable.sort();
        let total = |kept: &BTreeMap<Digest, BTreeSet<Digest>>| -> u64 {
            let needed: BTreeSet<_> = kept.values().flatten().collect();
            needed.iter().filter_map(|digest| sizes.get(digest)).sum()
        };
        let mut oldest = evictable.into_iter();
        // Blobs that no image needs are removed in any case.
        let unneeded = sizes.values().sum::<u64>() - total(&kept);
        let shortage = self.shortage(needed)?.saturating_sub(unneeded);
        let max_bytes = total(&kept)
            .saturating_sub(shortage)
            .min(self.config.max_bytes);
        while total(&kept) > max_bytes
            && let Some((_, manifest)) = oldest.next()
        {
            kept.remove(&manifest);
            collected.images += self.forget(&manifest)?;
        }
        let needed: BTreeSet<&Digest> = kept.values().flatten().collect();
        for (digest, size) in sizes.iter().filter(|(digest, _)| !needed.contains(digest)) {
            remove_if_there(&self.blob(digest))?;
            collected.blobs += 1;
            collected.bytes += size;
        }
        Ok(collected)
    }

    /// All blobs of an image, or `None` if the image is incomplete.
    fn needs(&self, manifest: &Digest) -> Option<BTreeSet<Digest>> {
        let image = self.assemble(manifest).ok()?;
        let layers = image.layers.iter().map(|layer| layer.digest);
        Some(layers.chain([*manifest, image.config]).collect())
    }

    /// The blobs that the manifest of an incomplete image names.
    fn present(&self, manifest: &Digest) -> BTreeSet<Digest> {
        let mut blobs = BTreeSet::from([*manifest]);
        if let Ok(bytes) = self.document(manifest)
            && let Ok(crate::image::Document::Image(decoded)) =
                crate::image::decode(&bytes, None, &self.config.limits)
        {
            blobs.insert(decoded.config.0);
            blobs.extend(decoded.layers.iter().map(|layer| layer.digest));
        }
        blobs
    }

    /// Removes an image's records. Its blobs are removed when no other image needs them.
    fn forget(&self, manifest: &Digest) -> Result<u64, StoreError> {
        for path in list(&self.dir.join("refs"))? {
            let record: Option<RefRecord> = read_record(&path);
            if record.is_none_or(|record| record.manifest == *manifest) {
                remove_if_there(&path)?;
            }
        }
        remove_if_there(&self.dir.join("images").join(manifest.hex()))?;
        Ok(1)
    }

    fn images(&self) -> Result<Vec<(SystemTime, Digest)>, StoreError> {
        let mut images = Vec::new();
        for path in list(&self.dir.join("images"))? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Ok(manifest) = format!("sha256:{name}").parse() else {
                continue;
            };
            let used = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .map_err(|source| failed("read", &path, source))?;
            images.push((used, manifest));
        }
        Ok(images)
    }

    fn blobs(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let mut blobs = BTreeMap::new();
        for path in list(&self.dir.join("blobs/sha256"))? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Ok(digest) = format!("sha256:{name}").parse() else {
                continue;
            };
            let size = fs::metadata(&path)
                .map_err(|source| failed("read", &path, source))?
                .len();
            blobs.insert(digest, size);
        }
        Ok(blobs)
    }
}
