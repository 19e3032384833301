//! Downloads that cannot succeed end, and do not keep other pulls waiting.

use std::time::Duration;

use serde_json::json;
use skyhook_oci::Limits;

use crate::host::{Host, hasty};
use crate::image::Image;
use crate::liar::{Answer, Body, Liar};

/// What a pull returns, if it ends soon.
async fn soon<T>(pull: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, pull)
        .await
        .expect("the pull must end")
}

/// The blob grows by more than a MiB with each answer, and is thrown away after it. That is no progress.
#[tokio::test]
async fn a_download_that_begins_anew_again_and_again_is_given_up() {
    let mut image = Image::sized(2 << 20);
    let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
    let served = image.clone();
    // The server cuts each answer off and ignores ranges.
    let cutting = Liar::start(
        move |request| match request.path.contains(&layer.to_string()) {
            true => Answer::new(200).body(Body::Cut {
                announced: blob.len(),
                bytes: blob[..(3 << 19)].to_vec(),
            }),
            false => served.answer(request),
        },
    );
    // The manifest says that the blob is longer than it is.
    let size = image.layers[0].blob.len();
    image.manifest["layers"][0]["size"] = json!(3 << 20);
    let short = Liar::start(move |request| {
        let is_layer = request.path.contains(&layer.to_string());
        match is_layer && request.range() >= size {
            true => Answer::new(416),
            false => image.answer(request),
        }
    });
    for (name, liar, kind) in [("cut", cutting, "http"), ("short", short, "wrong_size")] {
        let host = Host::new();
        let error = soon(host.pull(&liar)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}");
        // The first answer is progress, and then there are as many tries as are configured.
        let requests = liar.count(&layer.to_string());
        assert!((4..=5).contains(&requests), "{name}: {requests}");
        host.assert_nothing_pulled().await;
    }
}

/// Two images from two registries have a layer in common, and one registry is stuck in the middle of it.
#[tokio::test]
async fn a_slow_registry_does_not_keep_pulls_from_another_waiting() {
    let image = Image::sized(300_000);
    let layer = image.layer_digest(0);
    let served = image.clone();
    let stuck = Liar::start(move |request| {
        let answer = served.answer(request);
        match answer.whole() {
            Some(bytes) if request.path.contains(&layer.to_string()) => answer.body(Body::Stuck {
                announced: bytes.len(),
                bytes: bytes[..100_000].to_vec(),
            }),
            Some(_) | None => answer,
        }
    });
    let healthy = Liar::start(move |request| image.answer(request));
    let mut config = hasty();
    config.timeouts.slow_window = Duration::from_secs(600);
    config.timeouts.read = Duration::from_secs(600);
    let host = Host::with(config, Limits::default());
    let mut waiting = std::pin::pin!(host.pull(&stuck));
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    while stuck.count(&layer.to_string()) == 0 {
        tokio::select! {
            result = &mut waiting => panic!("{result:?}"),
            _ = tick.tick() => {}
        }
    }
    tokio::select! {
        result = &mut waiting => panic!("{result:?}"),
        result = soon(host.pull(&healthy)) => drop(result.unwrap()),
    }
    host.assert_intact();
    assert_eq!(healthy.count(&layer.to_string()), 1);
}
