//! The agent's state, and how an input becomes progress.
#![expect(clippy::disallowed_methods, reason = "the shell reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::StopReason;
use skyhook_crds::package::Resources;
use skyhook_crds::revision::RevisionData;
use skyhook_oci::Credentials;
use tokio::sync::OnceCell;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::begin::Begun;
use super::effects::StepDone;
use super::writer::{Writer, Written};
use crate::config::Settings;
use crate::host::exec::Supervisors;
use crate::host::systemd::Bus;
use crate::host::{Host, identity};
use crate::image::Images;
use crate::journal::{Journal, State};
use crate::lease::{ApiError, LeaseApi, LeaseEvent};
use crate::machine::{self, Effect, Event, Input, LeaseView, Progress};
use crate::report::{self, HostFacts};
use crate::stage::Prepared;
use crate::stage::metadata::NodeFacts;
use crate::supervise::Limit;

/// Something that a task or the watch has for the agent.
#[derive(Debug)]
pub(super) enum Note {
    Lease(LeaseEvent),
    Event(Event),
    /// A lease was accepted, or could not be.
    Begun(Box<Begun>),
    Prepared {
        key: String,
        prepared: Box<Prepared>,
        ready: bool,
    },
    StepDone(Box<StepDone>),
    Written(Box<Written>),
    KeptTrue(Box<Result<InterruptionLease, ApiError>>),
    Node(Box<NodeFacts>),
    Facts(Box<RunFacts>),
    /// Bytes of ours on the host's disk.
    Disk(u64),
    /// Skyhooks that the host remembers, and the cluster does not have any more.
    Gone(BTreeSet<String>),
    Woken,
}

/// What is asked for once per lease.
#[derive(Clone, Debug, Default)]
pub(super) struct RunFacts {
    pub node: NodeFacts,
    pub default_resources: Option<Resources>,
    pub limits: Vec<Limit>,
}

/// The agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub settings: Rc<Settings>,
    pub host: Host,
    pub facts: HostFacts,
    pub api: LeaseApi,
    pub images: Images,
    pub bus: Rc<Bus>,
    pub runner: Rc<Supervisors>,
    pub journal: Journal,
    pub notes: UnboundedSender<Note>,
    /// The lease as the watch showed it last.
    pub lease: Option<InterruptionLease>,
    pub node_uid: Option<String>,
    /// Node UID, as a lease named it, that the Node was last read for.
    pub node_asked_for: Option<String>,
    /// A task is finding out about the lease.
    pub is_beginning: bool,
    /// When to try to begin again.
    pub begin_at: Option<Instant>,
    pub begin_failures: u32,
    pub writer: Writer,
    /// Stages that can be run, by package.
    pub stages: BTreeMap<String, Rc<Prepared>>,
    pub revisions: BTreeMap<String, Rc<RevisionData>>,
    pub run_facts: Option<Rc<RunFacts>>,
    /// Registry credentials, read when the first image of a lease is pulled.
    pub credentials: Rc<OnceCell<Credentials>>,
    /// When logs are looked at again, while steps run.
    pub prune_at: Option<Instant>,
    /// Bytes of ours on the host's disk, as counted last.
    pub disk_bytes: Option<i64>,
    /// Revision that a stop names, whose packages were compared with those that run.
    pub compared: Option<String>,
    /// What keeps the agent from working, for the report.
    pub trouble: Option<String>,
    /// Nothing that is due is begun before this: the journal could not be written.
    pub quiet_until: Option<Instant>,
    /// Why this host cannot be worked on at all.
    pub unable: Option<String>,
    /// What is under way before the host is interrupted.
    pub preparation: super::interrupt::Preparation,
    /// Steps of the machine that are not in the journal yet.
    pub staged: Option<Staged>,
}

/// Steps of the machine that wait to be written, with what is to be done then. Inputs that come while a write is under
/// way share the next one.
#[derive(Debug)]
pub(super) struct Staged {
    progress: Progress,
    effects: Vec<Effect>,
    events: Vec<Event>,
}

