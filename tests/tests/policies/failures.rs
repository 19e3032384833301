//! What stops a compartment, and what starts it again.

use super::*;
use k8s_openapi::api::core::v1::Node;
use kube::api::DeleteParams;
use skyhook_crds::lease::Phase;
use skyhook_crds::lease::protocol;
use skyhook_crds::{InterruptionLease, names};
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::bench::status;
use skyhook_tests::plugin;

/// One canary, then all the others; the first failure stops the roll-out.
async fn canaries(world: &World, name: &str, ceiling: usize) -> Result<()> {
    let strategy = json!({ "exponential": {
        "initialBatch": 1, "growthFactor": 4, "failureThreshold": 1, "safetyLimit": 100,
    } });
    let spec = json!({ "default": { "budget": { "count": ceiling }, "strategy": strategy } });
    policy(world, name, spec).await
}

fn says_stopped(skyhook: &Skyhook) -> bool {
    let conditions = skyhook.status.iter().flat_map(|status| &status.conditions);
    let mut stopped = conditions.filter(|one| one.type_ == "skyhook.nvidia.com/RolloutStopped");
    let command = format!(
        "kubectl skyhook deployment-policy reset {}",
        skyhook.metadata.name.as_deref().unwrap_or_default()
    );
    stopped.any(|one| one.status == "True" && one.message.contains(&command))
}

/// Fails if anybody is started within some seconds.
async fn nobody_starts(
    world: &World,
    recorder: &PaceRecorder,
    name: &str,
    granted: &[usize],
) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(4)).await;
    let batches = recorder.batches(name, "__default__")?;
    ensure!(batches == granted, "{name}: batches of {batches:?}");
    let stopped = world.skyhook_until(name, "stopped", says_stopped).await?;
    let batch = batch(&stopped, "__default__");
    ensure!(batch.should_stop, "{batch:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_batch_stops_until_the_plugin_resets() -> Result<()> {
    let (mut world, recorder) = start().await?;
    nodes(&mut world, "reset", 1..=4, &[]).await?;
    canaries(&world, "reset-policy", 4).await?;
    let first = world.host("reset-1").context("a node")?.clone();
    first.change(|script| {
        script.haste = 40;
        script.failures.insert("test-package".into(), u32::MAX);
    });
    world
        .apply("reset", "reset", paced("reset-policy", "1.0.0"))
        .await?;
    let is_erroring = |skyhook: &Skyhook| {
        let statuses = skyhook.status.as_ref().map(|status| &status.node_status);
        statuses.is_some_and(|all| all.get("reset-1") == Some(&Status::Erroring))
    };
    world
        .skyhook_until("reset", "the canary fails", is_erroring)
        .await?;
    // The plugin reads here, and takes its time.
    let old = plugin::read(&world.client, "reset").await?;
    world
        .skyhook_until("reset", "stopped", says_stopped)
        .await?;
    nobody_starts(&world, &recorder, "reset", &[1]).await?;

    // A failed node that recovers starts nobody: it was judged.
    first.change(|script| script.failures.clear());
    let recovered = |skyhook: &Skyhook| of(skyhook, "__default__").completed == 1;
    world
        .skyhook_until("reset", "the canary recovers", recovered)
        .await?;
    nobody_starts(&world, &recorder, "reset", &[1]).await?;

    let before = plugin::read(&world.client, "reset").await?;
    let run = |skyhook: &Skyhook| of(skyhook, "__default__").run;
    ensure!(
        before["status"]["compartmentStatuses"]["__default__"]["run"] == 1,
        "{before}"
    );
    // The whole old status is written back over the newer one.
    plugin::send(&world.client, "reset", plugin::reset_patch(&old)?).await?;
    let again = |skyhook: &Skyhook| run(skyhook) == Some(2) && !says_stopped(skyhook);
    world.skyhook_until("reset", "started anew", again).await?;
    let done = world.complete("reset").await?;
    let status = of(&done, "__default__");
    ensure!((status.completed, status.run) == (4, Some(2)), "{status:?}");
    // Batch 1 of the new run has one node again, then the other two.
    let batches = recorder.batches("reset", "__default__")?;
    ensure!(batches == [1, 1, 2], "batches of {batches:?}");
    let most = recorder.most("reset", "__default__")?;
    ensure!(most.all <= 4, "{most:?}");
    // The numbers of nodes were not reset, and the old offset in the patch asked for nothing.
    numbered(&world, &recorder, "reset", 4).await?;
    world.coordinator.stop().await
}

