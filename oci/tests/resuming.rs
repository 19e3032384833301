//! Downloads that break: what was received is kept, and the next pull downloads the rest, also after a restart of the
//! agent.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use skyhook_oci::{Digest, Limits, Puller, Store, StoreConfig};

use crate::host::{Host, NO_ROOM, configured, hasty};
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::{Answer, Body, Liar, Request};

/// A server that breaks off its answers for layers after `limit` bytes, until it is told to stop that.
struct Breaking {
    liar: Liar,
    is_broken: Arc<AtomicBool>,
}

impl Breaking {
    fn start(image: Image, limit: usize) -> Self {
        let is_broken = Arc::new(AtomicBool::new(true));
        let broken = Arc::clone(&is_broken);
        let liar = Liar::start(move |request| {
            let mut answer = image.answer(request);
            if broken.load(Ordering::SeqCst)
                && let Body::Whole(bytes) = &answer.body
                && request.path.contains("/blobs/")
                && request.range() + bytes.len() > limit
            {
                let bytes = bytes[..limit.saturating_sub(request.range())].to_vec();
                let announced = bytes.len() + 1;
                answer.body = Body::Cut { announced, bytes };
            }
            answer
        });
        Self { liar, is_broken }
    }

    fn mend(&self) {
        self.is_broken.store(false, Ordering::SeqCst);
    }

    fn ranges(&self, layer: Digest) -> Vec<usize> {
        let requests = self.liar.requests();
        let of_layer = |request: &&Request| request.path.contains(&layer.to_string());
        requests
            .iter()
            .filter(of_layer)
            .map(Request::range)
            .collect()
    }
}

impl Host {
    fn partial(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string().replace(':', "-");
        self.dir.path().join("store/partial").join(name)
    }

    fn partial_bytes(&self, digest: Digest) -> usize {
        fs::read(self.partial(digest)).map_or(0, |bytes| bytes.len())
    }

    /// The agent is started again: it opens the store anew.
    fn restarted(self) -> Self {
        let config = StoreConfig {
            room: NO_ROOM,
            ..StoreConfig::default()
        };
        let store = Store::open(self.dir.path().join("store"), config).unwrap();
        let puller = Puller::new(store.clone(), hasty());
        Self {
            dir: self.dir,
            store,
            puller,
        }
    }
}

#[tokio::test]
async fn a_broken_pull_is_continued_after_a_restart() {
    let image = Image::sized(300_000);
    let (layer, size) = (image.layer_digest(0), image.layers[0].blob.len());
    let server = Breaking::start(image, 270_000);
    let host = Host::new();
    let error = host.pull(&server.liar).await.unwrap_err();
    assert_eq!(error.kind(), "http");
    assert_eq!(host.partial_bytes(layer), 270_000);
    host.assert_nothing_pulled().await;
    let before = server.ranges(layer).len();
    server.mend();
    let host = host.restarted();
    let pulled = host.pull(&server.liar).await.unwrap();
    assert_eq!(server.ranges(layer)[before..], [270_000]);
    assert_eq!(pulled.fetched_bytes, (size - 270_000) as u64);
    assert!(!host.partial(layer).exists());
    host.assert_intact();
    host.unpack(&pulled.manifest_digest).await.unwrap();
}

/// A pull that is called off, as when the agent stops, keeps what it has received.
#[tokio::test]
async fn a_pull_that_is_called_off_is_continued() {
    let image = Image::sized(300_000);
    let layer = image.layer_digest(0);
    let (served, is_slow) = (image.clone(), Arc::new(AtomicBool::new(true)));
    let slow = Arc::clone(&is_slow);
    let liar = Liar::start(move |request| {
        let answer = served.answer(request);
        let is_layer = request.path.contains(&layer.to_string());
        match answer.whole() {
            Some(mut bytes) if is_layer && slow.load(Ordering::SeqCst) => {
                let announced = bytes.len();
                bytes.truncate(200_000);
                answer.body(Body::Stuck { announced, bytes })
            }
            Some(_) | None => answer,
        }
    });
    let host = Host::new();
    let mut config = hasty();
    config.timeouts.slow_window = Duration::from_secs(60);
    config.timeouts.read = Duration::from_secs(60);
    let host = Host {
        puller: Puller::new(host.store.clone(), config),
        ..host
    };
    {
        let mut pull = std::pin::pin!(host.pull(&liar));
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while host.partial_bytes(layer) < 200_000 {
            tokio::select! {
                result = &mut pull => panic!("{result:?}"),
                _ = tick.tick() => {}
            }
        }
    }
    is_slow.store(false, Ordering::SeqCst);
    let before = liar.requests().len();
    host.pull(&liar).await.unwrap();
    let requests = liar.requests();
    let layer_requests: Vec<_> = requests[before..]
        .iter()
        .filter(|request| request.path.contains(&layer.to_string()))
        .map(Request::range)
        .collect();
    assert_eq!(layer_requests, [200_000]);
    host.assert_intact();
}

