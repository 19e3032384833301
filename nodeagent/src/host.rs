//! The host: where its files are for this process, and which machine and boot it is.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's view of the host"
)]

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

pub mod exec;
pub mod identity;
pub mod interrupt;
pub mod journal;
pub mod limits;
pub mod systemd;
mod unit_log;

/// The host's file tree, as this process sees it.
#[derive(Clone, Debug)]
pub struct Host {
    /// `/` when the agent is a unit of the host, where the host is mounted when it is a pod.
    pub root: PathBuf,
}

impl Host {
    /// Where `path` of the host is for this process. Symlinks are not looked at: only for paths that are ours alone.
    #[must_use]
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Where `path` of the host is for this process, with symlinks resolved inside the host's root. What does not exist
    /// yet is taken as it stands.
    pub fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut left: Vec<PathBuf> = vec![path.to_owned()];
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(next) = left.pop() {
            let mut components = next.components();
            let Some(first) = components.next() else {
                continue;
            };
            let rest = components.as_path();
            if !rest.as_os_str().is_empty() {
                left.push(rest.to_owned());
            }
            match first {
                Component::RootDir | Component::Prefix(_) => done = PathBuf::new(),
                Component::CurDir => {}
                Component::ParentDir => {
                    done.pop();
                }
                Component::Normal(name) => {
                    let candidate = done.join(name);
                    match fs::read_link(self.root.join(&candidate)) {
                        Ok(target) => {
                            links += 1;
                            if links > 40 {
                                return Err(io::Error::other(format!(
                                    "{}: too many symlinks",
                                    path.display()
                                )));
                            }
                            left.push(target);
                        }
                        Err(_) => done = candidate,
                    }
                }
            }
        }
        Ok(self.root.join(done))
    }

    /// The boot ID: another one means that the machine was rebooted.
    pub fn boot_id(&self) -> io::Result<String> {
        self.line("/proc/sys/kernel/random/boot_id")
    }

    /// The machine ID: another one means that this is another machine.
    pub fn machine_id(&self) -> io::Result<String> {
        self.line("/etc/machine-id")
    }

    fn line(&self, path: &str) -> io::Result<String> {
        let path = self.path(path);
        let text = fs::read_to_string(&path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(text.trim().to_owned())
    }
}

/// Becomes a program of the host: found on its path, with its root as the root. Returns when that cannot be.
pub fn in_root(root: &Path, program: &str, arguments: &[String]) -> anyhow::Result<()> {
    nix::unistd::chroot(root).with_context(|| format!("{} cannot be the root", root.display()))?;
    std::env::set_current_dir("/")?;
    let error = Command::new(program)
        .args(arguments)
        .env("PATH", PATH)
        .exec();
    Err(error).with_context(|| format!("{program} cannot be run"))
}

/// Where programs of a host are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn symlinks_stay_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        let host = Host {
            root: root.path().to_owned(),
        };
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        symlink("usr/lib", root.path().join("lib")).unwrap();
        symlink("/usr/../../../../usr", root.path().join("up")).unwrap();
        symlink("/etc/real", root.path().join("usr/lib/link")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        for (path, want) in [
            ("/lib/x", "usr/lib/x"),
            ("/up/x", "usr/x"),
            ("/../../etc/passwd", "etc/passwd"),
            ("/lib/link/file", "etc/real/file"),
            ("/new/dir/file", "new/dir/file"),
        ] {
            assert_eq!(
                host.resolve(Path::new(path)).unwrap(),
                root.path().join(want),
                "{path}"
            );
        }
        let error = host.resolve(Path::new("/loop/x")).unwrap_err().to_string();
        assert_eq!(error, "/loop/x: too many symlinks");
    }
}
