#![expect(clippy::disallowed_methods, reason = "the journal is files")]

use super::*;
use serde_json::json;
use skyhook_oci::{Disk, replace_on};

use crate::host::Host;
use crate::machine::tests::world::{Spec, World, pkg};

fn state(machine_id: &str) -> State {
    State {
        machine_id: machine_id.into(),
        next_step: 7,
        ..State::default()
    }
}

#[test]
fn what_was_saved_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(&directory.path().into()).unwrap();
    journal.save(state("a")).unwrap();
    let (again, aside) = Journal::open(&directory.path().into()).unwrap();
    assert_eq!((again.state, aside), (state("a"), None));
}

#[test]
fn a_cut_or_changed_journal_is_never_believed() {
    let whole = encode(&state("machine")).unwrap();
    for cut in 0..whole.len() {
        assert_eq!(decode(&whole[..cut]), None, "cut at {cut}");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert_eq!(decode(&changed), None, "changed at {at}");
    }
    assert_eq!(decode(&whole), Some(state("machine")));
}

#[test]
fn a_corrupt_journal_is_kept_aside() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("journal"), "rubbish").unwrap();
    let (journal, aside) = Journal::open(&directory.path().into()).unwrap();
    assert_eq!(journal.state, State::default());
    assert_eq!(
        fs::read_to_string(aside.unwrap().path()).unwrap(),
        "rubbish"
    );
}

