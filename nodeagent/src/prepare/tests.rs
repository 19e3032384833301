#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use skyhook_crds::duration::GoDuration;
use tempfile::TempDir;

use super::*;

mod faults;
mod shared;

fn step(more: Value) -> Value {
    let mut step = json!({
        "name": "step", "path": "step.sh", "arguments": [], "returncodes": [0],
        "on_host": true, "idempotence": false, "upgrade_step": false,
    });
    for (key, value) in more.as_object().unwrap() {
        step[key] = value.clone();
    }
    step
}

/// A host whose copy directory has the files of a package, as after unpacking.
struct TestHost {
    directory: TempDir,
}

impl TestHost {
    fn new(modes: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let test = Self { directory };
        let config = json!({
            "schema_version": "v1", "package_name": "a_name", "package_version": "1.2.3",
            "expected_config_files": [], "modes": modes,
        });
        test.put("config.json", &config.to_string());
        test.put("skyhook_dir/step.sh", "#!/bin/bash\n");
        test
    }

    fn copy(&self) -> PathBuf {
        self.directory
            .path()
            .join("var/lib/skyhook/s/aa-1.0.0-uid-4")
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.copy().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn input(&self, stage: Stage) -> StageInput {
        StageInput {
            host: Host::open(self.directory.path()).unwrap(),
            layout: Layout {
                copy_root: "/var/lib/skyhook".into(),
                log_root: "/var/log/skyhook".into(),
            },
            skyhook: SkyhookRef {
                name: "s".into(),
                uid: "uid".into(),
                generation: 4,
            },
            package: Package {
                name: "aa".into(),
                version: "1.0.0".into(),
                ..Package::default()
            },
            stage,
            digest: None,
            store: None,
            env: Vec::new(),
            secrets: Vec::new(),
            metadata: BTreeMap::new(),
            previous: None,
            order: Some(3),
            is_laid_out: false,
            shares_image: false,
        }
    }

    fn prepare(&self, stage: Stage) -> Prepared {
        prepare(self.input(stage)).unwrap()
    }
}

fn modes(more: Value) -> Value {
    let one = |more: &Value| json!([step(more.clone())]);
    json!({
        "apply": one(&more), "apply-check": one(&json!({})),
        "config": one(&more), "config-check": one(&json!({})),
        "uninstall": one(&more), "uninstall-check": one(&json!({})),
        "upgrade": [step(json!({"upgrade_step": true}))], "upgrade-check": one(&json!({})),
        "post-interrupt": one(&more), "post-interrupt-check": one(&json!({})),
    })
}

#[test]
fn flags_skip_the_steps_that_nvidia_skyhook_skips() {
    for (stage, idempotence, always, runs) in [
        (Stage::Apply, false, "false", false),
        (Stage::Apply, true, "false", true),
        (Stage::Apply, false, "true", true),
        (Stage::PostInterrupt, false, "false", false),
        (Stage::Config, false, "false", true),
        (Stage::Uninstall, false, "false", true),
    ] {
        let host = TestHost::new(modes(json!({ "idempotence": idempotence })));
        let mut input = host.input(stage);
        input.env = vec![("OVERLAY_ALWAYS_RUN_STEP".into(), always.into())];
        let first = prepare(input.clone()).unwrap();
        assert_eq!(first.plan.main, [true], "{stage}: nothing ran yet");
        first.note_step(Half::Main, 0, false).unwrap();
        let second = prepare(input.clone()).unwrap();
        assert_eq!(second.plan.main, [true], "{stage}: it failed");
        second.note_step(Half::Main, 0, true).unwrap();
        let third = prepare(input).unwrap();
        assert_eq!(third.plan.main, [runs], "{stage} {idempotence} {always}");
        assert_eq!(third.plan.checks, 1);
    }
}

#[test]
fn an_uninstalled_package_has_no_flags_and_a_history() {
    let host = TestHost::new(modes(json!({})));
    let apply = host.prepare(Stage::Apply);
    apply.note_step(Half::Main, 0, true).unwrap();
    apply.note_done().unwrap();
    apply.note_done().unwrap();
    let root = host.directory.path().join("var/lib/skyhook/s");
    let history = || -> Value {
        serde_json::from_slice(&fs::read(root.join("history/a_name.json")).unwrap()).unwrap()
    };
    assert_eq!(history()["current-version"], "1.2.3");
    assert_eq!(history()["history"].as_array().unwrap().len(), 1);
    assert!(root.join("flags/a_name/1.2.3/step.sh_W11fWzBd").exists());
    assert!(root.join("flags/apply_ALL_CHECKED").exists());

    host.prepare(Stage::Uninstall).note_done().unwrap();
    assert_eq!(history()["current-version"], "uninstalled");
    assert!(!root.join("flags/a_name/1.2.3").exists());
    // A corrupt history is renamed.
    fs::write(root.join("history/a_name.json"), "{").unwrap();
    let upgrade = host.prepare(Stage::Upgrade);
    assert_eq!(
        upgrade.spec(Half::Main, 0).unwrap().arguments,
        ["unknown", "1.2.3"]
    );
    assert!(root.join("history/a_name.json.backup").exists());
}

#[test]
fn values_of_the_environment_are_not_shown() {
    let host = TestHost::new(modes(json!({ "arguments": ["env:PASSWORD"] })));
    let mut input = host.input(Stage::Apply);
    input.env = vec![("PASSWORD".into(), "hunter2".into())];
    input.secrets = vec!["hunter2".into()];
    let mut shown = format!("{input:?}");
    let prepared = prepare(input).unwrap();
    let spec = prepared.spec(Half::Main, 0).unwrap();
    assert_eq!(spec.secrets, ["hunter2"]);
    let request = crate::host::exec::StepRequest {
        id: 1,
        label: String::new(),
        spec,
        limits: crate::host::systemd::ScopeLimits::default(),
    };
    shown += &format!("{prepared:?} {request:?}");
    assert!(
        shown.contains("PASSWORD") && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[test]
fn a_step_may_take_the_graceful_shutdown_of_its_package_to_end() {
    for (written, want) in [(None, 30_000), (Some("10m"), 600_000), (Some("0s"), 0)] {
        let host = TestHost::new(modes(json!({})));
        let mut input = host.input(Stage::Apply);
        input.package.graceful_shutdown = written.map(|text| GoDuration(text.into()));
        let spec = prepare(input).unwrap().spec(Half::Main, 0).unwrap();
        assert_eq!(spec.grace_ms, want, "{written:?}");
    }
}

#[test]
fn environment_and_arguments() {
    let host = TestHost::new(modes(json!({
        "arguments": ["plain", "env:WHO"], "env": {"FROM": "step", "STEP_ROOT": "not this"},
    })));
    let mut input = host.input(Stage::Apply);
    input.env = vec![
        ("WHO".into(), "me".into()),
        ("FROM".into(), "package".into()),
        ("SKYHOOK_RESOURCE_ID".into(), "not this".into()),
        ("SKYHOOK_NODE_ORDER".into(), "not this".into()),
        ("SKYHOOK_AGENT_BUFFER_LIMIT".into(), "100".into()),
    ];
    let spec = prepare(input).unwrap().spec(Half::Main, 0).unwrap();
    assert_eq!(spec.arguments, ["plain", "me"]);
    assert_eq!(spec.buffer_limit, 100);
    let copy = "/var/lib/skyhook/s/aa-1.0.0-uid-4";
    assert_eq!(spec.program, format!("{copy}/skyhook_dir/step.sh"));
    assert_eq!(spec.working_directory, copy);
    let env: BTreeMap<_, _> = spec.environment.into_iter().collect();
    for (name, value) in [
        ("FROM", "step"),
        ("STEP_ROOT", "/var/lib/skyhook/s/aa-1.0.0-uid-4/skyhook_dir"),
        ("SKYHOOK_DIR", copy),
        ("SKYHOOK_RESOURCE_ID", "s-uid-4_aa_1.0.0"),
        ("SKYHOOK_ROOT_DIR", "/var/lib/skyhook/s"),
        ("SKYHOOK_LOG_DIR", "/var/log/skyhook/s"),
        ("SKYHOOK_NODE_ORDER", "3"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert!(env["PATH"].reveal().contains("/sbin"));
    let log = spec.log.unwrap();
    assert_eq!(log.directory, Path::new("/var/log/skyhook/s/a_name/1.2.3"));

    let missing = host.prepare(Stage::Apply).spec(Half::Main, 0).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "step step: argument env:WHO names a variable that is not set"
    );
}

#[test]
fn every_stage_knows_the_order_of_its_node() {
    let stages = [
        Stage::Apply,
        Stage::Config,
        Stage::PostInterrupt,
        Stage::Upgrade,
        Stage::Uninstall,
    ];
    for (order, want) in [(Some(0), Some("0")), (Some(41), Some("41")), (None, None)] {
        for stage in stages {
            let host = TestHost::new(modes(json!({})));
            let mut input = host.input(stage);
            input.order = order;
            let prepared = prepare(input).unwrap();
            for half in [Half::Main, Half::Check] {
                let env: BTreeMap<_, _> = prepared
                    .spec(half, 0)
                    .unwrap()
                    .environment
                    .into_iter()
                    .collect();
                let given = env.get("SKYHOOK_NODE_ORDER").map(Secret::reveal);
                assert_eq!(given, want, "{stage} {half:?}");
            }
        }
    }
}

#[test]
fn config_files_are_exact_and_what_steps_made_stays() {
    let host = TestHost::new(modes(json!({})));
    let mut input = host.input(Stage::Config);
    input.package.config_map = [("a.sh".to_owned(), "one\n".to_owned())].into();
    prepare(input.clone()).unwrap();
    host.put("configmaps/made-by-a-step", "kept");
    fs::remove_file(host.copy().join("configmaps/a.sh")).unwrap();
    symlink("/etc/passwd", host.copy().join("configmaps/a.sh")).unwrap();
    prepare(input).unwrap();
    let read = |name: &str| fs::read_to_string(host.copy().join("configmaps").join(name)).unwrap();
    assert_eq!(
        (read("a.sh"), read("made-by-a-step")),
        ("one\n".into(), "kept".into())
    );
    assert!(!host.copy().join("configmaps/a.sh").is_symlink());

    let bare = TestHost::new(modes(json!({})));
    bare.prepare(Stage::Apply);
    assert!(!bare.copy().join("configmaps").exists());
}

/// An image may have symlinks with the names of the directories that the agent writes.
#[test]
fn a_symlink_in_the_place_of_configmaps_or_node_metadata_is_replaced() {
    let host = TestHost::new(modes(json!({})));
    let outside = tempfile::tempdir().unwrap();
    let mut input = host.input(Stage::Config);
    input.package.config_map = [("key".to_owned(), "value".to_owned())].into();
    input.metadata = [("labels.json".to_owned(), "{}".to_owned())].into();
    for name in ["configmaps", "node-metadata"] {
        symlink(outside.path(), host.copy().join(name)).unwrap();
    }
    prepare(input).unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    for file in ["configmaps/key", "node-metadata/labels.json"] {
        assert!(host.copy().join(file).is_file(), "{file}");
    }
}

#[test]
fn root_dir_is_laid_over_the_host_inside_its_root() {
    let host = TestHost::new(modes(json!({})));
    host.put("root_dir/lib/deep/file", "content");
    host.put("root_dir/escape/file", "content");
    let path = host.copy().join("root_dir/lib/deep/file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
    let root = host.directory.path();
    fs::create_dir_all(root.join("usr/lib")).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), root.join("escape")).unwrap();
    host.prepare(Stage::Apply);
    let copied = fs::metadata(root.join("usr/lib/deep/file")).unwrap();
    assert_eq!(copied.permissions().mode() & 0o7777, 0o751);
    assert_eq!(
        copied.modified().unwrap(),
        fs::metadata(&path).unwrap().modified().unwrap()
    );
    assert_eq!(
        fs::read_dir(outside.path()).unwrap().count(),
        0,
        "it got out"
    );

    let uninstalling = TestHost::new(modes(json!({})));
    uninstalling.put("root_dir/file", "content");
    uninstalling.prepare(Stage::Uninstall);
    assert!(!uninstalling.directory.path().join("file").exists());
}

#[test]
fn a_stage_that_the_package_does_not_have_is_done_at_once() {
    let host = TestHost::new(json!({"apply": [step(json!({}))], "apply-check": [step(json!({}))]}));
    assert_eq!(host.prepare(Stage::Upgrade).plan, StepPlan::default());
}

#[test]
fn a_step_that_was_ended_or_took_too_long_has_failed_whatever_its_exit_code() {
    let host = TestHost::new(modes(json!({ "returncodes": [0, 3] })));
    let prepared = host.prepare(Stage::Apply);
    let exited = |code| StepResult {
        code: Some(code),
        ..StepResult::default()
    };
    for (name, result, want) in [
        ("success", exited(0), None),
        ("another success", exited(3), None),
        ("failure", exited(1), Some("exited with 1")),
        (
            "ended",
            StepResult {
                ended: true,
                ..exited(0)
            },
            Some("was ended: the lease was stopped"),
        ),
        (
            "too long",
            StepResult {
                timed_out: true,
                ..exited(0)
            },
            Some("took too long and was ended"),
        ),
        (
            "killed",
            StepResult {
                signal: Some(9),
                ..StepResult::default()
            },
            Some("was killed by signal 9"),
        ),
    ] {
        let judged = prepared.judge(Half::Main, 0, &result, None);
        let want = want.map(|want| format!("{} {want}", prepared.step_name(Half::Main, 0)));
        assert_eq!(judged.err(), want, "{name}");
    }
}

/// A store with one image. Its package has a file of this size.
pub(crate) fn store_with(directory: &Path, bytes: usize, config: &str) -> (Store, Digest) {
    let folder = directory.join("image/skyhook-package");
    fs::create_dir_all(folder.join("skyhook_dir")).unwrap();
    fs::create_dir_all(folder.join("root_dir/opt")).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("skyhook_dir/step.sh"), "#!/bin/bash\n").unwrap();
    fs::write(folder.join("root_dir/opt/large"), vec![b'x'; bytes]).unwrap();
    let tar = std::process::Command::new("tar")
        .arg("-C")
        .arg(directory.join("image"))
        .args(["--format=gnu", "-cf", "-", "skyhook-package"])
        .output()
        .unwrap();
    assert!(tar.status.success());
    let store = Store::open(directory.join("store"), skyhook_oci::StoreConfig::default()).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        let blob = directory.join("store/blobs/sha256").join(digest.hex());
        fs::write(blob, bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let with_type = |mut descriptor: Value, media_type: &str| {
        descriptor["mediaType"] = json!(media_type);
        descriptor
    };
    let layer = put(&tar.stdout);
    let config = put(json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    })
    .to_string()
    .as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": with_type(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [with_type(layer, "application/vnd.oci.image.layer.v1.tar")],
    });
    let digest = Digest::of(manifest.to_string().as_bytes());
    put(manifest.to_string().as_bytes());
    fs::write(directory.join("store/images").join(digest.hex()), "null").unwrap();
    (store, digest)
}

