//! The loop: take changes in, plan, check, write. One task owns the picture.

#![expect(clippy::disallowed_methods, reason = "the shell owns the clock")]

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;

use crate::agents;
use crate::apply::Applier;
use crate::config::Settings;
use crate::debounce::Debounce;
use crate::leadership::Leadership;
use crate::metrics::{Metrics, Pass};
use crate::publish::Publisher;
use crate::report::Report;
use crate::role;
use crate::watch;
use skyhook_fleet::effect::Effect;
use skyhook_fleet::events::{self, Bound, EventFact};
use skyhook_fleet::index::{Change, Mono};
use skyhook_fleet::outcome::Outcome;
use skyhook_fleet::plan::{self, Now};
use skyhook_fleet::references::References;
use skyhook_fleet::session::Session;

/// How long all requests of one effect may take together.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the last writes may take after the order to stop.
const FAREWELL: Duration = Duration::from_secs(10);

/// Runs until `stop` changes. Before it returns, it waits up to `FAREWELL` for the writes under way.
pub async fn run(
    client: Client,
    settings: &Settings,
    metrics: &Metrics,
    mut stop: channel::Receiver<bool>,
    ready: channel::Sender<bool>,
) -> anyhow::Result<()> {
    let mut leadership = leadership(&client, settings);
    let (sender, mut changes) = mpsc::channel(1024);
    let mut watches = watch::all(&client, &settings.namespace, &sender, metrics);
    let references = spawn_keepers(&client, settings, &sender, &mut watches);
    let deciding = settings.fleet();
    let mut state = Loop {
        session: Session::new(&deciding),
        publisher: Publisher::new(client.clone(), &settings.identity),
        bound: Bound::default(),
        report: Report::default(),
        metrics: metrics.clone(),
        applier: Applier::new(client, &settings.namespace, &settings.identity),
        started: Instant::now(),
        debounce: Debounce::default(),
    };
    let mut writes = Writes::new();
    // Since when there is something new to decide on.
    let mut dirty: Option<Mono> = None;
    let mut wake_at: Option<Mono> = None;
    loop {
        let now = state.now();
        let pause = match dirty {
            Some(_) => state.debounce.pause(now.mono),
            None => wake_at.map_or(Duration::from_secs(600), |at| at.since(now.mono)),
        };
        let overdue = dirty.is_some_and(|since| state.debounce.is_overdue(since, now.mono));
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            () = std::future::ready(()), if overdue => {}
            changed = leadership.changed() => {
                changed?;
                tracing::info!(leads = leadership.leads(), "leader election");
                dirty = dirty.or(Some(now.mono));
                continue;
            }
            Some(change) = changes.recv() => {
                if state.take_all(change, &mut changes) {
                    dirty = dirty.or(Some(now.mono));
                }
                continue;
            }
            Some((effect, outcome, events)) = writes.next(), if !writes.is_empty() => {
                state.settle(&effect, outcome, events);
                if leadership.leads() {
                    state.launch(&mut writes);
                }
                dirty = dirty.or(Some(now.mono));
                continue;
            }
            () = tokio::time::sleep(pause) => {}
        }
        let now = state.now();
        ready.send_replace(state.session.index().is_synced());
        dirty = None;
        state.publish_references(&references, leadership.leads(), settings);
        if !leadership.leads() {
            // The picture is kept up to date, so that this replica can lead at once without a new list.
            wake_at = None;
            state.session.rest(now.mono);
            metrics.rests();
            continue;
        }
        wake_at = state.decide(now, &mut writes);
    }
    watches.shutdown().await;
    let finish = async {
        while let Some((effect, outcome, events)) = writes.next().await {
            state.settle(&effect, outcome, events);
        }
        leadership.resign().await;
    };
    if tokio::time::timeout(FAREWELL, finish).await.is_err() {
        tracing::warn!(
            "the API server does not answer; what was under way is left to the next leader"
        );
    }
    Ok(())
}

fn leadership(client: &Client, settings: &Settings) -> Leadership {
    if !settings.leader_election {
        return Leadership::alone();
    }
    let (namespace, identity) = (&settings.namespace, &settings.identity);
    Leadership::stand(client.clone(), namespace, identity, Timestamp::now)
}

/// Starts the tasks beside the plan: one keeps the Role, one watches the agents' DaemonSet. Returns the sender for the
/// wanted content of the Role.
fn spawn_keepers(
    client: &Client,
    settings: &Settings,
    changes: &mpsc::Sender<Change>,
    tasks: &mut JoinSet<()>,
) -> channel::Sender<Option<References>> {
    let (references, wanted) = channel::channel(None);
    let namespace = &settings.namespace;
    if let Some(role) = settings.references_role.clone() {
        tasks.spawn(role::keep(client.clone(), namespace.clone(), role, wanted));
    }
    if let Some(set) = settings.agent_daemon_set.clone() {
        let changes = changes.clone();
        tasks.spawn(agents::watch(
            client.clone(),
            namespace.clone(),
            set,
            changes,
        ));
    }
    references
}

/// Writes under way.
type Writes = FuturesUnordered<BoxFuture<'static, (Effect, Outcome, Vec<EventFact>)>>;

struct Loop<'a> {
    session: Session<'a>,
    applier: Applier,
    publisher: Publisher,
    bound: Bound,
    report: Report,
    metrics: Metrics,
    started: Instant,
    debounce: Debounce,
}

