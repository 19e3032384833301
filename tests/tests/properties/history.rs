//! Arbitrary histories: everything that can happen to what a replica knows, in any order.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use skyhook_fleet::effect::{AsOf, Effect, Target};
use skyhook_fleet::index::{Change, Kind, Mono};
use skyhook_fleet::outcome::Outcome;
use skyhook_fleet::plan::Now;
use skyhook_fleet::plan::reason::Withdrawal;
use skyhook_fleet::pods::{PodFact, Refusal, RefusedBy};
use skyhook_fleet::session::Session;
use skyhook_fleet::settings::Settings;

use super::picture::{
    ALease, ANode, ASkyhook, NAMES, a_lease, a_node, a_skyhook, lease_object, node_object,
    policy_object, rollout_object, skyhook_object, wire,
};

/// Nodes that a history has at most.
const NODES: usize = 4;

/// One thing that happens.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Node(usize, ANode, u8),
    NodeGone(usize),
    /// The Node comes again with nothing new but its version.
    Heartbeat(usize),
    Lease(usize, ALease, bool),
    LeaseGone(usize),
    Skyhook(usize, ASkyhook),
    SkyhookGone(usize),
    Revision(usize, bool),
    RevisionGone(usize),
    Policy(Option<u8>),
    Rollout(usize, u8),
    RolloutGone(usize),
    AgentsRefused(bool),
    Pods(usize, u8, bool),
    Evicted(usize, bool),
    /// The node's agent has not accepted a lease in time: the node is left alone for a while.
    LeftAlone(usize),
    /// So many milliseconds pass.
    Time(u32),
    /// What holds nothing back any more is forgotten.
    Expire,
    /// Writes that are planned begin, at most so many.
    Begin(usize),
    /// A write that is under way ends, in one of five ways.
    Settle(usize, u8),
    /// A watch breaks and lists again; of what it held, every so many objects are missing.
    List(Kind, usize),
}

fn at() -> impl Strategy<Value = usize> {
    0..NODES
}

fn a_step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![
        Kind::Node,
        Kind::Skyhook,
        Kind::Lease,
        Kind::Revision,
        Kind::Policy,
        Kind::Rollout,
    ]);
    prop_oneof![
        6 => (at(), a_node(), any::<u8>()).prop_map(|(at, node, other)| Step::Node(at, node, other)),
        1 => at().prop_map(Step::NodeGone),
        1 => at().prop_map(Step::Heartbeat),
        8 => (at(), a_lease(), any::<bool>()).prop_map(|(at, lease, new)| Step::Lease(at, lease, new)),
        2 => at().prop_map(Step::LeaseGone),
        3 => (0..2_usize, a_skyhook()).prop_map(|(at, skyhook)| Step::Skyhook(at, skyhook)),
        1 => (0..2_usize).prop_map(Step::SkyhookGone),
        2 => (0..2_usize, any::<bool>()).prop_map(|(at, newest)| Step::Revision(at, newest)),
        1 => (0..2_usize).prop_map(Step::RevisionGone),
        2 => prop::option::of(0..5_u8).prop_map(Step::Policy),
        2 => (0..2_usize, any::<u8>()).prop_map(|(at, form)| Step::Rollout(at, form)),
        1 => (0..2_usize).prop_map(Step::RolloutGone),
        1 => any::<bool>().prop_map(Step::AgentsRefused),
        3 => (at(), 0..3_u8, any::<bool>()).prop_map(|(at, pods, consistent)| Step::Pods(at, pods, consistent)),
        1 => (at(), any::<bool>()).prop_map(|(at, refused)| Step::Evicted(at, refused)),
        1 => at().prop_map(Step::LeftAlone),
        5 => prop::sample::select(vec![1, 300, 1_000, 4_000, 15_000, 70_000, 400_000]).prop_map(Step::Time),
        2 => Just(Step::Expire),
        4 => (1..6_usize).prop_map(Step::Begin),
        4 => (any::<usize>(), 0..6_u8).prop_map(|(at, how)| Step::Settle(at, how)),
        2 => (kind, 1..4_usize).prop_map(|(kind, every)| Step::List(kind, every)),
    ]
}

