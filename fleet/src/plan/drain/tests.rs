#![expect(
    clippy::too_many_lines,
    clippy::wildcard_enum_match_arm,
    reason = "tables, and filters for the effects that a test is about"
)]

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::guard::{self, Broken};
use crate::index::{Change, Index};
use crate::plan::{Now, Plan, plan};
use crate::pods::Refusal;
use crate::settings::Settings;
use crate::testkit;

mod blockers;
mod surveys;

const NOW: Mono = Mono::from_secs(1000);

fn wall() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn pod(name: &str, more: Value) -> PodFact {
    let mut value = json!({
        "metadata": {
            "namespace": "default", "name": name, "uid": format!("uid-of-{name}"),
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true }],
        },
        "spec": { "containers": [] },
        "status": { "phase": "Running" },
    });
    for (key, more) in more.as_object().cloned().unwrap_or_default() {
        for (inner, more) in more.as_object().cloned().unwrap_or_default() {
            value[&key][&inner] = more;
        }
    }
    PodFact::new(serde_json::from_value(value).unwrap())
}

/// A node under a lease that asks for a drain.
struct Case {
    spec: Value,
    drain: Value,
    cordoned: bool,
    lists: Vec<(Mono, Vec<PodFact>)>,
    /// The times of the lists that came from the API server's watch cache.
    cached: Vec<Mono>,
    evictions: Vec<(&'static str, Option<(RefusedBy, &'static str)>)>,
    paused: bool,
    /// The cordon was off for a moment after the lists were taken.
    meddled: bool,
}

impl Case {
    fn new(lists: Vec<(Mono, Vec<PodFact>)>) -> Self {
        Self {
            spec: json!({ "packages": { "aa": { "version": "1.0.0", "image": "r/aa" } } }),
            drain: json!({}),
            cordoned: true,
            lists,
            cached: Vec::new(),
            evictions: Vec::new(),
            paused: false,
            meddled: false,
        }
    }

    fn index(&self) -> Index {
        let mut node = testkit::node_object("worker-1");
        node["metadata"]["annotations"]["skyhook.nvidia.com/stamp_s"] =
            json!(r#"{"granted":"lease"}"#);
        if self.cordoned {
            node["spec"]["unschedulable"] = json!(true);
            node["metadata"]["annotations"]["skyhook.nvidia.com/cordon-owners"] =
                json!(r#"{"wasUnschedulable":false,"owners":{"s":"lease"}}"#);
        }
        let skyhook = json!({
            "metadata": { "name": "s", "uid": "uid-of-s", "resourceVersion": "1", "finalizers": ["skyhook.nvidia.com/skyhook"] },
            "spec": self.spec,
        });
        let mut index = testkit::index(&[node.clone()], &[skyhook], &[], &[]);
        let revision = index.picture.skyhooks()["s"]
            .checked
            .as_ref()
            .map(|c| c.revision.clone())
            .unwrap();
        let lease = json!({
            "metadata": { "name": "worker-1", "uid": "lease", "resourceVersion": "5" },
            "spec": {
                "node": { "name": "worker-1", "uid": "uid-of-worker-1" },
                "skyhook": { "name": "s", "uid": "uid-of-s" },
                "revision": revision,
                "granted": { "by": "c", "at": "t" },
                "drain": self.drain,
                "stop": self.paused.then(|| json!({ "reason": "Paused", "since": "t" })),
            },
            "status": { "phase": "AwaitingDrain", "needsDrain": true },
        });
        index.apply(
            Change::Lease(Box::new(serde_json::from_value(lease).unwrap())),
            self.began(),
        );
        for (at, pods) in &self.lists {
            let change = Change::Pods {
                node: "worker-1".into(),
                lease_uid: "lease".into(),
                pods: pods.clone(),
                consistent: !self.cached.contains(at),
            };
            index.apply(change, *at);
        }
        for (pod, problem) in &self.evictions {
            let change = Change::Evicted {
                node: "worker-1".into(),
                lease_uid: "lease".into(),
                pod_uid: format!("uid-of-{pod}"),
                problem: problem.map(|(by, text)| Refusal {
                    by,
                    text: text.to_owned(),
                }),
            };
            index.apply(change, NOW);
        }
        if self.meddled {
            for (version, cordoned) in [("2", false), ("3", true)] {
                node["spec"]["unschedulable"] = json!(cordoned);
                node["metadata"]["resourceVersion"] = json!(version);
                let node = serde_json::from_value(node.clone()).unwrap();
                index.apply(Change::Node(Box::new(node)), NOW);
            }
        }
        index
    }

    /// When the drain began, if the wall clock was never set.
    fn began(&self) -> Mono {
        let since = self.drain["since"].as_str();
        let since = since.and_then(|since| since.parse::<Timestamp>().ok());
        let age = since.and_then(|since| Duration::try_from(wall().duration_since(since)).ok());
        age.map_or(Mono::ZERO, |age| NOW - age)
    }

    fn plan(&self) -> Plan {
        Self::plan_of(&self.index())
    }

    fn plan_of(index: &Index) -> Plan {
        let now = Now {
            mono: NOW,
            wall: wall(),
        };
        plan(&index.view(&Settings::default(), now))
    }

    /// What happens to the node's drain, in a few words each.
    fn effects(&self) -> Vec<String> {
        Self::effects_of(&self.index())
    }

    fn effects_of(index: &Index) -> Vec<String> {
        Self::plan_of(index)
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::SetDrain { drain, .. } => {
                    let blockers: Vec<String> = drain
                        .blockers
                        .iter()
                        .map(|b| format!("{}: {}", b.pod, b.reason))
                        .collect();
                    Some(format!("{:?} [{}]", drain.state, blockers.join(", ")))
                }
                Effect::EvictPod {
                    pod, by_deletion, ..
                } => Some(format!(
                    "{} {pod}",
                    if *by_deletion { "delete" } else { "evict" }
                )),
                Effect::SurveyPods { consistent, .. } => {
                    Some(if *consistent { "list" } else { "list cached" }.to_owned())
                }
                Effect::StopLease { stop, .. } => Some(format!("stop {stop:?}")),
                Effect::PatchNode { patch, .. } if patch.unschedulable == Some(true) => {
                    Some("cordon".to_owned())
                }
                _ => None,
            })
            .collect()
    }
}

