//! A virtual machine: a kernel of its own, cgroup v2 only, and what a host of ours cannot do: lose
//! what was not yet synced in a power cut, have a clock of its own, run out of memory.
//!
//! QEMU emulates it in software, because not every machine that builds and tests can do better: a
//! boot takes 20 to 40 seconds. It hangs on the same wire as the hosts, and commands reach it
//! through QEMU's guest agent, whatever its network and clock are.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::task::JoinHandle;

use crate::machine::{Boot, Machine, Power, Switch};
use crate::network::{Link, Network};
use crate::process::{Process, sh, tail};
use crate::run::Run;
use crate::wait::MINUTE;

mod guest;
mod image;
mod qmp;
mod wire;

use guest::Guest;
pub use image::Image;
use qmp::{Button, Event, Qmp};

/// Five levels of page tables cost an emulated machine a twentieth of its time.
const CPU: &str = "max,la57=off";
const BOOT_DEADLINE: Duration = Duration::from_secs(240);

/// A virtual machine. Dropping it takes its power.
#[derive(Debug)]
pub struct Vm {
    inner: Arc<Inner>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Inner {
    run: Arc<Run>,
    name: String,
    image: Image,
    dir: PathBuf,
    link: Link,
    gateway: Ipv4Addr,
    guest: Guest,
    switch: Switch,
    machine_id: Mutex<String>,
    process: Mutex<Option<Arc<Process>>>,
    button: Mutex<Option<Button>>,
}

impl Vm {
    /// Asks systemd inside to reboot and waits for the next boot.
    pub async fn reboot(&self) -> Result<Boot> {
        let before = self.inner.switch.current()?;
        // The answer may go down with the machine: what counts is the next boot.
        if let Err(error) = self.run(&["systemctl", "reboot", "--no-block"]).await
            && self.inner.switch.current().is_ok_and(|now| now == before)
        {
            eprintln!("{}: systemctl reboot: {error:#}", self.inner.name);
        }
        self.wait_up(before.count).await
    }

    /// Power cut: nothing is told, what was not synced is lost, and the power is back at once.
    pub async fn reset(&self) -> Result<Boot> {
        let before = self.inner.switch.current()?;
        let button = locked(&self.inner.button).clone();
        let button = button.with_context(|| format!("{} is off", self.inner.name))?;
        qmp::press(&button, "system_reset").await?;
        self.wait_up(before.count).await
    }

    /// Orderly shutdown.
    pub async fn stop(&self) -> Result<()> {
        // The answer may go down with the machine: what counts is that it goes off.
        let asked = self.run(&["systemctl", "poweroff", "--no-block"]).await;
        let off = tokio::time::timeout(2 * MINUTE, self.inner.switch.wait_off()).await;
        off.with_context(|| {
            let (name, console) = (&self.inner.name, self.console());
            format!("{name} does not go off ({asked:?}):\n{console}")
        })?
    }

    /// Waits for a boot after the `after`th since the power is on.
    pub async fn wait_up(&self, after: u32) -> Result<Boot> {
        let console = || self.console();
        let switch = &self.inner.switch;
        switch.wait_up(after, BOOT_DEADLINE, console).await
    }

    /// The boot that it is in now.
    pub fn current(&self) -> Result<Boot> {
        self.inner.switch.current()
    }

    /// Runs a shell script inside.
    pub async fn sh(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script]).await
    }

    /// Turns the clock by so many seconds, until the next boot.
    pub async fn turn_clock(&self, seconds: i64) -> Result<()> {
        let script = format!("date -s @$(( $(date +%s) + {seconds} ))");
        self.sh(&script).await.map(drop)
    }

    /// Leaves no byte free on its disk; removing this file ends that.
    pub async fn fill_disk(&self) -> Result<&'static str> {
        const FILL: &str = "/var/tmp/harness-fill";
        let script = format!(
            "fallocate -l $(( $(df --output=avail -B1 / | tail -n 1) )) {FILL} || true; \
             cat /dev/zero >>{FILL} 2>/dev/null || true; sync {FILL}"
        );
        self.sh(&script).await?;
        Ok(FILL)
    }

    /// The end of what its console showed.
    pub fn console(&self) -> String {
        self.process()
            .map_or_else(String::new, |process| tail(process.log(), 30))
    }

    fn process(&self) -> Option<Arc<Process>> {
        locked(&self.inner.process).clone()
    }
}

