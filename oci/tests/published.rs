//! NVIDIA's published packages, built as their Dockerfiles build them: on busybox, some on another package, with a layer
//! that only changes modes, and with relative symlinks to directories. Each one is pulled and installed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use skyhook_oci::package_config::load;
use skyhook_oci::{Credentials, Digest, Reference, Root, Target, UnpackOptions};

use crate::host::Host;
use crate::image::{Entry, Image, Layer, tar};
use crate::liar::{Answer, Liar, Request};

/// A published package: the directory that names its image, the name and version in its config.json, and its modes
/// with their scripts.
struct Package {
    directory: &'static str,
    base: Option<&'static str>,
    name: &'static str,
    version: &'static str,
    expected: &'static [&'static str],
    modes: &'static [(&'static str, &'static [&'static str])],
}

const TUNING: &[(&str, &[&str])] = &[
    ("config", &["update_settings.sh"]),
    ("config-check", &["update_settings_check.sh"]),
    ("post-interrupt-check", &["update_settings_post_check.sh"]),
    ("uninstall", &["uninstall.sh"]),
    ("uninstall-check", &["uninstall_check.sh"]),
];
const TUNED: &[(&str, &[&str])] = &[
    ("apply", &["install_tuned.sh"]),
    ("apply-check", &["install_tuned_check.sh"]),
    ("upgrade", &["install_tuned.sh"]),
    ("upgrade-check", &["install_tuned_check.sh"]),
    ("config", &["apply_tuned_profile.sh"]),
    ("config-check", &["apply_tuned_profile_check.sh"]),
    ("post-interrupt-check", &["post_interrupt_tuned_check.sh"]),
    ("uninstall", &["uninstall_tuned.sh"]),
    ("uninstall-check", &["uninstall_tuned_check.sh"]),
];

const PACKAGES: [Package; 7] = [
    Package {
        directory: "shellscript",
        base: None,
        name: "shellscript",
        version: "1.1.1",
        expected: &[],
        modes: &[
            ("apply", &["shellscript_run.sh"]),
            ("apply-check", &["shellscript_run.sh"]),
            ("config", &["shellscript_run.sh"]),
            ("config-check", &["shellscript_run.sh"]),
            ("post-interrupt", &["shellscript_run.sh"]),
            ("post-interrupt-check", &["shellscript_run.sh"]),
            ("uninstall", &["shellscript_run.sh"]),
            ("uninstall-check", &["shellscript_run.sh"]),
        ],
    },
    Package {
        directory: "tuning",
        base: None,
        name: "tuning",
        version: "1.1.4",
        expected: &[],
        modes: TUNING,
    },
    // The version in its config.json is older than its tag.
    Package {
        directory: "tuned",
        base: None,
        name: "tuned",
        version: "1.0.0",
        expected: &[],
        modes: TUNED,
    },
    Package {
        directory: "nvidia-tuned",
        base: Some("tuned"),
        name: "nvidia_tuned",
        version: "0.2.3",
        expected: &["accelerator"],
        modes: &[
            ("apply", &["install_tuned.sh"]),
            ("apply-check", &["install_tuned_check.sh"]),
            (
                "config",
                &["prepare_nvidia_profiles.sh", "apply_tuned_profile.sh"],
            ),
            (
                "config-check",
                &[
                    "prepare_nvidia_profiles_check.sh",
                    "apply_tuned_profile_check.sh",
                ],
            ),
            ("post-interrupt-check", &["post_interrupt_tuned_check.sh"]),
            ("uninstall", &["uninstall_tuned.sh"]),
            ("uninstall-check", &["uninstall_tuned_check.sh"]),
        ],
    },
    Package {
        directory: "nvidia-tuning-gke",
        base: Some("tuning"),
        name: "nvidia_tuning_gke",
        version: "0.1.1",
        expected: &["accelerator", "intent"],
        modes: &[
            (
                "config",
                &["prepare_nvidia_configs.sh", "update_settings.sh"],
            ),
            (
                "config-check",
                &[
                    "prepare_nvidia_configs_check.sh",
                    "update_settings_check.sh",
                ],
            ),
            (
                "post-interrupt-check",
                &["prepare_nvidia_configs.sh", "update_settings_post_check.sh"],
            ),
            ("uninstall", &["uninstall.sh"]),
            ("uninstall-check", &["uninstall_check.sh"]),
        ],
    },
    Package {
        directory: "kdump",
        base: None,
        name: "kdump",
        version: "1.0.0",
        expected: &[],
        modes: &[
            ("apply", &["install_kdump.sh"]),
            ("apply-check", &["install_kdump_check.sh"]),
            ("config", &["configure_kdump.sh"]),
            ("config-check", &["configure_kdump_check.sh"]),
            ("post-interrupt-check", &["post_interrupt_check.sh"]),
            ("uninstall", &["uninstall_kdump.sh"]),
            ("uninstall-check", &["uninstall_kdump_check.sh"]),
        ],
    },
    Package {
        directory: "nvidia-setup",
        base: None,
        name: "nvidia_setup",
        version: "0.2.1",
        expected: &["service", "accelerator"],
        modes: &[
            ("apply", &["apply.sh"]),
            ("apply-check", &["apply_check.sh"]),
            ("post-interrupt-check", &["post_interrupt_check.sh"]),
        ],
    },
];

