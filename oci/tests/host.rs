//! A host for a test: a store, a puller with short timeouts, and checks of the files on disk.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use skyhook_oci::{
    Credentials, Digest, Limits, Platform, PullError, Pulled, Puller, PullerConfig, Reference,
    Room, Store, StoreConfig, StoreError, Target, Timeouts, UnpackOptions, Unpacked,
};
use tempfile::TempDir;

use crate::image::Image;
use crate::liar::Liar;
use crate::support::listing;

pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) puller: Puller,
}

/// Settings with timeouts that are short enough for a test, and long enough for a busy machine.
pub(crate) fn hasty() -> PullerConfig {
    PullerConfig {
        platform: Platform::new("linux", "amd64", None),
        timeouts: Timeouts {
            read: Duration::from_secs(2),
            slow_window: Duration::from_millis(300),
            slow_bytes: 1 << 10,
            max_wait: Duration::from_secs(2),
            backoff: Duration::from_millis(4),
            tries: 4,
            ..Timeouts::default()
        },
        ..PullerConfig::default()
    }
}

/// Settings as [`hasty`] has them, with this `hosts.toml` for the registry.
pub(crate) fn configured(registry: &str, hosts_toml: &str) -> PullerConfig {
    let dir = tempfile::tempdir().unwrap();
    let registry_dir = dir.path().join(registry);
    fs::create_dir(&registry_dir).unwrap();
    fs::write(registry_dir.join("hosts.toml"), hosts_toml).unwrap();
    PullerConfig {
        hosts_dir: Some(dir.keep()),
        ..hasty()
    }
}

/// One login, for the images that match `pattern`.
pub(crate) fn login(pattern: &str, username: &str, password: &str) -> Credentials {
    let config = serde_json::json!({"auths": {
        pattern: {"username": username, "password": password},
    }});
    Credentials::from_docker_config(config.to_string().as_bytes()).unwrap()
}

/// No free space is required, so the tests pass on a disk of any fill level.
pub(crate) const NO_ROOM: Room = Room {
    percent: 0,
    bytes: 0,
    after_pull: 0,
};

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(hasty(), Limits::default())
    }

    pub(crate) fn with(config: PullerConfig, limits: Limits) -> Self {
        let config_of_store = StoreConfig {
            limits,
            room: NO_ROOM,
            ..StoreConfig::default()
        };
        Self::with_store(config, config_of_store)
    }

    pub(crate) fn with_store(config: PullerConfig, config_of_store: StoreConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), config_of_store).unwrap();
        let puller = Puller::new(store.clone(), config);
        Self { dir, store, puller }
    }

    pub(crate) async fn pull(&self, liar: &Liar) -> Result<Pulled, PullError> {
        let reference: Reference = format!("{}/p:1", liar.host()).parse().unwrap();
        self.puller
            .pull(&reference, &Credentials::anonymous())
            .await
    }

    /// Checks that every blob has the content that its name says.
    pub(crate) fn assert_intact(&self) {
        for entry in fs::read_dir(self.dir.path().join("store/blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let digest = Digest::of(&fs::read(&path).unwrap());
            assert!(path.ends_with(digest.hex()), "{}", path.display());
        }
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.dir.path().join("out/package")
    }

    pub(crate) async fn unpack(&self, manifest: &Digest) -> Result<Unpacked, StoreError> {
        let options = UnpackOptions::default();
        self.store
            .unpack(manifest, &Target::path(self.target()), options)
            .await
    }

    /// Pulls an image from an honest server and unpacks it.
    pub(crate) async fn install(&self, image: Image) -> Result<Vec<String>, StoreError> {
        let liar = Liar::start(move |request| image.answer(request));
        let pulled = self.pull(&liar).await.unwrap();
        self.unpack(&pulled.manifest_digest).await?;
        Ok(listing(&self.target()))
    }

    /// Checks that every blob has the content that its name says, and that no temporary file is left. When a pull is
    /// dropped, its writer thread ends a moment later, so this function waits for it.
    pub(crate) async fn assert_clean(&self) {
        let store = self.dir.path().join("store");
        for _ in 0..200 {
            if fs::read_dir(store.join("tmp")).unwrap().count() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for entry in fs::read_dir(store.join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert_eq!(Digest::of(&fs::read(&path).unwrap()).hex(), name);
        }
        assert_eq!(listing(&store.join("tmp")), Vec::<String>::new(), "tmp");
        let out = self.dir.path().join("out");
        if out.exists() {
            assert_eq!(listing(&out), Vec::<String>::new(), "beside the target");
        }
    }

    /// Does the same as `assert_clean`, and checks that no image is recorded.
    pub(crate) async fn assert_nothing_pulled(&self) {
        self.assert_clean().await;
        for kind in ["images", "refs", "pins"] {
            let lines = listing(&self.dir.path().join("store").join(kind));
            assert_eq!(lines, Vec::<String>::new(), "{kind}");
        }
    }
}
