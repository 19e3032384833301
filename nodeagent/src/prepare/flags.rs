//! Records of a package on the host: flags of steps, check results and history. Names and formats of the files are
//! those of NVIDIA Skyhook.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use skyhook_crds::Stage;
use skyhook_crds::lease::SkyhookRef;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_oci::package_config::{PackageConfig, Step};
use skyhook_oci::{Durability, Root};

use super::{Layout, StageError, io_error};
use crate::host::Host;

/// File mode of a record.
const FILE: u32 = 0o644;

/// Begins the line of a flag that names the packages whose step has run: keys of the Skyhook, separated by spaces. Flags of
/// NVIDIA Skyhook have no such line.
const PACKAGES: &str = "packages: ";

/// The records of one package.
pub(super) struct Records {
    files: Root,
    /// Directory with the records of the Skyhook: a path in the host's file system.
    root: PathBuf,
    /// Name and version in `config.json`.
    name: String,
    version: String,
    owner: Owner,
}

/// The package that records are of. Several packages of a Skyhook may have one image, and with it the same files of flags
/// and of the history.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// Key of the package in the Skyhook.
    pub key: String,
    /// Another package of the Skyhook has the same image: what does not name its package may be of the other one.
    pub shares_image: bool,
}

#[derive(Serialize, Deserialize, Default)]
struct History {
    #[serde(rename = "current-version")]
    current: String,
    history: Vec<Past>,
    /// The current version of each package, by its key in the Skyhook. NVIDIA Skyhook does not write it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    packages: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Past {
    version: String,
    time: String,
}

impl Records {
    pub(super) fn of(
        host: &Host,
        layout: &Layout,
        skyhook: &SkyhookRef,
        config: &PackageConfig,
        owner: Owner,
    ) -> Self {
        Self {
            owner,
            files: host.files.clone(),
            root: PathBuf::from(format!("{}/{}", layout.copy_root, skyhook.name)),
            name: config.package_name.clone(),
            version: config.package_version.clone(),
        }
    }

    fn flags(&self) -> PathBuf {
        self.root.join("flags")
    }

    pub(super) fn note_start(&self) -> Result<(), StageError> {
        self.write(&self.flags().join("START"), &now())
    }

    /// True when the step is skipped because it ran before. A step with `idempotence: true` is never skipped: its
    /// script can run again without harm.
    pub(super) fn is_flagged(&self, stage: Stage, step: &Step) -> bool {
        let heeds = match stage {
            Stage::Apply | Stage::PostInterrupt => !step.idempotence,
            Stage::Config
            | Stage::Uninstall
            | Stage::UninstallInterrupt
            | Stage::Upgrade
            | Stage::Interrupt
            | Stage::Unknown => false,
        };
        heeds && self.is_ours(&self.flag(step))
    }

    /// True for a flag that a step of this package has set.
    fn is_ours(&self, flag: &Path) -> bool {
        if !self.files.exists(flag) {
            return false;
        }
        let text = self.files.read_to_string(flag).unwrap_or_default();
        match packages(&text) {
            Some(mut packages) => packages.any(|key| key == self.owner.key),
            None => !self.owner.shares_image,
        }
    }

    /// The other packages whose steps have set this flag.
    fn others(&self, flag: &Path) -> Vec<String> {
        let text = self.files.read_to_string(flag).unwrap_or_default();
        let others = packages(&text).into_iter().flatten();
        let others = others.filter(|key| *key != self.owner.key);
        others.map(str::to_owned).collect()
    }

    fn flag(&self, step: &Step) -> PathBuf {
        let repr = format!(
            "{}_{}",
            python_list(step.arguments.iter().map(|a| python_str(a))),
            python_list(step.returncodes.iter().map(ToString::to_string))
        );
        self.flags()
            .join(&self.name)
            .join(&self.version)
            .join(format!("{}_{}", step.path, STANDARD.encode(repr)))
    }

