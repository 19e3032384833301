//! Content-addressed blobs on disk, and the records of which images are there.
//!
//! ```text
//! blobs/<algorithm>/<hex>  manifests, configs and layers, exactly as the registry sent them
//! images/<hex>             a complete image, named by its manifest; the mtime is the time of its last use
//! refs/<hex>               which manifest a reference last resolved to
//! pins/<hex>               an owner (an installed package) and the manifest it needs
//! tmp/                     small blobs that are being written
//! partial/<digest>         layers that were downloaded in part; the next pull continues them
//! leases/                  which blobs the running pulls need
//! lock                     locked shared: the store is in use; locked exclusive: files may be removed
//! ```
//!
//! # Guarantees
//! A blob gets its name only after its digest was checked and its content was flushed to disk. Every reader hashes
//! the blob again. A blob with a wrong digest is removed and reported as damaged, and the next pull downloads it
//! again. [`Store::collect`] never removes an image that is pinned or in use.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that keeps blobs on disk"
)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Digest, Mismatch};
use crate::image::{self, Document, ImageError, Layer};
use crate::limits::Limits;
use crate::progress::{PullEvent, PullProgress, size};
use crate::reference::Reference;
use crate::root::Root;
use crate::space::Room;
use crate::unpack::{self, Source, Target, UnpackError, UnpackOptions, Unpacked};

mod blob;
mod contents;
mod files;
mod gc;
mod lease;
mod lock;
mod partial;
mod pins;
mod space;

pub(crate) use blob::BlobWriter;
pub use contents::{Contents, ImageContents};
pub use gc::Collected;
pub(crate) use lease::Lease;

use files::{failed, list, read_record, write_record};

/// The settings of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    pub limits: Limits,
    /// How many bytes of blobs may stay in the store, partial ones included. Pinned images are counted too, but are
    /// never removed.
    pub max_bytes: u64,
    /// Images that nobody pins are removed when they were not used for longer than this. `None` means that only
    /// `max_bytes` and `room` remove them.
    pub max_unused: Option<Duration>,
    /// Partial blobs are removed when nobody has continued their download for longer than this.
    pub max_partial: Duration,
    /// How much of the file system must stay free.
    pub room: Room,
    /// How long to wait for the store's lock.
    pub lock_patience: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_bytes: 4 << 30,
            max_unused: None,
            max_partial: Duration::from_secs(7 * 24 * 3600),
            room: Room::default(),
            lock_patience: Duration::from_secs(60),
        }
    }
}

/// A store of images on disk. A clone is another handle to the same store. Other processes may use the store too.
#[derive(Debug, Clone)]
pub struct Store {
    dir: Arc<PathBuf>,
    config: Arc<StoreConfig>,
}

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} has been locked by another process for {seconds} s. The command lslocks shows that process. If it is an agent that removes old images, wait; else end it",
        path.display()
    )]
    Locked { path: PathBuf, seconds: u64 },
    #[error(
        "the file system of {} has {} free, and {} are needed there: make room, or put --state-dir on a larger one",
        path.display(),
        size(*free),
        size(*needed)
    )]
    NoRoom {
        path: PathBuf,
        needed: u64,
        free: u64,
    },
    #[error("image {0} is not in the store")]
    NoImage(Digest),
    #[error("blob {0} in the store is damaged or missing: the next pull downloads it again")]
    Damaged(Digest),
    #[error("the content has the digest {} instead of {}", .0.got, .0.want)]
    WrongDigest(Box<Mismatch>),
    #[error("blob {digest} has {got} bytes instead of {want}")]
    WrongSize { digest: Digest, want: u64, got: u64 },
    #[error("image {digest}")]
    Image {
        digest: Digest,
        source: Box<ImageError>,
    },
    #[error(transparent)]
    Unpack(Box<UnpackError>),
}

impl From<UnpackError> for StoreError {
    fn from(error: UnpackError) -> Self {
        Self::Unpack(Box::new(error))
    }
}

