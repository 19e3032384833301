//! The state of the agent, and the handling of its notes and events.
#![expect(clippy::disallowed_methods, reason = "the shell reads the clock")]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::StopReason;
use skyhook_crds::package::Interrupt;
use skyhook_crds::revision::RevisionData;
use skyhook_oci::Credentials;
use tokio::sync::OnceCell;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::note::{Note, RunFacts};
use super::steps::last_step;
use super::time::{first_sweep, instant, next_look};
use super::writer::Writer;
use crate::config::Settings;
use crate::host::exec::Supervisors;
use crate::host::systemd::Bus;
use crate::host::{Host, identity};
use crate::image::Images;
use crate::journal::{Journal, State};
use crate::lease::{LeaseApi, LeaseEvent};
use crate::machine::taking::{Taker, TakingEvent};
use crate::machine::{self, Effect, Event, Input, LeaseView, Progress};
use crate::prepare::Prepared;
use crate::report::{self, HostFacts};

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
    /// The latest version of the lease.
    pub lease: Option<InterruptionLease>,
    /// The state machine that takes a lease.
    pub taker: Taker,
    pub writer: Writer,
    /// Prepared stages, by package.
    pub stages: BTreeMap<String, Rc<Prepared>>,
    pub revisions: BTreeMap<String, Rc<RevisionData>>,
    pub run_facts: Option<Rc<RunFacts>>,
    /// Registry credentials, read when the first image of a lease is pulled.
    pub credentials: Rc<OnceCell<Credentials>>,
    /// When logs are pruned, if steps have run.
    pub prune_at: Option<Instant>,
    /// When garbage is collected if there is no lease.
    pub sweep_at: Instant,
    /// When the agent looks for deleted Skyhooks if there is no lease.
    pub look_at: Instant,
    /// Bytes on the host's disk that belong to Skyhook, from the last count.
    pub disk_bytes: Option<i64>,
    /// Name of the new revision in the lease's stop, after it was compared with the running packages.
    pub compared: Option<String>,
    /// A problem of the agent itself. It replaces the message in the lease's status.
    pub trouble: Option<String>,
    /// Set when the journal could not be written: no timer of the machine fires before this time.
    pub quiet_until: Option<Instant>,
    /// Why the agent cannot work on this host.
    pub unable: Option<String>,
    /// The interrupt that is being prepared.
    pub pending_interrupt: PendingInterrupt,
    /// Progress that is not in the journal yet.
    pub uncommitted: Option<Uncommitted>,
}

/// A reboot that waits until the lease's status announces it.
#[derive(Debug)]
pub(super) struct Reboot {
    pub interrupt: Interrupt,
    pub at_the_latest: Instant,
}

/// The preparation of an interrupt.
#[derive(Debug, Default)]
pub(super) struct PendingInterrupt {
    /// The reboot that waits until it is reported.
    pub reboot: Option<Reboot>,
    pub task: Option<AbortHandle>,
}

/// Progress that waits to be written to the journal, with the effects to perform after the write. Events that arrive
/// together share one write.
#[derive(Debug)]
pub(super) struct Uncommitted {
    progress: Progress,
    effects: Vec<Effect>,
    events: Vec<Event>,
}

