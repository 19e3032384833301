//! The host: access to its files, its machine ID and its boot ID.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use skyhook_oci::Root;

use crate::located::Located;

pub mod disk;
pub mod exec;
pub mod identity;
pub mod interrupt;
pub mod journal;
pub mod limits;
pub mod systemd;
mod unit_log;

/// The host that the agent works on.
#[derive(Clone, Debug)]
pub struct Host {
    /// The host's files: `/` when the agent runs as a unit of the host, the mount point when it runs in a pod.
    pub files: Root,
}

impl Host {
    /// Opens the host whose root directory is `root`.
    pub fn open(root: &Path) -> io::Result<Self> {
        let files = Root::open_host(root).map_err(|e| {
            let root = root.display();
            io::Error::new(
                e.kind(),
                format!("{root}, the host's root directory, cannot be opened: {e}"),
            )
        })?;
        Ok(Self { files })
    }

    /// Finds a path of the host. Its last part need not exist.
    pub fn locate(&self, path: impl AsRef<Path>) -> io::Result<Located> {
        let shown = path.as_ref();
        let path = self.files.locate(shown).map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("{} cannot be found: {e}", shown.display()),
            )
        })?;
        Ok(Located::new(path, shown))
    }

    /// The boot ID. It changes with every boot.
    pub fn boot_id(&self) -> io::Result<String> {
        self.line("/proc/sys/kernel/random/boot_id")
    }

    /// The machine ID. Another machine has another one.
    pub fn machine_id(&self) -> io::Result<String> {
        self.line("/etc/machine-id")
    }

    fn line(&self, path: &str) -> io::Result<String> {
        let text = self
            .files
            .read_to_string(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{path} of the host: {e}")))?;
        Ok(text.trim().to_owned())
    }
}

/// Replaces this process by a program of the host, with the host's root directory as its root. Returns only with an
/// error.
pub fn in_root(root: &Path, program: &str, arguments: &[String]) -> anyhow::Result<()> {
    nix::unistd::chroot(root).with_context(|| format!("{} cannot be the root", root.display()))?;
    std::env::set_current_dir("/")?;
    let error = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
        .exec();
    Err(error).with_context(|| format!("{program} cannot be run"))
}

/// The directories in which programs of a host are searched.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_machine_id_may_be_an_absolute_symlink() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("persistent")).unwrap();
        fs::write(root.path().join("persistent/id"), "0123\n").unwrap();
        symlink("/persistent/id", root.path().join("etc/machine-id")).unwrap();
        let host = Host::open(root.path()).unwrap();
        assert_eq!(host.machine_id().unwrap(), "0123");
        fs::remove_file(root.path().join("persistent/id")).unwrap();
        let error = host.machine_id().unwrap_err().to_string();
        assert!(
            error.starts_with("/etc/machine-id of the host: "),
            "{error}"
        );
    }
}
