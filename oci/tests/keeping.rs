//! The store: damaged blobs, crashes, limits of size.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use skyhook_oci::{
    Collected, Credentials, Digest, Limits, Puller, PullerConfig, Reference, Room, Store,
    StoreConfig,
};

use crate::host::{Host, NO_ROOM, hasty};
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::Liar;

impl Host {
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir
            .path()
            .join("store/blobs/sha256")
            .join(digest.hex())
    }

    fn blobs(&self) -> usize {
        fs::read_dir(self.dir.path().join("store/blobs/sha256"))
            .unwrap()
            .count()
    }
}

/// A time after everything that a test has written.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(1)
}

#[tokio::test]
async fn damage_is_noticed_and_fetched_again() {
    let image = Image::sized(100_000);
    let (layer, config) = (image.layer_digest(0), Digest::of(&image.config));
    let manifest = image.manifest_digest();
    let liar = Liar::start(move |request| image.answer(request));
    for victim in [layer, config, manifest] {
        for damage in ["one bit", "shorter", "gone", "empty"] {
            let host = Host::new();
            host.pull(&liar).await.unwrap();
            let path = host.blob(&victim);
            let mut bytes = fs::read(&path).unwrap();
            match damage {
                "one bit" => bytes[20] ^= 1,
                "shorter" => bytes.truncate(bytes.len() / 2),
                _ => bytes.clear(),
            }
            fs::write(&path, &bytes).unwrap();
            if damage == "gone" {
                fs::remove_file(&path).unwrap();
            }
            let error = host.unpack(&manifest).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.is_transient()),
                ("blob_damaged", true),
                "{damage}"
            );
            assert!(!host.target().exists());
            // The next pull downloads only the damaged blob.
            let before = liar.count("/blobs/");
            let pulled = host.pull(&liar).await.unwrap();
            let fetched = if victim == manifest { 0 } else { 1 };
            assert_eq!(liar.count("/blobs/") - before, fetched, "{damage}");
            host.unpack(&pulled.manifest_digest).await.unwrap();
            host.assert_blobs_are_whole();
        }
    }
}