#[test]
fn states_of_a_drain() {
    let one = || vec![pod("web", json!({}))];
    let keep = || {
        pod(
            "train",
            json!({ "metadata": { "labels": { "dontmess": "withme" } } }),
        )
    };
    let wait_for = json!({
        "packages": { "aa": { "version": "1.0.0", "image": "r/aa" } },
        "podNonInterruptLabels": { "matchLabels": { "dontmess": "withme" } },
    });
    let before = NOW - Duration::from_millis(500);
    let long_before = NOW - Duration::from_millis(1600);
    let since = |seconds: i64| {
        json!((wall() - k8s_openapi::jiff::SignedDuration::from_secs(seconds)).to_string())
    };
    for (name, case, want) in [
        (
            "not cordoned",
            Case {
                cordoned: false,
                ..Case::new(vec![])
            },
            vec!["cordon"],
        ),
        ("cordoned", Case::new(vec![]), vec!["list"]),
        (
            "pods are there",
            Case::new(vec![(before, one())]),
            vec!["evict web", "Draining [default/web: is being evicted]"],
        ),
        (
            "a pod must not be interrupted",
            Case {
                spec: wait_for.clone(),
                ..Case::new(vec![(before, vec![keep(), pod("web", json!({}))])])
            },
            vec![
                "Waiting [default/train: matches podNonInterruptLabels: waiting until it has finished]",
            ],
        ),
        (
            "a PodDisruptionBudget refuses",
            Case {
                drain: json!({ "state": "Draining", "since": since(3) }),
                evictions: vec![(
                    "web",
                    Some((
                        RefusedBy::DisruptionBudget,
                        "eviction refused (429): the budget pdb needs 1",
                    )),
                )],
                ..Case::new(vec![(before, one())])
            },
            vec!["Draining [default/web: eviction refused (429): the budget pdb needs 1]"],
        ),
        (
            "deletion where asked",
            Case {
                spec: json!({
                    "packages": { "aa": { "version": "1.0.0", "image": "r/aa" } }, "drainConfig": { "disableEviction": true },
                }),
                ..Case::new(vec![(before, one())])
            },
            vec!["delete web", "Draining [default/web: is being evicted]"],
        ),
        (
            "terminating pods are waited for",
            Case::new(vec![(
                before,
                vec![pod(
                    "web",
                    json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
                )],
            )]),
            vec!["Draining [default/web: is terminating]"],
        ),
        (
            "one empty list is not enough",
            Case::new(vec![(before, vec![])]),
            vec!["Draining []"],
        ),
        (
            "two are, a second apart",
            Case::new(vec![(long_before, vec![]), (before, vec![])]),
            vec!["Drained []"],
        ),
        (
            "two in one second are not",
            Case::new(vec![
                (before - Duration::from_millis(300), vec![]),
                (before, vec![]),
            ]),
            vec!["Draining []"],
        ),
        (
            "nor are two between which much may have happened",
            Case::new(vec![(before - FRESH * 2, vec![]), (before, vec![])]),
            vec!["Draining []"],
        ),
        (
            "what was seen long ago says nothing",
            Case::new(vec![
                (long_before - FRESH, vec![]),
                (before - FRESH, vec![]),
            ]),
            vec!["list"],
        ),
        (
            "nor what was seen before somebody uncordoned the node",
            Case {
                meddled: true,
                ..Case::new(vec![(long_before, vec![]), (before, vec![])])
            },
            vec!["list"],
        ),
        (
            "a pause ends, and the agent had not started",
            Case {
                drain: json!({ "state": "Drained", "since": since(999) }),
                paused: true,
                ..Case::new(vec![])
            },
            vec!["Draining []"],
        ),
        (
            "and then",
            Case {
                drain: json!({ "state": "Draining", "since": since(0) }),
                paused: true,
                ..Case::new(vec![])
            },
            vec!["stop None"],
        ),
        (
            "a pod came after Drained, and the agent has not started",
            Case {
                drain: json!({ "state": "Drained", "since": since(3) }),
                ..Case::new(vec![(before, one())])
            },
            vec!["evict web", "Draining [default/web: is being evicted]"],
        ),
        (
            "the deadline",
            Case {
                drain: json!({ "state": "Draining", "since": since(3601) }),
                ..Case::new(vec![(before, one())])
            },
            vec!["stop Some(DrainTimedOut)"],
        ),
        (
            "waiting has none",
            Case {
                spec: wait_for,
                drain: json!({ "state": "Waiting", "since": since(999_999) }),
                ..Case::new(vec![(before, vec![keep()])])
            },
            vec![
                "Waiting [default/train: matches podNonInterruptLabels: waiting until it has finished]",
            ],
        ),
    ] {
        assert_eq!(case.effects(), want, "{name}");
    }
}

