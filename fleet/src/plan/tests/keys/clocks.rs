//! What this process saw, and when.

use super::super::policies::{STATE, exponential, in_batch, member, with_batch};
use super::*;
use crate::batches::Look;
use crate::clocks::{Backoff, Clocks, DrainWatch, EvictionTry, LeaseClock, PodList};
use crate::pods::{PodFact, Refusal, RefusedBy};

impl Replica {
    fn pods(&mut self, lease: &str, pods: &[&str], consistent: bool) {
        self.take(Change::Pods {
            node: "worker-1".into(),
            lease_uid: lease.into(),
            pods: pods.iter().map(|name| pod(name)).collect(),
            consistent,
        });
    }

    fn evicted(&mut self, problem: Option<RefusedBy>) {
        self.take(Change::Evicted {
            node: "worker-1".into(),
            lease_uid: "lease".into(),
            pod_uid: "web".into(),
            problem: problem.map(|by| Refusal {
                by,
                text: "it is not allowed".to_owned(),
            }),
        });
    }

    fn back_off(&mut self, seconds: u64, code: ReasonCode, message: &'static str) {
        let until = self.now + Duration::from_secs(seconds);
        let backoff = Backoff {
            skyhook: None,
            until,
            code,
            message,
        };
        self.index.back_off("worker-1".into(), backoff);
    }
}

fn pod(name: &str) -> PodFact {
    PodFact {
        namespace: "default".into(),
        name: name.into(),
        uid: name.into(),
        controller: Some("ReplicaSet".into()),
        ..PodFact::default()
    }
}

/// Worker-1 is cordoned for the lease, and its pods have to leave.
fn draining() -> Picture {
    let mut status = phase("AwaitingDrain");
    status["needsDrain"] = json!(true);
    let drain = json!({ "drain": { "state": "Draining", "since": "2023-11-14T22:13:10Z" } });
    let owners = json!({ "wasUnschedulable": false, "owners": { "s": "lease" } });
    leased(stamp(Picture::new(), granted()), grant_and(drain), status)
        .annotated(1, names::CORDON_OWNERS, &owners.to_string())
        .node(1, &["spec", "unschedulable"], json!(true))
}

/// The stamp of worker-1 says that a drain took too long.
fn undrained(at: &str) -> Stamp {
    Stamp {
        drain_timed_out: at.into(),
        ..Stamp::default()
    }
}

/// No node gets a lease.
fn closed() -> Picture {
    Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 }))
}

/// A new node takes the place of worker-1.
fn joins(replica: &mut Replica) {
    replica.passes(10);
    replica.node(|node| node.uid = "another".into());
}

#[test]
fn what_is_decided_on_the_clocks_of_a_lease() {
    let not_accepted = || {
        leased(
            stamp(Picture::new(), granted()),
            grant_and(json!({})),
            Value::Null,
        )
    };
    let not_granted = leased(stamp(Picture::new(), granted()), json!({}), Value::Null);
    let stopping = || {
        let stop = json!({ "stop": { "reason": "Deleted", "since": "2023-11-14T22:13:00Z" } });
        let status = with_package("Running", "in_progress");
        leased(stamp(Picture::new(), granted()), grant_and(stop), status)
    };
    let paused = || {
        let spec = json!({
            "stop": { "reason": "Paused", "since": "2023-11-14T22:13:20Z" },
            "drain": { "state": "Draining", "since": "2023-11-14T22:13:20Z" },
        });
        let mut picture = draining();
        for key in ["stop", "drain"] {
            picture.leases[0]["spec"][key] = spec[key].clone();
        }
        picture
    };
    compare([
        (
            "LeaseClock.uid: another lease",
            Replica::of(&not_accepted()),
            |replica| {
                replica.passes(10);
                replica.lease(|lease| lease["metadata"]["uid"] = json!("another"));
            },
        ),
        (
            "LeaseClock.granted: the grant is seen",
            Replica::of(&not_granted),
            |replica| {
                replica.lease(|lease| {
                    lease["spec"]["granted"] = json!({ "by": "c", "at": "t" });
                });
            },
        ),
        (
            "LeaseClock.granted: the agent's time is over",
            Replica::of(&not_accepted()),
            |replica| {
                let timeout = replica.settings.accept_timeout.as_secs();
                replica.passes(timeout + 1);
            },
        ),
        (
            "LeaseClock.given_up, LeaseClock.skyhook: its Skyhook is gone",
            Replica::of(&stopping()),
            |replica| replica.take(Change::SkyhookGone("s".into())),
        ),
        (
            "LeaseClock.given_up: a list does not have its Skyhook",
            Replica::of(&stopping()),
            |replica| {
                replica.take(Change::ListBegins(Kind::Skyhook));
                replica.take(Change::Synced(Kind::Skyhook));
            },
        ),
        (
            "LeaseClock.drain: the drain begins anew",
            Replica::of(&draining()),
            |replica| {
                replica.passes(10);
                replica.lease(|lease| {
                    lease["spec"]["drain"]["since"] = json!("2023-11-14T22:13:30Z");
                });
            },
        ),
        (
            "LeaseClock.paused, LeaseClock.resumed: a pause ends",
            Replica::of(&paused()),
            |replica| {
                replica.passes(10);
                replica.lease(|lease| lease["spec"]["stop"] = Value::Null);
            },
        ),
        (
            "Clocks.leases: the lease is gone",
            Replica::of(&working()),
            |replica| replica.take(Change::LeaseGone("worker-1".into())),
        ),
    ]);
    // No pass reads `blocked`: it says whether an event is due.
    let rows = [
        "uid", "granted", "given_up", "resumed", "drain", "blocked", "paused", "skyhook",
    ];
    assert_eq!(LeaseClock::fields(), rows, "each needs a row above");
}

