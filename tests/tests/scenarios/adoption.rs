//! Clusters that another implementation has run until now: what it left on Nodes is taken over.

use skyhook_tests::seen::{marks, taints};

use super::*;

/// What a version leaves on one Node that it has completed, and on one that it has not.
struct Left {
    skyhook: &'static str,
    records: &'static str,
    spec: Value,
    /// What is left to do on the second node, and nothing else.
    goes_on: &'static [&'static str],
}

fn all() -> [Left; 3] {
    let interrupt = json!({ "interrupt": { "type": "service", "services": ["cron"] } });
    let two = |more: Value| {
        let mut spec = json!({ "packages": {
            "foobar": package("1.2", json!({})), "dax": package("1.2.3", interrupt.clone()),
        } });
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            spec[key] = value;
        }
        spec
    };
    [
        Left {
            skyhook: "v05",
            records: include_str!("records/v0.5.json"),
            spec: json!({ "packages": { "foobar": package("1.2", json!({})) } }),
            goes_on: &["foobar|1.2 config", "foobar|1.2 config-check"],
        },
        Left {
            skyhook: "v013",
            records: include_str!("records/v0.13.json"),
            spec: two(json!({})),
            goes_on: &["foobar|1.2 config", "foobar|1.2 config-check"],
        },
        Left {
            skyhook: "v020",
            records: include_str!("records/v0.20.json"),
            spec: two(json!({ "runtimeRequired": true })),
            goes_on: &[
                "dax|1.2.3 post-interrupt",
                "dax|1.2.3 post-interrupt-check",
                "foobar|1.2 apply",
                "foobar|1.2 apply-check",
                "foobar|1.2 config",
                "foobar|1.2 config-check",
            ],
        },
    ]
}

/// Writes on a Node what an earlier version left there.
async fn leave(world: &World, node: &str, left: &Value) -> anyhow::Result<()> {
    let metadata = json!({ "annotations": left["annotations"], "labels": left["labels"] });
    let spec = json!({ "taints": left["taints"], "unschedulable": left["unschedulable"] });
    world
        .edit_node(node, json!({ "metadata": metadata, "spec": spec }))
        .await?;
    let status = json!({ "status": { "conditions": left["conditions"] } });
    world.edit_node_status(node, status).await
}

pub(crate) async fn of_all_versions() -> anyhow::Result<()> {
    let mut world = World::start_idle().await?;
    for left in all() {
        let records: Value = serde_json::from_str(left.records)?;
        for part in ["complete", "middle"] {
            let node = format!("{}-{part}", left.skyhook);
            world.node(&node, left.skyhook, slow()).await?;
            leave(&world, &node, &records[part]).await?;
        }
        world
            .apply(left.skyhook, left.skyhook, left.spec.clone())
            .await?;
    }
    let leases = LeaseRecorder::start(world.client.clone()).await?;
    world.coordinate(Settings::default());
    for left in all() {
        of_one(&world, &leases, &left)
            .await
            .with_context(|| left.skyhook)?;
    }
    world.coordinator.stop().await
}

async fn of_one(world: &World, leases: &LeaseRecorder, left: &Left) -> anyhow::Result<()> {
    let skyhook = left.skyhook;
    let (complete, middle) = (format!("{skyhook}-complete"), format!("{skyhook}-middle"));
    world
        .skyhook_until(skyhook, "complete on both nodes", |s| {
            let status = s.status.as_ref();
            status.is_some_and(|status| status.complete_nodes == "2/2")
        })
        .await?;
    let records: Value = serde_json::from_str(left.records)?;
    for (node, part) in [(&complete, "complete"), (&middle, "middle")] {
        world.expect_settled_soon(node, skyhook).await?;
        let object = world.get_node(node).await?;
        let theirs: Vec<String> = marks(&object)
            .into_iter()
            .filter(|key| key.starts_with(names::SUCCESSOR))
            .collect();
        ensure!(theirs.is_empty(), "{node} still has {theirs:?}");
        ensure!(taints(&object).is_empty(), "{node}: {:?}", taints(&object));
        let old = format!("{}/{skyhook}/Old", names::GROUP);
        ensure!(!marks(&object).contains(&old), "{node} still has {old}");
        // The version that was first on the node stays there, but for an early one.
        let key = names::version(skyhook);
        let before = records[part]["annotations"][&key].as_str();
        let before = before.filter(|version| !version.starts_with("v0.5."));
        let after = world.annotation(node, &key).await?.context("a version")?;
        let is_right = before.map_or(!after.starts_with("v0."), |before| after == before);
        ensure!(is_right, "version of {node}: {after}");
    }
    let ledger = |node: &str| world.host(node).map(FakeHost::ledger).unwrap_or_default();
    ensure!(
        ledger(&complete).is_empty(),
        "something ran again: {:#?}",
        ledger(&complete)
    );
    leases.most_granted()?;
    let changes = leases.changes();
    ensure!(
        !changes.iter().any(|change| change.node == complete),
        "{changes:#?}"
    );
    let mut ran = ledger(&middle);
    ran.sort_unstable();
    ensure!(ran == left.goes_on, "{ran:#?}");
    Ok(())
}
