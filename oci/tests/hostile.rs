//! Layers that attack the host: nothing is written outside the target, and every error names the reason.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use skyhook_oci::{Limits, Root, Target, UnpackOptions, chain};

use crate::host::{Host, hasty};
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::Liar;
use crate::support::listing;

pub(crate) fn dir() -> Entry {
    Entry::dir("skyhook-package")
}

pub(crate) fn at(name: &str) -> String {
    format!("skyhook-package/{name}")
}

/// Installs an image that must be refused, and checks that no file is left. Returns the text of the error.
pub(crate) async fn refusal(image: Image, limits: Limits) -> String {
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

/// Names and links that lead out of the package, as an attacker or a careless builder may write them. Container
/// runtimes put such entries elsewhere into the image, where a package has nothing. They are left out.
#[tokio::test]
async fn what_leads_out_of_the_package_is_left_out() {
    let link = |target: &str| Entry::symlink(&at("l"), target);
    let through = Entry::file(&at("l/victim"), "gone");
    let file = Entry::file(&at("a"), "a");
    let host = Host::new();
    let victim = host.dir.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let up = format!("../{}", "../".repeat(20));
    let elsewhere = victim.to_str().unwrap().trim_start_matches('/').to_owned();
    type Row = (&'static str, Vec<Vec<Entry>>, Vec<String>);
    let table: Vec<Row> = vec![
        (
            "dots",
            vec![vec![Entry::file(&at("../victim"), "x")]],
            vec![],
        ),
        (
            "many dots",
            vec![vec![Entry::file(&at(&format!("{up}{elsewhere}")), "x")]],
            vec![],
        ),
        (
            "dots elsewhere",
            vec![vec![Entry::file("../../victim", "x")]],
            vec![],
        ),
        (
            "a directory up",
            vec![vec![Entry::dir(&at("..")).mode(0o777)]],
            vec![],
        ),
        (
            "absolute link",
            vec![vec![link("/"), through.clone()]],
            vec!["l -> /".into()],
        ),
        (
            "link to an alias",
            vec![vec![link("/skyhook-package-2"), through.clone()]],
            vec!["l -> /skyhook-package-2".into()],
        ),
        (
            "relative link",
            vec![vec![link("../../.."), through.clone()]],
            vec!["l -> ../../..".into()],
        ),
        (
            "deep link",
            vec![vec![
                Entry::symlink(&at("d/e/l"), "../../.."),
                Entry::file(&at("d/e/l/x"), "x"),
            ]],
            vec![
                "d/ 755".into(),
                "d/e/ 755".into(),
                "d/e/l -> ../../..".into(),
            ],
        ),
        (
            "chain",
            vec![vec![
                Entry::symlink(&at("m"), "l"),
                link("/etc"),
                Entry::file(&at("m/x"), "x"),
            ]],
            vec!["l -> /etc".into(), "m -> l".into()],
        ),
        (
            "whiteout through a link",
            vec![vec![link("/")], vec![Entry::file(&at("l/.wh.etc"), "")]],
            vec!["l -> /".into()],
        ),
        (
            "hard link outside",
            vec![vec![Entry::hardlink(&at("h"), "/etc/passwd")]],
            vec![],
        ),
        (
            "hard link up",
            vec![vec![Entry::hardlink(&at("h"), &at("../../etc/passwd"))]],
            vec![],
        ),
        (
            "hard link through a link",
            vec![vec![
                link("/etc"),
                Entry::hardlink(&at("h"), &at("l/passwd")),
            ]],
            vec!["l -> /etc".into()],
        ),
    ];
    for (name, mut layers, mut want) in table {
        layers[0].splice(..0, [dir(), file.clone()]);
        want.insert(0, "a 644 a".into());
        let host = Host::new();
        let layers = layers.iter().map(|entries| Layer::gzip(&tar(entries)));
        let got = host.install(Image::new(layers.collect())).await.unwrap();
        assert_eq!(got, want, "{name}");
        assert_eq!(
            listing(&host.dir.path().join("out")).len(),
            want.len() + 1,
            "{name}"
        );
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "safe");
}

#[tokio::test]
async fn links_that_lead_nowhere_are_refused() {
    let link = |target: &str| Entry::symlink(&at("l"), target);
    let table = [
        (
            "loop",
            vec![
                dir(),
                Entry::symlink(&at("m"), "l"),
                link("m"),
                Entry::file(&at("l/victim"), "gone"),
            ],
            "entry \"l/victim\": more than 40 symlinks on the way to it",
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
            "the package is a link with files in it",
            vec![
                dir(),
                Entry::symlink("skyhook-package", "/etc"),
                Entry::file(&at("f"), "x"),
            ],
            "entry \"f\": /skyhook-package is not a directory",
        ),
    ];
    for (name, entries, want) in table {
        refused(name, entries, want).await;
    }
    let none = Image::of(&[Entry::file("skyhook_package/x", "x")]);
    let got = refusal(none, Limits::default()).await;
    assert_eq!(got, "the image has no directory /skyhook-package");
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
        let got = Host::new().install(Image::new(layers)).await.unwrap();
        assert_eq!(got, [format!("l -> {target}")]);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "safe");
    }
    // An entry that replaces a link, or has its name, does not change the file that the link points to.
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
async fn devices_and_unknown_types_are_refused() {
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
            "a named pipe is not allowed in a package",
        ),
        (Entry::new(b'Z', &at("x")), "entry type 0x5a is unknown"),
        (Entry::new(b'V', &at("x")), "entry type 0x56 is unknown"),
        (
            Entry::symlink(&at("x"), ""),
            "a symlink with an empty target",
        ),
    ];
    for (entry, want) in table {
        refused(
            want,
            vec![dir(), entry],
            &format!("entry \"skyhook-package/x\": {want}"),
        )
        .await;
    }
}

