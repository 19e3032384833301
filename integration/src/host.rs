//! A real host: systemd as PID 1 in its own namespaces, cgroups, network and file system.
//!
//! It reboots for real (new boot ID, everything in memory gone), can lose its power, be frozen
//! and be cut off from the network. What is different from a machine: the kernel is shared, and a
//! power cut loses no data that was written but not yet synced.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::machine::{Boot, Machine, Power, Switch};
use crate::network::{Link, Network};
use crate::process::{Process, output, tail};
use crate::rootfs::Rootfs;
use crate::run::Run;

mod cgroup;

use cgroup::Cgroup;

/// What systemd-nspawn ends with when the system inside asked for a reboot.
const REBOOT: i32 = 133;
const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// A host. Dropping it takes its power.
#[derive(Debug)]
pub struct Host {
    inner: Arc<Inner>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Inner {
    run: Arc<Run>,
    name: String,
    machine: String,
    machine_id: String,
    link: Link,
    root: PathBuf,
    bin: PathBuf,
    cgroup: Cgroup,
    frozen: AtomicBool,
    switch: Switch,
    process: Mutex<Option<Arc<Process>>>,
}

impl Host {
    /// Lays out a host's disk and network; it is off.
    ///
    /// `bin` is a directory of programs that shows up inside, read-only, as `/opt/skyhook`.
    pub async fn create(
        run: Arc<Run>,
        network: &Network,
        rootfs: &Rootfs,
        index: u8,
        name: &str,
        bin: &Path,
    ) -> Result<Self> {
        let link = network.attach(index).await?;
        let machine = format!("{}h{index}", network.name());
        let dir = run.scratch().join(name);
        let root = rootfs.copy(&run, &dir).await?;
        let machine_id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let machine_id = machine_id.trim().replace('-', "");
        fs::write(root.join("etc/machine-id"), format!("{machine_id}\n"))?;
        fs::write(root.join("etc/hostname"), format!("{name}\n"))?;
        fs::write(
            root.join("etc/hosts"),
            format!("127.0.0.1 localhost {name}\n"),
        )?;
        let cgroup = Cgroup::create(&run, &format!("skyhook-{machine}"))?;
        let inner = Inner {
            run,
            name: name.to_owned(),
            machine,
            machine_id,
            link,
            root,
            bin: bin.to_owned(),
            cgroup,
            frozen: AtomicBool::new(false),
            switch: Switch::new(name),
            process: Mutex::new(None),
        };
        Ok(Self {
            inner: Arc::new(inner),
            keeper: Mutex::new(None),
        })
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn machine_id(&self) -> &str {
        &self.inner.machine_id
    }

    pub fn link(&self) -> &Link {
        &self.inner.link
    }

    /// Changes as the host boots, reboots and goes off.
    pub fn power(&self) -> watch::Receiver<Power> {
        self.inner.switch.watch()
    }

    pub fn is_frozen(&self) -> bool {
        self.inner.frozen.load(Ordering::SeqCst)
    }

    /// Turns the host on and waits until its services run. From then on reboots just happen.
    pub async fn boot(&self) -> Result<Boot> {
        self.power_on()?;
        self.wait_up(0).await
    }

    /// Turns the host on without waiting.
    pub fn power_on(&self) -> Result<()> {
        self.inner.switch.turn_on()?;
        let task = tokio::spawn(keep_running(Arc::clone(&self.inner)));
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        *keeper = Some(task);
        Ok(())
    }

    /// Waits for a boot after the `after`th.
    pub async fn wait_up(&self, after: u32) -> Result<Boot> {
        let console = || self.console();
        let switch = &self.inner.switch;
        switch.wait_up(after, BOOT_DEADLINE, console).await
    }

    /// The boot that the host is in now.
    pub fn current(&self) -> Result<Boot> {
        self.inner.switch.current()
    }

    /// Asks systemd inside to reboot and waits for the next boot.
    pub async fn reboot(&self) -> Result<Boot> {
        let before = self.current()?;
        // The connection goes down with the host: what counts is the next boot.
        if let Err(error) = self.exec(["systemctl", "reboot"]).await
            && self.current().is_ok_and(|now| now == before)
        {
            eprintln!("{}: systemctl reboot: {error}", self.inner.name);
        }
        self.wait_up(before.count).await
    }

    /// Power cut: everything on the host is gone at once, nothing is told.
    pub async fn kill(&self) -> Result<()> {
        let process = self.process();
        self.inner.cgroup.kill()?;
        if let Some(process) = process {
            process.kill().await?;
        }
        self.wait_off().await
    }

    /// Orderly shutdown.
    pub async fn stop(&self) -> Result<()> {
        self.thaw()?;
        if let Some(process) = self.process() {
            // It hands SIGTERM on as a request to power off.
            process.stop(Duration::from_secs(30)).await?;
        }
        self.wait_off().await
    }

    async fn wait_off(&self) -> Result<()> {
        self.inner.frozen.store(false, Ordering::SeqCst);
        self.inner.cgroup.freeze(false)?;
        self.inner.switch.wait_off().await
    }

    /// Stops every process of the host where it is; time goes on without it.
    pub fn freeze(&self) -> Result<()> {
        self.inner.frozen.store(true, Ordering::SeqCst);
        self.inner.cgroup.freeze(true)
    }

    pub fn thaw(&self) -> Result<()> {
        self.inner.cgroup.freeze(false)?;
        self.inner.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Cuts the network; see [`Link::cut`].
    pub async fn cut_off(&self) -> Result<()> {
        self.inner.link.cut().await
    }

    pub async fn reconnect(&self) -> Result<()> {
        self.inner.link.reconnect().await
    }

    /// Whether it could talk to the API server now.
    pub fn is_reachable(&self) -> bool {
        self.current().is_ok() && !self.is_frozen() && !self.inner.link.is_cut()
    }

    /// Runs a program inside, in all of the host's namespaces, and returns its output.
    pub async fn exec<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        self.run(&args).await
    }

    /// Runs a shell script inside.
    pub async fn sh(&self, script: &str) -> Result<String> {
        self.exec(["sh", "-ec", script]).await
    }

    /// Where a file of the host's disk is on this machine, on or off. Not for what is mounted over
    /// the disk inside: `/run`, `/tmp`, `/proc`, `/sys`, `/dev`.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.inner.root.join(inside.trim_start_matches('/'))
    }

