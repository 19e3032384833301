//! What hosts and virtual machines have in common: a computer with systemd that has power, a wire,
//! files and commands. Node, agent and cluster are written for either.

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::watch;

use crate::network::{Link, Network};
use crate::run::Run;

/// Where the machine is between off and on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Power {
    Off,
    Booting,
    Up(Boot),
    /// It did not come up, or what runs it failed.
    Failed(String),
}

/// One boot of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    pub id: String,
    /// Process number of its systemd, in this machine's numbers. 0 for a virtual machine: its
    /// processes have no numbers here.
    pub leader: u32,
    /// 1 for the first.
    pub count: u32,
}

/// A machine that the harness runs. It has a second implementation because the kernel below
/// matters: [`Host`](crate::host::Host) shares ours, [`Vm`](crate::vm::Vm) has one of its own.
pub trait Machine: Debug + Send + Sync + Sized + 'static {
    /// What it starts from.
    type Disk: Debug + Send + Sync;

    /// Whether its kernel is its own: it has cgroup v2 alone, and needs time for everything.
    const OWN_KERNEL: bool;

    /// Lays out its disk and network; it is off. `bin` shows up inside, read-only, as
    /// `/opt/skyhook`.
    fn create(
        run: Arc<Run>,
        network: &Network,
        disk: &Self::Disk,
        index: u8,
        name: &str,
        bin: &Path,
    ) -> impl Future<Output = Result<Self>> + Send;

    /// Turns it on and waits until its services run.
    fn boot(&self) -> impl Future<Output = Result<Boot>> + Send;

    fn name(&self) -> &str;

    /// Its `/etc/machine-id`, as the kubelet reports it in its current boot.
    fn machine_id(&self) -> String;

    fn link(&self) -> &Link;

    fn switch(&self) -> &Switch;

    /// Whether it could talk to the API server now.
    fn is_reachable(&self) -> bool;

    /// Runs a program inside and returns its output.
    fn run(&self, args: &[&str]) -> impl Future<Output = Result<String>> + Send;

    fn read_file(&self, inside: &str) -> impl Future<Output = Result<String>> + Send;

    /// Writes a file, with the directories above it.
    fn write_file(&self, inside: &str, content: &str) -> impl Future<Output = Result<()>> + Send;

    /// Makes a unit, whose file is in `from`, start with every boot.
    fn enable(&self, unit: &str, from: &str) -> impl Future<Output = Result<()>> + Send;

    /// Gives it a default route, where it has none.
    fn route_through(&self, _: Ipv4Addr) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    fn address(&self) -> Ipv4Addr {
        self.link().address
    }
}

/// Identifies one run of a unit.
pub async fn invocation<M: Machine>(machine: &Arc<M>, unit: &str) -> Result<String> {
    let show = [
        "systemctl",
        "show",
        "--property=InvocationID",
        "--value",
        unit,
    ];
    machine.run(&show).await
}

/// The power of one machine: what it is, and waiting for what it becomes.
#[derive(Debug)]
pub struct Switch {
    name: String,
    power: watch::Sender<Power>,
}

impl Switch {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            power: watch::Sender::new(Power::Off),
        }
    }

    pub(crate) fn set(&self, power: Power) {
        self.power.send_replace(power);
    }

    /// Off becomes Booting; fails when it is on already.
    pub(crate) fn turn_on(&self) -> Result<()> {
        if !matches!(*self.power.borrow(), Power::Off | Power::Failed(_)) {
            bail!("{} is on already", self.name);
        }
        self.set(Power::Booting);
        Ok(())
    }

    /// Changes as the machine boots, reboots and goes off.
    pub fn watch(&self) -> watch::Receiver<Power> {
        self.power.subscribe()
    }

    /// The boot that the machine is in now.
    pub fn current(&self) -> Result<Boot> {
        match &*self.power.borrow() {
            Power::Up(boot) => Ok(boot.clone()),
            other @ (Power::Off | Power::Booting | Power::Failed(_)) => {
                bail!("{} is not up: {other:?}", self.name)
            }
        }
    }

    /// Waits for a boot after the `after`th; a failure shows the end of the console.
    pub(crate) async fn wait_up(
        &self,
        after: u32,
        within: Duration,
        console: impl Fn() -> String,
    ) -> Result<Boot> {
        let mut power = self.watch();
        let done = |power: &Power| match power {
            Power::Up(boot) => boot.count > after,
            Power::Failed(_) => true,
            Power::Off | Power::Booting => false,
        };
        let Ok(reached) = tokio::time::timeout(within, power.wait_for(done)).await else {
            bail!("{} is not up after {within:?}:\n{}", self.name, console());
        };
        match reached?.clone() {
            Power::Up(boot) => Ok(boot),
            Power::Failed(why) => bail!("{}: {why}", self.name),
            Power::Off | Power::Booting => unreachable!("excluded by the condition waited for"),
        }
    }

    pub(crate) async fn wait_off(&self) -> Result<()> {
        let off = |power: &Power| matches!(power, Power::Off | Power::Failed(_));
        self.watch().wait_for(off).await?;
        Ok(())
    }
}
