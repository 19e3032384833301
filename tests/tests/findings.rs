//! What went wrong once on a real API server: deletions that hung, events that said too little, writes that nobody needed,
//! grants that came late, and nodes that stayed cordoned.

#![expect(
    clippy::disallowed_methods,
    reason = "how long a deletion takes is what is measured"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher;
use serde_json::{Value, json};
use skyhook_coordinator::config::Settings;
use skyhook_crds::lease::Phase;
use skyhook_crds::skyhook::SkyhookStatus;
use skyhook_crds::{InterruptionLease, Skyhook, names};
use skyhook_integration::controlplane::Options;
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::bench::{Fixture, InProcess, status};

fn skyhook(budget: usize) -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": "sample" },
        "spec": {
            "interruptionBudget": { "count": budget },
            "packages": { "something": { "version": "1.0.0", "image": "example.com/something" } },
        },
    })
}

async fn edit(fixture: &Fixture, body: Value) -> anyhow::Result<()> {
    let skyhooks: Api<Skyhook> = Api::all(fixture.client.clone());
    let patch = Patch::Merge(&body);
    skyhooks
        .patch("sample", &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// PATCHes of Nodes so far. Only the coordinator makes them once the fixture has registered its nodes.
async fn node_writes(fixture: &Fixture) -> anyhow::Result<u64> {
    let counts = fixture.plane.request_counts().await?.0;
    let of = |resource: &str| {
        counts
            .get(&("PATCH".to_owned(), resource.to_owned()))
            .copied()
    };
    Ok(of("nodes").unwrap_or_default() + of("nodes/status").unwrap_or_default())
}

/// The notes of all events with this reason about objects of this kind.
async fn notes(fixture: &Fixture, kind: &str, reason: &str) -> anyhow::Result<Vec<String>> {
    let events: Api<Event> = Api::all(fixture.client.clone());
    let events = events.list(&ListParams::default()).await?.items.into_iter();
    let meant = events.filter(|event| {
        let of = event
            .regarding
            .as_ref()
            .and_then(|regarding| regarding.kind.as_deref());
        of == Some(kind) && event.reason.as_deref() == Some(reason)
    });
    Ok(meant.filter_map(|event| event.note).collect())
}

/// The package has broken the node's network: the agent has ended, and the node is not Ready any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stays_away_after_its_work_holds_up_no_deletion() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(1, Duration::from_secs(2)).await?;
    let _coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture.skyhook(skyhook(1)).await?;
    let leases: Api<InterruptionLease> = Api::all(fixture.client.clone());
    let phase = async || -> anyhow::Result<Phase> {
        let lease = leases.get("worker-0").await?;
        lease
            .status
            .and_then(|status| status.phase)
            .context("it has no phase")
    };
    eventually(MINUTE, async || phase().await.map(drop)).await?;
    let nodes: Api<Node> = Api::all(fixture.client.clone());
    let away = json!({ "status": { "conditions": [
        { "type": "Ready", "status": "False", "reason": "NetworkPluginNotReady", "lastTransitionTime": "2026-01-01T00:00:00Z" },
    ] } });
    nodes
        .patch_status(
            "worker-0",
            &PatchParams::default(),
            &Patch::Strategic(&away),
        )
        .await?;
    eventually(MINUTE, async || {
        let phase = phase().await?;
        ensure!(phase == Phase::Complete, "{phase:?}");
        Ok(())
    })
    .await?;
    let skyhooks: Api<Skyhook> = Api::all(fixture.client.clone());
    let started = Instant::now();
    skyhooks.delete("sample", &DeleteParams::default()).await?;
    let says = |skyhook: &Skyhook| -> Option<String> {
        let conditions = &skyhook.status.as_ref()?.conditions;
        let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
        (ready.reason == "Deleting").then(|| ready.message.clone())
    };
    let waits = fixture
        .until("sample", MINUTE, |s| says(s).is_some())
        .await?;
    let waits = says(&waits).unwrap_or_default();
    ensure!(waits.contains("worker-0"), "{waits}");
    // The agent of a deleted Skyhook has 30 s to end a step, and then the lease is kept for 60 s more.
    eventually(2 * MINUTE, async || {
        let there = skyhooks.get_opt("sample").await?;
        ensure!(
            there.is_none(),
            "it waits: {:?}",
            there.as_ref().and_then(says)
        );
        Ok(())
    })
    .await?;
    let took = started.elapsed();
    println!("deleted after {took:?}: {waits}");
    ensure!(took >= Duration::from_secs(85), "given up after {took:?}");
    ensure!(took <= Duration::from_secs(110), "{took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_transitions_of_a_skyhook_are_two_events() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(1, Duration::from_secs(1)).await?;
    let _coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture.skyhook(skyhook(1)).await?;
    fixture
        .until("sample", MINUTE, |s| status(s) == "complete")
        .await?;
    eventually(MINUTE, async || {
        let notes = notes(&fixture, "Skyhook", "State").await?;
        for to in ["-> [in_progress]", "-> [complete]"] {
            ensure!(
                notes.iter().any(|note| note.ends_with(to)),
                "{to}: {notes:?}"
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_writes_nothing_to_complete_nodes() -> anyhow::Result<()> {
    const NODES: usize = 10;
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(NODES, Duration::ZERO).await?;
    let _coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture.skyhook(skyhook(NODES)).await?;
    fixture
        .until("sample", MINUTE, |s| status(s) == "complete")
        .await?;
    let told = async || notes(&fixture, "Node", "State").await;
    eventually(MINUTE, async || {
        let told = told().await?;
        ensure!(told.len() == NODES, "{told:?}");
        Ok(())
    })
    .await?;
    let before = node_writes(&fixture).await?;
    for (pause, want) in [("true", "paused"), ("false", "complete")] {
        let pause = json!({ "metadata": { "annotations": { names::PAUSE: pause } } });
        edit(&fixture, pause).await?;
        fixture
            .until("sample", MINUTE, |s| status(s) == want)
            .await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let writes = node_writes(&fixture).await? - before;
        ensure!(writes == 0, "{want}: {writes} writes to Nodes");
    }
    let told = told().await?;
    ensure!(told.len() == NODES, "{told:?}");
    Ok(())
}

/// The API server refused to number the revision of such a spec anew, because it writes these characters in another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_spec_with_characters_that_go_escapes_is_rolled_out_again() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(1, Duration::ZERO).await?;
    let _coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture.skyhook(skyhook(1)).await?;
    let script = "test 1 > 0 && echo <é\u{2028}>";
    for (generation, script) in [(2, script), (3, "another"), (4, script)] {
        let package = json!({ "configMap": { "run.sh": script } });
        edit(
            &fixture,
            json!({ "spec": { "packages": { "something": package } } }),
        )
        .await?;
        fixture
            .until("sample", MINUTE, |skyhook| {
                let of_spec = |s: &SkyhookStatus| s.observed_generation == generation;
                skyhook.status.as_ref().is_some_and(of_spec) && status(skyhook) == "complete"
            })
            .await
            .with_context(|| format!("generation {generation}"))?;
    }
    Ok(())
}

/// Each slot that is given back under a lower budget changed a number in the reason of every waiting node once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lower_budget_writes_nothing_to_waiting_nodes() -> anyhow::Result<()> {
    const WAITING: usize = 50;
    const WORKING: usize = 10;
    let fixture = Fixture::start().await?;
    let _agents = fixture
        .workers(WAITING + WORKING, Duration::from_secs(3))
        .await?;
    let _coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture.skyhook(skyhook(WORKING)).await?;
    let reason = names::reason("sample");
    let nodes: Api<Node> = Api::all(fixture.client.clone());
    eventually(MINUTE, async || {
        let nodes = nodes.list(&ListParams::default()).await?.items.into_iter();
        let waits = |node: &Node| node.metadata.annotations.as_ref()?.get(&reason).cloned();
        let waiting = nodes.filter_map(|node| waits(&node));
        let waiting = waiting
            .filter(|reason| reason.contains("BudgetExhausted"))
            .count();
        ensure!(waiting == WAITING, "{waiting} nodes wait");
        Ok(())
    })
    .await?;
    let before = node_writes(&fixture).await?;
    edit(
        &fixture,
        json!({ "spec": { "interruptionBudget": { "count": 1 } } }),
    )
    .await?;
    let most = u64::try_from(WORKING)? * 8;
    let done = |skyhook: &Skyhook| {
        let status = skyhook.status.as_ref();
        let complete =
            status.and_then(|status| status.complete_nodes.split('/').next()?.parse().ok());
        complete.is_some_and(|complete: usize| complete >= WORKING)
    };
    fixture.until("sample", 2 * MINUTE, done).await?;
    let writes = node_writes(&fixture).await? - before;
    println!("{writes} writes to Nodes while {WORKING} nodes ended");
    ensure!(writes <= most, "{writes} writes to Nodes");
    Ok(())
}

/// Without a budget every node gets a lease at once. The first nodes do not wait until the last one has its lease.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_grant_does_not_wait_for_the_last_reservation() -> anyhow::Result<()> {
    const NODES: usize = 400;
    let options = Options {
        // Nodes are Ready when they are created.
        apiserver_flags: vec!["--disable-admission-plugins=TaintNodesByCondition".into()],
        ..Options::default()
    };
    let fixture = Fixture::start_with(&options).await?;
    let _uids: Vec<String> = stream::iter(0..NODES)
        .map(|n| {
            let fixture = &fixture;
            async move { fixture.ready_node(&format!("worker-{n:03}"), &[]).await }
        })
        .buffered(16)
        .try_collect()
        .await?;
    let leases: Api<InterruptionLease> = Api::all(fixture.client.clone());
    let watch = watcher::watcher(leases, watcher::Config::default());
    let mut events = watch.default_backoff().applied_objects().boxed();
    let _coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    // A coordinator that was quiet may make a few passes without the pauses that they owe. Its first passes use that up.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let mut unlimited = skyhook(NODES);
    unlimited["spec"]["interruptionBudget"] = Value::Null;
    fixture.skyhook(unlimited).await?;
    let started = Instant::now();
    let (mut reserved, mut granted) = (BTreeSet::new(), BTreeSet::new());
    let mut first = None;
    let follow = async {
        while granted.len() < NODES {
            let lease = events.try_next().await?.context("the watch has ended")?;
            reserved.insert(lease.name_any());
            if lease.spec.granted.is_some() {
                first.get_or_insert((reserved.len(), started.elapsed()));
                granted.insert(lease.name_any());
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(2 * MINUTE, follow)
        .await
        .context("not every lease is granted")??;
    let (reserved, after) = first.context("no lease was granted")?;
    let all = started.elapsed();
    println!(
        "the first grant came after {after:?} and {reserved} reservations, the last one after {all:?}"
    );
    ensure!(reserved < NODES, "{reserved} leases were reserved before");
    Ok(())
}

/// The edit that an administrator makes when a roll-out goes wrong: another version, and a lower budget.
#[tokio::test(flavor = "multi_thread")]
async fn a_lower_budget_leaves_no_more_nodes_cordoned_than_it_has_slots() -> anyhow::Result<()> {
    const NODES: usize = 4;
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(NODES, Duration::ZERO).await?;
    let pods: Api<Pod> = Api::namespaced(fixture.client.clone(), "default");
    for n in 0..NODES {
        let pod = serde_json::from_value(json!({
            "metadata": { "name": format!("train-{n}"), "labels": { "keep": "me" } },
            "spec": {
                "nodeName": format!("worker-{n}"),
                "containers": [{ "name": "c", "image": "example.com/c" }],
            },
        }))?;
        pods.create(&PostParams::default(), &pod).await?;
    }
    let _coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    let package = |version: &str| {
        json!({
            "version": version, "image": "example.com/something", "interrupt": { "type": "reboot" },
        })
    };
    let mut waiting = skyhook(NODES);
    waiting["spec"]["podNonInterruptLabels"] = json!({ "matchLabels": { "keep": "me" } });
    waiting["spec"]["packages"] = json!({ "something": package("1.0.0") });
    fixture.skyhook(waiting).await?;
    let nodes: Api<Node> = Api::all(fixture.client.clone());
    let leases: Api<InterruptionLease> = Api::all(fixture.client.clone());
    let held = async || -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let is_cordoned = |node: &Node| {
            let spec = node.spec.as_ref();
            spec.is_some_and(|spec| spec.unschedulable == Some(true))
        };
        let mut cordoned = nodes.list(&ListParams::default()).await?.items;
        cordoned.retain(is_cordoned);
        let leased = leases.list(&ListParams::default()).await?.items;
        let cordoned = cordoned.iter().map(ResourceExt::name_any).collect();
        Ok((cordoned, leased.iter().map(ResourceExt::name_any).collect()))
    };
    eventually(MINUTE, async || {
        let (cordoned, _) = held().await?;
        ensure!(cordoned.len() == NODES, "only {cordoned:?} are cordoned");
        Ok(())
    })
    .await?;
    edit(
        &fixture,
        json!({ "spec": {
            "interruptionBudget": { "count": 1 },
            "packages": { "something": package("2.0.0") },
        } }),
    )
    .await?;
    let is_bounded = async || -> anyhow::Result<()> {
        let (cordoned, leased) = held().await?;
        ensure!(cordoned.len() == 1, "{cordoned:?} are cordoned");
        ensure!(
            cordoned == leased,
            "{cordoned:?} are cordoned for {leased:?}"
        );
        Ok(())
    };
    eventually(MINUTE, async || is_bounded().await).await?;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        is_bounded().await?;
    }
    Ok(())
}
