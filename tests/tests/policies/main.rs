//! Roll-outs that a DeploymentPolicy paces, on a real API server: NVIDIA Skyhook's scenarios, and what they do not ask.
//! The ceiling of every compartment is held all the time, by a record of every lease.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use skyhook_coordinator::config::Settings;
use skyhook_crds::policy::BatchState;
use skyhook_crds::skyhook::CompartmentStatus;
use skyhook_crds::{DeploymentPolicy, Skyhook, Status};
use skyhook_tests::coreagent::HostScript;
use skyhook_tests::pace::PaceRecorder;
use skyhook_tests::world::World;

mod deletions;
mod failures;
mod strategies;

/// A stage is a step and a check, and a package goes through two stages: a node takes four times as long.
const STEP: Duration = Duration::from_millis(600);

fn slow() -> HostScript {
    HostScript {
        step_time: STEP,
        ..HostScript::default()
    }
}

/// Starts a cluster, and a record of its leases.
async fn start() -> Result<(World, PaceRecorder)> {
    let world = World::start(Settings::default()).await?;
    let recorder = PaceRecorder::start(world.client.clone()).await?;
    Ok((world, recorder))
}

/// Registers `NAME-1` to `NAME-count` for the Skyhook `name`, with further labels.
async fn nodes(
    world: &mut World,
    name: &str,
    count: std::ops::RangeInclusive<usize>,
    labels: &[(&str, &str)],
) -> Result<()> {
    for n in count {
        let labels: Vec<(&str, &str)> = [("test", name)].iter().chain(labels).copied().collect();
        world
            .labelled_node(&format!("{name}-{n}"), &labels, slow())
            .await?;
    }
    Ok(())
}

/// Lets the hosts of a Skyhook work without pauses, where nothing has to be seen in between.
fn hasten(world: &World, name: &str, count: usize) -> Result<()> {
    for n in 1..=count {
        let host = world.host(&format!("{name}-{n}")).context("a node")?;
        host.change(|script| script.step_time = Duration::ZERO);
    }
    Ok(())
}

async fn policy(world: &World, name: &str, spec: Value) -> Result<()> {
    let policies: Api<DeploymentPolicy> = Api::all(world.client.clone());
    let manifest = json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "DeploymentPolicy",
        "metadata": { "name": name }, "spec": spec,
    });
    let params = PatchParams::apply("test").force();
    policies
        .patch(name, &params, &Patch::Apply(manifest))
        .await?;
    Ok(())
}

fn compartment(name: &str, labels: Value, budget: Value, strategy: Value) -> Value {
    json!({ "name": name, "selector": { "matchLabels": labels }, "budget": budget, "strategy": strategy })
}

/// What nodes fall under that no compartment matches.
fn default_compartment() -> Value {
    json!({
        "budget": { "percent": 100 },
        "strategy": { "fixed": { "initialBatch": 1, "batchThreshold": 100, "failureThreshold": 3, "safetyLimit": 50 } },
    })
}

fn paced(policy: &str, version: &str) -> Value {
    json!({
        "deploymentPolicy": policy,
        "packages": { "test-package": { "version": version, "image": "ghcr.io/nvidia/skyhook/agentless" } },
    })
}

/// What a Skyhook's status says of a compartment.
fn of(skyhook: &Skyhook, compartment: &str) -> CompartmentStatus {
    let status = skyhook.status.as_ref();
    let found = status.and_then(|status| status.compartment_statuses.get(compartment));
    found.cloned().unwrap_or_default()
}

fn batch(skyhook: &Skyhook, compartment: &str) -> BatchState {
    of(skyhook, compartment).batch_state.unwrap_or_default()
}

/// Waits until a compartment shows at least so many complete nodes in at least this batch.
async fn reaches(
    world: &World,
    name: &str,
    compartment: &str,
    completed: i32,
    current: i32,
) -> Result<()> {
    let what = format!("{compartment}: {completed} complete in batch {current}");
    let is_there = |skyhook: &Skyhook| {
        let done = of(skyhook, compartment).completed;
        done >= completed && batch(skyhook, compartment).current_batch >= current
    };
    world.skyhook_until(name, &what, is_there).await?;
    Ok(())
}

/// Waits for the end, and checks what it says of each compartment: nodes and batches.
async fn ends(world: &World, name: &str, compartments: &[(&str, i32, i32)]) -> Result<()> {
    let done = world.complete(name).await?;
    for (compartment, nodes, batches) in compartments {
        let status = of(&done, compartment);
        let shown = (
            status.completed,
            status.in_progress,
            status.progress_percent,
        );
        ensure!(shown == (*nodes, 0, 100), "{compartment}: {status:?}");
        let batch = status.batch_state.unwrap_or_default();
        // The last batch of all is not judged, so its number is still shown. Where others went on, it was judged.
        let is_shown = [*batches, batches + 1].contains(&batch.current_batch);
        ensure!(
            is_shown && batch.consecutive_failures == 0,
            "{compartment}: {batch:?}"
        );
    }
    // A moment later the roll-out is ready for the next one.
    let is_new = |skyhook: &Skyhook| {
        let mut all = compartments.iter();
        all.all(|(one, _, _)| batch(skyhook, one).current_batch == 1)
    };
    let reset = world
        .skyhook_until(name, "batches start anew", is_new)
        .await?;
    ensure!(
        reset
            .status
            .is_some_and(|status| status.status == Status::Complete),
        "it stays complete"
    );
    Ok(())
}

/// Fails unless no compartment ever had more leases than its ceiling, and its batches had these sizes.
fn kept(
    recorder: &PaceRecorder,
    name: &str,
    compartments: &[(&str, usize, &[usize])],
) -> Result<()> {
    for (compartment, ceiling, sizes) in compartments {
        let most = recorder.most(name, compartment)?;
        ensure!(
            most.all <= *ceiling && most.granted > 0,
            "{name}, {compartment}: {most:?} of {ceiling}"
        );
        let batches = recorder.batches(name, compartment)?;
        ensure!(
            batches == *sizes,
            "{name}, {compartment}: batches of {batches:?}"
        );
    }
    Ok(())
}

/// Fails unless the numbers of a Skyhook's nodes are 0 and so on, each for one node.
async fn numbered(world: &World, recorder: &PaceRecorder, name: &str, nodes: usize) -> Result<()> {
    let skyhooks: Api<Skyhook> = Api::all(world.client.clone());
    let skyhook = skyhooks.get(name).await?;
    let uid = skyhook.metadata.uid.context("a Skyhook has a UID")?;
    let given = recorder.orders(&uid)?;
    let numbers: Vec<i64> = given.iter().map(|(number, _)| *number).collect();
    let want: Vec<i64> = (0..i64::try_from(nodes)?).collect();
    ensure!(numbers == want, "{name}: {given:?}");
    let status = skyhook.status.context("status")?;
    ensure!(
        status.node_order_offset == i64::try_from(nodes)? && status.node_priority.is_empty(),
        "{name}: {} {:?}",
        status.node_order_offset,
        status.node_priority
    );
    Ok(())
}
