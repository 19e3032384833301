//! Tests of the agent's start, and of what it does by itself while it has no lease.
#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::InterruptionLeaseSpec;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::*;
use crate::config::{Cli, Command};

const STATE: &str = "var/lib/skyhook-agent";

/// The mount point of a host in a pod.
fn mounted() -> tempfile::TempDir {
    let mount = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = mount.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("etc/machine-id", "0123\n");
    put("proc/sys/kernel/random/boot_id", "boot\n");
    fs::create_dir_all(mount.path().join(STATE)).unwrap();
    mount
}

fn settings(mount: &Path) -> Settings {
    let root = format!("--host-root={}", mount.display());
    let cli = Cli::try_parse_from(["skyhook-agent", "run", "--node-name=worker-1", &root]);
    let Command::Run(args) = cli.unwrap().command else {
        panic!("it is run");
    };
    args.settings().unwrap()
}

/// An agent whose API server does not answer.
fn start(mount: &Path) -> anyhow::Result<(Agent, UnboundedReceiver<Note>)> {
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = kube::Client::try_from(config).unwrap();
    let api = LeaseApi::new(client, "worker-1".into(), "skyhook".into());
    let host = Host::open(mount).unwrap();
    let bus = Rc::new(Bus::of(&host.files));
    let (notes, inbox) = unbounded_channel();
    Agent::start(settings(mount), host, api, bus, None, notes).map(|agent| (agent, inbox))
}

/// Users do not know the mount point of the host in the agent's pod.
#[tokio::test]
async fn errors_at_the_start_have_the_paths_of_the_host() {
    /// What prevents the start: a path below the mount point, and what is there.
    enum Obstacle {
        File(PathBuf),
        Directory(PathBuf),
    }
    let in_state = |name: &str| Path::new(STATE).join(name);
    for (obstacle, path) in [
        (Obstacle::File("var".into()), "/var/lib/skyhook-agent"),
        (Obstacle::File(STATE.into()), "/var/lib/skyhook-agent"),
        (
            Obstacle::Directory(in_state("agent.lock")),
            "/var/lib/skyhook-agent/agent.lock",
        ),
        (
            Obstacle::Directory(in_state("probe.sock")),
            "/var/lib/skyhook-agent",
        ),
        (
            Obstacle::Directory(in_state("host-id")),
            "/var/lib/skyhook-agent",
        ),
        (
            Obstacle::Directory(in_state("journal")),
            "/var/lib/skyhook-agent",
        ),
        (
            Obstacle::File(in_state("images")),
            "/var/lib/skyhook-agent/images",
        ),
    ] {
        let mount = mounted();
        match &obstacle {
            Obstacle::File(path) => {
                let path = mount.path().join(path);
                fs::remove_dir_all(&path).unwrap_or_default();
                fs::write(path, "").unwrap();
            }
            Obstacle::Directory(path) => fs::create_dir(mount.path().join(path)).unwrap(),
        }
        let (claimed, started) = LocalSet::new()
            .run_until(async {
                let claimed = claim_host(&settings(mount.path())).await;
                let started = start(mount.path()).map(drop);
                (claimed.map(drop), started)
            })
            .await;
        let error = claimed.and(started).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(path), "{text}");
        let ours = mount.path().to_str().unwrap();
        assert!(!text.contains(ours), "{text}");
    }
    let mount = mounted();
    let host = Host::open(mount.path()).unwrap();
    let error = probe::ready(&host.locate(Path::new("/").join(STATE)).unwrap()).unwrap_err();
    let text = format!("{error:#}");
    assert!(
        text.starts_with("no agent answers in /var/lib/skyhook-agent: "),
        "{text}"
    );
}

