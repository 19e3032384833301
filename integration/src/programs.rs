//! The two programs under test: where they are, and the one place that knows their command lines.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::install::NAMESPACE;
use crate::run::Run;
use crate::source::source;

pub const AGENT: &str = "skyhook-agent";
pub const COORDINATOR: &str = "skyhook-coordinator";

/// Where the agent finds its credentials on a host.
pub(crate) const AGENT_KUBECONFIG: &str = "/etc/skyhook-agent/kubeconfig";
/// Where the agent's log is on a host.
pub const AGENT_LOG: &str = "/var/log/skyhook-agent.log";

/// Arguments of the coordinator; its credentials come in `KUBECONFIG`.
pub(crate) fn coordinator_args() -> Vec<String> {
    ["--namespace", NAMESPACE].map(str::to_owned).to_vec()
}

/// What every agent of a cluster is told besides its node: where plain HTTP is spoken.
pub(crate) fn agent_args(registry: SocketAddr) -> Vec<String> {
    vec![format!("--insecure-registry={registry}")]
}

/// The unit that runs the agent on a host. Only the agent is killed when the unit stops: the
/// supervisors of running steps outlive it, as they do when it is a pod.
pub(crate) fn agent_unit(node: &str, extra: &[String]) -> String {
    let extra = extra.join(" ");
    format!(
        "[Unit]
Description=Skyhook node agent
After=dbus.service
StartLimitIntervalSec=0

[Service]
ExecStart=/opt/skyhook/{AGENT} run --node-name {node} --namespace {NAMESPACE} --host-root / {extra}
Environment=KUBECONFIG={AGENT_KUBECONFIG} RUST_BACKTRACE=1
Restart=always
RestartSec=200ms
KillMode=process
StandardOutput=append:{AGENT_LOG}
StandardError=append:{AGENT_LOG}

[Install]
WantedBy=multi-user.target
"
    )
}

/// Copies the built programs into the run, so that a rebuild in its midst changes nothing, and
/// returns the directory, for [`Host::create`](crate::host::Host::create).
///
/// They are looked for in `SKYHOOK_BIN_DIR`, else beside this program, where cargo puts them.
pub fn collect(run: &Run) -> Result<PathBuf> {
    let dir = run.scratch().join("bin");
    fs::create_dir_all(&dir)?;
    for program in [AGENT, COORDINATOR] {
        fs::copy(find(program)?, dir.join(program))
            .with_context(|| format!("cannot copy {program}"))?;
    }
    Ok(dir)
}

/// Directory of the programs of the version before this one, built when need be; none where the clone does not have it.
pub async fn previous() -> Result<Option<PathBuf>> {
    let mut build = tokio::process::Command::new(source("integration/previous/build"));
    let output = build
        .stderr(std::process::Stdio::inherit())
        .output()
        .await?;
    if output.status.code() == Some(3) {
        return Ok(None);
    }
    if !output.status.success() {
        bail!("integration/previous/build ended with {}", output.status);
    }
    let directory = String::from_utf8(output.stdout)?;
    Ok(Some(PathBuf::from(directory.trim())))
}

fn find(program: &str) -> Result<PathBuf> {
    let mut places = Vec::new();
    if let Some(dir) = std::env::var_os("SKYHOOK_BIN_DIR") {
        places.push(PathBuf::from(dir));
    } else {
        // Test programs are one directory below.
        let own = std::env::current_exe()?;
        places.extend(own.ancestors().skip(1).take(2).map(Path::to_owned));
    }
    let found = places
        .iter()
        .map(|place| place.join(program))
        .find(|path| path.exists());
    let Some(path) = found else {
        bail!(
            "no {program} in {places:?}: run `cargo build -p skyhook-nodeagent \
             -p skyhook-coordinator` first, or set SKYHOOK_BIN_DIR"
        );
    };
    Ok(path)
}
