//! The chart, by helm, on a control plane of the harness.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::controlplane::{ControlPlane, free_port};
use crate::process::{Process, output};
use crate::rootfs::cache_dir;
use crate::run::Run;

/// Release and namespace that the seed's commands install to.
pub const RELEASE: &str = "skyhook";
/// The Deployment's name in that release.
pub const COORDINATOR: &str = "skyhook-skyhook-operator-controller-manager";
/// The DaemonSet's name in that release.
pub const AGENT: &str = "skyhook-skyhook-operator-agent";

/// `helm/skyhook-operator`.
pub fn path() -> PathBuf {
    crate::source::source("helm/skyhook-operator")
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

/// A Helm repository with the chart, served to this machine.
#[derive(Debug)]
pub struct Repository {
    pub url: String,
    _server: Process,
}

/// Packages the chart and serves it.
pub async fn serve(run: &Run) -> Result<Repository> {
    let dir = run.scratch().join("charts");
    std::fs::create_dir_all(&dir)?;
    for (verb, rest) in [("package", Some(path())), ("repo", None)] {
        let mut command = Command::new(program()?);
        command.arg(verb).env("HOME", &dir).current_dir(&dir);
        match rest {
            Some(chart) => command.arg(chart),
            None => command.args(["index", "."]),
        };
        output(command).await?;
    }
    let port = free_port(Ipv4Addr::LOCALHOST)?;
    let mut command = Command::new("python3");
    command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
    command.arg(&dir).arg(port.to_string());
    let server = Process::spawn(run, "charts", &command)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    server.wait_listening(address).await?;
    Ok(Repository {
        url: format!("http://127.0.0.1:{port}"),
        _server: server,
    })
}

/// Runs `integration/seed/commands.sh` and returns what it showed.
pub async fn seed(plane: &ControlPlane, repository: &Repository) -> Result<String> {
    let home = plane.kubeconfig().with_file_name("seed");
    std::fs::create_dir_all(home.join(".docker"))?;
    std::fs::write(home.join(".docker/config.json"), r#"{"auths": {}}"#)?;
    let script = crate::source::source("integration/seed/commands.sh");
    let mut places = vec![plane.assets().program("")];
    places.extend(program()?.parent().map(Path::to_owned));
    places.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let mut command = Command::new("bash");
    command.arg(script).env("HOME", &home);
    command.env("PATH", std::env::join_paths(places)?);
    command.env("KUBECONFIG", plane.kubeconfig());
    command.env("CHART_REPOSITORY", &repository.url);
    command.env("CHART_VERSION", env!("CARGO_PKG_VERSION"));
    output(command).await
}

/// `helm template` with these arguments: needs no cluster.
pub async fn template(args: &[&str]) -> Result<String> {
    template_of(&path(), args).await
}

/// [`template`] of another chart than ours.
pub async fn template_of(chart: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program()?);
    command
        .args(["template", RELEASE])
        .arg(chart)
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
