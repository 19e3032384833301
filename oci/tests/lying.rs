//! Pulls from a registry that sends wrong answers. Only verified content may stay on disk.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use skyhook_oci::{Credentials, Digest, Limits, Reference, RetryClass, chain};

use crate::host::{Host, hasty};
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::{Answer, Body, Liar, Request};

fn is_blob(request: &Request, digest: Digest) -> bool {
    request.path.contains("/blobs/") && request.path.contains(&digest.to_string())
}

#[tokio::test]
async fn wrong_content_at_every_level_is_never_kept() {
    let image = Image::sized(100_000);
    let layer = image.layer_digest(0);
    let config = Digest::of(&image.config);
    let mut same_size = image.layers[0].blob.clone();
    same_size[50_000] ^= 1;
    let mut config_lie = image.config.clone();
    config_lie[3] ^= 1;
    let table = [("layer", layer, same_size), ("config", config, config_lie)];
    for (name, digest, lie) in table {
        let (host, image) = (Host::new(), image.clone());
        let liar = Liar::start(move |request| match is_blob(request, digest) {
            true => Answer::ok(lie.clone()),
            false => image.answer(request),
        });
        let error = host.pull(&liar).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry_class()),
            ("wrong_digest", RetryClass::Transient),
            "{name}"
        );
        assert_eq!(
            liar.count(&digest.to_string()),
            4,
            "{name}: tried as often as configured"
        );
        host.assert_nothing_pulled().await;
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_the_pinned_one_is_refused() {
    let (host, image) = (Host::new(), Image::sized(10));
    let other = Image::sized(11);
    let liar = Liar::start(move |_| Answer::ok(other.manifest_bytes()));
    let pinned = image.manifest_digest();
    let reference: Reference = format!("{}/p:1@{pinned}", liar.host()).parse().unwrap();
    let error = host
        .puller
        .pull(&reference, &Credentials::anonymous())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "wrong_digest");
    host.assert_nothing_pulled().await;
}

#[tokio::test]
async fn an_index_whose_image_is_another_is_refused() {
    let (host, image) = (Host::new(), Image::sized(10));
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(b"something else"), "size": 10,
            "platform": {"os": "linux", "architecture": "amd64"}}]});
    let liar = Liar::start(
        move |request| match request.path.ends_with("/manifests/1") {
            true => Answer::ok(index.to_string()),
            false => Answer::ok(image.manifest_bytes()),
        },
    );
    assert_eq!(host.pull(&liar).await.unwrap_err().kind(), "wrong_digest");
    host.assert_nothing_pulled().await;
}

#[tokio::test]
async fn a_wrong_diff_id_is_found_before_anything_is_in_place() {
    let entries = [
        Entry::dir("skyhook-package"),
        Entry::file("skyhook-package/a", "a"),
    ];
    let mut layer = Layer::gzip(&tar(&entries));
    layer.diff_id = Digest::of(b"a lie");
    let (host, image) = (Host::new(), Image::new(vec![layer]));
    let liar = Liar::start(move |request| image.answer(request));
    let pulled = host.pull(&liar).await.unwrap();
    let error = host.unpack(&pulled.manifest_digest).await.unwrap_err();
    assert_eq!((error.kind(), error.is_transient()), ("diff_id", false));
    assert!(chain(&error).contains(&format!("the image config says {}", Digest::of(b"a lie"))));
    host.assert_clean().await;
    assert!(!host.target().exists());
}

#[tokio::test]
async fn cut_bodies_are_resumed_where_they_broke_off() {
    let image = Image::sized(300_000);
    let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
    let host = Host::new();
    let served = image.clone();
    let liar = Liar::start(move |request| {
        let mut answer = served.answer(request);
        if is_blob(request, layer)
            && let Body::Whole(bytes) = &answer.body
            && bytes.len() > 100_000
        {
            let (announced, bytes) = (bytes.len(), bytes[..100_000].to_vec());
            answer.body = Body::Cut { announced, bytes };
        }
        answer
    });
    let pulled = host.pull(&liar).await.unwrap();
    assert_eq!(pulled.fetched_bytes, blob.len() as u64);
    let ranges: Vec<_> = liar
        .requests()
        .iter()
        .filter(|request| is_blob(request, layer))
        .map(Request::range)
        .collect();
    assert_eq!(ranges, [0, 100_000, 200_000, 300_000][..ranges.len()]);
    assert!(ranges.len() >= 3, "{ranges:?}");
    host.assert_intact();
    host.assert_clean().await;
}

