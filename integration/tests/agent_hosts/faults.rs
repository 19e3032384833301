//! What goes wrong on a host, and what is asked for in the middle of it: full disks, lost journals, foreign reboots, steps
//! that are not wanted any more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use skyhook_crds::InterruptionLease;
use skyhook_integration::agent::UNIT;
use skyhook_integration::cluster::{Cluster, Setup, Worker};
use skyhook_integration::crash::JOURNAL;
use skyhook_integration::host::Host;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

const LOG: &str = "/var/lib/sleeper/log";

fn sleeper(name: &str, image: &Image, seconds: &str, config: &str) -> Value {
    let more = json!({
        "env": [{"name": "SLEEP_LEN", "value": seconds}],
        "configMap": {"key": config},
        "gracefulShutdown": "1s",
    });
    skyhook(name, "sleeper", image, 1, &more)
}

async fn complete(cluster: &Cluster, manifest: &Value) -> Result<()> {
    apply(cluster.client(), manifest).await?;
    finish(cluster, manifest).await
}

async fn finish(cluster: &Cluster, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    wait_complete(cluster.client(), name, 2 * MINUTE)
        .await
        .with_context(|| format!("{name}: {}", cluster.logs()))?;
    Ok(())
}

fn clear(host: &Host) -> Result<()> {
    if host.path(LOG).exists() {
        std::fs::remove_file(host.path(LOG))?;
    }
    Ok(())
}

fn seen(host: &Host) -> String {
    host.read(LOG).unwrap_or_else(|_| "nothing".to_owned())
}

/// How often a line stands in the sleeper's log.
fn count(host: &Host, line: &str) -> usize {
    let log = host.read(LOG).unwrap_or_default();
    log.lines().filter(|l| *l == line).count()
}

async fn until(cluster: &Cluster, what: &str, mut is_so: impl AsyncFnMut() -> bool) -> Result<()> {
    eventually(MINUTE, async || {
        ensure!(is_so().await, "never {what}");
        Ok(())
    })
    .await
    .with_context(|| cluster.logs())
}

