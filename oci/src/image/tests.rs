use serde_json::json;

use super::*;

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn index_entry(name: &str, platform: serde_json::Value) -> serde_json::Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(name), "size": 10, "platform": platform,
    })
}

fn candidates(entries: &[serde_json::Value]) -> Vec<Candidate> {
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries});
    match decode(index.to_string().as_bytes(), None, &Limits::default()).unwrap() {
        Document::Index(candidates) => candidates,
        Document::Image(image) => panic!("{image:?}"),
    }
}

#[test]
fn the_best_platform_is_chosen_and_attestations_are_not() {
    let mut attestation = index_entry("att", json!({"os": "linux", "architecture": "amd64"}));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let entries = candidates(&[
        attestation,
        index_entry(
            "unknown",
            json!({"os": "unknown", "architecture": "unknown"}),
        ),
        index_entry("win", json!({"os": "windows", "architecture": "amd64"})),
        index_entry(
            "amd64v3",
            json!({"os": "linux", "architecture": "amd64", "variant": "v3"}),
        ),
        index_entry("amd64", json!({"os": "linux", "architecture": "amd64"})),
        index_entry(
            "arm64",
            json!({"os": "linux", "architecture": "arm64", "variant": "v8"}),
        ),
        index_entry(
            "armv6",
            json!({"os": "linux", "architecture": "arm", "variant": "v6"}),
        ),
        index_entry(
            "armv7",
            json!({"os": "linux", "architecture": "arm", "variant": "v7"}),
        ),
    ]);
    let table = [
        (Platform::new("linux", "amd64", None), "amd64"),
        (Platform::new("linux", "amd64", Some("v3")), "amd64v3"),
        (Platform::new("linux", "amd64", Some("v2")), "amd64"),
        (Platform::new("linux", "arm64", None), "arm64"),
        (Platform::new("linux", "arm64", Some("v8")), "arm64"),
        (Platform::new("linux", "arm", Some("v7")), "armv7"),
        (Platform::new("linux", "arm", Some("v6")), "armv6"),
        (Platform::new("windows", "amd64", None), "win"),
    ];
    for (wanted, want) in table {
        let got = select(&entries, &wanted).unwrap();
        assert_eq!(got.digest, digest(want), "{wanted}");
    }
    let none = select(&entries, &Platform::new("linux", "s390x", None)).unwrap_err();
    assert_eq!(
        none.to_string(),
        "no image for linux/s390x; the index has: linux/amd64, linux/amd64/v3, linux/arm/v6, \
         linux/arm/v7, linux/arm64/v8, windows/amd64"
    );
}

/// Some builders write an index of one image without its platform.
#[test]
fn an_only_entry_without_a_platform_is_taken() {
    let wanted = Platform::new("linux", "amd64", None);
    let nameless = |name: &str| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(name).to_string(), "size": 1});
    let arm = index_entry("arm64", json!({"os": "linux", "architecture": "arm64"}));
    let amd = index_entry("amd64", json!({"os": "linux", "architecture": "amd64"}));
    let chosen = |entries: &[serde_json::Value]| {
        let entries = candidates(entries);
        select(&entries, &wanted).map(|found| found.digest).ok()
    };
    assert_eq!(chosen(&[nameless("only")]), Some(digest("only")));
    assert_eq!(chosen(&[arm.clone(), nameless("a")]), Some(digest("a")));
    assert_eq!(chosen(&[amd, nameless("a")]), Some(digest("amd64")));
    assert_eq!(chosen(&[nameless("a"), nameless("b")]), None);
    assert_eq!(chosen(&[arm]), None);
}

fn manifest(layers: &[(&str, &str, i64)]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(media_type, name, size)| {
            json!({"mediaType": media_type, "digest": digest(name), "size": size})
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest("config"), "size": 3},
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

#[test]
fn manifests_of_both_families_decode() {
    let bytes = manifest(&[
        ("application/vnd.oci.image.layer.v1.tar", "a", 1),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "b", 2),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "c", 3),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "d", 4),
    ]);
    let want = Manifest {
        config: (digest("config"), 3),
        layers: [
            ("a", 1, Compression::None),
            ("b", 2, Compression::Gzip),
            ("c", 3, Compression::Zstd),
            ("d", 4, Compression::Gzip),
        ]
        .map(|(name, size, compression)| Layer {
            digest: digest(name),
            size,
            compression,
        })
        .to_vec(),
    };
    for content_type in [
        None,
        Some("application/vnd.oci.image.manifest.v1+json"),
        Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
    ] {
        let got = decode(&bytes, content_type, &Limits::default()).unwrap();
        assert_eq!(got, Document::Image(want.clone()));
    }
}

#[test]
fn documents_that_lie_are_refused() {
    let limits = Limits {
        layers: 1,
        image_bytes: 100,
        ..Limits::default()
    };
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let table = [
        (
            "json",
            b"{".to_vec(),
            "the manifest is not the JSON document that it should be",
        ),
        (
            "type",
            br#"{"mediaType":"text/html"}"#.to_vec(),
            "media type \"text/html\" is not an image manifest or index",
        ),
        (
            "layer type",
            manifest(&[("application/x", "a", 1)]),
            "layer 0 has media type \"application/x\", which is not a tar, tar+gzip or tar+zstd layer",
        ),
        (
            "size",
            manifest(&[(gzip, "a", -1)]),
            "layer 0 has the invalid size -1",
        ),
        (
            "layers",
            manifest(&[(gzip, "a", 1), (gzip, "b", 1)]),
            "the manifest",
        ),
        ("bytes", manifest(&[(gzip, "a", 101)]), "the layers"),
    ];
    for (name, bytes, want) in table {
        let error = decode(&bytes, None, &limits).unwrap_err();
        assert_eq!(error.to_string(), want, "{name}");
    }
}

#[test]
fn the_config_names_each_layers_content_and_its_platform() {
    let amd64 = Platform::new("linux", "amd64", None);
    let ids = [digest("a"), digest("b")];
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": ids}})
    .to_string();
    assert_eq!(diff_ids(config.as_bytes(), 2, Some(&amd64)).unwrap(), ids);
    let error = diff_ids(config.as_bytes(), 3, Some(&amd64)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the manifest has 3 layers, its config 2 diff IDs"
    );
    let error = diff_ids(
        config.as_bytes(),
        2,
        Some(&Platform::new("linux", "arm64", None)),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image is for linux/amd64, this host is linux/arm64"
    );
    let bare = json!({"rootfs": {"diff_ids": []}}).to_string();
    assert_eq!(diff_ids(bare.as_bytes(), 0, None).unwrap(), []);
}
