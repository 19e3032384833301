//! Pulls an image: resolves a reference, and downloads and verifies the blobs that are not in the store yet.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::Credentials;
use crate::auth::plugin::Plugins;
use crate::chain::chain;
use crate::config::{PullerConfig, RetryClass};
use crate::digest::Digest;
use crate::image::{self, Document, ImageError, Manifest};
use crate::progress::{PullEvent, PullProgress};
use crate::reference::Reference;
use crate::registry::{RawManifest, RegistryError, Session};
use crate::root::Root;
use crate::store::{Leave, Store, StoreError, StoredImage, blocking};

mod fetch;
mod retry;

use fetch::Flights;
use retry::Retry;

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
    #[error("image {reference}: not pulled within {} s", deadline.as_secs())]
    Deadline {
        reference: String,
        deadline: Duration,
    },
}

impl PullError {
    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Registry { source, .. } => source.kind(),
            Self::Image { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Deadline { .. } => "deadline",
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
            Self::Registry { .. } | Self::Image { .. } | Self::Deadline { .. } => self,
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
            Self::Deadline { .. } => RetryClass::Transient,
        }
    }
}

/// Pulls images into a store.
#[derive(Debug, Clone)]
pub struct Puller {
    store: Store,
    config: Arc<PullerConfig>,
    plugins: Option<Plugins>,
    flights: Flights,
}

/// What the steps of one pull need.
struct Run<'a> {
    puller: &'a Puller,
    reference: &'a Reference,
    session: Arc<Session>,
    progress: &'a PullProgress,
    leave: Leave,
}

impl Puller {
    pub fn new(store: Store, config: PullerConfig) -> Self {
        Self {
            store,
            plugins: config.plugins.clone().map(Plugins::new),
            config: Arc::new(config),
            flights: Flights::default(),
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
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
        match blocking(move || store.collect_until_free(needed)).await {
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
        let deadline = self.config.deadline;
        let run = self.run(reference, credentials, progress, leave);
        let result = tokio::time::timeout(deadline, run);
        match result.await {
            Ok(result) => result.map_err(|failure| failure.of(reference)),
            Err(_) => Err(PullError::Deadline {
                reference: reference.to_string(),
                deadline,
            }),
        }
    }

    async fn run(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &PullProgress,
        leave: Leave,
    ) -> Result<Pulled, Failure> {
        let _hold = self.store.hold().await?;
        progress.say(PullEvent::Resolving {
            reference: reference.to_string(),
        });
        if let Some(pulled) = self.present(reference) {
            progress.say(PullEvent::Pulled {
                manifest: pulled.manifest_digest,
            });
            return Ok(pulled);
        }
        let mut credentials = credentials.clone();
        if let Some(plugins) = &self.plugins {
            credentials = credentials.merge(plugins.credentials(&reference.name()).await);
        }
        let session = Arc::new(Session::open(reference, &credentials, &self.config)?);
        let run = Run {
            puller: self,
            reference,
            session,
            progress,
            leave,
        };
        let (resolved, manifest_digest, manifest) = run.resolve().await?;
        let fetched_bytes = run.fetch(&manifest).await?;
        let config = self.store.document(&manifest.config.0)?;
        let platform = Some(&self.config.platform);
        image::diff_ids(&config, manifest.layers.len(), platform)?;
        let (store, of) = (self.store.clone(), reference.clone());
        let image = blocking(move || store.record_image(&of, &manifest_digest)).await?;
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

impl Run<'_> {
    /// Finds the digest that the reference leads to, and the manifest for this platform with its digest.
    async fn resolve(&self) -> Result<(Digest, Digest, Manifest), Failure> {
        let Puller { store, config, .. } = self.puller;
        let limits = store.limits();
        let selector = self.reference.manifest_selector();
        let raw = self.manifest(&selector, self.reference.digest()).await?;
        let resolved = raw.digest;
        let decode =
            |raw: &RawManifest| image::decode(&raw.bytes, raw.content_type.as_deref(), limits);
        let (raw, manifest) = match decode(&raw)? {
            Document::Image(manifest) => (raw, manifest),
            Document::Index(candidates) => {
                let chosen = image::select(&candidates, &config.platform)?.digest;
                let raw = match self.stored(&chosen) {
                    Some(raw) => raw,
                    None => self.manifest(&chosen.to_string(), Some(chosen)).await?,
                };
                match decode(&raw)? {
                    Document::Image(manifest) => (raw, manifest),
                    Document::Index(_) => return Err(ImageError::NestedIndex.into()),
                }
            }
        };
        let (digest, of) = (raw.digest, store.clone());
        blocking(move || of.put_document(&digest, &raw.bytes)).await?;
        let bytes = manifest.layers.iter().map(|layer| layer.size).sum();
        let layers = manifest.layers.len() as u64;
        self.progress.say(PullEvent::Resolved {
            manifest: digest,
            layers,
            bytes,
        });
        Ok((resolved, digest, manifest))
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
        let what = format!("manifest {selector}");
        let mut retry = Retry::new(&self.puller.config.timeouts, what, self.progress.clone());
        loop {
            match self.session.manifest(selector, want, limits).await {
                Ok(raw) => return Ok(raw),
                Err(error) => retry.after(error).await?,
            }
        }
    }
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
