//! A small core: packages one after the other in dependency order, those that interrupt the host after the drain.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::installed::PackageStates;
use skyhook_crds::lease::{PackageReport, Phase, protocol};
use skyhook_crds::package::{Interrupt, Package, PackageStatus, name_of};
use skyhook_crds::revision::{self, RevisionData, Work};
use skyhook_crds::{Stage, State};
use skyhook_nodeagent::machine::LeaseView;

use super::{Action, Core, Event, Report, Start, Step};

/// What stays on the host.
#[derive(Clone, Debug, Default)]
pub struct Known {
    states: PackageStates,
    /// What each package was last begun with, by name.
    content: BTreeMap<String, Package>,
}

/// One package's way.
#[derive(Clone, Debug)]
struct Task {
    key: String,
    stage: Stage,
    interrupt: Option<Interrupt>,
    /// `None` for one that is to go.
    package: Option<Package>,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum Doing {
    #[default]
    Idle,
    Step(Step),
    Asked,
    Looking,
    Interrupting {
        boot_id: String,
    },
    Retry {
        at: i64,
    },
}

/// The core.
#[derive(Clone, Debug, Default)]
pub struct Scripted {
    lease: String,
    known: Known,
    /// The first is worked on.
    tasks: Vec<Task>,
    doing: Doing,
    seen: LeaseView,
    needs_drain: bool,
    permit: bool,
    failed: bool,
    ended: Option<Phase>,
    next_step: u64,
    boot_id: String,
}

impl Scripted {
    fn set(&mut self, key: &str, stage: Stage, state: State) {
        if let Some(there) = self.known.states.get_mut(key) {
            there.stage = stage;
            there.state = state;
        }
    }

    fn advance(&mut self, now: i64) -> Vec<Action> {
        if self.ended.is_some() || self.is_busy() {
            return Vec::new();
        }
        if self.seen.stop.is_some() {
            self.ended = Some(Phase::Stopped);
            return Vec::new();
        }
        let due = match self.doing {
            Doing::Idle => true,
            Doing::Retry { at } => at <= now,
            Doing::Step(_) | Doing::Asked | Doing::Looking | Doing::Interrupting { .. } => false,
        };
        if self.seen.hold || !due {
            return Vec::new();
        }
        let Some(task) = self.tasks.first().cloned() else {
            self.ended = Some(Phase::Complete);
            return Vec::new();
        };
        if task.interrupt.is_some() && !self.permit {
            let Some(resource_version) = self.seen.drained.take() else {
                return Vec::new();
            };
            self.doing = Doing::Asked;
            return vec![Action::WriteRunning { resource_version }];
        }
        if task.stage == Stage::Interrupt {
            self.doing = Doing::Looking;
            return vec![Action::LookAtLease];
        }
        vec![self.run(&task)]
    }

    fn run(&mut self, task: &Task) -> Action {
        let step = Step {
            id: self.next_step,
            key: task.key.clone(),
            stage: task.stage,
            check: false,
            index: 0,
            content: String::new(),
            disruptive: task.interrupt.is_some(),
        };
        self.next_step += 1;
        if let Some(package) = &task.package {
            self.known
                .content
                .insert(package.name.clone(), package.clone());
            let status = PackageStatus {
                name: package.name.clone(),
                version: package.version.clone(),
                image: package.image.clone(),
                container_sha: package.container_sha.clone(),
                stage: task.stage,
                state: State::InProgress,
                restarts: 0,
            };
            self.known.states.entry(task.key.clone()).or_insert(status);
        }
        if !self.failed {
            self.set(&task.key, task.stage, State::InProgress);
        }
        self.doing = Doing::Step(step.clone());
        Action::RunStep(step)
    }

    fn stage_done(&mut self) {
        self.doing = Doing::Idle;
        self.failed = false;
        let Some(task) = self.tasks.first().cloned() else {
            return;
        };
        if task.package.is_none() {
            self.known.states.remove(&task.key);
            self.tasks.remove(0);
            return;
        }
        let name = name_of(&task.key).to_owned();
        if matches!(task.stage, Stage::Apply | Stage::Upgrade) {
            self.known
                .states
                .retain(|key, s| s.name != name || *key == task.key);
        }
        match task.stage.next(task.interrupt.is_some()) {
            Some(next) => {
                self.set(&task.key, next, State::InProgress);
                self.tasks[0].stage = next;
            }
            None => {
                self.set(&task.key, task.stage, State::Complete);
                self.tasks.remove(0);
            }
        }
    }

