//! The chart, by helm, on a control plane of the harness.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::controlplane::ControlPlane;
use crate::process::output;
use crate::rootfs::cache_dir;

/// Release and namespace that the seed's commands install to.
pub const RELEASE: &str = "skyhook";
/// The Deployment's name in that release.
pub const COORDINATOR: &str = "skyhook-skyhook-operator-controller-manager";
/// The DaemonSet's name in that release.
pub const AGENT: &str = "skyhook-skyhook-operator-agent";

/// `helm/skyhook-operator`.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/skyhook-operator")
}

/// Why helm cannot be run here, or None.
pub async fn missing() -> Option<String> {
    let found = match program() {
        Ok(program) => {
            let mut command = Command::new(program);
            command.arg("version");
            output(command).await.map(drop)
        }
        Err(error) => Err(error),
    };
    found
        .err()
        .map(|error| format!("no helm: run `make setup` ({error:#})"))
}

/// Where `.ci/setup` puts it; else from the path.
fn program() -> Result<PathBuf> {
    let own = cache_dir()?.join("tools/bin/helm");
    Ok(if own.exists() {
        own
    } else {
        PathBuf::from("helm")
    })
}

/// Runs helm as the administrator and returns what it printed.
pub async fn helm(plane: &ControlPlane, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program()?);
    command.args(args).env("KUBECONFIG", plane.kubeconfig());
    // It keeps caches in the home directory.
    command.env(
        "HOME",
        plane.kubeconfig().parent().context("a file has a parent")?,
    );
    output(command).await
}

/// `helm template` with these arguments: needs no cluster.
pub async fn template(args: &[&str]) -> Result<String> {
    let mut command = Command::new(program()?);
    command
        .args(["template", RELEASE])
        .arg(path())
        .args(["--namespace", "skyhook"])
        .args(args);
    output(command).await
}

/// `helm lint` with these arguments.
pub async fn lint(args: &[&str]) -> Result<String> {
    let mut command = Command::new(program()?);
    command
        .args(["lint", "--strict"])
        .arg(path())
        .args(["--namespace", "skyhook"])
        .args(args);
    output(command).await
}