/// What a partial blob may be after a power cut or a mistake, and whether its bytes are downloaded again.
#[tokio::test]
async fn a_partial_blob_is_never_believed() {
    let image = Image::sized(300_000);
    let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
    let mut torn = blob[..200_000].to_vec();
    torn[150_000..].fill(0);
    let table: [(&str, Vec<u8>, &[usize]); 6] = [
        ("right", blob[..200_000].to_vec(), &[200_000]),
        ("empty", Vec::new(), &[0]),
        ("torn", torn, &[200_000, 0]),
        ("whole", blob.clone(), &[]),
        ("whole but wrong", vec![7; blob.len()], &[0]),
        ("too long", vec![7; blob.len() + 1], &[0]),
    ];
    for (name, content, want) in table {
        let server = Breaking::start(image.clone(), usize::MAX);
        let host = Host::new();
        fs::write(host.partial(layer), content).unwrap();
        host.pull(&server.liar).await.unwrap();
        assert_eq!(server.ranges(layer), want, "{name}");
        assert!(!host.partial(layer).exists(), "{name}");
        host.assert_intact();
    }
}

/// What servers answer to a request for the rest of a blob.
#[tokio::test]
async fn servers_that_cannot_continue_send_the_blob_from_its_start() {
    let image = Image::sized(300_000);
    let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
    let whole = move |status| {
        let mut answer = Answer::ok(blob.clone());
        answer.status = status;
        answer
    };
    type Rule = Box<dyn Fn() -> Answer + Send + Sync>;
    let rules: [(&str, Rule); 5] = [
        (
            "it ignores the range",
            Box::new({
                let whole = whole.clone();
                move || whole(200)
            }),
        ),
        ("no such range", Box::new(|| Answer::new(416))),
        (
            "another range",
            Box::new({
                let whole = whole.clone();
                move || whole(206).header("Content-Range", "bytes 0-300000/300001")
            }),
        ),
        (
            "a range in another unit",
            Box::new({
                let whole = whole.clone();
                move || whole(206).header("Content-Range", "items 200000-3/4")
            }),
        ),
        ("no range", Box::new(move || whole(206))),
    ];
    for (name, rule) in rules {
        let served = image.clone();
        let liar = Liar::start(move |request| {
            let is_layer = request.path.contains(&layer.to_string());
            match is_layer && request.range() > 0 {
                true => rule(),
                false => served.answer(request),
            }
        });
        let host = Host::new();
        fs::write(host.partial(layer), vec![7; 200_000]).unwrap();
        host.pull(&liar).await.unwrap();
        host.assert_intact();
        assert!(!host.partial(layer).exists(), "{name}");
    }
}

/// A server that is stuck for a while must not cost what was received before.
#[tokio::test]
async fn a_stall_without_a_single_byte_keeps_what_was_received() {
    let image = Image::sized(300_000);
    let layer = image.layer_digest(0);
    let times = AtomicUsize::new(0);
    let served = image.clone();
    let liar = Liar::start(move |request| {
        let answer = served.answer(request);
        let Body::Whole(bytes) = answer.body.clone() else {
            return answer;
        };
        if !request.path.contains(&layer.to_string()) {
            return answer;
        }
        let announced = bytes.len();
        match times.fetch_add(1, Ordering::SeqCst) {
            0 => answer.body(Body::Cut {
                announced,
                bytes: bytes[..200_000].to_vec(),
            }),
            1 | 2 => answer.body(Body::Stuck {
                announced,
                bytes: Vec::new(),
            }),
            _ => answer,
        }
    });
    let host = Host::new();
    host.pull(&liar).await.unwrap();
    let ranges: Vec<_> = liar
        .requests()
        .iter()
        .filter(|request| request.path.contains(&layer.to_string()))
        .map(Request::range)
        .collect();
    assert_eq!(ranges, [0, 200_000, 200_000, 200_000]);
    host.assert_intact();
}