impl Agent {
    /// Opens the journal and the image store, and resumes the work of an earlier agent.
    pub(super) fn start(
        settings: Settings,
        host: Host,
        api: LeaseApi,
        bus: Rc<Bus>,
        unable: Option<String>,
        notes: UnboundedSender<Note>,
    ) -> anyhow::Result<Self> {
        let state = host.locate(&settings.state_dir)?;
        let facts = HostFacts {
            boot_id: host.boot_id()?,
            machine_id: host.machine_id()?,
            host_id: identity::host_id(state.path())
                .with_context(|| format!("the host ID in {state} cannot be read or written"))?,
            epoch: String::new(),
            disk_bytes: None,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (journal, aside) = Journal::open(&state)?;
        if let Some(aside) = aside {
            tracing::error!(kept = %aside, "the journal is corrupt: using the Node's record");
        }
        let images = Images::open(
            state.join("images").path(),
            &host.files,
            settings.registries.clone(),
            &settings.images,
        )?;
        let runner = Rc::new(Supervisors::new(
            Some(Rc::clone(&bus)),
            state.join("steps").path().to_owned(),
            settings.state_dir.join("steps"),
        ));
        let mut agent = Self {
            sweep_at: first_sweep(&settings.node),
            look_at: next_look(&settings.node),
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
            taker: Taker::default(),
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
            pending_interrupt: PendingInterrupt::default(),
            uncommitted: None,
        };
        agent.look_around();
        agent.resume(state.join("steps").path())?;
        Ok(agent)
    }

    /// Drops the journal of another host, and sends the machine [`Event::Restarted`].
    fn resume(&mut self, steps: &std::path::Path) -> anyhow::Result<()> {
        let mut state = self.journal.state.clone();
        if state.machine_id != self.facts.machine_id {
            state = State {
                machine_id: self.facts.machine_id.clone(),
                next_step: state.next_step,
                ..State::default()
            };
        }
        self.note_boot(&mut state);
        // This agent may be the newer one that the lease needs: it takes the lease again.
        if state
            .run
            .as_ref()
            .is_some_and(|run| run.too_old.is_some() && run.ended.is_none())
        {
            state.archive_run("", now());
        }
        let last = last_step(steps);
        state.next_step = state.next_step.max(last + 1);
        if let Some(run) = &mut state.run {
            run.next_step = run.next_step.max(state.next_step);
            run.reboot_cap = self.settings.reboot_cap;
            run.limits = self.settings.limits;
            run.unable.clone_from(&self.unable);
        }
        self.journal.save(state)?;
        if self.journal.state.run.is_some() {
            let boot_id = self.facts.boot_id.clone();
            self.send(Note::Event(Event::Restarted { boot_id }));
        }
        Ok(())
    }

    /// Records the boot ID. With `--reapply-on-reboot`, a reboot that Skyhook did not ask for makes every package run
    /// again.
    fn note_boot(&mut self, state: &mut State) {
        let epoch = state.epoch_in(&self.facts.boot_id);
        let is_lost = epoch != state.epoch && !state.epoch.is_empty();
        if is_lost && self.settings.reapply_on_reboot {
            tracing::warn!("the host was rebooted, not by Skyhook: running all packages again");
            state.reapply(now());
        }
        state.boot_id.clone_from(&self.facts.boot_id);
        state.epoch.clone_from(&epoch);
        self.facts.epoch = epoch;
    }

    /// Handles one note.
    pub(super) fn take(&mut self, note: Note) {
        match note {
            Note::Lease(event) => self.lease_event(event),
            Note::Event(event) => self.feed(event),
            Note::Attempted(attempt) => self.attempted(*attempt),
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
            Note::Refreshed(result) => self.finished_refreshed(*result),
            Note::Node(node) => self.step_taking(TakingEvent::NodeFound { uid: &node.uid }),
            Note::LookAgain => self.look_at_lease(),
            Note::Facts(facts) => self.run_facts = Some(Rc::from(facts)),
            Note::Disk(bytes) => self.disk_bytes = i64::try_from(bytes).ok(),
            Note::Missing { missing, collects } => self.note_missing(missing, collects),
            Note::Woken => self.woken(),
        }
    }

    pub(super) fn send(&self, note: Note) {
        // The receiver lives as long as the agent.
        let _sent = self.notes.send(note);
    }

    /// The progress of the lease that the agent works on, or worked on last.
    pub(super) fn run(&self) -> Option<&Progress> {
        match &self.uncommitted {
            Some(uncommitted) => Some(&uncommitted.progress),
            None => self.journal.state.run.as_ref(),
        }
    }

    /// True when the watch shows the same lease that the agent works on.
    pub(super) fn is_current(&self) -> bool {
        let seen = self.lease.as_ref().and_then(|l| l.metadata.uid.as_ref());
        self.run().is_some_and(|run| Some(&run.lease) == seen)
    }

    /// Sends an event to the machine. [`Self::commit`] performs the effects.
    pub(super) fn feed(&mut self, event: Event) {
        let Some(before) = self.run().cloned() else {
            return;
        };
        self.step_machine(before, event);
    }

    /// Sends an event to the machine, with `before` as the progress before the event.
    pub(super) fn step_machine(&mut self, before: Progress, event: Event) {
        let input = Input {
            now: now(),
            event: event.clone(),
        };
        let (mut after, effects) = machine::step(before.clone(), input);
        report::mark_since(&mut after, now());
        self.conclude_stages(&before, &after);
        self.conclude_interrupt(&before, &after);
        match &mut self.uncommitted {
            Some(uncommitted) => {
                uncommitted.progress = after;
                uncommitted.effects.extend(effects);
                uncommitted.events.push(event);
            }
            None => {
                self.uncommitted = Some(Uncommitted {
                    progress: after,
                    effects,
                    events: vec![event],
                });
            }
        }
    }

    /// Writes the journal, then performs the effects, then writes the lease's status.
    pub(super) fn commit(&mut self) {
        // A second round is needed if the end of a lease starts the work on the next lease.
        while let Some(uncommitted) = self.uncommitted.take() {
            let ended = uncommitted.progress.ended.is_some()
                && self.journal.state.run.as_ref().is_none_or(|run| {
                    run.ended.is_none() || run.lease != uncommitted.progress.lease
                });
            let mut state = self.journal.state.clone();
            let before = state.run.as_ref().map(Progress::steps).unwrap_or_default();
            state.archive_run(&uncommitted.progress.lease, now());
            state.next_step = uncommitted.progress.next_step;
            state.run = Some(uncommitted.progress);
            if let Err(error) = self.journal.save(state) {
                if uncommitted.events.contains(&Event::LeaseAccepted) {
                    self.step_taking(TakingEvent::Hindered);
                    self.journal_failed(&error, Vec::new());
                } else {
                    self.journal_failed(&error, uncommitted.events);
                }
                return;
            }
            self.trouble = None;
            self.quiet_until = None;
            self.remove_finished_steps(&before);
            for effect in uncommitted.effects {
                tracing::debug!(?effect, "performing an effect");
                self.perform(effect);
            }
            if ended {
                self.run_ended();
            }
        }
        self.write_status();
        self.prepare_reboot_when_reported();
    }

    /// The journal could not be written, so nothing was done. The same events are sent again after a pause.
    pub(super) fn journal_failed(&mut self, error: &dyn std::error::Error, events: Vec<Event>) {
        let text = skyhook_oci::chain(error);
        if self.trouble.is_none() {
            tracing::error!(error = %text, "the journal cannot be written: the agent does nothing until it can");
        }
        self.trouble = Some(format!("the host's journal cannot be written: {text}"));
        self.write_status();
        let pause = Duration::from_secs(2);
        self.quiet_until = Some(Instant::now() + pause);
        // Do not send an old version of the lease again: after the pause, use the latest version.
        let is_seen = |event: &Event| matches!(event, Event::LeaseSeen(_));
        let looks = events.iter().any(is_seen);
        let notes = self.notes.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            let is_kept = |event: &Event| !is_seen(event) && *event != Event::Ticked;
            for event in events.into_iter().filter(is_kept) {
                let _sent = notes.send(Note::Event(event));
            }
            if looks {
                let _sent = notes.send(Note::LookAgain);
            }
        });
    }

    /// Writes the history of stages that have completed.
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
                tracing::warn!(package = %key, error = %skyhook_oci::chain(&error), "the history of the package cannot be written");
            }
        }
    }

    fn run_ended(&mut self) {
        let Some(run) = self.run() else { return };
        tracing::info!(lease = %run.lease, skyhook = %run.skyhook.name, ended = ?run.ended, "the work on the lease has ended");
        self.stages.clear();
        self.revisions.clear();
        self.run_facts = None;
        self.credentials = Rc::default();
        let bus = Rc::clone(&self.bus);
        tokio::task::spawn_local(async move {
            bus.unprotect_memory().await;
            bus.release().await;
        });
        self.prune_at = None;
        self.collect_garbage();
        // A new lease may have waited for the end of this work.
        if !self.is_current() {
            self.look_at_lease();
        }
    }

    fn lease_event(&mut self, event: LeaseEvent) {
        match event {
            LeaseEvent::Seen(lease) => {
                // An answer of the API with the same lease may be newer than this watch event.
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

    /// Handles the latest version of the lease.
    pub(super) fn look_at_lease(&mut self) {
        if self.is_current() {
            self.writer.seen(self.lease.as_ref());
            let view = self.view();
            self.feed(Event::LeaseSeen(view));
            self.compare_revision();
            return;
        }
        if self.run().is_some_and(|run| run.ended.is_none()) {
            // The lease that the agent works on does not exist any more: end running steps, and start no step.
            self.feed(Event::LeaseSeen(LeaseView {
                stop: Some(StopReason::Deleted),
                ..LeaseView::default()
            }));
            return;
        }
        if let Some(lease) = self.lease.clone() {
            self.step_taking(TakingEvent::Seen(&lease));
        }
    }

    fn view(&self) -> LeaseView {
        let Some(lease) = &self.lease else {
            return LeaseView::default();
        };
        // The agent has accepted the lease, so the lease names the agent's own Node.
        let node_uid = self.taker.node_uid.as_ref().unwrap_or(&lease.spec.node.uid);
        LeaseView::of(lease, node_uid)
    }

    fn woken(&mut self) {
        self.step_taking(TakingEvent::Ticked);
        if self.prune_at.take_if(|at| *at <= Instant::now()).is_some() {
            self.prune_logs();
        }
        self.collect_garbage_when_due();
        if self.machine_wake().is_some_and(|at| at <= Instant::now()) {
            self.feed(Event::Ticked);
        }
    }

    fn machine_wake(&self) -> Option<Instant> {
        let now = now();
        let at = instant(machine::wake_at(self.run()?, now)?, now);
        Some(self.quiet_until.map_or(at, |quiet| quiet.max(at)))
    }

    /// When the agent has to wake up without a note.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let now = now();
        let reboot = self.pending_interrupt.reboot.as_ref();
        let reboot = reboot.map(|reboot| reboot.at_the_latest);
        [
            self.machine_wake(),
            self.taker.wake_at(now).map(|at| instant(at, now)),
            self.prune_at,
            Some(self.sweep_at.min(self.look_at)),
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
