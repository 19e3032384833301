//! What the coordinator measures through a roll-out, against files: `SKYHOOK_GOLDEN=write` writes them.

#![expect(
    clippy::disallowed_methods,
    reason = "it compares with files and writes them where it is told to, and a scrape has a time"
)]

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use skyhook_integration::source::source;

use super::*;

const FOLDER: &str = "tests/tests/scenarios/metrics";
const NAME: &str = "scraped";

/// Samples of the Skyhook that are not 0, by name, label set and value. Times and numbers of attempts are left out: they
/// depend on the machine.
fn samples(world: &World) -> BTreeSet<String> {
    let text = world.coordinator.metrics.text(Timestamp::now());
    let ours = format!("_name=\"{NAME}\"");
    let lines = text.lines().filter(|line| line.contains(&ours));
    let lines = lines.filter(|line| {
        let is_fixed = !line.contains("_seconds{") && !line.contains("_restarts_count{");
        is_fixed && !line.ends_with("} 0")
    });
    lines.map(str::to_owned).collect()
}

/// Waits until the samples are those of a file.
async fn shows(world: &World, phase: &str) -> anyhow::Result<()> {
    let path = source(&format!("{FOLDER}/{phase}.txt"));
    if std::env::var_os("SKYHOOK_GOLDEN").is_some_and(|what| what == "write") {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let lines: Vec<String> = samples(world).into_iter().collect();
        return Ok(std::fs::write(path, lines.join("\n") + "\n")?);
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let want: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    eventually(MINUTE, async || {
        let found = samples(world);
        let missing: Vec<&String> = want.difference(&found).collect();
        let more: Vec<&String> = found.difference(&want).collect();
        ensure!(
            missing.is_empty() && more.is_empty(),
            "{phase}: the scrape lacks {missing:#?} and has {more:#?}"
        );
        Ok(())
    })
    .await
}

/// The value of one sample, as the reference's own checks compare it: as text.
fn value(world: &World, sample: &str) -> Option<String> {
    let text = world.coordinator.metrics.text(Timestamp::now());
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let found = lines.find(|(name, _)| *name == sample);
    found.map(|(_, value)| value.to_owned())
}

async fn comes_to(world: &World, metric: &str, labels: &str, want: &str) -> anyhow::Result<()> {
    let sample = format!("{metric}{{skyhook_name=\"{NAME}\"{labels}}}");
    eventually(MINUTE, async || {
        let found = value(world, &sample);
        ensure!(
            found.as_deref() == Some(want),
            "{sample} is {found:?}, not {want}"
        );
        Ok(())
    })
    .await
}

pub(crate) async fn through_a_rollout(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("scraped-1", NAME, slow()).await?;
    world
        .pod("scraped-pod", "scraped-1", &[("dontmess", "withme")])
        .await?;
    let spec = |dexter: &str| {
        json!({
            "podNonInterruptLabels": { "matchLabels": { "dontmess": "withme" } },
            "interruptionBudget": { "count": 1 },
            "packages": {
                "dexter": package(dexter, json!({})),
                "spencer": package("3.2.3", json!({ "interrupt": { "type": "service", "services": ["cron"] } })),
            },
        })
    };
    world.apply(NAME, NAME, spec("1.2.3")).await?;
    world
        .lease_until("scraped-1", "waiting for the pod", |lease| {
            lease.is_some_and(|lease| lease.spec.drain.state == DrainState::Waiting)
        })
        .await?;
    let dexter = r#",package_name="dexter",package_version="1.2.3""#;
    let state = format!("{dexter},state=\"complete\"");
    comes_to(world, "skyhook_package_state_count", &state, "1").await?;
    shows(world, "waiting").await?;

    world.delete_pod("scraped-pod").await?;
    world.complete(NAME).await?;
    shows(world, "complete").await?;
    // What NVIDIA's own end-to-end tests ask for when a Skyhook is complete.
    let place = r#",policy_name="legacy",compartment_name="__default__",strategy="fixed""#;
    let stage = format!("{dexter},stage=\"config\"");
    for (metric, labels, want) in [
        ("skyhook_status", r#",status="complete""#, "1"),
        ("skyhook_node_status_count", r#",status="complete""#, "1"),
        ("skyhook_node_target_count", "", "1"),
        ("skyhook_package_state_count", &state, "1"),
        ("skyhook_package_stage_count", &stage, "1"),
        ("skyhook_package_restarts_count", dexter, "0"),
        ("skyhook_rollout_matched_nodes", place, "1"),
        ("skyhook_rollout_ceiling", place, "1"),
        ("skyhook_rollout_completed", place, "1"),
        ("skyhook_rollout_in_progress", place, "0"),
        ("skyhook_rollout_progress_percent", place, "100"),
    ] {
        comes_to(world, metric, labels, want).await?;
    }

    host.change(|script| {
        script.failures.insert("dexter".into(), u32::MAX);
    });
    world.apply(NAME, NAME, spec("1.2.4")).await?;
    let newer = r#",package_name="dexter",package_version="1.2.4""#;
    let state = format!("{newer},state=\"erroring\"");
    comes_to(world, "skyhook_package_state_count", &state, "1").await?;
    comes_to(world, "skyhook_status", r#",status="erroring""#, "1").await?;
    shows(world, "erroring").await?;

    host.change(|script| script.failures.clear());
    world.complete(NAME).await?;
    shows(world, "upgraded").await?;

    let skyhooks: Api<Skyhook> = Api::all(world.client.clone());
    skyhooks.delete(NAME, &DeleteParams::default()).await?;
    eventually(MINUTE, async || {
        let text = world.coordinator.metrics.text(Timestamp::now());
        let left: Vec<&str> = text.lines().filter(|line| line.contains(NAME)).collect();
        ensure!(
            left.is_empty(),
            "series of a Skyhook that is gone: {left:#?}"
        );
        Ok(())
    })
    .await
}
