//! Pulls an image: resolves a reference, and downloads and verifies the blobs that are not in the store yet.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that pulls, and it tells the store what time it is"
)]

use std::sync::Arc;
use std::time::SystemTime;

use crate::access::Access;
use crate::auth::Credentials;
use crate::chain::chain;
use crate::config::{PullerConfig, RetryClass, Timeouts};
use crate::digest::Digest;
use crate::image::{self, Candidate, Document, ImageError, Manifest};
use crate::progress::{PullEvent, PullProgress};
use crate::reference::Reference;
use crate::registry::{RawManifest, RegistryError, Session};
use crate::root::Root;
use crate::space::Leave;
use crate::store::{Lease, Store, StoreError, StoredImage, blocking};

pub(crate) mod fetch;
mod retry;

use fetch::Flights;
use retry::Retry;

/// How many indexes may lie inside each other.
const MAX_INDEXES: usize = 4;
/// How many images of one index are looked at because the index does not name their platform.
const MAX_CHOICES: usize = 16;

/// What was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    pub reference: Reference,
    /// The digest of the image manifest for this platform. The image is unpacked and pinned by this digest.
    pub manifest_digest: Digest,
    /// The digest that the reference leads to: the digest of an index, or of the same manifest.
    pub resolved_digest: Digest,
    pub layers: u64,
    /// Bytes of all layers.
    pub bytes: u64,
    /// Bytes of layers that were not in the store yet.
    pub fetched_bytes: u64,
}

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("image {reference}")]
    Registry {
        reference: String,
        source: RegistryError,
    },
    #[error("image {reference}")]
    Image {
        reference: String,
        source: ImageError,
    },
    #[error("image {reference}")]
    Store {
        reference: String,
        source: StoreError,
    },
}

impl PullError {
    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Registry { source, .. } => source.kind(),
            Self::Image { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
        }
    }

    /// The error with paths as `root` shows them in messages.
    #[must_use]
    pub fn shown_in(self, root: &Root) -> Self {
        match self {
            Self::Store { reference, source } => Self::Store {
                reference,
                source: source.shown_in(root),
            },
            Self::Registry { .. } | Self::Image { .. } => self,
        }
    }

    pub fn retry_class(&self) -> RetryClass {
        let transient = |is| {
            if is {
                RetryClass::Transient
            } else {
                RetryClass::Terminal
            }
        };
        match self {
            Self::Registry { source, .. } => source.retry_class(),
            Self::Image { .. } => RetryClass::Terminal,
            Self::Store { source, .. } => transient(source.is_transient()),
        }
    }
}

/// Pulls images into a store.
#[derive(Debug, Clone)]
pub struct Puller {
    store: Store,
    config: Arc<PullerConfig>,
    access: Access,
    flights: Flights,
}

/// What the steps of one pull need.
struct Run<'a> {
    puller: &'a Puller,
    reference: &'a Reference,
    session: Arc<Session>,
    progress: &'a PullProgress,
    leave: Leave,
    lease: Lease,
}

impl Puller {
    pub fn new(store: Store, config: PullerConfig) -> Self {
        Self {
            store,
            access: Access::default(),
            config: Arc::new(config),
            flights: Flights::default(),
        }
    }