/// A program of a package runs as root anyway, and must not be one that everybody can run as root.
#[tokio::test]
async fn set_id_bits_of_files_are_dropped() {
    let entries = [
        dir(),
        Entry::file(&at("both"), "").mode(0o6755),
        Entry::file(&at("group"), "").mode(0o2711),
        Entry::file(&at("user"), "").mode(0o5755),
        Entry::hardlink(&at("again"), &at("user")),
    ];
    let got = Host::new().install(Image::of(&entries)).await.unwrap();
    assert_eq!(
        got,
        ["again 1755 ", "both 755 ", "group 711 ", "user 1755 "]
    );
}

/// What lies outside of the package's directory is skipped, whatever it is.
#[tokio::test]
async fn what_lies_outside_of_the_package_refuses_no_image() {
    let long = "n".repeat(300);
    let mut entries = vec![
        Entry::new(b'3', "dev/null"),
        Entry::new(b'4', "dev/sda"),
        Entry::new(b'6', "run/initctl"),
        Entry::new(b'Z', "odd"),
        Entry::new(b'V', "label"),
        Entry::file("bin/su", "").mode(0o4755),
        Entry::dir("tmp").mode(0o1777),
        Entry::symlink("etc/mtab", "/proc/mounts"),
        Entry::symlink("etc/empty", ""),
        Entry::symlink("lib", "/skyhook-package"),
        Entry::hardlink("bin/sh", "bin/busybox"),
        Entry::hardlink("bin/gone", "/nowhere/at/all"),
        Entry::hardlink("bin/ours", "skyhook-package/a"),
        Entry::file("a/.wh.b/c", ""),
        Entry::file("a/.wh.", ""),
        Entry::file("../../etc/passwd", "root"),
        Entry::file(".", ""),
        Entry::file("..", ""),
        Entry::dir("./"),
        Entry::dir("/"),
        Entry::pax(&[
            ("path", &format!("var/{long}")),
            ("SCHILY.xattr.user.x", "y"),
        ]),
        Entry::file("x", "a long name"),
        Entry::pax(&[("SCHILY.xattr.security.capability", "\u{1}\0\0")]),
        Entry::file("bin/ping", ""),
        dir(),
        Entry::file(&at("a"), "a"),
    ];
    for number in 0..10_000 {
        entries.push(Entry::hardlink(&format!("usr/bin/{number}"), "bin/busybox"));
    }
    let got = Host::new().install(Image::of(&entries)).await.unwrap();
    assert_eq!(got, ["a 644 a"]);
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
async fn a_scratch_directory_or_parent_that_is_a_link_is_not_followed_out() {
    let host = Host::new();
    let victim = host.dir.path().join("victim");
    fs::create_dir_all(&victim).unwrap();
    fs::write(victim.join("kept"), "kept").unwrap();
    let image = Image::of(&[dir(), Entry::file(&at("a"), "a")]);
    let liar = Liar::start(move |request| image.answer(request));
    let digest = host.pull(&liar).await.unwrap().manifest_digest;
    let options = UnpackOptions::default();

    let out = host.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    symlink(&victim, out.join(".package.unpacking")).unwrap();
    let error = host.unpack(&digest).await.unwrap_err();
    assert!(
        chain(&error).contains("cannot open the scratch directory beside"),
        "{}",
        chain(&error)
    );

    // Inside a root, every link is resolved as if the root were `/`.
    let root = host.dir.path().join("root");
    fs::create_dir_all(root.join("real")).unwrap();
    symlink("/real", root.join("absolute")).unwrap();
    symlink("../../../..", root.join("up")).unwrap();
    let inside = Root::open(&root).unwrap();
    for (path, lands) in [
        ("absolute/p", "real/p"),
        ("up/real/q", "real/q"),
        ("new/deep/r", "new/deep/r"),
    ] {
        let target = Target::in_root(&inside, path);
        host.store.unpack(&digest, &target, options).await.unwrap();
        assert_eq!(listing(&root.join(lands)), ["a 644 a"], "{path}");
    }
    let target = Target::in_root(&inside, "../p");
    host.store
        .unpack(&digest, &target, options)
        .await
        .unwrap_err();
    assert_eq!(listing(&victim), ["kept 644 kept"]);
}
