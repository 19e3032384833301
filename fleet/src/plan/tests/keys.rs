//! What the results of a pass depend on, changed one field at a time: what an object says, what this process saw and
//! when, and which writes are under way. Each time, a pass with the cache of the pass before gives the plan that a pass
//! without a cache gives.

mod clocks;
mod taints;
mod takeover;
mod writes;

use super::leases::{grant_and, granted, leased, phase, stamp, with_package};
use super::*;
use crate::facts::NodeFact;
use crate::index::{Change, Kind};
use crate::plan::cache::Cache;
use crate::plan::reason::ReasonCode;
use skyhook_crds::installed::Stamp;
use skyhook_crds::names;

/// A replica that has made passes before.
struct Replica {
    index: Index,
    settings: Settings,
    cache: Cache,
    now: Mono,
}

impl Replica {
    /// Nodes and Skyhooks say already what the first passes wrote on them.
    fn of(picture: &Picture) -> Self {
        Self::with(picture, |_| {})
    }

    /// Does the same, after something has happened.
    fn with(picture: &Picture, happens: impl FnOnce(&mut Self)) -> Self {
        let mut replica = Self {
            index: picture.index(),
            settings: picture.settings.clone(),
            cache: Cache::default(),
            // New nodes may be told something.
            now: Mono::from_secs(2),
        };
        happens(&mut replica);
        for _ in 0..4 {
            for effect in replica.plans().0.effects {
                replica.writes(effect);
            }
        }
        replica
    }

    /// The plans with the cache and without it.
    fn plans(&mut self) -> (Plan, Plan) {
        let passed = i64::try_from(self.now.since(Mono::ZERO).as_secs()).unwrap();
        let now = Now {
            mono: self.now,
            wall: Timestamp::from_second(1_700_000_000 + passed).unwrap(),
        };
        let view = self.index.view(&self.settings, now);
        (self.cache.plan(&view), plan(&view))
    }

    fn writes(&mut self, effect: Effect) {
        match effect {
            Effect::PatchNode { node, patch, .. } => {
                let node = testkit::patched(&self.index.picture.nodes()[&node], &patch);
                self.index.picture.node(node);
            }
            Effect::WriteSkyhookStatus { name, status, .. } => {
                let mut skyhook = self.index.picture.skyhooks()[&name].clone();
                skyhook.status = Some(*status);
                skyhook.resource_version = next(&skyhook.resource_version);
                self.index.picture.skyhook(skyhook);
            }
            _ => {}
        }
    }

    fn take(&mut self, change: Change) {
        self.index.apply(change, self.now);
    }

    fn passes(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.index.expire(self.now);
    }

    /// The watch delivers worker-1 again, with one change.
    fn node(&mut self, edit: impl FnOnce(&mut NodeFact)) {
        let mut node = self.index.picture.nodes()["worker-1"].clone();
        edit(&mut node);
        node.resource_version = next(&node.resource_version);
        let changed = self.index.picture.node(node);
        let timed = self
            .index
            .clocks
            .saw(&changed, &self.index.picture, self.now);
        assert_eq!(timed, [""; 0]);
    }

    /// The watch delivers the lease of worker-1 again, with one change.
    fn lease(&mut self, edit: impl FnOnce(&mut Value)) {
        let fact = &self.index.picture.leases()["worker-1"];
        let mut lease = serde_json::to_value(fact.lease.as_ref().unwrap()).unwrap();
        edit(&mut lease);
        lease["metadata"]["resourceVersion"] = json!(next(&fact.resource_version));
        self.take(Change::Lease(Box::new(
            serde_json::from_value(lease).unwrap(),
        )));
    }
}

fn next(version: &str) -> String {
    let version: u64 = version.parse().unwrap();
    (version + 1).to_string()
}

/// What is changed, what was there before, and the change.
type Row = (&'static str, Replica, fn(&mut Replica));

fn compare<const N: usize>(rows: [Row; N]) {
    for (name, mut replica, change) in rows {
        let before = replica.plans().1;
        change(&mut replica);
        let (kept, anew) = replica.plans();
        assert_ne!(before, anew, "{name}: it makes no difference");
        assert_eq!(kept, anew, "{name}");
    }
}

/// An agent works on worker-1.
fn working() -> Picture {
    let status = with_package("Running", "in_progress");
    leased(
        stamp(Picture::new(), granted()),
        grant_and(json!({})),
        status,
    )
}

/// Worker-1 has not been Ready since this time, and an agent works on it.
fn away(since: &str) -> Picture {
    let ready = json!([{ "type": "Ready", "status": "Unknown", "lastTransitionTime": since }]);
    working().node(1, &["status", "conditions"], ready)
}

#[test]
fn what_a_nodes_status_depends_on() {
    let result = leased(
        stamp(Picture::new(), granted()),
        grant_and(json!({})),
        with_package("Complete", "complete"),
    );
    let grant = Effect::GrantLease {
        node: "worker-1".into(),
        at: version("lease", "5"),
        batch: None,
    };
    compare([
        (
            "NodeFact.ready_since: it came back and went again",
            Replica::of(&away("2023-11-14T21:00:00Z")),
            |replica| {
                replica.node(|node| node.ready_since = "2023-11-14T22:13:00Z".parse().ok());
            },
        ),
        (
            "ShownCell.in_between: the write that records the result also carries the status",
            Replica::with(&result, |replica| {
                let now = replica.now;
                replica.index.is_refused(&grant, true, now);
            }),
            |replica| replica.passes(6),
        ),
    ]);
}

#[test]
fn a_grant_depends_on_whether_another_lease_has_the_same_number() {
    let budget = Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 3 }));
    let mut picture = leased(stamp(budget, granted()), json!({ "order": 4 }), Value::Null);
    let mut younger = picture.leases[0].clone();
    for (key, value) in [("name", "worker-2"), ("uid", "uid-of-worker-2")] {
        younger["spec"]["node"][key] = json!(value);
    }
    for (key, value) in [("name", "worker-2"), ("uid", "younger")] {
        younger["metadata"][key] = json!(value);
    }
    picture.leases.push(younger);
    compare([(
        "LeaseKey.claim: the other one is gone",
        Replica::of(&picture),
        |replica| replica.take(Change::LeaseGone("worker-2".into())),
    )]);
}

#[test]
fn a_skyhooks_status_depends_on_whether_it_has_leases() {
    let taint = json!([{ "key": "gpu", "effect": "NoSchedule" }]);
    let mut picture = leased(Picture::new(), grant_and(json!({})), Value::Null);
    for n in 1..=3 {
        picture = picture.node(n, &["spec", "taints"], taint.clone());
    }
    // The lease's Node is gone. Then nothing but the lease itself says that the roll-out goes on.
    picture.leases[0]["metadata"]["name"] = json!("gone");
    picture.leases[0]["spec"]["node"] = json!({ "name": "gone", "uid": "uid-of-gone" });
    compare([(
        "StatusKey.under_way: a lease that cannot be read takes the slot as well",
        Replica::of(&picture),
        |replica| {
            let unreadable = json!({
                "metadata": { "name": "gone", "uid": "lease", "resourceVersion": "6" },
                "spec": { "node": 3 },
            });
            let unreadable = serde_json::from_value(unreadable).unwrap();
            replica.take(Change::Lease(Box::new(unreadable)));
        },
    )]);
}
