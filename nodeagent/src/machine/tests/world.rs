//! A simulated host that performs the effects of the machine. Tests can make steps and pulls fail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use skyhook_crds::lease::{InterruptionLeaseSpec, Phase, SkyhookRef, StopReason};
use skyhook_crds::package::{Interrupt, InterruptType, PackageStatus};
use skyhook_crds::{InterruptionLease, Package, Stage, State};
use skyhook_oci::RetryClass;

use super::super::attempts::{StepLimit, step_limit};
use super::super::progress::Limits;
use super::super::reconcile::of_lease;
use super::super::*;

/// The packages of a Skyhook.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub packages: BTreeMap<String, Package>,
    pub serial: bool,
    /// Packages that the revision leaves on the host.
    pub left_behind: BTreeSet<String>,
}

impl Spec {
    pub(crate) fn of(packages: &[Package]) -> Self {
        Self {
            packages: packages
                .iter()
                .map(|p| (p.name.clone(), p.clone()))
                .collect(),
            serial: false,
            left_behind: BTreeSet::new(),
        }
    }

    /// The specification as the coordinator makes a revision of it after this one: packages that are no longer there, and must
    /// not be uninstalled, are left behind.
    pub(crate) fn after(self, before: &Self) -> Self {
        let stay = before.packages.values().filter(|p| p.stays_behind());
        let stay = stay.map(|p| &p.name).chain(&before.left_behind);
        let gone = stay.filter(|name| !self.packages.contains_key(*name));
        Self {
            left_behind: gone.cloned().collect(),
            ..self
        }
    }

    pub(crate) fn serial(self) -> Self {
        Self {
            serial: true,
            ..self
        }
    }
}

pub(crate) fn pkg(name: &str, version: &str) -> Package {
    Package {
        name: name.into(),
        version: version.into(),
        image: format!("r/{name}"),
        ..Package::default()
    }
}