impl Machine for Vm {
    type Disk = Image;

    const OWN_KERNEL: bool = true;

    async fn create(
        run: Arc<Run>,
        network: &Network,
        disk: &Image,
        index: u8,
        name: &str,
        bin: &Path,
    ) -> Result<Self> {
        let link = network.tap(index).await?;
        let dir = run.scratch().join(name);
        fs::create_dir_all(&dir)?;
        disk.overlay(&dir.join("disk.qcow2")).await?;
        let size = sh("du", ["-sm", &bin.to_string_lossy()]).await?;
        let size: u64 = size.split_whitespace().next().unwrap_or_default().parse()?;
        let programs = dir.join("programs.img");
        image::make_disk(bin, &programs, size + size / 10 + 16).await?;
        let inner = Inner {
            name: name.to_owned(),
            image: disk.clone(),
            link,
            gateway: network.gateway(),
            guest: Guest::at(dir.join("guest")),
            switch: Switch::new(name),
            machine_id: Mutex::default(),
            process: Mutex::default(),
            button: Mutex::default(),
            dir,
            run,
        };
        Ok(Self {
            inner: Arc::new(inner),
            keeper: Mutex::default(),
        })
    }

    async fn boot(&self) -> Result<Boot> {
        self.inner.switch.turn_on()?;
        let task = tokio::spawn(keep_running(Arc::clone(&self.inner)));
        *locked(&self.keeper) = Some(task);
        self.wait_up(0).await
    }

    fn name(&self) -> &str {
        &self.inner.name
    }

    fn machine_id(&self) -> String {
        locked(&self.inner.machine_id).clone()
    }

    fn link(&self) -> &Link {
        &self.inner.link
    }

    fn switch(&self) -> &Switch {
        &self.inner.switch
    }

    fn is_reachable(&self) -> bool {
        self.current().is_ok() && !self.inner.link.is_cut()
    }

    async fn run(&self, args: &[&str]) -> Result<String> {
        self.inner.command(args, &[]).await
    }

    async fn read_file(&self, inside: &str) -> Result<String> {
        self.run(&["cat", inside]).await
    }

    async fn write_file(&self, inside: &str, content: &str) -> Result<()> {
        let script = "mkdir -p \"$(dirname \"$1\")\"; cat >\"$1\"";
        let args = ["sh", "-ec", script, "write", inside];
        let written = self.inner.command(&args, content.as_bytes()).await;
        written.map(drop)
    }

    async fn enable(&self, unit: &str, from: &str) -> Result<()> {
        let wants = "/etc/systemd/system/multi-user.target.wants/";
        let link = ["ln", "-sf", &format!("{from}/{unit}"), wants];
        self.run(&link).await.map(drop)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(keeper) = locked(&self.keeper).take() {
            keeper.abort();
        }
        locked(&self.inner.process).take();
    }
}

impl Inner {
    /// A command in the boot that the machine is in now; it fails when that ends.
    async fn command(&self, args: &[&str], input: &[u8]) -> Result<String> {
        const ENV: [&str; 3] = ["/usr/bin/env", "-i", crate::host::PATH];
        let boot = self.switch.current()?;
        let mut power = self.switch.watch();
        let over = power.wait_for(|now| *now != Power::Up(boot.clone()));
        let args = [&ENV, args].concat();
        let done = tokio::select! {
            done = self.guest.exec(&args, input) => done,
            _ = over => Err(anyhow::anyhow!("{args:?}: its boot ended")),
        };
        done.with_context(|| format!("on {}", self.name))
    }

