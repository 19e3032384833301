//! A coordinator: the shipped session, planner, guard and writes, driven by the world's clock.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Resource as _;
use serde::Deserialize as _;
use serde_json::Value;
use skyhook_coordinator::apply::Applier;
use skyhook_fleet::effect::Effect;
use skyhook_fleet::facts::{WireLease, WireNode, WirePolicy, WireRollout, WireSkyhook};
use skyhook_fleet::index::{Change, Kind, Mono};
use skyhook_fleet::outcome::Outcome;
use skyhook_fleet::plan::Now;
use skyhook_fleet::session::Session;
use tokio::task::JoinHandle;

use super::{Event, Flight, LEASES, NODES, POLICIES, ROLLOUTS, SKYHOOKS, Sender, WATCHED, World};
use crate::sim::agent::Core;
use crate::sim::api::Entry;
use crate::sim::net::Wire;

const DEBOUNCE: u64 = 2;
/// Passes in a row that neither write nor sleep: the loop would burn a core.
const SPINS: u32 = 200;

/// One replica.
#[derive(Debug, Default)]
pub struct Replica<'a> {
    /// It believes that it is the leader.
    pub leads: bool,
    pub life: u64,
    pub running: Option<Running<'a>>,
    pub frozen: bool,
}

/// What a replica loses when it dies.
#[derive(Debug)]
pub struct Running<'a> {
    pub session: Session<'a>,
    applier: Applier,
    wire: Wire,
    started: u64,
    writes: Vec<(Effect, JoinHandle<Outcome>)>,
    pass_at: Option<u64>,
    watches: BTreeMap<&'static str, Watch>,
    spins: u32,
}

/// A watch of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// The entry of the log that comes next; `None` before the list.
    pub next: Option<usize>,
    due: bool,
}

impl Running<'_> {
    /// The next entry of a kind's log that it has not seen.
    #[must_use]
    pub fn position(&self, kind: &str) -> Option<usize> {
        self.watches.get(kind)?.next
    }
}

