//! What packages and people leave on a host, and what must not come of it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skyhook_integration::machine::Machine;
use skyhook_integration::rollout::{scripts, skyhook};
use skyhook_integration::site::{self, Site};

use crate::bench::{Bench, SOON};

/// A package's script mounts a directory of the host where its files are, as those do that build an
/// image there. Old copies are removed; what is behind the mount is not.
pub(crate) async fn mount_in_a_copy(bench: &Bench) -> Result<()> {
    const MOUNT: &str =
        "mountpoint -q behind || { mkdir -p behind; mount --bind /precious behind; }";
    let vm = bench.vm();
    vm.sh("mkdir -p /precious; echo kept >/precious/file")
        .await?;
    for generation in 1..=4 {
        let config = format!("{MOUNT}\n# {generation}\n");
        let config = json!({"apply.sh": config, "config.sh": config});
        bench
            .complete(&scripts("mount", &bench.shell, &config, &json!({})))
            .await
            .with_context(|| format!("configMap {generation}"))?;
    }
    let left = "awk '$5 ~ \"/behind$\" {print $5}' /proc/self/mountinfo";
    let mounts = vm.sh(left).await?;
    let behind = vm.sh("cat /precious/file").await;
    let outcome = async {
        let behind = behind.context("what was behind the mount is gone")?;
        ensure!(behind == "kept\n", "{behind:?} is behind the mount");
        let mount = mounts.lines().next().context("no mount is left")?;
        let log = bench.agent().whole_log().await?;
        let warned = |line: &str| line.contains("WARN") && line.contains(mount);
        ensure!(
            log.lines().any(warned),
            "the agent does not warn of {mount}"
        );
        Ok(())
    };
    let outcome = outcome.await;
    let unmount = format!("{left} | while read -r mount; do umount \"$mount\"; done");
    vm.sh(&unmount).await?;
    outcome
}

/// A user without any rights takes a lock on every file of the agent's that can be opened.
pub(crate) async fn locks_held_by_a_user(bench: &Bench) -> Result<()> {
    let complete = async |name: &str| {
        let nothing = Value::Object(serde_json::Map::new());
        let manifest = scripts(name, &bench.shell, &nothing, &json!({}));
        bench.complete(&manifest).await
    };
    // So that the agent has all files that it ever makes.
    complete("locks-before").await?;
    let vm = bench.vm();
    let hold = "find /var/lib/skyhook-agent /run/skyhook* -type f -readable 2>/dev/null | \
                while read -r file; do flock \"$file\" sleep 600 & done; \
                sleep 2; touch /tmp/held; sleep 600";
    vm.sh("rm -f /tmp/held").await?;
    let nobody = [
        "systemd-run",
        "--unit=holder",
        "--uid=nobody",
        "sh",
        "-c",
        hold,
    ];
    vm.run(&nobody).await?;
    bench.until("test -e /tmp/held", SOON).await?;
    let outcome = async {
        complete("locks-during").await.context("a running agent")?;
        bench.agent().stop().await?;
        bench.agent().start().await?;
        complete("locks-after").await.context("a new agent")
    };
    let outcome = outcome.await;
    vm.sh("systemctl stop holder").await?;
    outcome.map(drop)
}

/// A file that a package replaces keeps its SELinux label and its owner. The kernel here keeps labels without enforcing
/// them.
pub(crate) async fn label_of_a_replaced_file(bench: &Bench) -> Result<()> {
    const LABEL: &str = "system_u:object_r:net_conf_t:s0";
    let vm = bench.vm();
    let put = format!(
        "echo old >/etc/labelled.conf; chown 1000:1001 /etc/labelled.conf; \
         chcon {LABEL} /etc/labelled.conf"
    );
    vm.sh(&put).await?;
    let image = bench.cluster.push("root-dir").await?;
    let manifest = skyhook("labels", "root-dir", &image, 1, &json!({}));
    bench.complete(&manifest).await?;
    let is = vm
        .sh("stat -c '%u:%g %C' /etc/labelled.conf; cat /etc/labelled.conf")
        .await?;
    let want = format!("1000:1001 {LABEL}\nlaid by a package\n");
    ensure!(is == want, "{is:?} instead of {want:?}");
    Ok(())
}

/// The power is cut when a package is complete, before the kernel writes its files to the disk by itself. They are on
/// the disk, because the agent has flushed them before its journal says that they are.
pub(crate) async fn power_cut_after_root_dir(bench: &Bench) -> Result<()> {
    const LAID: &str = "/srv/data/laid/file";
    let vm = bench.vm();
    // A file that replaces another is flushed by the file system itself, so there must be none before.
    let prepare = "rm -rf /srv/data/laid; sync; \
                   sysctl -q vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=360000";
    vm.sh(prepare).await?;
    let image = bench.cluster.push("root-dir").await?;
    let manifest = skyhook("durable", "root-dir", &image, 1, &json!({}));
    bench.complete(&manifest).await?;
    let before = vm.read_file(LAID).await?;
    ensure!(!before.is_empty(), "{LAID} is empty before the power cut");
    vm.reset().await?;
    let after = vm.read_file(LAID).await.context("after the power cut")?;
    ensure!(after == before, "{after:?} instead of {before:?}");
    Ok(())
}

/// The host's own trust, logins, mirror and proxy are enough for private registries. A script stands for the container
/// runtime, whose process says where all of this is.
pub(crate) async fn private_registries(bench: &Bench) -> Result<()> {
    if let Some(missing) = site::missing().await {
        skyhook_testkit::cannot_run("private registries", missing);
        return Ok(());
    }
    const RUNTIME: &str = "/usr/local/bin/containerd";
    let script = "#!/bin/sh\nwhile :; do sleep 1000; done\n";
    bench.vm().write_file(RUNTIME, script).await?;
    bench.vm().sh(&format!("chmod +x {RUNTIME}")).await?;
    let site = Site::build(&bench.cluster).await?;
    site.roll_out(&bench.cluster, RUNTIME, SOON).await
}
