//! Layers as builders make them: wrappings, empty layers, whiteouts and links.

use crate::host::Host;
use crate::image::{Entry, Image, Layer, gzip, tar};

fn at(name: &str) -> String {
    format!("skyhook-package/{name}")
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
