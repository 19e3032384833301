#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;
use std::process::Command;

use super::super::disk_bytes;
use super::*;

const UID: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";

fn name(package: &str, version: &str, generation: u64) -> String {
    format!("{package}-{version}-{UID}-{generation}")
}

fn kept(skyhook: &str, name: &str, version: &str, copy: &str) -> Kept {
    Kept {
        skyhook: skyhook.into(),
        key: format!("{name}|{version}"),
        name: name.into(),
        copy: Some(copy.into()),
    }
}

fn known(skyhooks: &[&str]) -> BTreeSet<String> {
    skyhooks.iter().map(|name| (*name).to_owned()).collect()
}

/// Creates a copy directory as an unpack does: its mtime is that of the directory in the image. A higher `order` means
/// an older mtime.
fn make(copy: &Path, order: u64) {
    // File systems have coarse timestamps: wait, so that each copy directory has another ctime.
    std::thread::sleep(Duration::from_millis(20));
    fs::create_dir_all(copy.join("chroot")).unwrap();
    fs::write(copy.join("config.json"), "{}").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - order);
    fs::File::open(copy).unwrap().set_modified(time).unwrap();
}

fn names_in(directory: &Path) -> Vec<String> {
    Root::open(directory)
        .unwrap()
        .list("")
        .unwrap()
        .into_iter()
        .map(|name| name.into_string().unwrap())
        .collect()
}

#[test]
fn directories_that_are_copies() {
    for (name, want) in [
        (name("aa", "1.0.0", 1), true),
        (name("aa-b", "v1.0.0-rc.1+b", 12), true),
        ("flags".into(), false),
        ("aa-1.0.0-local-1".into(), false),
        (format!("aa-1.0.0-{UID}"), false),
        (format!("aa-1.0.0-{UID}-"), false),
        (format!("aa-1.0.0-{}-1", UID.replace('-', "x")), false),
    ] {
        assert_eq!(is_copy(&name), want, "{name}");
    }
}

#[test]
fn the_copy_in_use_and_the_one_before_it_stay_and_those_of_uninstalled_packages_go() {
    let directory = tempfile::tempdir().unwrap();
    let at = |skyhook: &str, name: &str| directory.path().join(skyhook).join(name);
    let copies = [
        name("aa", "1.0.0", 1),
        name("aa", "2.0.0", 2),
        name("aa", "3.0.0", 3),
        name("aa-b", "v1", 1),
        name("aa-b", "2.0.0", 2),
        name("aa-b", "3.0.0", 3),
        name("uninstalled", "1.0.0", 1),
    ];
    for (copy, n) in copies.iter().zip(0..) {
        make(&at("s", copy), n);
    }
    // Other directories of packages and agents.
    fs::create_dir_all(at("s", "flags")).unwrap();
    fs::create_dir_all(at("s", "data-of-a-package")).unwrap();
    fs::write(at("s", "data-of-a-package/config.json"), "{}").unwrap();
    make(&at("forgotten", &name("aa", "1.0.0", 1)), 1);
    let since = SystemTime::now();
    // The next lease has unpacked a package already.
    std::thread::sleep(Duration::from_millis(20));
    make(&at("s", &name("new", "1.0.0", 4)), 1);

    let kept = [
        kept("s", "aa", "3.0.0", &copies[2]),
        kept("s", "aa-b", "3.0.0", &copies[5]),
    ];
    let files = Root::open(directory.path()).unwrap();
    remove_old(&files, "/", &known(&["s"]), &kept, since);
    let mut want = vec![
        copies[1].clone(),
        copies[2].clone(),
        copies[4].clone(),
        copies[5].clone(),
        "data-of-a-package".to_owned(),
        "flags".to_owned(),
        name("new", "1.0.0", 4),
    ];
    want.sort();
    assert_eq!(names_in(&directory.path().join("s")), want);
    let forgotten = directory.path().join("forgotten");
    assert_eq!(names_in(&forgotten).len(), 1, "its journal may be lost");
    remove_old(
        &files,
        "/",
        &known(&["s"]),
        &kept,
        since + UNKNOWN + Duration::from_secs(1),
    );
    assert_eq!(names_in(&forgotten).len(), 0);
}

/// The last package of the Skyhook was uninstalled.
#[test]
fn copies_of_a_skyhook_that_is_known_and_empty_go_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for skyhook in ["empty", "unknown"] {
        let copies = directory.path().join(skyhook);
        make(&copies.join(name("aa", "1.0.0", 1)), 1);
        fs::create_dir_all(copies.join("flags")).unwrap();
    }
    let files = Root::open(directory.path()).unwrap();
    let since = SystemTime::now() + Duration::from_secs(1);
    remove_old(&files, "/", &known(&["empty"]), &[], since);
    assert_eq!(names_in(&directory.path().join("empty")), ["flags"]);
    assert_eq!(names_in(&directory.path().join("unknown")).len(), 2);
}

#[test]
fn what_a_killed_unpack_has_left_goes_and_what_another_is_at_stays() {
    let directory = tempfile::tempdir().unwrap();
    let left = directory.path().join("s").join(".aa.unpacking");
    let busy = directory.path().join("s").join(".bb.unpacking");
    for unpacking in [&left, &busy] {
        fs::create_dir_all(unpacking.join("layer0")).unwrap();
        fs::write(unpacking.join("layer0/0"), "half").unwrap();
    }
    let lock = fs::File::open(&busy).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let files = Root::open(directory.path()).unwrap();
    remove_left_overs(&files, "/");
    assert!(!left.exists());
    assert!(busy.join("layer0/0").exists());
}

/// A step may leave the host's root directory mounted in its copy directory.
#[test]
fn what_is_mounted_in_a_copy_is_neither_removed_nor_counted() {
    let test = "run::housekeeping::copies::tests::what_is_mounted_in_a_copy_is_neither_removed_nor_counted";
    if !skyhook_testkit::in_own_mounts(test) {
        return;
    }
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("precious"), vec![0; 1 << 20]).unwrap();
    let copies = tempfile::tempdir().unwrap();
    let copy = |version: u64| {
        let name = name("aa", &format!("{version}.0.0"), version);
        copies.path().join("s").join(name)
    };
    for version in 1..=4 {
        make(&copy(version), version);
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
    let on_record = [kept("s", "aa", "4.0.0", &name("aa", "4.0.0", 4))];
    remove_old(&files, "/", &known(&["s"]), &on_record, SystemTime::now());
    assert!(host.path().join("precious").exists());
    assert!(copy(1).join("config.json").exists(), "left as it is");
    assert!(!copy(2).exists(), "nothing is mounted there");
    assert!(copy(3).exists() && copy(4).exists());
}