/// The connection breaks after the last byte, as it does when a chunked body has no end. There is nothing left to ask for:
/// a server answers a range that begins at the end with 416.
#[tokio::test]
async fn a_body_that_breaks_after_its_last_byte_is_whole() {
    let image = Image::sized(50_000);
    let layer = image.layer_digest(0);
    let host = Host::new();
    let liar = Liar::start(move |request| {
        let mut answer = image.answer(request);
        if is_blob(request, layer) {
            answer = match (&answer.body, request.range()) {
                (Body::Whole(bytes), 0) => Answer::new(200).body(Body::Cut {
                    announced: bytes.len() + 1,
                    bytes: bytes.clone(),
                }),
                _ => Answer::new(416),
            };
        }
        answer
    });
    host.pull(&liar).await.unwrap();
    assert_eq!(
        liar.count("/blobs/sha256:"),
        2,
        "config and layer, once each"
    );
    host.assert_intact();
}

#[tokio::test]
async fn a_server_that_cannot_resume_or_lies_about_it_is_read_from_the_start() {
    let image = Image::sized(200_000);
    let layer = image.layer_digest(0);
    // The answer to the second request: the whole blob with status 200, or a wrong part of it with status 206.
    for (status, content_range) in [(200, None), (206, Some("bytes 7-200000/200001"))] {
        let (host, image, times) = (Host::new(), image.clone(), AtomicUsize::new(0));
        let liar = Liar::start(move |request| {
            if !is_blob(request, layer) {
                return image.answer(request);
            }
            let blob = image.layers[0].blob.clone();
            match times.fetch_add(1, Ordering::Relaxed) {
                0 => Answer::new(200).body(Body::Cut {
                    announced: blob.len(),
                    bytes: blob[..90_000].to_vec(),
                }),
                _ => {
                    let mut answer = Answer::ok(blob);
                    answer.status = status;
                    answer.headers.extend(
                        content_range.map(|range| ("Content-Range".to_owned(), range.to_owned())),
                    );
                    answer
                }
            }
        });
        host.pull(&liar).await.unwrap();
        host.assert_intact();
        host.assert_clean().await;
    }
}

#[tokio::test]
async fn endless_and_short_bodies_end() {
    let image = Image::sized(50_000);
    let layer = image.layer_digest(0);
    let config = Digest::of(&image.config);
    type Lie = fn(&Image) -> Answer;
    let endless: Lie = |_| Answer::new(200).body(Body::Endless(vec![0; 8192]));
    let short: Lie = |image| Answer::ok(&image.layers[0].blob[..10]);
    for (name, digest, lie, kind) in [
        ("endless layer", layer, endless, "wrong_size"),
        ("endless config", config, endless, "wrong_size"),
        ("short layer", layer, short, "wrong_size"),
    ] {
        let (host, image) = (Host::new(), image.clone());
        let liar = Liar::start(move |request| match is_blob(request, digest) {
            true => lie(&image),
            false => image.answer(request),
        });
        let error = host.pull(&liar).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {}", chain(&error));
        host.assert_nothing_pulled().await;
    }
    let host = Host::new();
    let liar = Liar::start(|_| Answer::new(200).body(Body::Endless(vec![b' '; 8192])));
    let error = host.pull(&liar).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry_class()),
        ("limit", RetryClass::Terminal)
    );
    assert!(chain(&error).ends_with("over the limit manifest_bytes = 4194304"));
    host.assert_nothing_pulled().await;
}

#[tokio::test]
async fn manifest_bombs_are_refused_by_the_limit_they_hit() {
    let descriptor = |size: u64| {
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": Digest::of(b"x"), "size": size})
    };
    let manifest = |layers: Vec<serde_json::Value>, config_size: u64| {
        json!({"schemaVersion": 2, "config": {"mediaType": "c", "digest": Digest::of(b"c"),
            "size": config_size}, "layers": layers})
        .to_string()
    };
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let table = [
        (
            "layers",
            manifest(vec![descriptor(1); 257], 1),
            "over the limit layers = 256",
        ),
        (
            "bytes",
            manifest(vec![descriptor(1 << 62); 2], 1),
            "over the limit image_bytes = 8589934592",
        ),
        (
            "config",
            manifest(vec![], 1 << 40),
            "over the limit manifest_bytes = 4194304",
        ),
        (
            "nesting",
            deep,
            "EOF while parsing a list at line 1 column 100005",
        ),
        (
            "not JSON",
            "<html>".to_owned(),
            "expected value at line 1 column 1",
        ),
    ];
    for (name, text, want) in table {
        let host = Host::new();
        let liar = Liar::start(move |_| Answer::ok(text.clone()));
        let error = host.pull(&liar).await.unwrap_err();
        assert!(chain(&error).ends_with(want), "{name}: {}", chain(&error));
        assert_eq!(error.retry_class(), RetryClass::Terminal, "{name}");
        assert_eq!(liar.count("/blobs/"), 0, "{name}");
        host.assert_nothing_pulled().await;
    }
}

