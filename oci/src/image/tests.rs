#![expect(clippy::too_many_lines, reason = "tables of cases")]

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

fn digest_of(candidate: &Candidate) -> Digest {
    candidate.manifest(&Limits::default()).unwrap().0
}

/// An index may have entries that only later programs understand. They say nothing about the other images.
#[test]
fn an_odd_entry_of_an_index_does_no_harm_to_the_others() {
    let amd64 = || index_entry("amd64", json!({"os": "linux", "architecture": "amd64"}));
    let odd = |field: &str, value: serde_json::Value| {
        let mut entry = index_entry("odd", json!({"os": "linux", "architecture": "arm64"}));
        entry[field] = value;
        entry
    };
    let rows = [
        (
            "digest",
            json!("blake3:00"),
            "image 0 of the index has a bad digest",
        ),
        (
            "digest",
            json!(null),
            "image 0 of the index has a bad digest",
        ),
        (
            "size",
            json!(null),
            "image 0 of the index has the invalid size -1",
        ),
        ("size", json!(5 << 20), "a manifest in the index"),
    ];
    for (field, value, want) in rows {
        let entries = candidates(&[odd(field, value), amd64()]);
        let chosen = |architecture| {
            let platform = Platform::new("linux", architecture, None);
            select(&entries, &platform).unwrap()[0]
        };
        assert_eq!(digest_of(chosen("amd64")), digest("amd64"));
        let refused = chosen("arm64").manifest(&Limits::default()).unwrap_err();
        assert_eq!(refused.to_string(), want);
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
        assert_eq!(digest_of(got[0]), digest(want), "{wanted}");
    }
    let none = select(&entries, &Platform::new("linux", "s390x", None)).unwrap_err();
    assert_eq!(
        none.to_string(),
        "no image for linux/s390x; the index has: linux/amd64, linux/amd64/v3, linux/arm/v6, \
         linux/arm/v7, linux/arm64/v8, windows/amd64"
    );
}

/// Some builders write an index without platforms. Then the configs of the images tell, in the order of the index.
#[test]
fn entries_without_a_platform_come_after_those_that_fit() {
    let wanted = Platform::new("linux", "amd64", None);
    let nameless = |name: &str| index_entry(name, json!(null));
    let of = |architecture: &str| {
        index_entry(
            architecture,
            json!({"os": "linux", "architecture": architecture}),
        )
    };
    let empty = index_entry("empty", json!({"os": "", "architecture": ""}));
    let mut untyped = nameless("untyped");
    untyped.as_object_mut().unwrap().remove("mediaType");
    let mut signature = nameless("signature");
    signature["artifactType"] = json!("application/vnd.dev.cosign.artifact.sig.v1+json");
    let mut other = nameless("other");
    other["mediaType"] = json!("application/vnd.example+json");
    let chosen = |entries: &[serde_json::Value]| -> Vec<Digest> {
        let entries = candidates(entries);
        let found = select(&entries, &wanted).unwrap_or_default();
        found.into_iter().map(digest_of).collect()
    };
    type Row = (Vec<serde_json::Value>, &'static [&'static str]);
    let table: [Row; 9] = [
        (vec![nameless("only")], &["only"]),
        (vec![of("arm64"), nameless("a")], &["a"]),
        (vec![nameless("a"), of("amd64")], &["amd64", "a"]),
        (vec![of("386"), of("amd64")], &["amd64", "386"]),
        (vec![nameless("a"), nameless("b")], &["a", "b"]),
        (vec![empty], &["empty"]),
        (vec![untyped], &["untyped"]),
        (vec![signature, other], &[]),
        (vec![of("arm64")], &[]),
    ];
    for (entries, want) in table {
        let want: Vec<_> = want.iter().map(|name| digest(name)).collect();
        assert_eq!(chosen(&entries), want, "{entries:?}");
    }
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
    let types = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar+gzip",
        "",
    ];
    let rows: Vec<_> = types.iter().map(|it| (*it, *it, 7)).collect();
    let bytes = manifest(&rows);
    let layer = |name: &&str| Layer {
        digest: digest(name),
        size: 7,
        urls: Vec::new(),
    };
    let want = Document::Image(Manifest {
        config: (digest("config"), 3),
        layers: types.iter().map(layer).collect(),
        embedded: BTreeMap::new(),
        artifact: None,
    });
    // Without a type of its own, the fields of a document count more than the header that came with it.
    for content_type in [
        None,
        Some("application/vnd.oci.image.manifest.v1+json"),
        Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
        Some("application/vnd.oci.image.index.v1+json"),
        Some("text/plain"),
        Some("application/vnd.example"),
    ] {
        let got = decode(&bytes, content_type, &Limits::default()).unwrap();
        assert_eq!(got, want, "{content_type:?}");
    }
    let index = json!({"schemaVersion": 2, "manifests": [index_entry("a", json!(null))]});
    for content_type in [None, Some("application/vnd.oci.image.manifest.v1+json")] {
        let got = decode(
            index.to_string().as_bytes(),
            content_type,
            &Limits::default(),
        );
        assert!(matches!(got.unwrap(), Document::Index(entries) if entries.len() == 1));
    }
}

