//! Skyhooks that are deleted: what can be uninstalled is uninstalled first, whatever dies meanwhile, and a Skyhook that is
//! made anew runs nothing again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, names};
use skyhook_integration::cluster::{Cluster, Setup, Worker};
use skyhook_integration::crash::{self, Writes, kill_after};
use skyhook_integration::host::Host;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{LeaseRecorder, apply, wait_complete, wait_for};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};
use tokio::time::sleep;

const LOG: &str = "/log";

/// A package whose steps note in the log that they ended, with the boot.
fn package(image: &Image, word: &str, more: &Value) -> Value {
    let note =
        |mode: &str| format!("echo {word} {mode} $(cat /proc/sys/kernel/random/boot_id) >>{LOG}\n");
    let mut package = json!({
        "version": image.version, "image": image.repository,
        "configMap": {
            "apply.sh": note("apply"),
            "config.sh": note("config"),
            "post_interrupt.sh": note("post-interrupt"),
            "uninstall.sh": note("uninstall"),
            "uninstall_check.sh": note("uninstall-check"),
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        package[key] = value.clone();
    }
    package
}

fn of(name: &str, nodes: &[&str], packages: &Value) -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": name },
        "spec": {
            "interruptionBudget": { "count": 1 },
            "nodeSelectors": { "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": nodes },
            ] },
            "packages": packages,
        },
    })
}