/// When garbage was collected, in seconds after the start.
async fn collections(agent: &mut Agent, inbox: &mut UnboundedReceiver<Note>) -> Vec<u64> {
    let begin = Instant::now();
    let mut at = Vec::new();
    // Between two collections it looks for deleted Skyhooks.
    while at.len() < 4 && begin.elapsed() < Duration::from_secs(100 * 3600) {
        sleep_until(agent.wake_at().expect("it wakes up by itself")).await;
        agent.take(Note::Woken);
        agent.commit();
        let collected = async {
            while let Some(note) = inbox.recv().await {
                let is_collected = matches!(note, Note::Missing { collects: true, .. });
                agent.take(note);
                if is_collected {
                    at.push(begin.elapsed().as_secs());
                }
            }
        };
        // Other notes may follow the first one.
        let _over = timeout(Duration::from_secs(60), collected).await;
    }
    at
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_a_lease_collects_garbage_once_a_day() {
    const HOUR: u64 = 3600;
    let mount = mounted();
    let work = async {
        let (mut agent, mut inbox) = start(mount.path()).unwrap();
        let at = collections(&mut agent, &mut inbox).await;
        assert_eq!(at.len(), 4, "{at:?}");
        assert!((240..=300).contains(&at[0]), "{at:?}");
        for days in at.windows(2) {
            let day = days[1] - days[0];
            assert!((19 * HOUR..=24 * HOUR).contains(&day), "{at:?}");
        }
        // With a lease, garbage is collected at the lease's end.
        let lease = InterruptionLease::new("worker-1", InterruptionLeaseSpec::default());
        agent.lease = Some(lease);
        let at = collections(&mut agent, &mut inbox).await;
        assert_eq!(at, [] as [u64; 0]);
    };
    LocalSet::new().run_until(work).await;
}

/// The files below a directory, in the order of names.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        } else {
            let name = path.strip_prefix(directory).unwrap();
            found.push(name.display().to_string());
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn of_a_deleted_skyhook_only_logs_stay_once_nothing_was_seen_of_it_for_a_day() {
    const HOUR: i64 = 3_600_000;
    let mount = mounted();
    let settings = settings(mount.path());
    let below = |path: &str| mount.path().join(path.trim_start_matches('/'));
    let (copies, logs) = (
        below(&settings.layout.copy_root),
        below(&settings.layout.log_root),
    );
    let uid = "00000000-0000-0000-0000-000000000000";
    for skyhook in ["gone", "there"] {
        for path in [
            copies.join(format!("{skyhook}/aa-1.0.0-{uid}-1/config.json")),
            copies.join(format!("{skyhook}/flags/aa/1.0.0/step_x")),
            copies.join(format!("{skyhook}/history/aa.json")),
            logs.join(format!("{skyhook}/aa/1.0.0/x.log")),
        ] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }
    let work = async {
        let (mut agent, mut inbox) = start(mount.path()).unwrap();
        let entry = serde_json::json!({
            "name": "aa", "version": "1.0.0", "image": "r/aa", "stage": "config", "state": "complete", "begun": true,
            "cycle": {"revision": "r", "skyhook": {"name": "s", "uid": uid, "generation": 1}, "identity": ""},
        });
        let entries: crate::machine::Entries =
            serde_json::from_value(serde_json::json!({ "aa|1.0.0": entry })).unwrap();
        let record = crate::journal::Record {
            entries,
            ..crate::journal::Record::default()
        };
        let mut state = agent.journal.state.clone();
        for skyhook in ["gone", "there"] {
            state.skyhooks.insert(skyhook.to_owned(), record.clone());
        }
        // Nothing was seen of it for 23 hours, the last time an hour ago.
        state.missing = [("gone".to_owned(), 23 * HOUR)].into();
        state.looked = agent::now() - HOUR;
        agent.journal.save(state).unwrap();
        let before = files(&copies);
        assert_eq!(before.len(), 6);
        // The API does not answer: nobody knows.
        agent.note_missing(None, false);
        assert_eq!(agent.journal.state.missing["gone"], 23 * HOUR);
        agent.note_missing(Some(["gone".to_owned()].into()), false);
        let known: Vec<&String> = agent.journal.state.skyhooks.keys().collect();
        assert_eq!(known, ["there"]);
        let is_counted = |note: &Note| matches!(note, Note::Disk(_));
        // The bytes on the disk are counted at the start, and after the files are removed.
        let mut counted = 0;
        while counted < 2 {
            let note = timeout(Duration::from_secs(60), inbox.recv()).await;
            counted += usize::from(note.unwrap().is_some_and(|note| is_counted(&note)));
        }
        let left: Vec<String> = before
            .into_iter()
            .filter(|file| file.starts_with("there/"))
            .collect();
        assert_eq!(files(&copies), left);
        assert!(!copies.join("gone").exists());
        assert_eq!(files(&logs).len(), 2);
    };
    LocalSet::new().run_until(work).await;
}