fn at(name: &str) -> String {
    format!("skyhook-package/{name}")
}

/// The base image: one program with 400 names, and the directories of a system.
fn busybox() -> Layer {
    let mut entries = vec![
        Entry::dir("bin/"),
        Entry::file("bin/[", "busybox").mode(0o755),
    ];
    entries.extend((0..400).map(|number| Entry::hardlink(&format!("bin/{number}"), "bin/[")));
    entries.extend([
        Entry::dir("dev/"),
        Entry::dir("etc/"),
        Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Entry::file("etc/shadow", "root:*:::::::").mode(0o640),
        Entry::dir("home/"),
        Entry::dir("root/").mode(0o700),
        Entry::dir("tmp/").mode(0o1777),
        Entry::symlink("usr/bin/env", "../../bin/env"),
        Entry::symlink("lib64", "lib"),
    ]);
    Layer::gzip(&tar(&entries))
}

impl Package {
    fn of(directory: &str) -> &'static Self {
        PACKAGES
            .iter()
            .find(|it| it.directory == directory)
            .unwrap()
    }

    fn scripts(&self) -> BTreeSet<&'static str> {
        self.modes
            .iter()
            .flat_map(|(_, scripts)| *scripts)
            .copied()
            .collect()
    }

    fn config(&self) -> String {
        let step = |script: &&str| {
            json!({"name": script.trim_end_matches(".sh"), "path": script, "arguments": [],
                "returncodes": [0], "on_host": true, "idempotence": true, "upgrade_step": false, "env": {}})
        };
        let modes: serde_json::Map<_, _> = self
            .modes
            .iter()
            .map(|(mode, scripts)| {
                let steps: Vec<_> = scripts.iter().map(step).collect();
                ((*mode).to_owned(), json!(steps))
            })
            .collect();
        json!({"schema_version": "v1", "package_name": self.name, "package_version": self.version,
            "expected_config_files": self.expected, "modes": modes})
        .to_string()
    }

    /// The layers of `COPY . /skyhook-package`, on top of those of its base.
    fn layers(&self) -> Vec<Layer> {
        let mut layers = match self.base {
            Some(base) => Self::of(base).layers(),
            None => vec![busybox()],
        };
        let mut entries = vec![
            Entry::dir("skyhook-package/"),
            Entry::file(&at("config.json"), self.config()),
            Entry::file(&at("Dockerfile"), "FROM busybox\nCOPY . /skyhook-package\n"),
            Entry::file(&at("README.md"), self.directory),
            Entry::file(&at("preprocess.sh"), "#!/bin/bash\n").mode(0o755),
            Entry::dir(&at("skyhook_dir/")),
        ];
        let inherited = self
            .base
            .map(|base| Self::of(base).scripts())
            .unwrap_or_default();
        for script in self.scripts().difference(&inherited) {
            entries.push(Entry::file(
                &at(&format!("skyhook_dir/{script}")),
                "#!/bin/bash\n",
            ));
        }
        if self.directory == "nvidia-tuned" {
            entries.extend(profiles());
        }
        layers.push(Layer::gzip(&tar(&entries)));
        if self.base.is_some() {
            // RUN chmod +x: the layer has the files once more, with another mode.
            let scripts = self.scripts();
            let executable = scripts.iter().map(|script| {
                let name = at(&format!("skyhook_dir/{script}"));
                Entry::file(&name, "#!/bin/bash\n").mode(0o755)
            });
            layers.push(Layer::gzip(&tar(&executable.collect::<Vec<_>>())));
        }
        layers
    }
}