#[test]
fn a_parked_version_in_the_journal_of_an_earlier_agent_was_never_installed() {
    let entry = |stage: &str, state: &str, more: &str| {
        format!(
            r#"{{"name":"a","version":"1","image":"r/a","stage":"{stage}","state":"{state}"{more}}}"#
        )
    };
    let configured = r#","configured":{}"#;
    let written = [
        ("parked", entry("uninstall", "skipped", ""), false),
        (
            "parked, and installed before",
            entry("uninstall", "skipped", configured),
            true,
        ),
        ("uninstalling", entry("uninstall", "in_progress", ""), true),
        ("applying", entry("apply", "in_progress", ""), true),
        (
            "of this agent",
            entry("apply", "in_progress", r#","begun":false"#),
            false,
        ),
    ];
    for (name, entry, want) in written {
        let run = r#""lease":"l","skyhook":{"name":"s","uid":"u"},"revision":"r","wanted":{},"nextStep":1,"bootId":"b""#;
        let body = format!(
            r#"{{"skyhooks":{{"s":{{"entries":{{"a|1":{entry}}}}}}},"run":{{{run},"entries":{{"a|1":{entry}}}}}}}"#
        );
        let text = format!("{MAGIC} {}\n{body}", digest(body.as_bytes()));
        let state = decode(text.as_bytes()).expect(name);
        let run = state.run.expect("it is there");
        for entries in [&state.skyhooks["s"].entries, &run.entries] {
            assert_eq!(entries["a|1"].started, want, "{name}");
        }
    }
}

#[test]
fn only_a_reboot_that_was_asked_for_keeps_the_epoch() {
    let journal = |boot: &str, epoch: &str, asked: Option<&str>| State {
        boot_id: boot.into(),
        epoch: epoch.into(),
        run: asked.map(|asked| Progress {
            wave: Some(crate::machine::progress::Wave {
                reboot_asked: Some(asked.into()),
                ..Default::default()
            }),
            ..Progress::default()
        }),
        ..State::default()
    };
    for (name, journal, want) in [
        ("a fresh host", journal("", "", None), "new"),
        ("the same boot", journal("new", "first", None), "first"),
        ("nobody asked", journal("old", "first", None), "new"),
        ("asked for", journal("old", "first", Some("old")), "first"),
        (
            "asked for in an earlier boot",
            journal("old", "first", Some("older")),
            "new",
        ),
        (
            "of a journal without epochs",
            journal("", "", Some("old")),
            "new",
        ),
    ] {
        assert_eq!(journal.epoch_in("new"), want, "{name}");
    }
}

/// The Node may be gone meanwhile, and its record with it: the journal alone would say that all is there.
#[test]
fn a_reboot_that_undid_the_packages_undid_those_of_every_skyhook() {
    let entry = json!({
        "name": "a", "version": "1", "image": "r/a", "stage": "config", "state": "complete", "begun": true,
    });
    let entries: Entries = serde_json::from_value(json!({ "a|1": entry })).unwrap();
    let record = Record {
        lease: "one".into(),
        entries: entries.clone(),
        ..Record::default()
    };
    let mut journal = State {
        skyhooks: [("earlier".to_owned(), record)].into(),
        run: Some(Progress {
            lease: "two".into(),
            entries,
            ended: Some(skyhook_crds::lease::Phase::Complete),
            ..Progress::default()
        }),
        ..State::default()
    };
    journal.reapply(0);
    let run = journal.run.as_ref().unwrap();
    assert_eq!(run.ended, Some(skyhook_crds::lease::Phase::Stopped));
    assert_eq!(run.entries, Entries::new());
    let earlier = &journal.skyhooks["earlier"];
    assert_eq!(earlier.entries, Entries::new());
    assert_eq!(earlier.lease, "one");
}

#[test]
fn the_journal_of_a_newer_agent_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let body = r#"{"nextStep":"of another shape"}"#;
    let mut newer = String::new();
    // The format number may be the same, if a developer forgot to change it.
    for form in [1, 2] {
        newer = format!("skyhook-journal {form} {}\n{body}", digest(body.as_bytes()));
        fs::write(&path, &newer).unwrap();
        let error = Journal::open(&directory.path().into())
            .unwrap_err()
            .to_string();
        assert!(error.contains("written by a newer agent"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    }
    // The same for a stage that this version does not know, in a journal that can be read otherwise.
    let body = r#"{"skyhooks":{"s":{"entries":{"a|1":{"name":"a","version":"1","image":"r/a","stage":"quarantine","state":"in_progress"}}}}}"#;
    let staged = format!("skyhook-journal 1 {}\n{body}", digest(body.as_bytes()));
    fs::write(&path, &staged).unwrap();
    let error = Journal::open(&directory.path().into())
        .unwrap_err()
        .to_string();
    assert!(error.contains("written by a newer agent"), "{error}");
    // A journal with a newer number and a wrong digest is corrupt.
    fs::write(&path, newer.replace("another", "an other")).unwrap();
    let (_, aside) = Journal::open(&directory.path().into()).unwrap();
    assert!(aside.is_some());
}

/// A disk that records every operation.
#[derive(Default)]
struct Recorder(Vec<Operation>);

#[derive(Clone, Debug)]
enum Operation {
    Write(Vec<u8>),
    Sync,
    Rename,
    SyncDirectory,
}

impl Disk for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.push(Operation::Write(bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.push(Operation::Sync);
        Ok(())
    }

    fn rename(&mut self) -> io::Result<()> {
        self.0.push(Operation::Rename);
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.0.push(Operation::SyncDirectory);
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All possible contents of the journal after these operations and a power failure. Data that was not synced may be
/// missing completely or partly. A rename that was not synced may have happened or not.
fn after_power_cut(operations: &[Operation]) -> Vec<Option<Vec<u8>>> {
    let mut durable: Option<Vec<u8>> = None;
    // Other contents that the file may have.
    let mut possible: Vec<Option<Vec<u8>>> = Vec::new();
    let mut temporary: (Vec<u8>, bool) = (Vec::new(), false);
    for operation in operations {
        match operation {
            Operation::Write(bytes) => temporary = (bytes.clone(), false),
            Operation::Sync => temporary.1 = true,
            Operation::Rename => {
                possible.push(Some(temporary.0.clone()));
                if !temporary.1 {
                    possible.push(Some(Vec::new()));
                    possible.push(Some(temporary.0[..temporary.0.len() / 2].to_vec()));
                }
            }
            Operation::SyncDirectory => {
                assert!(temporary.1, "renamed before it was synced");
                durable = Some(temporary.0.clone());
                possible.clear();
            }
        }
    }
    possible.push(durable);
    possible
}

#[test]
fn a_power_cut_at_any_operation_of_a_run_leaves_a_state_that_was_saved() {
    let mut world = World::new();
    let mut disk = Recorder::default();
    let mut saved: Vec<(usize, State)> = Vec::new();
    let mut save = |world: &World, saved: &mut Vec<(usize, State)>| {
        let state = State {
            run: world.run.clone(),
            ..state("machine")
        };
        if saved.last().is_none_or(|(_, last)| *last != state) {
            replace_on(&mut disk, &encode(&state).unwrap(), Durability::PowerCut).unwrap();
            saved.push((disk.0.len(), state));
        }
        disk.0.len()
    };
    let reboot = skyhook_crds::Interrupt {
        kind: skyhook_crds::InterruptType::Reboot,
        services: vec![],
    };
    for version in ["1.0.0", "2.0.0"] {
        let package = skyhook_crds::Package {
            interrupt: Some(reboot.clone()),
            ..pkg("aa", version)
        };
        world.lease(&Spec::of(&[package, pkg("bb", "1.0.0")]));
        save(&world, &mut saved);
        while let Some(effect) = world.queue.pop_front() {
            world.perform(effect);
            save(&world, &mut saved);
        }
    }
    let operations = disk.0;
    assert!(operations.len() > 100, "{}", operations.len());
    for cut in 0..=operations.len() {
        let finished = saved.iter().filter(|(end, _)| *end <= cut).count();
        for content in after_power_cut(&operations[..cut]) {
            let found = content.map(|bytes| decode(&bytes).expect("a whole journal"));
            let legal = match found {
                None => finished == 0,
                Some(found) => {
                    let at = saved.iter().position(|(_, s)| *s == found).unwrap();
                    recovers(found);
                    at + 1 == finished || at == finished
                }
            };
            assert!(legal, "cut after {cut} operations, {finished} saved");
        }
    }
}

/// Checks that an agent with this journal, and without the result of any step, completes the work.
fn recovers(found: State) {
    let mut world = World::new();
    world.run = found.run;
    world.power_cut();
    world.settle();
    assert_eq!(world.ended(), Some(skyhook_crds::lease::Phase::Complete));
}

#[test]
fn a_disk_that_takes_nothing_is_an_error_that_recovers() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("journal");
    let (mut journal, _) = Journal::open(&directory.as_path().into()).unwrap();
    journal.save(state("before")).unwrap();
    let away = root.path().join("away");
    fs::rename(&directory, &away).unwrap();
    let error = journal.save(state("after")).unwrap_err();
    assert!(matches!(error, JournalError::Io { .. }), "{error}");
    // The state in memory has not changed, because the file was not written.
    assert_eq!(journal.state, state("before"));
    fs::rename(&away, &directory).unwrap();
    journal.save(state("after")).unwrap();
    assert_eq!(
        Journal::open(&directory.as_path().into()).unwrap().0.state,
        state("after")
    );
}

#[test]
fn a_host_remembers_so_many_skyhooks() {
    let run = |n: usize| Progress {
        lease: format!("lease-{n}"),
        revision: format!("revision-{n}"),
        skyhook: skyhook_crds::lease::SkyhookRef {
            name: format!("skyhook-{n:03}"),
            ..Default::default()
        },
        ..Progress::default()
    };
    let mut state = State::default();
    for n in 0..200 {
        state.archive_run(&format!("lease-{n}"), 1_000 + i64::try_from(n).unwrap());
        state.run = Some(run(n));
    }
    assert_eq!(state.skyhooks.len(), RECORDS);
    let first = state.skyhooks.first_key_value().unwrap();
    assert_eq!(first.0, "skyhook-135");
    assert_eq!(first.1.revision, "revision-135");
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_is_forgotten_leaves_no_record() {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle();
    let of = |entries: &Entries| Record {
        entries: entries.clone(),
        ..Record::default()
    };
    let installed = world.progress().entries.clone();
    let with = |run: Option<Progress>| State {
        skyhooks: [
            ("empty".to_owned(), of(&Entries::new())),
            ("installed".to_owned(), of(&installed)),
            ("stays".to_owned(), of(&installed)),
        ]
        .into(),
        missing: [("empty".to_owned(), 1), ("other".to_owned(), 2)].into(),
        run,
        ..State::default()
    };
    let gone = names(&["empty", "installed", "s"]);
    let mut ended = with(world.run.clone());
    ended.forget(&gone);
    let mut want = with(None);
    want.skyhooks.retain(|name, _| name == "stays");
    want.missing.remove("empty");
    assert_eq!(ended, want);
    let mut running = world.run.clone();
    running.as_mut().unwrap().ended = None;
    let mut working = with(running.clone());
    working.forget(&gone);
    assert_eq!(working.run, running, "it is worked on");
}

/// The clock is set forward and back, and agents are started anew: a Skyhook is forgotten after 24 hours all the same, and
/// never after much less.
#[test]
fn only_the_time_between_looks_counts() {
    const HOUR: i64 = 3_600_000;
    let gone = names(&["gone"]);
    let mut state = State::default();
    let mut look = |missing: &BTreeSet<String>, now: i64| {
        // A new agent reads it.
        state = decode(&encode(&state).unwrap()).unwrap();
        state.note_missing(missing, now)
    };
    let nobody = BTreeSet::new();
    // It is seen again in between: the time begins anew.
    for hour in 0..20 {
        assert_eq!(look(&gone, hour * HOUR), nobody, "{hour}");
    }
    assert_eq!(look(&nobody, 20 * HOUR), nobody);
    for hour in 100..124 {
        assert_eq!(look(&gone, hour * HOUR), nobody, "{hour}");
    }
    assert_eq!(look(&gone, 124 * HOUR), gone);
    // With a clock that jumps, each look counts for an hour at most, and for nothing when the clock was set back.
    assert_eq!(look(&nobody, 125 * HOUR), nobody);
    let mut counted = 0;
    let mut now = 1_000 * HOUR;
    assert_eq!(look(&gone, now), nobody);
    for (hours, counts) in [(-900, 0), (10_000, 1), (1, 1), (-1, 0)]
        .into_iter()
        .cycle()
    {
        now += hours * HOUR;
        counted += counts;
        let forgotten = look(&gone, now);
        assert_eq!(forgotten == gone, counted >= 24, "{counted}");
        if counted == 24 {
            break;
        }
    }
    assert_eq!(state.looked, now);
    state.note_missing(&nobody, now);
    assert_eq!(state, State::default());
}

#[test]
fn errors_have_the_path_of_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::open(directory.path()).unwrap();
    fs::create_dir_all(directory.path().join("var/lib")).unwrap();
    let state = host.locate("/var/lib/skyhook-agent").unwrap();
    let (mut journal, _) = Journal::open(&state).unwrap();
    // The journal cannot be written: a directory that is not empty is in its place.
    fs::create_dir_all(state.path().join("journal/x")).unwrap();
    let written = State {
        next_step: 7,
        ..State::default()
    };
    fs::write(state.path().join("broken"), "").unwrap();
    let broken = Journal::open(&state.join("broken")).unwrap_err();
    for error in [
        journal.save(written).unwrap_err(),
        journal.revision("s-1").unwrap_err(),
        broken,
    ] {
        let text = skyhook_oci::chain(&error);
        assert!(text.contains("/var/lib/skyhook-agent"), "{text}");
        assert!(!text.contains(directory.path().to_str().unwrap()), "{text}");
    }
}
