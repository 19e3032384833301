use std::io::Write as _;
use std::process::Command;

use super::*;

mod month;

#[tokio::test]
async fn skyhooks_are_gone_when_the_cluster_has_none_of_their_revisions() {
    let record = |revisions: &[&str]| -> BTreeSet<String> {
        revisions.iter().map(|r| (*r).to_owned()).collect()
    };
    let remembered: BTreeMap<String, BTreeSet<String>> = [
        ("there", record(&["old", "new"])),
        ("gone", record(&["old"])),
        ("unknown", record(&["old", "silence"])),
        ("of an earlier agent", record(&[])),
    ]
    .map(|(name, revisions)| (name.to_owned(), revisions))
    .into();
    let exists = async |revision: &str| match revision {
        "new" => Some(true),
        "silence" => None,
        _ => Some(false),
    };
    let gone = gone(&remembered, exists).await;
    assert_eq!(gone, record(&["gone"]));
}

#[test]
fn the_current_and_the_previous_copy_stay() {
    let kept = [
        kept("aa", "3.0.0", "aa-3.0.0-u-3"),
        kept("aa-b", "3.0.0", "aa-b-3.0.0-u-3"),
    ];
    let there = [
        "aa-1.0.0-u-1",
        "aa-2.0.0-u-2",
        "aa-3.0.0-u-3",
        "aa-b-v1-u-1",
        "aa-b-2.0.0-u-2",
        "aa-b-3.0.0-u-3",
        "other-1.0.0-u-1",
    ];
    let there = there
        .into_iter()
        .zip(0..)
        .map(|(name, n)| (SystemTime::UNIX_EPOCH + Duration::from_secs(n), name.into()))
        .collect();
    let old = old_copies(there, &kept.iter().collect::<Vec<_>>());
    assert_eq!(old, ["aa-b-v1-u-1", "aa-1.0.0-u-1"]);
}

fn kept(name: &str, version: &str, copy: &str) -> Kept {
    Kept {
        skyhook: "s".into(),
        key: format!("{name}|{version}"),
        name: name.into(),
        copy: Some(copy.into()),
    }
}

/// A step may leave the host's root mounted in its directory.
#[test]
fn what_is_mounted_in_a_copy_is_neither_removed_nor_counted() {
    const INSIDE: &str = "SKYHOOK_TEST_IN_OWN_MOUNTS";
    const TEST: &str = "what_is_mounted_in_a_copy_is_neither_removed_nor_counted";
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs {TEST} as root");
        let mut errors = std::io::stderr().lock();
        let _closed = writeln!(errors, "\n!!!! SKIPPED {TEST}: it mounts, which needs root");
        return;
    }
    if std::env::var_os(INSIDE).is_none() {
        let again = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args([&format!("run::housekeeping::tests::{TEST}"), "--exact"])
            .args(["--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&again.stdout);
        let errors = String::from_utf8_lossy(&again.stderr);
        assert!(
            again.status.success() && text.contains("1 passed"),
            "{text}{errors}"
        );
        return;
    }
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("precious"), vec![0; 1 << 20]).unwrap();
    let copies = tempfile::tempdir().unwrap();
    let copy = |version: u64| {
        copies
            .path()
            .join(format!("s/aa-{version}.0.0-u-{version}"))
    };
    for version in 1..=4 {
        fs::create_dir_all(copy(version).join("chroot")).unwrap();
        fs::write(copy(version).join("config.json"), "{}").unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(version);
        fs::File::open(copy(version))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    let before = disk_bytes(copies.path());
    let status = Command::new("mount")
        .arg("--bind")
        .arg(host.path())
        .arg(copy(1).join("chroot"))
        .status()
        .unwrap();
    assert!(status.success());
    assert!(disk_bytes(copies.path()) <= before, "{before}");
    assert!(disk_bytes(host.path()) >= 1 << 20);
    let files = Root::open(copies.path()).unwrap();
    remove_old_copies(&files, "/", &[kept("aa", "4.0.0", "aa-4.0.0-u-4")]);
    assert!(host.path().join("precious").exists());
    assert!(copy(1).join("config.json").exists(), "left as it is");
    assert!(!copy(2).exists(), "nothing is mounted there");
    assert!(copy(3).exists() && copy(4).exists());
}
