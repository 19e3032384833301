//! How many results a pass computes anew: a bound that does not depend on the machine.

use super::*;
use crate::index::Change;
use crate::plan::BatchCounts;
use crate::plan::cache::{Cache, Counted};
use crate::plan::reason::ReasonCode;
use crate::plan::tallies::leases::{LeaseCounts, LeasePhase};

const NODES: usize = 300;

fn node(n: usize) -> Value {
    let name = format!("worker-{n:03}");
    let stamp = json!({ "granted": format!("lease-{name}") }).to_string();
    let mut node = testkit::node_object(&name);
    node["metadata"]["annotations"] = json!({ skyhook_crds::names::stamp("s"): stamp });
    node
}

fn lease(n: usize, revision: &str, version: &str, phase: &str) -> Value {
    let name = format!("worker-{n:03}");
    json!({
        "metadata": { "name": name, "uid": format!("lease-{name}"), "resourceVersion": version },
        "spec": {
            "node": { "name": name, "uid": format!("uid-of-{name}") },
            "skyhook": { "name": "s", "uid": "uid-of-s" },
            "revision": revision,
            "granted": { "by": "x", "at": "2026-01-01T00:00:00Z" },
        },
        "status": { "phase": phase, "needsDrain": false, "bootID": format!("boot-of-{name}"), "machineID": "m", "packages": {} },
    })
}

