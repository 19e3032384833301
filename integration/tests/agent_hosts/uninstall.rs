//! Uninstalls that the spec asks for, on a real host.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, names};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::crash;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete, wait_for};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::source::source;
use skyhook_integration::wait::{MINUTE, eventually};

const LOG: &str = "/log";
const COPIES: &str = "/var/lib/skyhook";

/// A package whose steps note in the log which environment and configuration they run with.
fn package(image: &Image, uninstall: &Value, word: &str) -> Value {
    let note =
        |mode: &str| format!("echo {mode} $WORD $(cat $SKYHOOK_DIR/configmaps/word) >>{LOG}\n");
    json!({
        "version": image.version, "image": image.repository,
        "env": [{ "name": "WORD", "value": word }],
        "configMap": {
            "word": word,
            "apply.sh": format!("{}touch /there\n", note("apply")),
            "post_interrupt.sh": note("post-interrupt"),
            "uninstall.sh": format!("{}while [ -e /hold ]; do sleep 0.1; done\nrm -f /there\n", note("uninstall")),
            "uninstall_check.sh": "test ! -e /there\n",
        },
        "uninstall": uninstall,
    })
}

fn of(name: &str, package: &Value) -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": name },
        "spec": { "interruptionBudget": { "count": 1 }, "packages": { "work": package } },
    })
}

fn kept() -> Value {
    json!({ "enabled": true, "apply": false })
}

fn going() -> Value {
    json!({ "enabled": true, "apply": true })
}

async fn node(cluster: &Cluster) -> Result<Node> {
    Ok(Api::<Node>::all(cluster.client()).get("worker-1").await?)
}

/// The Node's record of packages: `key stage state`.
async fn record(cluster: &Cluster, name: &str) -> Result<Vec<String>> {
    let annotations = node(cluster).await?.metadata.annotations;
    let text = annotations.unwrap_or_default();
    let text = text
        .get(&names::node_state(name))
        .map_or("{}", String::as_str);
    let states: Value = serde_json::from_str(text)?;
    let entries = states.as_object().context("an object")?.iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(entries
        .map(|(key, one)| format!("{key} {} {}", text(&one["stage"]), text(&one["state"])))
        .collect())
}

async fn until_recorded(cluster: &Cluster, name: &str, want: &[&str]) -> Result<()> {
    eventually(MINUTE, async || {
        let given = record(cluster, name).await?;
        ensure!(given == want, "{given:?} is recorded, not {want:?}");
        Ok(())
    })
    .await
    .with_context(|| cluster.logs())
}

async fn complete(cluster: &Cluster, manifest: &Value) -> Result<Skyhook> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    apply(cluster.client(), manifest).await?;
    let done = wait_complete(cluster.client(), name, 2 * MINUTE).await;
    let done = done.with_context(|| cluster.logs())?;
    let cordoned = node(cluster).await?.spec.and_then(|s| s.unschedulable);
    ensure!(cordoned != Some(true), "the cordon was not given back");
    Ok(done)
}

fn condition(skyhook: &Skyhook, type_: &str) -> Option<(String, String)> {
    let conditions = &skyhook.status.as_ref()?.conditions;
    let found = conditions.iter().find(|one| one.type_ == type_)?;
    (found.status == "True").then(|| (found.reason.clone(), found.message.clone()))
}

fn ready(skyhook: &Skyhook) -> String {
    let mut all = skyhook.status.iter().flat_map(|status| &status.conditions);
    let ready = all.find(|one| one.type_ == "Ready");
    ready.map(|one| one.message.clone()).unwrap_or_default()
}