#[test]
fn what_is_decided_on_the_clocks_of_a_node() {
    let backed_off = |seconds| {
        Replica::with(&Picture::new(), |replica| {
            replica.back_off(seconds, ReasonCode::AgentNotResponding, "why");
        })
    };
    compare([
        (
            "Clocks.backoff: it begins",
            Replica::of(&Picture::new()),
            |replica| replica.back_off(60, ReasonCode::AgentNotResponding, "why"),
        ),
        (
            "Backoff.skyhook: it is for this one",
            Replica::of(&Picture::new()),
            |replica| {
                let backoff = Backoff {
                    skyhook: Some("s".into()),
                    until: replica.now + Duration::from_secs(60),
                    code: ReasonCode::AgentNotResponding,
                    message: "why",
                };
                replica.index.back_off("worker-1".into(), backoff);
            },
        ),
        ("Backoff.until: it is over", backed_off(60), |replica| {
            replica.passes(60);
        }),
        ("Backoff.until: it ends later", backed_off(60), |replica| {
            replica.back_off(90, ReasonCode::AgentNotResponding, "why");
        }),
        ("Backoff.code", backed_off(60), |replica| {
            replica.back_off(60, ReasonCode::DrainTimedOut, "why");
        }),
        ("Backoff.message", backed_off(60), |replica| {
            replica.back_off(60, ReasonCode::AgentNotResponding, "why else");
        }),
        (
            "Clocks.away: it is away",
            Replica::of(&working()),
            |replica| {
                replica.node(|node| {
                    node.ready = false;
                    node.ready_since = "2023-11-14T22:13:10Z".parse().ok();
                });
            },
        ),
        (
            "Clocks.away: it is away for long",
            Replica::of(&away("2023-11-14T22:13:20Z")),
            |replica| {
                let timeout = replica.settings.node_return_timeout.as_secs();
                replica.passes(timeout);
            },
        ),
        (
            "Clocks.undrained: a drain took too long",
            Replica::of(&Picture::new()),
            |replica| {
                replica.node(|node| {
                    let stamp = undrained("2023-11-14T22:13:10Z");
                    let key = names::stamp("s");
                    node.annotations.insert(key, stamp.render());
                    let mut record = node.record("s").clone();
                    record.stamp = Some(stamp);
                    node.records.insert("s".into(), Box::new(record));
                });
            },
        ),
        (
            "Clocks.undrained: the node is tried again",
            Replica::of(&stamp(Picture::new(), undrained("2023-11-14T22:13:10Z"))),
            |replica| {
                let timeout = replica.settings.drain_cool_down.as_secs();
                replica.passes(timeout);
            },
        ),
        (
            "Clocks.first_seen: a new node may be told something",
            Replica::with(&closed(), joins),
            |replica| replica.passes(2),
        ),
        (
            "Clocks.first_seen: another node with that name joins",
            Replica::with(&closed(), |replica| {
                joins(replica);
                replica.passes(2);
            }),
            |replica| {
                replica.node(|node| {
                    node.uid = "one more".into();
                    node.annotations.clear();
                });
            },
        ),
    ]);
    // No pass reads the mismatches: they say how long the next back-off takes.
    let rows = [
        "leases",
        "backoff",
        "left",
        "states_refused",
        "states_gone",
        "mismatches",
        "drains",
        "away",
        "undrained",
        "first_seen",
    ];
    assert_eq!(Clocks::fields(), rows, "each needs a row");
}

