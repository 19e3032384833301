//! `make bench-agent`: what the agent adds to what packages do. Meant for a release build of the agent.
#![expect(clippy::disallowed_methods, reason = "tests are shell")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skyhook_integration::cluster::{Cluster, Setup, Worker};
use skyhook_integration::machine::Machine;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::skip::{hosts_can_run, vms_can_run};
use skyhook_integration::vm::{self, Vm};
use skyhook_integration::wait::{MINUTE, asking_every};
use tokio::process::Command;
use tokio::time::sleep;

const STEPS: usize = 40;
const PACKAGES: usize = 12;

/// A package whose apply has so many steps; each notes the time when it begins.
async fn push<M: Machine>(cluster: &Cluster<M>, name: &str, steps: usize) -> Result<Image> {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("skyhook_dir"))?;
    std::fs::write(
        folder.path().join("skyhook_dir/step.sh"),
        "#!/bin/bash\necho \"$1 $EPOCHREALTIME\" >>/times\n",
    )?;
    let step = |mode: &str| {
        json!({
            "name": "step", "path": "step.sh", "arguments": [mode], "returncodes": [0],
            "on_host": true, "idempotence": true, "upgrade_step": false,
        })
    };
    let many: Vec<Value> = (0..steps).map(|_| step("apply")).collect();
    let config = json!({
        "schema_version": "v1", "package_name": name, "package_version": "1.0.0",
        "expected_config_files": [],
        "modes": {
            "apply": many, "apply-check": [step("apply-check")],
            "config": [step("config")], "config-check": [step("config-check")],
        },
    });
    std::fs::write(folder.path().join("config.json"), config.to_string())?;
    let repository = format!("bench/{name}");
    cluster
        .registry
        .push_folder(folder.path(), &repository, "1.0.0")
        .await
}

async fn run<M: Machine>(cluster: &Cluster<M>, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    apply(cluster.client(), manifest).await?;
    match wait_complete(cluster.client(), name, 2 * MINUTE).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.context(cluster.inner_logs().await)),
    }
}

/// Times in milliseconds at which steps of this mode began.
async fn times<M: Machine>(worker: &Worker<M>, mode: &str) -> Result<Vec<f64>> {
    let text = worker.host.read_file("/times").await?;
    let mode = format!("{mode} ");
    text.lines()
        .filter_map(|line| line.strip_prefix(&mode))
        .map(|time| Ok(time.parse::<f64>()? * 1000.0))
        .collect()
}

/// Milliseconds that the script itself takes, started from a shell.
async fn own_time<M: Machine>(worker: &Worker<M>) -> Result<f64> {
    let script = "cd /tmp; printf '#!/bin/bash\\necho \"$1 $EPOCHREALTIME\" >>/tmp/t\\n' >s; chmod +x s; \
                  bash -c 'a=${EPOCHREALTIME/./}; for i in {1..50}; do ./s x; done; echo $(( (${EPOCHREALTIME/./} - a) / 50 ))'";
    let printed = worker.host.run(&["sh", "-ec", script]).await?;
    Ok(printed.trim().parse::<f64>()? / 1000.0)
}

