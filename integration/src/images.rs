//! Images for nodes that cannot reach any registry: archives that containerd imports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::output;

/// The version that the chart's images have when nothing else is said.
pub const TAG: &str = concat!("v", env!("CARGO_PKG_VERSION"));
/// Image of busybox, for pods that stand for somebody's workload.
pub const BUSYBOX: &str = "localhost/skyhook-harness/busybox:1";
/// Archives of [`build`], by file name.
pub const ARCHIVES: [&str; 4] = ["pause.tar", "busybox.tar", "coordinator.tar", "agent.tar"];

/// Writes the archives of [`ARCHIVES`] into `out`: our programs in `bin` as the chart names them,
/// and what pods need besides.
pub async fn build(bin: &Path, out: &Path) -> Result<()> {
    let script = script();
    let mut command = Command::new(&script);
    command.arg(bin).arg(out).arg(TAG);
    output(command).await?;
    let mut command = Command::new(script);
    command.args(["--busybox", "/bin/busybox"]).arg(out);
    output(command).await.map(drop)
}

/// Size of an archive in bytes: what a node downloads, since layers are compressed in it.
pub fn size(out: &Path, archive: &str) -> Result<u64> {
    let path = out.join(archive);
    let found = fs::metadata(&path).with_context(|| path.display().to_string())?;
    Ok(found.len())
}

fn script() -> PathBuf {
    crate::source::source("images/build")
}
