//! Death around interrupts: the power is cut after each journal write of a service interrupt and of a reboot, and agent,
//! supervisor, bus and coordinator are killed in the middle of one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skyhook_integration::cluster::{Cluster, Setup, Worker};
use skyhook_integration::crash::{self, Writes, kill_after, outer_pid};
use skyhook_integration::host::Host;
use skyhook_integration::registry::Image;
use skyhook_integration::rollout::{apply, skyhook, wait_complete};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

const LOG: &str = "/log";
/// Writes its start to the same log as the package's steps, each with its boot.
const VICTIM: &str = "[Service]\nType=oneshot\nRemainAfterExit=yes\n\
    ExecStart=/bin/sh -c 'echo restart $(cat /proc/sys/kernel/random/boot_id) >>/log; sleep 0.3'\n";

/// A package whose steps note that they ended, on one node, with this interrupt.
fn witness(name: &str, node: &str, image: &Image, interrupt: &Value) -> Value {
    let note = |mode: &str| format!("echo {mode} $(cat /proc/sys/kernel/random/boot_id) >>{LOG}\n");
    let config = json!({
        "apply.sh": note("apply"),
        "config.sh": note("config"),
        "post_interrupt.sh": note("post-interrupt"),
        "post_interrupt_check.sh": note("post-interrupt-check"),
    });
    let more = json!({"interrupt": interrupt, "configMap": config});
    let mut manifest = skyhook(name, "witness", image, 2, &more);
    manifest["spec"]["nodeSelectors"] = json!({"matchLabels": {"kubernetes.io/hostname": node}});
    manifest
}

