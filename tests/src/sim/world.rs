//! The world: one clock, one queue of events, one source of chance. Coordinators, agents, kubelets, the garbage
//! collector and an administrator act in it, and requests take their time.

mod boots;
pub mod check;
mod deletion;
mod ending;
pub mod faults;
pub mod finish;
pub mod host;
mod loops;
mod order;
mod paced;
mod pods;
pub mod replica;
pub mod setup;
mod slots;
mod slow;
mod taints;

use std::collections::{BTreeMap, VecDeque};

use skyhook_fleet::settings::Settings;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::agent::Core;
use super::api::{Api, Request, Response};
use super::rng::Rng;
use super::{Run, Shape};
use check::Checks;
use host::Machine;
use loops::Answer;
use replica::Replica;

/// What the coordinator watches.
pub const NODES: &str = "nodes";
pub const SKYHOOKS: &str = "skyhooks";
pub const LEASES: &str = "interruptionleases";
pub const REVISIONS: &str = "controllerrevisions";
pub const POLICIES: &str = "deploymentpolicies";
pub const ROLLOUTS: &str = "rolloutstates";
pub const PODS: &str = "pods";
/// Everything that a coordinator watches.
pub const WATCHED: [&str; 6] = [NODES, SKYHOOKS, LEASES, REVISIONS, POLICIES, ROLLOUTS];

/// Something that is due.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A coordinator plans.
    Pass {
        replica: usize,
        life: u64,
    },
    /// A watch of a coordinator delivers.
    Watch {
        replica: usize,
        life: u64,
        kind: &'static str,
    },
    /// A coordinator is started, or a frozen one goes on.
    StartReplica(usize),
    Thaw {
        replica: usize,
        life: u64,
    },
    /// A request reaches the API server, and its answer the sender.
    Arrive(u64),
    Respond(u64),
    StartAgent(String),
    /// An agent's watch delivers.
    AgentWatch {
        node: String,
        life: u64,
    },
    /// An agent looks at its clock.
    AgentTick {
        node: String,
        life: u64,
    },
    StepEnds {
        node: String,
        boot: u64,
        id: u64,
        ended: bool,
    },
    /// The core of an agent is told something.
    Tell {
        node: String,
        life: u64,
        event: Box<super::agent::Event>,
    },
    InterruptEnds {
        node: String,
        boot: u64,
    },
    Boot(String),
    /// A kubelet reports.
    Kubelet(String),
    PodGone(String),
    /// The garbage collector looks for objects whose owner is gone.
    Collect,
    /// An administrator creates, deletes or disables a Skyhook.
    Apply(Box<serde_json::Value>),
    Delete(String),
    Disable(String),
    Fault,
    Heal(faults::Heal),
    Calm,
    Look,
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sender {
    Replica { index: usize, life: u64 },
    Agent { node: String, life: u64 },
}

/// A request under way.
#[derive(Debug)]
struct Flight {
    sender: Sender,
    request: Request,
    /// For a coordinator.
    reply: Option<oneshot::Sender<Response>>,
    /// For an agent.
    tag: Option<Answer>,
    response: Option<Response>,
}

/// Everything there is.
#[derive(Debug)]
pub struct World<'a, C: Core> {
    now: u64,
    shape: Shape,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    rng: Rng,
    runtime: &'a Runtime,
    settings: &'a Settings,
    api: Api,
    flights: BTreeMap<u64, Flight>,
    replicas: Vec<Replica<'a>>,
    machines: BTreeMap<String, Machine<C>>,
    /// How far the logs were looked at.
    looked: BTreeMap<&'static str, usize>,
    checks: Checks,
    weather: faults::Weather,
    taints: taints::Taints,
    rest: Option<finish::Rest>,
    failure: Option<String>,
    done: bool,
    traced: bool,
    trace: VecDeque<String>,
    stats: Run,
}

/// How long every request, and every answer, is under way to and from a slow API server, in milliseconds.
const SLOW: u64 = 100;

