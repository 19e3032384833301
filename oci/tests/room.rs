//! Disks that become full in the middle of a pull or an unpack.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use skyhook_oci::{Puller, Store, StoreConfig, chain};

use crate::host::{Host, hasty};
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::{Liar, Request};

const MIB: usize = 1 << 20;

fn mount(path: &Path, mib: u32) {
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"]);
    assert!(mount.arg(path).status().unwrap().success());
}

/// Another program fills the disk while a layer is downloaded. The pull stops before the disk is full, and the next one goes
/// on from there.
#[tokio::test]
async fn a_disk_that_others_fill_ends_a_pull_which_goes_on_later() {
    if !skyhook_testkit::in_own_mounts(
        "room::a_disk_that_others_fill_ends_a_pull_which_goes_on_later",
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), 200);
    let store = Store::open(dir.path().join("store"), StoreConfig::default()).unwrap();
    let puller = Puller::new(store.clone(), hasty());
    let host = Host { dir, store, puller };
    let content = vec![b'x'; 70 * MIB];
    let file = Entry::file("skyhook-package/file", content);
    let image = Image::new(vec![Layer::plain(&tar(&[file]))]);
    let layer = image.layer_digest(0);
    let ballast: PathBuf = host.dir.path().join("ballast");
    let filled = ballast.clone();
    let liar = Liar::start(move |request| {
        if request.path.contains(&layer.to_string()) && request.range() == 0 {
            let file = fs::File::create(&filled).unwrap();
            let all = 140 * MIB as u64;
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, all).unwrap();
        }
        image.answer(request)
    });
    let error = host.pull(&liar).await.unwrap_err();
    assert_eq!(error.kind(), "no_room", "{}", chain(&error));
    fs::remove_file(&ballast).unwrap();
    host.pull(&liar).await.unwrap();
    let requests = liar.requests();
    let of_layer = |request: &&Request| request.path.contains(&layer.to_string());
    let ranges: Vec<_> = requests
        .iter()
        .filter(of_layer)
        .map(Request::range)
        .collect();
    assert_eq!((ranges.len(), ranges[0]), (2, 0), "{ranges:?}");
    assert!(ranges[1] >= 32 * MIB, "{ranges:?}");
    host.assert_intact();
}

#[tokio::test]
async fn an_unpack_stops_before_the_disk_is_full() {
    if !skyhook_testkit::in_own_mounts("room::an_unpack_stops_before_the_disk_is_full") {
        return;
    }
    let large = vec![Entry::file("skyhook-package/file", vec![b'x'; 40 * MIB])];
    let small = (0..60)
        .map(|number| Entry::file(&format!("skyhook-package/{number}"), vec![b'x'; MIB]))
        .collect();
    for (name, entries) in [("one large file", large), ("many small files", small)] {
        let image = Image::of(&entries);
        let host = Host::with_store(hasty(), StoreConfig::default());
        let out = host.dir.path().join("out");
        fs::create_dir(&out).unwrap();
        mount(&out, 33);
        let error = host.install(image).await.unwrap_err();
        let text = chain(&error);
        assert_eq!(
            (error.kind(), error.is_transient()),
            ("no_room", true),
            "{name}: {text}"
        );
        assert!(
            text.contains("the file system to unpack to has "),
            "{name}: {text}"
        );
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{name}");
    }
}
