//! Hosts that forget what was done to them: their disk is new at every boot, or as good as new.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use skyhook_crds::Skyhook;
use skyhook_integration::machine::Machine;
use skyhook_integration::rollout::{apply, says, scripts, wait_for};
use skyhook_integration::wait::MINUTE;

use crate::bench::Bench;

/// Takes away what the agent knows before it starts.
const FORGET: &str = "[Unit]
Before=skyhook-agent.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/rm -rf /var/lib/skyhook-agent /var/lib/skyhook
";

/// Makes the next boot that of another machine.
const NEW_MACHINE: &str =
    "ExecStop=/bin/sh -c 'tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id'\n";

/// So that nobody waits for three reboots under emulation.
const CAP: &str = "[Service]\nEnvironment=SKYHOOK_REBOOT_CAP=1\n";

pub(crate) async fn same_machine(bench: &Bench) -> Result<()> {
    reboots_stop_at_the_cap(bench, "forgetful", FORGET).await
}

pub(crate) async fn new_machine_id(bench: &Bench) -> Result<()> {
    let unit = format!("{FORGET}{NEW_MACHINE}");
    reboots_stop_at_the_cap(bench, "reborn", &unit).await
}

async fn reboots_stop_at_the_cap(bench: &Bench, name: &str, unit: &str) -> Result<()> {
    let vm = bench.vm();
    let units = "/etc/systemd/system";
    vm.write_file(&format!("{units}/forget.service"), unit)
        .await?;
    vm.write_file(&format!("{units}/skyhook-agent.service.d/cap.conf"), CAP)
        .await?;
    vm.enable("forget.service", units).await?;
    // It forgets at each boot, and once now: while the agent is stopped, or it would write what is being removed.
    let start = "systemctl daemon-reload; systemctl stop skyhook-agent; systemctl start forget; \
                 systemctl start skyhook-agent";
    vm.sh(start).await?;

    let first = vm.current()?;
    let script = json!({"apply.sh": "echo apply"});
    let interrupt = json!({"interrupt": {"type": "reboot"}});
    let manifest = scripts(name, &bench.shell, &script, &interrupt);
    apply(bench.cluster.client(), &manifest).await?;
    let outcome = tokio::select! {
        stopped = stops(bench, name) => stopped,
        more = reboots_on(bench, first.count + 1) => more,
    };
    let undo = "systemctl disable forget 2>/dev/null || true; \
                rm -f /etc/systemd/system/forget.service \
                /etc/systemd/system/multi-user.target.wants/forget.service \
                /etc/systemd/system/skyhook-agent.service.d/cap.conf; systemctl daemon-reload";
    let undone = vm.sh(undo).await;
    outcome?;
    undone?;
    let last = vm.current()?;
    ensure!(last.count == first.count + 1, "{first:?}, then {last:?}");
    Ok(())
}

/// The node says why it is not rebooted any more, and stays up.
async fn stops(bench: &Bench, name: &str) -> Result<()> {
    let what = "a reason that names the reboots and their cap";
    let capped = |s: &Skyhook| says(s, &["reboot", "at most 1"]) || says(s, &["reboot", "cap"]);
    let client = bench.cluster.client();
    wait_for(client, name, what, 6 * MINUTE, capped).await?;
    // An agent waits up to ten seconds for its last report before it asks for a reboot.
    tokio::time::sleep(MINUTE / 6).await;
    Ok(())
}

/// Ends, in failure, when the machine has booted more often than it may.
async fn reboots_on(bench: &Bench, most: u32) -> Result<()> {
    bench.vm().wait_up(most).await?;
    bail!("it was rebooted once more although it may be rebooted once")
}