pub(super) fn a_history() -> impl Strategy<Value = Vec<Step>> {
    let skyhooks = (a_skyhook(), a_skyhook());
    let nodes = prop::collection::vec((a_node(), any::<u8>()), 0..NODES);
    let steps = prop::collection::vec(a_step(), 1..40);
    (skyhooks, nodes, steps).prop_map(|(skyhooks, nodes, steps)| {
        let mut all = vec![
            Step::Skyhook(0, skyhooks.0),
            Step::Skyhook(1, skyhooks.1),
            Step::Revision(0, true),
            Step::Revision(1, true),
        ];
        let nodes = nodes.into_iter().enumerate();
        all.extend(nodes.map(|(at, (node, other))| Step::Node(at, node, other)));
        all.extend(steps);
        all
    })
}

pub(super) fn a_setting() -> impl Strategy<Value = Settings> {
    (prop::option::of(0..4_usize), any::<bool>(), any::<bool>()).prop_map(|(cap, reapply, own)| {
        Settings {
            max_concurrent_nodes: cap,
            reapply_on_reboot: reapply,
            node_name: own.then(|| name(0)),
            node_return_timeout: Duration::from_secs(60),
            ..Settings::default()
        }
    })
}

fn name(at: usize) -> String {
    format!("worker-{at}")
}

/// A replica to which things happen.
pub(super) struct Replica<'a> {
    pub(super) session: Session<'a>,
    mono: Mono,
    version: u64,
    /// What the API server holds, by kind and name.
    held: BTreeMap<(Kind, String), Value>,
    under_way: Vec<Effect>,
}

