//! Steps on a real host: what they may do to it and to the agent, and what they find there.
#![expect(clippy::disallowed_methods, reason = "tests are shell")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, Status};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::host::Host;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete, wait_for};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

/// The package `shellscript` with these scripts, by name without `.sh`.
fn scripts(name: &str, image: &Image, scripts: &[(&str, &str)], more: Value) -> Value {
    let config: BTreeMap<String, String> = scripts
        .iter()
        .map(|(name, text)| (format!("{name}.sh"), format!("#!/bin/bash\n{text}\n")))
        .collect();
    let mut package = more;
    package["configMap"] = json!(config);
    skyhook(name, "scripts", image, 1, &package)
}

async fn complete(cluster: &Cluster, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    apply(cluster.client(), manifest).await?;
    wait_complete(cluster.client(), name, MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_may_do_what_they_like_to_the_host() -> Result<()> {
    if !hosts_can_run("steps_may_do_what_they_like_to_the_host").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("shellscript").await?;
    let host = &cluster.worker("worker-1")?.host;

    leave_a_daemon(&cluster, &image, host).await?;
    print_a_gigabyte(&cluster, &image, host).await?;
    restart_the_agent(&cluster, &image, host).await?;
    find_what_packages_need(&cluster, &image, host).await?;
    limits(&cluster, &image, host).await?;
    secrets(&cluster, &image, host).await?;
    retry_a_check(&cluster, &image, host).await?;
    ignore_sigterm(&cluster, &image, host).await?;
    Ok(())
}

async fn leave_a_daemon(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let script = "nohup sleep 4242 & echo started";
    let begin = Instant::now();
    complete(
        cluster,
        &scripts("daemon", image, &[("apply", script)], json!({})),
    )
    .await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(20),
        "the daemon held the step up"
    );
    host.sh("pgrep -fx 'sleep 4242'").await?;
    Ok(())
}

async fn print_a_gigabyte(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let script = "yes | head -c 1000000000";
    complete(
        cluster,
        &scripts("printer", image, &[("apply", script)], json!({})),
    )
    .await?;
    let size = host.sh("du -sk /var/log/skyhook/printer | cut -f1").await?;
    let size: u64 = size.trim().parse()?;
    ensure!(size < 40 << 10, "{size} KiB of logs");
    Ok(())
}

async fn restart_the_agent(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let script =
        "echo run >>/restarts; systemctl restart skyhook-agent; sleep 1; echo end >>/restarts";
    let manifest = scripts("restarter", image, &[("apply", script)], json!({}));
    complete(cluster, &manifest).await?;
    assert_eq!(host.read("/restarts")?, "run\nend\n");
    Ok(())
}

/// What steps of published packages rely on, from a step's point of view.
async fn find_what_packages_need(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let apply = r#"
set -e
# 2: what a step creates beside its files is there for later stages.
echo made >"${SKYHOOK_DIR}/configmaps/tuned_profile"
ln -sf /etc/hostname "${SKYHOOK_DIR}/a-link"
# 4: environment.
[ "$STEP_ROOT" = "$SKYHOOK_DIR/skyhook_dir" ]
IFS=_ read -r id package version <<<"$SKYHOOK_RESOURCE_ID"
[ "$package" = scripts ] && [ -n "$version" ] && [[ $id == needs-* ]]
[ "$SKYHOOK_ROOT_DIR" = /var/lib/skyhook/needs ] && [ "$SKYHOOK_LOG_DIR" = /var/log/skyhook/needs ]
[ "$MULTI" = $'one\ntwo' ]
[ "$SKYHOOK_NODE_ORDER" = 0 ]
command -v sysctl >/dev/null
# 5: surroundings.
[ "$(id -u)" = 0 ] && [ "$PWD" = "$SKYHOOK_DIR" ]
[ "$(readlink /proc/self/fd/0)" = /dev/null ]
for ns in mnt uts ipc net pid cgroup; do
    [ "$(readlink /proc/self/ns/$ns)" = "$(readlink /proc/1/ns/$ns)" ]
done
systemctl is-system-running >/dev/null || [ "$(systemctl is-system-running)" != offline ]
mkdir -p /mnt/kept && mount -t tmpfs kept /mnt/kept && touch /mnt/kept/file
# 7: outside the agent's cgroup, in a slice of its own.
grep -q 'skyhook.slice/skyhook-[0-9]*-scripts-apply.scope' /proc/self/cgroup
grep -q 'skyhook-[0-9]*-scripts-apply.scope' /proc/self/cgroup
! grep -q skyhook-agent.service /proc/self/cgroup
"#;
    let config = r#"
set -e
# 3: one file per key, nothing else but what a step made.
[ "$(ls "${SKYHOOK_DIR}/configmaps")" = "$(printf '%s\n' apply.sh config.sh config_check.sh tuned_profile)" ]
[ "$(<"${SKYHOOK_DIR}/configmaps/tuned_profile")" = made ]
[ -f /mnt/kept/file ]
grep -q worker-1 node-metadata/labels.json || [ -s node-metadata/labels.json ]
grep -q '"scripts"' node-metadata/packages.json
"#;
    let check = "[ -f /mnt/kept/file ] && umount /mnt/kept && echo all >/needs";
    let env = json!([{"name": "MULTI", "value": "one\ntwo"}]);
    let all = [
        ("apply", apply),
        ("config", config),
        ("config_check", check),
    ];
    complete(cluster, &scripts("needs", image, &all, json!({"env": env}))).await?;
    assert_eq!(host.read("/needs")?, "all\n");
    Ok(())
}

async fn limits(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let script = "scope=$(grep -o 'skyhook-[0-9]*-scripts-apply.scope' /proc/self/cgroup | head -1)\n\
                  systemctl show -p MemoryMax,MemoryLow,CPUQuotaPerSecUSec,CPUWeight,Slice,TimeoutStopUSec $scope | sort >/limits\n\
                  systemctl show -p MemoryLow skyhook.slice >/slice\n\
                  ls /run/systemd/system.control/skyhook.slice.d >>/slice";
    let resources = json!({"cpuRequest": "250m", "cpuLimit": "1500m", "memoryRequest": "64Mi", "memoryLimit": "256Mi"});
    let manifest = scripts(
        "limits",
        image,
        &[("apply", script)],
        json!({"resources": resources, "gracefulShutdown": "200s"}),
    );
    complete(cluster, &manifest).await?;
    assert_eq!(
        host.read("/limits")?,
        "CPUQuotaPerSecUSec=1.500000s\nCPUWeight=10\nMemoryLow=67108864\nMemoryMax=268435456\nSlice=skyhook.slice\n\
         TimeoutStopUSec=3min 30s\n"
    );
    // A scope is not protected beyond its slice. A later agent knows by the file that there is a value to take back.
    assert_eq!(
        host.read("/slice")?,
        "MemoryLow=67108864\n50-MemoryLow.conf\n"
    );
    Ok(())
}

/// A secret reaches the step, and nothing on the disk.
async fn secrets(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let secret = "correct-horse-battery-staple";
    cluster
        .plane
        .kubectl(&[
            "-n",
            "skyhook",
            "create",
            "secret",
            "generic",
            "token",
            &format!("--from-literal=key={secret}"),
        ])
        .await?;
    let rule = "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: agent-secrets, namespace: skyhook}
rules: [{apiGroups: [''], resources: [secrets], resourceNames: [token], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: agent-secrets, namespace: skyhook}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: agent-secrets}
subjects: [{kind: ServiceAccount, name: skyhook-agent, namespace: skyhook}]
";
    skyhook_integration::install::apply(&cluster.plane, rule).await?;
    // What a step prints of it is masked.
    let script = "set -x; echo \"$TOKEN\"; [ ${#TOKEN} = 28 ] && [ \"$NODE\" = worker-1 ] && touch /secretive \
                  && while [ ! -e /searched ]; do sleep 0.1; done";
    let env = json!([
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "key"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "token", "key": "no", "optional": true}}},
    ]);
    let manifest = scripts(
        "secretive",
        image,
        &[("apply", script)],
        json!({"env": env}),
    );
    apply(cluster.client(), &manifest).await?;
    await_file(cluster, host, "/secretive").await?;
    let search = format!("grep -rl {secret} /var /etc /run /tmp 2>/dev/null || true");
    assert_eq!(host.sh(&search).await?, "", "while it runs");

    host.sh("touch /searched").await?;
    wait_complete(cluster.client(), "secretive", MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    assert_eq!(host.sh(&search).await?, "", "afterwards");
    let masked = host.sh("grep -rlF '***' /var/log/skyhook/secretive");
    assert_eq!(masked.await?.lines().count(), 2, "output and errors");
    Ok(())
}