/// What the steps wrote: package and step, and in which boot.
fn log(host: &Host) -> Result<Vec<(String, String)>> {
    if !host.path(LOG).exists() {
        return Ok(Vec::new());
    }
    let text = host.read(LOG)?;
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    Ok(lines.map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

fn steps(host: &Host) -> Result<Vec<String>> {
    Ok(log(host)?.into_iter().map(|(step, _)| step).collect())
}

fn forget(host: &Host) -> Result<()> {
    if host.path(LOG).exists() {
        std::fs::remove_file(host.path(LOG))?;
    }
    Ok(())
}

async fn complete(cluster: &Cluster, manifest: &Value) -> Result<()> {
    apply(cluster.client(), manifest).await?;
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    let done = wait_complete(cluster.client(), name, 2 * MINUTE).await;
    done.with_context(|| cluster.logs())?;
    cluster.released(MINUTE).await
}

async fn annotate(client: Client, name: &str, key: &str, value: Option<&str>) -> Result<()> {
    let skyhooks: Api<Skyhook> = Api::all(client);
    let body = json!({ "metadata": { "annotations": { key: value } } });
    let patch = Patch::Merge(&body);
    skyhooks
        .patch(name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

async fn delete(client: Client, name: &str) -> Result<()> {
    let skyhooks: Api<Skyhook> = Api::all(client);
    skyhooks.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

async fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    let skyhooks: Api<Skyhook> = Api::all(cluster.client());
    eventually(2 * MINUTE, async || {
        let left = skyhooks.get_opt(name).await?;
        ensure!(left.is_none(), "Skyhook {name} is there: {left:#?}");
        Ok(())
    })
    .await
    .with_context(|| cluster.logs())
}

/// The annotations, labels and conditions with which a Node tells of a Skyhook.
async fn told(cluster: &Cluster, node: &str, name: &str) -> Result<Vec<String>> {
    let node = Api::<Node>::all(cluster.client()).get(node).await?;
    let keys = node.annotations().keys().chain(node.labels().keys());
    let ending = format!("_{name}");
    let keys = keys.filter(|key| key.ends_with(&ending)).cloned();
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let within = format!("/{name}/");
    let types = conditions.into_iter().flatten().map(|one| &one.type_);
    let types = types.filter(|type_| type_.contains(&within)).cloned();
    Ok(keys.chain(types).collect())
}

/// The Node tells nothing of the Skyhook, and the journal knows no package.
async fn nothing_is_told(cluster: &Cluster, host: &Host, name: &str) -> Result<()> {
    let said = told(cluster, host.name(), name).await?;
    ensure!(said.is_empty(), "{said:?}");
    let entries = &crash::journal(host)?["run"]["entries"];
    let entries = entries.as_object().context("entries of the journal")?;
    ensure!(entries.is_empty(), "{entries:?}");
    Ok(())
}

/// The host has no copy and no flag of the Skyhooks whose names begin so. What an agent that died did not remove goes at the
/// end of the next lease.
async fn nothing_is_left(cluster: &Cluster, host: &Host, image: &Image, names: &str) -> Result<()> {
    let packages = json!({ "later": package(image, "later", &json!({})) });
    let later = of(&format!("later-{names}"), &[host.name()], &packages);
    complete(cluster, &later).await?;
    let find = format!(
        "find /var/lib/skyhook/{names}-* -name config.json -o -type f -path '*/flags/shellscript/*'"
    );
    eventually(MINUTE, async || {
        let left = host.sh(&find).await?;
        ensure!(left.trim().is_empty(), "left on the host: {left}");
        Ok(())
    })
    .await
}

/// A Skyhook that is being deleted and paused says so, and then that it is disabled; meanwhile nothing is done. Both are ended.
async fn held_up(cluster: &Cluster, name: &str, workers: [&Worker; 2]) -> Result<()> {
    let client = cluster.client();
    for (key, reason) in [
        (names::PAUSE, "PausedWithPendingUninstall"),
        (names::DISABLE, "DisabledWithPendingUninstall"),
    ] {
        annotate(client.clone(), name, key, Some("true")).await?;
        let is_blocked = |skyhook: &Skyhook| {
            let mut conditions = skyhook.status.iter().flat_map(|s| &s.conditions);
            conditions.any(|one| {
                one.type_ == "DeletionBlocked" && one.status == "True" && one.reason == reason
            })
        };
        let blocked = wait_for(client.clone(), name, reason, MINUTE, is_blocked).await;
        blocked.with_context(|| cluster.logs())?;
        sleep(Duration::from_secs(3)).await;
        for worker in workers {
            ensure!(steps(&worker.host)?.is_empty(), "{key} is obeyed");
        }
    }
    for key in [names::DISABLE, names::PAUSE] {
        annotate(client.clone(), name, key, None).await?;
    }
    Ok(())
}

/// Packages that can be uninstalled are, one node after the other and with their interrupt; nothing happens while the Skyhook
/// is paused or disabled. What has no `uninstall` block stays on the host and on record.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_skyhook_is_uninstalled_first() -> Result<()> {
    if !hosts_can_run("a_deleted_skyhook_is_uninstalled_first").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(2)).await?;
    let image = cluster.push("shellscript").await?;
    let workers = [cluster.worker("worker-1")?, cluster.worker("worker-2")?];
    let name = "away";
    let can = json!({ "enabled": true });
    let manifest = of(
        name,
        &["worker-1", "worker-2"],
        &json!({
            "plain": package(&image, "plain", &json!({ "uninstall": can })),
            "rebooting": package(&image, "rebooting", &json!({
                "uninstall": can, "interrupt": { "type": "reboot" },
            })),
            "stays": package(&image, "stays", &json!({})),
        }),
    );
    complete(&cluster, &manifest).await?;
    let boots = |worker: &Worker| anyhow::Ok(worker.host.current()?.count);
    let before = [boots(workers[0])?, boots(workers[1])?];
    for worker in workers {
        forget(&worker.host)?;
    }

    let client = cluster.client();
    let leases = LeaseRecorder::start(client.clone()).await?;
    annotate(client.clone(), name, names::PAUSE, Some("true")).await?;
    delete(client.clone(), name).await?;
    held_up(&cluster, name, workers).await?;
    gone(&cluster, name).await?;

    for (worker, before) in workers.into_iter().zip(before) {
        let log = log(&worker.host)?;
        let mut ran: Vec<&str> = log.iter().map(|(step, _)| step.as_str()).collect();
        ran.sort_unstable();
        let want = [
            "plain uninstall",
            "plain uninstall-check",
            "rebooting uninstall",
            "rebooting uninstall-check",
        ];
        ensure!(ran == want, "{log:?}");
        ensure!(boots(worker)? == before + 1, "one reboot");
        let node = worker.host.name();
        let mut said = told(&cluster, node, name).await?;
        said.sort();
        let mut want = [
            names::node_state(name),
            names::stamp(name),
            names::version(name),
        ];
        want.sort();
        ensure!(said == want, "{said:?}");
        let node = Api::<Node>::all(client.clone()).get(node).await?;
        ensure!(
            node.spec.and_then(|spec| spec.unschedulable) != Some(true),
            "cordoned"
        );
        let states = node.metadata.annotations.unwrap_or_default();
        let states = states.get(&names::node_state(name)).context("a record")?;
        let states: Value = serde_json::from_str(states)?;
        let keys: Vec<&String> = states.as_object().context("an object")?.keys().collect();
        ensure!(keys == [&format!("stays|{}", image.version)], "{states}");
    }
    ensure!(leases.most_granted()? == 1, "one node after the other");
    Ok(())
}

/// A Skyhook that is deleted and made anew under its name, as Helm's hooks do it at each upgrade: what is the same on the host
/// is complete without a lease, also after a reboot; what has changed is rolled out as an edit; what was in the middle goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_skyhook_made_anew_runs_nothing_again() -> Result<()> {
    if !hosts_can_run("a_skyhook_made_anew_runs_nothing_again").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("shellscript").await?;
    let host = &cluster.worker("worker-1")?.host;
    let name = "anew";
    let manifest = |key: &str, late: Option<&str>| {
        let mut tuned = package(&image, "tuned", &json!({}));
        tuned["configMap"]["key"] = json!(key);
        let mut packages = json!({
            "steady": package(&image, "steady", &json!({ "interrupt": { "type": "reboot" } })),
            "tuned": tuned,
        });
        if let Some(script) = late {
            packages["late"] = package(&image, "late", &json!({}));
            packages["late"]["configMap"]["config.sh"] = json!(script);
        }
        of(name, &["worker-1"], &packages)
    };
    complete(&cluster, &manifest("a", None)).await?;
    let boots = host.current()?.count;
    forget(host)?;

    let client = cluster.client();
    let leases = LeaseRecorder::start(client.clone()).await?;
    for reboots in [false, true] {
        delete(client.clone(), name).await?;
        gone(&cluster, name).await?;
        let revisions: Api<ControllerRevision> = Api::all(client.clone());
        let selector = format!("{}={name}", names::REVISION_OF);
        let kept = revisions
            .list(&ListParams::default().labels(&selector))
            .await?;
        ensure!(!kept.items.is_empty(), "the Node names a revision");
        if reboots {
            host.reboot().await?;
        }
        complete(&cluster, &manifest("a", None)).await?;
    }
    let given: Vec<_> = leases.changes();
    ensure!(given.is_empty(), "no lease is needed: {given:?}");
    ensure!(steps(host)?.is_empty(), "{:?}", steps(host)?);
    ensure!(host.current()?.count == boots + 1, "the test's own reboot");

    delete(client.clone(), name).await?;
    gone(&cluster, name).await?;
    complete(&cluster, &manifest("b", None)).await?;
    ensure!(steps(host)? == ["tuned config"], "{:?}", steps(host)?);

    forget(host)?;
    apply(client.clone(), &manifest("b", Some("exit 3\n"))).await?;
    let fails = |skyhook: &Skyhook| {
        let status = skyhook.status.as_ref();
        status.is_some_and(|status| status.status == skyhook_crds::Status::Erroring)
    };
    let failing = wait_for(client.clone(), name, "failing", MINUTE, fails).await;
    failing.with_context(|| cluster.logs())?;
    delete(client.clone(), name).await?;
    gone(&cluster, name).await?;
    complete(&cluster, &manifest("b", Some("true\n"))).await?;
    ensure!(steps(host)? == ["late apply"], "{:?}", steps(host)?);
    ensure!(host.current()?.count == boots + 1, "nobody else rebooted");
    Ok(())
}

/// The journal writes after which somebody dies: all with `SKYHOOK_CRASH=all`, else every third.
fn points() -> impl Iterator<Item = usize> {
    let all = std::env::var("SKYHOOK_CRASH").is_ok_and(|v| v == "all");
    (1..).filter(move |n| all || n % 3 == 1)
}

/// Installs a package, asks for an interrupt, and deletes the Skyhook; `death` happens meanwhile, and returns false when it
/// did not. Whatever died, the package was uninstalled before the one reboot, and nothing is left of it.
async fn deleted(
    cluster: &Cluster,
    worker: &Worker,
    image: &Image,
    name: &str,
    death: impl AsyncFnOnce(&AtomicBool) -> Result<Option<Value>>,
) -> Result<bool> {
    let host = &worker.host;
    let manifest = |interrupt: Value| {
        let more = json!({ "uninstall": { "enabled": true }, "interrupt": interrupt });
        let packages = json!({ "work": package(image, "work", &more) });
        of(name, &[host.name()], &packages)
    };
    complete(cluster, &manifest(Value::Null)).await?;
    complete(cluster, &manifest(json!({ "type": "reboot" }))).await?;
    forget(host)?;
    let boots = host.current()?.count;
    let finished = AtomicBool::new(false);
    let deletes = async {
        delete(cluster.client(), name).await?;
        let end = gone(cluster, name).await;
        finished.store(true, Ordering::Release);
        end
    };
    let (end, death) = tokio::join!(deletes, death(&finished));
    end?;
    let died = death?;
    let log = log(host)?;
    let shown = || format!("{name}: {log:#?}\n{died:#?}\n{}", cluster.logs());
    let count = |step: &str| log.iter().filter(|(what, _)| what == step).count();
    let (ran, checked) = (count("work uninstall"), count("work uninstall-check"));
    ensure!(ran + checked == log.len(), "{}", shown());
    // A cut hides that a step has ended, once; the death of an agent does not.
    let cut = died.as_ref().is_some_and(|state| !state.is_null());
    let most = if cut { 2 } else { 1 };
    ensure!((1..=most).contains(&ran), "{}", shown());
    ensure!((1..=most).contains(&checked), "{}", shown());
    let first = |step: &str| log.iter().position(|(what, _)| what == step);
    ensure!(
        first("work uninstall") < first("work uninstall-check"),
        "{}",
        shown()
    );
    // Boots are counted from the power's return.
    let count = host.current()?.count;
    let as_wanted = if cut {
        (1..=2).contains(&count)
    } else {
        count == boots + 1
    };
    ensure!(as_wanted, "{count} boots after {boots}: {}", shown());
    let boot = host.sh("cat /proc/sys/kernel/random/boot_id").await?;
    ensure!(
        log.iter().any(|(_, ran_in)| ran_in != boot.trim()),
        "no reboot after the uninstall: {}",
        shown()
    );
    nothing_is_told(cluster, host, name)
        .await
        .with_context(shown)?;
    Ok(died.is_some())
}

/// The agent is killed, or the power cut, after the writes of the journal while a deletion uninstalls with a reboot.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_in_a_deletion_it_ends() -> Result<()> {
    if !hosts_can_run("whoever_dies_in_a_deletion_it_ends").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(2)).await?;
    let image = cluster.push("shellscript").await?;
    let killed = async {
        let worker = cluster.worker("worker-1")?;
        let mut deaths = 0;
        for n in points() {
            let death = async |finished: &AtomicBool| {
                let killed = kill_after(worker, n, || finished.load(Ordering::Acquire));
                Ok(killed.await?.then_some(Value::Null))
            };
            let name = format!("killed-{n}");
            if !deleted(&cluster, worker, &image, &name, death).await? {
                break;
            }
            deaths += 1;
        }
        nothing_is_left(&cluster, &worker.host, &image, "killed").await?;
        anyhow::Ok(deaths)
    };
    let cut = async {
        let worker = cluster.worker("worker-2")?;
        let host = &worker.host;
        let mut deaths = 0;
        for n in points() {
            let death = async |finished: &AtomicBool| {
                let mut writes = Writes::of(host);
                if !writes.wait(n, || finished.load(Ordering::Acquire)).await {
                    return Ok(None);
                }
                host.kill().await?;
                let state = crash::journal(host)?;
                host.boot().await?;
                Ok(Some(state))
            };
            let name = format!("cut-{n}");
            if !deleted(&cluster, worker, &image, &name, death).await? {
                break;
            }
            deaths += 1;
        }
        nothing_is_left(&cluster, host, &image, "cut").await?;
        anyhow::Ok(deaths)
    };
    let (killed, cut) = tokio::join!(killed, cut);
    let (killed, cut) = (killed?, cut?);
    ensure!(killed > 1 && cut > 1, "{killed} deaths and {cut} cuts");
    eprintln!("in deletions the agent was killed {killed} times, and the power cut {cut} times");
    Ok(())
}
