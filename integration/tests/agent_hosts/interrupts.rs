//! Interrupts on a real host, carried out over D-Bus.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::{Value, json};
use skyhook_crds::lease::{InterruptionLeaseStatus, PackageReport};
use skyhook_crds::{InterruptionLease, Stage, State};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::host::Host;
use skyhook_integration::machine::invocation;
use skyhook_integration::record::{Record, Recorder};
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, says, skyhook, wait_complete, wait_for};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

fn interrupting(name: &str, image: &Image, interrupt: &Value) -> Value {
    skyhook(
        name,
        "sleeper",
        image,
        1,
        &json!({ "interrupt": interrupt }),
    )
}

/// A cluster with one host, whose agent has these arguments, and an image of a package that sleeps.
async fn one_host(agent_args: &[&str]) -> Result<(Cluster, Image)> {
    let mut setup = Setup::hosts(1);
    setup.agent_args = agent_args.iter().map(|&it| it.to_owned()).collect();
    let cluster = Cluster::start(setup).await?;
    let image = cluster.push("sleeper").await?;
    Ok((cluster, image))
}

async fn complete(cluster: &Cluster, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    apply(cluster.client(), manifest).await?;
    wait_complete(cluster.client(), name, 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let node = Api::<Node>::all(cluster.client()).get("worker-1").await?;
    let cordoned = node.spec.and_then(|s| s.unschedulable).unwrap_or(false);
    ensure!(!cordoned, "{name}: the cordon was not given back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_restarted_whatever_they_carry() -> Result<()> {
    if !hosts_can_run("services_are_restarted_whatever_they_carry").await {
        return Ok(());
    }
    let (cluster, image) = one_host(&["--unit-timeout-seconds=6"]).await?;
    let host = &cluster.worker("worker-1")?.host;
    // As the real ones: they tell when they are up, and kubelet ends with what it needs.
    for (unit, needs) in [
        ("containerd", ""),
        ("kubelet", "Requires=containerd.service\n"),
    ] {
        host.write(
            &format!("/etc/systemd/system/{unit}.service"),
            &format!("[Unit]\n{needs}[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'sleep 0.3; systemd-notify --ready; exec sleep 9999'\n"),
        )?;
    }
    host.sh("systemctl daemon-reload; systemctl start kubelet")
        .await?;
    for (name, services) in [
        ("plain", vec!["cron", "rsyslog.service"]),
        ("bus", vec!["dbus"]),
        ("journal", vec!["systemd-journald"]),
        ("runtime", vec!["kubelet", "containerd"]),
        (
            "all-of-it",
            vec!["containerd", "dbus", "systemd-journald", "systemd-logind"],
        ),
    ] {
        let mut before = Vec::new();
        for unit in &services {
            before.push(invocation(host, unit).await?);
        }
        let interrupt = json!({"type": "service", "services": services});
        complete(&cluster, &interrupting(name, &image, &interrupt)).await?;
        for (unit, before) in services.iter().zip(before) {
            let after = invocation(host, unit).await?;
            ensure!(after != before, "{unit} was not restarted");
        }
    }
    for (name, kind) in [("nothing", "noop"), ("all", "restartAllServices")] {
        complete(
            &cluster,
            &interrupting(name, &image, &json!({"type": kind})),
        )
        .await?;
    }

    failing_units(&cluster, &image, host).await
}

/// Units that cannot be restarted, each for a reason of its own.
const UNITS: &[(&str, &str)] = &[
    (
        "broken",
        "Type=oneshot\nExecStart=/bin/sh -c 'echo the flux capacitor is cold; exit 7'",
    ),
    (
        "hanging",
        "Type=notify\nTimeoutStartSec=2\nExecStart=/bin/sh -c 'echo waits for godot; exec sleep 99'",
    ),
    (
        "endless",
        "Type=oneshot\nExecStart=/bin/sh -c 'echo digs on; exec sleep 99'",
    ),
    ("brief", "ExecStart=/bin/sh -c 'echo not my day; exit 3'"),
    ("wrong", "Type=simple"),
    (
        "needy",
        "ExecStart=/bin/sleep 99\n[Unit]\nRequires=broken.service\nAfter=broken.service",
    ),
];

/// What is said of them, and of one that does not exist and one that is masked.
const WORDS: &[(&str, [&str; 2])] = &[
    (
        "broken",
        [
            "broken.service failed to start",
            "the flux capacitor is cold",
        ],
    ),
    (
        "hanging",
        [
            "hanging.service failed to start",
            "start operation timed out",
        ],
    ),
    (
        "endless",
        ["endless.service is activating after 6 s", "digs on"],
    ),
    (
        "brief",
        ["brief.service failed after its restart", "not my day"],
    ),
    ("wrong", ["wrong.service cannot be loaded", "unit file"]),
    (
        "needy",
        ["needy.service was not started", "Dependency failed"],
    ),
    (
        "no-such-unit",
        ["no-such-unit.service", "does not exist on this host"],
    ),
    ("rsyslog", ["rsyslog.service is masked", "unmask it"]),
];

/// What is wrong with a unit is said with its name and the end of its journal; the node is given back when asked for.
async fn failing_units(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    for (unit, service) in UNITS {
        host.write(
            &format!("/etc/systemd/system/{unit}.service"),
            &format!("[Service]\n{service}\n"),
        )?;
    }
    host.sh("systemctl mask --now rsyslog.service").await?;
    for (unit, words) in WORDS {
        let name = format!("unit-{unit}");
        // What fails comes after what does not.
        let interrupt = json!({"type": "service", "services": ["cron", unit]});
        let manifest = interrupting(&name, image, &interrupt);
        apply(cluster.client(), &manifest).await?;
        wait_for(cluster.client(), &name, words[1], MINUTE, |s| {
            says(s, words)
        })
        .await
        .with_context(|| cluster.logs())?;
        let disable = [
            "annotate",
            "skyhook",
            &name,
            "skyhook.nvidia.com/disable=true",
        ];
        cluster.plane.kubectl(&disable).await?;
        cluster
            .released(2 * MINUTE)
            .await
            .with_context(|| cluster.logs())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_packages_share_one_reboot() -> Result<()> {
    if !hosts_can_run("two_packages_share_one_reboot").await {
        return Ok(());
    }
    let (cluster, image) = one_host(&[]).await?;
    let shell = cluster.push("shellscript").await?;
    let host = &cluster.worker("worker-1")?.host;
    let before = host.current()?;
    let mut manifest = interrupting("rebooting", &image, &json!({"type": "reboot"}));
    manifest["spec"]["packages"]["other"] = json!({
        "version": shell.version,
        "image": shell.repository,
        "interrupt": {"type": "service", "services": ["cron"]},
        "configMap": {
            "config.sh": "cat /proc/sys/kernel/random/boot_id >>/boots\n",
            "post_interrupt.sh": "cat /proc/sys/kernel/random/boot_id >>/boots\n",
        },
    });
    complete(&cluster, &manifest).await?;
    let after = host.current()?;
    ensure!(after.count == before.count + 1, "{before:?} then {after:?}");
    let boots = host.read("/boots")?;
    let boots: Vec<&str> = boots.lines().collect();
    assert_eq!(boots, [before.id.as_str(), after.id.as_str()]);
    let log = host.read("/var/lib/sleeper/log")?;
    for mode in ["apply", "config", "post-interrupt", "post-interrupt-check"] {
        let ends = log
            .lines()
            .filter(|l| *l == format!("{mode} end 0"))
            .count();
        assert_eq!(ends, 1, "{mode}: {log}");
    }
    Ok(())
}

/// What leases reported, one status after the other.
#[derive(Default)]
struct Reports(Vec<InterruptionLeaseStatus>);

impl Record for Reports {
    type Object = InterruptionLease;

    fn is(&mut self, lease: InterruptionLease) {
        self.0.extend(lease.status);
    }

    fn is_gone(&mut self, _lease: InterruptionLease) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_waits_for_the_steps_that_run_and_is_reported_first() -> Result<()> {
    if !hosts_can_run("a_reboot_waits_for_the_steps_that_run_and_is_reported_first").await {
        return Ok(());
    }
    let (cluster, image) = one_host(&[]).await?;
    let shell = cluster.push("shellscript").await?;
    let host = &cluster.worker("worker-1")?.host;
    let before = host.current()?;
    let reports = Recorder::<Reports>::start(cluster.client()).await?;
    let mut manifest = interrupting("waiting", &image, &json!({"type": "reboot"}));
    manifest["spec"]["packages"]["a-slow"] = json!({
        "version": shell.version,
        "image": shell.repository,
        "configMap": {
            "apply.sh": "echo begin >>/slow; sleep 8; echo end >>/slow\n",
            "config.sh": "cat /proc/sys/kernel/random/boot_id >>/slow\n",
        },
    });
    complete(&cluster, &manifest).await?;
    let after = host.current()?;
    ensure!(after.count == before.count + 1, "{before:?} then {after:?}");
    let ran = host.read("/slow")?;
    assert_eq!(ran, format!("begin\nend\n{}\n", after.id), "in which order");
    reports.whole(|Reports(reports)| {
        let waits = |r: &InterruptionLeaseStatus| {
            r.waits_for.contains("reboot") && r.waits_for.contains("apply of a-slow")
        };
        ensure!(reports.iter().any(waits), "nobody said what it waits for");
        let is_asked = |r: &InterruptionLeaseStatus| {
            let asked = r.reboots.get(&format!("sleeper|{}", image.version)) == Some(&1);
            let stage = r.packages.values().any(|p| p.stage == Stage::Interrupt);
            asked && stage && r.boot_id == before.id
        };
        ensure!(
            reports.iter().any(is_asked),
            "the reboot was not reported before it was asked for: {reports:#?}"
        );
        let is_failure = |r: &InterruptionLeaseStatus| {
            let failed = |p: &PackageReport| p.state == State::Erroring || p.restarts > 0;
            r.packages.values().any(failed)
        };
        ensure!(!reports.iter().any(is_failure), "{reports:#?}");
        Ok(())
    })?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_in_the_middle_of_a_reboot_is_the_reboot() -> Result<()> {
    if !hosts_can_run("a_power_cut_in_the_middle_of_a_reboot_is_the_reboot").await {
        return Ok(());
    }
    let (cluster, image) = one_host(&[]).await?;
    let worker = cluster.worker("worker-1")?;
    let before = worker.host.current()?;
    // Something that holds the shutdown up, so that the cut comes into the middle.
    worker.host.write(
        "/etc/systemd/system/slow.service",
        "[Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/sleep 60\nTimeoutStopSec=90\n",
    )?;
    worker
        .host
        .sh("systemctl daemon-reload; systemctl start slow")
        .await?;
    apply(
        cluster.client(),
        &interrupting("rebooting", &image, &json!({"type": "reboot"})),
    )
    .await?;
    let stopping = "systemctl is-system-running | grep -q stopping";
    eventually(MINUTE, async || worker.host.sh(stopping).await)
        .await
        .with_context(|| format!("it does not go down: {}", cluster.logs()))?;
    worker.host.kill().await?;
    worker.host.boot().await?;
    wait_complete(cluster.client(), "rebooting", 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let after = worker.host.current()?;
    // The first boot since the power is back: nobody asked for another.
    ensure!(
        after.id != before.id && after.count == 1,
        "{before:?} then {after:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_says_what_it_waits_for() -> Result<()> {
    if !hosts_can_run("a_reboot_says_what_it_waits_for").await {
        return Ok(());
    }
    let (cluster, image) = one_host(&[
        "--inhibitor-timeout-seconds=6",
        "--reboot-timeout-seconds=3",
    ])
    .await?;
    let host = &cluster.worker("worker-1")?.host;
    let first = host.current()?;
    host.sh("systemd-run --unit=holder systemd-inhibit --what=shutdown --mode=block --who=apt --why=upgrading sleep 999")
        .await?;
    let manifest = interrupting("inhibited", &image, &json!({"type": "reboot"}));
    apply(cluster.client(), &manifest).await?;
    leased_says(&cluster, "waits up to 6 s for apt: upgrading").await?;
    ensure!(host.current()?.id == first.id, "it did not wait");
    wait_complete(cluster.client(), "inhibited", 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let second = host.current()?;
    ensure!(second.count == first.count + 1, "{first:?} then {second:?}");

    // The host takes longer to go down than it is given: that is said, and the reboot still is the one.
    host.write(
        "/etc/systemd/system/slow.service",
        "[Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/sleep 7\nTimeoutStopSec=20\n",
    )?;
    host.write(
        "/etc/systemd/system/skyhook-agent.service.d/late.conf",
        "[Unit]\nDefaultDependencies=no\n",
    )?;
    host.sh("systemctl daemon-reload; systemctl start slow")
        .await?;
    let manifest = interrupting("slow", &image, &json!({"type": "reboot"}));
    apply(cluster.client(), &manifest).await?;
    leased_says(
        &cluster,
        "a reboot was asked for 3 s ago, and the host is still up",
    )
    .await?;
    wait_complete(cluster.client(), "slow", 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let third = host.current()?;
    ensure!(third.count == second.count + 1, "{second:?} then {third:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_calls_off_a_reboot_that_waits() -> Result<()> {
    if !hosts_can_run("a_pause_calls_off_a_reboot_that_waits").await {
        return Ok(());
    }
    let (cluster, image) = one_host(&["--inhibitor-timeout-seconds=8"]).await?;
    let host = &cluster.worker("worker-1")?.host;
    let first = host.current()?;
    host.sh("systemd-run --unit=holder systemd-inhibit --what=shutdown --mode=block --who=apt --why=upgrading sleep 999")
        .await?;
    let manifest = interrupting("paused", &image, &json!({"type": "reboot"}));
    apply(cluster.client(), &manifest).await?;
    leased_says(&cluster, "waits up to 8 s for apt: upgrading").await?;
    let annotate = async |annotation: &str| {
        let command = ["annotate", "skyhook", "paused", annotation];
        cluster.plane.kubectl(&command).await.map(drop)
    };
    annotate("skyhook.nvidia.com/pause=true").await?;
    leased_says(&cluster, "paused").await?;
    let leases: Api<InterruptionLease> = Api::all(cluster.client());
    let status = leases.get("worker-1").await?.status.unwrap_or_default();
    ensure!(status.reboots.is_empty(), "it counts {:?}", status.reboots);
    // Longer than inhibitors are waited for, and nobody inhibits any more.
    host.sh("systemctl stop holder; sleep 12").await?;
    ensure!(
        host.current()?.id == first.id,
        "it was rebooted all the same"
    );
    annotate("skyhook.nvidia.com/pause-").await?;
    wait_complete(cluster.client(), "paused", 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let second = host.current()?;
    ensure!(second.count == first.count + 1, "{first:?} then {second:?}");
    Ok(())
}

/// Waits until the lease of worker-1 says this.
async fn leased_says(cluster: &Cluster, words: &str) -> Result<()> {
    let leases: Api<InterruptionLease> = Api::all(cluster.client());
    eventually(MINUTE, async || {
        let lease = leases.get_opt("worker-1").await?;
        let status = lease.and_then(|l| l.status).unwrap_or_default();
        ensure!(
            status.message.contains(words),
            "it says {:?}",
            status.message
        );
        Ok(())
    })
    .await
    .with_context(|| cluster.logs())
}
