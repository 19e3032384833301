#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, lchown, symlink};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;
use skyhook_testkit::{in_own_mounts, is_root};
use tempfile::TempDir;

use super::*;

/// A host with a package in its copy directory.
struct Test {
    host: TempDir,
}

const COPY: &str = "var/lib/skyhook/s/aa";

impl Test {
    fn new() -> Self {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir_all(host.path().join(COPY).join("root_dir")).unwrap();
        Self { host }
    }

    fn on_host(&self, path: &str) -> PathBuf {
        self.host.path().join(path)
    }

    fn in_root_dir(&self, path: &str) -> PathBuf {
        self.host.path().join(COPY).join("root_dir").join(path)
    }

    fn lay(&self) -> Result<(), String> {
        let host = Host::open(self.host.path()).unwrap();
        let package = PackageDir::open(&host, &format!("/{COPY}")).unwrap();
        let mut written = FileSystems::default();
        let laid = lay(&package, &host, &mut written);
        written.sync().unwrap();
        laid.map_err(|error| skyhook_oci::chain(&error))
    }
}

fn file(path: PathBuf, text: &str, mode: u32) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn directory(path: PathBuf, mode: u32) {
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
}

fn link(target: &str, path: PathBuf) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(target, path).unwrap();
}

/// A description of the file at a path.
fn seen(path: &Path) -> String {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return "nothing".to_owned();
    };
    let mode = metadata.mode() & 0o7777;
    if metadata.is_symlink() {
        format!("-> {}", fs::read_link(path).unwrap().display())
    } else if metadata.is_dir() {
        format!("directory {mode:o}")
    } else {
        format!("{mode:o} {}", fs::read_to_string(path).unwrap())
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_kind_of_entry() {
    type Put = fn(&Test);
    let table: &[(&str, Put, &str, &str)] = &[
        (
            "a file and its parents",
            |t| drop(file(t.in_root_dir("opt/a/b"), "new", 0o751)),
            "opt/a/b",
            "751 new",
        ),
        (
            "a file with a set-id bit",
            |t| drop(file(t.in_root_dir("opt/su"), "new", 0o4755)),
            "opt/su",
            "4755 new",
        ),
        (
            "an empty directory",
            |t| directory(t.in_root_dir("var/lib/foo"), 0o755),
            "var/lib/foo",
            "directory 755",
        ),
        (
            "a directory that others may not enter",
            |t| {
                file(t.in_root_dir("etc/secret.d/key"), "new", 0o600);
                directory(t.in_root_dir("etc/secret.d"), 0o700);
            },
            "etc/secret.d",
            "directory 700",
        ),
        (
            "a directory that is there keeps its mode",
            |t| {
                directory(t.on_host("tmp"), 0o1777);
                directory(t.in_root_dir("tmp"), 0o755);
            },
            "tmp",
            "directory 1777",
        ),
        (
            "an absolute symlink, as of a unit that is enabled",
            |t| {
                file(t.in_root_dir("etc/systemd/system/x.service"), "unit", 0o644);
                link(
                    "/etc/systemd/system/x.service",
                    t.in_root_dir("etc/systemd/system/multi-user.target.wants/x.service"),
                );
            },
            "etc/systemd/system/multi-user.target.wants/x.service",
            "-> /etc/systemd/system/x.service",
        ),
        (
            "a symlink to a file of the package",
            |t| {
                file(t.in_root_dir("etc/real"), "content", 0o640);
                link("real", t.in_root_dir("etc/name"));
            },
            "etc/name",
            "640 content",
        ),
        (
            "a symlink to a file of the package outside of root_dir",
            |t| {
                file(
                    t.host.path().join(COPY).join("configmaps/x"),
                    "value",
                    0o644,
                );
                link("../../configmaps/x", t.in_root_dir("etc/x"));
            },
            "etc/x",
            "644 value",
        ),
        (
            "a symlink to a directory of the package",
            |t| {
                file(t.in_root_dir("usr/lib/f"), "content", 0o644);
                link("usr/lib", t.in_root_dir("lib"));
            },
            "lib/f",
            "644 content",
        ),
        (
            "a symlink to the directory that it is in",
            |t| link("../loop", t.in_root_dir("opt/loop/again")),
            "opt/loop/again",
            "-> ../loop",
        ),
        (
            "a symlink to nothing in the package",
            |t| link("../run/lock", t.in_root_dir("var/lock")),
            "var/lock",
            "-> ../run/lock",
        ),
        (
            "a symlink to a file of the agent's container",
            |t| link("/etc/passwd", t.in_root_dir("etc/stolen")),
            "etc/stolen",
            "-> /etc/passwd",
        ),
        (
            "a relative symlink out of the package",
            |t| {
                link(
                    "../../../../../../../../etc/passwd",
                    t.in_root_dir("etc/out"),
                )
            },
            "etc/out",
            "-> ../../../../../../../../etc/passwd",
        ),
        (
            "a symlink in the place of another",
            |t| {
                link("/old", t.on_host("etc/l"));
                link("/new", t.in_root_dir("etc/l"));
            },
            "etc/l",
            "-> /new",
        ),
        (
            "a file behind a symlink of the host",
            |t| {
                link("usr/lib", t.on_host("lib"));
                directory(t.on_host("usr/lib"), 0o755);
                file(t.in_root_dir("lib/deep/f"), "new", 0o644);
            },
            "usr/lib/deep/f",
            "644 new",
        ),
        (
            "a file in the place of an absolute symlink of the host",
            |t| {
                link("/run/real", t.on_host("etc/resolv.conf"));
                file(t.on_host("run/real"), "old", 0o644);
                file(t.in_root_dir("etc/resolv.conf"), "new", 0o644);
            },
            "run/real",
            "644 new",
        ),
        (
            "a file in the place of a symlink to nothing",
            |t| {
                link("/opt/later", t.on_host("etc/f"));
                file(t.in_root_dir("etc/f"), "new", 0o644);
            },
            "opt/later",
            "644 new",
        ),
        (
            "a file in the place of an older one",
            |t| {
                file(t.on_host("etc/f"), "old and longer", 0o600);
                file(t.in_root_dir("etc/f"), "new", 0o644);
            },
            "etc/f",
            "644 new",
        ),
    ];
    for (name, put, path, want) in table {
        let test = Test::new();
        put(&test);
        for time in ["at first", "again"] {
            test.lay()
                .unwrap_or_else(|error| panic!("{name} {time}: {error}"));
            assert_eq!(seen(&test.on_host(path)), *want, "{name} {time}");
        }
    }
}

#[test]
fn what_cannot_be_laid_is_told_with_the_hosts_paths() {
    type Put = fn(&Test);
    let table: &[(Put, &str)] = &[
        (
            |t| {
                directory(t.on_host("etc/f"), 0o755);
                file(t.in_root_dir("etc/f"), "new", 0o644);
            },
            "/etc/f: copying from root_dir failed: it is a file in root_dir and a directory on the host: remove one of them",
        ),
        (
            |t| {
                file(t.on_host("etc/d"), "", 0o644);
                directory(t.in_root_dir("etc/d"), 0o755);
            },
            "/etc/d: copying from root_dir failed: it is a directory in root_dir and a file on the host: remove one of them",
        ),
        (
            |t| {
                directory(t.on_host("etc/l"), 0o755);
                link("/new", t.in_root_dir("etc/l"));
            },
            "/etc/l: copying from root_dir failed: it is a symlink in root_dir and a directory on the host: remove one of them",
        ),
        (
            |t| {
                let path = t.in_root_dir("pipe");
                assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            },
            "/var/lib/skyhook/s/aa/root_dir/pipe: reading failed: it is a named pipe: root_dir may only have files, directories and symlinks",
        ),
    ];
    for (put, want) in table {
        let test = Test::new();
        put(&test);
        assert_eq!(test.lay().unwrap_err(), *want);
    }
}

/// A masked systemd unit is a symlink to `/dev/null`.
#[test]
fn a_symlink_to_dev_null_is_left_as_it_is() {
    if !is_root("a_symlink_to_dev_null_is_left_as_it_is") {
        return;
    }
    let test = Test::new();
    directory(test.on_host("dev"), 0o755);
    let null = test.on_host("dev/null");
    let made = Command::new("mknod")
        .arg(&null)
        .args(["c", "1", "3"])
        .status();
    assert!(made.unwrap().success());
    link("/dev/null", test.on_host("etc/x.service"));
    file(test.in_root_dir("etc/x.service"), "unit", 0o644);
    test.lay().unwrap();
    assert_eq!(seen(&test.on_host("etc/x.service")), "-> /dev/null");
    assert_eq!(fs::metadata(null).unwrap().rdev(), 0x103);
}

#[test]
fn time_is_kept_and_what_is_the_same_is_not_written() {
    let test = Test::new();
    let source = file(test.in_root_dir("etc/f"), "same", 0o644);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let set = |path: &Path| fs::File::open(path).unwrap().set_modified(time).unwrap();
    set(&source);
    test.lay().unwrap();
    let laid = fs::metadata(test.on_host("etc/f")).unwrap();
    assert_eq!(laid.modified().unwrap(), time);
    test.lay().unwrap();
    let again = fs::metadata(test.on_host("etc/f")).unwrap();
    assert_eq!(again.ino(), laid.ino());
    fs::write(&source, "more").unwrap();
    test.lay().unwrap();
    assert_eq!(seen(&test.on_host("etc/f")), "644 more");
}

#[test]
fn owner_and_attributes_of_the_hosts_file_stay() {
    if !is_root("owner_and_attributes_of_the_hosts_file_stay") {
        return;
    }
    let test = Test::new();
    let old = file(test.on_host("etc/f"), "old", 0o600);
    chown(&old, Some(1000), Some(1001)).unwrap();
    // `user::rw-,user:1234:r--,group::---,mask::r--,other::---`.
    let acl: Vec<u8> = [
        2_u32.to_le_bytes().to_vec(),
        acl_entry(0x01, 6, u32::MAX),
        acl_entry(0x02, 4, 1234),
        acl_entry(0x04, 0, u32::MAX),
        acl_entry(0x10, 4, u32::MAX),
        acl_entry(0x20, 0, u32::MAX),
    ]
    .concat();
    let given = [
        ("user.note", b"kept".to_vec()),
        ("system.posix_acl_access", acl),
    ];
    for (name, value) in &given {
        rustix::fs::setxattr(&old, *name, value, XattrFlags::empty()).unwrap();
    }
    file(test.in_root_dir("etc/f"), "new", 0o640);
    test.lay().unwrap();
    assert_eq!(seen(&old), "640 new");
    let metadata = fs::metadata(&old).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
    for (name, value) in &given {
        let mut found = vec![0; 1024];
        let length = rustix::fs::getxattr(&old, *name, found.as_mut_slice()).unwrap();
        assert_eq!(found[..length], **value, "{name}");
    }
}

fn acl_entry(tag: u16, permissions: u16, id: u32) -> Vec<u8> {
    [
        &tag.to_le_bytes()[..],
        &permissions.to_le_bytes(),
        &id.to_le_bytes(),
    ]
    .concat()
}

/// For example, something is mounted on `/etc/hosts` when the host is itself a container.
#[test]
fn a_file_on_which_something_is_mounted_is_written_in_place() {
    let test = "prepare::root_dir::tests::a_file_on_which_something_is_mounted_is_written_in_place";
    if !in_own_mounts(test) {
        return;
    }
    let test = Test::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let mounted = file(elsewhere.path().join("hosts"), "old and longer", 0o644);
    let hosts = file(test.on_host("etc/hosts"), "", 0o644);
    let mount = Command::new("mount")
        .arg("--bind")
        .arg(&mounted)
        .arg(&hosts)
        .status();
    assert!(mount.unwrap().success());
    file(test.in_root_dir("etc/hosts"), "new", 0o600);
    test.lay().unwrap();
    assert_eq!(seen(&mounted), "600 new");
    let left: Vec<_> = fs::read_dir(test.on_host("etc")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// In `/tmp` any user can create a symlink at the path of a package's file.
#[test]
fn a_planted_symlink_is_replaced_and_not_followed() {
    if !is_root("a_planted_symlink_is_replaced_and_not_followed") {
        return;
    }
    let test = Test::new();
    directory(test.on_host("tmp"), 0o1777);
    file(test.on_host("etc/shadow"), "kept", 0o600);
    for name in ["f", ".f.skyhook-new"] {
        link("/etc/shadow", test.on_host(&format!("tmp/{name}")));
        lchown(
            test.on_host(&format!("tmp/{name}")),
            Some(65534),
            Some(65534),
        )
        .unwrap();
    }
    file(test.in_root_dir("tmp/f"), "new", 0o644);
    test.lay().unwrap();
    assert_eq!(seen(&test.on_host("etc/shadow")), "600 kept");
    assert_eq!(seen(&test.on_host("tmp/f")), "644 new");
    assert_eq!(seen(&test.on_host("tmp/.f.skyhook-new")), "nothing");
}
