//! How valid images are unpacked.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use skyhook_oci::{Target, UnpackOptions, chain};

use crate::host::Host;
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::Liar;
use crate::support::{file, listing};

fn at(name: &str) -> String {
    format!("skyhook-package/{name}")
}

fn layers(layers: &[Vec<Entry>]) -> Image {
    Image::new(
        layers
            .iter()
            .map(|entries| Layer::gzip(&tar(entries)))
            .collect(),
    )
}

async fn installed(layer_entries: &[Vec<Entry>]) -> Vec<String> {
    Host::new().install(layers(layer_entries)).await.unwrap()
}

#[tokio::test]
async fn layers_are_laid_over_each_other_by_the_image_rules() {
    let f = |name: &str, content: &str| Entry::file(&at(name), content);
    let d = |name: &str| Entry::dir(&at(name));
    let base = vec![
        Entry::dir("skyhook-package"),
        f("a", "1"),
        d("d"),
        f("d/x", "x"),
        f("d/y", "y"),
    ];
    let base_and = |more: Vec<Entry>| [base.clone(), more];
    type Row = (&'static str, Vec<Vec<Entry>>, Vec<&'static str>);
    let table: Vec<Row> = vec![
        (
            "overwritten",
            base_and(vec![f("a", "2")]).to_vec(),
            vec!["a 644 2", "d/ 755", "d/x 644 x", "d/y 644 y"],
        ),
        (
            "whiteout of a file",
            base_and(vec![f("d/.wh.x", "")]).to_vec(),
            vec!["a 644 1", "d/ 755", "d/y 644 y"],
        ),
        (
            "whiteout of a directory",
            base_and(vec![f(".wh.d", "")]).to_vec(),
            vec!["a 644 1"],
        ),
        (
            "whiteout and the name anew, in either order",
            base_and(vec![f("d", "now a file"), f(".wh.d", "")]).to_vec(),
            vec!["a 644 1", "d 644 now a file"],
        ),
        (
            "opaque directory, what the layer itself has stays",
            base_and(vec![f("d/z", "z"), f("d/.wh..wh..opq", "")]).to_vec(),
            vec!["a 644 1", "d/ 755", "d/z 644 z"],
        ),
        (
            "whiteout of all",
            base_and(vec![Entry::file(".wh.skyhook-package", ""), f("b", "b")]).to_vec(),
            vec!["b 644 b"],
        ),
        (
            "directory over a file",
            base_and(vec![d("a"), f("a/n", "n")]).to_vec(),
            vec!["a/ 755", "a/n 644 n", "d/ 755", "d/x 644 x", "d/y 644 y"],
        ),
        (
            "file over a directory",
            base_and(vec![f("d", "f")]).to_vec(),
            vec!["a 644 1", "d 644 f"],
        ),
        (
            "mode of a directory alone",
            base_and(vec![d("d").mode(0o700)]).to_vec(),
            vec!["a 644 1", "d/ 700", "d/x 644 x", "d/y 644 y"],
        ),
        (
            "parents that no layer has",
            vec![vec![f("p/q/r", "r")]],
            vec!["p/ 755", "p/q/ 755", "p/q/r 644 r"],
        ),
        (
            "the last of two",
            vec![vec![
                f("a", "1"),
                f("a", "2"),
                Entry::symlink(&at("b"), "a"),
                f("b", "3"),
            ]],
            vec!["a 644 2", "b 644 3"],
        ),
        (
            "through a link inside",
            base_and(vec![Entry::symlink(&at("l"), "d"), f("l/n", "n")]).to_vec(),
            vec![
                "a 644 1",
                "d/ 755",
                "d/n 644 n",
                "d/x 644 x",
                "d/y 644 y",
                "l -> d",
            ],
        ),
        (
            "through an absolute link inside",
            base_and(vec![
                Entry::symlink(&at("l"), "/skyhook-package/d"),
                f("l/x", "n"),
            ])
            .to_vec(),
            vec![
                "a 644 1",
                "d/ 755",
                "d/x 644 n",
                "d/y 644 y",
                "l -> /skyhook-package/d",
            ],
        ),
        (
            "whiteout that names no file",
            base_and(vec![f("no/.wh.x", "")]).to_vec(),
            vec!["a 644 1", "d/ 755", "d/x 644 x", "d/y 644 y"],
        ),
        (
            "absolute names",
            vec![vec![
                Entry::file("/skyhook-package/a", "1"),
                Entry::file("./skyhook-package/b", "2"),
            ]],
            vec!["a 644 1", "b 644 2"],
        ),
        (
            "sticky bits and odd modes",
            vec![vec![d("d").mode(0o1777), f("a", "").mode(0o4).mode(0o1644)]],
            vec!["a 1644 ", "d/ 1777"],
        ),
    ];
    for (name, entries, want) in table {
        assert_eq!(installed(&entries).await, want, "{name}");
    }
}

