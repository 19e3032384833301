//! Where the control plane's programs are: `KUBEBUILDER_ASSETS`, or our own build of them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::output;

/// A directory with `etcd`, `kube-apiserver`, `kubectl` and, unless it came from
/// `KUBEBUILDER_ASSETS`, `kube-controller-manager`, `kube-scheduler` and `kubelet`.
#[derive(Debug, Clone)]
pub struct Assets(PathBuf);

impl Assets {
    /// Builds the control plane first if it is not cached, which takes minutes.
    pub async fn locate() -> Result<Self> {
        if let Some(dir) = std::env::var_os("KUBEBUILDER_ASSETS") {
            let dir = PathBuf::from(dir);
            for program in ["etcd", "kube-apiserver", "kubectl"] {
                if !dir.join(program).exists() {
                    bail!("KUBEBUILDER_ASSETS={} has no {program}", dir.display());
                }
            }
            return Ok(Self(dir));
        }
        let build = crate::source::source("integration/controlplane/build");
        let printed = output(Command::new(build))
            .await
            .context("cannot build the control plane")?;
        Ok(Self(PathBuf::from(printed.trim())))
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}
