//! Indexes, manifests and configs as builders make them: everything that container runtimes take is taken.

use serde_json::{Value, json};
use skyhook_oci::{Credentials, Digest, Limits, Platform, PullError, Pulled, PullerConfig, chain};

use crate::host::{Host, hasty};
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::{Answer, Liar, Request};

fn at(name: &str) -> String {
    format!("skyhook-package/{name}")
}

/// An image for this architecture, whose only file has the architecture as its content.
fn for_architecture(architecture: &str) -> Image {
    let layer = Layer::gzip(&tar(&[Entry::file(&at("a"), architecture)]));
    let config = json!({"os": "linux", "architecture": architecture,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}});
    Image::with_config(vec![layer], config.to_string().into_bytes())
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn entry(document: &[u8], media_type: &str, platform: Value) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(document), "size": document.len(),
        "platform": platform})
}

fn index(entries: &[Value]) -> Vec<u8> {
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    index.to_string().into_bytes()
}

/// A registry with these images and documents. The first document has the tag.
fn registry(images: Vec<Image>, documents: Vec<Vec<u8>>) -> Liar {
    let answer = move |request: &Request| {
        if request.path.ends_with("/manifests/1") {
            return Answer::ok(documents[0].clone());
        }
        let digest = request.path.rsplit('/').next().unwrap();
        let document = documents
            .iter()
            .find(|document| Digest::of(document).to_string() == digest);
        match (
            document,
            images.iter().find(|it| it.blobs().contains_key(digest)),
        ) {
            (Some(document), _) => Answer::ok(document.clone()),
            (None, Some(image)) => image.answer(request),
            (None, None) => Answer::new(404),
        }
    };
    Liar::start(answer)
}

fn on(platform: Platform) -> Host {
    let config = PullerConfig {
        platform,
        ..hasty()
    };
    Host::with(config, Limits::default())
}

#[tokio::test]
async fn the_image_of_this_platform_is_found_in_indexes_of_any_shape() {
    let [amd, arm, riscv] = ["amd64", "arm64", "riscv64"].map(for_architecture);
    let named = |image: &Image, architecture: &str| {
        let platform = json!({"os": "linux", "architecture": architecture});
        entry(&image.manifest_bytes(), MANIFEST, platform)
    };
    let nameless = |image: &Image| entry(&image.manifest_bytes(), MANIFEST, json!(null));
    // As buildkit makes one: it has the platform unknown/unknown.
    let mut attestation = named(&riscv, "unknown");
    attestation["platform"]["os"] = json!("unknown");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let inner = index(&[named(&arm, "arm64"), named(&amd, "amd64")]);
    let of_amd = index(&[named(&amd, "amd64")]);
    let empty = index(&[]);
    let mut inline = named(&amd, "amd64");
    inline["data"] = json!(base64(&amd.manifest_bytes()));
    let table: Vec<(&str, Vec<Vec<u8>>)> = vec![
        (
            "with an attestation",
            vec![index(&[
                attestation.clone(),
                named(&arm, "arm64"),
                named(&amd, "amd64"),
            ])],
        ),
        (
            "an index in an index, without a platform",
            vec![index(&[entry(&inner, INDEX, json!(null))]), inner.clone()],
        ),
        (
            "an index in an index, with a platform",
            vec![
                index(&[
                    named(&arm, "arm64"),
                    entry(
                        &of_amd,
                        INDEX,
                        json!({"os": "linux", "architecture": "amd64"}),
                    ),
                ]),
                of_amd.clone(),
            ],
        ),
        (
            "the first index has nothing for this platform",
            vec![
                index(&[
                    entry(&empty, INDEX, json!(null)),
                    entry(&inner, INDEX, json!(null)),
                ]),
                empty.clone(),
                inner.clone(),
            ],
        ),
        (
            "one image without a platform",
            vec![index(&[nameless(&amd)])],
        ),
        (
            "several images without platforms: their configs tell",
            vec![index(&[nameless(&arm), nameless(&riscv), nameless(&amd)])],
        ),
        ("the manifest is in the index", vec![index(&[inline])]),
    ];
    let images = vec![amd.clone(), arm.clone(), riscv.clone()];
    for (name, documents) in table {
        let host = Host::new();
        let liar = registry(images.clone(), documents);
        let pulled = host.pull(&liar).await;
        let pulled = pulled.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(pulled.manifest_digest, amd.manifest_digest(), "{name}");
        host.unpack(&pulled.manifest_digest).await.unwrap();
    }
    let refusals: [(&str, Vec<Vec<u8>>, &str); 4] = [
        (
            "nothing at all",
            vec![index(&[])],
            "no image for linux/amd64; the index has: nothing",
        ),
        (
            "only others",
            vec![index(&[attestation, named(&arm, "arm64")])],
            "no image for linux/amd64; the index has: linux/arm64",
        ),
        (
            "the only image without a platform is for another one",
            vec![index(&[nameless(&arm)])],
            "the image is for linux/arm64, this host is linux/amd64",
        ),
        (
            "an index that contains itself",
            endless(),
            "more than 4 indexes inside each other",
        ),
    ];
    for (name, documents, want) in refusals {
        let host = Host::new();
        let error = host
            .pull(&registry(images.clone(), documents))
            .await
            .unwrap_err();
        assert!(chain(&error).ends_with(want), "{name}: {}", chain(&error));
    }
}