impl StoreError {
    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Locked { .. } => "locked",
            Self::NoRoom { .. } => "no_room",
            Self::NoImage(_) => "no_image",
            Self::Damaged(_) => "blob_damaged",
            Self::WrongDigest(_) => "wrong_digest",
            Self::WrongSize { .. } => "wrong_size",
            Self::Image { .. } => "image",
            Self::Unpack(error) => error.kind(),
        }
    }

    /// The error with paths as `root` shows them in messages.
    #[must_use]
    pub fn shown_in(mut self, root: &Root) -> Self {
        match &mut self {
            Self::Io { path, .. } | Self::Locked { path, .. } | Self::NoRoom { path, .. } => {
                *path = root.shown(path);
            }
            Self::NoImage(_)
            | Self::Damaged(_)
            | Self::WrongDigest(_)
            | Self::WrongSize { .. }
            | Self::Image { .. }
            | Self::Unpack(_) => {}
        }
        self
    }

    /// Whether another try may succeed, if the image is pulled again before it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::Locked { .. }
            | Self::NoRoom { .. }
            | Self::NoImage(_)
            | Self::Damaged(_) => true,
            Self::WrongDigest(_) | Self::WrongSize { .. } | Self::Image { .. } => false,
            Self::Unpack(error) => error.is_transient(),
        }
    }
}

/// An image that is complete in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    pub manifest: Digest,
    pub layers: Vec<Layer>,
    pub diff_ids: Vec<Digest>,
    config: Digest,
}

#[derive(Serialize, Deserialize)]
struct RefRecord {
    reference: String,
    manifest: Digest,
}

impl Store {
    /// Opens the store in `dir`, and makes it if it does not exist. If nobody uses the store, files that an
    /// interrupted pull has left are removed.
    pub fn open(dir: impl AsRef<Path>, config: StoreConfig) -> Result<Self, StoreError> {
        let dir = dir.as_ref().to_path_buf();
        let blobs = Algorithm::ALL.map(|algorithm| Path::new("blobs").join(algorithm.name()));
        let others = ["images", "refs", "pins", "tmp", "partial", "leases"].map(PathBuf::from);
        for part in blobs.iter().chain(&others) {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(|source| failed("create", &path, source))?;
        }
        let store = Self {
            dir: Arc::new(dir),
            config: Arc::new(config),
        };
        if let Some(_alone) = store.lock_exclusively()?
            && store.leased()?.is_none()
        {
            let tmp = store.dir.join("tmp");
            for path in list(&tmp)? {
                fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
            }
        }
        Ok(store)
    }

    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// The manifest that this reference last resolved to, if that image is still complete.
    pub fn lookup(&self, reference: &Reference) -> Option<Digest> {
        let record: RefRecord = read_record(&self.record("refs", &reference.to_string()))?;
        (record.reference == reference.to_string() && self.image(&record.manifest).is_ok())
            .then_some(record.manifest)
    }

    /// The image with this manifest, if the store has all of its blobs. Only the size of the layers is checked here:
    /// their content is checked when they are unpacked.
    pub fn image(&self, manifest: &Digest) -> Result<StoredImage, StoreError> {
        if !self.dir.join("images").join(manifest.hex()).exists() {
            return Err(StoreError::NoImage(*manifest));
        }
        self.assemble(manifest)
    }

    /// Unpacks the package of an image that is in the store. No registry is contacted.
    pub async fn unpack(
        &self,
        manifest: &Digest,
        target: &Target,
        options: UnpackOptions,
    ) -> Result<Unpacked, StoreError> {
        self.unpack_with(manifest, target, options, &PullProgress::none())
            .await
    }

    /// Does the same as [`Store::unpack`], and reports the progress.
    pub async fn unpack_with(
        &self,
        manifest: &Digest,
        target: &Target,
        options: UnpackOptions,
        progress: &PullProgress,
    ) -> Result<Unpacked, StoreError> {
        progress.say(PullEvent::Unpacking {
            manifest: *manifest,
        });
        let (store, manifest, target) = (self.clone(), *manifest, target.clone());
        let unpacked = blocking(move || store.unpack_blocking(&manifest, &target, options)).await?;
        progress.say(PullEvent::Unpacked {
            entries: unpacked.entries,
        });
        Ok(unpacked)
    }

