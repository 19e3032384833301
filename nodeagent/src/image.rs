//! Package images on the host: pulled once, kept in the store, and pinned while a package on the host needs them.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use skyhook_crds::package::Package;
use skyhook_oci::{
    Credentials, Digest, NodeConfig, PluginConfig, PullError, PullProgress, Puller, PullerConfig,
    Reference, ReferenceError, RetryClass, Root, Store, StoreError,
};

mod limits;

pub use limits::ImageArgs;

/// Why an image could not be pulled or stored.
#[derive(Debug, thiserror::Error)]
pub enum PackageImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Pull(Box<PullError>),
    #[error(transparent)]
    Store(Box<StoreError>),
}

impl From<PullError> for PackageImageError {
    fn from(error: PullError) -> Self {
        Self::Pull(Box::new(error))
    }
}

impl From<StoreError> for PackageImageError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl PackageImageError {
    /// A short name of the error, for queries in logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Reference(error) => error.kind(),
            Self::Pull(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }

    /// The error with paths as the host has them. `files` are the host's files.
    fn shown_in(self, files: &Root) -> Self {
        match self {
            Self::Reference(_) => self,
            Self::Pull(error) => error.shown_in(files).into(),
            Self::Store(error) => error.shown_in(files).into(),
        }
    }

    /// Says whether a retry may succeed (transient), or whether the user must change something (terminal).
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

/// How to reach registries. All paths are paths in the host's file system.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// Registries to contact without TLS.
    pub insecure: Vec<String>,
    /// Directory with containerd's settings of registries, or several, separated by colons. They need not exist.
    pub hosts_dir: Option<PathBuf>,
    /// The kubelet's credential provider plugins: their configuration, and the directory with their programs.
    pub plugins: Option<(PathBuf, PathBuf)>,
    /// Whether to use what the kubelet and the container runtime of the host are configured with.
    pub as_node: bool,
}

impl Registries {
    /// Settings of the puller on a host. `files` are the host's files.
    fn puller(self, files: &Root) -> PullerConfig {
        // The plugins are programs of the host and need its libraries: run them in the host's root directory.
        let prefix = if files.is_own() {
            Vec::new()
        } else {
            let root = files.path().to_string_lossy().into_owned();
            vec!["/proc/self/exe".to_owned(), "in-root".to_owned(), root]
        };
        let plugins = self.plugins.map(|(config, bin_dir)| PluginConfig {
            config,
            bin_dir,
            prefix: prefix.clone(),
            timeout: PLUGIN,
        });
        let node = self.as_node.then_some(NodeConfig {
            prefix,
            timeout: PLUGIN,
        });
        PullerConfig {
            insecure: self.insecure,
            files: Some(files.clone()),
            hosts_dir: self.hosts_dir,
            plugins,
            node,
            ..PullerConfig::default()
        }
    }
}

/// Timeout of a credential provider plugin: the same as the kubelet's.
const PLUGIN: Duration = Duration::from_secs(60);

/// The image store of a host, and the puller that fills it.
#[derive(Clone, Debug)]
pub struct Images {
    pub store: Store,
    files: Root,
    puller: Rc<Puller>,
}

impl Images {
    /// Opens the store in `directory`. `files` are the host's files.
    pub fn open(
        directory: &Path,
        files: &Root,
        registries: Registries,
        limits: &ImageArgs,
    ) -> Result<Self, PackageImageError> {
        let store =
            Store::open(directory, limits.store()).map_err(|error| error.shown_in(files))?;
        let config = limits.puller(registries.puller(files));
        let puller = Puller::new(store.clone(), config);
        let puller = Rc::new(puller);
        Ok(Self {
            store,
            files: files.clone(),
            puller,
        })
    }

    /// Pulls the package's image into the store, and pins it there for `owner`. With a digest, a stored image is used
    /// without asking the registry. A tag may have moved, so the registry is always asked.
    pub async fn pull(
        &self,
        package: &Package,
        owner: &str,
        credentials: &Credentials,
    ) -> Result<Digest, PackageImageError> {
        let digest = self.pull_and_pin(package, owner, credentials).await;
        digest.map_err(|error| error.shown_in(&self.files))
    }

    async fn pull_and_pin(
        &self,
        package: &Package,
        owner: &str,
        credentials: &Credentials,
    ) -> Result<Digest, PackageImageError> {
        let reference = Reference::for_package(
            &package.image,
            &package.version,
            package.container_sha.as_deref(),
        )?;
        let pulled = self
            .puller
            .pull_making_room(&reference, credentials)
            .await?;
        tracing::info!(
            %reference,
            resolved = %pulled.resolved_digest,
            manifest = %pulled.manifest_digest,
            bytes = pulled.bytes,
            fetched_bytes = pulled.fetched_bytes,
            "the image is in the store"
        );
        let digest = pulled.manifest_digest;
        let (store, owner) = (self.store.clone(), owner.to_owned());
        // `pin` blocks until it has the store's lock.
        match tokio::task::spawn_blocking(move || store.pin(&owner, &digest)).await {
            Ok(pinned) => pinned?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        Ok(digest)
    }

    /// Pulls an image into the store without pinning it, and reports the progress.
    pub async fn pull_reference(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        progress: &PullProgress,
    ) -> Result<Digest, PackageImageError> {
        let pulled = self
            .puller
            .pull_with(reference, credentials, progress)
            .await?;
        Ok(pulled.manifest_digest)
    }

    /// The digest of the package's image if it is in the store. Does not ask the registry.
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use skyhook_oci::chain;

    use super::*;
    use crate::host::Host;

    #[test]
    fn errors_of_the_store_have_the_paths_of_the_host() {
        let test = "image::tests::errors_of_the_store_have_the_paths_of_the_host";
        if !skyhook_testkit::in_own_mounts(test) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        // A file system without room for the directories of the store.
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "nr_inodes=4", "none"]);
        assert!(mount.arg(directory.path()).status().unwrap().success());
        let host = Host::open(directory.path()).unwrap();
        let store = host.files.locate("/var/lib/skyhook-agent/images").unwrap();
        let limits = ImageArgs::default();
        let error = Images::open(&store, &host.files, Registries::default(), &limits).unwrap_err();
        let text = chain(&error);
        assert!(
            text.starts_with("cannot create /var/lib/skyhook-agent/images/"),
            "{text}"
        );
        for error in [
            StoreError::NoRoom {
                path: store.clone(),
                needed: 2,
                free: 1,
            },
            StoreError::Locked {
                path: store.join("lock"),
                seconds: 60,
            },
        ] {
            let pull = PullError::Store {
                reference: "r/p:1".into(),
                source: error,
            };
            let text = chain(&PackageImageError::from(pull).shown_in(&host.files));
            assert!(text.contains("/var/lib/skyhook-agent/images"), "{text}");
            assert!(!text.contains(directory.path().to_str().unwrap()), "{text}");
        }
    }
}
