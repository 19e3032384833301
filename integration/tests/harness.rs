//! The harness itself: what tests rely on when they say "reboot" or "cut off".
#![expect(
    clippy::disallowed_methods,
    reason = "it prepares files of the harness"
)]

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::Api;
use kube::api::{Patch, PostParams};
use skyhook_integration::agent::token;
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::host::Host;
use skyhook_integration::install::install;
use skyhook_integration::machine::{Boot, Power};
use skyhook_integration::network::Network;
use skyhook_integration::process::sh;
use skyhook_integration::registry::Registry;
use skyhook_integration::rootfs::Rootfs;
use skyhook_integration::run::Run;
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::source::source;
use skyhook_integration::wait::{MINUTE, eventually};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_starts_answers_counts_and_comes_back_with_its_data() -> Result<()> {
    let run = Arc::new(Run::start()?);
    let options = Options {
        audit: true,
        ..Options::default()
    };
    let mut plane = ControlPlane::start(run, &options).await?;
    let namespaces: Api<Namespace> = Api::all(plane.client());
    let before = plane.request_counts().await?;
    let mine = Namespace {
        metadata: kube::core::ObjectMeta {
            name: Some("mine".into()),
            ..Default::default()
        },
        ..Default::default()
    };
    namespaces.create(&PostParams::default(), &mine).await?;
    let key = ("POST".to_owned(), "namespaces".to_owned());
    let made = plane.request_counts().await?.since(&before);
    assert_eq!(made.0.get(&key), Some(&1), "{made:?}");
    let by_admin = plane.audit_counts()?.of(|user| user == "admin");
    assert!(
        by_admin
            .0
            .iter()
            .any(|(key, n)| key.verb == "create" && key.resource == "namespaces" && *n == 1),
        "{by_admin:?}"
    );

    plane.stop_apiserver().await?;
    assert!(namespaces.get("mine").await.is_err());
    plane.start_apiserver().await?;
    namespaces.get("mine").await?;
    let version = plane.kubectl(&["version", "-o", "json"]).await?;
    assert!(version.contains("v1.36"), "{version}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_boot_reboot_freeze_lose_power_and_are_cut_off() -> Result<()> {
    if !hosts_can_run("hosts_boot_reboot_freeze_lose_power_and_are_cut_off").await {
        return Ok(());
    }
    let run = Arc::new(Run::start()?);
    let network = Network::create(Arc::clone(&run)).await?;
    let rootfs = Rootfs::locate().await?;
    let bin = run.scratch().join("bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::write(bin.join("marker"), "programs show up inside")?;
    let host = async |index, name| {
        Host::create(Arc::clone(&run), &network, &rootfs, index, name, &bin).await
    };
    let (one, two) = (host(0, "one").await?, host(1, "two").await?);
    let (first, other) = tokio::try_join!(one.boot(), two.boot())?;
    assert_ne!(first.id, other.id);
    assert_eq!(
        one.exec(["cat", "/etc/machine-id"]).await?.trim(),
        one.machine_id()
    );
    assert_ne!(one.machine_id(), two.machine_id());
    assert_eq!(one.exec(["hostname"]).await?.trim(), "one");
    one.exec(["test", "-e", "/opt/skyhook/marker"]).await?;
    // Each systemd owns its own units: stopping cron on one leaves the other's alone.
    one.exec(["systemctl", "stop", "cron"]).await?;
    two.exec(["systemctl", "is-active", "cron"]).await?;
    // Limits on units are real ones where this machine's controllers can be had.
    one.sh("systemd-run --unit=limited -p MemoryMax=64M sleep 600")
        .await?;

    reboot_and_power_cut(&one, &first).await?;
    freeze(&two).await?;
    network_cut(&two, &network).await?;

    one.stop().await?;
    assert_eq!(*one.power().borrow(), Power::Off);
    Ok(())
}

async fn reboot_and_power_cut(host: &Host, first: &Boot) -> Result<()> {
    host.sh("echo kept >/root/file; sync; echo gone >/run/file")
        .await?;
    let second = host.reboot().await?;
    assert_eq!(second.count, 2);
    assert_ne!(second.id, first.id);
    assert_eq!(
        host.exec(["cat", "/proc/sys/kernel/random/boot_id"])
            .await?
            .trim(),
        second.id
    );
    assert_eq!(host.read("/root/file")?, "kept\n");
    host.exec(["test", "!", "-e", "/run/file"]).await?;
    host.kill().await?;
    assert!(
        host.exec(["true"]).await.is_err(),
        "a host without power ran a program"
    );
    let third = host.boot().await?;
    assert_ne!(third.id, second.id);
    assert_eq!(host.read("/root/file")?, "kept\n");
    Ok(())
}

async fn freeze(host: &Host) -> Result<()> {
    host.sh(
        "systemd-run --unit=ticker sh -c 'while :; do date +%s%N >>/root/ticks; sleep 0.1; done'",
    )
    .await?;
    let ticks = || host.read("/root/ticks").map(|text| text.lines().count());
    let ticked = async |more_than: usize| {
        eventually(MINUTE, async || {
            ensure!(ticks()? > more_than, "the ticker does not tick");
            Ok(())
        })
        .await
    };
    ticked(2).await?;
    host.freeze()?;
    let at_freeze = ticks()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(ticks()? <= at_freeze + 1, "a frozen host went on");
    host.thaw()?;
    let at_thaw = ticks()?;
    ticked(at_thaw + 2).await
}

async fn network_cut(host: &Host, network: &Network) -> Result<()> {
    let server = tokio::net::TcpListener::bind((network.gateway(), 0)).await?;
    let port = server.local_addr()?.port();
    tokio::spawn(async move { while server.accept().await.is_ok() {} });
    let connect = format!(
        "timeout 2 bash -c 'exec 3<>/dev/tcp/{}/{port}'",
        network.gateway()
    );
    host.sh(&connect).await?;
    host.cut_off().await?;
    assert!(!host.is_reachable());
    assert!(
        host.sh(&connect).await.is_err(),
        "a host that is cut off reached this machine"
    );
    host.reconnect().await?;
    assert!(host.is_reachable());
    eventually(MINUTE, async || host.sh(&connect).await)
        .await
        .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_folder_becomes_an_image_that_a_registry_serves() -> Result<()> {
    let run = Arc::new(Run::start()?);
    let registry = Registry::start(Arc::clone(&run), Ipv4Addr::LOCALHOST).await?;
    let folder = source("examples/packages/shellscript");
    let image = registry.push_package(&folder).await?;
    assert_eq!(image.version, "1.1.1");
    assert_eq!(
        registry.push_package(&folder).await?,
        image,
        "the digest is reproducible"
    );

    let target = run.scratch().join("pulled");
    let from = format!("docker://{}@{}", image.repository, image.digest);
    let to = format!("oci:{}:pulled", target.display());
    let copy = [
        "--insecure-policy",
        "--override-arch=arm64",
        "copy",
        "--src-tls-verify=false",
    ];
    sh("skopeo", [copy[0], copy[1], copy[2], copy[3], &from, &to]).await?;
    let bundle = run.scratch().join("bundle");
    let layout = format!("{}:pulled", target.display());
    sh(
        "umoci",
        ["unpack", "--image", &layout, &bundle.to_string_lossy()],
    )
    .await?;
    let script = "rootfs/skyhook-package/skyhook_dir/shellscript_run.sh";
    assert_eq!(
        std::fs::read(bundle.join(script))?,
        std::fs::read(folder.join("skyhook_dir/shellscript_run.sh"))?
    );
    assert_eq!(
        std::fs::metadata(bundle.join(script))?.permissions().mode() & 0o777,
        0o755
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_token_carries_its_node_and_may_do_little() -> Result<()> {
    let run = Arc::new(Run::start()?);
    let plane = ControlPlane::start(run, &Options::default()).await?;
    install(&plane).await?;
    let node = serde_json::json!({"metadata": {"name": "worker-1"}});
    let nodes: Api<Node> = Api::all(plane.client());
    nodes
        .create(&PostParams::default(), &serde_json::from_value(node)?)
        .await?;
    let agent = plane.client_for(&token(&plane, "worker-1").await?).await?;
    let review: Api<SelfSubjectReview> = Api::all(agent.clone());
    let who = review
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let user = who
        .status
        .and_then(|status| status.user_info)
        .expect("a user");
    assert_eq!(
        user.username.as_deref(),
        Some("system:serviceaccount:skyhook:skyhook-agent")
    );
    let claim = user
        .extra
        .expect("extra")
        .remove("authentication.kubernetes.io/node-name");
    assert_eq!(claim, Some(vec!["worker-1".to_owned()]));
    let nodes: Api<Node> = Api::all(agent);
    nodes.get("worker-1").await?;
    let Err(kube::Error::Api(status)) = nodes.delete("worker-1", &Default::default()).await else {
        panic!("an agent deleted a node");
    };
    assert_eq!(status.code, 403);
    Ok(())
}

/// Not a test of its own: the next one runs it in a process that it then kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_killed_harness_leaves_nothing_behind"]
async fn victim() -> Result<()> {
    let run = Arc::new(Run::start()?);
    let network = Network::create(Arc::clone(&run)).await?;
    let rootfs = Rootfs::locate().await?;
    let host = Host::create(
        Arc::clone(&run),
        &network,
        &rootfs,
        0,
        "victim",
        run.scratch(),
    )
    .await?;
    host.boot().await?;
    println!("VICTIM {} {}", network.name(), run.scratch().display());
    tokio::time::sleep(Duration::from_secs(120)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_harness_leaves_nothing_behind() -> Result<()> {
    if !hosts_can_run("a_killed_harness_leaves_nothing_behind").await {
        return Ok(());
    }
    let mut victim = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
    let line = loop {
        let line = lines
            .next_line()
            .await?
            .expect("the victim says VICTIM before it ends");
        if let Some(at) = line.find("VICTIM ") {
            break line[at..].to_owned();
        }
    };
    let mut words = line.split(' ').skip(1);
    let network = words.next().expect("network").to_owned();
    let scratch = Path::new(words.next().expect("scratch")).to_owned();
    let alive = || {
        let mut left = Vec::new();
        for base in [
            "/sys/class/net",
            "/run/netns",
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup",
        ] {
            for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let of_host = [
                    network.clone(),
                    format!("{network}h0"),
                    format!("skyhook-{network}h0"),
                ];
                if of_host.contains(&name) {
                    left.push(entry.path());
                }
            }
        }
        left.extend(scratch.exists().then(|| scratch.clone()));
        left
    };
    assert!(alive().len() >= 5, "{:?}", alive());
    victim.kill().await?;
    for _ in 0..200 {
        if alive().is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("left behind: {:?}", alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_and_scheduler_do_their_work_when_asked_for() -> Result<()> {
    let run = Arc::new(Run::start()?);
    let options = Options {
        controller_manager: true,
        scheduler: true,
        ..Options::default()
    };
    let plane = ControlPlane::start(run, &options).await?;
    let nodes: Api<Node> = Api::all(plane.client());
    let node = serde_json::json!({"metadata": {"name": "worker-1"}});
    nodes
        .create(&PostParams::default(), &serde_json::from_value(node)?)
        .await?;
    let status = serde_json::json!({"status": {
        "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let status = Patch::Strategic(status);
    nodes
        .patch_status("worker-1", &Default::default(), &status)
        .await?;
    plane
        .kubectl(&["create", "deployment", "work", "--image=none"])
        .await?;
    let pods: Api<Pod> = Api::namespaced(plane.client(), "default");
    for _ in 0..300 {
        let listed = pods.list(&Default::default()).await?;
        let bound = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        if listed
            .iter()
            .any(|pod| bound(pod).as_deref() == Some("worker-1"))
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no pod of a Deployment was bound to the node within 30 s");
}
