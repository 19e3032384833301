//! The oldest Kubernetes that the chart supports takes our CRDs: newer ones take rules that it refuses as too expensive.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use skyhook_crds::admission;
use skyhook_integration::process::output;
use skyhook_integration::source::source;

#[tokio::test]
async fn the_oldest_kubernetes_takes_our_crds() -> Result<()> {
    let build = output(Command::new(source("integration/oldest/build"))).await;
    let program = build.context("cannot build integration/oldest")?;
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(program.trim());
    for crd in admission::crds()? {
        let name = crd.metadata.name.as_deref().context("a name")?;
        let file = dir.path().join(name);
        std::io::Write::write_all(
            &mut std::fs::File::create_new(&file)?,
            serde_json::to_string(&crd)?.as_bytes(),
        )?;
        command.arg(file);
    }
    let costs = output(command).await?;
    eprintln!("{costs}");
    ensure!(costs.matches(" of 100 million").count() == 4, "{costs}");
    Ok(())
}