    /// Reads a file of the host's disk.
    pub fn read(&self, inside: &str) -> Result<String> {
        let path = self.path(inside);
        fs::read_to_string(&path).with_context(|| format!("{}:{inside}", self.inner.name))
    }

    /// Writes a file of the host's disk, with the directories above it.
    pub fn write(&self, inside: &str, content: &str) -> Result<()> {
        let path = self.path(inside);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, content).with_context(|| format!("{}:{inside}", self.inner.name))
    }

    /// The end of what its console showed.
    pub fn console(&self) -> String {
        self.process()
            .map_or_else(String::new, |process| tail(process.log(), 30))
    }

    fn process(&self) -> Option<Arc<Process>> {
        self.inner
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Machine for Host {
    type Disk = Rootfs;

    const OWN_KERNEL: bool = false;

    async fn create(
        run: Arc<Run>,
        network: &Network,
        disk: &Rootfs,
        index: u8,
        name: &str,
        bin: &Path,
    ) -> Result<Self> {
        Self::create(run, network, disk, index, name, bin).await
    }

    async fn boot(&self) -> Result<Boot> {
        self.boot().await
    }

    fn name(&self) -> &str {
        self.name()
    }

    fn machine_id(&self) -> String {
        self.machine_id().to_owned()
    }

    fn link(&self) -> &Link {
        self.link()
    }

    fn switch(&self) -> &Switch {
        &self.inner.switch
    }

    fn is_reachable(&self) -> bool {
        self.is_reachable()
    }

    async fn run(&self, args: &[&str]) -> Result<String> {
        let leader = self.current()?.leader.to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &leader, "-a", "--", "env", "-i", PATH])
            .args(args);
        output(command)
            .await
            .with_context(|| format!("on {}", self.inner.name))
    }

