//! `make vm-test`: the agent on kernels of its own, with cgroup v2 alone. The cases of a
//! machine go one after the other; `SKYHOOK_VM_CASES=power,clock` picks those with such words.
#![expect(clippy::disallowed_methods, reason = "it waits for real time to pass")]

use std::time::Instant;

use anyhow::{Result, ensure};
use skyhook_integration::skip::{aloud, vms_can_run};
use skyhook_integration::vm::Image;

mod bench;
mod forgetful;
mod host;
mod install;
mod machine;
mod node;
mod steps;

use bench::{Bench, Case, case};

/// What is true on every system that people run.
const EVERYWHERE: &[Case] = &[
    case!("install and upgrade, a service's restart" => install::install_and_upgrade),
    case!("a step over its memory limit" => steps::over_its_memory_limit),
    case!("power cut in mid-step" => steps::power_cut_in_mid_step),
    case!("what a step requested of memory" => steps::memory_request),
];

/// What the newest one shows besides.
const NEWEST: &[Case] = &[
    case!("an interrupt with a unit that does not exist" => install::no_such_unit),
    case!("a step's scope is stopped" => steps::scope_is_stopped),
    case!("clock set back a day in a back-off" => steps::clock_set_back),
    case!("a mount left in a copy directory" => host::mount_in_a_copy),
    case!("a local user holds every lock" => host::locks_held_by_a_user),
    case!("the SELinux label of a file that a package replaces" => host::label_of_a_replaced_file),
    case!("private registries, a mirror and a proxy that the host names" => host::private_registries),
    case!("power cut after root_dir was laid" => host::power_cut_after_root_dir),
];

/// What boots it again and again; on a machine of its own, so that two cores have something to do.
const BOOTS: &[Case] = &[
    case!("a reboot, and the journal that names its cause" => install::reboot),
    case!("state wiped at every boot" => forgetful::same_machine),
    case!("state and machine ID wiped at every boot" => forgetful::new_machine_id),
];

/// What all cases rely on; the older one has time for it.
const OLDEST: &[Case] = &[case!("the machine itself" => machine::does_what_it_is_told)];

// The longest comes first in the alphabet, which is the order in which tests begin: two run at a time.
#[tokio::test(flavor = "multi_thread")]
async fn boots_of_debian_13() -> Result<()> {
    if !vms_can_run("boots_of_debian_13").await {
        return Ok(());
    }
    run("debian-13-boots", Image::debian_13().await?, BOOTS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn debian_12() -> Result<()> {
    if !vms_can_run("debian_12").await {
        return Ok(());
    }
    let cases = [EVERYWHERE, OLDEST].concat();
    run("debian-12", Image::debian_12().await?, &cases).await
}

#[tokio::test(flavor = "multi_thread")]
async fn debian_13() -> Result<()> {
    if !vms_can_run("debian_13").await {
        return Ok(());
    }
    let cases = [EVERYWHERE, NEWEST].concat();
    run("debian-13", Image::debian_13().await?, &cases).await
}

/// Runs every case, whatever becomes of those before it, and says of each how long it took.
async fn run(system: &str, image: Image, cases: &[Case]) -> Result<()> {
    let begin = Instant::now();
    let bench = Bench::start(system, image).await?;
    let took = begin.elapsed();
    aloud(&format!("vm: {system}: up after {took:.1?}"));
    let mut failed = Vec::new();
    for (name, case) in cases.iter().filter(|(name, _)| is_picked(name)) {
        let begin = Instant::now();
        let outcome = match case(&bench).await {
            Err(error) => {
                failed.push(*name);
                let console = bench.vm().console();
                let logs = bench.cluster.inner_logs().await;
                format!("FAILED: {error:#}\n{logs}--- console\n{console}")
            }
            Ok(()) => "ok".to_owned(),
        };
        let took = begin.elapsed();
        aloud(&format!("vm: {system}: {name} ({took:.1?}): {outcome}"));
        bench.tidy().await?;
    }
    ensure!(failed.is_empty(), "on {system}: {failed:#?}");
    Ok(())
}

fn is_picked(name: &str) -> bool {
    let Ok(picked) = std::env::var("SKYHOOK_VM_CASES") else {
        return true;
    };
    picked.split(',').any(|word| name.contains(word))
}
