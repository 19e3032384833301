//! NVIDIA Skyhook's end-to-end scenarios that need no compartment, as tests of ours: what they assert, and what they only
//! meant to. States that are seen only because NVIDIA Skyhook is slow are not asserted.

#![expect(clippy::too_many_lines, reason = "a scenario reads from top to bottom")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};
use skyhook_coordinator::config::Settings;
use skyhook_crds::lease::DrainState;
use skyhook_crds::{Skyhook, Status, names};
use skyhook_integration::rollout::LeaseRecorder;
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::coreagent::{FakeHost, HostScript};
use skyhook_tests::seen::NodeRecorder;
use skyhook_tests::world::World;

mod adoption;
mod deletions;
mod drains;
mod interrupts;
mod metrics;
mod nodes;
mod order;
mod taints;

use interrupts::{grouping, interrupt};
use nodes::{cleanup, forged_pods, lifecycle, upgrade_of_skyhook};

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_of_the_reference() -> anyhow::Result<()> {
    let mut world = World::start(Settings::default()).await?;
    simple(&mut world)
        .await
        .context("simple-skyhook, simple-update-skyhook and delete-skyhook")?;
    config(&mut world).await.context("config-skyhook")?;
    uninstall_upgrade(&mut world)
        .await
        .context("uninstall-upgrade-skyhook")?;
    interrupt(&mut world).await.context("interrupt")?;
    grouping(&mut world).await.context("interrupt-grouping")?;
    cleanup(&mut world).await.context("cleanup-pods")?;
    forged_pods(&mut world).await.context("pod-finalizer")?;
    upgrade_of_skyhook(&mut world)
        .await
        .context("skyhook-upgrade")?;
    lifecycle(&mut world)
        .await
        .context("cli lifecycle, reset and rerun")?;
    world.coordinator.stop().await
}

