//! Layers that attack: nothing of them is ever outside the target, and every refusal says why.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use skyhook_oci::{Limits, Target, UnpackOptions};

use crate::host::{Host, chain, hasty};
use crate::image::{Entry, Image, Layer, gzip, tar};
use crate::liar::Liar;
use crate::support::listing;

fn dir() -> Entry {
    Entry::dir("skyhook-package")
}

fn at(name: &str) -> String {
    format!("skyhook-package/{name}")
}

/// What installing this says, and that it leaves nothing behind.
async fn refusal(image: Image, limits: Limits) -> String {
    let host = Host::with(hasty(), limits);
    let error = host.install(image).await.unwrap_err();
    assert!(!error.is_transient(), "{}", chain(&error));
    host.assert_clean().await;
    let text = chain(&error);
    text.split_once(": ")
        .map_or(text.clone(), |(_, rest)| rest.to_owned())
}

async fn refused(name: &str, entries: Vec<Entry>, want: &str) {
    let got = refusal(Image::of(&entries), Limits::default()).await;
    assert_eq!(got, want, "{name}");
}

#[tokio::test]
async fn names_and_links_that_lead_outside_are_refused() {
    let link = |target: &str| Entry::symlink(&at("l"), target);
    let through = Entry::file(&at("l/victim"), "gone");
    let escapes = "entry \"l/victim\": its parent is a symlink that leaves /skyhook-package";
    let dots = "entry \"skyhook-package/../victim\": '..' in a name";
    let table = [
        (
            "dots",
            vec![dir(), Entry::file(&at("../victim"), "x")],
            dots,
        ),
        (
            "dots elsewhere",
            vec![dir(), Entry::file("../../victim", "x")],
            "entry \"../../victim\": '..' in a name",
        ),
        (
            "absolute link",
            vec![dir(), link("/"), through.clone()],
            escapes,
        ),
        (
            "link to an alias",
            vec![dir(), link("/skyhook-package-2"), through.clone()],
            escapes,
        ),
        (
            "relative link",
            vec![dir(), link("../../.."), through.clone()],
            escapes,
        ),
        (
            "deep link",
            vec![
                dir(),
                Entry::symlink(&at("a/b/l"), "../../.."),
                Entry::file(&at("a/b/l/x"), "x"),
            ],
            "entry \"a/b/l/x\": its parent is a symlink that leaves /skyhook-package",
        ),
        (
            "chain",
            vec![
                dir(),
                Entry::symlink(&at("m"), "l"),
                link("/etc"),
                Entry::file(&at("m/x"), "x"),
            ],
            "entry \"m/x\": its parent is a symlink that leaves /skyhook-package",
        ),
        (
            "loop",
            vec![
                dir(),
                Entry::symlink(&at("m"), "l"),
                link("m"),
                through.clone(),
            ],
            "entry \"l/victim\": more than 40 symlinks on the way to it",
        ),
        (
            "whiteout through a link",
            vec![dir(), link("/"), Entry::file(&at("l/.wh.etc"), "")],
            "",
        ),
        (
            "hard link outside",
            vec![dir(), Entry::hardlink(&at("h"), "/etc/passwd")],
            "entry \"skyhook-package/h\": a hard link to \"/etc/passwd\", which is not in /skyhook-package",
        ),
        (
            "hard link up",
            vec![dir(), Entry::hardlink(&at("h"), &at("../../etc/passwd"))],
            "entry \"skyhook-package/h\": '..' in a name",
        ),
        (
            "hard link through a link",
            vec![
                dir(),
                link("/etc"),
                Entry::hardlink(&at("h"), &at("l/passwd")),
            ],
            "entry \"h\": its parent is a symlink that leaves /skyhook-package",
        ),
        (
            "hard link to nothing",
            vec![dir(), Entry::hardlink(&at("h"), &at("x"))],
            "entry \"h\": a hard link to \"x\", which does not exist",
        ),
        (
            "hard link to a directory",
            vec![
                dir(),
                Entry::dir(&at("d")),
                Entry::hardlink(&at("h"), &at("d")),
            ],
            "entry \"h\": a hard link to the directory \"d\"",
        ),
        (
            "file as a directory",
            vec![
                dir(),
                Entry::file(&at("f"), "x"),
                Entry::file(&at("f/x"), "x"),
            ],
            "entry \"f/x\": its parent is not a directory",
        ),
        (
            "the package is a link",
            vec![Entry::symlink("skyhook-package", "/etc")],
            "entry \"\": /skyhook-package is not a directory",
        ),
        (
            "no package",
            vec![Entry::file("skyhook_package/x", "x")],
            "",
        ),
    ];
    for (name, entries, want) in table {
        match name {
            // In one layer a whiteout acts before the link is there: nothing is hidden, nothing fails.
            "whiteout through a link" => {
                let layers = [entries[..2].to_vec(), entries[2..].to_vec()];
                let layers = layers.map(|entries| Layer::gzip(&tar(&entries))).to_vec();
                let got = refusal(Image::new(layers), Limits::default()).await;
                assert_eq!(
                    got,
                    "entry \"l/etc\": its parent is a symlink that leaves /skyhook-package"
                );
            }
            "no package" => {
                let got = refusal(Image::of(&entries), Limits::default()).await;
                assert_eq!(got, "the image has no directory /skyhook-package");
            }
            _ => refused(name, entries, want).await,
        }
    }
}

