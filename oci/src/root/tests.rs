#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::os::unix::fs::symlink;

use super::*;

fn at(root: &Path, path: &str) -> PathBuf {
    root.canonicalize().unwrap().join(path)
}

#[test]
fn symlinks_stay_inside_the_root() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir_all(path.join("usr/lib")).unwrap();
    symlink("usr/lib", path.join("lib")).unwrap();
    symlink("/usr/../../../../usr", path.join("up")).unwrap();
    symlink("/etc/real", path.join("usr/lib/link")).unwrap();
    symlink("loop", path.join("loop")).unwrap();
    let root = Root::open(path).unwrap();
    for (name, want) in [
        ("/lib/x", "usr/lib/x"),
        ("/up/x", "usr/x"),
        ("/../../etc/passwd", "etc/passwd"),
        ("/lib/link/file", "etc/real/file"),
        ("/new/dir/file", "new/dir/file"),
        ("new", "new"),
        ("/lib", "usr/lib"),
        ("/new/../../../../etc/passwd", "etc/passwd"),
        ("/usr/new/dir/../../../..", ""),
        ("/usr/new/./dir/../file", "usr/new/file"),
        ("/usr/new/../../lib/x", "usr/lib/x"),
        ("/usr/new/..", "usr"),
    ] {
        assert_eq!(root.locate(name).unwrap(), at(path, want), "{name}");
    }
    let error = root.locate("/loop/x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
}

/// On some hosts, `/var/lib/skyhook` is a symlink to a directory on a larger disk.
#[test]
fn an_absolute_symlink_of_the_host_is_followed_on_the_host() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = directory.path();
    fs::create_dir_all(path.join("data/skyhook")).unwrap();
    fs::create_dir_all(path.join("var/lib")).unwrap();
    symlink("/data/skyhook", path.join("var/lib/skyhook")).unwrap();
    symlink(elsewhere.path(), path.join("out")).unwrap();
    symlink("/data/id", path.join("id")).unwrap();
    let root = Root::open(path).unwrap();
    root.replace("/var/lib/skyhook/s/f", b"1", 0o644, Durability::WhileUp)
        .unwrap();
    assert_eq!(fs::read(path.join("data/skyhook/s/f")).unwrap(), b"1");
    assert_eq!(root.read("/var/lib/skyhook/s/f").unwrap(), b"1");
    root.replace("/id", b"abc", 0o600, Durability::PowerCut)
        .unwrap();
    assert_eq!(fs::read(path.join("data/id")).unwrap(), b"abc");
    assert_eq!(root.list("/var/lib/skyhook").unwrap(), ["s"]);
    let made = root.create_dirs("/var/lib/skyhook/t/u").unwrap();
    assert_eq!(made.path(), at(path, "data/skyhook/t/u"));
    root.create_dirs("/out/x").unwrap();
    assert!(!elsewhere.path().join("x").exists(), "it got out");
    root.remove_tree("/var/lib/skyhook/s").unwrap();
    assert!(!path.join("data/skyhook/s").exists());
    root.remove_tree("/var/lib/skyhook").unwrap();
    assert!(
        path.join("data/skyhook/t").exists(),
        "only the symlink goes"
    );
}

#[test]
fn a_named_pipe_or_a_device_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    symlink("pipe", directory.path().join("link")).unwrap();
    let root = Root::open(directory.path()).unwrap();
    let want = "it is a named pipe, and not a regular file";
    for path in ["pipe", "link"] {
        assert_eq!(root.read(path).unwrap_err().to_string(), want);
        assert_eq!(root.read_to_string(path).unwrap_err().to_string(), want);
        let error = root.open_file_beneath(path).unwrap_err();
        assert_eq!(error.to_string(), want);
    }
    let entry = Entry::at(&root, "pipe").unwrap();
    assert_eq!(entry.open_file().unwrap_err().to_string(), want);
    let error = Root::open("/dev").unwrap().read("zero").unwrap_err();
    assert_eq!(error.to_string(), "it is a device, and not a regular file");
    let error = root.read("").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
}

#[test]
fn a_symlink_that_another_user_put_into_tmp_is_replaced_and_not_followed() {
    if !skyhook_testkit::is_root(
        "a_symlink_that_another_user_put_into_tmp_is_replaced_and_not_followed",
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tmp = directory.path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    fs::write(directory.path().join("shadow"), "kept").unwrap();
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::set_permissions(&tmp, open_to_all).unwrap();
    symlink("/shadow", tmp.join("f")).unwrap();
    std::os::unix::fs::lchown(tmp.join("f"), Some(65534), Some(65534)).unwrap();
    let root = Root::open(directory.path()).unwrap();
    root.replace("/tmp/f", b"new", 0o644, Durability::WhileUp)
        .unwrap();
    assert_eq!(fs::read(directory.path().join("shadow")).unwrap(), b"kept");
    assert_eq!(fs::read(tmp.join("f")).unwrap(), b"new");
}