impl<C: Core> World<'_, C> {
    pub(super) fn start_replica(&mut self, index: usize) {
        let wire = Wire::default();
        let runtime = self.runtime;
        let client = {
            let _context = runtime.enter();
            wire.client()
        };
        let identity = format!("coordinator-{index}");
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        if replica.running.is_some() {
            return;
        }
        replica.life += 1;
        replica.frozen = false;
        replica.running = Some(Running {
            session: Session::new(self.settings),
            applier: Applier::new(client, &self.settings.namespace, &identity),
            wire,
            started: self.now,
            writes: Vec::new(),
            pass_at: None,
            watches: BTreeMap::new(),
            spins: 0,
        });
        self.note(|| format!("{identity} starts"));
        for kind in WATCHED {
            self.watch_due(index, kind);
        }
    }

    /// Ends a replica at once. What it sent is still under way.
    pub(super) fn kill_replica(&mut self, index: usize, back_in: u64) {
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        if let Some(running) = replica.running.take() {
            for (_, write) in running.writes {
                write.abort();
            }
            self.stats.kills += 1;
            self.note(|| format!("coordinator-{index} is killed"));
        }
        self.after(back_in, Event::StartReplica(index));
    }

    pub(super) fn is_frozen(&self, index: usize, life: u64) -> bool {
        self.replicas
            .get(index)
            .is_some_and(|r| r.frozen && r.life == life)
    }

    pub(super) fn thaw(&mut self, index: usize, life: u64) {
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        if replica.life != life || !replica.frozen {
            return;
        }
        replica.frozen = false;
        // What it believes may be written once more, until it learns that it was deposed.
        let now = self.now;
        self.checks.excuse("", now);
        self.note(|| format!("coordinator-{index} is woken"));
        for kind in WATCHED {
            self.watch_due(index, kind);
        }
        self.pass_due(index, 1);
    }

    fn pass_due(&mut self, index: usize, delay: u64) {
        let at = self.now + delay;
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        let life = replica.life;
        let Some(running) = &mut replica.running else {
            return;
        };
        if running
            .pass_at
            .is_some_and(|due| due <= at && due >= self.now)
        {
            return;
        }
        running.pass_at = Some(at);
        self.after(
            delay,
            Event::Pass {
                replica: index,
                life,
            },
        );
    }

    /// Lets every watch of a kind know that there is something.
    pub(super) fn wake_watches(&mut self, kind: &'static str) {
        if kind != super::PODS {
            for index in 0..self.replicas.len() {
                self.watch_due(index, kind);
            }
        }
        if kind == LEASES {
            self.wake_agents();
        }
    }

    fn watch_due(&mut self, index: usize, kind: &'static str) {
        let delay = if self.rng.one_in(4) {
            self.delay()
        } else {
            self.rng.between(1, 5)
        };
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        let life = replica.life;
        let frozen = replica.frozen;
        let Some(running) = &mut replica.running else {
            return;
        };
        let watch = running.watches.entry(kind).or_default();
        if watch.due || frozen {
            return;
        }
        watch.due = true;
        self.after(
            delay,
            Event::Watch {
                replica: index,
                life,
                kind,
            },
        );
    }

    /// Delivers some of what a watch has not delivered yet, in order; a watch that breaks lists again.
    pub(super) fn deliver(&mut self, index: usize, life: u64, kind: &'static str) {
        let now = self.now;
        let broken = self.weather.stormy && self.rng.one_in(60);
        let one = self.rng.one_in(4);
        let outage = self.weather.outage;
        let end = self.api.end(kind);
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        if replica.life != life {
            return;
        }
        let frozen = replica.frozen;
        let Some(running) = &mut replica.running else {
            return;
        };
        let started = running.started;
        let watch = running.watches.entry(kind).or_default();
        watch.due = false;
        if frozen {
            return;
        }
        if broken {
            watch.next = None;
        }
        let mono = Mono::from_millis(now - started);
        let mut dirty = false;
        match watch.next {
            None if outage => {
                let delay = self.rng.between(200, 2_000);
                watch.due = true;
                self.after(
                    delay,
                    Event::Watch {
                        replica: index,
                        life,
                        kind,
                    },
                );
                return;
            }
            None => {
                let kind_of = kind_of(kind);
                watch.next = Some(end);
                dirty |= running.session.take(Change::ListBegins(kind_of), mono);
                for (_, object) in self.api.list(kind) {
                    dirty |= running.session.take(changed(kind, object), mono);
                }
                dirty |= running.session.take(Change::Synced(kind_of), mono);
            }
            Some(next) => {
                let until = if one { end.min(next + 1) } else { end };
                watch.next = Some(until);
                for entry in self.api.log(kind, next).iter().take(until - next) {
                    dirty |= running.session.take(change(kind, entry), mono);
                }
            }
        }
        let more = watch.next.is_none_or(|next| next < end);
        if dirty {
            self.pass_due(index, DEBOUNCE);
        }
        if more {
            self.watch_due(index, kind);
        }
    }

    /// A coordinator becomes leader.
    pub(super) fn lead(&mut self, index: usize) {
        if let Some(replica) = self.replicas.get_mut(index) {
            replica.leads = true;
        }
        self.pass_due(index, 1);
    }

    /// One turn of the loop.
    pub(super) fn pass(&mut self, index: usize, life: u64) {
        let now = self.now;
        let wall = self.api.wall();
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        if replica.life != life || replica.frozen {
            return;
        }
        let leads = replica.leads;
        let Some(running) = &mut replica.running else {
            return;
        };
        if running.pass_at != Some(now) {
            return;
        }
        running.pass_at = None;
        self.stats.passes += 1;
        let mono = Mono::from_millis(now - running.started);
        if !leads {
            running.session.rest(mono);
            return;
        }
        running.session.pass(Now { mono, wall });
        let mut begun = Vec::new();
        let mut broken = None;
        while let Some(next) = running.session.begin_next(mono) {
            match next {
                Ok(effect) => begun.push(effect),
                Err(refused) => broken = Some(refused),
            }
        }
        let wake_at = running.session.wake_at(mono);
        if let Some((effect, rule)) = broken {
            self.fail(format!(
                "coordinator-{index} planned {} of {:?}, which the guard refuses: {rule}",
                effect.kind(),
                effect.target()
            ));
            return;
        }
        if let Some(at) = wake_at {
            self.wake(index, mono, at, begun.is_empty());
        }
        self.begin(index, begun);
    }

    fn wake(&mut self, index: usize, mono: Mono, at: Mono, idle: bool) {
        let delay = u64::try_from(at.since(mono).as_millis()).unwrap_or(u64::MAX);
        let Some(running) = self
            .replicas
            .get_mut(index)
            .and_then(|r| r.running.as_mut())
        else {
            return;
        };
        running.spins = if delay == 0 && idle {
            running.spins + 1
        } else {
            0
        };
        if running.spins > SPINS {
            self.fail(format!(
                "coordinator-{index} spins: {SPINS} passes in a row asked to be woken at once and wrote nothing"
            ));
            return;
        }
        self.pass_due(index, (delay + 1).min(600_000));
    }

    fn begin(&mut self, index: usize, effects: Vec<Effect>) {
        for effect in effects {
            if self.weather.kills && self.rng.one_in(self.weather.kill_odds) {
                let back_in = self.rng.between(50, 15_000);
                self.kill_replica(index, back_in);
                return;
            }
            self.decided(index, &effect);
            let shown = self.api.stamp();
            let Some(running) = self
                .replicas
                .get_mut(index)
                .and_then(|r| r.running.as_mut())
            else {
                return;
            };
            let applier = running.applier.clone();
            let copy = effect.clone();
            let task = self
                .runtime
                .spawn(async move { applier.apply(&copy, &shown).await });
            running.writes.push((effect, task));
        }
        let life = self.replicas.get(index).map_or(0, |r| r.life);
        self.settle(index, life);
    }

    /// Lets the writes of a replica go on as far as they can, and takes in what came of them.
    pub(super) fn settle(&mut self, index: usize, life: u64) {
        self.runtime.block_on(async {
            for _ in 0..12 {
                tokio::task::yield_now().await;
            }
        });
        let now = self.now;
        let runtime = self.runtime;
        let Some(replica) = self.replicas.get_mut(index).filter(|r| r.life == life) else {
            return;
        };
        let Some(running) = &mut replica.running else {
            return;
        };
        let mono = Mono::from_millis(now - running.started);
        let mut dirty = false;
        let mut at = 0;
        while at < running.writes.len() {
            if !running.writes[at].1.is_finished() {
                at += 1;
                continue;
            }
            let (effect, task) = running.writes.remove(at);
            if let Ok(outcome) = runtime.block_on(task) {
                running.session.settle(&effect, outcome, mono);
                dirty = true;
            }
        }
        let wire = running.wire.clone();
        while let Some(sent) = wire.take() {
            self.send(Flight {
                sender: Sender::Replica { index, life },
                request: sent.request,
                reply: Some(sent.reply),
                tag: None,
                response: None,
            });
        }
        if dirty {
            self.begin_more(index, life);
            self.pass_due(index, DEBOUNCE);
        }
    }

    /// A write that has ended leaves a slot to what was decided before.
    fn begin_more(&mut self, index: usize, life: u64) {
        let now = self.now;
        let replica = self.replicas.get_mut(index);
        let Some(replica) = replica.filter(|r| r.life == life && r.leads && !r.frozen) else {
            return;
        };
        let Some(running) = &mut replica.running else {
            return;
        };
        let mono = Mono::from_millis(now - running.started);
        let mut begun = Vec::new();
        while let Some(Ok(effect)) = running.session.begin_next(mono) {
            begun.push(effect);
        }
        self.begin(index, begun);
    }
}

