//! Layers that are too large or broken. Each of them is refused quickly, and the error names the limit or the fault.

use std::io::Write;

use skyhook_oci::{Limits, chain};

use crate::host::Host;
use crate::hostile::{at, dir, refusal};
use crate::image::{Entry, Image, Layer, gzip, tar};

#[tokio::test]
async fn every_limit_is_named_by_what_goes_over_it() {
    let over = |limit: &str, allowed: u64| format!("over the limit {limit} = {allowed}");
    let deep = |depth: usize| at(&vec!["d"; depth].join("/"));
    let long = at(&vec!["x".repeat(200); 21].join("/"));
    let huge = "x".repeat(1 << 20);
    let lie = Entry {
        size: 100 << 30,
        ..Entry::file(&at("x"), "")
    };
    let table = [
        (
            "deep",
            vec![dir(), Entry::pax(&[("path", &deep(65))]), Entry::dir("x")],
            Limits::default(),
            over("depth", 64),
        ),
        (
            "deep by links",
            {
                let mut entries = vec![dir(), Entry::dir(&at("d/d/d/d"))];
                for level in 0..20 {
                    let name = at(&format!("l{level}"));
                    let from = if level == 0 {
                        ".".to_owned()
                    } else {
                        format!("l{}", level - 1)
                    };
                    entries.push(Entry::symlink(&name, &format!("{from}/d/d/d/d")));
                    entries.push(Entry::dir(&format!("{name}/d/d/d/d")));
                }
                entries
            },
            Limits::default(),
            over("depth", 64),
        ),
        (
            "long",
            vec![dir(), Entry::pax(&[("path", &long)]), Entry::file("x", "")],
            Limits::default(),
            over("path_bytes", 4096),
        ),
        (
            "huge PAX",
            vec![
                dir(),
                Entry::pax(&[("comment", &huge)]),
                Entry::file(&at("x"), ""),
            ],
            Limits::default(),
            over("metadata_bytes", 1 << 20),
        ),
        (
            "lying size",
            vec![dir(), lie],
            Limits::default(),
            over("package_bytes", 16 << 30),
        ),
        (
            "entries",
            vec![dir(), Entry::file(&at("a"), ""), Entry::file(&at("b"), "")],
            Limits {
                package_entries: 2,
                ..Limits::default()
            },
            over("package_entries", 2),
        ),
        (
            "scanned",
            vec![dir(), Entry::file("a", ""), Entry::file("b", "")],
            Limits {
                scanned_entries: 2,
                ..Limits::default()
            },
            over("scanned_entries", 2),
        ),
        (
            "bytes",
            vec![
                dir(),
                Entry::file(&at("a"), "12345"),
                Entry::file(&at("b"), "67"),
            ],
            Limits {
                package_bytes: 6,
                ..Limits::default()
            },
            over("package_bytes", 6),
        ),
        (
            "stream",
            vec![dir(), Entry::file("a", vec![1; 9000])],
            Limits {
                stream_bytes: 8000,
                ..Limits::default()
            },
            over("stream_bytes", 8000),
        ),
        (
            "long hard link",
            vec![
                dir(),
                Entry::pax(&[("linkpath", &long)]),
                Entry::hardlink(&at("x"), "x"),
            ],
            Limits::default(),
            over("path_bytes", 4096),
        ),
        (
            "names",
            vec![
                dir(),
                Entry::file(&at("12345"), ""),
                Entry::file(&at("67"), ""),
            ],
            Limits {
                names_bytes: 6,
                ..Limits::default()
            },
            over("names_bytes", 6),
        ),
        (
            "targets",
            vec![
                dir(),
                Entry::symlink(&at("a"), "1234"),
                Entry::symlink(&at("b"), "1234"),
            ],
            Limits {
                names_bytes: 9,
                ..Limits::default()
            },
            over("names_bytes", 9),
        ),
        (
            "copies of a target",
            vec![
                dir(),
                Entry::symlink(&at("a"), "1234"),
                Entry::hardlink(&at("b"), &at("a")),
            ],
            Limits {
                names_bytes: 10,
                ..Limits::default()
            },
            over("names_bytes", 10),
        ),
        (
            "implied directories",
            vec![dir(), Entry::file(&at("a/b/c/d"), "")],
            Limits {
                package_entries: 4,
                ..Limits::default()
            },
            over("package_entries", 4),
        ),
        (
            "long ways",
            {
                // Each link leads back and forth before it leads to the one before it.
                let detour = "./".repeat(200);
                let mut entries = vec![dir(), Entry::dir(&at("l0"))];
                for level in 1..=40 {
                    let target = format!("{detour}l{}", level - 1);
                    entries.push(Entry::pax(&[("linkpath", &target)]));
                    entries.push(Entry::symlink(&at(&format!("l{level}")), "x"));
                }
                for file in 0..20 {
                    entries.push(Entry::file(&at(&format!("l40/{file}")), ""));
                }
                entries
            },
            Limits {
                path_steps: 100_000,
                ..Limits::default()
            },
            over("path_steps", 100_000),
        ),
    ];
    for (name, entries, limits, want) in table {
        let got = refusal(Image::of(&entries), limits).await;
        assert!(got.ends_with(&want), "{name}: {got}");
    }
}