#[tokio::test]
async fn hard_links_share_and_part_again() {
    let first = vec![
        Entry::dir("skyhook-package"),
        Entry::file(&at("a"), "1"),
        Entry::hardlink(&at("b"), &at("a")),
        Entry::hardlink(&at("c"), "/skyhook-package/b"),
    ];
    let host = Host::new();
    let got = host
        .install(layers(&[first, vec![Entry::file(&at("a"), "2")]]))
        .await
        .unwrap();
    assert_eq!(got, ["a 644 2", "b 644 1", "c 644 1"]);
    let inode = |name: &str| fs::metadata(host.target().join(name)).unwrap().ino();
    assert_eq!(inode("b"), inode("c"));
    assert_ne!(inode("a"), inode("b"));
}

#[tokio::test]
async fn times_long_names_and_sparse_files_arrive() {
    let long = at(&format!("{}/{}", "d".repeat(120), "n".repeat(200)));
    let gnu = at(&"g".repeat(150));
    let name = Entry {
        kind: b'L',
        ..Entry::file("././@LongLink", format!("{gnu}\0"))
    };
    // A sparse file as GNU tar writes it in PAX format 1.0: a hole of one mebibyte, and then two words.
    let map = "1\n1048576\n10\n".to_owned();
    let stored = [map.as_bytes(), &vec![0; 512 - map.len()], b"two words!"].concat();
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "skyhook-package/sparse"),
        ("GNU.sparse.realsize", "1048586"),
    ];
    let host = Host::new();
    let entries = vec![
        Entry::dir("skyhook-package"),
        Entry::pax(&[("path", &long), ("mtime", "1500000000.25")]),
        Entry::file("short", "pax"),
        name,
        Entry::file("short", "gnu"),
        Entry::pax(&records),
        Entry::file("GNUSparseFile.0/sparse", stored),
        Entry::symlink(&at("link"), "nowhere"),
    ];
    host.install(layers(&[entries])).await.unwrap();
    let target = host.target();
    let pax = fs::metadata(target.join(long.strip_prefix("skyhook-package/").unwrap())).unwrap();
    assert_eq!(
        (pax.mtime(), pax.mtime_nsec()),
        (1_500_000_000, 250_000_000)
    );
    assert_eq!(
        fs::read_to_string(target.join("g".repeat(150))).unwrap(),
        "gnu"
    );
    let sparse = fs::read(target.join("sparse")).unwrap();
    assert_eq!(
        (sparse.len(), &sparse[1 << 20..]),
        ((1 << 20) + 10, &b"two words!"[..])
    );
    assert!(
        fs::metadata(target.join("sparse")).unwrap().blocks() < 100,
        "the hole stays one"
    );
    let times = [
        fs::symlink_metadata(target.join("link")),
        fs::metadata(&target),
    ];
    assert_eq!(
        times.map(|metadata| metadata.unwrap().mtime()),
        [1_600_000_000; 2]
    );
}

/// A layer with the media type of another.
fn labelled_as(layer: Layer, other: &Layer) -> Layer {
    Layer {
        media_type: other.media_type,
        ..layer
    }
}

