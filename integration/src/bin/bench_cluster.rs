//! `make bench-cluster`: two real nodes, the chart, the `shellscript` example one node at a time.
//! Prints `bench NAME VALUE` lines.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use skyhook_integration::images;
use skyhook_integration::install::NAMESPACE;
use skyhook_integration::kubelet::KubeNode;
use skyhook_integration::real::RealCluster;
use skyhook_integration::rollout::{apply, example, wait_complete};

/// Long enough for the last write of a roll-out.
const QUIET: Duration = Duration::from_secs(5);
const NODES: u8 = 2;
const MIB: f64 = 1024.0 * 1024.0;
const WRITES: [&str; 4] = ["create", "update", "patch", "delete"];

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = RealCluster::start(NODES).await?;
    for (part, took) in &cluster.timings {
        eprintln!("{:>8.1} s  {part}", took.as_secs_f64());
    }
    let started = Instant::now();
    cluster.install(&[]).await?;
    println!("bench helm_install_ms {:.0}", milliseconds(started));
    tokio::time::sleep(QUIET).await;

    let image = cluster.push("shellscript").await?;
    let manifest = example("skyhook-sample.yaml", &image, 1)?;
    let before = cluster.plane.audit_counts()?;
    let started = Instant::now();
    apply(cluster.client(), &manifest).await?;
    let done = wait_complete(cluster.client(), "skyhook-sample", Duration::from_secs(300)).await;
    if let Err(error) = done {
        eprintln!("{}", cluster.describe().await);
        return Err(error);
    }
    println!("bench apply_to_complete_ms {:.0}", milliseconds(started));
    tokio::time::sleep(QUIET).await;
    let after = cluster.plane.audit_counts()?.since(&before);
    let ours = after.of(|user| user.starts_with(&format!("system:serviceaccount:{NAMESPACE}:")));
    let mut writes = 0;
    for (key, count) in &ours.0 {
        // Leader election goes on whether or not there is work; events are for people.
        let counts = WRITES.contains(&key.verb.as_str())
            && !["leases", "events"].contains(&key.resource.as_str());
        eprintln!(
            "{:>5} {} {}{}",
            count,
            key.verb,
            key.resource,
            if counts { "" } else { " (not counted)" }
        );
        writes += if counts { *count } else { 0 };
    }
    println!(
        "bench writes_per_node {:.1}",
        to_f64(writes) / f64::from(NODES)
    );

    let mut agents = Vec::new();
    let mut coordinators = Vec::new();
    for node in &cluster.nodes {
        agents.push(working_set(node, "^/usr/bin/skyhook-agent run").await?);
        coordinators.extend(
            working_set(node, "^/usr/bin/skyhook-coordinator")
                .await
                .ok(),
        );
    }
    println!("bench agent_pod_mib {:.1}", largest(&agents)?);
    println!("bench coordinator_pod_mib {:.1}", largest(&coordinators)?);
    for name in ["agent", "coordinator"] {
        let size = images::size(&cluster.images(), &format!("{name}.tar"))?;
        println!("bench {name}_image_mib {:.1}", to_f64(size) / MIB);
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

fn largest(of: &[f64]) -> Result<f64> {
    of.iter()
        .copied()
        .max_by(f64::total_cmp)
        .context("nothing was measured")
}

/// What the kubelet counts against a container's limit: all memory of its cgroup but file pages that
/// nobody has used for a while. In MiB.
async fn working_set(node: &KubeNode, process: &str) -> Result<f64> {
    let script = format!(
        "pid=$(pgrep -f '{process}')
         dir=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/$pid/cgroup)
         if [ -e $dir/memory.usage_in_bytes ]; then
             used=$(cat $dir/memory.usage_in_bytes) old=$(sed -n 's/^total_inactive_file //p' $dir/memory.stat)
         else
             dir=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
             used=$(cat $dir/memory.current) old=$(sed -n 's/^inactive_file //p' $dir/memory.stat)
         fi
         echo $((used - old))"
    );
    let bytes: u64 = node.host.sh(&script).await?.trim().parse()?;
    Ok(to_f64(bytes) / MIB)
}
