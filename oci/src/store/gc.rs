//! Keeps the store within its size. What was not used for the longest time is removed first, and pinned images never.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that removes blobs"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use super::files::{failed, list, read_record, remove_if_there};
use super::partial::PartialBlob;
use super::{RefRecord, Store, StoreError};
use crate::digest::{Algorithm, Digest};

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: u64,
    /// Blobs and partial blobs.
    pub blobs: u64,
    pub bytes: u64,
    /// An unpack was running, or another process used the store at this moment, so nothing was removed.
    pub skipped: bool,
}

/// What may be removed to make room.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Evictable {
    Image(Digest),
    Partial(PartialBlob),
}

/// What stays in the store.
struct Kept {
    images: BTreeMap<Digest, BTreeSet<Digest>>,
    partials: BTreeMap<PathBuf, u64>,
    /// What running pulls need.
    leased: BTreeSet<Digest>,
    sizes: BTreeMap<Digest, u64>,
}

impl Kept {
    fn blobs(&self) -> BTreeSet<Digest> {
        let of_images = self.images.values().flatten();
        of_images.chain(&self.leased).copied().collect()
    }

    fn bytes(&self) -> u64 {
        let blobs = self.blobs();
        let blobs = blobs.iter().filter_map(|digest| self.sizes.get(digest));
        blobs.chain(self.partials.values()).sum()
    }
}

impl Store {
    /// Bytes of all blobs, including partial ones.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        let partial: u64 = self.partials()?.iter().map(|partial| partial.bytes).sum();
        Ok(self.blobs()?.values().sum::<u64>() + partial)
    }

    /// Removes every blob that no image needs, and what was not used for longer than the settings allow at the time
    /// `now`. Then removes the least recently used images and partial blobs, until the rest fits into `max_bytes` and
    /// the file system has the configured room. A pinned image stays, even if the store is too large, and so
    /// do the blobs that running pulls need. Nothing is removed while an unpack is running.
    pub fn collect(&self, now: SystemTime) -> Result<Collected, StoreError> {
        self.collect_until_free(0, now)
    }

    /// Does the same as [`Store::collect`], and removes more images if fewer than `needed` bytes of the file system
    /// would be free.
    pub(crate) fn collect_until_free(
        &self,
        needed: u64,
        now: SystemTime,
    ) -> Result<Collected, StoreError> {
        let Some(_alone) = self.lock_exclusively()? else {
            return Ok(Collected {
                skipped: true,
                ..Collected::default()
            });
        };
        let mut collected = Collected::default();
        let (mut kept, mut evictable) = self.look_over(&mut collected)?;
        let all = kept
            .sizes
            .values()
            .chain(kept.partials.values())
            .sum::<u64>();
        // What nothing needs is removed in any case.
        let unneeded = all - kept.bytes();
        let shortage = self.shortage(needed)?.saturating_sub(unneeded);
        let max_bytes = kept
            .bytes()
            .saturating_sub(shortage)
            .min(self.config.max_bytes);
        evictable.sort();
        for (used, what) in evictable {
            let age = now.duration_since(used).unwrap_or_default();
            let is_old = match what {
                Evictable::Image(_) => self.config.max_unused.is_some_and(|most| age > most),
                Evictable::Partial(_) => age > self.config.max_partial,
            };
            if !is_old && kept.bytes() <= max_bytes {
                continue;
            }
            match what {
                Evictable::Image(manifest) => {
                    kept.images.remove(&manifest);
                    collected.images += self.forget(&manifest)?;
                }
                Evictable::Partial(partial) => {
                    kept.partials.remove(&partial.path);
                    remove_if_there(&partial.path)?;
                    collected.blobs += 1;
                    collected.bytes += partial.bytes;
                }
            }
        }
        let needed = kept.blobs();
        for (digest, size) in kept.sizes.iter().filter(|(it, _)| !needed.contains(it)) {
            remove_if_there(&self.blob(digest))?;
            collected.blobs += 1;
            collected.bytes += size;
        }
        Ok(collected)
    }

    /// Everything that is in the store, and the part of it that may be removed, with the time of its last use. Removes
    /// the records of images that are incomplete.
    fn look_over(
        &self,
        collected: &mut Collected,
    ) -> Result<(Kept, Vec<(SystemTime, Evictable)>), StoreError> {
        let pinned: BTreeSet<Digest> = self.pins()?.into_iter().map(|(_, image)| image).collect();
        let mut kept = Kept {
            images: BTreeMap::new(),
            partials: BTreeMap::new(),
            leased: self.leased()?.unwrap_or_default(),
            sizes: self.blobs()?,
        };
        let mut evictable = Vec::new();
        for (used, manifest) in self.images()? {
            match self.needs(&manifest) {
                Some(blobs) => {
                    kept.images.insert(manifest, blobs);
                    if !pinned.contains(&manifest) {
                        evictable.push((used, Evictable::Image(manifest)));
                    }
                }
                // The image is incomplete, but pinned. Its blobs are kept, so the next pull has fewer to download.
                None if pinned.contains(&manifest) => {
                    kept.images.insert(manifest, self.present(&manifest));
                }
                None => collected.images += self.forget(&manifest)?,
            }
        }
        for partial in self.partials()? {
            if partial
                .digest
                .is_some_and(|digest| kept.leased.contains(&digest))
            {
                kept.partials.insert(partial.path, partial.bytes);
                continue;
            }
            let is_complete = partial
                .digest
                .is_none_or(|digest| kept.sizes.contains_key(&digest));
            if is_complete {
                remove_if_there(&partial.path)?;
                collected.blobs += 1;
                collected.bytes += partial.bytes;
                continue;
            }
            kept.partials.insert(partial.path.clone(), partial.bytes);
            evictable.push((partial.written, Evictable::Partial(partial)));
        }
        Ok((kept, evictable))
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
            let Some(manifest) = Digest::from_hex(name) else {
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
        for algorithm in Algorithm::ALL {
            for path in list(&self.blobs_of(algorithm))? {
                let name = path.file_name().and_then(|name| name.to_str());
                let Some(digest) = name.and_then(Digest::from_hex) else {
                    continue;
                };
                match fs::metadata(&path) {
                    Ok(metadata) => drop(blobs.insert(digest, metadata.len())),
                    // A reader has just removed it, because it is damaged.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(failed("read", &path, source)),
                }
            }
        }
        Ok(blobs)
    }
}
