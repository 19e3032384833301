//! What others write to Nodes and Skyhooks: edits, forgeries, pauses.

use super::*;

pub(crate) async fn cleanup(world: &mut World) -> anyhow::Result<()> {
    let one = world.node("cleanup-1", "cleanup", slow()).await?;
    let two = world.node("cleanup-2", "cleanup", slow()).await?;
    let spec = |value: &str| {
        json!({ "packages": {
            "aa": package("1.2.3", json!({})),
            "bb": package("1.2", json!({ "dependsOn": { "aa": "1.2.3" }, "configMap": { "foo": value }, "gracefulShutdown": "46s" })),
        } })
    };
    world.apply("cleanup", "cleanup", spec("bar")).await?;
    world.complete("cleanup").await?;
    world.apply("cleanup", "cleanup", spec("buz")).await?;
    world.complete("cleanup").await?;
    for host in [&one, &two] {
        ensure!(
            times(host, "bb|1.2 apply") == 1 && times(host, "bb|1.2 config") == 2,
            "config only: {:#?}",
            host.ledger()
        );
    }
    for host in [&one, &two] {
        host.change(|script| {
            script.failures.insert("bb".into(), u32::MAX);
        });
    }
    world.apply("cleanup", "cleanup", spec("bur")).await?;
    world
        .skyhook_until("cleanup", "both nodes erroring", |s| {
            s.status.as_ref().is_some_and(|s| {
                s.status == Status::Erroring
                    && s.node_status
                        .values()
                        .eq([&Status::Erroring, &Status::Erroring])
            })
        })
        .await?;
    world
        .annotate("cleanup-1", &names::node_state("cleanup"), None)
        .await?;
    eventually(MINUTE, async || {
        let states = world.states("cleanup-1", "cleanup").await?;
        let state = states.get("bb|1.2").map(String::as_str);
        ensure!(state == Some("apply/erroring"), "bb: {state:?}");
        Ok(())
    })
    .await?;
    let complete = "config/complete";
    world
        .expect_states(
            "cleanup-1",
            "cleanup",
            &[("aa|1.2.3", complete), ("bb|1.2", "apply/erroring")],
        )
        .await?;
    world
        .expect_states(
            "cleanup-2",
            "cleanup",
            &[("aa|1.2.3", complete), ("bb|1.2", "config/erroring")],
        )
        .await?;
    ensure!(
        times(&one, "aa|1.2.3 apply") == 2,
        "the node starts over: {:#?}",
        one.ledger()
    );
    ensure!(
        times(&two, "aa|1.2.3 apply") == 1,
        "the other does not: {:#?}",
        two.ledger()
    );
    Ok(())
}

/// A record as an early version of NVIDIA Skyhook wrote it: the key has no version.
pub(crate) async fn upgrade_of_skyhook(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("legacy-1", "legacy", slow()).await?;
    let version = names::version("foobar");
    let legacy = json!({ "foobar": {
        "name": "foobar", "version": "1.2", "image": IMAGE, "stage": "apply", "state": "in_progress",
    } });
    world
        .annotate(
            "legacy-1",
            &names::node_state("foobar"),
            Some(&legacy.to_string()),
        )
        .await?;
    world.annotate("legacy-1", &version, Some("v0.5.0")).await?;
    let spec = json!({ "packages": { "foobar": package("1.2", json!({})) } });
    world.apply("foobar", "legacy", spec).await?;
    world.complete("foobar").await?;
    // The early entry is gone, and what it said was begun is done once.
    world
        .expect_states("legacy-1", "foobar", &[("foobar|1.2", "config/complete")])
        .await?;
    ensure!(
        times(&host, "foobar|1.2 apply") == 1,
        "{:#?}",
        host.ledger()
    );
    let stamped = world.annotation("legacy-1", &version).await?;
    ensure!(
        stamped.as_deref().is_some_and(|v| v != "v0.5.0"),
        "{stamped:?}"
    );
    world.expect_settled("legacy-1", "foobar").await
}

/// Whoever may create pods cannot forge package states.
pub(crate) async fn forged_pods(world: &mut World) -> anyhow::Result<()> {
    world.node("forged-1", "forged", slow()).await?;
    world
        .pod(
            "forged",
            "forged-1",
            &[
                ("skyhook.nvidia.com/name", "forged"),
                ("skyhook.nvidia.com/package", "foobar-1.2.3"),
            ],
        )
        .await?;
    let spec = json!({ "packages": { "foobar": package("1.0.0", json!({})) } });
    world.apply("forged", "forged", spec).await?;
    world.complete("forged").await?;
    world
        .expect_states("forged-1", "forged", &[("foobar|1.0.0", "config/complete")])
        .await?;
    ensure!(world.has_pod("forged").await?, "it was there all along");
    Ok(())
}

pub(crate) async fn lifecycle(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("lifecycle-1", "lifecycle", slow()).await?;
    let spec = |version: &str| json!({ "packages": { "pkg": package(version, json!({})) } });
    world.apply("lifecycle", "lifecycle", spec("1.0.0")).await?;
    world.complete("lifecycle").await?;
    let status_is =
        |want: Status| move |s: &Skyhook| s.status.as_ref().is_some_and(|s| s.status == want);

    world
        .annotate_skyhook("lifecycle", names::PAUSE, Some("true"))
        .await?;
    world
        .skyhook_until("lifecycle", "paused", status_is(Status::Paused))
        .await?;
    world.apply("lifecycle", "lifecycle", spec("1.1.0")).await?;
    let is_observed = |s: &Skyhook| {
        let observed = s.status.as_ref().map(|status| status.observed_generation);
        observed == s.metadata.generation
    };
    world
        .skyhook_until("lifecycle", "observed", is_observed)
        .await?;
    ensure!(
        times(&host, "pkg|1.1.0 upgrade") == 0,
        "paused: nothing starts"
    );
    world
        .annotate_skyhook("lifecycle", names::DISABLE, Some("true"))
        .await?;
    world
        .annotate_skyhook("lifecycle", names::PAUSE, None)
        .await?;
    world
        .skyhook_until("lifecycle", "disabled", status_is(Status::Disabled))
        .await?;
    ensure!(
        times(&host, "pkg|1.1.0 upgrade") == 0,
        "disabled: nothing starts"
    );
    world
        .annotate_skyhook("lifecycle", names::DISABLE, None)
        .await?;
    world.complete("lifecycle").await?;
    ensure!(
        times(&host, "pkg|1.1.0 upgrade") == 1,
        "{:#?}",
        host.ledger()
    );

    // `package rerun --stage config` and `node reset` of the command line, which write annotations.
    let key = names::node_state("lifecycle");
    let rerun = world
        .annotation("lifecycle-1", &key)
        .await?
        .unwrap_or_default()
        .replace("complete", "in_progress");
    world.annotate("lifecycle-1", &key, Some(&rerun)).await?;
    let ran = async |what: &'static str, count: usize| {
        eventually(MINUTE, async || {
            ensure!(times(&host, what) >= count, "{what}: {:#?}", host.ledger());
            Ok(())
        })
        .await
    };
    ran("pkg|1.1.0 config", 2)
        .await
        .context("the edit is obeyed")?;
    world.complete("lifecycle").await?;
    world
        .lease_until("lifecycle-1", "released", |lease| lease.is_none())
        .await?;
    world.annotate("lifecycle-1", &key, None).await?;
    ran("pkg|1.1.0 apply", 1)
        .await
        .context("reset: everything is applied again")?;
    world.complete("lifecycle").await?;
    world.expect_settled("lifecycle-1", "lifecycle").await
}