    /// Pulls an image. Blobs that are in the store already are not downloaded again. If the reference has a digest
    /// and the store has the complete image, no registry is contacted.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Pulled, PullError> {
        self.pull_with(reference, credentials, &PullProgress::none())
            .await
    }

    /// Does the same as [`Puller::pull`], and reports the progress. Dropping the future ends the pull.
    pub async fn pull_with(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &PullProgress,
    ) -> Result<Pulled, PullError> {
        self.pull_leaving(reference, credentials, progress, Leave::Least)
            .await
    }

    /// Does the same as [`Puller::pull`]. If too little of the file system would be free after the pull, images that
    /// nobody pins are removed before it.
    pub async fn pull_making_room(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Pulled, PullError> {
        let progress = PullProgress::none();
        let result = self
            .pull_leaving(reference, credentials, &progress, Leave::Plenty)
            .await;
        let Err(PullError::Store {
            source: StoreError::NoRoom { needed, .. },
            ..
        }) = result
        else {
            return result;
        };
        let store = self.store.clone();
        match blocking(move || store.collect_until_free(needed, SystemTime::now())).await {
            Ok(collected) => {
                tracing::info!(%reference, ?collected, "removed unused images before a pull");
            }
            Err(error) => {
                tracing::warn!(%reference, error = %chain(&error), "unused images cannot be removed before a pull");
            }
        }
        self.pull_leaving(reference, credentials, &progress, Leave::Least)
            .await
    }

    async fn pull_leaving(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &PullProgress,
        leave: Leave,
    ) -> Result<Pulled, PullError> {
        let result = self.run(reference, credentials, progress, leave).await;
        result.map_err(|failure| failure.of(reference))
    }

    async fn run(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &PullProgress,
        leave: Leave,
    ) -> Result<Pulled, Failure> {
        let hold = self.store.hold().await?;
        progress.say(PullEvent::Resolving {
            reference: reference.to_string(),
        });
        if let Some(pulled) = self.present(reference) {
            progress.say(PullEvent::Pulled {
                manifest: pulled.manifest_digest,
            });
            return Ok(pulled);
        }
        let lease = self.store.lease(&hold)?;
        drop(hold);
        let session = self.access.session(reference, credentials, &self.config);
        let session = Arc::new(session.await?);
        let run = Run {
            puller: self,
            reference,
            session,
            progress,
            leave,
            lease,
        };
        let Resolved {
            resolved,
            digest: manifest_digest,
            manifest,
            has_platform,
        } = run.resolve().await?;
        let fetched_bytes = run.fetch(&manifest).await?;
        let config = self.store.document(&manifest.config.0)?;
        if !has_platform {
            image::check_platform(&config, &self.config.platform)?;
        }
        manifest.diff_ids(&config)?;
        let (store, of) = (self.store.clone(), reference.clone());
        let hold = store.hold().await?;
        let image = blocking(move || {
            let image = store.record_image(&of, &manifest_digest);
            drop(hold);
            image
        });
        let image = image.await?;
        progress.say(PullEvent::Pulled {
            manifest: manifest_digest,
        });
        Ok(Pulled {
            fetched_bytes,
            ..Pulled::of(reference, resolved, &image)
        })
    }

    /// The image that the digest of the reference names, if it is in the store already.
    fn present(&self, reference: &Reference) -> Option<Pulled> {
        let digest = reference.digest()?;
        let image = match self.store.lookup(reference) {
            Some(manifest) => self.store.image(&manifest),
            None => self.store.image(&digest),
        };
        Some(Pulled::of(reference, digest, &image.ok()?))
    }
}

/// What a reference leads to.
struct Resolved {
    /// The digest of an index, or of the same manifest.
    resolved: Digest,
    digest: Digest,
    manifest: Manifest,
    /// An index said that the image is for this platform. Then its config need not say so: builders that assemble
    /// images for several platforms write wrong ones.
    has_platform: bool,
}