/// The directory of a step goes when the step has ended, and not only at the end of the lease.
async fn retry_a_check(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let check = "echo try >>/tries; [ $(wc -l </tries) -gt 3 ]";
    let steps = [("apply", "true"), ("apply_check", check)];
    let manifest = scripts("retried", image, &steps, json!({}));
    apply(cluster.client(), &manifest).await?;
    let third_try = async || {
        let tries = host.read("/tries")?;
        ensure!(tries.lines().count() >= 3, "{tries}");
        Ok(())
    };
    eventually(2 * MINUTE, third_try)
        .await
        .with_context(|| cluster.logs())?;
    // The third try is over, or a fourth one runs.
    let few = async || {
        let steps = host.sh("ls /var/lib/skyhook-agent/steps").await?;
        ensure!(steps.lines().count() <= 1, "{steps}");
        Ok(())
    };
    eventually(Duration::from_secs(5), few).await?;
    wait_complete(cluster.client(), "retried", 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    Ok(())
}

async fn await_file(cluster: &Cluster, host: &Host, path: &str) -> Result<()> {
    eventually(MINUTE, async || host.read(path).map(drop))
        .await
        .with_context(|| cluster.logs())
}

/// Disabled in the middle of a step that ignores SIGTERM: it is killed after its grace.
async fn ignore_sigterm(cluster: &Cluster, image: &Image, host: &Host) -> Result<()> {
    let script = "trap '' TERM; echo begin >/stubborn; sleep 4343; echo end >>/stubborn";
    let more = json!({"gracefulShutdown": "2s"});
    let manifest = scripts("stubborn", image, &[("apply", script)], more);
    apply(cluster.client(), &manifest).await?;
    await_file(cluster, host, "/stubborn").await?;
    let disable = json!({"metadata": {"annotations": {"skyhook.nvidia.com/disable": "true"}}});
    Api::<Skyhook>::all(cluster.client())
        .patch("stubborn", &PatchParams::default(), &Patch::Merge(&disable))
        .await?;
    let disabled = |s: &Skyhook| {
        s.status
            .as_ref()
            .is_some_and(|s| s.status == Status::Disabled)
    };
    wait_for(cluster.client(), "stubborn", "disabled", MINUTE, disabled)
        .await
        .with_context(|| cluster.logs())?;
    eventually(MINUTE, async || host.sh("! pgrep -fx 'sleep 4343'").await)
        .await
        .with_context(|| format!("it goes on: {}", cluster.logs()))?;
    assert_eq!(host.read("/stubborn")?, "begin\n");
    Ok(())
}