/// Number of bytes that this thread has written to files.
fn bytes_written() -> usize {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_check_that_is_tried_again_does_not_write_the_package() {
    let host = TestHost::new(modes(json!({})));
    let config = fs::read_to_string(host.copy().join("config.json")).unwrap();
    let mut written = Vec::new();
    for bytes in [10_000, 3_000_000] {
        let directory = tempfile::tempdir().unwrap();
        let (store, digest) = store_with(directory.path(), bytes, &config);
        let host = Host::open(directory.path()).unwrap();
        let mut input = StageInput {
            host,
            store: Some(store),
            digest: Some(digest),
            ..TestHost::new(modes(json!({}))).input(Stage::Apply)
        };
        let before = bytes_written();
        let first = prepare(input.clone()).unwrap();
        assert!(
            bytes_written() - before > bytes,
            "the first time it is written"
        );
        let laid = directory.path().join("opt/large");
        // A step of the package or a user of the host may change the file.
        fs::write(&laid, "changed").unwrap();

        assert!(first.has_files_for(&input));
        input.is_laid_out = true;
        let before = bytes_written();
        prepare(input.clone()).unwrap();
        written.push(bytes_written() - before);
        assert_eq!(fs::read_to_string(&laid).unwrap(), "changed");

        // Another stage, another image or another copy directory needs other files.
        for other in [
            StageInput {
                stage: Stage::Config,
                ..input.clone()
            },
            StageInput {
                digest: Some(Digest::of(b"other")),
                ..input.clone()
            },
            StageInput {
                skyhook: SkyhookRef {
                    generation: 5,
                    ..input.skyhook.clone()
                },
                ..input.clone()
            },
        ] {
            assert!(!first.has_files_for(&other));
        }
        // A copy directory that was removed is written again.
        fs::remove_dir_all(directory.path().join("var/lib/skyhook/s")).unwrap();
        prepare(input).unwrap();
        assert_eq!(fs::metadata(&laid).unwrap().len(), bytes as u64);
    }
    assert_eq!(written[0], written[1], "it depends on the package's size");
    assert!(written[0] < 1000, "{written:?}");
}
