//! Every example is taken by a real API server with our CRDs, and by our own decoder.
#![expect(clippy::disallowed_methods, reason = "it reads the examples")]

use std::fs;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use skyhook_crds::Skyhook;
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::install::install;
use skyhook_integration::process::output;
use skyhook_integration::programs;
use skyhook_integration::run::Run;
use skyhook_integration::source::{self, source};

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_accepted_and_can_be_decoded() -> Result<()> {
    let plane = ControlPlane::start(Arc::new(Run::start()?), &Options::default()).await?;
    install(&plane).await?;
    let examples = source("examples");
    let mut seen = 0;
    for entry in fs::read_dir(examples)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let file = path.to_string_lossy();
        plane
            .kubectl(&["apply", "--validate=strict", "-f", &file])
            .await?;
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} examples were found");
    let listed = plane.kubectl(&["get", "skyhooks", "-o", "json"]).await?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    for item in listed["items"].as_array().context("a list has items")? {
        let name = item["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let skyhook: Skyhook = serde_json::from_value(item.clone()).context(name.clone())?;
        let stored = serde_json::to_value(&skyhook.spec.packages)?;
        assert_eq!(
            stored.as_object().map(serde_json::Map::len),
            item["spec"]["packages"]
                .as_object()
                .map(serde_json::Map::len),
            "{name}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_package_of_ours_passes_the_agents_own_check() -> Result<()> {
    let run = Run::start()?;
    let agent = programs::collect(&run)?.join(programs::AGENT);
    let mut seen = 0;
    for dir in source::PACKAGES {
        for entry in fs::read_dir(source(dir))? {
            let entry = entry?;
            // Those have what the published ones have, warnings included, and some are layers over others.
            if entry.file_name().to_string_lossy().starts_with("like-") {
                continue;
            }
            let mut validate = Command::new(&agent);
            validate.arg("validate").arg(entry.path());
            let printed = output(validate).await?;
            assert!(printed.contains("0 errors, 0 warnings"), "{printed}");
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen} packages were found");
    Ok(())
}
