//! Disk images that virtual machines start from, cached by what is in them. Nothing writes to one:
//! each machine has an overlay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::output;
use crate::rootfs::{Recipe, UNITS, cached};

const PACKAGES: &str = "systemd,systemd-sysv,dbus,procps,iproute2,kmod,udev,cron,qemu-guest-agent,\
    linux-image-cloud-amd64,containerd,runc,containernetworking-plugins,iptables";

/// Units that no case needs. Each costs an emulated machine a quarter of a second of a core at every boot.
const MASKED: &[&str] = &[
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-journal-catalog-update.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-udev-load-credentials.service",
    "systemd-update-done.service",
];

const MIRROR: &str = "http://deb.debian.org/debian";

/// The files below `/boot` that the emulator starts.
const BOOT: [&str; 2] = ["vmlinuz", "initrd.img"];

/// A disk with Debian, its kernel, and how much memory a machine with it has.
#[derive(Debug, Clone)]
pub struct Image {
    dir: PathBuf,
    pub(super) memory_mib: u32,
}

impl Image {
    /// Debian 12: systemd 252, Linux 6.1. Built when it is not cached, which takes two minutes.
    pub async fn debian_12() -> Result<Self> {
        Self::locate("bookworm").await
    }

    /// Debian 13: systemd 257, Linux 6.12.
    pub async fn debian_13() -> Result<Self> {
        Self::locate("trixie").await
    }

    #[must_use]
    pub fn with_memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    async fn locate(suite: &str) -> Result<Self> {
        let units = [
            UNITS,
            &[(
                "harness-network.service",
                include_str!("harness-network.service"),
            )],
        ]
        .concat();
        let recipe = Recipe {
            suite,
            mirror: Some(MIRROR),
            packages: PACKAGES,
            masked: MASKED,
            files: &[
                ("etc/fstab", "/dev/vdb /opt/skyhook ext4 ro 0 0\n"),
                // Each machine takes the one that its hardware has.
                ("etc/machine-id", ""),
            ],
            units: &units,
        };
        let name = format!("{suite}-{}", recipe.key());
        let dir = cached("vm", &name, async |partial: &Path| {
            let tree = partial.join("tree");
            fs::create_dir_all(&tree)?;
            recipe.build(&tree).await?;
            for file in BOOT {
                let prefix = format!("{file}-");
                let found = fs::read_dir(tree.join("boot"))?
                    .flatten()
                    .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
                let found = found.with_context(|| format!("{suite} has no /boot/{file}"))?;
                fs::copy(found.path(), partial.join(file))?;
            }
            make_disk(&tree, &partial.join("disk.img"), 8192).await?;
            fs::remove_dir_all(&tree)?;
            Ok(())
        })
        .await?;
        Ok(Self {
            dir,
            memory_mib: 1024,
        })
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join(BOOT[0])
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join(BOOT[1])
    }

    /// A disk of one machine's own, which holds what differs.
    pub(super) async fn overlay(&self, path: &Path) -> Result<()> {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        command.arg(self.dir.join("disk.img")).arg(path);
        output(command).await.map(drop)
    }
}

/// A file system of so many MiB with the content of `tree`. No mount and no loop device is needed.
pub(super) async fn make_disk(tree: &Path, image: &Path, mib: u64) -> Result<()> {
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-d"]);
    command.arg(tree).arg(image).arg(format!("{mib}M"));
    output(command).await.map(drop)
}
