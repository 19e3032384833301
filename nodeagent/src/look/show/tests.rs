//! Tests of what `show` finds on a host, and of its forms.

use std::path::PathBuf;

use clap::Parser as _;
use serde_json::{Value, json};

use super::*;
use crate::config::{Cli, Command};

/// A host in the middle of a lease.
fn host() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("etc/machine-id", "0123\n");
    put("proc/sys/kernel/random/boot_id", "now\n");
    put("var/lib/skyhook-agent/host-id", "4567\n");
    put("var/lib/skyhook-agent/revisions/gpu-1.json", "{}");
    for (id, has_result) in [(2, false), (5, false), (6, true), (7, false)] {
        let directory = format!("var/lib/skyhook-agent/steps/{id:08}");
        put(&format!("{directory}/supervisor.log"), "");
        if has_result {
            put(&format!("{directory}/{RESULT}"), "{}");
        }
    }
    put("var/lib/skyhook/gpu/a/config.json", "{}");
    put("var/log/skyhook/gpu/a/1/a.sh-2024-05-01-120000.log", "x\n");
    root
}

fn state() -> State {
    let entry = |name: &str, more: &Value| {
        let mut entry = json!({
            "name": name, "version": "1", "image": "r/a", "stage": "apply", "state": "in_progress",
            "since": "2026-11-27T10:00:00Z", "begun": true,
        });
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        entry
    };
    let step = |id: u64, boot: &str, half: &str| {
        let cursor = json!({
            "id": id, "half": half, "index": 1, "bootId": boot, "boot_id": boot, "plan": { "main": [], "checks": 2 },
        });
        json!({ "doing": { "Step": cursor } })
    };
    let failed = json!({
        "doing": { "Retry": { "at": 1_795_773_600_000_i64, "half": "Main" } }, "state": "erroring", "attempts": 2,
        "message": "step a failed\nsecond line \u{1b}[31mred",
    });
    let done = json!({ "stage": "config", "state": "complete" });
    serde_json::from_value(json!({
        "machineId": "0123", "bootId": "now", "epoch": "now", "nextStep": 8,
        "skyhooks": {
            "base": { "lease": "l0", "revision": "base-1", "entries": { "z|1": entry("z", &done) } },
        },
        "run": {
            "lease": "l1", "skyhook": { "name": "gpu", "uid": "u", "generation": 1 }, "revision": "gpu-1",
            "wanted": {}, "nextStep": 8, "bootId": "now",
            "entries": {
                "a|1": entry("a", &failed), "b|1": entry("b", &step(5, "now", "Main")),
                "c|1": entry("c", &step(6, "now", "Check")), "d|1": entry("d", &step(7, "before", "Main")),
            },
        },
    }))
    .unwrap()
}

fn args(root: &Path) -> ShowArgs {
    let root = format!("--host-root={}", root.display());
    let cli = Cli::try_parse_from(["skyhook-agent", "show", &root]).unwrap();
    let Command::Show(args) = cli.command else {
        panic!("it is show");
    };
    args
}

