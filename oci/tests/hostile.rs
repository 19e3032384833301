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
            // Within one layer, a whiteout is applied before the link exists, so it would not fail. This row needs
            // two layers.
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
            "a named pipe is not allowed in a package",
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
    // Outside of the package's directory, such entries are skipped.
    let elsewhere = [
        dir(),
        Entry::new(b'3', "dev/null"),
        Entry::file("bin/su", "").mode(0o4755),
    ];
    assert_eq!(
        Host::new().install(Image::of(&elsewhere)).await.unwrap(),
        Vec::<String>::new()
    );
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