impl Host {
    fn assert_blobs_are_whole(&self) {
        for entry in fs::read_dir(self.dir.path().join("store/blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert_eq!(Digest::of(&fs::read(&path).unwrap()).hex(), name);
        }
    }
}

#[tokio::test]
async fn what_a_crash_left_is_removed_but_not_what_is_in_use() {
    let host = Host::new();
    let torn = host.dir.path().join("store/tmp/.tmpTorn");
    fs::write(&torn, "half a blob").unwrap();
    drop(Store::open(host.dir.path().join("store"), StoreConfig::default()).unwrap());
    assert!(!torn.exists());

    // Another process opens the store while a blob is being downloaded.
    let image = Image::sized(100_000);
    let layer = image.layer_digest(0);
    let dir = host.dir.path().join("store");
    let liar = Liar::start(move |request| {
        if request.path.contains(&layer.to_string()) {
            drop(Store::open(&dir, StoreConfig::default()).unwrap());
        }
        image.answer(request)
    });
    let pulled = host.pull(&liar).await.unwrap();
    host.unpack(&pulled.manifest_digest).await.unwrap();

    // A crash in an unpack leaves a scratch directory. The next unpack removes it.
    fs::remove_dir_all(host.target()).unwrap();
    let stage = host.dir.path().join("out/.package.unpacking/layer0");
    fs::create_dir_all(&stage).unwrap();
    fs::write(stage.join("0"), "torn").unwrap();
    host.unpack(&pulled.manifest_digest).await.unwrap();
    assert_eq!(
        fs::read_dir(host.dir.path().join("out")).unwrap().count(),
        1
    );
}

#[tokio::test]
async fn the_least_recently_used_go_first_and_the_pinned_never() {
    let host = Host::with(hasty(), Limits::default());
    let small = StoreConfig {
        max_bytes: 250_000,
        room: NO_ROOM,
        ..StoreConfig::default()
    };
    let store = Store::open(host.dir.path().join("store"), small).unwrap();
    // Each image has one layer of its own, and one layer that all images share.
    let shared = Layer::gzip(&tar(&[Entry::file("base", "shared by all")]));
    let images: Vec<Image> = (0..4)
        .map(|number| {
            let own = Image::sized(100_000 + number).layers[0].clone();
            Image::new(vec![shared.clone(), own])
        })
        .collect();
    let mut digests = Vec::new();
    for image in &images {
        let served = image.clone();
        let liar = Liar::start(move |request| served.answer(request));
        digests.push(host.pull(&liar).await.unwrap().manifest_digest);
        // The times of last use must differ, even if the clock of the file system is coarse.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(host.blobs(), 4 * 3 + 1, "the shared layer is there once");
    store.pin("oldest", &digests[0]).unwrap();
    let target = skyhook_oci::Target::path(host.target());
    store
        .unpack_blocking(&digests[1], &target, skyhook_oci::UnpackOptions::default())
        .unwrap();
    let collected = store.collect(SystemTime::now()).unwrap();
    assert_eq!((collected.images, collected.blobs), (2, 6), "{collected:?}");
    let left: Vec<bool> = digests
        .iter()
        .map(|digest| store.image(digest).is_ok())
        .collect();
    assert_eq!(
        left,
        [true, true, false, false],
        "pinned, used just now, and the others"
    );
    host.assert_intact();

    let nothing = StoreConfig {
        max_bytes: 0,
        room: NO_ROOM,
        ..StoreConfig::default()
    };
    let store = Store::open(host.dir.path().join("store"), nothing).unwrap();
    store.collect(SystemTime::now()).unwrap();
    assert_eq!(store.pins().unwrap(), [("oldest".to_owned(), digests[0])]);
    host.assert_intact();
    assert!(store.bytes().unwrap() > 100_000);
    store.unpin_others(&BTreeSet::new(), later()).unwrap();
    store.collect(SystemTime::now()).unwrap();
    assert_eq!((host.blobs(), store.bytes().unwrap()), (0, 0));
    assert_eq!(store.image(&digests[0]).unwrap_err().kind(), "no_image");
}

/// The collector runs in the middle of a pull, as another process may run it. It removes an old image, except for the layer
/// that the pull needs, and nothing of the new image.
#[tokio::test]
async fn what_a_pull_needs_is_not_collected_under_it_and_the_rest_is() {
    let shared = Layer::gzip(&tar(&[Entry::file("base", "shared by both")]));
    let [old, new] = [10_000, 11_000].map(|size| {
        let own = Image::sized(size).layers[0].clone();
        Image::new(vec![shared.clone(), own])
    });
    let nothing = StoreConfig {
        max_bytes: 0,
        room: NO_ROOM,
        ..StoreConfig::default()
    };
    // If another process writes the partial blob, the pull writes a temporary file.
    for is_temporary in [false, true] {
        let config = PullerConfig {
            parallel_layers: 1,
            ..hasty()
        };
        let host = Host::with(config, Limits::default());
        let served = old.clone();
        let liar = Liar::start(move |request| served.answer(request));
        host.pull(&liar).await.unwrap();
        let dir = host.dir.path().join("store");
        let partial = format!("partial/sha256-{}", new.layer_digest(1).hex());
        let other = fs::File::create(dir.join(&partial)).unwrap();
        if is_temporary {
            rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
        }
        let (served, of_other, config) = (new.clone(), dir.clone(), nothing.clone());
        let collected = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&collected);
        let liar = Liar::start(move |request| {
            if request.path.contains("/blobs/") {
                let store = Store::open(&of_other, config.clone()).unwrap();
                seen.lock().unwrap().push(store.collect(SystemTime::now()));
            }
            served.answer(request)
        });
        let pulled = host.pull(&liar).await.unwrap();
        host.unpack(&pulled.manifest_digest).await.unwrap();
        assert_eq!(liar.count("/blobs/"), 2, "its config and its own layer");
        let collected: Vec<_> = collected
            .lock()
            .unwrap()
            .drain(..)
            .map(Result::unwrap)
            .collect();
        assert_eq!(collected.iter().filter(|it| it.skipped).count(), 0);
        let removed: Vec<_> = collected.iter().map(|it| (it.images, it.blobs)).collect();
        assert_eq!(
            removed,
            [(1, 3), (0, 0)],
            "manifest, config and layer of the old image"
        );
        // After the pull, nothing protects the image any more: also not what a killed pull has left.
        assert_eq!(fs::read_dir(dir.join("leases")).unwrap().count(), 0);
        let line = format!("{}\n", new.layer_digest(1));
        fs::write(dir.join("leases/killed"), line).unwrap();
        let store = Store::open(&dir, nothing.clone()).unwrap();
        assert_eq!(store.collect(SystemTime::now()).unwrap().images, 1);
        assert_eq!(host.blobs(), 0);
        assert!(!dir.join("leases/killed").exists());
    }
}

#[tokio::test]
async fn nothing_is_collected_while_the_store_is_held() {
    let host = Host::new();
    let lock = fs::File::open(host.dir.path().join("store/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).unwrap();
    let skipped = Collected {
        skipped: true,
        ..Collected::default()
    };
    assert_eq!(host.store.collect(SystemTime::now()).unwrap(), skipped);
}

#[tokio::test]
async fn a_lock_that_somebody_holds_blocks_nothing_for_ever() {
    let image = Image::sized(10_000);
    let config = StoreConfig {
        lock_patience: Duration::from_millis(500),
        room: NO_ROOM,
        ..StoreConfig::default()
    };
    let host = Host::with_store(hasty(), config);
    let lock = host.dir.path().join("store/lock");
    // The lock file is readable for everybody, as an earlier version made it. The store must change that.
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o644)).unwrap();
    let served = image.clone();
    let liar = Liar::start(move |request| served.answer(request));
    let held = fs::File::open(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut others = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let begin = std::time::Instant::now();
    let mut pull = std::pin::pin!(host.pull(&liar));
    let refused = loop {
        tokio::select! {
            result = &mut pull => break result.unwrap_err(),
            _ = tick.tick() => others += 1,
        }
    };
    let took = begin.elapsed();
    assert!((500..5000).contains(&took.as_millis()), "{took:?}");
    assert!(others > 10, "others had {others} turns");
    let told = skyhook_oci::chain(&refused);
    assert!(
        told.contains("store/lock has been locked by another process"),
        "{told}"
    );
    assert_eq!(
        host.store.pin("p", &Digest::of(b"")).unwrap_err().kind(),
        "locked"
    );
    // If the lock is released in time, a pull waits for it and succeeds.
    let release = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(held);
    });
    host.pull(&liar).await.unwrap();
    release.await.unwrap();
    let mode = fs::metadata(&lock).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_pull_that_does_not_fit_says_what_is_needed_and_fetches_nothing() {
    let mut image = Image::sized(100_000);
    // This size is larger than any disk. Before the download, the size in the manifest is all that is known.
    image.manifest["layers"][0]["size"] = serde_json::json!(1_u64 << 60);
    let served = image.clone();
    let liar = Liar::start(move |request| served.answer(request));
    let config = StoreConfig {
        limits: Limits {
            image_bytes: u64::MAX,
            ..Limits::default()
        },
        ..StoreConfig::default()
    };
    let host = Host::with_store(hasty(), config);
    let error = host.pull(&liar).await.unwrap_err();
    let text = skyhook_oci::chain(&error);
    let path = host.dir.path().join("store");
    assert!(
        text.contains(&format!("the file system of {} has ", path.display()))
            && text.contains(" free, and 10737418"),
        "{text}"
    );
    assert_eq!(error.kind(), "no_room");
    assert_eq!(liar.count("/blobs/"), 0);
}

/// The disk must be completely free, which is never the case.
fn never_enough_room() -> StoreConfig {
    StoreConfig {
        room: Room {
            percent: 100,
            bytes: u64::MAX,
            after_pull: 0,
        },
        ..StoreConfig::default()
    }
}

/// The store requires a disk that is completely free, which is never the case. So images that nobody pins are
/// removed, and pinned images stay.
#[tokio::test]
async fn images_that_nobody_pins_go_when_the_disk_is_too_full() {
    let image = Image::sized(100_000);
    let served = image.clone();
    let liar = Liar::start(move |request| served.answer(request));
    let host = Host::new();
    let manifest = host.pull(&liar).await.unwrap().manifest_digest;
    let store = Store::open(host.dir.path().join("store"), never_enough_room()).unwrap();
    store.pin("owner", &manifest).unwrap();
    store.collect(SystemTime::now()).unwrap();
    assert!(store.image(&manifest).is_ok());
    store.unpin_others(&BTreeSet::new(), later()).unwrap();
    store.collect(SystemTime::now()).unwrap();
    assert_eq!(host.blobs(), 0);
}

/// The next lease may have pulled and pinned an image after the list of owners was made.
#[tokio::test]
async fn a_pin_that_is_newer_than_the_list_of_owners_stays() {
    let image = Image::sized(10_000);
    let served = image.clone();
    let liar = Liar::start(move |request| served.answer(request));
    let host = Host::new();
    let nothing = StoreConfig {
        max_bytes: 0,
        room: NO_ROOM,
        ..StoreConfig::default()
    };
    let store = Store::open(host.dir.path().join("store"), nothing).unwrap();
    let (owners, since) = (["known".to_owned()].into(), SystemTime::now());
    let manifest = host.pull(&liar).await.unwrap().manifest_digest;
    for owner in ["known", "gone"] {
        store.pin(owner, &manifest).unwrap();
    }
    store.unpin_others(&owners, since).unwrap();
    store.collect(SystemTime::now()).unwrap();
    assert_eq!(store.pins().unwrap().len(), 2);
    assert!(store.image(&manifest).is_ok());
    store.unpin_others(&owners, later()).unwrap();
    assert_eq!(store.pins().unwrap(), [("known".to_owned(), manifest)]);
    store.unpin_others(&BTreeSet::new(), later()).unwrap();
    store.collect(SystemTime::now()).unwrap();
    assert_eq!(host.blobs(), 0);
}

impl Host {
    /// Pulls an image as an agent does.
    async fn pull_making_room(&self, image: &Image) -> Result<Digest, skyhook_oci::PullError> {
        let served = image.clone();
        let liar = Liar::start(move |request| served.answer(request));
        let reference: Reference = format!("{}/p:1", liar.host()).parse().unwrap();
        let anonymous = Credentials::anonymous();
        let pulled = self.puller.pull_making_room(&reference, &anonymous).await?;
        Ok(pulled.manifest_digest)
    }
}

#[tokio::test]
async fn images_that_nobody_pins_go_before_a_pull_that_would_leave_too_little_room() {
    let host = Host::with_store(hasty(), never_enough_room());
    let [unused, pinned, new] = [10_000, 11_000, 12_000].map(Image::sized);
    let mut digests = Vec::new();
    for image in [&unused, &pinned] {
        let served = image.clone();
        let liar = Liar::start(move |request| served.answer(request));
        digests.push(host.pull(&liar).await.unwrap().manifest_digest);
    }
    host.store.pin("owner", &digests[1]).unwrap();
    let digest = host.pull_making_room(&new).await.unwrap();
    assert!(host.store.image(&digest).is_ok());
    assert_eq!(
        host.store.image(&digests[0]).unwrap_err().kind(),
        "no_image"
    );
    assert!(host.store.image(&digests[1]).is_ok());
}

#[tokio::test]
async fn an_image_that_does_not_fit_is_pulled_after_another_was_removed() {
    let test = "keeping::an_image_that_does_not_fit_is_pulled_after_another_was_removed";
    if !skyhook_testkit::in_own_mounts(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=2m", "none"]);
    assert!(mount.arg(dir.path()).status().unwrap().success());
    let store = Store::open(dir.path().join("store"), StoreConfig::default()).unwrap();
    let puller = Puller::new(store.clone(), hasty());
    let host = Host { dir, store, puller };
    let [old, new] = [1_200_000, 1_300_000].map(Image::sized);
    let old = host.pull_making_room(&old).await.unwrap();
    host.store.pin("owner", &old).unwrap();
    let error = host.pull_making_room(&new).await.unwrap_err();
    assert_eq!(error.kind(), "no_room");
    assert!(host.store.image(&old).is_ok(), "a pinned image stays");
    host.store.unpin_others(&BTreeSet::new(), later()).unwrap();
    let new = host.pull_making_room(&new).await.unwrap();
    assert!(host.store.image(&new).is_ok());
    assert_eq!(host.store.image(&old).unwrap_err().kind(), "no_image");
}