/// The kernel would refuse the symlink each time again, so this is no fault of the disk.
#[tokio::test]
async fn a_symlink_that_linux_does_not_allow_is_refused() {
    for (length, is_allowed) in [(4095, true), (4096, false), (100_000, false)] {
        let target = "x/".repeat(length / 2) + &"x".repeat(length % 2);
        let entries = [
            dir(),
            Entry::pax(&[("linkpath", &target)]),
            Entry::symlink(&at("x"), "x"),
        ];
        let host = Host::new();
        match (host.install(Image::of(&entries)).await, is_allowed) {
            (Ok(lines), true) => assert_eq!(lines, [format!("x -> {target}")]),
            (Err(error), false) => {
                assert_eq!(
                    (error.kind(), error.is_transient()),
                    ("entry_refused", false)
                );
                let text = chain(&error);
                assert!(
                    text.ends_with("more than 4095 bytes, which Linux does not allow"),
                    "{text}"
                );
            }
            (got, _) => panic!("{length}: {got:?}"),
        }
    }
}

#[tokio::test]
async fn bombs_end_at_a_limit_quickly() {
    // A gigabyte of zeros, compressed about 1000 to 1, as several gzip members in one stream.
    let big = Entry {
        size: 1 << 30,
        ..Entry::file(&at("zeros"), "")
    };
    let mut layer = Layer::gzip(&tar(&[dir(), big])[..1024]);
    let zeros = gzip(&vec![0; 64 << 20]);
    (0..16).for_each(|_| layer.blob.extend_from_slice(&zeros));
    assert!(layer.blob.len() < 8 << 20);
    let got = refusal(Image::new(vec![layer]), Limits::default()).await;
    assert!(got.ends_with("over the limit ratio = 200"), "{got}");

    // A million entries.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&tar(&[dir()])[..512]).unwrap();
    let mut header = tar(&[Entry::file(&at("0000000"), "")])[..512].to_vec();
    let zeros: u32 = {
        header[148..156].fill(b' ');
        header.iter().map(|&byte| u32::from(byte)).sum()
    };
    for number in 0..1_000_000 {
        let digits = format!("{number:07}");
        let sum = zeros
            + digits
                .bytes()
                .map(|digit| u32::from(digit - b'0'))
                .sum::<u32>();
        header[16..23].copy_from_slice(digits.as_bytes());
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        encoder.write_all(&header).unwrap();
    }
    let layer = Layer::packed_as_zstd(&[], encoder.finish().unwrap());
    let got = refusal(Image::new(vec![layer]), Limits::default()).await;
    assert!(
        got.ends_with("over the limit package_entries = 200000"),
        "{got}"
    );

    // One header of a sparse file that is one hole of 100 GiB.
    let mut sparse = tar(&[
        dir(),
        Entry {
            kind: b'S',
            ..Entry::file(&at("holes"), "")
        },
    ]);
    let header = &mut sparse[512..1024];
    header[257..265].copy_from_slice(b"ustar  \0");
    header[483..495]
        .copy_from_slice(&[&[0x80, 0, 0, 0][..], &(100u64 << 30).to_be_bytes()].concat());
    checksum(header);
    let got = refusal(Image::new(vec![Layer::gzip(&sparse)]), Limits::default()).await;
    assert!(
        got.ends_with("over the limit package_bytes = 17179869184"),
        "{got}"
    );

    // A sparse map whose extension blocks never end.
    let mut endless = sparse[..1024].to_vec();
    endless[512 + 482] = 1;
    checksum(&mut endless[512..1024]);
    let mut block = [0u8; 512];
    block[504] = 1;
    for _ in 0..8192 {
        endless.extend_from_slice(&block);
    }
    let got = refusal(Image::new(vec![Layer::zstd(&endless)]), Limits::default()).await;
    assert!(
        got.ends_with("over the limit metadata_bytes = 1048576"),
        "{got}"
    );
}

