//! Hosts: a machine with its steps and its journal, and what its agent does there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kube::ResourceExt as _;
use serde::Deserialize as _;
use serde_json::Value;
use skyhook_crds::lease::protocol::is_older;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{InterruptionLease, Stage};

use super::boots::Boots;
use super::ending::Affliction;
use super::{Event, NODES, World};
use crate::sim::Shape;
use crate::sim::agent::shell::{Agent, Current, Journal};
use crate::sim::agent::{Action, Core, Event as Told, Step};

/// A machine.
#[derive(Debug)]
pub struct Machine<C: Core> {
    pub machine_id: String,
    pub node_uid: String,
    pub boots: u64,
    pub up: bool,
    /// The kubelet says NotReady whatever the machine does.
    pub unready: bool,
    pub life: u64,
    pub agent: Option<Agent>,
    pub journal: Journal<C>,
    /// Steps that have a supervisor or a result file.
    pub steps: BTreeMap<u64, HostStep>,
    /// Steps that ended well, by lease.
    finished: BTreeSet<(String, String, Stage, bool, usize, String)>,
    /// What became of it over reboots.
    pub(super) boot: Boots,
    /// What the agent's watch has not delivered.
    pub inbox: VecDeque<Option<Arc<Value>>>,
    pub watch_due: bool,
}

/// A step on the host.
#[derive(Clone, Debug)]
pub struct HostStep {
    pub lease: String,
    pub step: Step,
    pub result: Option<bool>,
}

impl<C: Core> Machine<C> {
    /// A machine that was never touched.
    #[must_use]
    pub fn new(machine_id: String, node_uid: String) -> Self {
        Self {
            machine_id,
            node_uid,
            boots: 1,
            up: true,
            unready: false,
            life: 0,
            agent: None,
            journal: Journal::default(),
            steps: BTreeMap::new(),
            boot: Boots::default(),
            finished: BTreeSet::new(),
            inbox: VecDeque::new(),
            watch_due: false,
        }
    }

    /// The boot ID of the boot that it is in.
    #[must_use]
    pub fn boot_id(&self) -> String {
        format!("{}-boot-{}", self.machine_id, self.boots)
    }

    /// True while its agent has this lease in the journal.
    #[must_use]
    pub fn works_on(&self, lease: &str) -> bool {
        let current = self.journal.current.as_ref();
        current.is_some_and(|current| current.lease == lease)
    }

    /// What had finished under this lease is undone: its steps run again.
    pub(super) fn is_undone(&mut self, lease: &str) {
        self.finished.retain(|(of, ..)| of != lease);
    }

    /// The steps that run now.
    pub fn running(&self) -> impl Iterator<Item = &HostStep> {
        self.steps.values().filter(|step| step.result.is_none())
    }

    /// Takes in what the watch, or a write, says the lease is.
    pub fn learn(&mut self, lease: Option<&Value>) {
        let Some(agent) = &mut self.agent else { return };
        let lease: Option<InterruptionLease> =
            lease.and_then(|value| InterruptionLease::deserialize(value).ok());
        let older = agent
            .lease
            .as_ref()
            .zip(lease.as_ref())
            .is_some_and(|(held, new)| {
                let version = |l: &InterruptionLease| l.resource_version().unwrap_or_default();
                is_older(&version(new), &version(held))
            });
        if !older {
            agent.lease = lease.map(Box::new);
        }
    }
}

