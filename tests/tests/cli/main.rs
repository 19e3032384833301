//! The plugin for kubectl against a real API server, a real coordinator, and the agents' real core: NVIDIA Skyhook's
//! scenarios of its command line, and what becomes of the writes.

#![expect(clippy::too_many_lines, reason = "a scenario reads from top to bottom")]

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser as _;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use skyhook_cli::args::Cli;
use skyhook_cli::session::{Io, Screen};
use skyhook_coordinator::config::Settings;
use skyhook_crds::{DeploymentPolicy, InterruptionLease, Skyhook, Status, names};
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::coreagent::{FakeHost, HostScript};
use skyhook_tests::world::World;

mod writes;

/// What a run of the plugin printed.
#[derive(Debug)]
struct Said {
    out: String,
    err: String,
}

/// Runs the plugin with these words, and `input` as its standard input.
async fn plugin(world: &World, words: &[&str], input: &str) -> anyhow::Result<Said> {
    let kubeconfig = world
        .fixture
        .plane
        .kubeconfig()
        .to_string_lossy()
        .into_owned();
    let all = ["kubectl-skyhook", "--kubeconfig", &kubeconfig];
    let cli = Cli::try_parse_from(all.iter().chain(words))?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let io = Io {
        out: &mut out,
        err: &mut err,
        input: &mut input.as_bytes(),
        screen: Screen::default(),
    };
    skyhook_cli::run(cli, io)
        .await
        .with_context(|| format!("{words:?}"))?;
    Ok(Said {
        out: String::from_utf8(out)?,
        err: String::from_utf8(err)?,
    })
}

/// Fails unless the plugin prints exactly this, and nothing on stderr.
async fn expect(world: &World, words: &[&str], want: &str) -> anyhow::Result<()> {
    let said = plugin(world, words, "").await?;
    ensure!(
        said.out == want && said.err.is_empty(),
        "{words:?}: {said:#?}, not {want:?}"
    );
    Ok(())
}

fn times(host: &FakeHost, what: &str) -> usize {
    let ledger = host.ledger();
    ledger.iter().filter(|entry| entry.as_str() == what).count()
}

async fn ran(host: &FakeHost, what: &str, count: usize) -> anyhow::Result<()> {
    eventually(MINUTE, async || {
        ensure!(
            times(host, what) >= count,
            "{what} {count} times: {:#?}",
            host.ledger()
        );
        Ok(())
    })
    .await
}

async fn skyhook(world: &World, name: &str) -> anyhow::Result<Skyhook> {
    Ok(Api::<Skyhook>::all(world.client.clone()).get(name).await?)
}