    async fn read_file(&self, inside: &str) -> Result<String> {
        self.read(inside)
    }

    async fn write_file(&self, inside: &str, content: &str) -> Result<()> {
        self.write(inside, content)
    }

    async fn route_through(&self, gateway: Ipv4Addr) -> Result<()> {
        self.inner.link.route_through(gateway).await
    }

    async fn enable(&self, unit: &str, from: &str) -> Result<()> {
        let wants = self.path("/etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants)?;
        let link = wants.join(unit);
        if link.symlink_metadata().is_err() {
            symlink(format!("{from}/{unit}"), link)?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            keeper.abort();
        }
        if let Err(error) = self.inner.cgroup.kill() {
            eprintln!("{}: {error:#}", self.inner.name);
        }
        self.inner
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Boots the host, and again after each reboot, until it goes off.
async fn keep_running(inner: Arc<Inner>) {
    let mut count = 0;
    loop {
        count += 1;
        let end = match one_boot(&inner, count).await {
            Ok(Some(REBOOT)) => {
                inner.switch.set(Power::Booting);
                continue;
            }
            // 0: powered off; no code: killed by us.
            Ok(Some(0) | None) => Power::Off,
            Ok(Some(code)) => Power::Failed(format!("systemd-nspawn ended with status {code}")),
            Err(error) => Power::Failed(format!("{error:#}")),
        };
        inner
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        inner.switch.set(end);
        return;
    }
}

/// Returns nspawn's exit code, or None when it was killed.
async fn one_boot(inner: &Arc<Inner>, count: u32) -> Result<Option<i32>> {
    let console = format!("{}.console", inner.name);
    let process = Arc::new(Process::spawn(&inner.run, &console, &nspawn(inner))?);
    let slot = Arc::clone(&process);
    *inner.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(slot);
    let booted = async {
        loop {
            if let Some(boot) = find_boot(process.pid(), count) {
                inner.switch.set(Power::Up(boot));
                return std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        status = process.exited() => {
            let status = status?;
            if !matches!(status.code(), Some(0 | REBOOT) | None) {
                bail!("{status}: {}", tail(process.log(), 10));
            }
            Ok(status.code())
        }
        () = booted => unreachable!("it never ends"),
    }
}

/// The boot, once its services run.
fn find_boot(nspawn: u32, count: u32) -> Option<Boot> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let leader: u32 = children.split_whitespace().next()?.parse().ok()?;
    let root = PathBuf::from(format!("/proc/{leader}/root"));
    fs::metadata(root.join("run/harness-up")).ok()?;
    let id = fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).ok()?;
    Some(Boot {
        id: id.trim().to_owned(),
        leader,
        count,
    })
}

fn nspawn(inner: &Inner) -> Command {
    let mut command = Command::new("sh");
    // Joins the host's cgroups, then becomes nspawn.
    command.args([
        "-ec",
        "while [ \"$1\" != -- ]; do echo $$ >\"$1/cgroup.procs\"; shift; done; shift; exec \"$@\"",
        "host",
    ]);
    command.args(inner.cgroup.dirs());
    command.args([
        "--",
        "systemd-nspawn",
        "--boot",
        "--register=no",
        "--keep-unit",
        "--quiet",
    ]);
    command.arg("-D").arg(&inner.root);
    command.arg(format!("--machine={}", inner.machine));
    command.arg(format!("--hostname={}", inner.name));
    command.arg(format!("--uuid={}", inner.machine_id));
    command.arg(format!(
        "--network-namespace-path={}",
        inner.link.netns_path().display()
    ));
    command.arg(format!("--bind-ro={}:/opt/skyhook", inner.bin.display()));
    command.args([
        "--capability=all",
        "--system-call-filter=@keyring @mount @privileged bpf",
        "--bind=/dev/kmsg",
        "--console=pipe",
        "--resolv-conf=off",
        "--timezone=off",
    ]);
    command.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1");
    command
}