async fn lease(cluster: &Cluster) -> Option<InterruptionLease> {
    let leases: Api<InterruptionLease> = Api::all(cluster.client());
    leases.get_opt("worker-1").await.ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_on_a_host_is_got_over() -> Result<()> {
    if !hosts_can_run("what_goes_wrong_on_a_host_is_got_over").await {
        return Ok(());
    }
    let mut setup = Setup::hosts(1);
    setup.agents = false;
    setup.agent_args = [
        "--image-credential-provider-config=/etc/kubelet-credentials.yaml",
        "--image-credential-provider-bin-dir=/opt/credential-providers",
    ]
    .map(str::to_owned)
    .to_vec();
    let cluster = Cluster::start(setup).await?;
    let image = cluster.push("sleeper").await?;
    let worker = cluster.worker("worker-1")?;
    let host = &worker.host;
    as_the_kubelet_has_it(host, &cluster).await?;
    host.sh(
        "mkdir -p /var/lib/skyhook-agent; mount -t tmpfs -o size=4m agent /var/lib/skyhook-agent",
    )
    .await?;
    worker.agent.start().await?;

    through_a_mirror(&cluster, &image, host).await?;
    a_full_disk(&cluster, &image, host).await?;
    a_step_that_is_not_wanted_any_more(&cluster, &image, host).await?;
    run_locally(&image, host).await?;
    a_scope_that_outlives_its_processes(&cluster, &image, worker).await?;
    a_lost_journal(&cluster, &image).await?;
    a_host_that_was_installed_anew(&cluster, &image).await
}

/// containerd's settings of registries and the kubelet's credential providers, as a node has them.
async fn as_the_kubelet_has_it(host: &Host, cluster: &Cluster) -> Result<()> {
    let registry = cluster.registry.address();
    host.write(
        "/etc/containerd/certs.d/registry.example/hosts.toml",
        &format!("server = \"https://registry.example\"\n[host.\"http://{registry}\"]\n"),
    )?;
    host.write(
        "/etc/kubelet-credentials.yaml",
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
         - name: cloud\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: [registry.example]\n  defaultCacheDuration: 1m\n",
    )?;
    host.write(
        "/opt/credential-providers/cloud",
        "#!/bin/sh\ncat >/asked\necho '{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"cacheKeyType\":\"Registry\",\"auth\":{\"registry.example\":{\"username\":\"u\",\"password\":\"p\"}}}'\n",
    )?;
    host.sh("chmod +x /opt/credential-providers/cloud")
        .await
        .map(drop)
}

async fn through_a_mirror(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let registry = cluster.registry.address().to_string();
    let image = Image {
        repository: image.repository.replace(&registry, "registry.example"),
        ..image.clone()
    };
    complete(cluster, &sleeper("mirrored", &image, "0", "1")).await?;
    ensure!(
        host.read("/asked")?.contains("registry.example/"),
        "the credential provider was not asked"
    );
    Ok(())
}

/// Starts the scope again and again with a process that is killed meanwhile, until systemd has it active without any: what
/// is left of an agent that died while it started a step.
const EMPTY_SCOPE: &str = r#"
manager='org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager'
for i in $(seq 1 400); do
    bash -c 'sleep 30 & echo $! >/orphan'
    busctl call $manager StartTransientUnit 'ssa(sv)a(sa(sv))' "$SCOPE" fail \
        2 PIDs au 1 "$(cat /orphan)" CollectMode s inactive-or-failed 0 >/dev/null 2>&1 &
    sleep "0.0$((i * 7 % 40 + 10))"
    kill -9 "$(cat /orphan)"
    wait
    sleep 0.05
    if systemctl is-active --quiet "$SCOPE"; then
        echo "$i"
        exit
    fi
done
"#;

async fn a_scope_that_outlives_its_processes(
    cluster: &Cluster,
    image: &Image,
    worker: &Worker,
) -> Result<()> {
    let host = &worker.host;
    clear(host)?;
    let manifest = sleeper("empty-scope", image, "5", "1");
    apply(cluster.client(), &manifest).await?;
    until(cluster, "begun", async || count(host, "apply begin") == 1).await?;
    worker.agent.stop().await?;
    let find = "systemctl list-units --plain --no-legend 'skyhook-*.scope' | cut -d' ' -f1";
    let scope = host.sh(find).await?.trim().to_owned();
    ensure!(scope.ends_with("-sleeper-apply.scope"), "scopes: {scope:?}");
    host.sh(&format!(
        "systemctl kill --signal KILL {scope}; while systemctl is-active --quiet {scope}; do sleep 0.1; done"
    ))
    .await?;
    let tries = host.sh(&format!("SCOPE={scope}; {EMPTY_SCOPE}")).await?;
    match tries.trim() {
        "" => eprintln!("NOT SEEN: systemd kept no scope without processes in 400 tries"),
        tries => eprintln!("{scope} is active without a process, at try {tries}"),
    }
    // Without the daemon-reload of `Agent::start`, which makes systemd look again.
    host.exec(["systemctl", "start", UNIT]).await?;
    finish(cluster, &manifest).await?;
    ensure!(count(host, "apply end 0") == 1, "{}", seen(host));
    Ok(())
}

/// The disk under the agent's state is full before a lease, and again in the middle of a step.
async fn a_full_disk(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    const FILL: &str =
        "dd if=/dev/zero of=/var/lib/skyhook-agent/ballast bs=4k 2>/dev/null || true";
    const FREE: &str = "rm /var/lib/skyhook-agent/ballast";
    clear(host)?;
    host.sh(FILL).await?;
    let manifest = sleeper("full-before", image, "0", "1");
    apply(cluster.client(), &manifest).await?;
    until(cluster, "accepted", async || {
        lease(cluster).await.is_some_and(|l| l.status.is_some())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(count(host, "apply begin") == 0, "it ran without a journal");
    host.sh(FREE).await?;
    finish(cluster, &manifest).await?;
    ensure!(
        count(host, "apply end 0") == 1,
        "{}{}{}",
        seen(host),
        cluster
            .plane
            .kubectl(&["get", "skyhooks,nodes,interruptionleases", "-o", "yaml"])
            .await?,
        cluster.logs()
    );

    clear(host)?;
    let manifest = sleeper("full-within", image, "2", "1");
    apply(cluster.client(), &manifest).await?;
    until(cluster, "begun", async || count(host, "apply begin") == 1).await?;
    host.sh(FILL).await?;
    until(cluster, "said", async || {
        let status = lease(cluster).await.and_then(|l| l.status);
        let message = status.unwrap_or_default().message;
        message.contains("journal cannot be written") || count(host, "apply end 0") == 1
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(
        count(host, "config begin") == 0,
        "it went on: {}",
        seen(host)
    );
    host.sh(FREE).await?;
    finish(cluster, &manifest).await?;
    for mode in ["apply", "config"] {
        let times = count(host, &format!("{mode} end 0"));
        ensure!(times == 1, "{mode} ran {times} times: {}", seen(host));
    }
    Ok(())
}

/// Another environment ends the step that runs; another configuration waits for it.
async fn a_step_that_is_not_wanted_any_more(
    cluster: &Cluster,
    image: &Image,
    host: &Host,
) -> Result<()> {
    clear(host)?;
    apply(cluster.client(), &sleeper("unwanted", image, "300", "1")).await?;
    until(cluster, "begun", async || count(host, "apply begin") == 1).await?;
    let begin = Instant::now();
    complete(cluster, &sleeper("unwanted", image, "3", "1")).await?;
    ensure!(begin.elapsed() < MINUTE, "it slept on");
    ensure!(count(host, "apply begin") == 2 && count(host, "apply end 0") == 1);
    let status = cluster
        .plane
        .kubectl(&[
            "get",
            "skyhook",
            "unwanted",
            "-o",
            "jsonpath={.status.status}",
        ])
        .await?;
    assert_eq!(status, "complete");

    clear(host)?;
    apply(cluster.client(), &sleeper("patient", image, "3", "1")).await?;
    until(cluster, "begun", async || count(host, "apply begin") == 1).await?;
    complete(cluster, &sleeper("patient", image, "3", "2")).await?;
    ensure!(
        count(host, "apply begin") == 1 && count(host, "apply end 0") == 1,
        "its step was ended: {}",
        seen(host)
    );
    // What it takes on the disk is reported with the next lease.
    apply(cluster.client(), &sleeper("reported", image, "3", "1")).await?;
    until(cluster, "reported", async || {
        let status = lease(cluster).await.and_then(|l| l.status);
        status.unwrap_or_default().disk_bytes > Some(100_000)
    })
    .await?;
    finish(cluster, &sleeper("reported", image, "3", "1")).await
}

/// `local-run` takes an image as well as a folder.
async fn run_locally(image: &Image, host: &Host) -> Result<()> {
    clear(host)?;
    let registry = image.repository.split('/').next().context("registry")?;
    let reference = format!("{}:{}", image.repository, image.version);
    let base =
        format!("/opt/skyhook/skyhook-agent local-run --insecure-registry {registry} {reference}");
    let said = host.sh(&format!("{base} --dry-run 2>&1")).await?;
    ensure!(
        said.contains("apply") && count(host, "apply begin") == 0,
        "{said}"
    );
    let said = host.sh(&format!("{base} 2>&1")).await?;
    for mode in ["apply", "apply-check", "config", "config-check"] {
        ensure!(count(host, &format!("{mode} end 0")) == 1, "{mode}: {said}");
    }
    let failed = format!("{base} --env EXIT_CODE=3 --stages config; echo $?");
    let code = host.sh(&format!("set +e; {failed}")).await?;
    ensure!(code.trim().ends_with("13"), "{code}");
    Ok(())
}

/// A journal that cannot be believed is kept aside. What the Node says is installed stays; what changes is done.
async fn a_lost_journal(cluster: &Cluster, image: &Image) -> Result<()> {
    let worker = cluster.worker("worker-1")?;
    let host = &worker.host;
    let mut manifest = sleeper("journalled", image, "0", "1");
    manifest["spec"]["packages"]["sleeper"]["interrupt"] =
        json!({"type": "service", "services": ["cron"]});
    complete(cluster, &manifest).await?;
    clear(host)?;
    worker.agent.stop().await?;
    host.sh(&format!("echo rubbish >{JOURNAL}")).await?;
    worker.agent.start().await?;
    until(cluster, "kept aside", async || {
        host.sh(&format!("grep -q rubbish {JOURNAL}.corrupt"))
            .await
            .is_ok()
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(lease(cluster).await.is_none(), "a lease without need");
    ensure!(host.read(LOG).is_err(), "something ran: {}", seen(host));
    manifest["spec"]["packages"]["sleeper"]["configMap"]["key"] = json!("2");
    complete(cluster, &manifest).await?;
    ensure!(
        count(host, "config end 0") == 1 && count(host, "apply begin") == 0,
        "{}",
        seen(host)
    );
    ensure!(
        count(host, "post-interrupt begin") == 0,
        "interrupted without need"
    );
    Ok(())
}

/// The disk is new, name and machine ID are the old ones: what the Node says is installed is not there.
async fn a_host_that_was_installed_anew(cluster: &Cluster, image: &Image) -> Result<()> {
    let worker = cluster.worker("worker-1")?;
    let host = &worker.host;
    let mut manifest = sleeper("anew", image, "0", "1");
    complete(cluster, &manifest).await?;
    worker.agent.stop().await?;
    host.sh("find /var/lib/skyhook-agent /var/lib/skyhook -mindepth 1 -delete")
        .await?;
    clear(host)?;
    worker.agent.start().await?;
    manifest["spec"]["packages"]["sleeper"]["configMap"]["key"] = json!("2");
    complete(cluster, &manifest).await?;
    ensure!(
        count(host, "apply end 0") == 1 && count(host, "config end 0") == 1,
        "{}",
        seen(host)
    );
    until(cluster, "named as replaced", async || {
        let events: Api<Event> = Api::all(cluster.client());
        let events = events.list(&ListParams::default()).await;
        events.is_ok_and(|events| {
            let reason = |event: &Event| event.reason.as_deref() == Some("HostReplaced");
            events.iter().any(reason)
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_done_again_after_a_reboot_that_was_not_ours() -> Result<()> {
    if !hosts_can_run("everything_is_done_again_after_a_reboot_that_was_not_ours").await {
        return Ok(());
    }
    let mut setup = Setup::hosts(1);
    setup.agent_args = vec!["--reapply-on-reboot".to_owned()];
    setup.coordinator = false;
    let mut cluster = Cluster::start(setup).await?;
    cluster.start_coordinator(&["--reapply-on-reboot"]).await?;
    let image = cluster.push("sleeper").await?;
    let host = std::sync::Arc::clone(&cluster.worker("worker-1")?.host);
    let mut rebooting = sleeper("rebooting", &image, "0", "1");
    rebooting["spec"]["packages"]["sleeper"]["interrupt"] = json!({"type": "reboot"});
    complete(&cluster, &sleeper("plain", &image, "0", "1")).await?;
    complete(&cluster, &rebooting).await?;
    let before = host.current()?;
    // Neither of the two is done again for our own reboot.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(count(&host, "apply end 0") == 2, "{}", seen(&host));

    clear(&host)?;
    host.reboot().await?;
    until(&cluster, "done again", async || {
        count(&host, "apply end 0") == 2 && count(&host, "post-interrupt end 0") == 1
    })
    .await?;
    finish(&cluster, &rebooting).await?;
    finish(&cluster, &sleeper("plain", &image, "0", "1")).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(
        count(&host, "apply end 0") == 2,
        "it loops: {}",
        seen(&host)
    );
    // The foreign one, and ours after it.
    let after = host.current()?;
    ensure!(after.count == before.count + 2, "{before:?} then {after:?}");
    Ok(())
}