/// What the steps and the unit wrote, as (what, boot).
fn log(host: &Host) -> Result<Vec<(String, String)>> {
    let text = host.read(LOG)?;
    let lines = text.lines().filter_map(|l| l.split_once(' '));
    Ok(lines.map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

/// Nothing before its predecessor, the interrupt in between, and all of it to the end.
fn check_order(log: &[(String, String)], interrupted: bool) -> Result<()> {
    let rank = |what: &str| match what {
        "apply" => Ok(0),
        "config" => Ok(1),
        "restart" => Ok(2),
        "post-interrupt" => Ok(3),
        "post-interrupt-check" => Ok(4),
        other => anyhow::bail!("{other} was not asked for"),
    };
    let mut last = 0;
    for (what, _) in log {
        let now = rank(what)?;
        let step = if interrupted || now < 3 { 1 } else { 2 };
        ensure!(
            now == last || now <= last + step && now > last,
            "{what} out of order"
        );
        last = now;
    }
    ensure!(last == 4, "it did not get to the end");
    Ok(())
}

/// Applies, cuts the power after the `n`th journal write, and waits for the end; false when there was no such write.
async fn cut(cluster: &Cluster, worker: &Worker, manifest: &Value, n: usize) -> Result<bool> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    let host = &worker.host;
    if host.path(LOG).exists() {
        std::fs::remove_file(host.path(LOG))?;
    }
    let finished = AtomicBool::new(false);
    let roll_out = async {
        apply(cluster.client(), manifest).await?;
        let end = wait_complete(cluster.client(), name, 2 * MINUTE).await;
        finished.store(true, Ordering::Release);
        end.map(drop)
    };
    let power = async {
        let mut writes = Writes::of(host);
        let done = || finished.load(Ordering::Acquire);
        if !writes.wait(n, done).await {
            return Ok(None);
        }
        host.kill().await?;
        let state = crash::journal(host)?;
        host.boot().await?;
        anyhow::Ok(Some(state))
    };
    let (end, state) = tokio::join!(roll_out, power);
    end.with_context(|| format!("{name}: {}", cluster.logs()))?;
    let Some(state) = state? else {
        return Ok(false);
    };
    let log = log(host)?;
    let shown = format!("{name}, cut after write {n}: {log:#?}\n{state:#}");
    let is_reboot = manifest["spec"]["packages"]["witness"]["interrupt"]["type"] == "reboot";
    check_order(&log, !is_reboot).with_context(|| shown.clone())?;
    if is_reboot {
        check_reboot(host, &log, &state).with_context(|| shown)?;
    } else {
        check_restart(&log).with_context(|| shown)?;
    }
    Ok(true)
}

/// The unit was restarted at least once, and again only where the cut hid that it had been.
fn check_restart(log: &[(String, String)]) -> Result<()> {
    let restarts = log.iter().filter(|(what, _)| what == "restart").count();
    ensure!((1..=2).contains(&restarts), "{restarts} restarts");
    Ok(())
}

/// A reboot that was asked for before the cut was that cut, or had happened: there was no other.
fn check_reboot(host: &Host, log: &[(String, String)], state: &Value) -> Result<()> {
    let run = &state["run"];
    let entry = &run["entries"]["witness|1.1.1"];
    let asked = !run["wave"]["rebootAsked"].is_null() || entry["stage"] == "post-interrupt";
    let count = host.current()?.count;
    let want = if asked { 1 } else { 2 };
    ensure!(
        count == want,
        "{count} boots since the power is back, {want} expected"
    );
    let last = |what: &str| {
        log.iter()
            .rev()
            .find(|(w, _)| w == what)
            .map(|(_, boot)| boot)
    };
    let first = |what: &str| log.iter().find(|(w, _)| w == what).map(|(_, boot)| boot);
    ensure!(
        last("config") != first("post-interrupt"),
        "post-interrupt ran before the reboot"
    );
    Ok(())
}

/// The writes after which somebody dies: all with `SKYHOOK_CRASH=all`, else every fourth.
fn points() -> impl Iterator<Item = usize> {
    let all = std::env::var("SKYHOOK_CRASH").is_ok_and(|v| v == "all");
    (1..).filter(move |n| all || n % 4 == 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_is_cut_after_every_write_of_an_interrupt() -> Result<()> {
    if !hosts_can_run("the_power_is_cut_after_every_write_of_an_interrupt").await {
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(2)).await?;
    let image = cluster.push("shellscript").await?;
    let series = async |kind: &str, node: &str, interrupt: Value| -> Result<usize> {
        let worker = cluster.worker(node)?;
        worker
            .host
            .write("/etc/systemd/system/victim.service", VICTIM)?;
        let mut cuts = 0;
        for n in points() {
            let manifest = witness(&format!("{kind}-{n}"), node, &image, &interrupt);
            let begin = Instant::now();
            if !cut(&cluster, worker, &manifest, n).await? {
                break;
            }
            eprintln!(
                "{kind}: cut after write {n}, done {:?} later",
                begin.elapsed()
            );
            cuts += 1;
        }
        Ok(cuts)
    };
    let (service, reboot) = tokio::join!(
        series(
            "service",
            "worker-1",
            json!({"type": "service", "services": ["victim"]})
        ),
        series("reboot", "worker-2", json!({"type": "reboot"})),
    );
    let (service, reboot) = (service?, reboot?);
    ensure!(service > 2 && reboot > 2, "{service} and {reboot} cuts");
    eprintln!("the power was cut {service} times in a restart and {reboot} times in a reboot");
    Ok(())
}

/// Kills a process of the host by the pattern of its command line; false when there is none.
async fn kill_on(host: &Host, pattern: &str) -> bool {
    host.exec(["pkill", "-KILL", "-o", "-f", pattern])
        .await
        .is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_around_an_interrupt_it_happens() -> Result<()> {
    if !hosts_can_run("whoever_is_killed_around_an_interrupt_it_happens").await {
        return Ok(());
    }
    let mut cluster = Cluster::start(Setup::hosts(1)).await?;
    let image = cluster.push("shellscript").await?;
    let interrupt = json!({"type": "service", "services": ["victim", "cron"]});
    let host = std::sync::Arc::clone(&cluster.worker("worker-1")?.host);
    host.write(
        "/etc/systemd/system/victim.service",
        &VICTIM.replace("0.3", "1.5"),
    )?;
    agent_at_every_write(&cluster, &image, &interrupt).await?;
    for who in ["agent", "dbus", "coordinator", "both", "supervisor"] {
        let begin = Instant::now();
        let mut manifest = witness(&format!("killed-{who}"), "worker-1", &image, &interrupt);
        reset(&host)?;
        if who == "supervisor" {
            let config = &mut manifest["spec"]["packages"]["witness"]["configMap"];
            for script in ["apply.sh", "post_interrupt.sh"] {
                let slow = format!("{}sleep 2\n", config[script].as_str().unwrap_or_default());
                config[script] = json!(slow);
            }
        }
        apply(cluster.client(), &manifest).await?;
        match who {
            "supervisor" => {
                for step in ["apply", "post-interrupt"] {
                    await_line(&cluster, &host, step).await?;
                    ensure!(kill_on(&host, "^skyhook-supervisor").await, "no supervisor");
                }
            }
            _ => {
                await_line(&cluster, &host, "restart").await?;
                if who == "agent" || who == "both" {
                    cluster.worker("worker-1")?.agent.kill().await?;
                }
                if who == "dbus" || who == "both" {
                    ensure!(kill_on(&host, "dbus-daemon --system").await, "no dbus");
                }
                if who == "coordinator" {
                    cluster.restart_coordinator().await?;
                }
            }
        }
        done(&cluster, &host, &manifest).await?;
        eprintln!("{who} killed: {:?}", begin.elapsed());
    }
    Ok(())
}

/// The agent is killed after each of its writes of one interrupt. The slow unit was restarted once whatever happened
/// around it: its invocation tells.
async fn agent_at_every_write(cluster: &Cluster, image: &Image, interrupt: &Value) -> Result<()> {
    let worker = cluster.worker("worker-1")?;
    let mut kills = 0;
    for n in points() {
        let manifest = witness(&format!("agent-{n}"), "worker-1", image, interrupt);
        reset(&worker.host)?;
        let finished = AtomicBool::new(false);
        let roll_out = async {
            apply(cluster.client(), &manifest).await?;
            let end = done(cluster, &worker.host, &manifest).await;
            finished.store(true, Ordering::Release);
            end
        };
        let killed = kill_after(worker, n, || finished.load(Ordering::Acquire));
        let (killed, end) = tokio::join!(killed, roll_out);
        end.with_context(|| format!("killed after write {n}"))?;
        let restarts = log(&worker.host)?;
        let restarts = restarts.iter().filter(|(what, _)| what == "restart");
        ensure!(
            restarts.count() == 1,
            "restarted more than once, killed after write {n}: {}",
            cluster.logs()
        );
        if !killed? {
            break;
        }
        kills += 1;
        await_agent(worker).await?;
    }
    ensure!(kills > 3, "only {kills} kills");
    eprintln!("the agent was killed after {kills} writes of an interrupt");
    Ok(())
}

async fn await_agent(worker: &Worker) -> Result<()> {
    eventually(MINUTE, async || {
        let pid = worker.agent.pid().await?;
        ensure!(
            pid != 0 && outer_pid(&worker.host, pid).is_some(),
            "the agent does not come back"
        );
        Ok(())
    })
    .await
}

fn reset(host: &Host) -> Result<()> {
    if host.path(LOG).exists() {
        std::fs::remove_file(host.path(LOG))?;
    }
    Ok(())
}

async fn await_line(cluster: &Cluster, host: &Host, what: &str) -> Result<()> {
    eventually(MINUTE, async || {
        let lines = log(host)?;
        ensure!(lines.iter().any(|(w, _)| w == what), "no {what}: {lines:?}");
        Ok(())
    })
    .await
    .with_context(|| cluster.logs())
}

async fn done(cluster: &Cluster, host: &Host, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().context("name")?;
    wait_complete(cluster.client(), name, 2 * MINUTE)
        .await
        .with_context(|| cluster.logs())?;
    let log = log(host)?;
    check_order(&log, true).with_context(|| format!("{name}: {log:#?}"))?;
    check_restart(&log).with_context(|| format!("{name}: {log:#?}"))
}