fn kind_of(kind: &str) -> Kind {
    match kind {
        NODES => Kind::Node,
        SKYHOOKS => Kind::Skyhook,
        LEASES => Kind::Lease,
        POLICIES => Kind::Policy,
        ROLLOUTS => Kind::Rollout,
        _ => Kind::Revision,
    }
}

fn change(kind: &str, entry: &Entry) -> Change {
    match &entry.after {
        Some(object) => changed(kind, object),
        None => match kind {
            NODES => Change::NodeGone(entry.key.clone()),
            SKYHOOKS => Change::SkyhookGone(entry.key.clone()),
            LEASES => Change::LeaseGone(entry.key.clone()),
            POLICIES => Change::PolicyGone(entry.key.clone()),
            ROLLOUTS => Change::RolloutGone(entry.key.clone()),
            _ => {
                let name = entry.key.rsplit('/').next().unwrap_or_default();
                Change::RevisionGone(name.to_owned())
            }
        },
    }
}

fn changed(kind: &str, object: &Value) -> Change {
    match kind {
        NODES => Change::Node(Box::new(WireNode::deserialize(object).unwrap_or_default())),
        SKYHOOKS => Change::Skyhook(Box::new(
            WireSkyhook::deserialize(object).unwrap_or_default(),
        )),
        LEASES => Change::Lease(Box::new(WireLease::deserialize(object).unwrap_or_default())),
        POLICIES => Change::Policy(Box::new(
            WirePolicy::deserialize(object).unwrap_or_default(),
        )),
        ROLLOUTS => Change::Rollout(Box::new(
            WireRollout::deserialize(object).unwrap_or_default(),
        )),
        _ => Change::Revision(Box::new(revision(object))),
    }
}

fn revision(object: &Value) -> ControllerRevision {
    let revision = ControllerRevision::deserialize(object);
    debug_assert!(revision.as_ref().is_ok_and(|r| r.meta().name.is_some()));
    revision.unwrap_or_default()
}
