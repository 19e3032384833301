//! Writes to nodes that are worked on, that are gone, and that others write as well.

use super::*;

/// What is written while an agent works: its lease ends, and it begins anew.
pub(crate) async fn running(world: &mut World) -> anyhow::Result<()> {
    let slow = HostScript {
        step_time: Duration::from_secs(3),
        ..HostScript::default()
    };
    let host = world.node("run-1", "run", slow).await?;
    world.apply("run", "run", packages(&json!({}))).await?;
    eventually(MINUTE, async || {
        let states = world.states("run-1", "run").await?;
        ensure!(states.contains_key("aa|1.0.0"), "aa has begun: {states:?}");
        Ok(())
    })
    .await?;
    let leases: Api<InterruptionLease> = Api::all(world.client.clone());
    let first = leases.get("run-1").await?.uid();
    let said = plugin(
        world,
        &["node", "reset", "run-1", "--skyhook", "run", "-y"],
        "",
    )
    .await?;
    ensure!(
        said.err.starts_with("Note: run-1 is worked on now."),
        "{said:#?}"
    );
    world
        .lease_until("run-1", "another lease", |lease| {
            lease.is_some_and(|lease| lease.uid() != first)
        })
        .await?;
    host.change(|script| script.step_time = Duration::ZERO);
    ran(&host, "aa|1.0.0 apply", 2).await?;
    world.complete("run").await?;
    world.expect_settled_soon("run-1", "run").await
}

/// A node whose agent does not end holds its slot until somebody releases it.
pub(crate) async fn release(world: &mut World) -> anyhow::Result<()> {
    let nothing = "Node \"stuck-1\" has no lease: nothing is to be released\n";
    expect(world, &["force-release", "stuck-1"], nothing).await?;
    let endless = HostScript {
        step_time: Duration::from_secs(3600),
        ..HostScript::default()
    };
    world.node("stuck-1", "stuck", endless).await?;
    world.apply("stuck", "stuck", packages(&json!({}))).await?;
    let begun = |lease: &InterruptionLease| {
        let status = lease.status.as_ref();
        status.is_some_and(|status| status.begun == Some(true))
    };
    world
        .lease_until("stuck-1", "begun", |lease| lease.is_some_and(begun))
        .await?;
    let leases: Api<InterruptionLease> = Api::all(world.client.clone());
    let first = leases.get("stuck-1").await?.uid();
    let said = plugin(world, &["force-release", "stuck-1"], "n\n").await?;
    ensure!(
        said.out
            .starts_with("Node: stuck-1\nSkyhook: stuck\nPhase: "),
        "{said:#?}"
    );
    ensure!(said.out.ends_with("Aborted\n"), "{said:#?}");
    plugin(world, &["force-release", "stuck-1", "-y"], "").await?;
    world
        .lease_until("stuck-1", "released", |lease| {
            lease.is_none_or(|lease| lease.uid() != first)
        })
        .await?;

    world.fixture.node("dead-1", &[("test", "dead")]).await?;
    world.apply("dead", "dead", packages(&json!({}))).await?;
    world
        .lease_until("dead-1", "granted", |lease| {
            lease.is_some_and(|lease| lease.spec.granted.is_some())
        })
        .await?;
    eventually(MINUTE, async || {
        let said = plugin(world, &["explain", "dead-1"], "").await?;
        let help = "kubectl get pods -n skyhook -o wide --field-selector spec.nodeName=dead-1";
        for want in ["Skyhook dead on node dead-1: ", "  AwaitingAgent: ", help] {
            ensure!(said.out.contains(want), "{want}: {said:#?}");
        }
        let whole = plugin(world, &["explain", "dead"], "").await?;
        ensure!(whole.out.contains(help), "{whole:#?}");
        let status = plugin(world, &["status", "dead"], "").await?;
        ensure!(
            status.out.contains("\ndead-1   AwaitingAgent"),
            "{status:#?}"
        );
        Ok(())
    })
    .await?;
    let said = plugin(world, &["force-release", "dead-1", "-y"], "").await?;
    let new = "The agent has not accepted the lease, so nothing runs under it: ";
    ensure!(said.out.contains(new), "{said:#?}");
    Ok(())
}

/// Whoever writes at the same time loses nothing.
pub(crate) async fn others(world: &mut World) -> anyhow::Result<()> {
    world.fixture.node("busy-1", &[("test", "nobody")]).await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let writer = {
        let nodes = nodes.clone();
        tokio::spawn(async move {
            let mut written = 0_u32;
            // Each reads and replaces the whole Node, so it fails if it was written in between.
            while written < 40 {
                let mut node = nodes.get("busy-1").await?;
                node.annotations_mut()
                    .insert("example.com/count".into(), written.to_string());
                if nodes
                    .replace("busy-1", &PostParams::default(), &node)
                    .await
                    .is_ok()
                {
                    written += 1;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        })
    };
    for round in 0..20 {
        let (name, state) = if round % 2 == 0 {
            ("aa", "complete")
        } else {
            ("bb", "erroring")
        };
        let version = if name == "aa" { "1.0.0" } else { "2.0.0" };
        let add = [
            "update-state",
            "life",
            name,
            version,
            "config",
            state,
            "--node",
            "busy-1",
            "--confirm",
        ];
        let first = if round < 2 { &["--add"][..] } else { &[] };
        let said = plugin(world, &[&add[..], first].concat(), "").await?;
        ensure!(
            said.out.ends_with("\nSuccessfully updated 1 node(s)\n"),
            "{said:#?}"
        );
    }
    writer.await??;
    let node = nodes.get("busy-1").await?;
    let count = node
        .annotations()
        .get("example.com/count")
        .map(String::as_str);
    ensure!(count == Some("39"), "the other writer: {count:?}");
    let want = [
        ("aa|1.0.0", "config/complete"),
        ("bb|2.0.0", "config/erroring"),
    ];
    world.expect_states("busy-1", "life", &want).await
}
