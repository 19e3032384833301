//! What the cases rely on: the machine does what it is told to, and is what it says.

use anyhow::{Result, ensure};
use skyhook_integration::machine::Machine;

use crate::bench::Bench;

/// Cgroups, disk, clock and power of the machine itself.
pub(crate) async fn does_what_it_is_told(bench: &Bench) -> Result<()> {
    let vm = bench.vm();
    let mounted = vm.sh("stat -f -c %T /sys/fs/cgroup").await?;
    ensure!(mounted == "cgroup2fs\n", "cgroups are {mounted}");
    let controllers = vm.read_file("/sys/fs/cgroup/cgroup.controllers").await?;
    for controller in ["cpu", "memory", "pids"] {
        ensure!(controllers.contains(controller), "{controllers} only");
    }

    let fill = vm.fill_disk().await?;
    let on_full = vm.write_file("/var/tmp/one", "more").await;
    vm.run(&["rm", fill]).await?;
    ensure!(on_full.is_err(), "a full disk took one more file");
    vm.write_file("/var/tmp/one", "more").await?;
    ensure!(vm.read_file("/var/tmp/one").await? == "more");

    let now = async || anyhow::Ok(vm.sh("date +%s").await?.trim().parse::<i64>()?);
    let before = now().await?;
    vm.turn_clock(-1000).await?;
    let turned = now().await?;
    vm.turn_clock(1000).await?;
    ensure!(
        (-1000..-900).contains(&(turned - before)),
        "{before}, {turned}"
    );

    // Off and on: what was synced is there, what was in memory alone is not.
    let first = vm.current()?;
    vm.sh("sync; echo kept >/dev/shm/lost").await?;
    vm.stop().await?;
    ensure!(
        vm.current().is_err() && !vm.is_reachable(),
        "it is still up"
    );
    let second = vm.boot().await?;
    ensure!(first.id != second.id, "it is the same boot");
    ensure!(vm.read_file("/var/tmp/one").await? == "more");
    ensure!(
        vm.read_file("/dev/shm/lost").await.is_err(),
        "nothing was lost"
    );
    Ok(())
}