    pub(super) fn set_flag(&self, step: &Step) -> Result<(), StageError> {
        let always = if step.idempotence { "True" } else { "False" };
        let flag = self.flag(step);
        let mut packages = self.others(&flag);
        packages.push(self.owner.key.clone());
        self.write(
            &flag,
            &format!(
                "last_run: {}\nstep_always_runs: {always}\n{PACKAGES}{}\n",
                now(),
                packages.join(" ")
            ),
        )
    }

    /// Removes the flags of this package. Those that other packages have set as well stay for these.
    pub(super) fn remove_flags(&self) -> Result<(), StageError> {
        let directory = self.flags().join(&self.name).join(&self.version);
        let names = self.files.list(&directory).unwrap_or_default();
        let mut is_empty = true;
        for flag in names.into_iter().map(|name| directory.join(name)) {
            let others = self.others(&flag);
            if others.is_empty() {
                self.files.remove_tree(&flag)?;
                continue;
            }
            is_empty = false;
            let before = self.files.read_to_string(&flag).unwrap_or_default();
            let lines = before.lines().filter(|line| !line.starts_with(PACKAGES));
            let mut text: String = lines.flat_map(|line| [line, "\n"]).collect();
            text += &format!("{PACKAGES}{}\n", others.join(" "));
            self.write(&flag, &text)?;
        }
        if is_empty {
            self.files.remove_tree(directory)?;
        }
        Ok(())
    }

    /// Writes line number `index` of `check_results`, which has a line for each check of a mode. The lines after it go: a
    /// check whose result was written before runs again after a crash of the agent.
    pub(super) fn note_check(
        &self,
        path: &str,
        success: bool,
        index: usize,
    ) -> Result<(), StageError> {
        let file = self.flags().join("check_results");
        let before = self.files.read_to_string(&file).unwrap_or_default();
        let mut text: String = before.split_inclusive('\n').take(index).collect();
        let result = if success { "True" } else { "False" };
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "{path} {result}");
        self.write(&file, &text)
    }

    pub(super) fn note_all_checked(&self, mode: &str) -> Result<(), StageError> {
        self.write(&self.flags().join(format!("{mode}_ALL_CHECKED")), &now())
    }

    /// The current version in the history, or `unknown` if the history has none.
    pub(super) fn previous_version(&self) -> String {
        let history = self.history().unwrap_or_default();
        let own = history.packages.get(&self.owner.key).cloned();
        let shared = Some(history.current).filter(|_| !self.owner.shares_image);
        own.or(shared)
            .filter(|version| !version.is_empty())
            .unwrap_or_else(|| "unknown".to_owned())
    }

    fn history_file(&self) -> PathBuf {
        self.root
            .join("history")
            .join(format!("{}.json", self.name))
    }

    fn history(&self) -> Option<History> {
        let file = self.history_file();
        let text = self.files.read(&file).ok()?;
        serde_json::from_slice(&text)
            .map_err(|_| {
                // Rename a corrupt history instead of deleting it, as NVIDIA Skyhook does.
                let backup = format!("{}.json.backup", self.name);
                let _kept = self
                    .files
                    .entry(&file)
                    .and_then(|entry| entry.rename(backup));
            })
            .ok()
    }

    /// Makes a version the current one and adds it to the history, unless it is the current one already.
    pub(super) fn note_version(&self, version: &str) -> Result<(), StageError> {
        let mut history = self.history().unwrap_or_default();
        let own = history.packages.get(&self.owner.key);
        if history.current == version && own.is_some_and(|own| own == version) {
            return Ok(());
        }
        history
            .packages
            .insert(self.owner.key.clone(), version.to_owned());
        history.current = version.to_owned();
        history.history.insert(
            0,
            Past {
                version: version.to_owned(),
                time: now(),
            },
        );
        // NVIDIA Skyhook has no limit here, so its history grows forever.
        history.history.truncate(200);
        let file = self.history_file();
        let text =
            serde_json::to_vec(&history).map_err(|e| io_error(&file, "encoding")(e.into()))?;
        self.files
            .replace(&file, &text, FILE, Durability::PowerCut)
            .map_err(io_error(&file, "writing"))
    }

    fn write(&self, file: &Path, text: &str) -> Result<(), StageError> {
        write(&self.files, file, text)
    }
}