    /// The boot, once its services run, and the machine ID that it has.
    async fn find_boot(&self, count: u32) -> (Boot, String) {
        const ASK: [&str; 4] = [
            "/bin/cat",
            "/run/harness-up",
            "/proc/sys/kernel/random/boot_id",
            "/etc/machine-id",
        ];
        self.guest.forget().await;
        loop {
            if let Ok(said) = self.guest.exec(&ASK, &[]).await
                && let Some((id, machine_id)) = said.trim().split_once('\n')
            {
                let boot = Boot {
                    id: id.to_owned(),
                    leader: 0,
                    count,
                };
                return (boot, machine_id.to_owned());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn qemu(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-machine", "q35", "-display", "none"]);
        // Two machines run at a time on two cores: with more processors each would wait for its own threads.
        command.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "1"]);
        command.args(["-m", &self.image.memory_mib.to_string()]);
        command.args(["-serial", "stdio", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(self.image.kernel());
        command.arg("-initrd").arg(self.image.initrd());
        let address = self.link.address;
        command.arg("-append").arg(format!(
            "console=ttyS0 panic=-1 root=/dev/vda rw quiet net.ifnames=0 \
             systemd.unified_cgroup_hierarchy=1 systemd.hostname={} \
             harness.address={address}/24 harness.gateway={}",
            self.name, self.gateway
        ));
        let drive = |file: &str, id: &str, more: &str| {
            let file = self.dir.join(file);
            format!("file={},if=none,id={id},{more}", file.display())
        };
        command.args(["-device", "virtio-blk-pci,drive=disk", "-drive"]);
        // What the guest synced is in this machine's memory: a cut of its power does not lose it.
        command.arg(drive("disk.qcow2", "disk", "format=qcow2,cache=unsafe"));
        command.args(["-device", "virtio-blk-pci,drive=programs", "-drive"]);
        let programs = drive("programs.img", "programs", "format=raw,readonly=on");
        command.arg(programs);
        let tap = self.link.device();
        command
            .arg("-netdev")
            .arg(format!("tap,id=wire,ifname={tap},script=no,downscript=no"));
        let last = address.octets()[3];
        command.arg("-device").arg(format!(
            "virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:21:{:02x}:{last:02x}",
            address.octets()[2]
        ));
        let socket = |name: &str| {
            let path = self.dir.join(name);
            format!("{},server=on,wait=off", path.display())
        };
        command.args(["-device", "virtio-serial-pci", "-chardev"]);
        command.arg(format!("socket,id=guest,path={}", socket("guest")));
        command.args([
            "-device",
            "virtserialport,chardev=guest,name=org.qemu.guest_agent.0",
        ]);
        command.arg("-qmp").arg(format!("unix:{}", socket("qmp")));
        command
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the machine until it goes off; its reboots just happen.
async fn keep_running(inner: Arc<Inner>) {
    let end = match run_once(&inner).await {
        Ok(()) => Power::Off,
        Err(error) => Power::Failed(format!("{error:#}")),
    };
    locked(&inner.process).take();
    locked(&inner.button).take();
    inner.switch.set(end);
}

async fn run_once(inner: &Inner) -> Result<()> {
    let console = format!("{}.console", inner.name);
    let process = Arc::new(Process::spawn(&inner.run, &console, &inner.qemu())?);
    let slot = Arc::clone(&process);
    *locked(&inner.process) = Some(slot);
    let socket = inner.dir.join("qmp");
    // A socket that is left from before does not answer.
    let (mut qmp, button) = loop {
        process.check_alive()?;
        match Qmp::connect(&socket).await {
            Ok(connected) => break connected,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    *locked(&inner.button) = Some(button);
    let mut count = 1;
    let mut booting = Box::pin(inner.find_boot(count));
    let mut is_up = false;
    loop {
        tokio::select! {
            biased;
            status = process.exited() => {
                let status = status?;
                // 0: powered off; no code: killed by us.
                if !matches!(status.code(), Some(0) | None) {
                    bail!("QEMU ended with {status}: {}", tail(process.log(), 10));
                }
                return Ok(());
            }
            event = qmp.event() => match event {
                Ok(Event::Reset) => {
                    inner.switch.set(Power::Booting);
                    // One reset may be told more than once.
                    count += u32::from(is_up);
                    booting = Box::pin(inner.find_boot(count));
                    is_up = false;
                }
                // It goes with the process, whose end says more.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            (boot, machine_id) = &mut booting, if !is_up => {
                *locked(&inner.machine_id) = machine_id;
                inner.switch.set(Power::Up(boot));
                is_up = true;
            }
        }
    }
}

/// Why virtual machines cannot run here, or None.
pub async fn missing() -> Option<String> {
    for tool in ["qemu-system-x86_64", "qemu-img", "mkfs.ext4"] {
        let found = sh("sh", ["-c", &format!("command -v {tool}")]).await;
        if found.is_err() {
            return Some(format!("{tool} is not installed: run `make setup`"));
        }
    }
    let tun = Path::new("/dev/net/tun").exists();
    (!tun).then(|| "there is no /dev/net/tun".to_owned())
}