    /// Does the same as [`Store::unpack`], but blocks this thread.
    pub fn unpack_blocking(
        &self,
        manifest: &Digest,
        target: &Target,
        options: UnpackOptions,
    ) -> Result<Unpacked, StoreError> {
        let _hold = self.hold_blocking()?;
        let image = self.image(manifest)?;
        self.touch(manifest);
        let mut sources = Vec::with_capacity(image.layers.len());
        for (layer, diff_id) in image.layers.into_iter().zip(image.diff_ids) {
            let blob = self.open_blob(&layer.digest)?;
            sources.push(Source {
                layer,
                diff_id,
                blob,
            });
        }
        let result = unpack::unpack(
            sources,
            target,
            options,
            &self.config.limits,
            self.config.room,
        );
        if let Err(UnpackError::Damaged(digest)) = &result {
            self.remove_damaged(digest);
        }
        Ok(result?)
    }

    pub(crate) fn remove_damaged(&self, digest: &Digest) {
        tracing::warn!(%digest, "removed a damaged blob from the store: the next pull downloads it again");
        if let Err(error) = fs::remove_file(self.blob(digest))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%digest, %error, "a damaged blob cannot be removed");
        }
    }

    /// Whether the store has this blob with this size. Its content is checked when it is read.
    pub(crate) fn contains(&self, digest: &Digest, size: u64) -> bool {
        let metadata = fs::metadata(self.blob(digest));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Reads a manifest or config, and checks its digest.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let limit = self.config.limits.manifest_bytes;
        let mut bytes = Vec::new();
        let read = self
            .open_blob(digest)?
            .take(limit + 1)
            .read_to_end(&mut bytes);
        read.map_err(|source| failed("read", &self.blob(digest), source))?;
        if !digest.is_of(&bytes) {
            self.remove_damaged(digest);
            return Err(StoreError::Damaged(*digest));
        }
        Ok(bytes)
    }

    /// Stores a small document under its digest.
    pub(crate) fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        if self.contains(digest, bytes.len() as u64) && self.document(digest).is_ok() {
            return Ok(());
        }
        let mut writer = self.writer(*digest, bytes.len() as u64)?;
        writer.write(bytes)?;
        writer.commit()
    }

    /// Records that the store has all blobs of this image, and that the reference leads to it.
    pub(crate) fn record_image(
        &self,
        reference: &Reference,
        manifest: &Digest,
    ) -> Result<StoredImage, StoreError> {
        let image = self.assemble(manifest)?;
        write_record(&self.dir.join("images").join(manifest.hex()), &())?;
        self.record_reference(reference, manifest)?;
        Ok(image)
    }

    pub(crate) fn record_reference(
        &self,
        reference: &Reference,
        manifest: &Digest,
    ) -> Result<(), StoreError> {
        let reference = reference.to_string();
        let path = self.record("refs", &reference);
        write_record(
            &path,
            &RefRecord {
                reference,
                manifest: *manifest,
            },
        )?;
        self.touch(manifest);
        Ok(())
    }

    fn assemble(&self, manifest: &Digest) -> Result<StoredImage, StoreError> {
        let wrong = |error| StoreError::Image {
            digest: *manifest,
            source: Box::new(error),
        };
        let document = image::decode(&self.document(manifest)?, None, &self.config.limits);
        let Document::Image(decoded) = document.map_err(wrong)? else {
            return Err(StoreError::NoImage(*manifest));
        };
        for layer in &decoded.layers {
            if !self.contains(&layer.digest, layer.size) {
                return Err(StoreError::Damaged(layer.digest));
            }
        }
        let (config, _) = decoded.config;
        let bytes = self.document(&config)?;
        let diff_ids = decoded.diff_ids(&bytes).map_err(wrong)?;
        Ok(StoredImage {
            manifest: *manifest,
            layers: decoded.layers,
            diff_ids,
            config,
        })
    }

    /// Marks the image as used now.
    fn touch(&self, manifest: &Digest) {
        let path = self.dir.join("images").join(manifest.hex());
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        let flags = rustix::fs::AtFlags::empty();
        if let Err(errno) = rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags) {
            tracing::debug!(%errno, %manifest, "the time of the last use of an image cannot be written");
        }
    }

    fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob(digest);
        File::open(&path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                StoreError::Damaged(*digest)
            } else {
                failed("open", &path, source)
            }
        })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs_of(digest.algorithm()).join(digest.hex())
    }

    fn blobs_of(&self, algorithm: Algorithm) -> PathBuf {
        self.dir.join("blobs").join(algorithm.name())
    }

    fn record(&self, kind: &str, name: &str) -> PathBuf {
        self.dir.join(kind).join(Digest::of(name.as_bytes()).hex())
    }
}

/// Runs work that blocks, on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