/// Copies and flags of the package are gone from the host, and the journal does not know it; the history does.
async fn nothing_is_left(cluster: &Cluster, name: &str) -> Result<()> {
    let host = &cluster.worker("worker-1")?.host;
    eventually(MINUTE, async || {
        let find = format!(
            "find {COPIES}/{name} -name config.json -o -type f -path '*/flags/shellscript/*'"
        );
        let left = host.sh(&find).await?;
        ensure!(left.trim().is_empty(), "left on the host: {left}");
        let pins = format!(
            "find /var/lib/skyhook-agent -type d -name pins | xargs grep -rl '{name}/work|' || true"
        );
        let pins = host.sh(&pins).await?;
        ensure!(pins.trim().is_empty(), "still pinned: {pins}");
        Ok(())
    })
    .await?;
    let journal = crash::journal(host)?;
    let entries = &journal["run"]["entries"];
    ensure!(
        entries.as_object().is_some_and(serde_json::Map::is_empty),
        "{entries}"
    );
    let history = host
        .sh(&format!("cat {COPIES}/{name}/history/*.json"))
        .await?;
    ensure!(history.contains("uninstalled"), "{history}");
    Ok(())
}

/// A package with a reboot is uninstalled with the environment and configuration of the spec, after a drain and before the
/// reboot. Nothing of it is left on the host, and it comes back when it is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn explicit_uninstall() -> Result<()> {
    if !hosts_can_run("explicit_uninstall").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("shellscript").await?;
    let host = &cluster.worker("worker-1")?.host;
    let name = "explicit";
    let rebooting = |uninstall: &Value, word: &str| {
        let mut package = package(&image, uninstall, word);
        package["interrupt"] = json!({ "type": "reboot" });
        of(name, &package)
    };
    let refused = json!({ "enabled": false, "apply": true });
    let refused = apply(cluster.client(), &rebooting(&refused, "one")).await;
    let refused = refused
        .expect_err("nothing to uninstall it with")
        .to_string();
    let why = "uninstall.apply requires uninstall.enabled to be true";
    ensure!(refused.contains(why), "{refused}");

    complete(&cluster, &rebooting(&kept(), "one")).await?;
    ensure!(host.path("/there").exists());
    let installed = host.current()?.count;
    host.sh("touch /hold").await?;
    apply(cluster.client(), &rebooting(&going(), "two")).await?;
    let key = format!("work|{}", image.version);
    until_recorded(&cluster, name, &[&format!("{key} uninstall in_progress")]).await?;
    let is_going = |s: &Skyhook| condition(s, "UninstallInProgress").is_some();
    wait_for(
        cluster.client(),
        name,
        "being uninstalled",
        MINUTE,
        is_going,
    )
    .await?;
    eventually(MINUTE, async || {
        ensure!(
            host.read(LOG)?.contains("uninstall"),
            "the step has not begun"
        );
        Ok(())
    })
    .await
    .with_context(|| cluster.logs())?;
    let spec = node(&cluster).await?.spec.unwrap_or_default();
    ensure!(
        spec.unschedulable == Some(true),
        "it is drained before the uninstall"
    );
    ensure!(
        host.current()?.count == installed,
        "no reboot before the uninstall has ended"
    );
    host.sh("rm /hold").await?;

    let done = complete(&cluster, &rebooting(&going(), "two")).await?;
    ensure!(host.current()?.count == installed + 1, "one reboot");
    ensure!(!host.path("/there").exists());
    let log = host.read(LOG)?;
    let want = "apply one one\npost-interrupt one one\nuninstall two two\n";
    ensure!(log == want, "{log}");
    until_recorded(&cluster, name, &[]).await?;
    ensure!(condition(&done, "UninstallInProgress").is_none());
    let said = ready(&done);
    ensure!(said.contains("package work is on no node"), "{said}");
    nothing_is_left(&cluster, name).await?;

    complete(&cluster, &rebooting(&kept(), "three")).await?;
    ensure!(host.path("/there").exists());
    until_recorded(&cluster, name, &[&format!("{key} post-interrupt complete")]).await
}

