//! Whether a test can run here, said out loud when it cannot.

use skyhook_testkit::cannot_run;
pub use skyhook_testkit::{aloud, skipped};

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
    cannot_run(test, &why);
    false
}