/// A slow link that goes on is never given up, however long the pull takes. The link breaks now and then.
#[tokio::test]
async fn a_slow_pull_that_goes_on_is_never_given_up() {
    let image = Image::sized(200_000);
    let layer = image.layer_digest(0);
    let served = image.clone();
    let liar = Liar::start(move |request| {
        let answer = served.answer(request);
        match answer.whole() {
            Some(bytes) if request.path.contains(&layer.to_string()) => answer.body(Body::Paced {
                bytes,
                piece: 10_000,
                pause: Duration::from_millis(100),
            }),
            Some(_) | None => answer,
        }
    });
    let host = Host::new();
    let started = std::time::Instant::now();
    host.pull(&liar).await.unwrap();
    // Several times the window in which a stalled download is given up.
    assert!(started.elapsed() > 5 * hasty().timeouts.slow_window);
    assert_eq!(liar.count(&layer.to_string()), 1);
    host.assert_intact();
}

/// Two mirrors: the first one begins the blob and then fails. The second one is asked for the rest only.
#[tokio::test]
async fn another_mirror_continues_the_blob() {
    let image = Image::sized(300_000);
    let layer = image.layer_digest(0);
    let times = Arc::new(AtomicUsize::new(0));
    let (served, seen) = (image.clone(), Arc::clone(&times));
    let first = Liar::start(move |request| {
        let answer = served.answer(request);
        match answer.whole() {
            Some(bytes) if request.path.contains(&layer.to_string()) => {
                match seen.fetch_add(1, Ordering::SeqCst) {
                    0 => answer.body(Body::Cut {
                        announced: bytes.len(),
                        bytes: bytes[..100_000].to_vec(),
                    }),
                    _ => Answer::new(503),
                }
            }
            Some(_) | None => answer,
        }
    });
    let served = image.clone();
    let second = Liar::start(move |request| served.answer(request));
    let mirrors = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
        first.host(),
        second.host()
    );
    let host = Host::with(configured("registry.example", &mirrors), Limits::default());
    let reference = "registry.example/p:1".parse().unwrap();
    let anonymous = skyhook_oci::Credentials::anonymous();
    host.puller.pull(&reference, &anonymous).await.unwrap();
    let from_second: Vec<_> = second.requests().iter().map(Request::range).collect();
    assert_eq!(from_second, [100_000]);
    host.assert_intact();
}

/// Partial blobs count in the size of the store, and are removed like images that nobody pins: the oldest first.
#[tokio::test]
async fn partial_blobs_are_collected() {
    let image = Image::sized(100_000);
    let served = image.clone();
    let liar = Liar::start(move |request| served.answer(request));
    let config = StoreConfig {
        max_bytes: 150_000,
        room: NO_ROOM,
        ..StoreConfig::default()
    };
    let host = Host::with_store(hasty(), config);
    let names = ["old", "new"].map(|name| Digest::of(name.as_bytes()));
    let now = SystemTime::now();
    let make = |digest: Digest, age: u64| {
        fs::write(host.partial(digest), vec![1; 40_000]).unwrap();
        let file = fs::File::options().write(true).open(host.partial(digest));
        let time = now - Duration::from_secs(age);
        file.unwrap().set_modified(time).unwrap();
    };
    make(names[0], 3600);
    host.pull(&liar).await.unwrap();
    let images = host.store.bytes().unwrap() - 40_000;
    assert!(images > 100_000);
    make(names[1], 60);
    assert_eq!(host.store.bytes().unwrap(), images + 80_000);
    // Over the size by 30,000 bytes: the oldest one goes. Nothing else is too old.
    let collected = host.store.collect(now).unwrap();
    assert_eq!(
        (collected.images, collected.blobs, collected.bytes),
        (0, 1, 40_000)
    );
    assert_eq!(names.map(|name| host.partial(name).exists()), [false, true]);
    let week = Duration::from_secs(7 * 24 * 3600);
    let collected = host
        .store
        .collect(now + week - Duration::from_secs(120))
        .unwrap();
    assert_eq!((collected.images, collected.blobs), (0, 0));
    let collected = host.store.collect(now + week).unwrap();
    assert_eq!((collected.images, collected.blobs), (0, 1));
    assert!(!host.partial(names[1]).exists());
    // A partial blob that is complete elsewhere, and a file that is none.
    fs::write(host.partial(image.layer_digest(0)), "x").unwrap();
    fs::write(host.dir.path().join("store/partial/rubbish"), "x").unwrap();
    assert_eq!(host.store.collect(now).unwrap().blobs, 2);
    host.assert_intact();
}

