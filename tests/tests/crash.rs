//! The coordinator killed at every write of a roll-out, one after the other, before and after the server carries it out.
//! Whatever was under way, the next one brings the roll-out to its end, and nothing runs twice on a host.

use anyhow::{Context as _, ensure};
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use skyhook_coordinator::config::Settings;
use skyhook_crds::DeploymentPolicy;
use skyhook_integration::rollout::LeaseRecorder;
use skyhook_tests::bench::InProcess;
use skyhook_tests::coreagent::HostScript;
use skyhook_tests::crash::{Crash, Moment, client};
use skyhook_tests::pace::PaceRecorder;
use skyhook_tests::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_at_every_write_loses_nothing() -> anyhow::Result<()> {
    let mut world = World::start(Settings::default()).await?;
    // Every roll-out has a coordinator of its own; the first one only started the world.
    std::mem::replace(&mut world.coordinator, InProcess::none())
        .stop()
        .await?;
    for node in ["plain-1", "plain-2", "drained-1"] {
        world
            .node(
                node,
                node.trim_end_matches(|c| "-12".contains(c)),
                HostScript::default(),
            )
            .await?;
    }
    for moment in [Moment::Before, Moment::After] {
        every_write(
            &world,
            &Case {
                moment,
                label: "plain",
                nodes: &["plain-1", "plain-2"],
                pace: Pace::Budget,
                interrupt: false,
            },
        )
        .await?;
    }
    // A drain takes seconds, and its writes are carried out more often than they are lost.
    let drained = Case {
        moment: Moment::After,
        label: "drained",
        nodes: &["drained-1"],
        pace: Pace::Budget,
        interrupt: true,
    };
    every_write(&world, &drained).await
}

// Most of the time is spent waiting, so the two run side by side.

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_before_every_write_of_three_batches_loses_nothing()
-> anyhow::Result<()> {
    three_batches(Moment::Before).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_killed_after_every_write_of_three_batches_loses_nothing()
-> anyhow::Result<()> {
    three_batches(Moment::After).await
}

/// Batches of one, two and one node.
async fn three_batches(moment: Moment) -> anyhow::Result<()> {
    let mut world = World::start(Settings::default()).await?;
    std::mem::replace(&mut world.coordinator, InProcess::none())
        .stop()
        .await?;
    let nodes = &["batches-1", "batches-2", "batches-3", "batches-4"];
    for node in nodes {
        world.node(node, "batches", HostScript::default()).await?;
    }
    let policies: Api<DeploymentPolicy> = Api::all(world.client.clone());
    let policy = serde_json::from_value(json!({
        "metadata": { "name": "batches" },
        "spec": { "default": { "budget": { "count": 2 }, "strategy": { "exponential": {} } } },
    }))?;
    policies.create(&PostParams::default(), &policy).await?;
    let case = Case {
        moment,
        label: "batches",
        nodes,
        pace: Pace::Policy,
        interrupt: false,
    };
    every_write(&world, &case).await
}

/// What bounds a roll-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// One node at a time.
    Budget,
    /// Two nodes at a time, in batches that double.
    Policy,
}

struct Case {
    moment: Moment,
    label: &'static str,
    nodes: &'static [&'static str],
    pace: Pace,
    interrupt: bool,
}

/// Rolls out again and again, killing the coordinator one write later each time, until a roll-out has fewer writes.
async fn every_write(world: &World, case: &Case) -> anyhow::Result<()> {
    let Case { moment, label, .. } = case;
    let kubeconfig = Kubeconfig::read_from(world.fixture.plane.kubeconfig())?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let recorder = LeaseRecorder::start(world.client.clone()).await?;
    let pace = PaceRecorder::start(world.client.clone()).await?;
    let (mut writes, mut batches) = (0, Vec::new());
    loop {
        writes += 1;
        let version = format!("1.{}.{writes}", *moment as u8);
        let what = || format!("{label}: killed {moment:?} write {writes}");
        let crash = Crash::at(writes, *moment);
        let doomed = InProcess::start(client(config.clone(), &crash)?, Settings::default());
        let mut package = json!({ "version": version, "image": "example.com/pkg" });
        if case.interrupt {
            package["interrupt"] = json!({ "type": "service", "services": ["cron"] });
        }
        let mut spec = json!({ "packages": { "pkg": package } });
        match case.pace {
            Pace::Budget => spec["interruptionBudget"] = json!({ "count": 1 }),
            Pace::Policy => spec["deploymentPolicy"] = json!("batches"),
        }
        world.apply(label, label, spec).await?;
        let died = tokio::select! {
            () = crash.died() => true,
            done = settled(world, case) => { done.with_context(what)?; false }
        };
        // It may still die at a write that nothing waits for, so it is never asked to stop.
        doomed.kill();
        let next = died.then(|| InProcess::start(world.client.clone(), Settings::default()));
        settled(world, case).await.with_context(what)?;
        for node in case.nodes {
            let ledger = world.host(node).context("a node of the world")?.ledger();
            let times = ledger
                .iter()
                .filter(|entry| **entry == format!("pkg|{version} config"))
                .count();
            ensure!(
                times == 1,
                "{}: config ran {times} times: {ledger:#?}",
                what()
            );
        }
        if let Some(next) = next {
            next.stop().await.with_context(what)?;
        }
        let most = match case.pace {
            Pace::Budget => 1,
            Pace::Policy => 2,
        };
        ensure!(
            recorder.most_granted()? <= most,
            "{}: {:#?}",
            what(),
            recorder.changes()
        );
        let granted = pace.batches(label, "__default__").with_context(what)?;
        if case.pace == Pace::Policy {
            batches.extend([1, 2, 1]);
        }
        ensure!(granted == batches, "{}: batches of {granted:?}", what());
        if !died {
            println!(
                "{label}: killed {moment:?} each of {} writes of a roll-out",
                writes - 1
            );
            ensure!(
                writes > 10,
                "{label}: a roll-out has more than {writes} writes"
            );
            return Ok(());
        }
    }
}

/// Waits until the roll-out is over and has left nothing behind.
async fn settled(world: &World, case: &Case) -> anyhow::Result<()> {
    world.complete(case.label).await?;
    for node in case.nodes {
        world.expect_settled_soon(node, case.label).await?;
    }
    Ok(())
}