/// Records that an interrupt has happened: one file for each command that NVIDIA Skyhook would have run. The agent does
/// not read these files: its own journal says whether an interrupt is due.
pub fn note_interrupt(
    host: &Host,
    layout: &Layout,
    cycle: &SkyhookRef,
    package: (&str, &str),
    interrupt: &Interrupt,
) -> Result<(), StageError> {
    let id = super::resource_id(cycle, package.0, package.1);
    let directory = PathBuf::from(format!(
        "{}/{}/interrupts/flags/{id}",
        layout.copy_root, cycle.name
    ));
    let note = |file: &str| write(&host.files, &directory.join(file), &now());
    let (kind, commands) = match interrupt.kind {
        InterruptType::Reboot => ("node_restart", 1),
        // One command for daemon-reload, and one for the restart of each unit.
        InterruptType::Service => ("service_restart", interrupt.services.len() + 1),
        InterruptType::RestartAllServices => ("restart_all_services", 1),
        InterruptType::Noop => return note("no_op.complete"),
    };
    for n in 0..commands {
        note(&format!("{kind}_{n}.complete"))?;
    }
    Ok(())
}

/// The packages that a flag names; `None` for a flag that names none.
fn packages(flag: &str) -> Option<impl Iterator<Item = &str>> {
    let line = flag.lines().find_map(|line| line.strip_prefix(PACKAGES))?;
    Some(line.split_whitespace())
}

fn write(files: &Root, file: &Path, text: &str) -> Result<(), StageError> {
    files
        .replace(file, text.as_bytes(), FILE, Durability::WhileUp)
        .map_err(io_error(file, "writing"))
}

fn now() -> String {
    jiff::Zoned::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6f")
        .to_string()
}

fn python_list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// Python's `repr` of a string. It is a part of the names of flag files.
fn python_str(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                // Writing to a String cannot fail.
                let _infallible = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_interrupt_leaves_the_files_that_nvidia_skyhook_leaves() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::open(root.path()).unwrap();
        let layout = Layout {
            copy_root: "/var/lib/skyhook".into(),
            log_root: "/var/log/skyhook".into(),
        };
        let skyhook = SkyhookRef {
            name: "s".into(),
            uid: "uid".into(),
            generation: 2,
        };
        for (kind, services, want) in [
            (InterruptType::Reboot, 0, vec!["node_restart_0.complete"]),
            (
                InterruptType::Service,
                1,
                vec!["service_restart_0.complete", "service_restart_1.complete"],
            ),
            (InterruptType::Noop, 0, vec!["no_op.complete"]),
        ] {
            let interrupt = Interrupt {
                kind,
                services: vec!["x".to_owned(); services],
            };
            note_interrupt(&host, &layout, &skyhook, ("aa", "1.0.0"), &interrupt).unwrap();
            let directory = root
                .path()
                .join("var/lib/skyhook/s/interrupts/flags/s-uid-2_aa_1.0.0");
            let mut names: Vec<String> = fs::read_dir(&directory)
                .unwrap()
                .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            assert_eq!(names, want);
            fs::remove_dir_all(&directory).unwrap();
        }
    }

    #[test]
    fn flags_have_the_names_that_nvidia_skyhook_gives_them() {
        for (text, want) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("\"it's\"", "'\"it\\'s\"'"),
            ("a\nb\\", "'a\\nb\\\\'"),
            ("\u{1}", "'\\x01'"),
            ("é", "'é'"),
        ] {
            assert_eq!(python_str(text), want);
        }
        let none = format!("{}_{}", python_list(std::iter::empty()), "[0]");
        assert_eq!(STANDARD.encode(none), "W11fWzBd");
    }
}