#[tokio::test]
async fn every_compression_and_unfinished_archives_are_read() {
    let entries = [
        Entry::dir("skyhook-package"),
        Entry::file(&at("a"), "content"),
    ];
    let whole = tar(&entries);
    let half = &whole[..whole.len() - 512];
    let bare = &whole[..whole.len() - 1024];
    let unpadded = &whole[..512 + 512 + 7];
    let two_members = {
        let (a, b) = whole.split_at(700);
        let blob = [crate::image::gzip(a), crate::image::gzip(b)].concat();
        Layer {
            blob,
            ..Layer::gzip(&whole)
        }
    };
    // This layer has a skippable frame at its end, as zstd:chunked layers have.
    let chunked = {
        let (a, b) = whole.split_at(700);
        let pack = |bytes| zstd::encode_all(bytes, 3).unwrap();
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
        Layer::packed_as_zstd(&whole, [pack(a), pack(b), skipped].concat())
    };
    let long_padding = [whole.clone(), vec![0; 100_000]].concat();
    for (name, layer) in [
        ("gzip", Layer::gzip(&whole)),
        ("zstd", Layer::zstd(&whole)),
        ("plain", Layer::plain(&whole)),
        ("two gzip members", two_members),
        ("chunked zstd", chunked),
        ("half an end marker", Layer::gzip(half)),
        ("no end marker", Layer::gzip(bare)),
        ("no padding", Layer::gzip(unpadded)),
        ("long padding", Layer::gzip(&long_padding)),
        (
            "gzip that is called zstd",
            labelled_as(Layer::gzip(&whole), &Layer::zstd(&whole)),
        ),
        (
            "zstd that is called gzip",
            labelled_as(Layer::zstd(&whole), &Layer::gzip(&whole)),
        ),
        (
            "plain that is called gzip",
            labelled_as(Layer::plain(&whole), &Layer::gzip(&whole)),
        ),
        (
            "gzip that is called plain",
            labelled_as(Layer::gzip(&whole), &Layer::plain(&whole)),
        ),
    ] {
        let got = Host::new().install(Image::new(vec![layer])).await;
        assert_eq!(got.unwrap(), ["a 644 content"], "{name}");
    }
}

#[tokio::test]
async fn an_overlay_replaces_what_it_has_and_keeps_the_rest() {
    let host = Host::new();
    let entries = [
        Entry::dir("skyhook-package"),
        Entry::file(&at("file"), "new"),
        Entry::file(&at("was-dir"), "new"),
        Entry::dir(&at("was-link")).mode(0o750),
        Entry::file(&at("was-link/in"), "new"),
        Entry::symlink(&at("link"), "file"),
        Entry::symlink(&at("link-over-dir"), "file"),
        Entry::file(&at("h1"), "linked"),
        Entry::hardlink(&at("h2"), &at("h1")),
        Entry::dir(&at("configmaps")),
    ];
    let image = Image::of(&entries);
    let liar = Liar::start(move |request| image.answer(request));
    let digest = host.pull(&liar).await.unwrap().manifest_digest;
    let target = host.target();
    let outside = host.dir.path().join("outside");
    file(&outside, "kept", "kept", 0o644);
    file(&target, "file", "old", 0o600);
    file(&target, "was-dir/deep/x", "old", 0o644);
    file(&target, "configmaps/tuned_profile", "made by a step", 0o644);
    symlink(&outside, target.join("was-link")).unwrap();
    symlink("elsewhere", target.join("link")).unwrap();
    file(&target, "link-over-dir/x", "old", 0o644);
    fs::create_dir(target.join("h2")).unwrap();
    for _ in 0..2 {
        let options = UnpackOptions {
            overlay: true,
            ..UnpackOptions::default()
        };
        host.store
            .unpack(&digest, &Target::path(&target), options)
            .await
            .unwrap();
        let want = [
            "configmaps/ 755",
            "configmaps/tuned_profile 644 made by a step",
            "file 644 new",
            "h1 644 linked",
            "h2 644 linked",
            "link -> file",
            "link-over-dir -> file",
            "was-dir 644 new",
            "was-link/ 750",
            "was-link/in 644 new",
        ];
        assert_eq!(listing(&target), want);
    }
    assert_eq!(listing(&outside), ["kept 644 kept"]);
    assert_eq!(
        fs::read_dir(target.parent().unwrap()).unwrap().count(),
        1,
        "no stage is left"
    );
    let error = host.unpack(&digest).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_transient()),
        ("target_exists", false),
        "{}",
        chain(&error)
    );
}
