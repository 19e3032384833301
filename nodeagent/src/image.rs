//! Package images at hand: pulled once, kept in the store, pinned while a package on the host needs them.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use skyhook_crds::package::Package;
use skyhook_oci::{
    Credentials, Digest, PluginConfig, Progress, PullError, Puller, PullerConfig, Reference,
    ReferenceError, RetryClass, Root, Store, StoreConfig, StoreError, chain,
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

impl ImageError {
    /// Whether another try may help.
    #[must_use]
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Reference(_) => RetryClass::Terminal,
            Self::Pull(error) => error.retry_class(),
            Self::Store(error) if error.is_transient() => RetryClass::Transient,
            Self::Store(_) => RetryClass::Terminal,
        }
    }
}

/// How registries are reached; paths are the host's.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// Spoken to without TLS.
    pub insecure: Vec<String>,
    /// containerd's settings of registries, where there are any.
    pub hosts_dir: Option<PathBuf>,
    /// The kubelet's credential provider plugins: configuration and directory of programs.
    pub plugins: Option<(PathBuf, PathBuf)>,
}

impl Registries {
    /// How to pull on the host whose files these are.
    fn puller(self, files: &Root) -> PullerConfig {
        let plugins = self.plugins.map(|(config, bin_dir)| PluginConfig {
            config: files.locate(&config).unwrap_or(config),
            bin_dir,
            // They are the host's programs, with the host's libraries and metadata service.
            prefix: if files.is_own() {
                Vec::new()
            } else {
                let root = files.path().to_string_lossy().into_owned();
                vec!["/proc/self/exe".to_owned(), "in-root".to_owned(), root]
            },
            timeout: PLUGIN,
        });
        PullerConfig {
            insecure: self.insecure,
            files: Some(files.clone()),
            hosts_dir: self.hosts_dir,
            plugins,
            ..PullerConfig::default()
        }
    }
}

/// How long a credential provider may take, as the kubelet gives it.
const PLUGIN: Duration = Duration::from_secs(60);

/// The images of a host.
#[derive(Clone, Debug)]
pub struct Images {
    pub store: Store,
    puller: Rc<Puller>,
}

impl Images {
    /// Opens the store in `directory`, for the host whose files these are.
    pub fn open(
        directory: &Path,
        files: &Root,
        registries: Registries,
    ) -> Result<Self, ImageError> {
        let store = Store::open(directory, StoreConfig::default())?;
        let config = registries.puller(files);
        let puller = Puller::new(store.clone(), config);
        let puller = Rc::new(puller);
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
        let mut pulled = self.puller.pull(&reference, credentials).await;
        if pulled.as_ref().is_err_and(PullError::needs_room) {
            // Images that nobody needs may make room.
            let store = self.store.clone();
            let collected = tokio::task::spawn_blocking(move || store.collect()).await;
            match collected {
                Ok(Ok(collected)) if collected.bytes > 0 => {
                    pulled = self.puller.pull(&reference, credentials).await;
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "old images cannot be removed");
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        let digest = pulled?.manifest_digest;
        let (store, owner) = (self.store.clone(), owner.to_owned());
        // It may have to wait for the store's lock.
        match tokio::task::spawn_blocking(move || store.pin(&owner, &digest)).await {
            Ok(pinned) => pinned?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        Ok(digest)
    }

    /// Has the image in the store, telling what happens.
    pub async fn pull_reference(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &Progress,
    ) -> Result<Digest, ImageError> {
        let pulled = self
            .puller
            .pull_with(reference, credentials, progress)
            .await?;
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