fn checksum(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[tokio::test]
async fn archives_and_streams_that_are_broken_are_refused() {
    let good = tar(&[dir(), Entry::file(&at("a"), vec![7; 5000])]);
    let mut wrong_sum = good.clone();
    wrong_sum[512] ^= 1;
    let pax = |text: &str| {
        vec![
            dir(),
            Entry {
                kind: b'x',
                ..Entry::file("p", text)
            },
            Entry::file(&at("a"), ""),
        ]
    };
    let gz = gzip(&good);
    let table = [
        (
            "cut in a file",
            Layer::gzip(&good[..2048]),
            "its archive ends in the middle of an entry",
        ),
        (
            "cut in a header",
            Layer::gzip(&good[..700]),
            "its archive ends in the middle of an entry",
        ),
        (
            "checksum",
            Layer::gzip(&wrong_sum),
            "it is not a tar archive: header error: ",
        ),
        (
            "noise",
            Layer::gzip(&[0xa5; 5000]),
            "it is not a tar archive: header error: ",
        ),
        (
            "PAX length",
            Layer::gzip(&tar(&pax("99999 path=x\n"))),
            "it is not a tar archive: PAX error: ",
        ),
        (
            "PAX size",
            Layer::gzip(&tar(&pax("10 size=-\n"))),
            "it is not a tar archive: invalid PAX size value: \"-\"",
        ),
        (
            "NUL by PAX",
            Layer::gzip(&tar(&pax("27 path=skyhook-package/\0a\n"))),
            "a NUL byte in a name",
        ),
        (
            "PAX header without records",
            Layer::gzip(&tar(&pax("no records\n"))),
            "it is not a tar archive: PAX error: \"no records\\n\" is not a record",
        ),
        (
            "cut gzip",
            Layer {
                blob: gz[..gz.len() / 2].to_vec(),
                ..Layer::gzip(&good)
            },
            "it cannot be decompressed: ",
        ),
        (
            "neither gzip nor anything else",
            Layer {
                blob: vec![0xa5; 5000],
                ..Layer::gzip(&good)
            },
            "it is not a tar archive: header error: ",
        ),
        (
            "neither zstd nor anything else",
            Layer {
                blob: vec![0xa5; 5000],
                ..Layer::zstd(&good)
            },
            "it is not a tar archive: header error: ",
        ),
        (
            "garbage after gzip",
            Layer {
                blob: [gz.as_slice(), b"garbage"].concat(),
                ..Layer::gzip(&good)
            },
            "it cannot be decompressed: ",
        ),
        (
            "zstd window of 2 GiB",
            Layer::packed_as_zstd(&good, window_bomb(&good)),
            "it cannot be decompressed: ",
        ),
    ];
    for (name, layer, want) in table {
        let got = refusal(Image::new(vec![layer]), Limits::default()).await;
        assert!(got.contains(want), "{name}: {got}");
    }
}

/// A zstd frame with the largest window: the decoder would need 2 GiB of memory.
fn window_bomb(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::raw::Encoder::new(1).unwrap();
    encoder
        .set_parameter(zstd::stream::raw::CParameter::WindowLog(31))
        .unwrap();
    let mut writer = zstd::stream::write::Encoder::with_encoder(Vec::new(), encoder);
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}
