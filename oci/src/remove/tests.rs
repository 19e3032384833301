use std::os::unix::fs::symlink;
use std::process::Command;

use skyhook_testkit::{again, in_own_mounts, is_again};

use super::*;

fn mount(args: &[&str], at: &Path) {
    let status = Command::new("mount").args(args).arg(at).status().unwrap();
    assert!(status.success());
}

fn remove(path: &Path, way: Way) -> Result<(), RemoveError> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let parent = path.parent().unwrap();
    let parent = rustix::fs::openat(CWD, parent, flags, Mode::empty()).unwrap();
    remove_by(parent.as_fd(), path.file_name().unwrap().as_bytes(), way)
}

#[test]
fn trees_go_and_what_links_point_to_stays() {
    for way in [Way::Kernel, Way::ByHand] {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("kept/inside")).unwrap();
        fs::create_dir_all(at("tree/a/b/c")).unwrap();
        fs::write(at("tree/a/b/file"), "x").unwrap();
        symlink("../../kept", at("tree/a/link")).unwrap();
        symlink("nowhere", at("tree/dangling")).unwrap();
        fs::set_permissions(
            at("tree/a/b"),
            std::os::unix::fs::PermissionsExt::from_mode(0o500),
        )
        .unwrap();
        remove(&at("tree"), way).unwrap();
        assert!(!at("tree").exists() && at("kept/inside").exists());
        // A path that does not exist any more, a symlink to a directory, a file.
        remove(&at("tree"), way).unwrap();
        symlink("kept", at("link")).unwrap();
        remove(&at("link"), way).unwrap();
        fs::write(at("file"), "x").unwrap();
        remove(&at("file"), way).unwrap();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
    remove_tree(Path::new("/no/such/parent/tree")).unwrap();
    assert!(remove_tree(Path::new("/")).is_err());
}

#[test]
fn what_holds_a_mount_is_left_as_it_is() {
    if !in_own_mounts("remove::tests::what_holds_a_mount_is_left_as_it_is") {
        return;
    }
    for way in [Way::Kernel, Way::ByHand] {
        for kind in ["bind", "tmpfs", "itself"] {
            let directory = tempfile::tempdir().unwrap();
            let at = |path: &str| directory.path().join(path);
            fs::create_dir_all(at("host/etc")).unwrap();
            fs::write(at("host/etc/precious"), "x").unwrap();
            fs::create_dir_all(at("copy/a/in it")).unwrap();
            fs::write(at("copy/0-first"), "x").unwrap();
            let (point, precious) = match kind {
                "itself" => (at("copy"), at("copy/0-first")),
                _ => (at("copy/a/in it"), at("copy/a/in it/etc/precious")),
            };
            match kind {
                "bind" => mount(&["--bind", at("host").to_str().unwrap()], &point),
                "tmpfs" => mount(&["-t", "tmpfs", "none"], &point),
                _ => mount(&["--bind", point.to_str().unwrap()], &point),
            }
            if kind == "tmpfs" {
                fs::create_dir(at("copy/a/in it/etc")).unwrap();
                fs::write(&precious, "x").unwrap();
            }
            let error = remove(&at("copy"), way).unwrap_err();
            let told = error.to_string();
            assert!(
                matches!(&error, RemoveError::Mounted { mount_point, .. } if *mount_point == point),
                "{kind} {way:?}: {told}"
            );
            assert!(
                told.contains(&format!("umount {}", point.display())),
                "{told}"
            );
            assert!(precious.exists(), "{kind} {way:?}: it went into the mount");
            assert!(
                at("copy/0-first").exists(),
                "{kind} {way:?}: part of it is gone"
            );
            let below = mounts_below(directory.path()).unwrap();
            assert_eq!(below, std::slice::from_ref(&point), "{kind}");
            let status = Command::new("umount").arg(&point).status().unwrap();
            assert!(status.success());
            remove(&at("copy"), way).unwrap();
            assert!(!at("copy").exists() && at("host/etc/precious").exists());
        }
    }
}

/// Something may be mounted after the table of mounts was read.
#[test]
fn a_mount_that_comes_late_is_not_entered_either() {
    if !in_own_mounts("remove::tests::a_mount_that_comes_late_is_not_entered_either") {
        return;
    }
    for way in [Way::Kernel, Way::ByHand] {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("host")).unwrap();
        fs::write(at("host/precious"), "x").unwrap();
        fs::create_dir_all(at("copy/mnt")).unwrap();
        mount(&["--bind", at("host").to_str().unwrap()], &at("copy/mnt"));
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(CWD, directory.path(), flags, Mode::empty()).unwrap();
        let whole = at("copy");
        let error = descend(parent.as_fd(), b"copy", &whole, way).unwrap_err();
        assert!(
            matches!(&error, RemoveError::Mounted { mount_point, .. } if *mount_point == at("copy/mnt")),
            "{way:?}: {error}"
        );
        assert!(at("host/precious").exists(), "{way:?}");
        let status = Command::new("umount").arg(at("copy/mnt")).status().unwrap();
        assert!(status.success());
    }
}

/// Makes the directories `a/a/a/…`, with a file in each of them.
fn make_deep(top: &Path, levels: usize) {
    fs::create_dir(top).unwrap();
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut at = rustix::fs::openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&at, "0-file", file, Mode::RUSR).unwrap());
        rustix::fs::mkdirat(&at, "a", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&at, "b", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "a", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn five_thousand_levels_go_with_few_descriptors_and_a_small_stack() {
    let test = "remove::tests::five_thousand_levels_go_with_few_descriptors_and_a_small_stack";
    if !is_again(test) {
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""])
            .env("RUST_MIN_STACK", "262144");
        again(test, command);
        return;
    }
    // The tree is made in memory, because a disk would need a minute for tens of thousands of directories.
    let memory = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
    let temporary = std::env::temp_dir();
    for way in [Way::Kernel, Way::ByHand] {
        let directory = tempfile::tempdir_in(memory.unwrap_or(&temporary)).unwrap();
        let top = directory.path().join("top");
        make_deep(&top, 5_000);
        remove(&top, way).unwrap();
        assert!(!top.exists(), "{way:?}");
    }
}

#[test]
fn a_directory_that_is_moved_meanwhile_is_not_found_again_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir_all(at("elsewhere")).unwrap();
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let open = |path: &str| rustix::fs::openat(CWD, at(path), flags, Mode::empty()).unwrap();
    let (a, b) = (open("a"), open("a/b"));
    let expected = identity(a.as_fd()).unwrap();
    assert!(parent_of(b.as_fd(), expected).is_ok());
    fs::rename(at("a/b"), at("elsewhere/b")).unwrap();
    assert_eq!(parent_of(b.as_fd(), expected).unwrap_err(), Errno::STALE);
}

#[test]
fn names_in_the_table_of_mounts() {
    let table = b"36 35 98:0 /mnt1 /a\\040b\\134c rw - ext3 /dev/root rw\n\
                  37 35 0:5 / /plain rw,noatime shared:1 - tmpfs none rw\n";
    let points: Vec<PathBuf> = mount_points(table).collect();
    assert_eq!(points, [PathBuf::from("/a b\\c"), "/plain".into()]);
}
