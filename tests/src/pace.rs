//! A record of who is worked on, by compartment and batch, from the one ordered stream of leases: how many there were at
//! once, which nodes each batch had, and every rule that was broken on the way.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use kube::{Client, ResourceExt as _};
use skyhook_crds::lease::protocol;
use skyhook_crds::lease::{InterruptionLeaseSpec, Phase};
use skyhook_crds::{InterruptionLease, State};
use skyhook_integration::record::{Record, Recorder};

/// Records for as long as it lives.
#[derive(Debug)]
pub struct PaceRecorder(Recorder<Pace>);

/// A compartment of a Skyhook.
type Place = (String, String);

/// What is remembered of a lease that exists.
#[derive(Clone, Debug)]
struct Held {
    place: Place,
    batch: Option<i64>,
    granted: bool,
    /// Its agent is done, or has tried for as long as a batch waits for it.
    ended: bool,
}

/// How many leases a compartment had at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    pub granted: usize,
    /// Granted and reserved.
    pub all: usize,
}

/// What was seen.
#[derive(Debug, Default)]
struct Pace {
    /// By node.
    held: BTreeMap<String, Held>,
    most: BTreeMap<Place, Most>,
    /// Nodes whose lease was granted, by batch.
    batches: BTreeMap<(Place, i64), BTreeSet<String>>,
    /// Nodes with their `SKYHOOK_NODE_ORDER`, by the UID of the Skyhook.
    orders: BTreeMap<(String, i64), String>,
    broken: Vec<String>,
}

impl PaceRecorder {
    /// Returns once the watch delivers.
    pub async fn start(client: Client) -> Result<Self> {
        Ok(Self(Recorder::start(client).await?))
    }

    /// The most leases that a compartment had at once. Fails if a rule was broken, or if the stream had a gap.
    pub fn most(&self, skyhook: &str, compartment: &str) -> Result<Most> {
        self.lawful()?;
        let place = (skyhook.to_owned(), compartment.to_owned());
        self.0
            .whole(|pace| pace.most.get(&place).copied().unwrap_or_default())
    }

    /// How many nodes were granted in each batch of a compartment, in the order of the batches.
    pub fn batches(&self, skyhook: &str, compartment: &str) -> Result<Vec<usize>> {
        self.lawful()?;
        let place = (skyhook.to_owned(), compartment.to_owned());
        self.0.whole(|pace| {
            let batches = pace.batches.iter();
            let own = batches.filter(|((of, _), _)| *of == place);
            own.map(|(_, nodes)| nodes.len()).collect()
        })
    }

    /// The `SKYHOOK_NODE_ORDER`s that a Skyhook has given, with the nodes.
    pub fn orders(&self, skyhook_uid: &str) -> Result<Vec<(i64, String)>> {
        self.lawful()?;
        self.0.whole(|pace| {
            let orders = pace.orders.iter();
            let own = orders.filter(|((uid, _), _)| uid == skyhook_uid);
            own.map(|((_, order), node)| (*order, node.clone()))
                .collect()
        })
    }

    /// Fails if a rule was broken.
    pub fn lawful(&self) -> Result<()> {
        let broken = self.0.whole(|pace| pace.broken.clone())?;
        ensure!(broken.is_empty(), "{broken:#?}");
        Ok(())
    }
}

impl Record for Pace {
    type Object = InterruptionLease;

    fn is(&mut self, lease: InterruptionLease) {
        let node = lease.name_any();
        let spec = &lease.spec;
        let now = Held {
            place: (spec.skyhook.name.clone(), spec.compartment.clone()),
            batch: spec.batch.as_ref().map(|batch| batch.number),
            granted: spec.granted.is_some(),
            ended: has_ended(&lease),
        };
        let before = self.held.insert(node.clone(), now.clone());
        if now.granted && !before.is_some_and(|before| before.granted) {
            self.is_granted(&node, &now, spec);
        }
        let all = self.held.values().filter(|held| held.place == now.place);
        let granted = all.clone().filter(|held| held.granted).count();
        let all = all.count();
        let most = self.most.entry(now.place).or_default();
        most.all = most.all.max(all);
        most.granted = most.granted.max(granted);
    }

    fn is_gone(&mut self, lease: InterruptionLease) {
        self.held.remove(&lease.name_any());
    }
}

impl Pace {
    fn is_granted(&mut self, node: &str, now: &Held, spec: &InterruptionLeaseSpec) {
        let is_open = |held: &Held| held.granted && !held.ended && held.place == now.place;
        let others = self.held.iter();
        let others = others.filter(|(_, held)| is_open(held) && held.batch != now.batch);
        for (other, held) in others {
            let (own, others) = (now.batch, held.batch);
            self.broken.push(format!(
                "{node} is granted in batch {own:?} while {other} works in batch {others:?}"
            ));
        }
        if let Some(batch) = now.batch {
            let nodes = self.batches.entry((now.place.clone(), batch)).or_default();
            nodes.insert(node.to_owned());
        }
        if let Some(order) = spec.order {
            let key = (spec.skyhook.uid.clone(), order);
            let first = self.orders.entry(key).or_insert_with(|| node.to_owned());
            if first != node {
                self.broken
                    .push(format!("{node} is granted with number {order} of {first}"));
            }
        } else {
            self.broken
                .push(format!("{node} is granted without a number"));
        }
    }
}

fn has_ended(lease: &InterruptionLease) -> bool {
    let status = lease.status.iter();
    let mut packages = status.flat_map(|status| status.packages.values());
    let has_failed = packages.any(|one| one.state == State::Erroring && one.restarts >= 3);
    has_failed || protocol::phase(lease).is_some_and(Phase::is_terminal)
}