async fn field(worker: &Worker, pid: u32, name: &str) -> Result<u64> {
    let script =
        format!("cat /proc/{pid}/task/*/status | grep ^{name} | awk '{{s += $2}} END {{print s}}'");
    Ok(worker.host.sh(&script).await?.trim().parse()?)
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

/// Memory of a supervisor in the middle of its step: resident, and without the pages that it shares with the agent.
async fn supervisor(cluster: &Cluster, worker: &Worker) -> Result<(f64, f64)> {
    let image = cluster.push("sleeper").await?;
    let env = json!({"env": [{"name": "SLEEP_LEN", "value": "5"}]});
    apply(
        cluster.client(),
        &skyhook("bench-sleep", "sleeper", &image, 1, &env),
    )
    .await?;
    let script = "for p in $(pgrep -f '^skyhook-supervisor'); do grep -h -E 'VmRSS|RssAnon' /proc/$p/status; done \
                  | awk '{print $2}' | head -2 | xargs";
    let kib = loop {
        sleep(Duration::from_millis(300)).await;
        // One that waits for its specification is not what is asked for.
        if worker.host.sh("pgrep -fx 'sleep 5'").await.is_ok() {
            break worker.host.sh(script).await?;
        }
    };
    wait_complete(cluster.client(), "bench-sleep", MINUTE).await?;
    let (resident, own) = kib.trim().split_once(' ').context(kib.clone())?;
    Ok((
        mib(resident.parse::<u64>()? << 10),
        mib(own.parse::<u64>()? << 10),
    ))
}

/// fsyncs of agent and supervisors for one package (two stages).
async fn fsyncs(cluster: &Cluster, worker: &Worker, image: &Image) -> Result<f64> {
    let pid = worker.agent.pid().await?;
    let leader = worker.host.current()?.leader;
    let output = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("nsenter")
        .args(["-t", &leader.to_string(), "-p", "--"])
        .args([
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=fsync,fdatasync,syncfs,sync_file_range",
        ])
        .args(["-p", &pid.to_string(), "-o"])
        .arg(output.path())
        .stdin(Stdio::null())
        .spawn()?;
    sleep(Duration::from_secs(1)).await;
    run(
        cluster,
        &skyhook("bench-sync", "bench", image, 1, &json!({})),
    )
    .await?;
    sleep(Duration::from_millis(500)).await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(strace.id().context("strace")?)?),
        nix::sys::signal::Signal::SIGINT,
    )?;
    strace.wait().await?;
    let calls = std::fs::read_to_string(output.path())?;
    let calls = calls.lines().filter(|l| l.contains("sync")).count();
    Ok(f64::from(u32::try_from(calls)?) / 2.0)
}

/// Bytes that the agent writes for each retry of a check, of a package with 32 MiB of files.
async fn retry_bytes(cluster: &Cluster, worker: &Worker) -> Result<u64> {
    const LARGE: usize = 32 << 20;
    let folder = tempfile::tempdir()?;
    let noop = skyhook_integration::source::source("integration/fixtures/packages/root-dir");
    let mut config: Value = serde_json::from_slice(&std::fs::read(noop.join("config.json"))?)?;
    config["modes"]["apply-check"][0]["path"] = json!("check.sh");
    std::fs::create_dir(folder.path().join("skyhook_dir"))?;
    std::fs::create_dir_all(folder.path().join("root_dir/opt"))?;
    let write = |path: &str, bytes: &[u8]| std::fs::write(folder.path().join(path), bytes);
    write("config.json", config.to_string().as_bytes())?;
    write("skyhook_dir/noop.sh", b"#!/bin/bash\n")?;
    write(
        "skyhook_dir/check.sh",
        b"#!/bin/bash\necho run >>/checks\nexit 1\n",
    )?;
    write("root_dir/opt/large", &vec![b'x'; LARGE])?;
    let image = cluster
        .registry
        .push_folder(folder.path(), "bench/large", "1.0.0")
        .await?;
    let manifest = skyhook("bench-retries", "large", &image, 1, &json!({}));
    apply(cluster.client(), &manifest).await?;
    let written = async |checks: u32| {
        let ran = format!("[ $(cat /checks 2>/dev/null | wc -l) -ge {checks} ]");
        let every = Duration::from_millis(500);
        let ran = asking_every(every, 3 * MINUTE, async || worker.host.sh(&ran).await).await;
        ran.with_context(|| cluster.logs())?;
        // What belongs to the check itself is written soon after it.
        sleep(Duration::from_secs(2)).await;
        let pid = worker.agent.pid().await?;
        let io = worker.host.sh(&format!("cat /proc/{pid}/io")).await?;
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        anyhow::Ok(line.context("wchar")?.parse::<u64>()?)
    };
    let first = written(1).await?;
    let third = written(3).await?;
    Ok((third - first) / 2)
}

