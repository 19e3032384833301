//! What some servers do although the specification does not require it.

use serde_json::json;
use skyhook_oci::{Credentials, chain};

use crate::host::Host;
use crate::image::Image;
use crate::liar::{Answer, Liar};

/// The storage behind a registry may want a token of its own, which every client can get.
#[tokio::test]
async fn a_challenge_after_a_redirect_is_answered_without_credentials() {
    let image = Image::sized(1000);
    let (layer, blob) = (image.layer_digest(0), image.layers[0].blob.clone());
    let tokens = Liar::start(|_| Answer::ok(json!({"token": "for all"}).to_string()));
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"s\"",
        tokens.host()
    );
    let storage = Liar::start(move |request| match request.header("authorization") {
        Some("Bearer for all") => Answer::ok(blob.clone()),
        _ => Answer::new(401).header("WWW-Authenticate", realm.clone()),
    });
    let location = format!("http://{}/storage", storage.host());
    let liar = Liar::start(move |request| match request.header("authorization") {
        None => Answer::new(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        Some(_) if request.path.contains(&layer.to_string()) => {
            Answer::new(307).header("Location", location.clone())
        }
        Some(_) => image.answer(request),
    });
    let config = json!({"auths": {liar.host(): {"username": "user", "password": "hunter2"}}});
    let secret = Credentials::from_docker_config(config.to_string().as_bytes()).unwrap();
    let host = Host::new();
    let reference = format!("{}/p:1", liar.host()).parse().unwrap();
    host.puller
        .pull(&reference, &secret)
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    for other in [&storage, &tokens] {
        for request in other.requests() {
            let told = request.header("authorization");
            assert!(matches!(told, None | Some("Bearer for all")), "{told:?}");
        }
    }
}

/// Docker Hub counts every request for a manifest.
#[tokio::test]
async fn a_manifest_that_is_in_the_store_is_not_asked_for_again() {
    let image = Image::sized(1000);
    let child = image.manifest_digest();
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": child, "size": image.manifest_bytes().len(),
            "platform": {"os": "linux", "architecture": "amd64"},
        }],
    });
    let index = index.to_string();
    let liar = Liar::start(move |request| {
        if request.path.ends_with("/manifests/1") {
            Answer::ok(index.clone())
        } else {
            image.answer(request)
        }
    });
    let host = Host::new();
    for _ in 0..2 {
        let pulled = host.pull(&liar).await.unwrap();
        assert_eq!(pulled.manifest_digest, child);
    }
    let asked = |what: &str| {
        let paths = liar.requests().into_iter().map(|request| request.path);
        paths.filter(|path| path.contains(what)).count()
    };
    assert_eq!(asked("/manifests/1"), 2, "the tag may have moved");
    assert_eq!(asked(&format!("/manifests/{child}")), 1);
    // A manifest that is damaged in the store is requested again.
    let blob = host.dir.path().join("store/blobs/sha256").join(child.hex());
    std::fs::write(blob, "damaged").unwrap();
    host.pull(&liar).await.unwrap();
    assert_eq!(asked(&format!("/manifests/{child}")), 2);
}
