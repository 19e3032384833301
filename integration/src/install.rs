//! What the chart would install before our programs run: CRDs, namespace, accounts and roles.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::controlplane::ControlPlane;
use crate::source::source;

/// Where our programs and their objects live.
pub const NAMESPACE: &str = "skyhook";

/// Applies all of it and waits until the API server serves our kinds.
pub async fn install(plane: &ControlPlane) -> Result<()> {
    let crds = source("helm/skyhook-operator/generated/crds");
    let yaml = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    };
    let listed = fs::read_dir(&crds).with_context(|| format!("no {}", crds.display()))?;
    if !listed.flatten().any(|entry| yaml(&entry.path())) {
        bail!("{} holds no CRDs: run `make gen`", crds.display());
    }
    plane
        .kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()])
        .await?;
    for manifest in [
        include_str!("../manifests/namespace.yaml"),
        include_str!("../manifests/coordinator.yaml"),
        include_str!("../manifests/agent.yaml"),
    ] {
        apply(plane, manifest).await?;
    }
    await_crds(plane).await
}

/// Waits until objects of all CRDs can be made.
pub async fn await_crds(plane: &ControlPlane) -> Result<()> {
    let wait = [
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ];
    plane.kubectl(&wait).await.map(drop)
}

/// `kubectl apply` of a manifest's text.
pub async fn apply(plane: &ControlPlane, manifest: &str) -> Result<String> {
    let mut file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    std::io::Write::write_all(&mut file, manifest.as_bytes())?;
    plane
        .kubectl(&["apply", "-f", &file.path().to_string_lossy()])
        .await
}