/// Milliseconds that the script itself takes, and what the agent adds to each step.
async fn step_overhead<M: Machine>(cluster: &Cluster<M>, worker: &Worker<M>) -> Result<(f64, f64)> {
    let own = own_time(worker).await?;
    let many = push(cluster, "many", STEPS).await?;
    let manifest = skyhook("bench-steps", "bench", &many, 1, &json!({}));
    run(cluster, &manifest).await?;
    let begun = times(worker, "apply").await?;
    let between = f64::from(u32::try_from(STEPS - 1)?);
    Ok((own, (begun[STEPS - 1] - begun[0]) / between - own))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark: make bench-agent"]
async fn bench_agent_in_a_vm() -> Result<()> {
    if !vms_can_run("bench_agent_in_a_vm").await {
        return Ok(());
    }
    let image = vm::Image::debian_13().await?;
    let cluster = Cluster::<Vm>::start_on(image, Setup::hosts(1)).await?;
    let worker = cluster.worker("worker-1")?;
    let (own, overhead) = step_overhead(&cluster, worker).await?;
    println!("bench vm_script_ms {own:.1}");
    println!("bench vm_step_overhead_ms {overhead:.1}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark: make bench-agent"]
async fn bench_agent() -> Result<()> {
    if !hosts_can_run("bench_agent").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let worker = cluster.worker("worker-1")?;
    let (own, overhead) = step_overhead(&cluster, worker).await?;
    println!("bench script_ms {own:.1}");
    println!("bench step_overhead_ms {overhead:.1}");

    let one = push(&cluster, "one", 1).await?;
    worker.host.sh("rm /times").await?;
    let mut manifest = skyhook("bench-stages", "bench", &one, 1, &json!({}));
    let packages: serde_json::Map<String, Value> = (0..PACKAGES)
        .map(|n| {
            let name = format!("bench-{}", char::from(b'a' + u8::try_from(n).unwrap_or(0)));
            (
                name,
                json!({"version": one.version, "image": one.repository}),
            )
        })
        .collect();
    manifest["spec"]["packages"] = Value::Object(packages);
    manifest["spec"]["serial"] = json!(true);
    run(&cluster, &manifest).await?;
    let applied = times(worker, "apply").await?;
    let configured = times(worker, "config").await?;
    // From the first stage's begin to the last one's: two steps and all around them in each.
    let stages = f64::from(u32::try_from(2 * PACKAGES - 1)?);
    let whole = configured[PACKAGES - 1] - applied[0];
    println!("bench stage_overhead_ms {:.1}", whole / stages - 2.0 * own);

    let (resident, own) = supervisor(&cluster, worker).await?;
    println!("bench supervisor_mib {resident:.1}");
    println!("bench supervisor_own_mib {own:.1}");
    println!(
        "bench fsyncs_per_stage {:.1}",
        fsyncs(&cluster, worker, &one).await?
    );

    worker.agent.stop().await?;
    worker.agent.start().await?;
    sleep(Duration::from_secs(5)).await;
    println!(
        "bench agent_fresh_mib {:.1}",
        mib(worker.agent.rss().await?)
    );
    run(
        &cluster,
        &skyhook("bench-idle", "bench", &one, 1, &json!({})),
    )
    .await?;
    sleep(Duration::from_secs(5)).await;
    let pid = worker.agent.pid().await?;
    let before = field(worker, pid, "voluntary_ctxt_switches").await?;
    sleep(MINUTE).await;
    let after = field(worker, pid, "voluntary_ctxt_switches").await?;
    println!("bench agent_idle_mib {:.1}", mib(worker.agent.rss().await?));
    println!("bench idle_wakeups_per_min {}", after - before);
    let size = worker.host.path("/var/lib/skyhook-agent/journal");
    println!(
        "bench journal_bytes {}",
        std::fs::metadata(Path::new(&size))?.len()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a benchmark: make bench-agent"]
async fn bench_retries() -> Result<()> {
    if !hosts_can_run("bench_retries").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let worker = cluster.worker("worker-1")?;
    println!("bench retry_bytes {}", retry_bytes(&cluster, worker).await?);
    Ok(())
}