#[test]
fn what_is_decided_on_the_clocks_of_a_roll_out() {
    let struck = with_batch(exponential(), &[9], &json!({ "struck": [0] }));
    let unknown = leased(exponential(), in_batch(json!({})), Value::Null);
    compare([
        (
            "Clocks.left: a look did not find a lease of a member",
            Replica::of(&struck),
            |replica| {
                let look = Look {
                    state: STATE.into(),
                    batch: 3,
                    id: member(9),
                };
                replica.take(Change::Left {
                    skyhook: "s".into(),
                    looks: vec![look],
                });
            },
        ),
        (
            "Clocks.states_refused: the API server refuses the state",
            Replica::of(&exponential()),
            |replica| replica.index.wrote_state("s", Some("forbidden")),
        ),
        (
            "Clocks.states_gone: a look did not find a state",
            Replica::of(&unknown),
            |replica| {
                replica.take(Change::StatesGone {
                    skyhook: "s".into(),
                    states: vec![STATE.into()],
                });
            },
        ),
    ]);
}

#[test]
fn what_is_decided_on_the_pods_of_a_node_that_drains() {
    let listed = |pods: &'static [&str], consistent| {
        Replica::with(&draining(), move |replica| {
            replica.pods("lease", pods, consistent);
        })
    };
    let refused = |by| {
        Replica::with(&draining(), move |replica| {
            replica.pods("lease", &["web"], true);
            replica.evicted(Some(by));
        })
    };
    compare([
        (
            "DrainWatch.last, PodList.pods: the first list",
            Replica::of(&draining()),
            |replica| replica.pods("lease", &["web"], true),
        ),
        (
            "PodList.pods: another pod",
            listed(&["web"], true),
            |replica| replica.pods("lease", &["web", "api"], true),
        ),
        (
            "PodList.at: the same pods again",
            listed(&["web"], true),
            |replica| {
                replica.now += Duration::from_millis(900);
                replica.pods("lease", &["web"], true);
            },
        ),
        (
            "PodList.at: the next list is due",
            listed(&["web"], true),
            |replica| replica.passes(1),
        ),
        (
            "PodList.at: the list is too old",
            listed(&["web"], true),
            |replica| replica.passes(16),
        ),
        (
            "PodList.consistent: a list from the watch cache proves nothing",
            listed(&[], true),
            |replica| replica.pods("lease", &[], false),
        ),
        (
            "DrainWatch.previous: two lists without a pod",
            listed(&[], true),
            |replica| {
                replica.passes(1);
                replica.pods("lease", &[], true);
            },
        ),
        (
            "DrainWatch.consistent_at: the watch cache may be stuck",
            listed(&["web"], true),
            |replica| {
                replica.passes(29);
                replica.pods("lease", &["web"], false);
                replica.passes(1);
            },
        ),
        (
            "DrainWatch.lease_uid: a list for a lease of the past",
            listed(&["web"], true),
            |replica| replica.pods("another", &["web"], true),
        ),
        (
            "DrainWatch.evictions, EvictionTry.at: the API server takes the eviction",
            listed(&["web"], true),
            |replica| replica.evicted(None),
        ),
        (
            "EvictionTry.problem: a webhook refuses it",
            listed(&["web"], true),
            |replica| replica.evicted(Some(RefusedBy::Webhook)),
        ),
        (
            "Refusal.by: a budget refuses it, in the same words",
            refused(RefusedBy::Webhook),
            |replica| replica.evicted(Some(RefusedBy::DisruptionBudget)),
        ),
        (
            "EvictionTry.attempts: the next one waits longer",
            Replica::with(&draining(), |replica| {
                replica.pods("lease", &["web"], true);
                replica.evicted(None);
            }),
            |replica| {
                replica.evicted(None);
                replica.evicted(None);
                replica.now += Duration::from_millis(1500);
                replica.pods("lease", &["web"], true);
            },
        ),
        (
            "Clocks.drains: somebody uncordons the node",
            listed(&["web"], true),
            |replica| {
                replica.node(|node| node.unschedulable = false);
            },
        ),
    ]);
    let DrainWatch {
        lease_uid: _,
        last: PodList {
            at: _,
            pods: _,
            consistent: _,
        },
        previous: _,
        consistent_at: _,
        evictions: _,
    } = DrainWatch::default();
    let EvictionTry {
        at: _,
        attempts: _,
        problem: _,
    } = EvictionTry::default();
}