/// A simulated host and its agent.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub now: i64,
    pub run: Option<Progress>,
    pub queue: VecDeque<Effect>,
    /// Steps and interrupts that ran on the host, in order.
    pub log: Vec<String>,
    pub log_checks: bool,
    pub boot: u32,
    leases: u32,
    faults: BTreeMap<String, u32>,
    images: BTreeMap<String, u32>,
    /// The class of the error when a pull fails.
    pub pull_class: RetryClass,
    entries: Entries,
    held: bool,
    pub drained: bool,
    stop: Option<StopReason>,
    /// Results of the steps that ran. A restarted agent finds them.
    pub steps: BTreeMap<u64, Outcome>,
    /// Packages with a running step.
    pub running: BTreeMap<String, u64>,
    /// How long each step says that it ran.
    pub step_ms: u64,
    /// What packages request and the node does not have.
    pub lacking: BTreeMap<String, String>,
    /// The limits in the settings of the agent.
    pub limits: Limits,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            now: 1_000_000,
            run: None,
            queue: VecDeque::new(),
            log: Vec::new(),
            log_checks: false,
            boot: 1,
            leases: 0,
            faults: BTreeMap::new(),
            images: BTreeMap::new(),
            pull_class: RetryClass::Transient,
            entries: Entries::new(),
            held: false,
            drained: true,
            stop: None,
            steps: BTreeMap::new(),
            running: BTreeMap::new(),
            step_ms: 0,
            lacking: BTreeMap::new(),
            limits: Limits::default(),
        }
    }

    pub(crate) fn progress(&self) -> &Progress {
        self.run.as_ref().expect("a lease was taken")
    }

    pub(crate) fn ended(&self) -> Option<Phase> {
        self.progress().ended
    }

    pub(crate) fn entry(&self, key: &str) -> &Entry {
        &self.progress().entries[key]
    }

    pub(crate) fn fail(&mut self, what: &str, times: u32) {
        self.faults.insert(what.to_owned(), times);
    }

    pub(crate) fn no_image(&mut self, key: &str, times: u32) {
        self.images.insert(key.to_owned(), times);
    }

    pub(crate) fn adopt(&mut self, name: &str, version: &str, stage: Stage, state: State) {
        let entry = Entry::adopted(&PackageStatus {
            name: name.into(),
            version: version.into(),
            image: format!("r/{name}"),
            container_sha: None,
            stage,
            state,
            restarts: 0,
        });
        self.entries.insert(entry.key(), entry);
    }

    /// NVIDIA Skyhook left a configured package that waits for an interrupt.
    pub(crate) fn adopt_waiting(&mut self, name: &str, version: &str, interrupt: Interrupt) {
        let status = PackageStatus {
            name: name.into(),
            version: version.into(),
            image: format!("r/{name}"),
            container_sha: None,
            stage: Stage::Config,
            state: State::Complete,
            restarts: 0,
        };
        let spec = InterruptionLeaseSpec {
            installed: [(format!("{name}|{version}"), status)].into(),
            interrupts_left: [(name.to_owned(), interrupt)].into(),
            ..InterruptionLeaseSpec::default()
        };
        let lease = InterruptionLease::new("worker-1", spec);
        self.entries.extend(of_lease(None, &lease, "", "").0);
    }

    /// Takes a new lease, at a revision of its own.
    pub(crate) fn lease(&mut self, spec: &Spec) {
        let revision = format!("s-{}", self.leases + 1);
        self.lease_at(spec, &revision);
    }

    /// Takes a new lease at this revision.
    pub(crate) fn lease_at(&mut self, spec: &Spec, revision: &str) {
        let next_step = self.run.as_ref().map_or(1, |r| r.next_step);
        if let Some(run) = self.run.take() {
            self.entries = run.entries;
        }
        self.leases += 1;
        self.stop = None;
        self.run = Some(Progress {
            lease: format!("lease-{}", self.leases),
            skyhook: SkyhookRef {
                name: "s".into(),
                uid: "u".into(),
                generation: i64::from(self.leases),
            },
            revision: revision.to_owned(),
            limits: self.limits,
            serial: spec.serial,
            wanted: spec
                .packages
                .iter()
                .map(|(name, p)| {
                    let lacks = self.lacking.get(name).cloned();
                    let wanted = Wanted::of(p);
                    (name.clone(), Wanted { lacks, ..wanted })
                })
                .collect(),
            left_behind: spec.left_behind.clone(),
            node_seen_at: self.now,
            entries: self.entries.clone(),
            next_step,
            begun: Some(false),
            boot_id: self.boot.to_string(),
            ..Progress::default()
        });
        self.input_queued(Event::LeaseAccepted);
        self.see();
    }

    /// Takes a new lease whose form this agent does not know.
    pub(crate) fn lease_beyond(&mut self, why: &str) {
        self.run = Some(Progress {
            lease: "lease-beyond".to_owned(),
            entries: self.entries.clone(),
            next_step: 1,
            boot_id: self.boot.to_string(),
            too_old: Some(why.to_owned()),
            ..Progress::default()
        });
        self.input_queued(Event::LeaseAccepted);
        self.see();
    }

    pub(crate) const fn entries(&self) -> &Entries {
        &self.entries
    }

    /// The watch shows the lease. With `drained`, the lease says that the node is drained.
    pub(crate) fn see(&mut self) {
        let view = LeaseView {
            stop: self.stop,
            hold: self.held,
            drained: self.drained.then(|| "7".into()),
            running: false,
        };
        self.input_queued(Event::LeaseSeen(view));
    }

    pub(crate) fn hold(&mut self, held: bool) {
        self.held = held;
        self.see();
    }

    pub(crate) fn stop(&mut self, reason: StopReason) -> Vec<Effect> {
        self.stop = Some(reason);
        let view = LeaseView {
            stop: Some(reason),
            ..LeaseView::default()
        };
        let effects = self.input(Event::LeaseSeen(view));
        self.queue.extend(effects.clone());
        effects
    }

    /// Sends an event to the machine and returns the effects without performing them.
    pub(crate) fn input(&mut self, event: Event) -> Vec<Effect> {
        let run = self.run.take().expect("a lease was taken");
        let input = Input {
            now: self.now,
            event,
        };
        let (run, effects) = step(run, input);
        let wake_at = wake_at(&run, self.now);
        assert!(
            wake_at.is_none_or(|at| at > self.now),
            "it waits for what was, and would never rest: {run:#?}"
        );
        self.run = Some(run);
        effects
    }

    pub(crate) fn input_queued(&mut self, event: Event) {
        let effects = self.input(event);
        self.queue.extend(effects);
    }

    /// Performs effects until one of this kind is next. That effect is not performed, and becomes the last in the
    /// queue.
    pub(crate) fn settle_until(&mut self, is_it: impl Fn(&Effect) -> bool) {
        for _ in 0..100_000 {
            let effect = self.queue.pop_front().expect("it never came");
            if is_it(&effect) {
                self.queue.push_back(effect);
                return;
            }
            self.perform(effect);
        }
    }

    /// Performs effects while `go_on` returns true.
    pub(crate) fn settle_while(&mut self, go_on: impl Fn(&Self) -> bool) {
        while go_on(self) {
            let effect = self.queue.pop_front().expect("it never changes");
            self.perform(effect);
        }
    }

    /// Performs all effects until the machine waits for a time.
    pub(crate) fn settle_quiet(&mut self) {
        for _ in 0..1_000_000 {
            let Some(effect) = self.queue.pop_front() else {
                return;
            };
            self.perform(effect);
        }
        panic!("it never comes to rest");
    }

    /// Performs all effects and lets time pass, until the work on the lease has ended.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            self.settle_quiet();
            if self.ended().is_some() {
                return;
            }
            let run = self.progress();
            let at =
                wake_at(run, self.now).unwrap_or_else(|| panic!("waits for nothing: {run:#?}"));
            self.now = self.now.max(at);
            self.input_queued(Event::Ticked);
        }
        panic!("never ends: {:#?}", self.progress());
    }

    /// Performs all effects and lets time pass, until the work on the lease has ended or waits for nothing that comes by
    /// itself.
    pub(crate) fn settle_to_rest(&mut self) {
        for _ in 0..10_000 {
            self.settle_quiet();
            let Some(at) = wake_at(self.progress(), self.now) else {
                return;
            };
            self.now = self.now.max(at);
            self.input_queued(Event::Ticked);
        }
        panic!("never rests: {:#?}", self.progress());
    }

    pub(crate) fn settle_stopped(&mut self) {
        self.settle_quiet();
    }

    /// Kills the agent. The queued effects are lost, and a new agent reads the journal.
    pub(crate) fn kill_agent(&mut self) {
        self.queue.clear();
        self.running.clear();
        let boot_id = self.boot.to_string();
        self.input_queued(Event::Restarted { boot_id });
        self.see();
    }

    /// The host loses its power and boots again: running steps are lost too.
    pub(crate) fn power_cut(&mut self) {
        self.boot += 1;
        self.kill_agent();
    }

    /// Performs an effect, and sends its event to the machine.
    pub(crate) fn perform(&mut self, effect: Effect) {
        let event = match effect {
            Effect::PullImage { key } => self.pull(key),
            Effect::PrepareStage { key, .. } => Event::StageReady {
                key,
                plan: StepPlan {
                    main: vec![true],
                    checks: 1,
                },
            },
            Effect::RunStep { key, id, half, .. } => {
                let limit = step_limit(self.progress(), &key, None).map(StepLimit::duration);
                let late = limit.filter(|limit| *limit < Duration::from_millis(self.step_ms));
                let outcome = match (self.run_step(&key, id, half), late) {
                    (Outcome::Succeeded, Some(_)) => Outcome::Failed("took too long".into()),
                    (outcome, _) => outcome,
                };
                self.exited(key, id, outcome)
            }
            Effect::AdoptStep { key, id, .. } => match self.steps.get(&id) {
                Some(outcome) => self.exited(key, id, outcome.clone()),
                None => Event::StepNotStarted { key, id },
            },
            Effect::EndStep { .. } => Event::Ticked,
            Effect::WriteRunning { .. } => Event::RunningWritten,
            Effect::LookAtLease => Event::LeaseLooked {
                lease: self.progress().lease.clone(),
                stands: true,
            },
            Effect::LookAtNode => Event::NodeLooked {
                lacking: self.lacking.clone(),
            },
            Effect::PrepareInterrupt { .. } => Event::InterruptPrepared {
                before: BTreeMap::new(),
            },
            Effect::CallOffInterrupt => Event::Ticked,
            Effect::Interrupt { interrupt, .. } => {
                if interrupt.kind == InterruptType::Reboot {
                    self.log.push("reboot".into());
                    self.power_cut();
                    return;
                }
                let what = format!("service {}", interrupt.services.join(","));
                self.log.push(what.clone());
                if self.is_to_fail(what) {
                    Event::InterruptFailed {
                        reason: "on order".into(),
                        asked: false,
                    }
                } else {
                    Event::Interrupted
                }
            }
        };
        self.input_queued(event);
    }

    fn is_to_fail(&mut self, what: String) -> bool {
        let left = self.faults.entry(what).or_default();
        let fails = *left > 0;
        *left = left.saturating_sub(1);
        fails
    }

    fn exited(&self, key: String, id: u64, outcome: Outcome) -> Event {
        Event::StepExited {
            key,
            id,
            outcome,
            took_ms: self.step_ms,
        }
    }

    fn pull(&mut self, key: String) -> Event {
        let left = self.images.entry(key.clone()).or_default();
        if *left > 0 {
            *left -= 1;
            return Event::ImageFailed {
                key,
                reason: "no such image".into(),
                class: self.pull_class,
            };
        }
        Event::ImageReady {
            key,
            digest: Some("sha256:x".into()),
        }
    }

    /// Runs a step to its end and keeps its result.
    pub(crate) fn run_step(&mut self, key: &str, id: u64, half: Half) -> Outcome {
        assert!(!self.steps.contains_key(&id), "step {id} runs twice");
        let stage = self.entry(key).stage;
        let mode = match half {
            Half::Main => stage.as_str(),
            Half::Check => stage.check().expect("an interrupt has no steps"),
        };
        let what = format!("{} {mode}", key.replace('|', "@"));
        if half == Half::Main || self.log_checks {
            self.log.push(what.clone());
        }
        let outcome = if self.is_to_fail(what) {
            Outcome::Failed("on order".into())
        } else {
            Outcome::Succeeded
        };
        self.steps.insert(id, outcome.clone());
        outcome
    }
}

/// The log without versions.
pub(crate) fn run_lines(log: &[String]) -> String {
    log.iter()
        .map(|line| match line.split_once('@') {
            Some((name, rest)) => {
                let mode = rest.split_once(' ').map_or("", |(_, mode)| mode);
                format!("{name} {mode}")
            }
            None => line.clone(),
        })
        .collect::<Vec<_>>()
        .join("; ")
}