fn packages(more: &Value) -> Value {
    let package =
        |version: &str| json!({ "version": version, "image": "ghcr.io/nvidia/skyhook/agentless" });
    let mut spec = json!({ "packages": { "aa": package("1.0.0"), "bb": package("2.0.0") } });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_steers_a_roll_out() -> anyhow::Result<()> {
    let mut world = World::start(Settings::default()).await?;
    lifecycle(&mut world).await.context("lifecycle")?;
    nodes(&mut world).await.context("node")?;
    reruns(&mut world).await.context("package")?;
    batches(&mut world).await.context("deployment-policy")?;
    writes::running(&mut world)
        .await
        .context("a reset of a running node")?;
    writes::release(&mut world).await.context("force-release")?;
    writes::others(&mut world)
        .await
        .context("writes of others")?;
    world.coordinator.stop().await
}

async fn lifecycle(world: &mut World) -> anyhow::Result<()> {
    let unknown = "unable to determine operator version; no skyhook operator deployment found in namespace \"skyhook\"";
    let versions = format!(
        "Skyhook plugin:\tv{}\nSkyhook operator:\tunknown ({unknown})\n",
        env!("CARGO_PKG_VERSION")
    );
    expect(world, &["version"], &versions).await?;
    world.node("life-1", "life", HostScript::default()).await?;
    world.apply("life", "life", packages(&json!({}))).await?;
    world.complete("life").await?;
    let marks = async || -> anyhow::Result<[Option<String>; 2]> {
        let object = skyhook(world, "life").await?;
        Ok([names::PAUSE, names::DISABLE].map(|key| object.annotations().get(key).cloned()))
    };
    let on = || Some("true".to_owned());
    expect(
        world,
        &["pause", "life", "--dry-run"],
        "[dry-run] Would pause Skyhook \"life\"\n",
    )
    .await?;
    let said = plugin(world, &["pause", "life"], "no\n").await?;
    ensure!(
        said.out == "This will pause Skyhook \"life\". Continue? [y/N]: Aborted.\n",
        "{said:?}"
    );
    ensure!(marks().await? == [None, None], "nothing is paused yet");
    let said = plugin(world, &["pause", "life"], "y\n").await?;
    ensure!(said.out.ends_with("Skyhook \"life\" paused\n"), "{said:?}");
    ensure!(marks().await? == [on(), None], "paused");
    expect(
        world,
        &["disable", "life", "--confirm"],
        "Skyhook \"life\" disabled\n",
    )
    .await?;
    expect(
        world,
        &["resume", "life", "-y"],
        "Skyhook \"life\" resumed\n",
    )
    .await?;
    ensure!(
        marks().await? == [None, on()],
        "a resume leaves disable alone"
    );
    world
        .skyhook_until("life", "disabled or complete", |s| {
            s.status
                .as_ref()
                .is_some_and(|s| matches!(s.status, Status::Disabled | Status::Complete))
        })
        .await?;
    expect(
        world,
        &["enable", "life", "-y"],
        "Skyhook \"life\" enabled\n",
    )
    .await?;
    ensure!(marks().await? == [None, None], "enabled");
    let version = skyhook(world, "life")
        .await?
        .annotations()
        .get(names::VERSION)
        .cloned();
    ensure!(version.is_some(), "no other annotation is lost");
    let Err(error) = plugin(world, &["pause", "nobody", "-y"], "").await else {
        bail!("there is no Skyhook to pause");
    };
    let error = format!("{error:#}");
    ensure!(
        error.contains(
            "getting skyhook \"nobody\": skyhooks.skyhook.nvidia.com \"nobody\" not found"
        ),
        "{error}"
    );
    Ok(())
}

async fn nodes(world: &mut World) -> anyhow::Result<()> {
    let list = "\
Skyhook: life

Summary: 1 nodes (1 complete, 0 erroring, 0 in progress)

NODE    STATUS    PACKAGES
----    ------    --------
life-1  complete  2/2
";
    expect(world, &["node", "list", "--skyhook", "life"], list).await?;
    let said = plugin(world, &["node", "status", "life-.*", "-o", "json"], "").await?;
    let json: Value = serde_json::from_str(&said.out)?;
    ensure!(
        json[0]["packages"][1]["name"] == "bb" && json[0]["status"] == "complete",
        "{json:#}"
    );
    let ignored = async || -> anyhow::Result<Option<String>> {
        let node = world.get_node("life-1").await?;
        Ok(node.labels().get(names::IGNORE).cloned())
    };
    let head = "Ignoring 1 node(s):\n  - life-1\n";
    expect(
        world,
        &["node", "ignore", "life-1", "--dry-run"],
        &format!("{head}\n[dry-run] No changes applied\n"),
    )
    .await?;
    ensure!(ignored().await?.is_none(), "a dry run writes nothing");
    let done = format!("{head}\nSuccessfully ignored 1 node(s)\n");
    expect(world, &["node", "ignore", "life-1"], &done).await?;
    ensure!(ignored().await?.as_deref() == Some("true"), "ignored");
    let again = format!("{head}  life-1: already ignored\n");
    expect(world, &["node", "ignore", "life-1"], &again).await?;
    let done = "Unignoring 1 node(s):\n  - life-1\n\nSuccessfully unignored 1 node(s)\n";
    expect(world, &["node", "unignore", "life-1"], done).await?;
    ensure!(ignored().await?.is_none(), "not ignored any more");
    Ok(())
}

async fn reruns(world: &mut World) -> anyhow::Result<()> {
    let host = world.host("life-1").context("a host")?.clone();
    let key = names::node_state("life");
    let before = world.annotation("life-1", &key).await?;
    let rerun = [
        "package",
        "rerun",
        "aa",
        "--skyhook",
        "life",
        "--node",
        "life-1",
        "--stage",
        "apply",
    ];
    let head = "\
Package: aa (version 1.0.0)
Skyhook: life
Re-run from stage: apply
Nodes to reset (1):
  - life-1 (current state: complete, stage: config)
";
    expect(
        world,
        &[&rerun[..], &["--dry-run"]].concat(),
        &format!("{head}\n[dry-run] No changes applied\n"),
    )
    .await?;
    ensure!(
        world.annotation("life-1", &key).await? == before,
        "a dry run writes nothing"
    );
    let done = format!("{head}\nSuccessfully reset package \"aa\" on 1 node(s)\n");
    expect(world, &[&rerun[..], &["--confirm"]].concat(), &done).await?;
    ran(&host, "aa|1.0.0 apply", 2).await?;
    world.complete("life").await?;
    world.expect_settled_soon("life-1", "life").await?;
    ensure!(
        times(&host, "bb|2.0.0 apply") == 1,
        "bb is left alone: {:#?}",
        host.ledger()
    );

    let said = plugin(world, &["reset", "life", "--package", "bb:2.0.0", "-y"], "").await?;
    ensure!(
        said.out
            .ends_with("\nSuccessfully reset package \"bb\" on 1 node(s) for Skyhook \"life\"\n"),
        "{said:?}"
    );
    ran(&host, "bb|2.0.0 apply", 2).await?;
    world.complete("life").await?;
    world.expect_settled_soon("life-1", "life").await?;
    ensure!(
        times(&host, "aa|1.0.0 apply") == 2,
        "aa is left alone: {:#?}",
        host.ledger()
    );

    let status = plugin(
        world,
        &["package", "status", "bb", "--skyhook", "life", "-o", "json"],
        "",
    )
    .await?;
    let json: Value = serde_json::from_str(&status.out)?;
    ensure!(
        json[0]["nodeName"] == "life-1" && json[0]["stage"] == "config",
        "{json:#}"
    );

    let mut wanted = "Skyhook: life\nNodes to reset (1):\n  - life-1 (2 packages)\n".to_owned();
    let node_reset = ["node", "reset", "life-1", "--skyhook", "life"];
    let question = "\nThis will remove ALL package state for Skyhook \"life\" on these nodes.\nAll packages will re-run from the \
                    beginning.\nContinue? [y/N]: ";
    let said = plugin(world, &node_reset, "n\n").await?;
    ensure!(
        said.out == format!("{wanted}{question}Aborted\n"),
        "{said:#?}"
    );
    wanted.push_str("\nSuccessfully reset 1 node(s) for Skyhook \"life\"\n");
    expect(world, &[&node_reset[..], &["--confirm"]].concat(), &wanted).await?;
    ran(&host, "aa|1.0.0 apply", 3).await?;
    ran(&host, "bb|2.0.0 apply", 3).await?;
    world.complete("life").await?;
    world.expect_settled_soon("life-1", "life").await?;

    let said = plugin(world, &["reset", "life", "--confirm"], "").await?;
    let done = "\nSuccessfully reset 1 node(s) for Skyhook \"life\"\nBatch state reset for Skyhook \"life\"\n";
    ensure!(said.out.ends_with(done), "{said:#?}");
    ran(&host, "aa|1.0.0 apply", 4).await?;
    world.complete("life").await?;
    world.expect_settled_soon("life-1", "life").await?;
    expect(
        world,
        &["reset", "nobody", "-y"],
        "No nodes have state for Skyhook \"nobody\"\n",
    )
    .await
}

async fn batches(world: &mut World) -> anyhow::Result<()> {
    let policies: Api<DeploymentPolicy> = Api::all(world.client.clone());
    let policy = serde_json::from_value(json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "DeploymentPolicy", "metadata": { "name": "slow" },
        "spec": {
            "default": { "budget": { "count": 1 }, "strategy": { "fixed": { "initialBatch": 1 } } },
            "resetBatchStateOnCompletion": false,
        },
    }))?;
    policies.create(&PostParams::default(), &policy).await?;
    for name in ["batch-1", "batch-2", "batch-3"] {
        world.node(name, "batch", HostScript::default()).await?;
    }
    world
        .apply(
            "batch",
            "batch",
            packages(&json!({ "deploymentPolicy": "slow" })),
        )
        .await?;
    world.complete("batch").await?;
    let batch = |skyhook: &Skyhook| {
        let status = skyhook.status.as_ref()?;
        let compartment = status.compartment_statuses.get("__default__")?;
        Some((
            compartment.run?,
            compartment.batch_state.clone()?.current_batch,
        ))
    };
    let before = world
        .skyhook_until("batch", "third batch", |s| {
            batch(s).is_some_and(|(_, batch)| batch >= 3)
        })
        .await?;
    let (run, number) = batch(&before).context("a batch")?;
    let said = plugin(world, &["dp", "reset", "batch", "--dry-run"], "").await?;
    ensure!(
        said.out
            .contains(&format!("  - __default__: batch {number}, ")),
        "{said:#?}"
    );
    let said = plugin(world, &["deployment-policy", "reset", "batch", "-y"], "").await?;
    ensure!(
        said.out
            .ends_with("\nSuccessfully reset batch state for Skyhook \"batch\"\n"),
        "{said:#?}"
    );
    let after = world
        .skyhook_until("batch", "the reset is obeyed", |s| {
            batch(s) == Some((run + 1, 1))
        })
        .await?;
    let (before, after) = (
        before.status.unwrap_or_default(),
        after.status.unwrap_or_default(),
    );
    ensure!(
        after.node_order_offset == before.node_order_offset,
        "the numbers of the nodes stay"
    );
    ensure!(
        after.node_state == before.node_state,
        "nothing else of the status is lost"
    );
    Ok(())
}
