//! `make demo`: a cluster with real kubelets, `helm install`, one package, one node at a time, live in
//! the terminal.
#![expect(
    clippy::disallowed_methods,
    reason = "a demo reads the clock and files"
)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use skyhook_crds::{InterruptionLease, Skyhook, names};
use skyhook_integration::real::RealCluster;
use skyhook_integration::rollout::{apply, example, is_complete};

const NAME: &str = "skyhook-sample";
const FILE: &str = "/skyhook-hello-world";
const DEADLINE: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> ExitCode {
    let ended = tokio::select! {
        ended = demo() => ended,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    println!(
        "Starting a control plane, a registry and three hosts with systemd, containerd and kubelet."
    );
    let started = Instant::now();
    let cluster = RealCluster::start(3).await?;
    let mut parts = cluster.timings.clone();
    let up = started.elapsed();

    println!(
        "\n$ helm install skyhook helm/skyhook-operator --namespace skyhook --create-namespace --wait"
    );
    let installing = Instant::now();
    cluster.install(&[]).await?;
    parts.push(("helm install, all pods ready", installing.elapsed()));
    show(&cluster, &["get", "pods", "-n", "skyhook", "-o", "wide"]).await?;

    let pushing = Instant::now();
    let image = cluster.push("shellscript").await?;
    parts.push(("package image built and pushed", pushing.elapsed()));
    show(&cluster, &["get", "nodes"]).await?;
    let manifest = example("skyhook-sample.yaml", &image, 1)?;
    println!(
        "$ kubectl apply -f -\n{}",
        serde_yaml_ng::to_string(&manifest)?
    );
    let applied = Instant::now();
    apply(cluster.client(), &manifest).await?;
    if let Err(error) = show_until_complete(&cluster, applied).await {
        eprintln!("{}", cluster.describe().await);
        return Err(error);
    }
    parts.push(("roll-out on three nodes, one at a time", applied.elapsed()));

    show(&cluster, &["get", "skyhooks"]).await?;
    for node in &cluster.nodes {
        let content = node.host.exec(["cat", FILE]).await?;
        println!("{}$ cat {FILE}\n{}", node.host.name(), content.trim_end());
    }

    println!("\n$ helm uninstall skyhook --namespace skyhook");
    let uninstalling = Instant::now();
    cluster.uninstall().await?;
    parts.push((
        "helm uninstall, with the Skyhook still there",
        uninstalling.elapsed(),
    ));

    let stopping = Instant::now();
    drop(cluster);
    parts.push(("everything taken down", stopping.elapsed()));
    println!(
        "\nHow long it took (everything was up after {:.1} s):",
        up.as_secs_f64()
    );
    for (part, took) in parts {
        println!("{:>8.1} s  {part}", took.as_secs_f64());
    }
    Ok(())
}

async fn show(cluster: &RealCluster, args: &[&str]) -> Result<()> {
    let printed = cluster.plane.kubectl(args).await?;
    println!("\n$ kubectl {}\n{printed}", args.join(" "));
    Ok(())
}

/// What is shown of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    node: String,
    status: String,
    lease: String,
    doing: String,
}

async fn show_until_complete(cluster: &RealCluster, applied: Instant) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let skyhooks: Api<Skyhook> = Api::all(cluster.client());
    let mut shown: Vec<Row> = Vec::new();
    loop {
        let rows = rows(cluster).await?;
        let skyhook = skyhooks.get(NAME).await?;
        let done = is_complete(&skyhook);
        if terminal {
            draw(&rows, applied.elapsed(), shown.is_empty())?;
        } else {
            for row in rows.iter().filter(|row| !shown.contains(row)) {
                let after = applied.elapsed().as_secs_f64();
                println!(
                    "{after:6.1} s  {}  {}  {}  {}",
                    row.node, row.status, row.lease, row.doing
                );
            }
        }
        shown = rows;
        if done {
            println!(
                "\n{NAME}: complete after {:.1} s",
                applied.elapsed().as_secs_f64()
            );
            return Ok(());
        }
        if applied.elapsed() > DEADLINE {
            let status = serde_json::to_string_pretty(&skyhook.status)?;
            bail!("{NAME} is not complete after {DEADLINE:?}: {status}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn rows(cluster: &RealCluster) -> Result<Vec<Row>> {
    let nodes = Api::<Node>::all(cluster.client())
        .list(&Default::default())
        .await?;
    let leases = Api::<InterruptionLease>::all(cluster.client())
        .list(&Default::default())
        .await?;
    let mut rows = Vec::new();
    for node in nodes {
        let name = node.metadata.name.context("a listed node has a name")?;
        let annotations = node.metadata.annotations.unwrap_or_default();
        let status = annotations.get(&names::status(NAME)).cloned();
        let lease = leases
            .items
            .iter()
            .find(|lease| lease.metadata.name.as_ref() == Some(&name));
        let (mut held, mut doing) = ("no lease".to_owned(), String::new());
        if let Some(lease) = lease {
            let phase = lease.status.as_ref().and_then(|status| status.phase);
            held = match (phase, &lease.spec.granted) {
                (Some(phase), _) => format!("lease: {phase:?}"),
                (None, Some(_)) => "lease: granted".to_owned(),
                (None, None) => "lease: reserved".to_owned(),
            };
            if let Some(status) = &lease.status {
                let stage = status.stage.map(|stage| stage.as_str()).unwrap_or_default();
                let state = status.state.map(|state| state.as_str()).unwrap_or_default();
                doing = format!(
                    "{} {stage} {state}",
                    status.package.as_deref().unwrap_or("")
                );
            }
        }
        let status = status.unwrap_or_else(|| "waiting".to_owned());
        rows.push(Row {
            node: name,
            status,
            lease: held,
            doing: doing.trim().to_owned(),
        });
    }
    Ok(rows)
}

/// Draws the table over the one drawn before.
fn draw(rows: &[Row], after: Duration, first: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !first {
        write!(out, "\x1b[{}A", rows.len() + 1)?;
    }
    writeln!(
        out,
        "\x1b[2K\x1b[1mNODE         STATUS        LEASE                 AT WORK ON\x1b[0m  {:.0} s",
        after.as_secs_f64()
    )?;
    for row in rows {
        let color = match row.status.as_str() {
            "complete" => "\x1b[32m",
            "erroring" => "\x1b[31m",
            "in_progress" => "\x1b[33m",
            _ => "\x1b[2m",
        };
        writeln!(
            out,
            "\x1b[2K{:<12} {color}{:<13}\x1b[0m {:<21} {}",
            row.node, row.status, row.lease, row.doing
        )?;
    }
    out.flush()?;
    Ok(())
}