impl Loop<'_> {
    fn now(&self) -> Now {
        Now {
            mono: Mono::after(self.started.elapsed()),
            wall: Timestamp::now(),
        }
    }

    /// Takes in a change and all others that are waiting. Returns true when a decision may depend on one of them.
    fn take_all(&mut self, first: Change, more: &mut mpsc::Receiver<Change>) -> bool {
        let mut changed = self.take(first);
        while let Ok(change) = more.try_recv() {
            changed |= self.take(change);
        }
        changed
    }

    fn take(&mut self, change: Change) -> bool {
        let mono = self.now().mono;
        self.session.take(change, mono)
    }

    /// Sends the wanted content of the Role to the task that keeps it; `None` while another replica leads.
    fn publish_references(
        &self,
        to: &channel::Sender<Option<References>>,
        leads: bool,
        settings: &Settings,
    ) {
        if settings.references_role.is_none() {
            return;
        }
        let index = self.session.index();
        let wanted = (leads && index.is_synced()).then(|| References::of(index));
        to.send_if_modified(|held| {
            let changed = *held != wanted;
            *held = wanted;
            changed
        });
    }

    /// Makes a pass, and starts writes. Returns when the next pass is due.
    fn decide(&mut self, now: Now, writes: &mut Writes) -> Option<Mono> {
        let planned = self.session.pass(now);
        let end = self.now().mono;
        self.debounce.passed(now.mono, end);
        if planned {
            self.metrics.planned(end.since(now.mono));
        }
        self.launch(writes);
        self.measure(now);
        self.report_writes(now.mono);
        let sums = self.bound.sum_up(now.mono);
        self.publisher.send(sums);
        let wakes = self.session.wake_at(now.mono).into_iter();
        let wakes = wakes.chain(self.bound.due());
        wakes.chain(self.report.due()).min()
    }

    fn measure(&self, now: Now) {
        let pass = Pass {
            fleet: self.session.fleet(),
            held_back: self.session.held_back(),
            lag: self.session.index().inflight().lag(now.mono),
        };
        self.metrics.passed(pass, now.wall);
    }

    fn report_writes(&mut self, now: Mono) {
        if let Some(writes) = self.report.sum_up(now) {
            tracing::info!(%writes, "written");
        }
    }

    fn publish(&mut self, events: Vec<EventFact>) {
        let passed = self.bound.pass(events, self.now().mono);
        self.publisher.send(passed);
    }

    /// Starts writes from the queue, as many as may be under way.
    fn launch(&mut self, writes: &mut Writes) {
        while let Some(next) = self.session.begin_next(self.now().mono) {
            let effect = match next {
                Ok(effect) => effect,
                Err((effect, rule)) => {
                    tracing::error!(effect = effect.kind(), target = ?effect.target(), %rule, "refused: the effect would break a safety rule");
                    self.metrics.is_unsafe(&effect);
                    continue;
                }
            };
            log(&effect);
            let events = events::events(self.session.index(), &effect);
            let applier = self.applier.clone();
            let wall = plan::seconds(Timestamp::now());
            writes.push(Box::pin(async move {
                let written = tokio::time::timeout(PATIENCE, applier.apply(&effect, &wall)).await;
                // The server may still make the write. Then our version is out of date, and the retry is refused with
                // 409, which does no harm.
                let outcome = written.unwrap_or_else(|_| Outcome::Busy {
                    after: Duration::from_secs(2),
                    error: format!("no answer in {} s", PATIENCE.as_secs()),
                });
                (effect, outcome, events)
            }));
        }
    }

    fn settle(&mut self, effect: &Effect, outcome: Outcome, events: Vec<EventFact>) {
        let target = effect.target();
        let mono = self.now().mono;
        self.metrics.ended(effect, &outcome);
        match &outcome {
            Outcome::Done(_) => {
                self.report.wrote(effect, mono);
                self.publish(events);
            }
            Outcome::Stale => tracing::info!(
                effect = effect.kind(),
                ?target,
                "decided on an older version; waiting for the watch"
            ),
            Outcome::Retry { error } | Outcome::Busy { error, .. } => {
                if self.report.is_to_be_warned_of(&target, mono) {
                    tracing::warn!(effect = effect.kind(), ?target, %error, "write failed; it is tried again");
                } else {
                    tracing::debug!(effect = effect.kind(), ?target, %error, "write failed again");
                }
            }
            Outcome::Refused { error } => {
                tracing::error!(effect = effect.kind(), ?target, %error, "the API server refuses the write");
                let refused = events::refused(self.session.index(), effect, error);
                self.publish(refused);
            }
        }
        self.session.settle(effect, outcome, mono);
    }
}

/// Logs the start of a write. Writes that are frequent during a drain or a roll-out are logged at the level debug; one
/// line per second says how many there were.
fn log(effect: &Effect) {
    let (kind, target, why) = (effect.kind(), effect.target(), why(effect));
    if matches!(
        effect,
        Effect::SurveyPods { .. }
            | Effect::EvictPod { .. }
            | Effect::WriteSkyhookStatus { .. }
            | Effect::PatchNode { .. }
    ) {
        tracing::debug!(effect = kind, ?target, why, "write");
    } else {
        tracing::info!(effect = kind, ?target, why, "write");
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others say it themselves"
)]
fn why(effect: &Effect) -> String {
    match effect {
        Effect::PatchNode { why, .. } => {
            let causes: Vec<String> = why.iter().map(ToString::to_string).collect();
            causes.join("; ")
        }
        Effect::WithdrawLease { why, .. } => why.to_string(),
        _ => String::new(),
    }
}