impl<'a> Replica<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        let mut replica = Self {
            session: Session::new(settings),
            mono: Mono::from_secs(10_000),
            version: 10,
            held: BTreeMap::new(),
            under_way: Vec::new(),
        };
        for kind in Kind::ALL {
            replica.take(Change::Synced(kind));
        }
        replica
    }

    pub(super) fn now(&self) -> Now {
        let epoch = Timestamp::from_second(1_790_000_000).unwrap_or_default();
        let passed = SignedDuration::try_from(self.mono.since(Mono::ZERO)).unwrap_or_default();
        Now {
            mono: self.mono,
            wall: epoch + passed,
        }
    }

    fn take(&mut self, change: Change) {
        self.session.take(change, self.mono);
    }

    /// Stores an object in a new version, and has its watch deliver it.
    fn store(&mut self, kind: Kind, name: String, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.held.insert((kind, name), object.clone());
        self.deliver(kind, object);
    }

    fn deliver(&mut self, kind: Kind, object: Value) {
        let change = match kind {
            Kind::Node => Change::Node(wire(object)),
            Kind::Skyhook => Change::Skyhook(wire(object)),
            Kind::Lease => Change::Lease(wire(object)),
            Kind::Revision => Change::Revision(wire(object)),
            Kind::Policy => Change::Policy(wire(object)),
            Kind::Rollout => Change::Rollout(wire(object)),
        };
        self.take(change);
    }

    fn forget(&mut self, kind: Kind, name: String) {
        self.held.remove(&(kind, name.clone()));
        self.take(match kind {
            Kind::Node => Change::NodeGone(name),
            Kind::Skyhook => Change::SkyhookGone(name),
            Kind::Lease => Change::LeaseGone(name),
            Kind::Revision => Change::RevisionGone(name),
            Kind::Policy => Change::PolicyGone(name),
            Kind::Rollout => Change::RolloutGone(name),
        });
    }

    fn revision(&self, at: usize) -> Option<(String, Value)> {
        let skyhook = self.session.index().picture().skyhooks().get(NAMES[at])?;
        let checked = skyhook.checked.as_ref().ok()?;
        Some((checked.revision.clone(), json!(checked.data)))
    }

    fn revisions(&self) -> Vec<String> {
        let name = |at| self.revision(at).map(|(name, _)| name).unwrap_or_default();
        (0..NAMES.len()).map(name).collect()
    }

    fn recently(&self) -> String {
        self.now().wall.to_string()
    }

    /// Lets one thing happen.
    pub(super) fn happens(&mut self, step: &Step, planned: &[Effect]) {
        match step {
            Step::Node(at, node, other) => {
                let mut object = node_object(&name(*at), node, &self.revisions());
                let condition = &mut object["status"]["conditions"][0];
                condition["lastTransitionTime"] = json!(self.recently());
                if other % 5 == 0 {
                    object["status"]["nodeInfo"]["bootID"] = json!("another boot");
                }
                if other % 7 == 0 {
                    object["metadata"]["uid"] = json!("another");
                }
                self.store(Kind::Node, name(*at), object);
            }
            Step::NodeGone(at) => self.forget(Kind::Node, name(*at)),
            Step::Heartbeat(at) => {
                if let Some(object) = self.held.get(&(Kind::Node, name(*at))).cloned() {
                    self.store(Kind::Node, name(*at), object);
                }
            }
            Step::Lease(at, lease, new) => {
                let mut object = lease_object(&name(*at), lease, &self.revisions());
                if *new && object["spec"]["drain"].is_object() {
                    object["spec"]["drain"]["since"] = json!(self.recently());
                }
                self.store(Kind::Lease, name(*at), object);
            }
            Step::LeaseGone(at) => self.forget(Kind::Lease, name(*at)),
            Step::Skyhook(at, skyhook) => {
                if skyhook.there {
                    let object = skyhook_object(*at, skyhook);
                    self.store(Kind::Skyhook, NAMES[*at].to_owned(), object);
                }
            }
            Step::SkyhookGone(at) => self.forget(Kind::Skyhook, NAMES[*at].to_owned()),
            Step::Revision(at, newest) => {
                if let Some((name, data)) = self.revision(*at) {
                    let object = json!({
                        "metadata": { "name": name, "uid": "r", "ownerReferences": [{
                            "apiVersion": "x", "kind": "Skyhook", "name": NAMES[*at],
                            "uid": format!("uid-{}", NAMES[*at]),
                        }] },
                        "revision": if *newest { 2 } else { 1 },
                        "data": data,
                    });
                    self.store(Kind::Revision, name, object);
                }
            }
            Step::RevisionGone(at) => {
                if let Some((name, _)) = self.revision(*at) {
                    self.forget(Kind::Revision, name);
                }
            }
            Step::Policy(form) => self.policy(*form),
            Step::Rollout(at, form) => self.rollout(*at, *form),
            Step::RolloutGone(at) => self.forget(Kind::Rollout, NAMES[*at].to_owned()),
            Step::AgentsRefused(refused) => {
                let why = refused.then(|| "the quota is used up".to_owned());
                self.take(Change::AgentsRefused(why));
            }
            Step::Pods(at, pods, consistent) => self.take(Change::Pods {
                node: name(*at),
                lease_uid: format!("lease-{}", name(*at)),
                pods: (0..*pods).map(pod).collect(),
                consistent: *consistent,
            }),
            Step::Evicted(at, refused) => self.take(Change::Evicted {
                node: name(*at),
                lease_uid: format!("lease-{}", name(*at)),
                pod_uid: "pod-0".to_owned(),
                problem: refused.then(forbidden),
            }),
            Step::LeftAlone(at) => self.leave_alone(*at),
            Step::Time(millis) => self.mono += Duration::from_millis((*millis).into()),
            Step::Expire => self.session.expire(self.mono),
            Step::Begin(most) => self.begin(planned, *most),
            Step::Settle(at, how) => self.settle(*at, *how),
            Step::List(kind, every) => self.list(*kind, *every),
        }
    }

    fn policy(&mut self, form: Option<u8>) {
        let name = "tuned".to_owned();
        match form {
            Some(form) => self.store(Kind::Policy, name, policy_object(form)),
            None => self.forget(Kind::Policy, name),
        }
    }

    fn rollout(&mut self, at: usize, form: u8) {
        let object = rollout_object(at, form);
        self.store(Kind::Rollout, NAMES[at].to_owned(), object);
    }

    fn leave_alone(&mut self, at: usize) {
        let withdrawal = Effect::WithdrawLease {
            node: name(at),
            at: AsOf {
                uid: "gone".to_owned(),
                resource_version: "1".to_owned(),
            },
            why: Withdrawal::AgentNotResponding,
        };
        let done = Outcome::Done(None);
        self.session.settle(&withdrawal, done, self.mono);
    }

    fn begin(&mut self, planned: &[Effect], most: usize) {
        for effect in planned.iter().take(most) {
            if self.session.begin(effect, self.mono).is_ok() {
                self.under_way.push(effect.clone());
            }
        }
    }

    /// The object that a write returns, in a new version; `None` for writes that return none, and when the object is
    /// gone.
    fn answered(&mut self, effect: &Effect) -> Option<Change> {
        let (kind, name) = match effect.target() {
            Target::Node(name) => (Kind::Node, name),
            Target::Skyhook(name) => (Kind::Skyhook, name),
            Target::Revision(name) => (Kind::Revision, name),
            Target::Rollout(name) => (Kind::Rollout, name),
            Target::Lease(_) | Target::Pods(_) | Target::Pod(_) | Target::Look(_) => return None,
        };
        let held = self.held.get_mut(&(kind, name))?;
        self.version += 1;
        held["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = held.clone();
        Some(match kind {
            Kind::Node => Change::Node(wire(object)),
            Kind::Skyhook => Change::Skyhook(wire(object)),
            Kind::Rollout => Change::Rollout(wire(object)),
            Kind::Lease | Kind::Revision | Kind::Policy => Change::Revision(wire(object)),
        })
    }

    fn settle(&mut self, at: usize, how: u8) {
        if self.under_way.is_empty() {
            return;
        }
        let effect = self.under_way.remove(at % self.under_way.len());
        let (after, error) = (Duration::from_secs(2), "no".to_owned());
        let outcome = match how {
            0 => Outcome::Done(None),
            1 => Outcome::Done(self.answered(&effect)),
            2 => Outcome::Stale,
            3 => Outcome::Retry { error },
            4 => Outcome::Busy { after, error },
            _ => Outcome::Refused { error },
        };
        self.session.settle(&effect, outcome, self.mono);
    }

    fn list(&mut self, kind: Kind, every: usize) {
        self.take(Change::ListBegins(kind));
        let objects: Vec<_> = self
            .held
            .iter()
            .filter(|((of, _), _)| *of == kind)
            .map(|((_, name), object)| (name.clone(), object.clone()))
            .collect();
        for (at, (name, object)) in objects.into_iter().enumerate() {
            if at % (every + 1) == every {
                self.held.remove(&(kind, name));
            } else {
                self.deliver(kind, object);
            }
        }
        self.take(Change::Synced(kind));
    }
}

fn forbidden() -> Refusal {
    Refusal {
        by: RefusedBy::DisruptionBudget,
        text: "a budget forbids it".to_owned(),
    }
}

fn pod(number: u8) -> PodFact {
    PodFact {
        namespace: "default".to_owned(),
        name: format!("pod-{number}"),
        uid: format!("pod-{number}"),
        controller: (number == 0).then(|| "ReplicaSet".to_owned()),
        ..PodFact::default()
    }
}
