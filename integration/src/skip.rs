//! Whether a test can run here, said out loud when it cannot.

use std::io::Write as _;

use crate::{chart, rootfs, vm};

/// True when hosts can be booted here. False, with a loud line, where they cannot on a developer's
/// machine; in CI that is a failure, because a test that silently does not run is no test.
///
/// # Panics
/// When `CI` is `true` and something is missing.
pub async fn hosts_can_run(test: &str) -> bool {
    can_run(test, rootfs::missing().await)
}

/// The same for virtual machines.
///
/// # Panics
/// When `CI` is `true` and something is missing.
pub async fn vms_can_run(test: &str) -> bool {
    can_run(test, first(&[rootfs::missing().await, vm::missing().await]))
}

/// The same for virtual machines with a real kubelet and the chart.
///
/// # Panics
/// When `CI` is `true` and something is missing.
pub async fn vm_cluster_can_run(test: &str) -> bool {
    let missing = [
        rootfs::missing().await,
        vm::missing().await,
        chart::missing().await,
    ];
    can_run(test, first(&missing))
}

/// The same for hosts with real kubelets and the chart.
///
/// # Panics
/// When `CI` is `true` and something is missing.
pub async fn cluster_can_run(test: &str) -> bool {
    can_run(
        test,
        first(&[rootfs::missing().await, chart::missing().await]),
    )
}

/// The same for the chart on a control plane alone.
///
/// # Panics
/// When `CI` is `true` and something is missing.
pub async fn chart_can_run(test: &str) -> bool {
    can_run(test, chart::missing().await)
}

fn first(missing: &[Option<String>]) -> Option<String> {
    missing.iter().flatten().next().cloned()
}

fn can_run(test: &str, missing: Option<String>) -> bool {
    let Some(why) = missing else {
        return true;
    };
    assert!(
        !std::env::var("CI").is_ok_and(|ci| ci == "true"),
        "{test} cannot run in CI: {why}"
    );
    skipped(test, &why);
    false
}

/// Says out loud that a test did not run.
pub fn skipped(test: &str, why: &str) {
    aloud(&format!("!!!! SKIPPED {test}: {why}"));
}

/// A line that is seen although the test passes: what `println!` and `eprintln!` write, libtest keeps to itself then.
pub fn aloud(line: &str) {
    // Who closed it does not want to see it.
    let _closed = writeln!(std::io::stderr().lock(), "\n{line}");
}
