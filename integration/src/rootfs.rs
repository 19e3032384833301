//! The hosts' file system: one debootstrap tree, cached under the home directory, with an overlay
//! per host on top.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{output, sh};
use crate::run::{Leftover, Run};

/// The last line is for hosts that run a kubelet; on others nothing of it is started.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,procps,iproute2,kmod,udev,cron,rsyslog,\
    containerd,runc,containernetworking-plugins,iptables";

/// Units that their packages start and that only some hosts want.
const NOT_STARTED: &[&str] = &["containerd.service"];

/// Units that no machine of the harness needs.
const MASKED: &[&str] = &[
    "console-getty.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
];

/// They would replay the machine's own devices and load modules into its kernel.
const MASKED_ON_HOSTS: &[&str] = &[
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
];

/// Units that every machine has.
pub(crate) const UNITS: &[(&str, &str)] = &[(
    "harness-up.service",
    include_str!("host/harness-up.service"),
)];

/// What a debootstrap tree is made of.
pub(crate) struct Recipe<'a> {
    pub suite: &'a str,
    /// Where its packages are; none: what debootstrap knows.
    pub mirror: Option<&'a str>,
    pub packages: &'a str,
    /// Units besides those that no machine needs.
    pub masked: &'a [&'a str],
    pub files: &'a [(&'a str, &'a str)],
    pub units: &'a [(&'a str, &'a str)],
}

impl Recipe<'_> {
    /// Changes with whatever goes into the tree.
    pub(crate) fn key(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(self.suite);
        hash.update(self.packages);
        let pairs = self.files.iter().chain(self.units);
        let parts = MASKED.iter().chain(self.masked).chain(NOT_STARTED);
        for part in parts.chain(pairs.flat_map(|(name, text)| [name, text])) {
            hash.update(part);
        }
        hex::encode(&hash.finalize()[..6])
    }

    /// Builds it, in a minute or two.
    pub(crate) async fn build(&self, tree: &Path) -> Result<()> {
        eprintln!("building a tree of {} (a minute or two)", self.suite);
        let mut command = Command::new("debootstrap");
        command.args([
            "--variant=minbase",
            &format!("--include={}", self.packages),
            self.suite,
        ]);
        command.arg(tree).args(self.mirror).current_dir("/");
        if !knows(self.suite) {
            // All newer releases of Debian are installed in the same way.
            command.arg("/usr/share/debootstrap/scripts/sid");
        }
        output(command).await.context("debootstrap failed")?;
        self.prepare(tree)
    }

    /// What is the same on every machine and saves time at boot.
    fn prepare(&self, tree: &Path) -> Result<()> {
        let systemd = fs::metadata(tree.join("usr/lib/systemd/systemd"));
        if systemd.map_or(0, |file| file.len()) == 0 {
            bail!("{} holds no systemd", tree.display());
        }
        let units = tree.join("etc/systemd/system");
        for unit in MASKED.iter().chain(self.masked) {
            let path = units.join(unit);
            if path.symlink_metadata().is_err() {
                symlink("/dev/null", path)?;
            }
        }
        let wanted = units.join("multi-user.target.wants");
        fs::create_dir_all(&wanted)?;
        for (unit, text) in self.units {
            fs::write(units.join(unit), text)?;
            symlink(Path::new("..").join(unit), wanted.join(unit))?;
        }
        for unit in NOT_STARTED {
            let link = wanted.join(unit);
            if link.symlink_metadata().is_ok() {
                fs::remove_file(link)?;
            }
        }
        // Each machine gets these of its own.
        fs::remove_file(tree.join("etc/machine-id"))?;
        fs::remove_file(tree.join("etc/hostname"))?;
        for (path, text) in self.files {
            fs::write(tree.join(path), text)?;
        }
        // Where each machine sees the programs under test.
        fs::create_dir_all(tree.join("opt/skyhook"))?;
        for unused in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            let unused = tree.join(unused);
            if unused.exists() {
                fs::remove_dir_all(&unused)?;
            }
        }
        Ok(())
    }
}

/// `<cache>/<kind>/<name>`, made when it is not there. Of two programs that start at once one
/// makes it and the other waits.
pub(crate) async fn cached(
    kind: &str,
    name: &str,
    make: impl AsyncFnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = cache_dir()?.join(kind);
    let path = cache.join(name);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&cache)?;
    let lock = fs::File::create(cache.join("lock"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if !path.exists() {
        let partial = cache.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        make(&partial).await?;
        fs::rename(&partial, &path)?;
    }
    drop(lock);
    Ok(path)
}

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
        let cgroups = (
            "harness-cgroups.service",
            include_str!("host/harness-cgroups.service"),
        );
        let recipe = Recipe {
            suite: &suite,
            mirror: None,
            packages: PACKAGES,
            masked: MASKED_ON_HOSTS,
            files: &[],
            units: &[UNITS, &[cgroups]].concat(),
        };
        let name = format!("{suite}-{}", recipe.key());
        let tree = cached("rootfs", &name, async |partial: &Path| {
            recipe.build(partial).await
        });
        Ok(Self(tree.await?))
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
    let codename = codename.filter(|name| knows(name));
    codename.unwrap_or("bookworm").to_owned()
}

fn knows(suite: &str) -> bool {
    let scripts = Path::new("/usr/share/debootstrap/scripts");
    scripts.join(suite).exists()
}
