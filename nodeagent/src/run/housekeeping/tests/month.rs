//! A node whose package fails for a month, with a real directory and a simulated clock.

use std::fs;
use std::time::SystemTime;

use super::super::*;
use crate::journal::{Journal, State};
use crate::logs::{LogPair, Stream};
use crate::machine::tests::world::{Spec, World, pkg};
use crate::machine::{Effect, Event, Outcome, StepPlan, wake_at};
use crate::supervise::LogFile;

const BEGIN: i64 = 1_700_000_000_000;
const MONTH: i64 = 30 * 86_400_000;
const CHECKS: usize = 2;
/// How often the user pushes a new version of the package.
const VERSION: i64 = 3 * 86_400_000;

/// The files that the agent and its supervisors write to the host of a [`World`].
struct Host {
    directory: tempfile::TempDir,
    journal: Journal,
    most_steps: usize,
    most_files: usize,
    most_journal: u64,
}

impl Host {
    fn new() -> Self {
        // Use a file system in memory: hundreds of thousands of files would keep a disk busy for minutes.
        let memory = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
        let temporary = std::env::temp_dir();
        let directory = tempfile::tempdir_in(memory.unwrap_or(&temporary)).unwrap();
        let (journal, _) = {
            let state = directory.path().join("state");
            Journal::open(&state.as_path().into())
        }
        .unwrap();
        Self {
            directory,
            journal,
            most_steps: 0,
            most_files: 0,
            most_journal: 0,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Writes the files that a supervisor writes for a step.
    fn supervise(&self, id: u64, index: usize, time: i64) {
        let step = self.at("state/steps").join(format!("{id:08}"));
        fs::create_dir_all(&step).unwrap();
        for file in ["pid", "supervisor.log", "handed-over", "result.json"] {
            fs::write(step.join(file), "x").unwrap();
        }
        let log = LogFile {
            directory: self.at(&format!("logs/s/aa/1.0.{}", (time - BEGIN) / VERSION)),
            step: format!("check-{index}.sh"),
            package: "aa".to_owned(),
            mode: "apply-check".to_owned(),
        };
        let timestamp = jiff::Timestamp::from_millisecond(time).unwrap();
        let mut pair = LogPair::create(&log, timestamp).unwrap();
        pair.line(Stream::Err, &[b'x'; 1000]);
        pair.flush();
        let name = timestamp.strftime("%Y-%m-%d-%H%M%S").to_string();
        for entry in fs::read_dir(&log.directory).unwrap() {
            let path = entry.unwrap().path();
            if path.to_str().unwrap().contains(&name) {
                let file = fs::File::options().append(true).open(&path).unwrap();
                file.set_modified(simulated(time)).unwrap();
            }
        }
    }

    /// Does what the agent does after each event: saves the journal and removes the directories of steps that have
    /// ended.
    fn commit(&mut self, world: &World) {
        let before = self.journal.state.run.as_ref().map(Progress::steps);
        let state = State {
            run: world.run.clone(),
            ..State::default()
        };
        // The journal file is written only in `measure`: each write waits for the disk.
        self.journal.state = state;
        let after = world.progress().steps();
        let over: BTreeSet<u64> = &before.unwrap_or_default() - &after;
        if !over.is_empty() {
            let files = Root::open("/").unwrap();
            remove_steps(&files, &self.at("state/steps"), |id| over.contains(&id));
        }
    }

    fn measure(&mut self, world: &World) {
        let state = State {
            run: world.run.clone(),
            next_step: world.progress().next_step + 1,
            ..State::default()
        };
        self.journal.save(state).unwrap();
        let steps = fs::read_dir(self.at("state/steps")).map_or(0, Iterator::count);
        self.most_steps = self.most_steps.max(steps);
        self.most_files = self.most_files.max(files(self.directory.path()));
        let journal = fs::metadata(self.at("state/journal")).unwrap().len();
        self.most_journal = self.most_journal.max(journal);
    }
}

fn simulated(time: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(time.try_into().unwrap())
}

fn files(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                files(&entry.path())
            } else {
                1
            }
        })
        .sum()
}

#[test]
fn a_node_that_errs_for_a_month_stays_within_its_bounds() {
    let mut host = Host::new();
    let mut world = World::new();
    world.now = BEGIN;
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    let mut runs = 0_usize;
    let mut look = BEGIN;
    while world.now < BEGIN + MONTH {
        let Some(effect) = world.queue.pop_front() else {
            world.now = wake_at(world.progress(), world.now).expect("it is tried again");
            world.input_queued(Event::Ticked);
            continue;
        };
        if let Effect::PrepareStage { key, .. } = effect {
            let plan = StepPlan {
                main: vec![],
                checks: CHECKS,
            };
            world.input_queued(Event::StageReady { key, plan });
        } else if let Effect::RunStep { key, id, index, .. } = effect {
            host.commit(&world);
            host.supervise(id, index, world.now);
            runs += 1;
            let outcome = Outcome::Failed(format!("check {index} {}", "x".repeat(2_100)));
            world.input_queued(Event::StepExited {
                key,
                id,
                outcome,
                took_ms: 0,
            });
            host.commit(&world);
        } else {
            world.perform(effect);
        }
        if world.now >= look {
            look += 12 * 3_600_000;
            let now = simulated(world.now);
            let bytes = prune(&host.at("logs").as_path().into(), Bounds::default(), now);
            assert!(bytes <= Bounds::default().package, "{bytes} bytes of logs");
            host.measure(&world);
            let entry = world.entry("aa|1.0.0");
            assert!(entry.message.len() <= 2_048, "{}", entry.message.len());
        }
    }
    assert!(runs > 16_000, "it was tried {runs} times");
    assert!(
        host.most_steps <= CHECKS,
        "{} step directories",
        host.most_steps
    );
    // For three versions, two log files for each of five runs of each step; and a few files of the agent and of running
    // steps.
    let most = 3 * CHECKS * 5 * 2 + 4 + 16;
    assert!(host.most_files <= most, "{} files", host.most_files);
    assert!(host.most_journal < 64 << 10, "{} bytes", host.most_journal);
}