/// Agents work on every node for the first of two Skyhooks, and all statuses are written already.
fn at_work() -> (crate::index::Index, Settings, Now, String) {
    let picture = Picture {
        nodes: (0..NODES).map(node).collect(),
        ..Picture::new()
    };
    let picture = picture.skyhook(&["spec", "interruptionBudget"], Value::Null);
    let picture = picture.another(skyhook("t", json!({ "priority": 300 })));
    let mut index = picture.index();
    let checked = index.picture.skyhooks()["s"].checked.as_ref().unwrap();
    let revision = checked.revision.clone();
    for n in 0..NODES {
        let lease = lease(n, &revision, "1", "Preparing");
        let lease = serde_json::from_value(lease).unwrap();
        index.apply(Change::Lease(Box::new(lease)), Mono::ZERO);
    }
    let settings = Settings::default();
    let now = Now {
        mono: Mono::from_secs(1000),
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    // Not all nodes are told in the first pass.
    for _ in 0..4 {
        for effect in plan(&index.view(&settings, now)).effects {
            match effect {
                Effect::PatchNode { node, patch, .. } => {
                    let node = testkit::patched(&index.picture.nodes()[&node], &patch);
                    index.picture.node(node);
                }
                Effect::WriteSkyhookStatus { name, status, .. } => {
                    let mut skyhook = index.picture.skyhooks()[&name].clone();
                    skyhook.status = Some(*status);
                    skyhook.resource_version = "2".into();
                    index.picture.skyhook(skyhook);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    (index, settings, now, revision)
}

#[test]
fn a_lease_that_changes_costs_as_much_as_one_lease() {
    let (mut index, settings, now, revision) = at_work();
    let mut cache = Cache::default();
    let first = cache.plan(&index.view(&settings, now));
    assert_eq!(first.effects, vec![], "all is told");
    let all = Counted {
        nodes: NODES,
        cells: 2 * NODES,
        leases: NODES,
        shown: 2 * NODES,
        statuses: 2,
    };
    assert_eq!(cache.counted(), all);

    let again = cache.plan(&index.view(&settings, now));
    assert_eq!((&again, cache.counted()), (&first, Counted::default()));

    let changed = serde_json::from_value(lease(7, &revision, "2", "Preparing")).unwrap();
    index.apply(Change::Lease(Box::new(changed)), now.mono);
    let after = cache.plan(&index.view(&settings, now));
    assert_eq!(after.effects, vec![]);
    let one = Counted {
        nodes: 1,
        cells: 2,
        leases: 1,
        shown: 2,
        statuses: 0,
    };
    assert_eq!(cache.counted(), one, "one for each Skyhook");

    // A change that people see is one write to the Node, and the Skyhook's status at its pace.
    let changed = serde_json::from_value(lease(7, &revision, "3", "Erroring")).unwrap();
    index.apply(Change::Lease(Box::new(changed)), now.mono);
    index
        .inflight
        .set_written(Target::Skyhook("s".into()), now.mono);
    let seen = cache.plan(&index.view(&settings, now));
    assert_eq!(seen.effects.len(), 1, "{:?}", seen.effects);
    assert_eq!(cache.counted(), one);
}

/// The Node has the whole message. Between passes, only what the Skyhook's status shows of it is kept.
#[test]
fn a_long_reason_is_not_kept_between_passes() {
    let (mut index, settings, now, revision) = at_work();
    let long = "x".repeat(2000);
    let mut failing = lease(7, &revision, "2", "Erroring");
    failing["status"]["message"] = json!(long);
    let failing = serde_json::from_value(failing).unwrap();
    index.apply(Change::Lease(Box::new(failing)), now.mono);
    let mut cache = Cache::default();
    let effects = cache.plan(&index.view(&settings, now)).effects;
    let written = effects.iter().any(|effect| match effect {
        Effect::PatchNode { patch, .. } => {
            let mut values = patch.annotations.values().flatten();
            values.any(|value| value.contains(&long))
        }
        _ => false,
    });
    assert!(written, "{effects:?}");
    let cells = cache.columns["s"].cells.iter();
    let reasons = cells.filter_map(|cell| cell.shown.as_ref()?.reason.as_ref());
    let longest = reasons.map(|reason| reason.message.len()).max();
    assert_eq!(longest, Some(256));
}

/// In one pass, a part of the nodes is told. Every node has its turn, however few writes are made in between.
#[test]
fn all_nodes_of_a_large_fleet_are_told_in_several_passes() {
    let picture = Picture {
        nodes: (0..1000)
            .map(|n| testkit::node_object(&format!("worker-{n:03}")))
            .collect(),
        ..Picture::new()
    };
    let picture = picture.skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 }));
    let mut index = picture.index();
    let mut cache = Cache::default();
    let mut told = BTreeSet::new();
    let mut passes = 0;
    while told.len() < 1000 {
        let now = Now {
            mono: Mono::from_secs(1000 + passes),
            wall: Timestamp::from_second(1_700_000_000).unwrap(),
        };
        let view = index.view(&picture.settings, now);
        let (kept, anew) = (cache.plan(&view), plan(&view));
        assert_eq!(kept, anew);
        let patches = kept.effects.into_iter().filter_map(|effect| match effect {
            Effect::PatchNode { node, patch, .. } => Some((node, patch)),
            _ => None,
        });
        let patches: Vec<_> = patches.collect();
        assert!(patches.len() <= 256, "{}", patches.len());
        // Half of the writes fail, always those of the first nodes by name.
        let made = patches.len().div_ceil(2);
        for (node, patch) in patches.into_iter().rev().take(made) {
            let patched = testkit::patched(&index.picture.nodes()[&node], &patch);
            index.picture.node(patched);
            told.insert(node);
        }
        passes += 1;
        assert!(passes < 100, "only {} nodes are told", told.len());
    }
}

/// Which revisions are referred to is known of each node from the last pass, so that one change costs one node.
#[test]
fn the_history_is_pruned_without_a_look_at_every_lease() {
    let (mut index, settings, now, revision) = at_work();
    let stored = |name: &str, number: i64| {
        let revision = json!({
            "metadata": {
                "name": name, "uid": name, "resourceVersion": "1",
                "labels": { "skyhook.nvidia.com/name": "s" },
                "annotations": { "skyhook.nvidia.com/owner": "uid-of-s" },
            },
            "revision": number,
            "data": null,
        });
        Change::Revision(Box::new(serde_json::from_value(revision).unwrap()))
    };
    for n in 0..12 {
        let change = stored(&format!("old-{n:02}"), n - 20);
        index.apply(change, now.mono);
    }
    let referring = serde_json::from_value(lease(7, "old-00", "2", "Preparing")).unwrap();
    index.apply(Change::Lease(Box::new(referring)), now.mono);
    let pruned = |plan: &Plan| -> Vec<String> {
        let effects = plan.effects.iter();
        let pruned = effects.filter_map(|effect| match effect {
            Effect::PruneRevision { name, .. } => Some(name.clone()),
            _ => None,
        });
        pruned.collect()
    };
    let mut cache = Cache::default();
    let first = cache.plan(&index.view(&settings, now));
    assert_eq!(pruned(&first), ["old-01", "old-02"], "old-00 is in use");

    let another = serde_json::from_value(lease(7, &revision, "3", "Preparing")).unwrap();
    index.apply(Change::Lease(Box::new(another)), now.mono);
    let second = cache.plan(&index.view(&settings, now));
    assert_eq!(pruned(&second), ["old-00", "old-01", "old-02"]);
    assert_eq!(cache.counted().nodes, 1);
    assert_eq!(
        pruned(&cache.plan(&index.view(&settings, now))),
        pruned(&second)
    );
    assert_eq!(cache.counted().nodes, 0);
}

#[test]
fn the_fleet_is_counted_whatever_is_written() {
    let (index, settings, now, _) = at_work();
    let fleet = plan(&index.view(&settings, now)).fleet;
    let in_progress = skyhook_crds::Status::InProgress;
    let waiting = skyhook_crds::Status::Waiting;
    let compartment = |used, in_progress| CompartmentCounts {
        ceiling: NODES,
        used,
        matched: NODES,
        in_progress,
        complete: 0,
        strategy: "fixed",
        batches: BatchCounts {
            current: 1,
            ..BatchCounts::default()
        },
    };
    let counts = |status, reason, used| SkyhookCounts {
        status,
        since: None,
        nodes: NODES,
        by_status: [(status, NODES)].into(),
        by_reason: [(reason, NODES)].into(),
        packages: BTreeMap::new(),
        packages_omitted: 0,
        leases: LeaseCounts {
            by_phase: [(LeasePhase::Preparing, (used, None))]
                .into_iter()
                .filter(|_| used > 0)
                .collect(),
            ..LeaseCounts::default()
        },
        policy: "legacy".to_owned(),
        compartments: [("__default__".to_owned(), compartment(used, used))].into(),
    };
    let want = Fleet {
        slots_used: NODES,
        slots: None,
        leases_unreadable: 0,
        skyhooks: [
            (
                "s".to_owned(),
                counts(in_progress, ReasonCode::Preparing, NODES),
            ),
            (
                "t".to_owned(),
                counts(waiting, ReasonCode::EarlierSkyhook, 0),
            ),
        ]
        .into(),
    };
    assert_eq!(fleet, want);
}

#[test]
fn a_lease_that_did_not_fit_is_granted_when_another_has_gone() {
    let picture = Picture {
        nodes: (0..2).map(node).collect(),
        ..Picture::new()
    };
    let mut index = picture.index();
    let checked = index.picture.skyhooks()["s"].checked.as_ref().unwrap();
    let revision = checked.revision.clone();
    for n in 0..2 {
        let mut lease = lease(n, &revision, "1", "");
        lease["spec"]["granted"] = Value::Null;
        lease["status"] = Value::Null;
        let lease = serde_json::from_value(lease).unwrap();
        index.apply(Change::Lease(Box::new(lease)), Mono::ZERO);
    }
    let settings = Settings::default();
    let now = Now {
        mono: Mono::from_secs(1000),
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    let mut cache = Cache::default();
    let effects = cache.plan(&index.view(&settings, now)).effects;
    let withdrawn = effects.iter().find_map(|effect| effect.removes());
    let (gone, _) = withdrawn.expect("the budget is 1");
    index.apply(Change::LeaseGone(gone.to_owned()), now.mono);
    let effects = cache.plan(&index.view(&settings, now)).effects;
    let granted = effects.iter().any(|effect| effect.kind() == "GrantLease");
    assert!(granted, "{effects:?}");
}

#[test]
fn the_time_to_stop_follows_the_revision_of_a_lease_whose_skyhook_is_gone() {
    let slow = json!({ "aa": { "version": "1.0.0", "image": "r/aa", "gracefulShutdown": "10m" } });
    let picture = Picture {
        nodes: vec![node(0)],
        ..Picture::new()
    };
    let picture = picture.skyhook(&["spec", "packages"], slow);
    let mut index = picture.index();
    let checked = index.picture.skyhooks()["s"].checked.as_ref().unwrap();
    let revision = checked.revision.clone();
    let mut lease = lease(0, &revision, "1", "Running");
    lease["spec"]["stop"] = json!({ "reason": "Deleted", "since": "t" });
    let lease = serde_json::from_value(lease).unwrap();
    index.apply(Change::Lease(Box::new(lease)), Mono::ZERO);
    let now = Now {
        mono: picture.now,
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    index.apply(Change::SkyhookGone("s".into()), now.mono);
    let mut cache = Cache::default();
    let first = cache.plan(&index.view(&picture.settings, now));
    let grace = Duration::from_secs(11 * 60);
    assert_eq!(first.wake_at, Some(now.mono + grace), "{:?}", first.effects);
    index.apply(Change::RevisionGone(revision), now.mono);
    let second = cache.plan(&index.view(&picture.settings, now));
    let grace = Duration::from_secs(90);
    assert_eq!(second.wake_at, Some(now.mono + grace));
}

#[test]
fn a_status_is_computed_anew_when_what_it_counts_changes() {
    let paused = || {
        Picture::new().skyhook(
            &["metadata", "annotations"],
            json!({ skyhook_crds::names::PAUSE: "true" }),
        )
    };
    let record = |picture: Picture| {
        (1..=3).fold(picture, |picture, n| {
            picture.annotated(n, "skyhook.nvidia.com/nodeState_s", &complete("1.0.0"))
        })
    };
    let index = paused().index();
    let checked = index.picture.skyhooks()["s"].checked.as_ref().unwrap();
    let stamp = json!({ "lease": "earlier", "revision": checked.revision }).to_string();
    let result = |mut picture: Picture| {
        for n in 1..=3 {
            let key = "skyhook.nvidia.com/stamp_s";
            picture = picture.annotated(n, key, &stamp);
        }
        picture
    };
    let updates = json!({ "status": "paused", "configUpdates": { "aa": ["k"] } });
    let adopted = || record(paused()).skyhook(&["status"], updates.clone());
    let leased = |spec: Value| super::leases::leased(paused(), spec, json!(null));
    let granted = json!({ "granted": { "by": "c", "at": "t" } });
    let draining = |cause: Option<&str>| {
        json!({
            "granted": { "by": "c", "at": "t" },
            "drain": { "state": "Draining", "blockers": [{ "pod": "ns/a", "reason": "r", "cause": cause }] },
        })
    };
    let of_old = json!({ "granted": { "by": "c", "at": "t" }, "revision": "s-old" });
    let away = |nodes| {
        let budget = json!({ "count": 1, "countUnavailable": true });
        let picture = Picture::new().skyhook(&["spec", "interruptionBudget"], budget);
        (1..=nodes).fold(picture, |picture, n| {
            let ready = json!([{ "type": "Ready", "status": "False" }]);
            picture.node(n, &["status", "conditions"], ready)
        })
    };
    for (name, mut before, mut after) in [
        ("a node has a result", adopted(), result(adopted())),
        ("another node is not Ready", away(1), away(2)),
        (
            "the cause of a blocker is known",
            leased(draining(None)),
            leased(draining(Some("UnmanagedPod"))),
        ),
        (
            "it is another one",
            leased(draining(Some("UnmanagedPod"))),
            leased(draining(Some("EmptyDirData"))),
        ),
        (
            "a lease is granted",
            leased(json!({})),
            leased(granted.clone()),
        ),
        (
            "a lease is for another revision",
            leased(of_old),
            leased(granted),
        ),
    ] {
        let written = |plan: &Plan| {
            plan.effects.iter().find_map(|effect| match effect {
                Effect::WriteSkyhookStatus { status, .. } => {
                    Some(serde_json::to_value(status).unwrap())
                }
                _ => None,
            })
        };
        let now = Now {
            mono: before.now,
            wall: Timestamp::from_second(1_700_000_000).unwrap(),
        };
        let stored = written(&before.plan()).expect("a first status is written");
        before.skyhooks[0]["status"] = stored.clone();
        after.skyhooks[0]["status"] = stored;
        let (mut index, later) = (before.index(), after.index());
        let mut cache = Cache::default();
        let first = cache.plan(&index.view(&before.settings, now));
        assert_eq!(written(&first), None, "{name}: it is stored");
        for node in later.picture.nodes().values() {
            index.picture.node(node.clone());
        }
        for lease in later.picture.leases().values() {
            let mut lease = lease.clone();
            lease.resource_version = "6".into();
            index.picture.lease(lease);
        }
        let view = index.view(&before.settings, now);
        let (kept, anew) = (cache.plan(&view), plan(&view));
        assert!(written(&anew).is_some(), "{name}");
        assert_eq!(written(&kept), written(&anew), "{name}");
    }
}