/// An auto-repair deletes the Node that a package has broken. That must not be forgotten with the Node.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_whose_node_is_deleted_is_not_tried_on_the_next_one() -> Result<()> {
    let (mut world, recorder) = start().await?;
    nodes(&mut world, "canary", 1..=3, &[]).await?;
    canaries(&world, "canary-policy", 3).await?;
    let first = world.host("canary-1").context("a node")?.clone();
    first.change(|script| {
        script.failures.insert("test-package".into(), u32::MAX);
    });
    world
        .apply("canary", "canary", paced("canary-policy", "1.0.0"))
        .await?;
    let works = |lease: Option<&InterruptionLease>| {
        lease.is_some_and(|lease| protocol::phase(lease) == Some(Phase::Erroring))
    };
    world.lease_until("canary-1", "it fails", works).await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.delete("canary-1", &DeleteParams::default()).await?;
    world
        .lease_until("canary-1", "released", |lease| lease.is_none())
        .await?;
    nobody_starts(&world, &recorder, "canary", &[1]).await?;
    let is_counted = |skyhook: &Skyhook| {
        let batch = batch(skyhook, "__default__");
        batch.last_batch_failed && (batch.last_batch_size, batch.consecutive_failures) == (1, 1)
    };
    world
        .skyhook_until("canary", "the failure is counted", is_counted)
        .await?;

    // The Node comes back under its name: another one, with another UID. It starts nobody either.
    let uid = world
        .fixture
        .node("canary-1", &[("test", "canary")])
        .await?;
    first.change(|script| script.failures.clear());
    world.adopt("canary-1", &uid);
    nobody_starts(&world, &recorder, "canary", &[1]).await?;
    let read = plugin::read(&world.client, "canary").await?;
    plugin::send(&world.client, "canary", plugin::reset_patch(&read)?).await?;
    let done = world.complete("canary").await?;
    ensure!(of(&done, "__default__").completed == 3, "{:?}", done.status);
    // Of the nodes that are the oldest by now, one and then the other two.
    let batches = recorder.batches("canary", "__default__")?;
    ensure!(batches == [1, 1, 2], "batches of {batches:?}");
    world.coordinator.stop().await
}

/// `kubectl skyhook reset` on a paused Skyhook: every record is emptied, and the numbers begin at 0 again.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_everything_starts_the_numbers_anew() -> Result<()> {
    let (mut world, recorder) = start().await?;
    nodes(&mut world, "again", 1..=3, &[]).await?;
    hasten(&world, "again", 3)?;
    canaries(&world, "again-policy", 3).await?;
    world
        .apply("again", "again", paced("again-policy", "1.0.0"))
        .await?;
    world.complete("again").await?;
    numbered(&world, &recorder, "again", 3).await?;
    world
        .annotate_skyhook("again", names::PAUSE, Some("true"))
        .await?;
    let is_paused = |skyhook: &Skyhook| status(skyhook) == "paused";
    world.skyhook_until("again", "paused", is_paused).await?;
    for n in 1..=3 {
        let node = format!("again-{n}");
        world
            .annotate(&node, &names::node_state("again"), None)
            .await?;
    }
    let read = plugin::read(&world.client, "again").await?;
    plugin::send(&world.client, "again", plugin::reset_patch(&read)?).await?;
    let patch = r#"{"status":{"nodeOrderOffset":null,"nodePriority":null}}"#;
    plugin::send(&world.client, "again", patch.to_owned()).await?;
    let second = PaceRecorder::start(world.client.clone()).await?;
    world.annotate_skyhook("again", names::PAUSE, None).await?;
    eventually(MINUTE, async || {
        let batches = second.batches("again", "__default__")?;
        ensure!(batches.iter().sum::<usize>() == 3, "batches of {batches:?}");
        Ok(())
    })
    .await?;
    let done = world.complete("again").await?;
    let shown = done.status.and_then(|status| status.node_order_shown);
    ensure!(shown.is_some_and(|shown| shown.run == 1), "{shown:?}");
    numbered(&world, &second, "again", 3).await?;
    world.coordinator.stop().await
}

/// Batches that go on from one version to the next, until the plugin resets them.
#[tokio::test(flavor = "multi_thread")]
async fn batches_that_outlive_a_roll_out_are_reset_by_the_plugin() -> Result<()> {
    let (mut world, recorder) = start().await?;
    nodes(&mut world, "lasting", 1..=3, &[]).await?;
    hasten(&world, "lasting", 3)?;
    let spec = json!({
        "default": { "budget": { "count": 2 }, "strategy": { "exponential": {} } },
        "resetBatchStateOnCompletion": false,
    });
    policy(&world, "lasting-policy", spec).await?;
    let shows = async |run: i32, current: i32| {
        let what = format!("run {run}, batch {current}");
        let is_shown = |skyhook: &Skyhook| {
            let status = of(skyhook, "__default__");
            status.run == Some(run)
                && status.batch_state.unwrap_or_default().current_batch == current
        };
        world.skyhook_until("lasting", &what, is_shown).await?;
        anyhow::Ok(())
    };
    let roll_out = async |version: &str, sizes: &[usize]| {
        world
            .apply("lasting", "lasting", paced("lasting-policy", version))
            .await?;
        world.complete("lasting").await?;
        kept(&recorder, "lasting", &[("__default__", 2, sizes)])
    };
    roll_out("1.0.0", &[1, 2]).await?;
    // The last batch is judged as well, and nothing starts anew: the next version goes on with twice as many nodes as that
    // batch had, but for the ceiling.
    shows(1, 3).await?;
    roll_out("1.1.0", &[1, 2, 2, 1]).await?;
    shows(1, 5).await?;

    let read = plugin::read(&world.client, "lasting").await?;
    plugin::send(&world.client, "lasting", plugin::reset_patch(&read)?).await?;
    shows(2, 1).await?;
    roll_out("1.2.0", &[1, 2, 2, 1, 1, 2]).await?;
    shows(2, 3).await?;
    world.coordinator.stop().await
}