/// Each with nodes of its own.
#[tokio::test(flavor = "multi_thread")]
async fn taints_drains_and_order() -> anyhow::Result<()> {
    let settings = Settings {
        reapply_on_reboot: true,
        drain_cool_down: Duration::from_secs(2),
        ..Settings::default()
    };
    let mut world = World::start(settings).await?;
    let nodes = NodeRecorder::start(world.client.clone()).await?;
    let leases = LeaseRecorder::start(world.client.clone()).await?;
    taints::runtime_required(&mut world, &nodes)
        .await
        .context("runtime-required")?;
    taints::auto_taint(&mut world, &nodes)
        .await
        .context("auto-taint-new-nodes")?;
    taints::scheduling(&mut world, &nodes)
        .await
        .context("taint-scheduling")?;
    taints::cordon_after(&mut world, &nodes)
        .await
        .context("cordon after the taint")?;
    taints::reboots(&mut world, &nodes)
        .await
        .context("reboots")?;
    taints::strange_nodes(&mut world, &nodes)
        .await
        .context("nodes that are no hosts")?;
    order::strict(&mut world, &leases)
        .await
        .context("strict-order")?;
    drains::of_a_cordoned_node(&mut world, &nodes)
        .await
        .context("a cordon of somebody else")?;
    drains::blocked(&mut world)
        .await
        .context("a drain that a budget blocks")?;
    drains::protections(&mut world, &nodes)
        .await
        .context("what keeps autoscalers off")?;
    world.coordinator.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions() -> anyhow::Result<()> {
    let mut world = World::start(Settings::default()).await?;
    let leases = LeaseRecorder::start(world.client.clone()).await?;
    deletions::made_anew(&mut world, &leases)
        .await
        .context("made anew")?;
    world.coordinator.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_through_a_rollout() -> anyhow::Result<()> {
    let mut world = World::start(Settings::default()).await?;
    metrics::through_a_rollout(&mut world).await?;
    world.coordinator.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn adoption_of_what_others_left() -> anyhow::Result<()> {
    adoption::of_all_versions().await
}

const IMAGE: &str = "ghcr.io/nvidia/skyhook/agentless";

fn package(version: &str, more: Value) -> Value {
    let mut package = json!({ "version": version, "image": IMAGE });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        package[key] = value;
    }
    package
}

fn slow() -> HostScript {
    HostScript {
        step_time: Duration::from_millis(50),
        ..HostScript::default()
    }
}

/// Fails unless nothing about a Node is wrong for five seconds.
async fn holds(what: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    for _ in 0..50 {
        what()?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// How often something ran on a host.
fn times(host: &FakeHost, what: &str) -> usize {
    host.ledger()
        .iter()
        .filter(|entry| entry.as_str() == what)
        .count()
}

/// Where something first stands in a host's ledger.
fn position(host: &FakeHost, what: &str) -> anyhow::Result<usize> {
    let ledger = host.ledger();
    ledger
        .iter()
        .position(|entry| entry == what)
        .with_context(|| format!("{what:?} is not in {ledger:#?}"))
}

async fn simple(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("simple-1", "simple", slow()).await?;
    let packages = json!({
        "dexter": package("1.2.3", json!({ "configMap": { "game.properties": "a", "ui.properties": "b" } })),
        "spencer": package("3.2.3", json!({ "dependsOn": { "dexter": "1.2.3" } })),
        "foobar": package("1.2", json!({
            "dependsOn": { "dexter": "1.2.3" }, "containerSHA": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "resources": { "cpuRequest": "50m", "cpuLimit": "50m", "memoryRequest": "32Mi", "memoryLimit": "32Mi" },
        })),
    });
    let toleration = json!([{ "key": "nvidia.com/gpu", "operator": "Exists" }]);
    let spec = |packages: &Value| json!({ "interruptionBudget": { "count": 1 }, "additionalTolerations": toleration, "packages": packages });
    world.apply("simple", "simple", spec(&packages)).await?;
    let done = world.complete("simple").await?;
    let status = done.status.context("status")?;
    ensure!(
        status.node_status.values().eq([&Status::Complete]),
        "{:?}",
        status.node_status
    );
    ensure!(
        status.package_list == "dexter:1.2.3,foobar:1.2,spencer:3.2.3",
        "{}",
        status.package_list
    );
    ensure!(
        (status.complete_nodes.as_str(), status.nodes_in_progress) == ("1/1", 0),
        "{status:?}"
    );
    ensure!(
        done.metadata
            .annotations
            .is_some_and(|a| a[names::VERSION].len() >= 6),
        "version annotation"
    );
    let complete = "config/complete";
    world
        .expect_states(
            "simple-1",
            "simple",
            &[
                ("dexter|1.2.3", complete),
                ("foobar|1.2", complete),
                ("spencer|3.2.3", complete),
            ],
        )
        .await?;
    let annotation = world
        .annotation("simple-1", &names::node_state("simple"))
        .await?
        .unwrap_or_default();
    ensure!(
        annotation.contains(r#""containerSHA":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef""#),
        "{annotation}"
    );
    ensure!(
        annotation.contains(&format!(r#""image":"{IMAGE}""#)),
        "{annotation}"
    );
    world.expect_settled("simple-1", "simple").await?;
    let after = position(&host, "dexter|1.2.3 config-check")?;
    for dependent in ["spencer|3.2.3 apply", "foobar|1.2 apply"] {
        ensure!(
            position(&host, dependent)? > after,
            "{dependent} did not wait for dexter: {:#?}",
            host.ledger()
        );
    }

    let mut more = packages.clone();
    more["baxter"] = package("2.3.1-test", json!({ "configMap": { "x": "y" } }));
    more["jackie-chan"] = package("2024.7.7-test", json!({}));
    world.apply("simple", "simple", spec(&more)).await?;
    world.complete("simple").await?;
    ensure!(
        world.states("simple-1", "simple").await?.len() == 5,
        "five packages"
    );
    ensure!(
        times(&host, "dexter|1.2.3 apply") == 1,
        "complete packages are not done again: {:#?}",
        host.ledger()
    );
    world.expect_settled("simple-1", "simple").await?;

    let skyhooks: Api<Skyhook> = Api::all(world.client.clone());
    skyhooks.delete("simple", &DeleteParams::default()).await?;
    eventually(MINUTE, async || {
        let left = skyhooks.get_opt("simple").await?;
        ensure!(left.is_none(), "the finalizer keeps the Skyhook");
        Ok(())
    })
    .await?;
    ensure!(
        world.states("simple-1", "simple").await?.len() == 5,
        "what is installed stays on record"
    );
    let before = host.ledger().len();
    world.apply("simple", "simple", spec(&more)).await?;
    world.complete("simple").await?;
    ensure!(
        host.ledger().len() == before,
        "made anew, it resumes as complete: {:#?}",
        host.ledger()
    );
    Ok(())
}

async fn config(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("config-1", "config", slow()).await?;
    let service = |services: &[&str]| json!({ "type": "service", "services": services });
    let spec = |game: [&str; 2], ui: [&str; 2], glob: bool| {
        let mut dexter_interrupts = json!({ "game.properties": service(&["rsyslog"]) });
        if glob {
            dexter_interrupts["*.properties"] = service(&["rsyslog"]);
        }
        json!({ "interruptionBudget": { "count": 1 }, "packages": {
            "spencer": package("3.2.3", json!({ "interrupt": service(&["cron"]) })),
            "dexter": package("1.2.3", json!({
                "interrupt": { "type": "reboot" }, "configInterrupts": dexter_interrupts,
                "configMap": { "game.properties": game[0], "ui.properties": ui[0] },
            })),
            "baxter": package("3.2.1", json!({
                "configInterrupts": { "game.properties": service(&["rsyslog", "cron"]) },
                "configMap": { "game.properties": game[1], "ui.properties": ui[1] },
            })),
        } })
    };
    let interrupts = || {
        host.ledger()
            .iter()
            .filter(|entry| entry.starts_with("interrupt"))
            .count()
    };
    let (post, plain) = ("post-interrupt/complete", "config/complete");
    let states = |baxter: &'static str, dexter: &'static str| {
        [
            ("baxter|3.2.1", baxter),
            ("dexter|1.2.3", dexter),
            ("spencer|3.2.3", post),
        ]
    };

    world
        .apply("config", "config", spec(["a", "a"], ["a", "a"], false))
        .await?;
    world
        .lease_until("config-1", "taken", |lease| {
            lease.is_some_and(|l| l.status.is_some())
        })
        .await?;
    world
        .apply("config", "config", spec(["a", "b"], ["a", "a"], false))
        .await?;
    world.complete("config").await?;
    let got = world.states("config-1", "config").await?;
    ensure!(
        got["dexter|1.2.3"] == post && got["spencer|3.2.3"] == post,
        "{got:?}"
    );
    world.expect_settled("config-1", "config").await?;

    let before = interrupts();
    world
        .apply("config", "config", spec(["c", "c"], ["a", "a"], false))
        .await?;
    world.complete("config").await?;
    world
        .expect_states("config-1", "config", &states(post, post))
        .await?;
    ensure!(
        interrupts() == before + 1,
        "one merged interrupt: {:#?}",
        host.ledger()
    );

    world
        .apply("config", "config", spec(["c", "c"], ["d", "d"], false))
        .await?;
    world.complete("config").await?;
    world
        .expect_states("config-1", "config", &states(plain, plain))
        .await?;
    ensure!(
        interrupts() == before + 1,
        "a change that matches no interrupt interrupts nothing: {:#?}",
        host.ledger()
    );

    world
        .apply("config", "config", spec(["e", "c"], ["d", "d"], true))
        .await?;
    world.complete("config").await?;
    world
        .expect_states("config-1", "config", &states(plain, post))
        .await?;
    world.expect_settled("config-1", "config").await
}

async fn uninstall_upgrade(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("upgrade-1", "upgrade", slow()).await?;
    let spec =
        |packages: Value| json!({ "interruptionBudget": { "count": 1 }, "packages": packages });
    let dogs = |version| {
        package(
            version,
            json!({ "interrupt": { "type": "reboot" }, "configMap": { "a": version } }),
        )
    };
    let nullptr = |version| {
        package(
            version,
            json!({
                "interrupt": { "type": "service", "services": ["cron", "containerd"] }, "configMap": { "b": version },
            }),
        )
    };
    let first = json!({ "dogs": dogs("1.2.6"), "nullptr": nullptr("2.0.0"), "cats": package("6.2.0", json!({})) });
    world.apply("upgrade", "upgrade", spec(first)).await?;
    let done = world.complete("upgrade").await?;
    let (post, plain) = ("post-interrupt/complete", "config/complete");
    world
        .expect_states(
            "upgrade-1",
            "upgrade",
            &[
                ("cats|6.2.0", plain),
                ("dogs|1.2.6", post),
                ("nullptr|2.0.0", post),
            ],
        )
        .await?;
    ensure!(
        done.status.context("status")?.package_list == "cats:6.2.0,dogs:1.2.6,nullptr:2.0.0",
        "package list"
    );
    world.expect_settled("upgrade-1", "upgrade").await?;

    world
        .apply(
            "upgrade",
            "upgrade",
            spec(json!({ "dogs": dogs("1.2.5"), "nullptr": nullptr("2.0.1") })),
        )
        .await?;
    let done = world.complete("upgrade").await?;
    world
        .expect_states(
            "upgrade-1",
            "upgrade",
            &[("dogs|1.2.5", post), ("nullptr|2.0.1", post)],
        )
        .await?;
    ensure!(
        done.status.context("status")?.package_list == "dogs:1.2.5,nullptr:2.0.1",
        "package list"
    );
    for (what, count) in [
        ("cats|6.2.0 uninstall", 1),
        ("dogs|1.2.6 uninstall", 1),
        ("dogs|1.2.5 apply", 1),
        ("nullptr|2.0.1 upgrade", 1),
        ("nullptr|2.0.1 apply", 0),
        ("nullptr|2.0.0 uninstall", 0),
    ] {
        ensure!(
            times(&host, what) == count,
            "{what} ran {} times: {:#?}",
            times(&host, what),
            host.ledger()
        );
    }
    world.expect_settled("upgrade-1", "upgrade").await?;

    world.apply("upgrade", "upgrade", spec(json!({}))).await?;
    let done = world.complete("upgrade").await?;
    let annotation = world
        .annotation("upgrade-1", &names::node_state("upgrade"))
        .await?;
    ensure!(annotation.as_deref() == Some("{}"), "{annotation:?}");
    let status = done.status.context("status")?;
    ensure!(
        (status.package_list.as_str(), status.complete_nodes.as_str()) == ("", "1/1"),
        "{status:?}"
    );
    world.expect_settled("upgrade-1", "upgrade").await
}