    fn restarted(&mut self, boot_id: String) -> Vec<Action> {
        let doing = std::mem::take(&mut self.doing);
        let rebooted = self.boot_id != boot_id;
        self.boot_id = boot_id;
        match doing {
            Doing::Step(step) => {
                self.doing = Doing::Step(step.clone());
                return vec![Action::AdoptStep(step)];
            }
            Doing::Interrupting { .. } if rebooted => self.stage_done(),
            Doing::Interrupting { .. }
            | Doing::Idle
            | Doing::Asked
            | Doing::Looking
            | Doing::Retry { .. } => {}
        }
        Vec::new()
    }

    fn step_exited(&mut self, now: i64, id: u64, succeeded: bool) {
        if !matches!(&self.doing, Doing::Step(step) if step.id == id) {
            return;
        }
        if succeeded {
            self.stage_done();
            return;
        }
        self.failed = true;
        if let Some(task) = self.tasks.first().cloned() {
            self.set(&task.key, task.stage, State::Erroring);
        }
        self.doing = Doing::Retry { at: now + 10_000 };
    }

    fn looked(&mut self, now: i64, stands: bool) -> Option<Action> {
        if self.doing != Doing::Looking || self.ended.is_some() {
            return None;
        }
        let interrupt = self.tasks.first().and_then(|task| task.interrupt.clone());
        let goes_on = stands && self.seen.stop.is_none() && !self.seen.hold;
        if let Some(interrupt) = interrupt.filter(|_| goes_on) {
            self.doing = Doing::Interrupting {
                boot_id: self.boot_id.clone(),
            };
            return Some(Action::Interrupt(interrupt));
        }
        self.doing = Doing::Retry { at: now + 5_000 };
        None
    }
}

impl Core for Scripted {
    type Known = Known;
    const REAPPLIES: bool = false;
    const UNINSTALLS: bool = false;

    fn begin(start: &Start<'_, Known>) -> Self {
        let mut known = reconcile(start);
        let tasks = tasks(&known, start.data);
        // What is to be done is on record from the beginning: a lease that is stopped before its turn has not brought
        // the package to the revision.
        for task in &tasks {
            if let (Some(there), Some(package)) = (known.states.get_mut(&task.key), &task.package) {
                there.stage = task.stage;
                there.state = State::InProgress;
                known.content.insert(package.name.clone(), package.clone());
            }
        }
        Self {
            lease: start.lease.metadata.uid.clone().unwrap_or_default(),
            needs_drain: tasks.iter().any(|task| task.interrupt.is_some()),
            tasks,
            known,
            next_step: start.next_step,
            boot_id: start.boot_id.to_owned(),
            ..Self::default()
        }
    }

    fn step(mut self, now: i64, event: Event) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        match event {
            Event::Begun
            | Event::Ticked
            | Event::ImageReady { .. }
            | Event::StageReady { .. }
            | Event::InterruptPrepared => {}
            Event::Restarted { boot_id } => actions = self.restarted(boot_id),
            Event::LeaseSeen(seen) => {
                // The write went through, though its answer was lost.
                self.permit |= seen.running && self.doing != Doing::Asked;
                self.seen = seen;
            }
            Event::StepExited { id, succeeded, .. } => self.step_exited(now, id, succeeded),
            Event::StepNotStarted { id, .. } => {
                if matches!(&self.doing, Doing::Step(step) if step.id == id) {
                    self.doing = Doing::Idle;
                }
            }
            Event::RunningWritten => {
                self.permit = true;
                self.doing = Doing::Idle;
            }
            Event::RunningRefused => self.doing = Doing::Idle,
            Event::LeaseLooked { lease, stands } if lease == self.lease => {
                actions.extend(self.looked(now, stands));
            }
            Event::LeaseLooked { .. } => {}
            Event::Interrupted => {
                if matches!(self.doing, Doing::Interrupting { .. }) {
                    self.stage_done();
                }
            }
        }
        actions.extend(self.advance(now));
        (self, actions)
    }

    fn wake_at(&self, _now: i64) -> Option<i64> {
        let waits = self.ended.is_none() && self.seen.stop.is_none() && !self.seen.hold;
        match self.doing {
            Doing::Retry { at } if waits => Some(at),
            Doing::Retry { .. }
            | Doing::Idle
            | Doing::Step(_)
            | Doing::Asked
            | Doing::Looking
            | Doing::Interrupting { .. } => None,
        }
    }

