//! `make cluster`: a cluster with real kubelets for trying things out, until Ctrl-C.
#![expect(clippy::disallowed_methods, reason = "a tool for the terminal")]

use anyhow::Result;
use skyhook_integration::real::RealCluster;
use skyhook_integration::registry::Image;

#[tokio::main]
async fn main() -> Result<()> {
    let count = std::env::var("NODES").map_or(Ok(2), |count| count.parse())?;
    let cluster = RealCluster::start(count).await?;
    for (part, took) in &cluster.timings {
        println!("{:>8.1} s  {part}", took.as_secs_f64());
    }
    let Image { repository, .. } = cluster.push("shellscript").await?;
    println!("export KUBECONFIG={}", cluster.plane.kubeconfig().display());
    println!("export REGISTRY={}", cluster.registry.address());
    println!("# the package of examples/skyhook-sample.yaml is {repository}");
    println!("# Ctrl-C ends it");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
