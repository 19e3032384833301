//! Cordon, wait, drain, and interrupts that are merged.

use super::*;

pub(crate) async fn interrupt(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("interrupt-1", "interrupt", slow()).await?;
    world
        .pod("important-stuff", "interrupt-1", &[("dontmess", "withme")])
        .await?;
    world.pod("drain-on", "interrupt-1", &[]).await?;
    let rsyslog = json!({ "type": "service", "services": ["rsyslog"] });
    let spec = json!({
        "podNonInterruptLabels": { "matchLabels": { "dontmess": "withme" } },
        "interruptionBudget": { "count": 1 },
        "packages": {
            "jason": package("1.3.2", json!({ "agentImageOverride": "ghcr.io/nvidia/skyhook/agentless:3.2.3" })),
            "dexter": package("1.2.3", json!({ "interrupt": { "type": "reboot" } })),
            "john": package("1.2.3", json!({ "interrupt": rsyslog })),
            "spencer": package("3.2.3", json!({ "dependsOn": { "dexter": "1.2.3" } })),
            "baxter": package("3.2.1", json!({ "interrupt": rsyslog, "dependsOn": { "spencer": "3.2.3" } })),
            "foobar": package("1.2", json!({ "dependsOn": { "dexter": "1.2.3", "baxter": "3.2.1" } })),
        },
    });
    world.apply("interrupt", "interrupt", spec).await?;
    world
        .lease_until("interrupt-1", "waiting for important-stuff", |lease| {
            lease.is_some_and(|l| {
                l.spec.drain.state == DrainState::Waiting
                    && l.spec
                        .drain
                        .blockers
                        .iter()
                        .any(|b| b.pod == "default/important-stuff")
            })
        })
        .await?;
    eventually(MINUTE, async || {
        let got = world.states("interrupt-1", "interrupt").await?;
        ensure!(
            got.get("jason|1.3.2")
                .is_some_and(|s| s == "config/complete"),
            "no interrupt, no wait: {got:?}"
        );
        Ok(())
    })
    .await?;
    ensure!(
        times(&host, "dexter|1.2.3 apply") == 0 && times(&host, "john|1.2.3 apply") == 0,
        "{:#?}",
        host.ledger()
    );
    ensure!(
        world.has_pod("important-stuff").await? && world.has_pod("drain-on").await?,
        "both pods are left alone"
    );
    ensure!(
        world
            .annotation("interrupt-1", &names::cordon("interrupt"))
            .await?
            .as_deref()
            == Some("true"),
        "cordon mark"
    );
    world.delete_pod("important-stuff").await?;
    world.complete("interrupt").await?;
    ensure!(!world.has_pod("drain-on").await?, "a bare pod is evicted");
    let (post, plain) = ("post-interrupt/complete", "config/complete");
    world
        .expect_states(
            "interrupt-1",
            "interrupt",
            &[
                ("baxter|3.2.1", post),
                ("dexter|1.2.3", post),
                ("foobar|1.2", plain),
                ("jason|1.3.2", plain),
                ("john|1.2.3", post),
                ("spencer|3.2.3", plain),
            ],
        )
        .await?;
    let interrupts: Vec<String> = host
        .ledger()
        .into_iter()
        .filter(|e| e.starts_with("interrupt"))
        .collect();
    ensure!(
        interrupts.len() == 2 && interrupts[0].contains("Reboot"),
        "a reboot for the first wave, then baxter's: {interrupts:?}"
    );
    world.expect_settled("interrupt-1", "interrupt").await
}

pub(crate) async fn grouping(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("grouping-1", "grouping", slow()).await?;
    let service =
        |services: &[&str]| json!({ "interrupt": { "type": "service", "services": services } });
    let spec = json!({ "packages": {
        "zeb": package("2.1.4", service(&["cron"])),
        "dax": package("1.2.3", service(&["containerd", "foobar"])),
    } });
    world.apply("grouping", "grouping", spec).await?;
    world.complete("grouping").await?;
    let annotation = world
        .annotation("grouping-1", &names::node_state("grouping"))
        .await?;
    let want = format!(
        r#"{{"dax|1.2.3":{{"name":"dax","version":"1.2.3","image":"{IMAGE}","stage":"post-interrupt","state":"complete"}},"zeb|2.1.4":{{"name":"zeb","version":"2.1.4","image":"{IMAGE}","stage":"post-interrupt","state":"complete"}}}}"#
    );
    ensure!(
        annotation.as_deref() == Some(want.as_str()),
        "{annotation:?}"
    );
    let interrupts: Vec<String> = host
        .ledger()
        .into_iter()
        .filter(|e| e.starts_with("interrupt"))
        .collect();
    ensure!(
        interrupts == [r#"interrupt dax|1.2.3 Service ["containerd", "cron", "foobar"]"#],
        "{interrupts:?}"
    );
    world.expect_settled("grouping-1", "grouping").await
}