/// 16 relative symlinks to directories, one for each version of a distribution.
fn profiles() -> Vec<Entry> {
    let mut entries = vec![
        Entry::dir(&at("profiles/")),
        Entry::file(&at("profiles/common/nvidia-base/tuned.conf"), "[main]\n"),
        Entry::file(&at("profiles/os/common/nvidia/tuned.conf"), "[main]\n"),
        Entry::file(&at("profiles/os/ubuntu/24.04/tuned.conf"), "[main]\n"),
    ];
    for (distribution, versions) in [("ubuntu", 8), ("rhel", 8)] {
        for version in 0..versions {
            let name = format!("profiles/os/{distribution}/{version}");
            let target = if version % 2 == 0 {
                "../common"
            } else {
                "../ubuntu/24.04"
            };
            entries.push(Entry::symlink(&at(&name), target));
        }
    }
    entries
}

/// The registry answers as ghcr.io does: an index of two platforms with their attestations, one of Docker's formats.
fn registry() -> Liar {
    let indexes: Vec<_> = PACKAGES
        .iter()
        .map(|package| {
            let image = Image::new(package.layers());
            let manifest = image.manifest_bytes();
            let entry = |os: &str, architecture: &str, bytes: &[u8]| {
                json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": Digest::of(bytes), "size": bytes.len(),
                    "platform": {"os": os, "architecture": architecture}})
            };
            let mut attestation = entry("unknown", "unknown", b"attestation");
            attestation["annotations"] =
                json!({"vnd.docker.reference.type": "attestation-manifest"});
            let index = json!({"schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [entry("linux", "arm64", b"arm64"), entry("linux", "amd64", &manifest),
                    attestation.clone(), attestation]});
            let tag = format!(
                "/nvidia/skyhook-packages/{}/manifests/{}",
                package.directory, package.version
            );
            (tag, index.to_string(), image)
        })
        .collect();
    Liar::start(move |request: &Request| {
        if let Some((_, index, _)) = indexes.iter().find(|(tag, ..)| request.path.ends_with(tag)) {
            return Answer::ok(index.clone());
        }
        let owner = indexes.iter().find(|(tag, ..)| {
            let repository = tag.split("/manifests/").next().unwrap();
            request.path.contains(&format!("{repository}/"))
        });
        owner.map_or(Answer::new(404), |(_, _, image)| image.answer(request))
    })
}

#[tokio::test]
async fn every_published_package_is_pulled_and_installed() {
    let liar = registry();
    let host = Host::new();
    for package in &PACKAGES {
        let image = format!(
            "{}/nvidia/skyhook-packages/{}",
            liar.host(),
            package.directory
        );
        let reference = Reference::for_package(&image, package.version, None).unwrap();
        let anonymous = Credentials::anonymous();
        let pulled = host.puller.pull(&reference, &anonymous).await.unwrap();
        let directory = host.dir.path().join(package.directory);
        let target = Target::path(&directory);
        let options = UnpackOptions {
            overlay: true,
            ..UnpackOptions::default()
        };
        // A step leaves a file, and the second stage unpacks the package over it.
        for stage in 0..2 {
            host.store
                .unpack(&pulled.manifest_digest, &target, options)
                .await
                .unwrap();
            let made = directory.join("skyhook_dir/made-by-a-step");
            assert_eq!(made.exists(), stage == 1, "{}", package.directory);
            fs::write(made, "x").unwrap();
        }
        let report = load(&Root::open(&directory).unwrap()).unwrap();
        let errors: Vec<_> = report.errors().map(ToString::to_string).collect();
        assert_eq!(errors, Vec::<String>::new(), "{}", package.directory);
        let config = report.config.unwrap();
        assert_eq!(config.package_name, package.name);
        assert_eq!(
            config.modes.len(),
            package.modes.len(),
            "{}",
            package.directory
        );
        let names: BTreeSet<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut want: BTreeSet<String> = [
            "config.json",
            "Dockerfile",
            "README.md",
            "preprocess.sh",
            "skyhook_dir",
        ]
        .map(str::to_owned)
        .into();
        want.extend((package.directory == "nvidia-tuned").then(|| "profiles".to_owned()));
        assert_eq!(names, want, "nothing of the base image is there");
        for script in package.scripts() {
            let metadata = fs::metadata(directory.join("skyhook_dir").join(script)).unwrap();
            let want = if package.base.is_some() { 0o755 } else { 0o644 };
            assert_eq!(metadata.permissions().mode() & 0o777, want, "{script}");
        }
    }
    let profiles = host.dir.path().join("nvidia-tuned/profiles/os");
    for (link, content) in [("ubuntu/0", "nvidia/tuned.conf"), ("rhel/7", "tuned.conf")] {
        let target = fs::read_link(profiles.join(link)).unwrap();
        assert!(target.is_relative());
        assert!(profiles.join(link).join(content).exists(), "{link}");
    }
    // The layers of the base are in the store once, though two packages are built on them.
    let tuned = Image::new(Package::of("tuned").layers());
    let asked = |index: usize| liar.count(&tuned.layer_digest(index).to_string());
    assert_eq!((asked(0), asked(1)), (1, 1));
}

