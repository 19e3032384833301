//! From a reference to a complete, verified image in the store.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::Credentials;
use crate::digest::Digest;
use crate::image::{self, Document, ImageError, Layer, Platform};
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryError};
use crate::store::{Store, StoreError, blocking};

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullerConfig {
    pub platform: Platform,
    /// For the whole pull, retries included.
    pub deadline: Duration,
    /// Layers that are fetched at once.
    pub parallel_layers: usize,
    /// Registries (`host` or `host:port`) that are spoken to in plain HTTP. Loopback always is.
    pub insecure: Vec<String>,
}

impl Default for PullerConfig {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            deadline: Duration::from_secs(600),
            parallel_layers: 3,
            insecure: Vec::new(),
        }
    }
}

/// What was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    pub reference: Reference,
    /// The image manifest for this platform: what to unpack, pin and record.
    pub manifest_digest: Digest,
    /// What the reference itself names: an index, or the same manifest.
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

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// With backoff.
    Transient,
    /// Not before this has passed; the registry said so.
    After(Duration),
    /// Only when something has changed.
    Terminal,
}

impl PullError {
    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Registry { source, .. } => source.kind(),
            Self::Image { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Deadline { .. } => "deadline",
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
    registry: Registry,
}

impl Puller {
    pub fn new(store: Store, config: PullerConfig) -> Result<Self, RegistryError> {
        let registry = Registry::new(&config)?;
        Ok(Self {
            store,
            config: Arc::new(config),
            registry,
        })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Pulls an image; what the store has already is not fetched again. A reference with a digest
    /// whose image is complete in the store needs no registry at all.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Pulled, PullError> {
        self.pull_with(reference, credentials, &Progress::none())
            .await
    }

    /// As [`Puller::pull`], telling what happens.
    pub async fn pull_with(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &Progress,
    ) -> Result<Pulled, PullError> {
        let deadline = self.config.deadline;
        let work = self.run(reference, credentials, progress);
        match tokio::time::timeout(deadline, work).await {
            Ok(result) => result,
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
        progress: &Progress,
    ) -> Result<Pulled, PullError> {
        let wrong_store = |source| PullError::Store {
            reference: reference.to_string(),
            source,
        };
        let wrong_image = |source| PullError::Image {
            reference: reference.to_string(),
            source,
        };
        let wrong_registry = |source| PullError::Registry {
            reference: reference.to_string(),
            source,
        };
        let _hold = self.store.hold().map_err(wrong_store)?;
        progress.say(Event::Resolving {
            reference: reference.to_string(),
        });
        let limits = self.store.limits();
        let session = self.registry.session(reference, credentials);
        let (bytes, resolved, content_type) = session
            .manifest(&reference.manifest_selector(), reference.digest(), limits)
            .await
            .map_err(wrong_registry)?;
        let document =
            image::decode(&bytes, content_type.as_deref(), limits).map_err(wrong_image)?;
        let (manifest_digest, bytes, manifest) = match document {
            Document::Image(manifest) => (resolved, bytes, manifest),
            Document::Index(candidates) => {
                let chosen =
                    image::select(&candidates, &self.config.platform).map_err(wrong_image)?;
                let (bytes, digest, content_type) = session
                    .manifest(&chosen.digest.to_string(), Some(chosen.digest), limits)
                    .await
                    .map_err(wrong_registry)?;
                match image::decode(&bytes, content_type.as_deref(), limits).map_err(wrong_image)? {
                    Document::Image(manifest) => (digest, bytes, manifest),
                    Document::Index(_) => return Err(wrong_image(ImageError::NestedIndex)),
                }
            }
        };
        let total = manifest.layers.iter().map(|layer| layer.size).sum();
        let layers = manifest.layers.len() as u64;
        progress.say(Event::Resolved {
            manifest: manifest_digest,
            layers,
            bytes: total,
        });
        self.store
            .put_document(&manifest_digest, &bytes)
            .map_err(wrong_store)?;
        let (config, size) = manifest.config;
        let mut fetched_bytes = 0;
        let blobs = manifest
            .layers
            .iter()
            .cloned()
            .map(|layer| (layer.digest, layer.size));
        for (digest, size) in blobs.chain([(config, size)]) {
            if self.store.contains(&digest, size) {
                progress.say(Event::LayerPresent {
                    digest,
                    bytes: size,
                });
                continue;
            }
            if digest != config {
                fetched_bytes += size;
            }
            let mut response = session.blob(&digest).await.map_err(wrong_registry)?;
            let mut writer = self.store.writer(digest, size).map_err(wrong_store)?;
            progress.say(Event::LayerStarted {
                digest,
                bytes: size,
            });
            while let Some(chunk) = session.chunk(&mut response).await.map_err(wrong_registry)? {
                writer.write(&chunk).map_err(wrong_store)?;
            }
            blocking(move || writer.commit())
                .await
                .map_err(wrong_store)?;
            progress.say(Event::LayerDone { digest });
        }
        let config = self.store.document(&config).map_err(wrong_store)?;
        image::diff_ids(&config, manifest.layers.len(), Some(&self.config.platform))
            .map_err(wrong_image)?;
        self.store
            .record_image(reference, &manifest_digest)
            .map_err(wrong_store)?;
        progress.say(Event::Pulled {
            manifest: manifest_digest,
        });
        Ok(Pulled {
            reference: reference.clone(),
            manifest_digest,
            resolved_digest: resolved,
            layers,
            bytes: total,
            fetched_bytes,
        })
    }
}

/// Every layer of the image, for callers that show them.
impl Pulled {
    pub fn layers_of(&self, store: &Store) -> Result<Vec<Layer>, StoreError> {
        store.image(&self.manifest_digest).map(|image| image.layers)
    }
}