impl<C: Core> World<'_, C> {
    pub(super) fn unix(&self) -> i64 {
        self.api.wall().as_millisecond()
    }

    pub(super) fn is_struck(&mut self) -> bool {
        self.weather.kills && self.rng.one_in(self.weather.kill_odds)
    }

    pub(super) fn start_agent(&mut self, node: &str) {
        if self.is(node, Affliction::NoAgent) {
            return;
        }
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        if !machine.up || machine.agent.is_some() {
            return;
        }
        machine.life += 1;
        machine.agent = Some(Agent::default());
        machine.inbox.clear();
        let restarted = machine.journal.current.is_some();
        let boot_id = machine.boot_id();
        self.note_boot(node);
        self.note(|| format!("agent of {node} starts in {boot_id}"));
        self.agent_watch_due(node);
        if restarted {
            self.feed(node, Told::Restarted { boot_id });
        }
    }

    pub(super) fn kill_agent(&mut self, node: &str, back_in: Option<u64>) {
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        if machine.agent.take().is_some() {
            machine.life += 1;
            machine.inbox.clear();
            self.stats.kills += 1;
            self.note(|| format!("agent of {node} is killed"));
        }
        if let Some(delay) = back_in {
            self.after(delay, Event::StartAgent(node.to_owned()));
        }
    }

    /// Kills an agent that chance has struck.
    pub(super) fn strike(&mut self, node: &str) {
        let back_in = self.rng.between(50, 20_000);
        self.kill_agent(node, Some(back_in));
    }

    /// Tells the core something; the journal is written before what comes of it is done.
    pub(super) fn feed(&mut self, node: &str, event: Told) {
        self.feed_into(node, None, event);
    }

    /// The same, for a lease that is not on record yet.
    pub(super) fn feed_into(&mut self, node: &str, new: Option<Current<C>>, event: Told) {
        let now = self.unix();
        let struck = self.is_struck();
        if struck && self.rng.one_in(2) {
            self.strike(node);
            return;
        }
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        let Some(agent) = &mut machine.agent else {
            return;
        };
        if new.is_some() {
            machine.journal.current = new;
        }
        let Some(current) = &mut machine.journal.current else {
            return;
        };
        agent.has_fed(&event, current);
        let (core, actions) = current.core.clone().step(now, event.clone());
        current.core = core;
        let life = machine.life;
        self.note(|| format!("agent of {node}: {event:?} -> {actions:?}"));
        for action in actions {
            if struck && self.rng.one_in(2) {
                self.strike(node);
            }
            if self.machines.get(node).is_none_or(|m| m.life != life) {
                return;
            }
            self.perform(node, action);
        }
        if struck {
            self.strike(node);
        }
    }

    fn perform(&mut self, node: &str, action: Action) {
        let lease = self
            .machines
            .get(node)
            .and_then(|m| m.journal.current.as_ref())
            .map(|current| current.lease.clone())
            .unwrap_or_default();
        match action {
            Action::PullImage { key } => self.tell_soon(node, Told::ImageReady { key }),
            Action::PrepareStage { key } => {
                let (main, checks) = (1, 1);
                self.tell_soon(node, Told::StageReady { key, main, checks });
            }
            Action::RunStep(step) => self.run_step(node, lease, step),
            Action::AdoptStep(step) => self.adopt_step(node, &step),
            Action::EndStep { id } => {
                let boot = self.machines.get(node).map_or(0, |m| m.boots);
                self.after(
                    1,
                    Event::StepEnds {
                        node: node.to_owned(),
                        boot,
                        id,
                        ended: true,
                    },
                );
            }
            Action::WriteRunning { resource_version } => {
                self.write_running(node, &lease, &resource_version);
            }
            Action::LookAtLease => self.look_at_lease(node, lease),
            Action::PrepareInterrupt => self.tell_soon(node, Told::InterruptPrepared),
            Action::Interrupt(interrupt) => self.interrupt(node, &lease, &interrupt),
        }
    }

    fn tell_soon(&mut self, node: &str, event: Told) {
        let delay = self.rng.between(1, 300);
        let Some(machine) = self.machines.get(node) else {
            return;
        };
        let life = machine.life;
        let event = Event::Tell {
            node: node.to_owned(),
            life,
            event: Box::new(event),
        };
        self.after(delay, event);
    }

    pub(super) fn tell(&mut self, node: &str, life: u64, event: Told) {
        if self.machines.get(node).is_some_and(|m| m.life == life) {
            self.feed(node, event);
            self.run_agent(node);
        }
    }

    fn run_step(&mut self, node: &str, lease: String, step: Step) {
        let delay = match self.rng.below(20) {
            0 if self.shape != Shape::Slow => self.rng.between(5_000, 60_000),
            1..=5 => self.rng.between(200, 4_000),
            _ => self.rng.between(5, 200),
        };
        let permitted = self.checks.is_permitted(&lease);
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        let id = step.id;
        if machine.steps.contains_key(&id) {
            return;
        }
        let done = (
            lease.clone(),
            step.key.clone(),
            step.stage,
            step.check,
            step.index,
            step.content.clone(),
        );
        let at_once = machine
            .running()
            .any(|other| other.lease != lease || other.step.key == step.key);
        let problem = if machine.finished.contains(&done) {
            Some("a step that had finished is run again")
        } else if at_once {
            Some("two steps at once")
        } else if step.disruptive && !permitted {
            Some("disruptive work before the lease was Drained")
        } else {
            None
        };
        let boot = machine.boots;
        let held = HostStep {
            lease: lease.clone(),
            step: step.clone(),
            result: None,
        };
        machine.steps.insert(id, held);
        if let Some(problem) = problem {
            self.fail(format!("{node}: {problem}: {step:?} under lease {lease}"));
        }
        let event = Event::StepEnds {
            node: node.to_owned(),
            boot,
            id,
            ended: false,
        };
        self.after(delay, event);
    }

    fn adopt_step(&mut self, node: &str, step: &Step) {
        let Some(machine) = self.machines.get(node) else {
            return;
        };
        let (key, id) = (step.key.clone(), step.id);
        match machine.steps.get(&id).map(|held| held.result) {
            Some(None) => {}
            Some(Some(succeeded)) => {
                let event = Told::StepExited { key, id, succeeded };
                self.tell_soon(node, event);
            }
            None => self.tell_soon(node, Told::StepNotStarted { key, id }),
        }
    }

    /// A step exits, or was told to end.
    pub(super) fn step_ends(&mut self, node: &str, boot: u64, id: u64, ended: bool) {
        let fails =
            self.is(node, Affliction::Failing) || self.weather.steps_fail && self.rng.one_in(6);
        let succeeded = !(ended || fails);
        let now = self.now;
        let Some(machine) = self.machines.get_mut(node).filter(|m| m.boots == boot) else {
            return;
        };
        let Some(held) = machine
            .steps
            .get_mut(&id)
            .filter(|held| held.result.is_none())
        else {
            return;
        };
        held.result = Some(succeeded);
        let (lease, step) = (held.lease.clone(), held.step.clone());
        if succeeded {
            let done = (
                lease,
                step.key.clone(),
                step.stage,
                step.check,
                step.index,
                step.content.clone(),
            );
            machine.boot.has_run(&step);
            machine.finished.insert(done);
        } else {
            self.checks.excuse(node, now);
        }
        let event = Told::StepExited {
            key: step.key,
            id,
            succeeded,
        };
        self.feed(node, event);
        self.run_agent(node);
    }

    fn interrupt(&mut self, node: &str, lease: &str, interrupt: &Interrupt) {
        if !self.checks.is_permitted(lease) {
            self.fail(format!(
                "{node} is interrupted before lease {lease} was Drained"
            ));
        }
        self.note(|| format!("{node}: {:?}", interrupt.kind));
        if interrupt.kind == InterruptType::Reboot {
            let away = self.rng.between(2_000, 40_000);
            self.power_off(node, away);
            if let Some(machine) = self.machines.get_mut(node) {
                machine.boot.is_asked_for();
            }
            return;
        }
        let delay = self.rng.between(10, 2_000);
        let Some(machine) = self.machines.get(node) else {
            return;
        };
        let boot = machine.boots;
        let node = node.to_owned();
        self.after(delay, Event::InterruptEnds { node, boot });
    }

    pub(super) fn interrupt_ends(&mut self, node: &str, boot: u64) {
        if self.machines.get(node).is_some_and(|m| m.boots == boot) {
            self.feed(node, Told::Interrupted);
            self.run_agent(node);
        }
    }

    /// The machine goes down, and comes back after `away`.
    pub(super) fn power_off(&mut self, node: &str, away: u64) {
        self.kill_agent(node, None);
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        if !machine.up {
            return;
        }
        machine.up = false;
        machine.steps.retain(|_, step| step.result.is_some());
        let noticed = self.rng.between(100, 20_000);
        self.note(|| format!("{node} goes down"));
        self.after(noticed, Event::Kubelet(node.to_owned()));
        self.after(away, Event::Boot(node.to_owned()));
    }

    pub(super) fn boot(&mut self, node: &str) {
        if self.is(node, Affliction::Down) {
            return;
        }
        let Some(machine) = self.machines.get_mut(node).filter(|m| !m.up) else {
            return;
        };
        machine.up = true;
        machine.boots += 1;
        let boot_id = machine.boot_id();
        machine.boot.begins(boot_id);
        self.note(|| format!("{node} boots"));
        let agent = self.rng.between(50, 5_000);
        let kubelet = self.rng.between(50, 15_000);
        self.after(agent, Event::StartAgent(node.to_owned()));
        self.after(kubelet, Event::Kubelet(node.to_owned()));
    }

    /// The kubelet, or for one that is silent the node controller, says how the node is.
    pub(super) fn kubelet(&mut self, node: &str) {
        let Some(machine) = self.machines.get(node) else {
            return;
        };
        let ready = machine.up && !machine.unready;
        let boot_id = machine.up.then(|| machine.boot_id());
        let machine_id = machine.machine_id.clone();
        let ready = if ready { "True" } else { "Unknown" };
        let now = self.now;
        self.checks.excuse(node, now);
        self.api.edit(NODES, node, |object| {
            if let Some(boot_id) = &boot_id {
                object["status"]["nodeInfo"]["bootID"] = Value::from(boot_id.as_str());
                object["status"]["nodeInfo"]["machineID"] = Value::from(machine_id.as_str());
            }
            let conditions = object["status"]["conditions"].as_array_mut();
            for condition in conditions.into_iter().flatten() {
                if condition["type"] == "Ready" {
                    condition["status"] = Value::from(ready);
                }
            }
        });
    }
}
