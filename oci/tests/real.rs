//! Tests with docker-registry, and with images that umoci and skopeo made.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::{Arc, Mutex};

use skyhook_oci::{
    Credentials, Limits, Platform, Puller, PullerConfig, Reference, RetryClass, Store, StoreConfig,
    Target, UnpackOptions, chain,
};

use crate::host::{Host, configured, hasty, login};
use crate::support::{Layout, Registry, file, listing, tools};

const TOOLS: [&str; 3] = ["docker-registry", "skopeo", "umoci"];

fn amd64() -> PullerConfig {
    PullerConfig {
        platform: Platform::new("linux", "amd64", None),
        ..PullerConfig::default()
    }
}

/// Makes a package like the published ones: a base layer with files outside the package, an inherited layer,
/// overwritten files, a layer that only changes a mode, whiteouts, and 16 relative symlinks to a directory.
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
    let puller = Puller::new(store.clone(), amd64());
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

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn tls_and_a_password_are_as_the_hosts_toml_and_the_pull_secret_say() {
    if !tools(&TOOLS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (registry, layout) = (Registry::secured(dir.path()), Layout::new());
    package(&layout, "1");
    let name = format!("{}/team/p:1", registry.host());
    layout.push("1", &name, &["--dest-creds", "user:hunter2"]);

    let hosts = dir.path().join("certs.d").join(registry.host());
    fs::create_dir_all(&hosts).unwrap();
    let toml = format!(
        "server = \"https://{}\"\nca = \"{}/ca.crt\"\n",
        registry.host(),
        dir.path().display()
    );
    fs::write(hosts.join("hosts.toml"), toml).unwrap();
    let reference: Reference = name.parse().unwrap();
    let trusting = PullerConfig {
        hosts_dir: Some(dir.path().join("certs.d")),
        ..hasty()
    };
    let secret = |password| login(&registry.host(), "user", password);

    let host = Host::with(trusting.clone(), Limits::default());
    let denied = host
        .puller
        .pull(&reference, &secret("wrong"))
        .await
        .unwrap_err();
    assert_eq!(
        (denied.kind(), denied.retry_class()),
        ("denied", RetryClass::Terminal)
    );
    let denied = host
        .puller
        .pull(&reference, &Credentials::anonymous())
        .await
        .unwrap_err();
    assert_eq!(denied.kind(), "denied");
    host.assert_nothing_pulled().await;
    let pulled = host
        .puller
        .pull(&reference, &secret("hunter2"))
        .await
        .unwrap();
    host.unpack(&pulled.manifest_digest).await.unwrap();
    assert_eq!(listing(&host.target()), want());

    // Without the certificate of the authority, no server is trusted. With `skip_verify`, every server is.
    for (skip_verify, is_ok) in [(false, false), (true, true)] {
        let toml = format!(
            "server = \"https://{}\"\nskip_verify = {skip_verify}\n",
            registry.host()
        );
        let host = Host::with(configured(&registry.host(), &toml), Limits::default());
        let result = host.puller.pull(&reference, &secret("hunter2")).await;
        assert_eq!(result.is_ok(), is_ok, "{result:?}");
        if let Err(error) = result {
            let text = chain(&error);
            let advice = "is signed by an authority that this host does not trust: add the authority's certificate";
            assert!(text.contains(advice), "{text}");
        }
    }
}

/// docker-registry speaks HTTP/2 over TLS. The test has a process of its own, because it sees the log of the process.
#[tokio::test]
async fn http_2_is_spoken_where_it_is_served() {
    if !tools(&TOOLS)
        || !skyhook_testkit::in_own_mounts("real::http_2_is_spoken_where_it_is_served")
    {
        return;
    }
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (secured, layout) = (Registry::secured(dir.path()), Layout::new());
    package(&layout, "1");
    let plain = Registry::plain();
    for (registry, toml, version) in [
        (&secured, "skip_verify = true\n", "version=HTTP/2.0"),
        (&plain, "", "version=HTTP/1.1"),
    ] {
        let name = format!("{}/team/p:1", registry.host());
        layout.push("1", &name, &["--dest-creds", "user:hunter2"]);
        let scheme = if toml.is_empty() { "http" } else { "https" };
        let toml = format!("server = \"{scheme}://{}\"\n{toml}", registry.host());
        let host = Host::with(configured(&registry.host(), &toml), Limits::default());
        let secret = login(&registry.host(), "user", "hunter2");
        log.0.lock().unwrap().clear();
        let reference = name.parse().unwrap();
        let pulled = host.puller.pull(&reference, &secret).await.unwrap();
        host.unpack(&pulled.manifest_digest).await.unwrap();
        let text = log.text();
        let downloads: Vec<_> = text
            .lines()
            .filter(|line| line.contains("downloading a blob"))
            .collect();
        assert_eq!(downloads.len(), 5, "four layers and a config: {text}");
        assert!(
            downloads.iter().all(|line| line.contains(version)),
            "{downloads:?}"
        );
    }
}

#[tokio::test]
async fn the_hosts_platform_is_chosen_from_an_index_in_every_compression() {
    if !tools(&TOOLS) {
        return;
    }
    let (registry, layout) = (Registry::plain(), Layout::new());
    for architecture in ["amd64", "arm64"] {
        layout.new_image(architecture, architecture);
        layout.layer(architecture, |root| {
            file(root, "skyhook-package/arch", architecture, 0o644);
        });
    }
    for (tag, extra) in [
        ("gzip", &["--dest-compress-format", "gzip"][..]),
        (
            "zstd",
            &["--dest-compress-format", "zstd", "--dest-compress"],
        ),
        (
            "chunked",
            &["--dest-compress-format", "zstd:chunked", "--dest-compress"],
        ),
        ("docker", &["--format", "v2s2"]),
    ] {
        let images = ["amd64", "arm64"].map(|architecture| {
            let to = format!("{}/p:{tag}-{architecture}", registry.host());
            // The image is copied through a directory without compression, because skopeo does not compress layers
            // that are compressed already.
            layout.push_decompressed(architecture, &to, extra);
            (
                architecture,
                registry.manifest("p", &format!("{tag}-{architecture}")),
            )
        });
        registry.put_index("p", tag, &images);
        for (architecture, manifest) in &images {
            let platform = Platform::new("linux", architecture, None);
            let host = Host::with(
                PullerConfig {
                    platform,
                    ..hasty()
                },
                Limits::default(),
            );
            let reference: Reference = format!("{}/p:{tag}", registry.host()).parse().unwrap();
            let pulled = host
                .puller
                .pull(&reference, &Credentials::anonymous())
                .await
                .unwrap();
            assert_eq!(pulled.manifest_digest, skyhook_oci::Digest::of(manifest));
            assert_ne!(pulled.manifest_digest, pulled.resolved_digest);
            host.unpack(&pulled.manifest_digest).await.unwrap();
            assert_eq!(
                listing(&host.target()),
                [format!("arch 644 {architecture}")],
                "{tag}"
            );
            // A reference with the digest of the index leads to the same image.
            let pinned = format!("{}@{}", reference.name(), pulled.resolved_digest)
                .parse()
                .unwrap();
            host.puller
                .pull(&pinned, &Credentials::anonymous())
                .await
                .unwrap();
        }
        let platform = Platform::new("linux", "s390x", None);
        let host = Host::with(
            PullerConfig {
                platform,
                ..hasty()
            },
            Limits::default(),
        );
        let reference: Reference = format!("{}/p:{tag}", registry.host()).parse().unwrap();
        let error = host
            .puller
            .pull(&reference, &Credentials::anonymous())
            .await
            .unwrap_err();
        let want = "no image for linux/s390x; the index has: linux/amd64, linux/arm64";
        assert!(chain(&error).ends_with(want), "{}", chain(&error));
    }
}