#[test]
fn a_pause_does_not_end_over_a_drain_from_before_it() {
    for (state, want) in [
        ("Drained", Err(Broken::ResumedDrained)),
        ("Draining", Ok(())),
    ] {
        let case = Case {
            drain: json!({ "state": state }),
            paused: true,
            ..Case::new(vec![])
        };
        let resume = Effect::StopLease {
            node: "worker-1".into(),
            at: version("lease", "5"),
            stop: None,
            revision: None,
            message: "",
        };
        let got = guard::check(&case.index(), &Settings::default(), &resume);
        assert_eq!(got, want, "{state}");
    }
}

#[test]
fn a_drain_begins_anew_before_its_pause_ends() {
    let ago =
        |minutes: i64| (wall() - k8s_openapi::jiff::SignedDuration::from_mins(minutes)).to_string();
    for (name, began, paused, want) in [
        (
            "it began before the pause",
            ago(30),
            ago(20),
            vec![wall().to_string()],
        ),
        ("it began anew since", ago(10), ago(20), vec![]),
        ("by a clock that is ahead", ago(30), ago(-5), vec![ago(-5)]),
    ] {
        let case = Case {
            drain: json!({ "state": "Draining", "since": began }),
            paused: true,
            ..Case::new(vec![])
        };
        let mut index = case.index();
        index.picture.edit_lease("worker-1", |fact| {
            let lease = fact.lease.as_mut().unwrap();
            lease.spec.stop.as_mut().unwrap().since = paused;
        });
        let plan = Case::plan_of(&index);
        let renewed: Vec<String> = plan
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::SetDrain { drain, .. } => drain.since.clone(),
                _ => None,
            })
            .collect();
        assert_eq!(renewed, want, "{name}");
        let goes_on = plan.effects.iter().any(|e| e.kind() == "StopLease");
        assert_eq!(goes_on, want.is_empty(), "{name}: {:?}", plan.effects);
    }
}

#[test]
fn a_control_plane_node_is_drained_only_while_the_others_are_ready() {
    let empty = |state: &str| Case {
        drain: json!({ "state": state, "since": wall().to_string() }),
        ..Case::new(vec![
            (NOW - Duration::from_millis(1500), Vec::new()),
            (NOW - Duration::from_millis(400), Vec::new()),
        ])
    };
    let index = |state: &str, label: &str, other_ready: bool| {
        let mut index = empty(state).index();
        let mut other = testkit::node("worker-2");
        other.ready = other_ready;
        index.picture.node(other);
        for name in ["worker-1", "worker-2"] {
            index
                .picture
                .edit_node(name, |node| testkit::label(node, label, ""));
        }
        index
    };
    let weakened = "Draining [node/worker-2: another control-plane node, is not Ready]";
    let at = version("lease", "5");
    let drained = Effect::SetDrain {
        node: "worker-1".into(),
        at,
        drain: Drain {
            state: DrainState::Drained,
            ..Drain::default()
        },
    };
    for label in skyhook_crds::names::CONTROL_PLANE_LABELS {
        for (name, state, ready, want) in [
            ("all are Ready", "Draining", true, "Drained []"),
            ("one is not", "Draining", false, weakened),
            (
                "one is not, and Drained is offered",
                "Drained",
                false,
                weakened,
            ),
        ] {
            let index = index(state, label, ready);
            let effects = Case::effects_of(&index);
            assert!(effects.contains(&want.to_owned()), "{name}: {effects:?}");
            let guarded = guard::check(&index, &Settings::default(), &drained);
            let want = if ready {
                Ok(())
            } else {
                Err(Broken::DrainedControlPlane)
            };
            assert_eq!(guarded, want, "{name}");
        }
    }
    let workers = Case::effects_of(&index("Draining", "some-other-label", false));
    assert!(workers.contains(&"Drained []".to_owned()), "{workers:?}");
}