#[tokio::test]
async fn a_storm_of_429_is_waited_out_or_handed_to_the_caller() {
    let image = Image::sized(10);
    for (wait, storms) in [("0", 2), ("1", 1)] {
        let (host, image, times) = (Host::new(), image.clone(), AtomicUsize::new(0));
        let liar = Liar::start(move |request| match times.fetch_add(1, Ordering::Relaxed) {
            count if count < storms => Answer::new(429).header("Retry-After", wait),
            _ => image.answer(request),
        });
        let started = tokio::time::Instant::now();
        host.pull(&liar).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(wait.parse().unwrap()));
    }
    let host = Host::new();
    let liar = Liar::start(|_| Answer::new(429).header("Retry-After", "120"));
    let error = host.pull(&liar).await.unwrap_err();
    assert_eq!(error.kind(), "too_many_requests");
    assert_eq!(
        error.retry_class(),
        RetryClass::After(Duration::from_secs(120))
    );
    assert_eq!(liar.requests().len(), 1, "not asked again before that");
    host.assert_nothing_pulled().await;
}

#[tokio::test]
async fn server_errors_are_tried_again_and_refusals_are_not() {
    let image = Image::sized(10);
    for (status, kind, class, requests) in [
        (500, "http_status", RetryClass::Transient, 4),
        (503, "http_status", RetryClass::Transient, 4),
        (404, "not_found", RetryClass::Terminal, 1),
        (403, "denied", RetryClass::Terminal, 1),
        (418, "http_status", RetryClass::Terminal, 1),
        (204, "http_status", RetryClass::Terminal, 1),
    ] {
        let host = Host::new();
        let liar = Liar::start(move |_| Answer::new(status));
        let error = host.pull(&liar).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry_class()),
            (kind, class),
            "{status}"
        );
        assert_eq!(liar.requests().len(), requests, "{status}");
        host.assert_nothing_pulled().await;
    }
    let (host, times) = (Host::new(), AtomicUsize::new(0));
    let liar = Liar::start(
        move |request| match times.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Answer::new(502),
            _ => image.answer(request),
        },
    );
    host.pull(&liar).await.unwrap();
}

#[tokio::test]
async fn a_trickle_is_given_up() {
    let image = Image::sized(50_000);
    let layer = image.layer_digest(0);
    let trickle = move |pause: u64| {
        let image = image.clone();
        move |request: &Request| {
            let answer = image.answer(request);
            if let (Body::Whole(bytes), true) = (answer.body.clone(), is_blob(request, layer)) {
                let pause = Duration::from_millis(pause);
                return answer.body(Body::Trickle { bytes, pause });
            }
            answer
        }
    };
    let host = Host::new();
    let liar = Liar::start(trickle(10));
    let error = host.pull(&liar).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry_class()),
        ("slow", RetryClass::Transient)
    );
    host.assert_nothing_pulled().await;
}

/// A registry may send a manifest byte by byte, so that no single wait is long.
#[tokio::test]
async fn a_small_answer_that_takes_too_long_is_given_up() {
    let image = Image::sized(10);
    let mut config = hasty();
    config.timeouts.answer = Duration::from_millis(100);
    let host = Host::with(config, Limits::default());
    let liar = Liar::start(move |_| {
        let (bytes, pause) = (image.manifest_bytes(), Duration::from_millis(10));
        Answer::new(200).body(Body::Trickle { bytes, pause })
    });
    let error = host.pull(&liar).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry_class()),
        ("slow", RetryClass::Transient)
    );
    assert!(chain(&error).contains("did not send manifest 1 within"));
    host.assert_nothing_pulled().await;
}