/// Lines of the trace that are kept.
const TRACE: usize = 20_000;

impl<'a, C: Core> World<'a, C> {
    /// A world of this chance.
    #[must_use]
    pub fn new(
        runtime: &'a Runtime,
        settings: &'a Settings,
        shape: Shape,
        rng: Rng,
        traced: bool,
    ) -> Self {
        Self {
            now: 0,
            shape,
            sequence: 0,
            queue: BTreeMap::new(),
            rng,
            runtime,
            settings,
            api: Api::default(),
            flights: BTreeMap::new(),
            replicas: Vec::new(),
            machines: BTreeMap::new(),
            looked: BTreeMap::new(),
            checks: Checks::default(),
            weather: faults::Weather::default(),
            taints: taints::Taints::default(),
            rest: None,
            failure: None,
            done: false,
            traced,
            trace: VecDeque::new(),
            stats: Run::default(),
        }
    }

    /// Plays it to the end, or to the first rule that is broken.
    #[must_use]
    pub fn run(mut self) -> Run {
        match self.shape {
            Shape::Slow => self.set_up_slow(),
            Shape::Small | Shape::Paced | Shape::Fleet | Shape::Forsaken => self.set_up(),
        }
        while !self.done && self.failure.is_none() {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                self.fail("nothing is due any more");
                break;
            };
            self.now = at;
            self.api.now = at;
            self.happen(event);
            self.notice();
        }
        Run {
            failure: self.failure,
            trace: self.trace.into(),
            took: self.now,
            ..self.stats
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Pass { replica, life } => self.pass(replica, life),
            Event::Watch {
                replica,
                life,
                kind,
            } => self.deliver(replica, life, kind),
            Event::StartReplica(index) => self.start_replica(index),
            Event::Thaw { replica, life } => self.thaw(replica, life),
            Event::Arrive(id) => self.arrive(id),
            Event::Respond(id) => self.respond(id),
            Event::StartAgent(node) => self.start_agent(&node),
            Event::AgentWatch { node, life } => self.agent_watch(&node, life),
            Event::AgentTick { node, life } => self.agent_tick(&node, life),
            Event::StepEnds {
                node,
                boot,
                id,
                ended,
            } => self.step_ends(&node, boot, id, ended),
            Event::Tell { node, life, event } => self.tell(&node, life, *event),
            Event::InterruptEnds { node, boot } => self.interrupt_ends(&node, boot),
            Event::Boot(node) => self.boot(&node),
            Event::Kubelet(node) => self.kubelet(&node),
            Event::PodGone(pod) => self.pod_gone(&pod),
            Event::Collect => self.collect(),
            Event::Apply(body) => self.apply(*body),
            Event::Delete(skyhook) => self.delete(&skyhook),
            Event::Disable(skyhook) => self.disable(&skyhook),
            Event::Fault => self.fault(),
            Event::Heal(what) => self.heal(what),
            Event::Calm => self.calm(),
            Event::Look => self.look(),
        }
    }

    /// Makes an event due after `delay` milliseconds.
    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    fn fail(&mut self, message: impl Into<String>) {
        if self.failure.is_none() {
            let message = message.into();
            self.note(|| format!("FAILED: {message}"));
            self.failure = Some(message);
        }
    }

    /// A line of the trace.
    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.traced {
            if self.trace.len() >= TRACE {
                self.trace.pop_front();
            }
            let now = self.now;
            self.trace
                .push_back(format!("{:>5}.{:03} {}", now / 1000, now % 1000, line()));
        }
    }

    /// How long a request, an answer or a watch event is under way.
    fn delay(&mut self) -> u64 {
        if self.shape == Shape::Slow {
            return SLOW;
        }
        match self.rng.below(40) {
            0 if self.weather.stormy => self.rng.between(500, 8_000),
            1..=4 => self.rng.between(20, 400),
            _ => self.rng.between(1, 12),
        }
    }

    fn send(&mut self, flight: Flight) {
        self.sequence += 1;
        let id = self.sequence;
        let delay = self.delay();
        self.flights.insert(id, flight);
        self.after(delay, Event::Arrive(id));
    }

    fn arrive(&mut self, id: u64) {
        let Some(flight) = self.flights.get(&id) else {
            return;
        };
        self.stats.requests += 1;
        let request = flight.request.clone();
        let sender = flight.sender.clone();
        if let Sender::Replica { .. } = &sender {
            self.check_precondition(&request);
        }
        let lost = match self.rng.below(60) {
            _ if self.weather.outage => Some((
                false,
                Response::failure(503, "ServiceUnavailable", "etcd has no leader"),
            )),
            0 if self.weather.stormy => {
                let seconds = self.rng.between(1, 3);
                Some((false, Response::too_many_requests(seconds)))
            }
            1 if self.weather.stormy => {
                Some((false, Response::failure(500, "InternalError", "failed")))
            }
            2 if self.weather.stormy => Some((
                true,
                Response::failure(504, "Timeout", "the answer was lost"),
            )),
            _ => None,
        };
        let response = match lost {
            Some((false, response)) => response,
            Some((true, response)) => {
                let served = self.serve(&sender, &request);
                self.note(|| format!("  (answer {} is lost)", served.code));
                response
            }
            None => self.serve(&sender, &request),
        };
        let delay = self.delay();
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.response = Some(response);
        }
        self.after(delay, Event::Respond(id));
    }

    fn serve(&mut self, sender: &Sender, request: &Request) -> Response {
        let behind = if self.weather.stormy { 5_000 } else { 300 };
        self.api.cache_lag = self.rng.below(behind);
        let response = if request.path.ends_with("/eviction") {
            self.evict(request)
        } else {
            self.api.serve(request)
        };
        self.note(|| {
            let body = if request.method == "GET" {
                String::new()
            } else {
                request.body.to_string()
            };
            let who = match sender {
                Sender::Replica { index, .. } => format!("coordinator-{index}"),
                Sender::Agent { node, .. } => format!("agent of {node}"),
            };
            let path = request.path.rsplit("v1").next().unwrap_or_default();
            let refusal = if response.is_success() {
                String::new()
            } else {
                response.body["message"].to_string()
            };
            format!(
                "{who}: {} {path} {body} -> {} {refusal}",
                request.method, response.code
            )
        });
        self.checks.author = Some(sender.clone());
        self.notice();
        self.checks.author = None;
        response
    }

    fn respond(&mut self, id: u64) {
        let Some(flight) = self.flights.remove(&id) else {
            return;
        };
        let Some(response) = flight.response else {
            return;
        };
        match flight.sender {
            Sender::Replica { index, life } => {
                if self.is_frozen(index, life) {
                    // The answer waits in the socket.
                    let delay = 50;
                    self.flights.insert(
                        id,
                        Flight {
                            sender: Sender::Replica { index, life },
                            response: Some(response),
                            ..flight
                        },
                    );
                    self.after(delay, Event::Respond(id));
                    return;
                }
                if let Some(reply) = flight.reply {
                    // A dead coordinator does not listen.
                    drop(reply.send(response));
                }
                self.settle(index, life);
            }
            Sender::Agent { node, life } => {
                if let Some(tag) = flight.tag {
                    self.agent_answer(&node, life, tag, &response);
                }
            }
        }
    }

    /// Looks at everything that was written since the last time: the rules, and who watches it.
    fn notice(&mut self) {
        for kind in WATCHED.into_iter().chain([PODS]) {
            let from = self.looked.get(kind).copied().unwrap_or_default();
            let end = self.api.end(kind);
            if from == end {
                continue;
            }
            self.looked.insert(kind, end);
            for at in from..end {
                self.observe(kind, at);
            }
            self.wake_watches(kind);
        }
    }
}