#[tokio::test]
async fn a_link_in_one_layer_does_not_carry_the_next_one_out() {
    let host = Host::new();
    let victim = host.dir.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let target = host.dir.path().to_str().unwrap();
    for below in [
        vec![Entry::file(&at("l/victim"), "gone")],
        vec![Entry::file(&at("l/.wh.victim"), "")],
        vec![Entry::file(&at("l/.wh..wh..opq"), "")],
        vec![Entry::hardlink(&at("h"), &at("l/victim"))],
    ] {
        let first = Layer::gzip(&tar(&[dir(), Entry::symlink(&at("l"), target)]));
        let layers = vec![first, Layer::gzip(&tar(&below))];
        host.install(Image::new(layers)).await.unwrap_err();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "safe");
        host.assert_clean().await;
    }
    // What replaces a link, or has its name, never touches what it points to.
    let victim_text = victim.to_str().unwrap();
    let entries = [
        dir(),
        Entry::symlink(&at("a"), victim_text),
        Entry::file(&at("a"), "mine"),
        Entry::symlink(&at("b"), victim_text),
        Entry::dir(&at("b")).mode(0o700),
        Entry::symlink(&at("c"), victim_text),
        Entry::hardlink(&at("d"), &at("c")),
    ];
    let got = host.install(Image::of(&entries)).await.unwrap();
    let link = |name: &str| format!("{name} -> {victim_text}");
    assert_eq!(
        got,
        ["a 644 mine".into(), "b/ 700".into(), link("c"), link("d")]
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "safe");
    assert_eq!(
        fs::metadata(&victim).unwrap().permissions().mode() & 0o777,
        0o644
    );
}

#[tokio::test]
async fn devices_and_set_id_bits_are_refused_unless_allowed() {
    let table = [
        (
            Entry::new(b'3', &at("x")),
            "a character device is not allowed in a package",
        ),
        (
            Entry::new(b'4', &at("x")),
            "a block device is not allowed in a package",
        ),
        (
            Entry::new(b'6', &at("x")),
            "a FIFO is not allowed in a package",
        ),
        (
            Entry::file(&at("x"), "").mode(0o4755),
            "setuid and setgid bits are not allowed in a package",
        ),
        (
            Entry::file(&at("x"), "").mode(0o2755),
            "setuid and setgid bits are not allowed in a package",
        ),
        (Entry::new(b'Z', &at("x")), "entry type 0x5a is unknown"),
        (Entry::new(b'V', &at("x")), "entry type 0x56 is unknown"),
        (Entry::symlink(&at("x"), ""), "a symlink to nothing"),
    ];
    for (entry, want) in table {
        refused(
            want,
            vec![dir(), entry],
            &format!("entry \"skyhook-package/x\": {want}"),
        )
        .await;
    }
    // Elsewhere in the image they are nobody's business.
    let elsewhere = [
        dir(),
        Entry::new(b'3', "dev/null"),
        Entry::file("bin/su", "").mode(0o4755),
    ];
    assert_eq!(
        Host::new().install(Image::of(&elsewhere)).await.unwrap(),
        Vec::<String>::new()
    );
    let host = Host::with(
        hasty(),
        Limits {
            allow_special: true,
            ..Limits::default()
        },
    );
    let entries = [
        dir(),
        Entry::file(&at("su"), "x").mode(0o4755),
        Entry::new(b'6', &at("fifo")),
    ];
    let liar_image = Image::of(&entries);
    let liar = Liar::start(move |request| liar_image.answer(request));
    let pulled = host.pull(&liar).await.unwrap();
    host.unpack(&pulled.manifest_digest).await.unwrap();
    let mode = |name| {
        fs::metadata(host.target().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(
        (mode("su") & 0o7777, mode("fifo") & 0o170_000),
        (0o4755, 0o010_000)
    );
}

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
    ];
    for (name, entries, limits, want) in table {
        let got = refusal(Image::of(&entries), limits).await;
        assert!(got.ends_with(&want), "{name}: {got}");
    }
}