/// Called off while its step runs, an uninstall ends with that step, and the package is installed again. Called off at its
/// interrupt, the interrupt is performed first. A failing uninstall is mended by its configuration.
#[tokio::test(flavor = "multi_thread")]
async fn uninstall_cancel_and_fix_config() -> Result<()> {
    if !hosts_can_run("uninstall_cancel_and_fix_config").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("shellscript").await?;
    let host = &cluster.worker("worker-1")?.host;
    host.write(
        "/etc/systemd/system/victim.service",
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=300\n\
         ExecStart=/bin/sh -c 'echo restart >>/log; while [ -e /hold-unit ]; do sleep 0.1; done'\n",
    )?;
    host.sh("systemctl daemon-reload; systemctl start victim; rm -f /log")
        .await?;
    let name = "cancel";
    let key = format!("work|{}", image.version);
    let manifest = |uninstall: &Value| {
        let mut package = package(&image, uninstall, "one");
        package["interrupt"] = json!({ "type": "service", "services": ["victim"] });
        of(name, &package)
    };
    let whole = "apply one one\nrestart\npost-interrupt one one\n";
    complete(&cluster, &manifest(&kept())).await?;
    let said = |want: String| {
        let log = host.read(LOG)?;
        ensure!(log == want, "{log}\n is not\n{want}");
        anyhow::Ok(())
    };
    said(whole.to_owned())?;

    // uninstall-cancel
    host.sh("touch /hold").await?;
    apply(cluster.client(), &manifest(&going())).await?;
    let begun = format!("{whole}uninstall one one\n");
    eventually(MINUTE, async || said(begun.clone()))
        .await
        .with_context(|| cluster.logs())?;
    apply(cluster.client(), &manifest(&kept())).await?;
    // The step goes on as long as it likes.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    said(begun.clone())?;
    host.sh("rm /hold").await?;
    complete(&cluster, &manifest(&kept())).await?;
    let again = format!("{begun}{whole}");
    said(again.clone())?;

    // uninstall-cancel-during-interrupt
    host.sh("touch /hold-unit").await?;
    apply(cluster.client(), &manifest(&going())).await?;
    let interrupting = format!("{key} uninstall-interrupt in_progress");
    until_recorded(&cluster, name, &[&interrupting]).await?;
    let restarted = format!("{again}uninstall one one\nrestart\n");
    eventually(MINUTE, async || said(restarted.clone()))
        .await
        .with_context(|| cluster.logs())?;
    apply(cluster.client(), &manifest(&kept())).await?;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    said(restarted.clone())?;
    host.sh("rm /hold-unit").await?;
    complete(&cluster, &manifest(&kept())).await?;
    said(format!("{restarted}{whole}"))?;

    // uninstall-fix-config
    let broken = |text: &str| {
        let mut manifest = manifest(&going());
        manifest["spec"]["packages"]["work"]["configMap"]["uninstall.sh"] = json!(text);
        manifest
    };
    apply(cluster.client(), &broken("echo it is stuck; exit 3\n")).await?;
    let fails = |s: &Skyhook| condition(s, "UninstallFailed").is_some();
    let failing = wait_for(cluster.client(), name, "failing", MINUTE, fails).await;
    failing.with_context(|| cluster.logs())?;
    until_recorded(&cluster, name, &[&format!("{key} uninstall erroring")]).await?;
    let done = complete(&cluster, &broken("rm -f /there\n")).await?;
    ensure!(condition(&done, "UninstallFailed").is_none());
    until_recorded(&cluster, name, &[]).await
}