    fn is_busy(&self) -> bool {
        matches!(self.doing, Doing::Step(_) | Doing::Interrupting { .. })
    }

    fn report(&self) -> Report {
        let waits = self
            .tasks
            .first()
            .is_some_and(|task| task.interrupt.is_some());
        let phase = match self.ended {
            Some(phase) => phase,
            None if self.permit && self.failed => Phase::Running,
            None if self.failed => Phase::Erroring,
            None if self.permit => Phase::Running,
            None if waits => Phase::AwaitingDrain,
            None => Phase::Preparing,
        };
        let states = &self.known.states;
        Report {
            phase: Some(phase),
            needs_drain: Some(self.needs_drain),
            begun: None,
            packages: Some(states.iter().map(|(k, s)| (k.clone(), shown(s))).collect()),
        }
    }

    fn known(&self) -> Known {
        self.known.clone()
    }

    fn states(known: &Known) -> PackageStates {
        known.states.clone()
    }

    fn is_at(known: &Known, data: &RevisionData) -> bool {
        let recorded = RevisionData {
            packages: known.content.clone(),
            serial: false,
            ..RevisionData::default()
        };
        revision::work(&known.states, &BTreeSet::new(), Some(&recorded), data).is_empty()
    }

    fn next_step(&self) -> u64 {
        self.next_step
    }
}

fn shown(status: &PackageStatus) -> PackageReport {
    PackageReport {
        pending: false,
        left_behind: false,
        name: status.name.clone(),
        version: status.version.clone(),
        image: status.image.clone(),
        container_sha: status.container_sha.clone(),
        stage: status.stage,
        state: status.state,
        restarts: status.restarts,
        image_digest: None,
        lacks: String::new(),
        message: String::new(),
        since: None,
    }
}

/// Who wins when the Node's record and the journal differ .
fn reconcile(start: &Start<'_, Known>) -> Known {
    let spec = &start.lease.spec;
    let result = spec.stamp.as_ref().filter(|stamp| stamp.has_result());
    if protocol::is_of_another_host(start.lease, start.machine_id, "") {
        return Known::default();
    }
    match (start.known.cloned(), result) {
        (Some(journal), None) => journal,
        (Some(journal), Some(_)) if journal.states == spec.installed => journal,
        (journal, _) => Known {
            states: spec.installed.clone(),
            content: journal.map(|known| known.content).unwrap_or_default(),
        },
    }
}

fn tasks(known: &Known, data: &RevisionData) -> Vec<Task> {
    let recorded = RevisionData {
        packages: known.content.clone(),
        serial: false,
        ..RevisionData::default()
    };
    let work = revision::work(&known.states, &BTreeSet::new(), Some(&recorded), data);
    let unwanted = known
        .states
        .iter()
        .filter(|(_, status)| !data.packages.contains_key(&status.name));
    let mut tasks: Vec<Task> = unwanted
        .map(|(key, _)| Task {
            key: key.clone(),
            stage: Stage::Uninstall,
            interrupt: None,
            package: None,
        })
        .collect();
    let mut done: BTreeSet<String> = BTreeSet::new();
    while let Some(name) = skyhook_crds::graph::runnable(&data.packages, &done).first() {
        done.insert((*name).to_owned());
        if let Some((work, package)) = work.get(*name).zip(data.packages.get(*name)) {
            tasks.push(task(known, package, *work));
        }
    }
    tasks
}

fn task(known: &Known, package: &Package, work: Work) -> Task {
    let key = package.key();
    let begun_with_this = known.content.get(&package.name) == Some(package);
    let stage = match work {
        Work::Config => Stage::Config,
        Work::Interrupt => Stage::Interrupt,
        Work::Version => Stage::Upgrade,
        // The simulation gives packages that go only to agents that run the real machine.
        Work::Unfinished | Work::Removed | Work::Uninstall | Work::Blocked => {
            match known.states.get(&key) {
                // A cycle with the same content goes on where it stands.
                Some(status) if begun_with_this && status.stage != Stage::Uninstall => status.stage,
                Some(_) | None => Stage::Apply,
            }
        }
    };
    let interrupt = package
        .interrupt
        .clone()
        .filter(|_| stage != Stage::PostInterrupt);
    Task {
        key,
        stage,
        interrupt,
        package: Some(package.clone()),
    }
}
