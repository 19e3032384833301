//! Skyhooks that run one after another.

use super::*;

/// The second of three Skyhooks holds the third back until it is complete on all nodes. The first holds the second back on
/// each node alone.
pub(crate) async fn strict(world: &mut World, leases: &LeaseRecorder) -> anyhow::Result<()> {
    let spec = |priority: i32, sequencing: &str| {
        json!({
            "priority": priority, "sequencing": sequencing,
            "packages": { "spencer": package("3.2.3", json!({})) },
        })
    };
    // All are there before the first node is.
    for (name, priority, sequencing) in [
        ("order-first", 1, "node"),
        ("order-second", 2, "all"),
        ("order-third", 3, "node"),
    ] {
        world
            .apply(name, "order", spec(priority, sequencing))
            .await?;
        world.complete(name).await?;
    }
    for (node, milliseconds) in [("order-1", 150), ("order-2", 600)] {
        let script = HostScript {
            step_time: Duration::from_millis(milliseconds),
            ..HostScript::default()
        };
        world.node(node, "order", script).await?;
    }
    let gated =
        "Skyhook order-second goes first (sequencing: all) and is not complete on all of its nodes";
    world
        .skyhook_until("order-third", "held back on the node that is done", |s| {
            s.status.as_ref().is_some_and(|status| {
                let reason = status.node_reasons.get("order-1");
                status.status == Status::Waiting && reason.is_some_and(|one| one.message == gated)
            })
        })
        .await?;
    for name in ["order-first", "order-second", "order-third"] {
        world
            .skyhook_until(name, "complete on both nodes", |s| {
                let status = s.status.as_ref();
                status.is_some_and(|status| status.complete_nodes == "2/2")
            })
            .await?;
    }
    // Fails if the record has a gap.
    leases.most_granted()?;
    let changes = leases.changes();
    let at = |skyhook: &str, node: &str, what: &str| {
        let found = changes
            .iter()
            .position(|c| c.skyhook == skyhook && c.node == node && c.what == what);
        found.with_context(|| format!("{skyhook} was not {what} on {node}: {changes:#?}"))
    };
    let (one, two) = ("order-1", "order-2");
    ensure!(
        at("order-second", one, "reserved")? < at("order-first", two, "released")?,
        "the first holds the second back on each node alone: {changes:#?}"
    );
    for node in [one, two] {
        ensure!(
            at("order-first", node, "released")? < at("order-second", node, "reserved")?,
            "the second came before the first on {node}: {changes:#?}"
        );
        for done in [one, two] {
            ensure!(
                at("order-second", done, "Complete")? < at("order-third", node, "reserved")?,
                "the third began before the second was complete on {done}: {changes:#?}"
            );
        }
    }
    Ok(())
}