impl Agent {
    /// Opens what is on the host, and takes up what an earlier agent left.
    pub(super) fn start(
        settings: Settings,
        host: Host,
        api: LeaseApi,
        bus: Rc<Bus>,
        unable: Option<String>,
        notes: UnboundedSender<Note>,
    ) -> anyhow::Result<Self> {
        let state = host.files.locate(&settings.state_dir)?;
        let facts = HostFacts {
            boot_id: host.boot_id()?,
            machine_id: host.machine_id()?,
            host_id: identity::host_id(&state)?,
            epoch: String::new(),
            disk_bytes: None,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (journal, aside) = Journal::open(&state)?;
        if let Some(aside) = aside {
            tracing::error!(kept = %aside.display(), "the journal cannot be believed: the Node's record is taken for this host");
        }
        let images = Images::open(
            &state.join("images"),
            &host.files,
            settings.registries.clone(),
        )?;
        let runner = Rc::new(Supervisors::new(
            Some(Rc::clone(&bus)),
            state.join("steps"),
            settings.state_dir.join("steps"),
        ));
        let mut agent = Self {
            settings: Rc::new(settings),
            host,
            facts,
            api,
            images,
            bus,
            runner,
            journal,
            notes,
            lease: None,
            node_uid: None,
            node_asked_for: None,
            is_beginning: false,
            begin_at: None,
            begin_failures: 0,
            writer: Writer::default(),
            stages: BTreeMap::new(),
            revisions: BTreeMap::new(),
            run_facts: None,
            credentials: Rc::default(),
            prune_at: None,
            disk_bytes: None,
            compared: None,
            trouble: None,
            quiet_until: None,
            unable,
            preparation: super::interrupt::Preparation::default(),
            staged: None,
        };
        agent.look_around();
        agent.take_up(&state.join("steps"))?;
        Ok(agent)
    }

    /// Puts the journal of another machine away, and tells the machine that the agent was started anew.
    fn take_up(&mut self, steps: &std::path::Path) -> anyhow::Result<()> {
        let mut state = self.journal.state.clone();
        if state.machine_id != self.facts.machine_id {
            state = State {
                machine_id: self.facts.machine_id.clone(),
                next_step: state.next_step,
                ..State::default()
            };
        }
        self.note_boot(&mut state);
        let last = super::housekeeping::last_step(steps);
        state.next_step = state.next_step.max(last + 1);
        if let Some(run) = &mut state.run {
            run.next_step = run.next_step.max(state.next_step);
            run.reboot_cap = self.settings.reboot_cap;
            run.unable.clone_from(&self.unable);
        }
        self.journal.save(state)?;
        if self.journal.state.run.is_some() {
            let boot_id = self.facts.boot_id.clone();
            self.send(Note::Event(Event::Restarted { boot_id }));
        }
        Ok(())
    }

    /// Puts on record which boot this is, and what that means for what was done in earlier ones.
    fn note_boot(&mut self, state: &mut State) {
        let epoch = state.epoch_in(&self.facts.boot_id);
        let is_lost = epoch != state.epoch && !state.epoch.is_empty();
        if is_lost && self.settings.reapply_on_reboot {
            tracing::warn!("the host was rebooted, and not by Skyhook: everything is done again");
            if let Some(run) = &mut state.run {
                machine::reapply(run, now());
            }
        }
        state.boot_id.clone_from(&self.facts.boot_id);
        state.epoch.clone_from(&epoch);
        self.facts.epoch = epoch;
    }

    /// Takes one note in.
    pub(super) fn take(&mut self, note: Note) {
        match note {
            Note::Lease(event) => self.lease_event(event),
            Note::Event(event) => self.feed(event),
            Note::Begun(begun) => self.begun(*begun),
            Note::Prepared {
                key,
                prepared,
                ready,
            } => {
                let plan = prepared.plan.clone();
                self.stages.insert(key.clone(), Rc::from(prepared));
                if ready {
                    self.feed(Event::StageReady { key, plan });
                }
            }
            Note::StepDone(done) => self.step_done(*done),
            Note::Written(written) => self.written(*written),
            Note::KeptTrue(result) => self.kept_true(*result),
            Note::Node(node) => {
                self.is_beginning = false;
                self.node_uid = Some(node.uid.clone());
                self.look_at_lease();
            }
            Note::Facts(facts) => self.run_facts = Some(Rc::from(facts)),
            Note::Disk(bytes) => self.disk_bytes = i64::try_from(bytes).ok(),
            Note::Gone(gone) => self.forget_skyhooks(&gone),
            Note::Woken => self.woken(),
        }
    }

    pub(super) fn send(&self, note: Note) {
        // The loop that receives lives as long as the agent.
        let _sent = self.notes.send(note);
    }

    /// The lease that is worked on.
    pub(super) fn run(&self) -> Option<&Progress> {
        match &self.staged {
            Some(staged) => Some(&staged.progress),
            None => self.journal.state.run.as_ref(),
        }
    }

    /// True when the lease that the watch shows is the one that is worked on.
    pub(super) fn is_current(&self) -> bool {
        let seen = self.lease.as_ref().and_then(|l| l.metadata.uid.as_ref());
        self.run().is_some_and(|run| Some(&run.lease) == seen)
    }

    /// Steps the machine. What it says is done by [`Self::commit`].
    pub(super) fn feed(&mut self, event: Event) {
        let Some(before) = self.run().cloned() else {
            return;
        };
        self.stage(before, event);
    }

    /// Steps the machine from this progress.
    pub(super) fn stage(&mut self, before: Progress, event: Event) {
        let input = Input {
            now: now(),
            event: event.clone(),
        };
        let (mut after, effects) = machine::step(before.clone(), input);
        report::mark_since(&mut after, now());
        self.conclude_stages(&before, &after);
        self.conclude_interrupt(&before, &after);
        match &mut self.staged {
            Some(staged) => {
                staged.progress = after;
                staged.effects.extend(effects);
                staged.events.push(event);
            }
            None => {
                self.staged = Some(Staged {
                    progress: after,
                    effects,
                    events: vec![event],
                });
            }
        }
    }

    /// Writes the journal, then performs what the machine said, then reports.
    pub(super) fn commit(&mut self) {
        // What ends may make room for what waited for the end.
        while let Some(staged) = self.staged.take() {
            let ended =
                staged.progress.ended.is_some()
                    && self.journal.state.run.as_ref().is_none_or(|run| {
                        run.ended.is_none() || run.lease != staged.progress.lease
                    });
            let mut state = self.journal.state.clone();
            let before = state.run.as_ref().map(Progress::steps).unwrap_or_default();
            state.put_aside(&staged.progress.lease, now());
            state.next_step = staged.progress.next_step;
            state.run = Some(staged.progress);
            if let Err(error) = self.journal.save(state) {
                if staged.events.contains(&Event::Begun) {
                    self.retry_begin(1);
                    self.journal_failed(&error, Vec::new());
                } else {
                    self.journal_failed(&error, staged.events);
                }
                return;
            }
            self.trouble = None;
            self.quiet_until = None;
            self.steps_over(&before);
            for effect in staged.effects {
                tracing::debug!(?effect, "effect");
                self.perform(effect);
            }
            if ended {
                self.run_ended();
            }
        }
        self.write_status();
        self.prepare_reboot_when_reported();
    }

    /// Nothing was done: the same inputs are tried again when there may be room.
    pub(super) fn journal_failed(&mut self, error: &dyn std::error::Error, events: Vec<Event>) {
        let text = skyhook_oci::chain(error);
        if self.trouble.is_none() {
            tracing::error!(error = %text, "the journal cannot be written: nothing is done");
        }
        self.trouble = Some(format!("the host's journal cannot be written: {text}"));
        self.write_status();
        let pause = Duration::from_secs(2);
        self.quiet_until = Some(Instant::now() + pause);
        // Of the lease, what it says by then counts.
        let is_seen = |event: &Event| matches!(event, Event::LeaseSeen(_));
        if events.iter().any(is_seen) {
            self.begin_at.get_or_insert(Instant::now() + pause);
        }
        let notes = self.notes.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            let is_kept = |event: &Event| !is_seen(event) && *event != Event::Ticked;
            for event in events.into_iter().filter(is_kept) {
                let _sent = notes.send(Note::Event(event));
            }
        });
    }

    /// Writes what the host is to remember of stages that are done.
    fn conclude_stages(&mut self, before: &Progress, after: &Progress) {
        for (key, entry) in &before.entries {
            let same = after.entries.get(key).is_some_and(|e| {
                e.stage == entry.stage && e.state != skyhook_crds::State::Complete
            });
            let was_done = entry.state == skyhook_crds::State::Complete;
            if same || was_done {
                continue;
            }
            if let Some(stage) = self.stages.remove(key)
                && stage.stage == entry.stage
                && let Err(error) = stage.note_done()
            {
                tracing::warn!(package = %key, error = %skyhook_oci::chain(&error), "history cannot be written");
            }
        }
    }

    fn run_ended(&mut self) {
        let Some(run) = self.run() else { return };
        tracing::info!(lease = %run.lease, skyhook = %run.skyhook.name, ended = ?run.ended, "the lease's work has ended");
        self.stages.clear();
        self.revisions.clear();
        self.run_facts = None;
        self.credentials = Rc::default();
        let bus = Rc::clone(&self.bus);
        tokio::task::spawn_local(async move { bus.release().await });
        self.tidy();
        // Another lease may have been waiting for this end.
        if !self.is_current() {
            self.look_at_lease();
        }
    }

    fn lease_event(&mut self, event: LeaseEvent) {
        match event {
            LeaseEvent::Seen(lease) => {
                // Another lease is another story; of the same one an answer may have told more than this.
                let same = |held: &InterruptionLease| held.metadata.uid == lease.metadata.uid;
                if self.lease.as_ref().is_some_and(same) {
                    self.saw(*lease);
                } else {
                    self.lease = Some(*lease);
                }
            }
            LeaseEvent::Gone => self.lease = None,
        }
        self.look_at_lease();
    }

    /// Decides about the lease as it was seen last.
    pub(super) fn look_at_lease(&mut self) {
        if self.is_current() {
            self.writer.seen(self.lease.as_ref());
            let view = self.view();
            self.feed(Event::LeaseSeen(view));
            self.compare_revision();
            return;
        }
        if self.run().is_some_and(|run| run.ended.is_none()) {
            // The lease that is worked on is gone: what runs ends, nothing new starts.
            self.feed(Event::LeaseSeen(LeaseView {
                stop: Some(StopReason::Deleted),
                ..LeaseView::default()
            }));
            return;
        }
        self.try_begin();
    }

    fn view(&self) -> LeaseView {
        let Some(lease) = &self.lease else {
            return LeaseView::default();
        };
        // The lease was accepted: its node is this one.
        let node_uid = self.node_uid.as_ref().unwrap_or(&lease.spec.node.uid);
        LeaseView::of(lease, node_uid)
    }

    fn woken(&mut self) {
        if self.begin_at.is_some_and(|at| at <= Instant::now()) {
            self.begin_at = None;
            self.look_at_lease();
        }
        if self.prune_at.take_if(|at| *at <= Instant::now()).is_some() {
            self.prune_logs();
        }
        if self.machine_wake().is_some_and(|at| at <= Instant::now()) {
            self.feed(Event::Ticked);
        }
    }

    fn machine_wake(&self) -> Option<Instant> {
        let now = now();
        let at = machine::wake_at(self.run()?, now)?;
        let wait = u64::try_from(at - now).unwrap_or(0);
        let at = Instant::now() + Duration::from_millis(wait);
        Some(self.quiet_until.map_or(at, |quiet| quiet.max(at)))
    }

    /// When the agent has something to do that no note will announce.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let reboot = self.preparation.reboot.as_ref();
        let reboot = reboot.map(|reboot| reboot.at_the_latest);
        [
            self.machine_wake(),
            self.begin_at,
            self.prune_at,
            self.writer.wake_at(),
            reboot,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// Unix milliseconds.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
