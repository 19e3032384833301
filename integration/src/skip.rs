//! Whether a test can run here, said out loud when it cannot.

use crate::rootfs;

/// True when hosts can be booted here. False, with a loud line, where they cannot on a developer's
/// machine; in CI that is a failure, because a test that silently does not run is no test.
///
/// # Panics
/// When `CI` is `true` and something is missing.
pub async fn hosts_can_run(test: &str) -> bool {
    let Some(why) = rootfs::missing().await else {
        return true;
    };
    assert!(
        !std::env::var("CI").is_ok_and(|ci| ci == "true"),
        "{test} cannot run in CI: {why}"
    );
    eprintln!("\n!!!! SKIPPED {test}: {why}\n");
    false
}