/// Every file and directory, with the content of files.
fn all(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap().flatten() {
            found.push((entry.path(), fs::read(entry.path()).unwrap_or_default()));
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn saved(root: &Path, state: State) {
    let directory = Host::open(root)
        .unwrap()
        .locate("/var/lib/skyhook-agent")
        .unwrap();
    let (mut journal, _) = Journal::open(&directory).unwrap();
    journal.save(state).unwrap();
}

#[test]
fn a_look_finds_what_is_there_and_changes_nothing() {
    let host = host();
    saved(host.path(), state());
    let before = all(host.path());
    let shown = look(&args(host.path())).unwrap();
    assert_eq!(all(host.path()), before);
    let ids = [&shown.machine_id, &shown.boot_id, &shown.host_id].map(Option::as_deref);
    assert_eq!(ids, [Some("0123"), Some("now"), Some("4567")]);
    assert!(
        shown.agent.starts_with("no agent answers in /var/lib/"),
        "{}",
        shown.agent
    );
    assert_eq!(shown.journal.content.as_deref(), Some(&state()));
    assert!(shown.journal.written.is_some() && shown.journal.problem.is_none());
    assert_eq!(Vec::from_iter(&shown.journal.revisions), ["gpu-1"]);
    let known = |id, package: &str, mode: &str, state| StepDirectory {
        id,
        package: Some(package.to_owned()),
        mode: Some(mode.to_owned()),
        index: Some(1),
        state,
    };
    let left = StepDirectory {
        id: 2,
        package: None,
        mode: None,
        index: None,
        state: StepState::LeftOver,
    };
    let want = [
        left,
        known(5, "b|1", "apply", StepState::Running),
        known(6, "c|1", "apply-check", StepState::Ended),
        known(7, "d|1", "apply", StepState::LostWithHost),
    ];
    assert_eq!(shown.steps, want);
    let paths: Vec<&str> = shown.disk.iter().map(|at| at.path.as_str()).collect();
    let want = [
        "/var/lib/skyhook-agent",
        "/var/lib/skyhook",
        "/var/log/skyhook",
    ];
    assert_eq!(paths, want);
    assert!(
        shown
            .disk
            .iter()
            .all(|at| at.bytes > 0 && at.free_bytes.is_some())
    );
    assert_eq!(shown.images.contents, Contents::default());
    assert_eq!(shown.images.problem, None);
}

#[test]
fn a_host_without_anything_and_one_with_a_damaged_journal_are_shown() {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(host.path().join("var/lib")).unwrap();
    let before = all(host.path());
    let shown = look(&args(host.path())).unwrap();
    assert_eq!(all(host.path()), before, "nothing is made");
    let text = text::of(&shown);
    assert!(
        text.contains("\n  there is none: this host had no lease yet\n"),
        "{text}"
    );
    assert!(text.contains("\nmachine unknown\n"), "{text}");
    let directory = host.path().join("var/lib/skyhook-agent");
    fs::create_dir_all(&directory).unwrap();
    for (journal, want) in [
        (
            "skyhook-journal 1 00\n{}",
            "/var/lib/skyhook-agent/journal is corrupt",
        ),
        (
            "skyhook-journal 2 44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\n{}",
            "/var/lib/skyhook-agent/journal was written by a newer agent",
        ),
    ] {
        fs::write(directory.join("journal"), journal).unwrap();
        let before = all(host.path());
        let problem = look(&args(host.path())).unwrap().journal.problem.unwrap();
        assert!(problem.starts_with(want), "{problem}");
        assert_eq!(all(host.path()), before, "the journal is left alone");
    }
}

/// What `show` says about a host whose values are all known.
fn fixed() -> OnHost {
    let image = |manifest: &str| skyhook_oci::ImageContents {
        manifest: format!("sha256:{}", manifest.repeat(64)).parse().unwrap(),
        references: Vec::new(),
        pinned_by: Vec::new(),
        bytes: None,
        used: None,
    };
    let step = |id, state| StepDirectory {
        id,
        package: Some("b|1".into()),
        mode: Some("apply".into()),
        index: Some(1),
        state,
    };
    OnHost {
        agent_version: "1.0.0".into(),
        agent: "ready".into(),
        machine_id: Some("0123".into()),
        boot_id: Some("now".into()),
        host_id: None,
        journal: JournalFile {
            path: "/state/journal".into(),
            written: Timestamp::from_second(1_795_773_600).ok(),
            content: Some(Box::new(state())),
            problem: None,
            revisions: ["gpu-1".to_owned()].into(),
        },
        steps: vec![
            StepDirectory {
                package: None,
                mode: None,
                index: None,
                ..step(2, StepState::LeftOver)
            },
            step(5, StepState::Running),
            step(6, StepState::Ended),
            step(7, StepState::LostWithHost),
        ],
        images: ImageStore {
            path: "/state/images".into(),
            contents: Contents {
                images: vec![
                    image("1"),
                    skyhook_oci::ImageContents {
                        references: vec!["r/a:1".into(), "r/a:2".into()],
                        pinned_by: vec!["gpu/a|1".into()],
                        bytes: Some(3 << 20),
                        used: Timestamp::from_second(1_795_773_600).ok(),
                        ..image("2")
                    },
                ],
                blob_bytes: 4 << 20,
                partial_bytes: 10,
            },
            problem: None,
        },
        disk: vec![
            Directory {
                path: "/state".into(),
                bytes: 5 << 20,
                file_system_bytes: Some(100 << 30),
                free_bytes: Some(30 << 30),
            },
            Directory {
                path: "/logs".into(),
                bytes: 0,
                file_system_bytes: None,
                free_bytes: None,
            },
        ],
    }
}

#[test]
fn the_text_is_as_it_was() {
    let want = "\
agent 1.0.0: ready
machine 0123
boot now
host unknown

journal /state/journal, written 2026-11-27T10:00:00Z
  gpu: lease l1, revision gpu-1: works
    a 1 apply erroring since 2026-11-27T10:00:00Z: runs the steps again at 2026-11-27T10:00:00Z, 2 attempts failed
      step a failed
      second line red
    b 1 apply in_progress since 2026-11-27T10:00:00Z: step 5 runs
    c 1 apply in_progress since 2026-11-27T10:00:00Z: step 6 runs
    d 1 apply in_progress since 2026-11-27T10:00:00Z: step 7 runs
  base: last lease l0, revision base-1
    z 1 config complete since 2026-11-27T10:00:00Z

step 2 is left over
step 5: b|1 apply[1] runs
step 6: b|1 apply[1] has ended
step 7: b|1 apply[1] was lost when the host went down

images /state/images: 4.0 MiB, and 10 B downloaded in part
  no reference: damaged, sha256:1111111111111111111111111111111111111111111111111111111111111111
  r/a:1, r/a:2: 3.0 MiB, sha256:2222222222222222222222222222222222222222222222222222222222222222, used 2026-11-27T10:00:00Z, needed by gpu/a|1

disk /state: 5.0 MiB; 30.0 GiB of 100.0 GiB are free
disk /logs: 0 B
";
    assert_eq!(text::of(&fixed()), want);
}

#[test]
fn the_json_is_as_it_was() {
    let mut given = serde_json::to_value(fixed()).unwrap();
    let content = given["journal"]["content"].take();
    assert_eq!(
        content["run"]["entries"]["a|1"]["attempts"], 2,
        "{content:#}"
    );
    let want = json!({
        "agentVersion": "1.0.0", "agent": "ready", "machineId": "0123", "bootId": "now", "hostId": null,
        "journal": {
            "path": "/state/journal", "written": "2026-11-27T10:00:00Z", "content": null, "revisions": ["gpu-1"],
        },
        "steps": [
            { "id": 2, "state": "leftOver" },
            { "id": 5, "package": "b|1", "mode": "apply", "index": 1, "state": "running" },
            { "id": 6, "package": "b|1", "mode": "apply", "index": 1, "state": "ended" },
            { "id": 7, "package": "b|1", "mode": "apply", "index": 1, "state": "lostWithHost" },
        ],
        "images": {
            "path": "/state/images", "blobBytes": 4 << 20, "partialBytes": 10,
            "images": [
                {
                    "manifest": format!("sha256:{}", "1".repeat(64)), "references": [], "pinnedBy": [], "bytes": null,
                    "used": null,
                },
                {
                    "manifest": format!("sha256:{}", "2".repeat(64)), "references": ["r/a:1", "r/a:2"],
                    "pinnedBy": ["gpu/a|1"], "bytes": 3 << 20, "used": "2026-11-27T10:00:00Z",
                },
            ],
        },
        "disk": [
            { "path": "/state", "bytes": 5 << 20, "fileSystemBytes": 100_u64 << 30, "freeBytes": 30_u64 << 30 },
            { "path": "/logs", "bytes": 0, "fileSystemBytes": null, "freeBytes": null },
        ],
    });
    assert_eq!(given, want);
}