/// Builders leave fields out, or write nulls.
#[test]
fn missing_fields_and_nulls_are_what_go_makes_of_them() {
    let config = json!({"mediaType": null, "digest": digest("config"), "size": 3, "urls": null,
        "annotations": null, "data": null, "platform": null});
    for layers in [json!(null), json!([])] {
        let text = json!({"mediaType": null, "config": config, "layers": layers,
            "annotations": {"a": "b"}, "subject": null, "artifactType": ""});
        let got = decode(text.to_string().as_bytes(), None, &Limits::default()).unwrap();
        assert!(matches!(got, Document::Image(image) if image.layers.is_empty()));
    }
    let text = json!({"manifests": null, "mediaType": "application/vnd.oci.image.index.v1+json"});
    let got = decode(text.to_string().as_bytes(), None, &Limits::default()).unwrap();
    assert_eq!(got, Document::Index(Vec::new()));
    for config in [
        json!({"os": null, "architecture": null, "rootfs": null, "config": {"Env": null}}),
        json!({"rootfs": {"type": "layers", "diff_ids": null}}),
        json!({"created": "yesterday", "history": 7}),
        json!({}),
    ] {
        let config = config.to_string();
        assert_eq!(diff_ids(config.as_bytes(), 0).unwrap(), []);
        check_platform(config.as_bytes(), &Platform::new("linux", "amd64", None)).unwrap();
    }
}

#[test]
fn content_in_a_descriptor_is_taken_if_it_is_right() {
    let data = |text: &str| STANDARD.encode(text);
    let config = |data: &str, size: i64| {
        let text = json!({"layers": [], "config": {"digest": Digest::of(b"{}"), "size": size,
            "data": data}});
        match decode(text.to_string().as_bytes(), None, &Limits::default()).unwrap() {
            Document::Image(image) => image.embedded.into_values().next(),
            Document::Index(_) => panic!("it is an image"),
        }
    };
    assert_eq!(config(&data("{}"), 2), Some(b"{}".to_vec()));
    assert_eq!(config(&data("[]"), 2), None);
    assert_eq!(config(&data("{}"), 3), None);
    assert_eq!(config("{}", 2), None);
    let mut entry = index_entry("x", json!(null));
    entry["digest"] = json!(Digest::of(b"{}"));
    entry["size"] = json!(2);
    entry["data"] = json!(data("{}"));
    let (_, embedded) = candidates(&[entry])[0]
        .manifest(&Limits::default())
        .unwrap();
    assert_eq!(embedded, Some(b"{}".to_vec()));
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
        (
            "encrypted",
            manifest(&[(
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "a",
                1,
            )]),
            "layer 0 is encrypted, which is not supported: push the image without encryption",
        ),
        (
            "schema 1",
            json!({"schemaVersion": 1, "name": "p", "fsLayers": []})
                .to_string()
                .into_bytes(),
            "it is a Docker manifest of schema 1, which container runtimes do not take any more: \
             build and push the image with a current program",
        ),
        (
            "artifact",
            json!({"artifactType": "application/vnd.example.chart",
                "config": {"digest": digest("c"), "size": 2,
                    "mediaType": "application/vnd.oci.empty.v1+json"},
                "layers": [{"mediaType": "application/vnd.example.chart.tar",
                    "digest": digest("a"), "size": 1}]})
            .to_string()
            .into_bytes(),
            "it is not a container image, but an artifact of type \"application/vnd.example.chart\"",
        ),
        (
            "no config",
            br#"{"layers":[]}"#.to_vec(),
            "the manifest names no config",
        ),
        (
            "digest",
            br#"{"config":{"size":1}}"#.to_vec(),
            "the image config has a bad digest",
        ),
        (
            "neither",
            b"{}".to_vec(),
            "media type \"\" is not an image manifest or index",
        ),
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
    assert_eq!(diff_ids(config.as_bytes(), 2).unwrap(), ids);
    check_platform(config.as_bytes(), &amd64).unwrap();
    let error = diff_ids(config.as_bytes(), 3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the manifest has 3 layers, its config 2 diff IDs"
    );
    let error =
        check_platform(config.as_bytes(), &Platform::new("linux", "arm64", None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image is for linux/amd64, this host is linux/arm64"
    );
}

/// An artifact may have layers that are archives. Then only its config shows that it is none.
#[test]
fn an_artifact_with_layers_of_archives_is_named_as_such() {
    let text = json!({"config": {"digest": digest("c"), "size": 2,
            "mediaType": "application/vnd.cncf.helm.config.v1+json"},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest("a"), "size": 1}]});
    let decoded = decode(text.to_string().as_bytes(), None, &Limits::default()).unwrap();
    let Document::Image(image) = decoded else {
        panic!("it is an image");
    };
    let error = image.diff_ids(b"{}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "it is not a container image, but an artifact of type \"application/vnd.cncf.helm.config.v1+json\""
    );
}