/// A node whose registry is away: what is in the store is enough, as long as the reference has a digest. A tag may have
/// moved, so the store alone says what it led to last.
#[tokio::test]
async fn a_node_whose_registry_is_away_uses_what_it_has() {
    let host = Host::new();
    let image = Image::new(Package::of("tuning").layers());
    let (tag, pinned) = {
        let served = image.clone();
        let liar = Liar::start(move |request| served.answer(request));
        let repository = format!("{}/tuning", liar.host());
        let tag = Reference::for_package(&repository, "1.1.4", None).unwrap();
        let digest = image.manifest_digest().to_string();
        let pinned = Reference::for_package(&repository, "1.1.4", Some(&digest)).unwrap();
        let anonymous = Credentials::anonymous();
        host.puller.pull(&tag, &anonymous).await.unwrap();
        (tag, pinned)
    };
    let away = "127.0.0.1:9";
    let elsewhere = |reference: &Reference| -> Reference {
        let text = reference.to_string();
        let (_, rest) = text.split_once('/').unwrap();
        format!("{away}/{rest}").parse().unwrap()
    };
    let anonymous = Credentials::anonymous();
    // By its digest, the image is taken from the store, whatever registry the reference names.
    let pulled = host.puller.pull(&pinned, &anonymous).await.unwrap();
    assert_eq!(pulled.fetched_bytes, 0);
    let pulled = host
        .puller
        .pull(&elsewhere(&pinned), &anonymous)
        .await
        .unwrap();
    assert_eq!(pulled.manifest_digest, image.manifest_digest());
    // A tag needs its registry. The error is one that may pass, and the store still knows the image.
    let error = host
        .puller
        .pull(&elsewhere(&tag), &anonymous)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "http");
    assert_eq!(error.retry_class(), skyhook_oci::RetryClass::Transient);
    assert_eq!(host.store.lookup(&tag), Some(image.manifest_digest()));
    host.unpack(&image.manifest_digest()).await.unwrap();
    // A layer is missing: then the registry is needed, and only for that layer.
    let layer = host
        .dir
        .path()
        .join("store/blobs/sha256")
        .join(image.layer_digest(1).hex());
    fs::remove_file(layer).unwrap();
    let error = host
        .puller
        .pull(&elsewhere(&pinned), &anonymous)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "http");
}

/// A node without a way to the registry, which has a mirror in its own network.
#[tokio::test]
async fn an_air_gapped_node_pulls_from_its_mirror_alone() {
    let image = Image::new(Package::of("nvidia-tuned").layers());
    let served = image.clone();
    let mirror = Liar::start(move |request| served.answer(request));
    // The registry's own server is not reachable: nothing listens there.
    let toml = format!(
        "server = \"http://127.0.0.1:9\"\n[host.\"http://{}/v2/proxy\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n",
        mirror.host()
    );
    let config = crate::host::configured("ghcr.io", &toml);
    let host = Host::with(config, skyhook_oci::Limits::default());
    let repository = "ghcr.io/nvidia/skyhook-packages/nvidia-tuned";
    let digest = image.manifest_digest().to_string();
    for sha in [None, Some(digest.as_str())] {
        let reference = Reference::for_package(repository, "0.2.3", sha).unwrap();
        let anonymous = Credentials::anonymous();
        let pulled = host.puller.pull(&reference, &anonymous).await.unwrap();
        assert_eq!(pulled.manifest_digest, image.manifest_digest());
    }
    assert!(mirror.requests().iter().all(|request| {
        request
            .path
            .starts_with("/v2/proxy/nvidia/skyhook-packages/nvidia-tuned/")
    }));
    host.unpack(&image.manifest_digest()).await.unwrap();
}
