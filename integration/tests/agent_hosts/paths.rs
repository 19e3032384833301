//! Hosts whose directories are elsewhere: the agent runs as in a pod, with a root of its own and the host's below `/host`,
//! so that an absolute symlink of the host means another place for it than for the host.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skyhook_integration::agent::UNIT;
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::MINUTE;

/// Starts the program that its arguments are for in a root that has only what the agent's container has.
const AS_POD: &str = r#"#!/bin/sh -e
root=/run/as-pod
mkdir -p $root
mount -t tmpfs as-pod $root
cd $root
mkdir host usr proc sys dev tmp opt etc etc/skyhook-agent
ln -s usr/lib lib
[ ! -e /usr/lib64 ] || ln -s usr/lib64 lib64
mount --rbind / host
for directory in usr proc sys dev opt etc/skyhook-agent; do mount --rbind /$directory $directory; done
exec chroot $root /opt/skyhook/skyhook-agent "$@"
"#;

/// What such hosts have done to them before an agent comes.
const ELSEWHERE: &str = "
mkdir -p /data/skyhook /data/log /persistent
rm -rf /var/lib/skyhook /var/log/skyhook
ln -s /data/skyhook /var/lib/skyhook
ln -s /data/log /var/log/skyhook
mkdir -p /var/lib/skyhook-agent
mv /var/lib/skyhook-agent /data/agent
ln -s /data/agent /var/lib/skyhook-agent
mv /etc/machine-id /persistent/machine-id
ln -s /persistent/machine-id /etc/machine-id
";

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_its_directories_behind_absolute_symlinks() -> Result<()> {
    if !hosts_can_run("a_host_with_its_directories_behind_absolute_symlinks").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let worker = cluster.worker("worker-1")?;
    let host = &worker.host;
    worker.agent.stop().await?;
    host.sh(ELSEWHERE).await?;
    host.sh("mkdir -p /mnt/disk && ln -s /mnt/disk /srv/data")
        .await?;
    host.write("/usr/local/bin/as-pod", AS_POD)?;
    let unit = format!("/etc/systemd/system/{UNIT}");
    let edit = format!(
        "chmod +x /usr/local/bin/as-pod
sed -i 's,/opt/skyhook/skyhook-agent run,/usr/bin/unshare --mount --propagation slave /usr/local/bin/as-pod run,; s,--host-root /,--host-root /host,' {unit}"
    );
    host.sh(&edit).await?;
    worker.agent.start().await?;

    let image = cluster.push("root-dir").await?;
    let more = json!({"configMap": {"key": "value"}});
    let manifest = skyhook("elsewhere", "root-dir", &image, 1, &more);
    apply(cluster.client(), &manifest).await?;
    wait_complete(cluster.client(), "elsewhere", 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;

    assert_eq!(host.read("/mnt/disk/laid/file")?, "laid\n");
    let enabled = host
        .sh("systemctl daemon-reload; systemctl is-enabled laid")
        .await?;
    assert_eq!(enabled.trim(), "enabled");
    let copies = host.sh("ls /data/skyhook/elsewhere").await?;
    ensure!(copies.contains("root-dir-1.0.0-"), "{copies}");
    ensure!(
        host.sh("find /data/skyhook -name key")
            .await?
            .contains("configmaps/key"),
        "the configMap is not on the host"
    );
    ensure!(
        !host.sh("find /data/log -name '*.log'").await?.is_empty(),
        "no log is where the host has its logs"
    );
    for link in [
        "/var/lib/skyhook",
        "/var/lib/skyhook-agent",
        "/etc/machine-id",
    ] {
        ensure!(
            host.path(link).is_symlink(),
            "{link} is no symlink any more"
        );
    }
    Ok(())
}