#[tokio::test]
async fn bombs_end_at_a_limit_quickly() {
    // A gigabyte of zeros, about a thousand to one: the members of one stream.
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

    // A hundred gigabytes of holes in one header.
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
            "dots by PAX",
            Layer::gzip(&tar(&pax("27 path=skyhook-package/..\n"))),
            "'..' in a name",
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
            "not gzip",
            Layer {
                blob: good.clone(),
                ..Layer::gzip(&good)
            },
            "it cannot be decompressed: ",
        ),
        (
            "not zstd",
            Layer {
                blob: gz.clone(),
                ..Layer::zstd(&good)
            },
            "it cannot be decompressed: ",
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

/// A frame that asks for as much memory as the format can say.
fn window_bomb(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::raw::Encoder::new(1).unwrap();
    encoder
        .set_parameter(zstd::stream::raw::CParameter::WindowLog(31))
        .unwrap();
    let mut writer = zstd::stream::write::Encoder::with_encoder(Vec::new(), encoder);
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[tokio::test]
async fn a_directory_swapped_for_a_link_in_mid_way_is_no_way_out() {
    let host = Host::new();
    let victim = host.dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o711)).unwrap();
    let mut entries = vec![dir()];
    for number in 0..40 {
        entries.push(Entry::dir(&at(&format!("d/{number}"))).mode(0o777));
        entries.push(Entry::file(&at(&format!("d/{number}/f")), "x"));
        entries.push(Entry::symlink(&at(&format!("d/{number}/l")), "f"));
    }
    let image = Image::of(&entries);
    let liar = Liar::start(move |request| image.answer(request));
    let pulled = host.pull(&liar).await.unwrap();
    let (target, aside) = (host.target(), host.dir.path().join("aside"));
    let done = AtomicBool::new(false);
    let (mut swaps, mut failures) = (0, 0);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let mut swaps = 0;
            while !done.load(Ordering::Relaxed) {
                let inner = target.join("d");
                if fs::rename(&inner, &aside).is_ok() && symlink(&victim, &inner).is_ok() {
                    swaps += 1;
                    std::thread::yield_now();
                    fs::remove_file(&inner).ok();
                }
                fs::remove_dir_all(&aside).ok();
            }
            swaps
        });
        for _ in 0..30 {
            let options = UnpackOptions {
                overlay: true,
                durable: false,
                threads: 1,
            };
            let target = Target::path(&target);
            let result = host
                .store
                .unpack_blocking(&pulled.manifest_digest, &target, options);
            failures += usize::from(result.is_err());
        }
        done.store(true, Ordering::Relaxed);
        swaps = attacker.join().unwrap();
    });
    assert!(
        swaps > 0,
        "the attacker never came to it ({failures} failures)"
    );
    assert_eq!(listing(&victim), Vec::<String>::new());
    assert_eq!(
        fs::metadata(&victim).unwrap().permissions().mode() & 0o777,
        0o711
    );
}

#[tokio::test]
async fn a_stage_or_parent_that_is_a_link_is_not_followed_out() {
    let host = Host::new();
    let victim = host.dir.path().join("victim");
    fs::create_dir_all(&victim).unwrap();
    fs::write(victim.join("kept"), "kept").unwrap();
    let image = Image::of(&[dir(), Entry::file(&at("a"), "a")]);
    let liar = Liar::start(move |request| image.answer(request));
    let digest = host.pull(&liar).await.unwrap().manifest_digest;
    let options = UnpackOptions {
        durable: false,
        ..UnpackOptions::default()
    };

    let out = host.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    symlink(&victim, out.join(".package.unpacking")).unwrap();
    let error = host.unpack(&digest).await.unwrap_err();
    assert!(
        chain(&error).contains("cannot open the stage beside"),
        "{}",
        chain(&error)
    );

    // Inside a root every link is resolved as if the root were `/`.
    let root = host.dir.path().join("root");
    fs::create_dir_all(root.join("real")).unwrap();
    symlink("/real", root.join("absolute")).unwrap();
    symlink("../../../..", root.join("up")).unwrap();
    for (path, lands) in [
        ("absolute/p", "real/p"),
        ("up/real/q", "real/q"),
        ("new/deep/r", "new/deep/r"),
    ] {
        let target = Target::in_root(&root, path);
        host.store.unpack(&digest, &target, options).await.unwrap();
        assert_eq!(listing(&root.join(lands)), ["a 644 a"], "{path}");
    }
    let target = Target::in_root(&root, "../p");
    host.store
        .unpack(&digest, &target, options)
        .await
        .unwrap_err();
    assert_eq!(listing(&victim), ["kept 644 kept"]);
}
