//! The coordinator: a process of this machine with its own service account's token.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent::{rss_from, service_account_token};
use crate::controlplane::ControlPlane;
use crate::process::{Process, tail};
use crate::programs::{COORDINATOR, coordinator_args};
use crate::run::Run;

/// A running coordinator. It is killed when dropped.
#[derive(Debug)]
pub struct Coordinator {
    process: Process,
}

impl Coordinator {
    /// Starts one; `name` tells several apart.
    pub async fn start(run: Arc<Run>, plane: &ControlPlane, name: &str) -> Result<Self> {
        Self::start_with(run, plane, name, &[]).await
    }

    /// Starts one with further arguments.
    pub async fn start_with(
        run: Arc<Run>,
        plane: &ControlPlane,
        name: &str,
        extra: &[&str],
    ) -> Result<Self> {
        Self::start_as(run, plane, name, COORDINATOR, extra).await
    }

    /// Starts one as another service account of the namespace.
    pub async fn start_as(
        run: Arc<Run>,
        plane: &ControlPlane,
        name: &str,
        account: &str,
        extra: &[&str],
    ) -> Result<Self> {
        let token = service_account_token(plane.client(), account, None).await?;
        let kubeconfig = run.scratch().join(format!("{name}.kubeconfig"));
        fs::write(&kubeconfig, plane.kubeconfig_for(&token))?;
        let mut command = Command::new(run.scratch().join("bin").join(COORDINATOR));
        command.args(coordinator_args()).args(extra);
        command
            .env("KUBECONFIG", &kubeconfig)
            .env("RUST_BACKTRACE", "1")
            .env("POD_NAME", name);
        Ok(Self {
            process: Process::spawn(&run, name, &command)?,
        })
    }

    /// SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await.map(drop)
    }

    /// SIGTERM; fails if it does not end well within ten seconds.
    pub async fn stop(&self) -> Result<()> {
        let status = self.process.stop(Duration::from_secs(10)).await?;
        if status.success() {
            return Ok(());
        }
        anyhow::bail!("{COORDINATOR} ended with {status}:\n{}", self.log())
    }

    /// Fails with the end of the log if it has ended.
    pub fn check_alive(&self) -> Result<()> {
        self.process.check_alive()
    }

    /// Stops it where it is, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        use nix::sys::signal::Signal;
        self.process.signal(if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        });
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.pid());
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        rss_from(&status).with_context(|| format!("{path} has no VmRSS"))
    }

    /// Most resident memory so far, in KiB.
    pub fn peak_rss_kib(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.process.pid());
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .with_context(|| format!("{path} has no VmHWM"))?;
        Ok(kib.parse()?)
    }

    /// Processor time used so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.process.pid());
        let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
        // utime and stime are the 14th and 15th field; the second, in brackets, may hold anything.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok());
        let used = ticks(11)
            .zip(ticks(12))
            .with_context(|| format!("{path} has no times"))?;
        Ok((used.0 + used.1) / 100.0)
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        tail(self.process.log(), 40)
    }
}