/// Images that nobody pins are removed when they were not used for too long, if the settings say so.
#[tokio::test]
async fn unused_images_are_removed_when_they_are_too_old() {
    let config = StoreConfig {
        max_unused: Some(Duration::from_secs(3600)),
        room: NO_ROOM,
        ..StoreConfig::default()
    };
    let host = Host::with_store(hasty(), config);
    let mut digests = Vec::new();
    for size in [10_000, 11_000] {
        let image = Image::sized(size);
        let liar = Liar::start(move |request| image.answer(request));
        digests.push(host.pull(&liar).await.unwrap().manifest_digest);
    }
    host.store.pin("owner", &digests[0]).unwrap();
    let now = SystemTime::now();
    let later = now + Duration::from_secs(3700);
    for (time, want) in [(now, 0), (later, 1), (later, 0)] {
        assert_eq!(host.store.collect(time).unwrap().images, want);
    }
    assert!(host.store.image(&digests[0]).is_ok());
    assert_eq!(
        host.store.image(&digests[1]).unwrap_err().kind(),
        "no_image"
    );
}

/// The free space that a pull needs is what it has yet to download. The file system has 2 MiB.
#[tokio::test]
async fn what_is_there_in_part_needs_no_room_again() {
    if !skyhook_testkit::in_own_mounts("resuming::what_is_there_in_part_needs_no_room_again") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=2m", "none"]);
    assert!(mount.arg(dir.path()).status().unwrap().success());
    let store = Store::open(dir.path().join("store"), StoreConfig::default()).unwrap();
    let puller = Puller::new(store.clone(), hasty());
    let host = Host { dir, store, puller };
    let image = Image::sized(1_500_000);
    let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
    let liar = Liar::start(move |request| image.answer(request));
    fs::write(host.partial(layer), &blob[..1_200_000]).unwrap();
    let pulled = host.pull(&liar).await.unwrap();
    assert_eq!(pulled.fetched_bytes, (blob.len() - 1_200_000) as u64);
}

/// Another process downloads the same blob into the same store.
#[tokio::test]
async fn two_processes_never_write_the_same_partial_blob() {
    let image = Image::sized(100_000);
    let layer = image.layer_digest(0);
    let served = image.clone();
    let liar = Liar::start(move |request| served.answer(request));
    let host = Host::new();
    fs::write(host.partial(layer), "of the other process").unwrap();
    let other = fs::File::open(host.partial(layer)).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    host.pull(&liar).await.unwrap();
    assert_eq!(host.partial_bytes(layer), 20, "it is left alone");
    host.assert_intact();
}

/// Several layers are downloaded at once, and each one is continued where it broke.
#[tokio::test]
async fn all_layers_of_a_broken_pull_are_continued() {
    let noise = |number: u8| {
        let content: Vec<u8> = (0..200_000_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ number)
            .collect();
        Layer::plain(&tar(&[Entry::file(
            &format!("skyhook-package/{number}"),
            content,
        )]))
    };
    let image = Image::new((0..5).map(noise).collect());
    let layers: Vec<_> = (0..5).map(|index| image.layer_digest(index)).collect();
    let server = Breaking::start(image, 150_000);
    let config = skyhook_oci::PullerConfig {
        parallel_layers: 5,
        ..hasty()
    };
    let host = Host::with(config, Limits::default());
    // The first layer that fails ends the pull, so not all of them get as far the first time.
    let held = || -> usize { layers.iter().map(|layer| host.partial_bytes(*layer)).sum() };
    for _ in 0..20 {
        host.pull(&server.liar).await.unwrap_err();
        if held() == 5 * 150_000 {
            break;
        }
    }
    assert_eq!(held(), 5 * 150_000);
    server.mend();
    host.pull(&server.liar).await.unwrap();
    let sizes: Vec<_> = layers.iter().map(|layer| server.ranges(*layer)).collect();
    for ranges in sizes {
        assert_eq!(ranges.last(), Some(&150_000));
        // A pull may be over before a layer has brought its first byte, but no byte is asked for twice.
        assert!(ranges.is_sorted(), "{ranges:?}");
    }
    host.assert_intact();
}
