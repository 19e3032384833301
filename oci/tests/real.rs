//! Against docker-registry, with images as umoci and skopeo make them.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use skyhook_oci::{
    Credentials, Platform, Puller, PullerConfig, Reference, Store, StoreConfig, Target,
    UnpackOptions,
};

use crate::support::{Layout, Registry, file, listing, tools};

const TOOLS: [&str; 3] = ["docker-registry", "skopeo", "umoci"];

fn amd64() -> PullerConfig {
    PullerConfig {
        platform: Platform::new("linux", "amd64", None),
        ..PullerConfig::default()
    }
}

/// A package the way the published ones are: a base with more than the package, an inherited
/// layer, overwritten files, a chmod-only layer, whiteouts, 16 relative symlinked directories.
fn package(layout: &Layout, tag: &str) {
    layout.new_image(tag, "amd64");
    layout.layer(tag, |root| {
        file(root, "bin/sh", "not the package's", 0o755);
        file(root, "etc/passwd", "root", 0o644);
    });
    layout.layer(tag, |root| {
        file(root, "skyhook-package/config.json", "{}", 0o644);
        file(root, "skyhook-package/skyhook_dir/apply.sh", "one", 0o644);
        file(root, "skyhook-package/skyhook_dir/gone.sh", "gone", 0o644);
        file(root, "skyhook-package/profiles/old/a", "a", 0o644);
        let profiles = root.join("skyhook-package/profiles");
        file(&profiles, "common/base", "base", 0o600);
        for number in 0..16 {
            symlink("common", profiles.join(format!("link{number:02}"))).unwrap();
        }
        fs::hard_link(profiles.join("common/base"), profiles.join("common/hard")).unwrap();
    });
    layout.layer(tag, |root| {
        let package = root.join("skyhook-package");
        file(&package, "skyhook_dir/apply.sh", "two", 0o644);
        fs::remove_file(package.join("skyhook_dir/gone.sh")).unwrap();
        fs::remove_dir_all(package.join("profiles/old")).unwrap();
    });
    layout.layer(tag, |root| {
        file(root, "skyhook-package/skyhook_dir/apply.sh", "two", 0o755);
    });
}

fn want() -> Vec<String> {
    let mut want = vec![
        "config.json 644 {}".to_owned(),
        "profiles/ 755".to_owned(),
        "profiles/common/ 755".to_owned(),
        "profiles/common/base 600 base".to_owned(),
        "profiles/common/hard 600 base".to_owned(),
    ];
    want.extend((0..16).map(|number| format!("profiles/link{number:02} -> common")));
    want.extend([
        "skyhook_dir/ 755".to_owned(),
        "skyhook_dir/apply.sh 755 two".to_owned(),
    ]);
    want
}

#[tokio::test]
async fn a_package_is_pulled_unpacked_and_stays_without_the_registry() {
    if !tools(&TOOLS) {
        return;
    }
    let (registry, layout) = (Registry::plain(), Layout::new());
    package(&layout, "1.0.0_b.1");
    layout.push(
        "1.0.0_b.1",
        &format!("{}/team/p:1.0.0_b.1", registry.host()),
        &[],
    );

    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), StoreConfig::default()).unwrap();
    let puller = Puller::new(store.clone(), amd64()).unwrap();
    let image = format!("{}/team/p", registry.host());
    let reference = Reference::for_package(&image, "1.0.0+b.1", None).unwrap();
    let pulled = puller
        .pull(&reference, &Credentials::anonymous())
        .await
        .unwrap();
    assert_eq!((pulled.layers, pulled.bytes), (4, pulled.fetched_bytes));
    store.pin("p|1.0.0+b.1", &pulled.manifest_digest).unwrap();

    let again = puller
        .pull(&reference, &Credentials::anonymous())
        .await
        .unwrap();
    assert_eq!(
        (again.manifest_digest, again.fetched_bytes),
        (pulled.manifest_digest, 0)
    );
    drop(registry);

    let offline = Store::open(dir.path().join("store"), StoreConfig::default()).unwrap();
    assert_eq!(offline.lookup(&reference), Some(pulled.manifest_digest));
    let target = dir.path().join("out/p");
    let options = UnpackOptions::default();
    offline
        .unpack(&pulled.manifest_digest, &Target::path(&target), options)
        .await
        .unwrap();
    assert_eq!(listing(&target), want());
    let inode = |name: &str| {
        fs::metadata(target.join("profiles/common").join(name))
            .unwrap()
            .ino()
    };
    assert_eq!(inode("base"), inode("hard"));
    assert_eq!(
        fs::read_dir(dir.path().join("out")).unwrap().count(),
        1,
        "no stage is left"
    );
}
