//! The shell of an agent: its watch, its requests, and the order in which it does what [`Agent::next`] says.

use std::sync::Arc;

use kube::ResourceExt as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use skyhook_crds::lease::Phase;
use skyhook_crds::revision::RevisionData;

use super::{Event, Flight, LEASES, Sender, World};
use crate::sim::agent::shell::{Act, Agent, Current, Host};
use crate::sim::agent::{Core, Event as Told, Start};
use crate::sim::api::{Request, Response};

/// What an answer to an agent is about.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Report,
    Running { lease: String },
    Revision(String),
    Look { lease: String },
}

impl<C: Core> World<'_, C> {
    /// Puts a change of a lease before the watch of the agent that it is for.
    pub(super) fn inform_agent(&mut self, node: &str, lease: Option<Arc<Value>>) {
        if let Some(machine) = self.machines.get_mut(node)
            && machine.agent.as_ref().is_some_and(|agent| agent.synced)
        {
            machine.inbox.push_back(lease);
        }
    }

    pub(super) fn wake_agents(&mut self) {
        let due: Vec<String> = self
            .machines
            .iter()
            .filter(|(_, m)| !m.inbox.is_empty() && !m.watch_due)
            .map(|(node, _)| node.clone())
            .collect();
        for node in due {
            self.agent_watch_due(&node);
        }
    }

    pub(super) fn agent_watch_due(&mut self, node: &str) {
        let delay = self.delay();
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        machine.watch_due = true;
        let life = machine.life;
        let node = node.to_owned();
        self.after(delay, Event::AgentWatch { node, life });
    }

    pub(super) fn agent_watch(&mut self, node: &str, life: u64) {
        let object = self.api.get(LEASES, node).cloned();
        let all = self.rng.one_in(2);
        let outage = self.weather.outage;
        let Some(machine) = self.machines.get_mut(node).filter(|m| m.life == life) else {
            return;
        };
        machine.watch_due = false;
        let Some(agent) = &mut machine.agent else {
            return;
        };
        if !agent.synced && outage {
            machine.watch_due = true;
            let node = node.to_owned();
            self.after(700, Event::AgentWatch { node, life });
            return;
        }
        if agent.synced {
            let count = if all { machine.inbox.len() } else { 1 };
            for _ in 0..count {
                if let Some(lease) = machine.inbox.pop_front() {
                    machine.learn(lease.as_deref());
                }
            }
        } else {
            agent.synced = true;
            machine.inbox.clear();
            machine.learn(object.as_deref());
        }
        if !machine.inbox.is_empty() {
            self.agent_watch_due(node);
        }
        self.run_agent(node);
    }

    pub(super) fn agent_tick(&mut self, node: &str, life: u64) {
        let now = self.unix();
        let Some(machine) = self.machines.get(node).filter(|m| m.life == life) else {
            return;
        };
        let current = machine.journal.current.as_ref();
        let due = current
            .and_then(|c| c.core.wake_at(now))
            .is_some_and(|at| at <= now);
        if due && machine.agent.is_some() {
            self.feed(node, Told::Ticked);
        }
        self.run_agent(node);
    }

    /// Carries out what the shell has to do, until it has to wait.
    pub(super) fn run_agent(&mut self, node: &str) {
        for _ in 0..100 {
            let now = self.now;
            let Some(machine) = self.machines.get(node).filter(|m| m.up) else {
                return;
            };
            let Some(agent) = &machine.agent else { return };
            let boot_id = machine.boot_id();
            let host = Host {
                node_uid: &machine.node_uid,
                machine_id: &machine.machine_id,
                boot_id: &boot_id,
                epoch: &machine.journal.epoch,
            };
            let Some(act) = agent.next(&machine.journal, host, now) else {
                self.sleep_agent(node);
                return;
            };
            if self.is_struck() {
                self.strike(node);
                return;
            }
            self.act(node, act);
        }
        self.fail(format!("the agent of {node} spins"));
    }

    fn sleep_agent(&mut self, node: &str) {
        let (now, unix) = (self.now, self.unix());
        let Some(machine) = self.machines.get(node) else {
            return;
        };
        let life = machine.life;
        let current = machine.journal.current.as_ref();
        let core = current.and_then(|c| c.core.wake_at(unix));
        let core = core.map(|at| u64::try_from(at - unix).unwrap_or_default());
        let retry = machine.agent.as_ref().and_then(Agent::retry_at);
        let retry = retry.filter(|at| *at > now).map(|at| at - now);
        if let Some(delay) = core.into_iter().chain(retry).min() {
            let node = node.to_owned();
            self.after(delay.max(1), Event::AgentTick { node, life });
        }
    }

    fn act(&mut self, node: &str, act: Act) {
        match act {
            Act::Feed(event) => self.feed(node, event),
            Act::Archive => self.archive(node),
            Act::Begin => self.begin_lease(node),
            Act::GetRevision(name) => {
                let namespace = &self.settings.namespace;
                let path =
                    format!("/apis/apps/v1/namespaces/{namespace}/controllerrevisions/{name}");
                self.agent_send(node, "GET", path, Value::Null, Answer::Revision(name));
            }
            Act::Report(status) => {
                let machine = self.machines.get(node);
                let lease = machine.and_then(|m| m.agent.as_ref()?.lease.clone());
                let Some(lease) = lease else { return };
                let metadata =
                    json!({ "uid": lease.uid(), "resourceVersion": lease.resource_version() });
                let body = json!({ "metadata": metadata, "status": status });
                let path = format!("{}/status", lease_path(node));
                self.agent_send(node, "PUT", path, body, Answer::Report);
            }
        }
    }

    fn archive(&mut self, node: &str) {
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        if let Some(current) = machine.journal.current.take() {
            let known = current.core.known();
            machine.journal.known.insert(current.skyhook, known);
            machine.journal.next_step = current.core.next_step();
            machine.steps.clear();
        }
    }

    fn agent_send(&mut self, node: &str, method: &str, path: String, body: Value, tag: Answer) {
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        let Some(agent) = &mut machine.agent else {
            return;
        };
        if !matches!(tag, Answer::Look { .. }) {
            agent.waits = true;
        }
        let life = machine.life;
        let request = Request {
            method: method.to_owned(),
            path,
            body,
            ..Request::default()
        };
        self.send(Flight {
            sender: Sender::Agent {
                node: node.to_owned(),
                life,
            },
            request,
            reply: None,
            tag: Some(tag),
            response: None,
        });
    }

    pub(super) fn write_running(&mut self, node: &str, lease: &str, resource_version: &str) {
        let machine = self.machines.get(node);
        let held = machine.and_then(|m| m.agent.as_ref()?.lease.clone());
        let mut status = held.and_then(|lease| lease.status).unwrap_or_default();
        status.phase = Some(Phase::Running);
        let metadata = json!({ "uid": lease, "resourceVersion": resource_version });
        let body = json!({ "metadata": metadata, "status": status });
        let path = format!("{}/status", lease_path(node));
        let answer = Answer::Running {
            lease: lease.to_owned(),
        };
        self.agent_send(node, "PUT", path, body, answer);
    }

    pub(super) fn look_at_lease(&mut self, node: &str, lease: String) {
        let answer = Answer::Look { lease };
        self.agent_send(node, "GET", lease_path(node), Value::Null, answer);
    }

    fn begin_lease(&mut self, node: &str) {
        let now = self.unix();
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        let boot_id = machine.boot_id();
        let Some(agent) = &machine.agent else { return };
        let Some((lease, (_, data))) = agent.lease.as_ref().zip(agent.revision.as_ref()) else {
            return;
        };
        let skyhook = lease.spec.skyhook.name.clone();
        let core = C::begin(&Start {
            lease,
            data,
            known: machine.journal.known.get(&skyhook),
            machine_id: &machine.machine_id,
            boot_id: &boot_id,
            epoch: Some(machine.journal.epoch.as_str()).filter(|_| self.settings.reapply_on_reboot),
            next_step: machine.journal.next_step,
            now,
        });
        let current = Current {
            lease: lease.uid().unwrap_or_default(),
            skyhook,
            core,
        };
        // One write: a lease is never on record without having begun.
        self.feed_into(node, Some(current), Told::Begun);
    }

    pub(super) fn agent_answer(&mut self, node: &str, life: u64, tag: Answer, response: &Response) {
        let again = self.now + self.rng.between(500, 2_000);
        let Some(machine) = self.machines.get_mut(node).filter(|m| m.life == life) else {
            return;
        };
        let Some(agent) = &mut machine.agent else {
            return;
        };
        let held = agent.lease.as_ref().and_then(|l| l.resource_version());
        let ok = response.is_success();
        match tag {
            Answer::Report | Answer::Running { .. } => {
                agent.waits = false;
                // An answer that comes after the watch has said that the lease is gone says nothing new.
                if ok && agent.lease.is_some() {
                    machine.learn(Some(&response.body));
                } else {
                    agent.refused = held.map(|version| (version, again));
                    agent.forget();
                }
                if let Answer::Running { lease } = tag
                    && machine.works_on(&lease)
                {
                    let written = Told::RunningWritten;
                    self.feed(node, if ok { written } else { Told::RunningRefused });
                }
            }
            Answer::Revision(name) => {
                agent.waits = false;
                let data = RevisionData::deserialize(&response.body["data"]);
                match data.ok().filter(|_| ok) {
                    Some(data) => agent.revision = Some((name, data)),
                    None => agent.refused = held.map(|version| (version, again)),
                }
            }
            Answer::Look { lease } => {
                let there = &response.body["metadata"];
                let stands = match response.code {
                    200 => there["uid"] == json!(lease) && there["deletionTimestamp"].is_null(),
                    401 | 404 | 409 => false,
                    // Silence does not stop a wave.
                    _ => true,
                };
                self.feed(node, Told::LeaseLooked { lease, stands });
            }
        }
        self.run_agent(node);
    }
}

fn lease_path(node: &str) -> String {
    format!("/apis/skyhook.nvidia.com/v1alpha1/interruptionleases/{node}")
}