/// Packages with and without the block side by side, and what stays on the host.
#[expect(
    clippy::too_many_lines,
    reason = "each part begins with what the one before has left on the host"
)]
#[tokio::test(flavor = "multi_thread")]
async fn uninstall_mixed_packages_and_downgrades() -> Result<()> {
    if !hosts_can_run("uninstall_mixed_packages_and_downgrades").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("shellscript").await?;
    let folder = source("examples/packages/shellscript");
    let repository = "skyhook-packages/shellscript";
    cluster
        .registry
        .push_folder(&folder, repository, "2.0.0")
        .await?;
    let host = &cluster.worker("worker-1")?.host;
    let name = "mixed";
    let one = |who: &str, version: &str, uninstall: Value| {
        let note = |mode: &str| format!("echo {who} {mode} >>{LOG}\n");
        json!({
            "version": version, "image": image.repository, "uninstall": uninstall,
            "configMap": { "apply.sh": note("apply"), "uninstall.sh": note("uninstall") },
        })
    };
    let first = image.version.as_str();
    let all = |packages: Value| {
        let mut manifest = skyhook(name, "work", &image, 1, &Value::Null);
        manifest["spec"]["packages"] = packages;
        manifest
    };
    let stays = json!({ "enabled": false });
    let packages = json!({
        "enabled": one("enabled", first, kept()),
        "plain": one("plain", first, Value::Null),
        "stays": one("stays", first, stays.clone()),
    });
    complete(&cluster, &all(packages)).await?;
    host.sh("rm /log").await?;

    // uninstall-mixed-packages: one is asked for, one is removed without the block, and one that stays is removed. What depends
    // on the first is blocked.
    let mut later = one("later", first, Value::Null);
    later["dependsOn"] = json!({ "enabled": first });
    let packages = json!({ "enabled": one("enabled", first, going()), "later": later });
    apply(cluster.client(), &all(packages)).await?;
    let stays_there = format!("stays|{first} config complete");
    until_recorded(&cluster, name, &[&stays_there]).await?;
    let is_blocked = |s: &Skyhook| {
        let reasons = s.status.as_ref().map(|status| &status.node_reasons);
        let reason = reasons.and_then(|reasons| reasons.get("worker-1"));
        let blocked = condition(s, "Blocked");
        reason.is_some_and(|reason| reason.reason == "DependencyUninstalled")
            && blocked.is_some_and(|(reason, said)| {
                let want = "package later is blocked: dependency enabled has been uninstalled";
                reason == "DependencyUninstalled" && said == want
            })
    };
    let blocked = wait_for(cluster.client(), name, "blocked", MINUTE, is_blocked).await;
    blocked.with_context(|| cluster.logs())?;
    cluster.released(MINUTE).await?;
    let mut log: Vec<String> = host.read(LOG)?.lines().map(str::to_owned).collect();
    log.sort();
    ensure!(log == ["enabled uninstall", "plain uninstall"], "{log:?}");

    // downgrade-after-uninstall: it is gone, so a lower version is installed afresh.
    host.sh("rm /log").await?;
    let packages =
        |version: &str, uninstall| json!({ "enabled": one("enabled", version, uninstall) });
    complete(&cluster, &all(packages("2.0.0", kept()))).await?;
    complete(&cluster, &all(packages("2.0.0", going()))).await?;
    complete(&cluster, &all(packages(first, kept()))).await?;
    let log = host.read(LOG)?;
    ensure!(
        log == "enabled apply\nenabled uninstall\nenabled apply\n",
        "{log}"
    );
    let enabled = format!("enabled|{first} config complete");
    until_recorded(&cluster, name, &[&enabled, &stays_there]).await?;

    // downgrade-enabled-false-preserves-state. A package that can be uninstalled is not removed while it is there.
    host.sh("rm /log").await?;
    let uninstalled = packages(first, going());
    let packages = |version: &str| json!({ "stays": one("stays", version, stays.clone()) });
    let refused = apply(cluster.client(), &all(packages("2.0.0"))).await;
    let refused = refused.expect_err("it is still there").to_string();
    let why = "package enabled has uninstall.enabled=true and is still on 1 nodes";
    ensure!(refused.contains(why), "{refused}");
    complete(&cluster, &all(uninstalled)).await?;
    complete(&cluster, &all(packages("2.0.0"))).await?;
    complete(&cluster, &all(packages(first))).await?;
    let log = host.read(LOG)?;
    let want = "enabled uninstall\nstays apply\n";
    ensure!(log == want, "{log}");
    let both = [stays_there.as_str(), "stays|2.0.0 config complete"];
    until_recorded(&cluster, name, &both).await
}
