//! What each published package needs of a runner, by a fixture that needs just that.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::host::Host;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, wait_complete};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::MINUTE;

fn fixture(name: &str) -> PathBuf {
    skyhook_integration::source::source("integration/fixtures/packages").join(name)
}

/// A container runtime and what needs it, as units.
async fn install_runtime(host: &Host) -> Result<()> {
    let unit = |needs: &str, limits: &str| {
        format!(
            "[Unit]\n{needs}[Service]\nExecStart=/bin/sleep 99999\n{limits}[Install]\nWantedBy=multi-user.target\n"
        )
    };
    host.write(
        "/etc/systemd/system/containerd.service",
        &unit("", "LimitNOFILE=4000\nLimitNPROC=4000\n"),
    )?;
    host.write(
        "/etc/systemd/system/kubelet.service",
        &unit(
            "Requires=containerd.service\nAfter=containerd.service\n",
            "",
        ),
    )?;
    host.sh("systemctl daemon-reload; systemctl enable --now containerd kubelet 2>/dev/null")
        .await
        .map(drop)
}

struct Images {
    plain: Vec<(&'static str, Image)>,
    nvidia_tuned: Image,
    gke: Image,
}

async fn push(cluster: &Cluster) -> Result<Images> {
    let mut plain = Vec::new();
    for name in ["like-tuning", "like-tuned", "like-kdump", "like-setup"] {
        // The tag is newer than what config.json says, as some published ones are.
        let repository = format!("published/{name}");
        let image = cluster
            .registry
            .push_folder(&fixture(name), &repository, "2.0.0")
            .await?;
        plain.push((name, image));
    }
    // A layer that changes nothing but a mode.
    let modes = tempfile::tempdir()?;
    let nested = modes.path().join("profiles/nested.sh");
    std::fs::create_dir(modes.path().join("profiles"))?;
    std::fs::copy(
        fixture("like-nvidia-tuned").join("profiles/nested.sh"),
        &nested,
    )?;
    std::fs::set_permissions(&nested, PermissionsExt::from_mode(0o755))?;
    let (tuned, nvidia) = (fixture("like-tuned"), fixture("like-nvidia-tuned"));
    let nvidia_tuned = cluster
        .registry
        .push_layers(
            &[&tuned, &nvidia, modes.path()],
            "published/nvidia-tuned",
            "0.2.3",
        )
        .await?;
    let (tuning, gke) = (fixture("like-tuning"), fixture("like-tuning-gke"));
    let gke = cluster
        .registry
        .push_layers(&[&tuning, &gke], "published/tuning-gke", "0.1.1")
        .await?;
    Ok(Images {
        plain,
        nvidia_tuned,
        gke,
    })
}

fn package(image: &Image, more: Value) -> Value {
    let mut package = more;
    package["image"] = json!(image.repository);
    package["version"] = json!(image.version);
    package
}

fn manifest(images: &Images) -> Value {
    let of = |name: &str| {
        let found = images.plain.iter().find(|(n, _)| *n == name);
        found
            .map(|(_, image)| image.clone())
            .expect("it was pushed")
    };
    let reboot = json!({"type": "reboot"});
    let runtime = json!({"type": "service", "services": ["containerd"]});
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1",
        "kind": "Skyhook",
        "metadata": {"name": "published"},
        "spec": {"interruptionBudget": {"count": 1}, "packages": {
            "setup": package(&of("like-setup"), json!({
                "configMap": {"service": "eks", "accelerator": "h100"},
                "resources": {"cpuRequest": "100m", "cpuLimit": "2", "memoryRequest": "64Mi", "memoryLimit": "1Gi"},
            })),
            "tuned": package(&of("like-tuned"), json!({
                "dependsOn": {"setup": "2.0.0"},
                "interrupt": reboot,
                "env": [{"name": "INTERRUPT", "value": "true"}],
                "configMap": {"tuned_profile": "mine other", "mine": "[main]\n", "other": "[main]\n", "a_script": "#!/bin/sh\n"},
            })),
            "kdump": package(&of("like-kdump"), json!({
                "dependsOn": {"setup": "2.0.0"},
                "interrupt": reboot,
                "configInterrupts": {"crashkernel": reboot},
                "configMap": {"crashkernel": "256M", "kdump.conf": "path /var/crash\n"},
            })),
            "tuning": package(&of("like-tuning"), json!({
                "dependsOn": {"tuned": "2.0.0", "kdump": "2.0.0"},
                "interrupt": runtime,
                "configInterrupts": {"service_*": runtime},
                "configMap": {
                    "service_containerd.conf": "[Service]\nLimitNOFILE=3000\nLimitNPROC=3500\n",
                    "sysctl.conf": "net.ipv4.tcp_fin_timeout = 50\n",
                    "ulimit.conf": "memlock=128\nnofile=3000\n",
                },
            })),
        }},
    })
}

/// The two that are layers over others, on a host that those have left.
fn layered(images: &Images) -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1",
        "kind": "Skyhook",
        "metadata": {"name": "layered"},
        "spec": {"interruptionBudget": {"count": 1}, "packages": {
            "nvidia-tuned": package(&images.nvidia_tuned, json!({
                "interrupt": {"type": "reboot"},
                "env": [{"name": "INTERRUPT", "value": "true"}],
                "configMap": {"accelerator": "h100"},
            })),
            "tuning-gke": package(&images.gke, json!({
                "interrupt": {"type": "service", "services": ["containerd"]},
                "env": [{"name": "USE_CONTAINERD", "value": "true"}],
                "configMap": {"accelerator": "h100", "intent": "inference"},
            })),
        }},
    })
}

async fn complete(cluster: &Cluster, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    let begin = Instant::now();
    apply(cluster.client(), manifest).await?;
    wait_complete(cluster.client(), name, 3 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    eprintln!("{name}: {:?}", begin.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_published_packages_need_is_there() -> Result<()> {
    if !hosts_can_run("what_published_packages_need_is_there").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let host = &cluster.worker("worker-1")?.host;
    install_runtime(host).await?;
    let images = push(&cluster).await?;
    let first = host.current()?;
    let mut published = manifest(&images);
    complete(&cluster, &published).await?;
    // tuned and kdump shared one reboot.
    ensure!(host.current()?.count == first.count + 1, "{first:?}");
    assert_eq!(host.read("/etc/pinned-kernel")?, "6.14.0-1018-aws\n");
    ensure!(
        host.read("/etc/tuned/active_profile")?
            .starts_with("mine other ")
    );
    let limits = "cat /proc/$(systemctl show -p MainPID --value containerd)/limits";
    let limits = host.sh(limits).await?;
    ensure!(limits.contains("3000"), "{limits}");

    // A further change: the runtime is restarted for it, and the check finds the limits of that restart.
    published["spec"]["packages"]["tuning"]["configMap"]["service_containerd.conf"] =
        json!("[Service]\nLimitNOFILE=2500\nLimitNPROC=3500\n");
    complete(&cluster, &published).await?;
    let second = host.current()?;
    ensure!(second.count == first.count + 1, "rebooted without need");

    // All of it goes, with what it was configured with.
    published["spec"]["packages"] = json!({});
    complete(&cluster, &published).await?;
    for left in [
        "/etc/tuned",
        "/etc/default/grub.d/kdump.cfg",
        "/etc/systemd/system/containerd.service.d/999-tuning-tuning.conf",
    ] {
        ensure!(!host.path(left).exists(), "{left} is still there");
    }
    complete(&cluster, &layered(&images)).await?;
    assert_eq!(host.read("/etc/tuned/nvidia-h100/by-nested")?, "nested\n");
    Ok(())
}
