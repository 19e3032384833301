//! Package images at hand: pulled once, kept in the store, pinned while a package on the host needs them.

use std::path::Path;
use std::rc::Rc;

use skyhook_crds::package::Package;
use skyhook_oci::{
    Credentials, Digest, PluginError, PullError, Puller, PullerConfig, Reference, ReferenceError,
    Store, StoreConfig, StoreError,
};

/// Why an image is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Pull(Box<PullError>),
    #[error(transparent)]
    Store(Box<StoreError>),
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

impl From<PullError> for ImageError {
    fn from(error: PullError) -> Self {
        Self::Pull(Box::new(error))
    }
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// The images of a host.
#[derive(Clone, Debug)]
pub struct Images {
    pub store: Store,
    puller: Rc<Puller>,
}

impl Images {
    /// Opens the store in `directory`.
    pub fn open(directory: &Path, insecure: Vec<String>) -> Result<Self, ImageError> {
        let store = Store::open(directory, StoreConfig::default())?;
        let config = PullerConfig {
            insecure,
            ..PullerConfig::default()
        };
        let puller = Rc::new(Puller::new(store.clone(), config)?);
        Ok(Self { store, puller })
    }

    /// Has the package's image in the store, pinned for `owner`. An image that is pinned by digest is not asked for again;
    /// a tag is, since it may have moved.
    pub async fn pull(
        &self,
        package: &Package,
        owner: &str,
        credentials: &Credentials,
    ) -> Result<Digest, ImageError> {
        let reference = Reference::for_package(
            &package.image,
            &package.version,
            package.container_sha.as_deref(),
        )?;
        let digest = self
            .puller
            .pull(&reference, credentials)
            .await?
            .manifest_digest;
        self.store.pin(owner, &digest)?;
        Ok(digest)
    }

    /// Has the image in the store.
    pub async fn pull_reference(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Digest, ImageError> {
        let pulled = self.puller.pull(reference, credentials).await?;
        Ok(pulled.manifest_digest)
    }

    /// What the store has of the package's image, without asking the registry.
    #[must_use]
    pub fn kept(&self, package: &Package) -> Option<Digest> {
        let reference = Reference::for_package(
            &package.image,
            &package.version,
            package.container_sha.as_deref(),
        )
        .ok()?;
        self.store.lookup(&reference)
    }
}