/// Indexes inside each other, more of them than anybody needs.
fn endless() -> Vec<Vec<u8>> {
    let mut documents = vec![index(&[])];
    for _ in 0..8 {
        let inner = entry(
            &documents[0],
            INDEX,
            json!({"os": "linux", "architecture": "amd64"}),
        );
        documents.insert(0, index(&[inner]));
    }
    documents
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The order of preference is containerd's.
#[tokio::test]
async fn a_host_takes_the_best_image_that_it_can_run() {
    let names = [
        "amd64/v3", "amd64/v2", "amd64", "386", "arm64", "arm/v7", "arm/v6",
    ];
    let images: Vec<_> = names.iter().map(|name| for_architecture(name)).collect();
    let chosen = async |host: Platform, offered: &[&str]| -> Result<String, PullError> {
        let entries: Vec<_> = offered
            .iter()
            .map(|name| {
                let image = &images[names.iter().position(|it| it == name).unwrap()];
                let (architecture, variant) = name.split_once('/').unwrap_or((name, ""));
                let platform = json!({"os": "linux", "architecture": architecture,
                    "variant": variant, "os.version": null, "os.features": null});
                entry(&image.manifest_bytes(), MANIFEST, platform)
            })
            .collect();
        let host = on(host);
        let pulled = host
            .pull(&registry(images.clone(), vec![index(&entries)]))
            .await?;
        host.unpack(&pulled.manifest_digest).await.unwrap();
        Ok(std::fs::read_to_string(host.target().join("a")).unwrap())
    };
    let linux = |architecture: &str, variant| Platform::new("linux", architecture, variant);
    for (host, offered, want) in [
        (linux("amd64", None), &names[..], "amd64"),
        (linux("amd64", Some("v2")), &names[..], "amd64/v2"),
        (linux("amd64", Some("v4")), &names[..], "amd64/v3"),
        (linux("amd64", None), &["arm64", "386"][..], "386"),
        (linux("arm64", Some("v8")), &names[..], "arm64"),
        (
            linux("arm64", None),
            &["amd64", "arm/v6", "arm/v7"][..],
            "arm/v7",
        ),
    ] {
        assert_eq!(chosen(host.clone(), offered).await.unwrap(), want, "{host}");
    }
    let error = chosen(linux("amd64", None), &["amd64/v2", "amd64/v3", "arm64"]).await;
    assert_eq!(error.unwrap_err().kind(), "no_platform");
}

/// An index says what an image is for. Builders that assemble it from images write the config of another platform.
#[tokio::test]
async fn the_index_counts_more_than_the_config() {
    let arm = for_architecture("arm64");
    let platform = json!({"os": "linux", "architecture": "amd64"});
    let documents = vec![index(&[entry(&arm.manifest_bytes(), MANIFEST, platform)])];
    Host::new()
        .pull(&registry(vec![arm.clone()], documents))
        .await
        .unwrap();
    // Without an index, the config is all there is.
    let error = Host::new()
        .pull(&Liar::start(move |request| arm.answer(request)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "no_platform");
}

async fn pulled(image: Image) -> Result<Pulled, PullError> {
    Host::new()
        .pull(&Liar::start(move |request| image.answer(request)))
        .await
}

#[tokio::test]
async fn manifests_and_configs_with_odd_or_missing_fields_are_taken() {
    let layer = || Layer::gzip(&tar(&[Entry::file(&at("a"), "a")]));
    let with_config = |config: Value| Image::with_config(vec![layer()], config.to_string().into());
    let rootfs = json!({"type": "layers", "diff_ids": [layer().diff_id]});
    let edited = |edit: fn(&mut Value)| {
        let mut image = Image::new(vec![layer()]);
        edit(&mut image.manifest);
        image
    };
    let table = [
        (
            "a config with little",
            with_config(json!({"rootfs": rootfs})),
        ),
        (
            "a config with odd fields",
            with_config(
                json!({"os": "Linux", "architecture": "x86_64", "variant": null,
                "os.version": 7, "created": "", "author": {}, "config": null, "history": [{}],
                "rootfs": rootfs}),
            ),
        ),
        (
            "no types",
            edited(|manifest| {
                manifest.as_object_mut().unwrap().remove("mediaType");
                manifest["config"]
                    .as_object_mut()
                    .unwrap()
                    .remove("mediaType");
                manifest["layers"][0]
                    .as_object_mut()
                    .unwrap()
                    .remove("mediaType");
            }),
        ),
        (
            "types of Docker",
            edited(|manifest| {
                manifest["mediaType"] =
                    json!("application/vnd.docker.distribution.manifest.v2+json");
                manifest["config"]["mediaType"] =
                    json!("application/vnd.docker.container.image.v1+json");
                manifest["layers"][0]["mediaType"] =
                    json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
            }),
        ),
        (
            "types of both families",
            edited(|manifest| {
                manifest["config"]["mediaType"] =
                    json!("application/vnd.docker.container.image.v1+json");
                manifest["layers"][0]["mediaType"] =
                    json!("application/vnd.docker.image.rootfs.diff.tar.zstd");
            }),
        ),
        (
            "annotations and the rest",
            edited(|manifest| {
                manifest["annotations"] = json!({"org.opencontainers.image.created": "x"});
                manifest["subject"] = json!({"digest": "x"});
                manifest["layers"][0]["annotations"] =
                    json!({"containerd.io/snapshot/stargz": "x"});
                manifest["layers"][0]["urls"] = json!(["https://nowhere.example/layer"]);
            }),
        ),
        (
            "a config of an unknown type",
            edited(|manifest| {
                manifest["config"]["mediaType"] = json!("application/octet-stream");
            }),
        ),
    ];
    for (name, image) in table {
        let host = Host::new();
        let got = host.install(image).await.unwrap();
        assert_eq!(got, ["a 644 a"], "{name}");
    }
    // The config is in the manifest, and the registry does not have it.
    let image = Image::new(vec![layer()]);
    let mut manifest = image.manifest.clone();
    manifest["config"]["data"] = json!(base64(&image.config));
    let config = Digest::of(&image.config).to_string();
    let document = manifest.to_string();
    let liar = Liar::start(move |request| {
        if request.path.contains("/manifests/") {
            Answer::ok(document.clone())
        } else if request.path.contains(&config) {
            Answer::new(404)
        } else {
            image.answer(request)
        }
    });
    let host = Host::new();
    let digest = host.pull(&liar).await.unwrap().manifest_digest;
    host.unpack(&digest).await.unwrap();
}

#[tokio::test]
async fn what_is_no_package_says_what_it_is() {
    let mut foreign = Image::new(vec![Layer::gzip(&tar(&[Entry::file(&at("a"), "a")]))]);
    foreign.manifest["layers"][0]["mediaType"] =
        json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    foreign.manifest["layers"][0]["urls"] = json!(["https://go.example/layer.tar.gz"]);
    let layer = foreign.layer_digest(0);
    let (served, gone) = (foreign.clone(), layer.to_string());
    let liar = Liar::start(move |request| match request.path.contains(&gone) {
        true => Answer::new(404),
        false => served.answer(request),
    });
    let error = Host::new().pull(&liar).await.unwrap_err();
    let want = format!("layer 0 ({layer}) is a foreign layer");
    assert!(chain(&error).contains(&want), "{}", chain(&error));
    assert!(chain(&error).contains("https://go.example/layer.tar.gz"));
    assert_eq!(error.kind(), "foreign_layer");
    // A registry may have it nevertheless.
    pulled(foreign).await.unwrap();

    let mut chart = Image::new(vec![]);
    chart.manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    chart.manifest["layers"] = json!([{"digest": Digest::of(b"x"), "size": 1,
        "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip"}]);
    let error = pulled(chart).await.unwrap_err();
    assert!(
        chain(&error).ends_with(
            "it is not a container image, but an artifact of type \"application/vnd.cncf.helm.config.v1+json\""
        ),
        "{}",
        chain(&error)
    );
}

/// Digests of other algorithms, in every place that has one.
#[tokio::test]
async fn digests_may_be_sha512() {
    let sha512 = |bytes: &[u8]| {
        let digest = ring::digest::digest(&ring::digest::SHA512, bytes);
        format!("sha512:{}", hex::encode(digest))
    };
    let content = tar(&[Entry::file(&at("a"), "a")]);
    let layer = Layer::gzip(&content);
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [sha512(&content)]}})
    .to_string()
    .into_bytes();
    let mut image = Image::with_config(vec![layer], config);
    image.manifest["config"]["digest"] = json!(sha512(&image.config));
    image.manifest["layers"][0]["digest"] = json!(sha512(&image.layers[0].blob));
    let manifest = image.manifest_bytes();
    let blobs = [image.config.clone(), image.layers[0].blob.clone(), manifest];
    let blobs = blobs.map(|bytes| (sha512(&bytes), bytes));
    let pinned = blobs[2].0.clone();
    let served = blobs.clone();
    let liar = Liar::start(move |request| {
        let found = served
            .iter()
            .find(|(digest, _)| request.path.ends_with(digest));
        found.map_or(Answer::new(404), |(_, bytes)| Answer::ok(bytes.clone()))
    });
    let host = Host::new();
    let reference = format!("{}/p@{pinned}", liar.host()).parse().unwrap();
    let anonymous = Credentials::anonymous();
    for _ in 0..2 {
        let pulled = host.puller.pull(&reference, &anonymous).await.unwrap();
        assert_eq!(pulled.manifest_digest.to_string(), pinned);
    }
    assert_eq!(
        liar.requests().len(),
        3,
        "the second time nothing is asked for"
    );
    host.store.pin("p", &pinned.parse().unwrap()).unwrap();
    host.store.collect(std::time::SystemTime::now()).unwrap();
    host.unpack(&pinned.parse().unwrap()).await.unwrap();
    assert_eq!(std::fs::read(host.target().join("a")).unwrap(), b"a");
    // A layer with another content is found out.
    let mut wrong = blobs;
    wrong[1].1[20] ^= 1;
    let liar = Liar::start(move |request| {
        let found = wrong
            .iter()
            .find(|(digest, _)| request.path.ends_with(digest));
        found.map_or(Answer::new(404), |(_, bytes)| Answer::ok(bytes.clone()))
    });
    let reference = format!("{}/p@{pinned}", liar.host()).parse().unwrap();
    let error = Host::new()
        .puller
        .pull(&reference, &anonymous)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "wrong_digest");
}
