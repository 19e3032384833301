//! Images as builders make them: everything that container runtimes take is taken.

use serde_json::{Value, json};
use skyhook_oci::{Credentials, Digest, Limits, Platform, PullError, Pulled, PullerConfig, chain};

use crate::host::{Host, hasty};
use crate::image::{Entry, Image, Layer, gzip, tar};
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

/// A gzip member with an extra field and no content, as eStargz has one at its end: it says where the table of
/// contents is.
fn estargz_footer() -> Vec<u8> {
    let extra = format!("SG\x16\x00{:016x}STARGZ", 700);
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    footer.extend(u16::try_from(extra.len()).unwrap().to_le_bytes());
    footer.extend(extra.as_bytes());
    footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

#[tokio::test]
async fn layers_in_every_wrapping_are_read() {
    let entries = [Entry::file(&at("a"), "content")];
    let archive = tar(&entries);
    let toc = tar(&[Entry::file("stargz.index.json", "{}")]);
    let body = &archive[..archive.len() - 1024];
    let estargz = [
        gzip(&body[..512]),
        gzip(&body[512..]),
        gzip(&toc),
        estargz_footer(),
    ]
    .concat();
    let estargz = Layer {
        blob: estargz,
        ..Layer::gzip(&[body, &toc].concat())
    };
    // zstd:chunked has its table of contents in skippable frames, also at the start.
    let skippable = |text: &[u8]| {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        [&[0x5a, 0x2a, 0x4d, 0x18][..], &length, text].concat()
    };
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let chunked = [
        skippable(b"first"),
        frame(&archive[..600]),
        skippable(b""),
        frame(&archive[600..]),
        skippable(b"manifest"),
        skippable(b"footer"),
    ];
    let mut v7 = archive.clone();
    v7[257..265].fill(0);
    v7[148..156].fill(b' ');
    let sum: u32 = v7[..512].iter().map(|byte| u32::from(*byte)).sum();
    v7[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let labelled = |layer: Layer, media_type| Layer {
        media_type,
        ..layer
    };
    let gzip_type = Layer::gzip(&archive).media_type;
    let table = [
        ("eStargz", estargz),
        (
            "zstd:chunked",
            Layer::packed_as_zstd(&archive, chunked.concat()),
        ),
        (
            "V7 without compression that is called gzip",
            labelled(Layer::plain(&v7), gzip_type),
        ),
        ("V7 in gzip", Layer::gzip(&v7)),
        (
            "garbage after the archive",
            Layer::gzip(&[archive.clone(), b"garbage".repeat(1000)].concat()),
        ),
        (
            "another archive after the archive",
            Layer::gzip(&[archive.clone(), toc].concat()),
        ),
    ];
    for (name, layer) in table {
        let got = Host::new().install(Image::new(vec![layer])).await;
        assert_eq!(got.unwrap(), ["a 644 content"], "{name}");
    }
}

/// Layers without any file: as Docker and others make them, and a blob of no bytes at all.
#[tokio::test]
async fn empty_layers_are_taken() {
    let package = Layer::gzip(&tar(&[Entry::file(&at("a"), "a")]));
    let nothing = Layer {
        blob: Vec::new(),
        ..Layer::gzip(&[])
    };
    for (name, layer) in [
        ("two blocks of zeros", Layer::gzip(&[0; 1024])),
        ("no blocks", Layer::gzip(&[])),
        ("zstd", Layer::zstd(&[0; 1024])),
        ("plain", Layer::plain(&[0; 1024])),
        ("no bytes", nothing),
    ] {
        let layers = vec![layer.clone(), package.clone(), layer];
        let got = Host::new().install(Image::new(layers)).await;
        assert_eq!(got.unwrap(), ["a 644 a"], "{name}");
    }
}

#[tokio::test]
async fn whiteouts_are_applied_in_every_legal_place() {
    let f = |name: &str| Entry::file(&at(name), "x");
    let base = vec![Entry::dir("skyhook-package"), f("d/a"), f("d/e/b"), f("c")];
    let hidden = |names: &[&str]| {
        let names = names.iter();
        names.map(|name| Entry::file(name, "")).collect::<Vec<_>>()
    };
    type Row = (&'static str, Vec<Entry>, &'static [&'static str]);
    let table: [Row; 10] = [
        (
            "in the root of the package",
            hidden(&["skyhook-package/.wh.c"]),
            &["d/ 755", "d/a 644 x", "d/e/ 755", "d/e/b 644 x"],
        ),
        (
            "with another spelling",
            hidden(&["./skyhook-package/d/../.wh.c", "/skyhook-package/.wh.d"]),
            &[],
        ),
        (
            "of a directory",
            hidden(&["skyhook-package/d/.wh.e"]),
            &["c 644 x", "d/ 755", "d/a 644 x"],
        ),
        (
            "opaque below",
            hidden(&["skyhook-package/d/e/.wh..wh..opq"]),
            &["c 644 x", "d/ 755", "d/a 644 x", "d/e/ 755"],
        ),
        (
            "opaque package",
            hidden(&["skyhook-package/.wh..wh..opq"]),
            &[],
        ),
        (
            "opaque image",
            [hidden(&[".wh..wh..opq"]), vec![f("n")]].concat(),
            &["n 644 x"],
        ),
        (
            "of the package",
            [hidden(&["/.wh.skyhook-package"]), vec![f("n")]].concat(),
            &["n 644 x"],
        ),
        (
            "of nothing",
            hidden(&["skyhook-package/no/where/.wh.x", "skyhook-package/.wh.y"]),
            &["c 644 x", "d/ 755", "d/a 644 x", "d/e/ 755", "d/e/b 644 x"],
        ),
        (
            "with content, and as a link",
            vec![
                Entry::file(&at(".wh.c"), "content"),
                Entry::hardlink(&at("d/.wh.a"), &at(".wh.c")),
            ],
            &["d/ 755", "d/e/ 755", "d/e/b 644 x"],
        ),
        (
            "names of AUFS",
            hidden(&["skyhook-package/.wh..wh.plnk", ".wh..wh.aufs"]),
            &["c 644 x", "d/ 755", "d/a 644 x", "d/e/ 755", "d/e/b 644 x"],
        ),
    ];
    for (name, entries, want) in table {
        let layers = [&base, &entries].map(|entries| Layer::gzip(&tar(entries)));
        let got = Host::new()
            .install(Image::new(layers.to_vec()))
            .await
            .unwrap();
        assert_eq!(got, want, "{name}");
    }
}

/// Links to files of lower layers, to other links, and to what a chain of symlinks leads to.
#[tokio::test]
async fn links_lead_to_lower_layers_and_to_links() {
    let lower = vec![
        Entry::file(&at("bin/tool"), "tool").mode(0o755),
        Entry::symlink(&at("current"), "versions/2"),
        Entry::symlink(&at("versions/2"), "/skyhook-package/versions/3"),
        Entry::dir(&at("versions/3")),
    ];
    let upper = vec![
        Entry::hardlink(&at("again"), &at("bin/tool")),
        Entry::hardlink(&at("third"), "./skyhook-package/again"),
        Entry::hardlink(&at("link"), &at("current")),
        Entry::file(&at("current/inside"), "i"),
        Entry::hardlink(&at("inside"), &at("versions/2/inside")),
    ];
    let layers = [lower, upper].map(|entries| Layer::gzip(&tar(&entries)));
    let got = Host::new()
        .install(Image::new(layers.to_vec()))
        .await
        .unwrap();
    assert_eq!(
        got,
        [
            "again 755 tool",
            "bin/ 755",
            "bin/tool 755 tool",
            "current -> versions/2",
            "inside 644 i",
            "link -> versions/2",
            "third 755 tool",
            "versions/ 755",
            "versions/2 -> /skyhook-package/versions/3",
            "versions/3/ 755",
            "versions/3/inside 644 i",
        ]
    );
}