impl Run<'_> {
    /// Finds the digest that the reference leads to, and the manifest for this platform with its digest.
    async fn resolve(&self) -> Result<Resolved, Failure> {
        let store = &self.puller.store;
        let selector = self.reference.manifest_selector();
        let mut raw = self.manifest(&selector, self.reference.digest()).await?;
        let resolved = raw.digest;
        let mut has_platform = false;
        let mut indexes = 0;
        let manifest = loop {
            match self.decode(&raw)? {
                Document::Image(manifest) => break manifest,
                Document::Index(_) if indexes == MAX_INDEXES => {
                    return Err(ImageError::NestedIndex(MAX_INDEXES).into());
                }
                Document::Index(candidates) => {
                    indexes += 1;
                    let (chosen, document) = self.choose(&candidates).await?;
                    has_platform |= chosen.platform.is_some();
                    raw = document;
                }
            }
        };
        self.protect(raw.digest, &manifest).await?;
        let (digest, of) = (raw.digest, store.clone());
        blocking(move || of.put_document(&digest, &raw.bytes)).await?;
        let bytes = manifest.layers.iter().map(|layer| layer.size).sum();
        let layers = manifest.layers.len() as u64;
        self.progress.say(PullEvent::Resolved {
            manifest: digest,
            layers,
            bytes,
        });
        Ok(Resolved {
            resolved,
            digest,
            manifest,
            has_platform,
        })
    }

    /// Keeps everything that belongs to an image in the store until the end of the pull.
    async fn protect(&self, digest: Digest, manifest: &Manifest) -> Result<(), StoreError> {
        let hold = self.puller.store.hold().await?;
        let layers = manifest.layers.iter().map(|layer| layer.digest);
        let blobs = layers.chain([digest, manifest.config.0]);
        self.lease.add(&hold, blobs)
    }

    fn decode(&self, raw: &RawManifest) -> Result<Document, ImageError> {
        let limits = self.puller.store.limits();
        image::decode(&raw.bytes, raw.content_type.as_deref(), limits)
    }

    /// The image in an index that fits this platform best, and its document.
    async fn choose<'a>(
        &self,
        candidates: &'a [Candidate],
    ) -> Result<(&'a Candidate, RawManifest), Failure> {
        let fitting = image::select(candidates, &self.puller.config.platform)?;
        let last = fitting.len() - 1;
        for (position, candidate) in fitting.into_iter().take(MAX_CHOICES).enumerate() {
            let document = match self.document(candidate).await {
                // Another one may be for this platform.
                Err(Failure::Image(_)) if candidate.platform.is_none() && position != last => {
                    continue;
                }
                document => document?,
            };
            // The last one is taken in any case: if it is for another platform, the error says for which one.
            if candidate.platform.is_some()
                || position == last
                || self.is_for_this_platform(&document).await?
            {
                return Ok((candidate, document));
            }
        }
        Err(ImageError::NoPlatform {
            wanted: self.puller.config.platform.to_string(),
            present: format!("more than {MAX_CHOICES} images without a platform"),
        }
        .into())
    }

    /// Whether an image is for this platform according to its config, because the index does not say so.
    async fn is_for_this_platform(&self, raw: &RawManifest) -> Result<bool, Failure> {
        let platform = &self.puller.config.platform;
        match self.decode(raw)? {
            Document::Index(candidates) => Ok(image::select(&candidates, platform).is_ok()),
            Document::Image(manifest) => {
                self.protect(raw.digest, &manifest).await?;
                self.fetch_config(&manifest).await?;
                let config = self.puller.store.document(&manifest.config.0)?;
                Ok(image::check_platform(&config, platform).is_ok())
            }
        }
    }

    /// The manifest of one image in an index: from the index itself, from the store, or from the registry.
    async fn document(&self, candidate: &Candidate) -> Result<RawManifest, Failure> {
        let (digest, embedded) = candidate.manifest(self.puller.store.limits())?;
        let embedded = embedded.map(|bytes| RawManifest {
            bytes,
            digest,
            content_type: None,
        });
        match embedded.or_else(|| self.stored(&digest)) {
            Some(raw) => Ok(raw),
            None => self.manifest(&digest.to_string(), Some(digest)).await,
        }
    }

    /// The manifest from the store, if it is there. This avoids a request, because some registries count requests for
    /// manifests.
    fn stored(&self, digest: &Digest) -> Option<RawManifest> {
        Some(RawManifest {
            bytes: self.puller.store.document(digest).ok()?,
            digest: *digest,
            content_type: None,
        })
    }

    async fn manifest(&self, selector: &str, want: Option<Digest>) -> Result<RawManifest, Failure> {
        let limits = self.puller.store.limits();
        let timeouts = &self.puller.config.timeouts;
        let what = format!("manifest {selector}");
        let mut retry = Retry::new(timeouts, what.clone(), self.progress.clone());
        loop {
            let answer = self.session.manifest(selector, want, limits);
            match answered(timeouts, &what, self.reference.registry(), answer).await {
                Ok(raw) => return Ok(raw),
                Err(error) => retry.after(error).await?,
            }
        }
    }
}

/// Limits the time of a request whose answer is small. A server could send it byte by byte.
async fn answered<T>(
    timeouts: &Timeouts,
    what: &str,
    registry: &str,
    answer: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    let limit = timeouts.answer;
    let result = tokio::time::timeout(limit, answer).await;
    result.unwrap_or_else(|_| {
        Err(RegistryError::NoAnswer {
            what: what.to_owned(),
            host: registry.to_owned(),
            limit,
        })
    })
}

impl Pulled {
    fn of(reference: &Reference, resolved_digest: Digest, image: &StoredImage) -> Self {
        Self {
            reference: reference.clone(),
            manifest_digest: image.manifest,
            resolved_digest,
            layers: image.layers.len() as u64,
            bytes: image.layers.iter().map(|layer| layer.size).sum(),
            fetched_bytes: 0,
        }
    }
}

/// The error of a part of a pull. The reference is added to it later.
#[derive(Debug)]
enum Failure {
    Registry(RegistryError),
    Image(ImageError),
    Store(StoreError),
}

impl Failure {
    fn of(self, reference: &Reference) -> PullError {
        let reference = reference.to_string();
        match self {
            Self::Registry(source) => PullError::Registry { reference, source },
            Self::Image(source) => PullError::Image { reference, source },
            Self::Store(source) => PullError::Store { reference, source },
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
