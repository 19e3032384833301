//! The hosts' file system: one debootstrap tree, cached under the home directory, with an overlay
//! per host on top.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use skyhook_crds::installed::hex;

use crate::process::{output, sh};
use crate::run::{Leftover, Run};

/// The last line is for hosts that run a kubelet; on others nothing of it is started.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,procps,iproute2,kmod,udev,cron,rsyslog,\
    containerd,runc,containernetworking-plugins,iptables";

/// Units that their packages start and that only some hosts want.
const NOT_STARTED: &[&str] = &["containerd.service"];

const MASKED: &[&str] = &[
    "console-getty.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    // They would replay the machine's own devices and load modules into its kernel.
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
];

/// Units that every host has.
const UNITS: &[(&str, &str)] = &[
    (
        "harness-cgroups.service",
        include_str!("host/harness-cgroups.service"),
    ),
    (
        "harness-up.service",
        include_str!("host/harness-up.service"),
    ),
];

/// A tree that hosts boot from. It is never written to once it is complete.
#[derive(Debug, Clone)]
pub struct Rootfs(PathBuf);

impl Rootfs {
    /// Builds the tree if it is not cached, which takes a minute or two.
    ///
    /// It is of the same release as this machine where debootstrap knows that (the programs under
    /// test need a libc at least as new as the one they were linked with), else of Debian 12.
    pub async fn locate() -> Result<Self> {
        let suite = std::env::var("SKYHOOK_TEST_SUITE").unwrap_or_else(|_| suite());
        let cache = cache_dir()?.join("rootfs");
        let tree = cache.join(format!("{suite}-{}", key(&suite)));
        if tree.join("usr").exists() {
            return Ok(Self(tree));
        }
        fs::create_dir_all(&cache)?;
        // Two test programs may start at once: one builds, the other waits.
        let lock = fs::File::create(cache.join("lock"))?;
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
        if !tree.join("usr").exists() {
            let work = cache.join(format!("{suite}.partial"));
            if work.exists() {
                fs::remove_dir_all(&work)?;
            }
            eprintln!(
                "building the hosts' tree {} (a minute or two)",
                tree.display()
            );
            let mut command = Command::new("debootstrap");
            command.args([
                "--variant=minbase",
                &format!("--include={PACKAGES}"),
                &suite,
            ]);
            command.arg(&work).current_dir("/");
            output(command).await.context("debootstrap failed")?;
            prepare(&work)?;
            fs::rename(&work, &tree)?;
        }
        drop(lock);
        Ok(Self(tree))
    }

    /// Lays a writable copy at `dir/root` and returns that path.
    pub async fn copy(&self, run: &Run, dir: &Path) -> Result<PathBuf> {
        let (upper, work, root) = (dir.join("upper"), dir.join("work"), dir.join("root"));
        for path in [&upper, &work, &root] {
            fs::create_dir_all(path)?;
        }
        run.record(Leftover::Mount(&root))?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.0.display(),
            upper.display(),
            work.display()
        );
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&root);
        if output(mount).await.is_err() {
            // No overlay here (inside another one, or no driver): a real copy does.
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto", "-T"])
                .arg(&self.0)
                .arg(&root);
            output(copy).await?;
        }
        Ok(root)
    }
}

/// Where everything that is slow to make is kept: `SKYHOOK_CACHE` or `~/.cache/skyhook`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SKYHOOK_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home = std::env::var_os("HOME").context("HOME is not set, nor is SKYHOOK_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/skyhook"))
}

/// Why hosts cannot be booted here, or None.
pub async fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("hosts need root".to_owned());
    }
    for tool in [
        "debootstrap",
        "docker-registry",
        "ip",
        "nsenter",
        "setpriv",
        "skopeo",
        "systemd-nspawn",
    ] {
        if sh("sh", ["-c", &format!("command -v {tool}")])
            .await
            .is_err()
        {
            return Some(format!("{tool} is not installed: run `make setup`"));
        }
    }
    None
}

fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let known = |name: &&str| {
        Path::new("/usr/share/debootstrap/scripts")
            .join(name)
            .exists()
    };
    codename.filter(known).unwrap_or("bookworm").to_owned()
}

/// Changes with whatever goes into the tree.
fn key(suite: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(suite);
    hash.update(PACKAGES);
    for part in MASKED
        .iter()
        .chain(NOT_STARTED)
        .chain(UNITS.iter().flat_map(|(name, text)| [name, text]))
    {
        hash.update(part);
    }
    hex(&hash.finalize()[..6])
}

/// What is the same on every host and saves time at boot.
fn prepare(tree: &Path) -> Result<()> {
    if fs::metadata(tree.join("usr/lib/systemd/systemd"))
        .map(|file| file.len())
        .unwrap_or(0)
        == 0
    {
        bail!("{} holds no systemd", tree.display());
    }
    let units = tree.join("etc/systemd/system");
    for unit in MASKED {
        let path = units.join(unit);
        if path.symlink_metadata().is_err() {
            symlink("/dev/null", path)?;
        }
    }
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    for (unit, text) in UNITS {
        fs::write(units.join(unit), text)?;
        symlink(Path::new("..").join(unit), wanted.join(unit))?;
    }
    for unit in NOT_STARTED {
        let link = wanted.join(unit);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(link)?;
        }
    }
    // Each host gets these of its own.
    fs::remove_file(tree.join("etc/machine-id"))?;
    fs::remove_file(tree.join("etc/hostname"))?;
    let archives = tree.join("var/cache/apt/archives");
    if archives.exists() {
        fs::remove_dir_all(&archives)?;
    }
    Ok(())
}
