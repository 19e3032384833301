//! Keeping the host tidy: what running steps and packages leave behind.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use skyhook_crds::Package;
use skyhook_oci::{Root, Store, StoreError, chain, mounts_below, remove_tree};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use super::agent::{Agent, Note};
use crate::host::exec::{Supervisors, is_running};
use crate::stage::copy_dir;

/// The highest number of a step that has a directory.
pub(super) fn last_step(steps: &Path) -> u64 {
    step_directories(steps)
        .iter()
        .map(|(id, _)| *id)
        .max()
        .unwrap_or(0)
}

/// Steps whose supervisor lives and has left no result.
pub(super) fn running_steps(steps: &Path) -> Vec<u64> {
    step_directories(steps)
        .into_iter()
        .filter(|(_, directory)| is_running(directory))
        .map(|(id, _)| id)
        .collect()
}

fn step_directories(steps: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(steps) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id = entry.file_name().to_str()?.parse().ok()?;
            Some((id, entry.path()))
        })
        .collect()
}

/// Waits until none of these steps runs any more.
pub(super) async fn await_steps(runner: &Supervisors, steps: Vec<u64>) {
    for id in steps {
        tracing::warn!(id, "a step of an earlier lease is waited for");
        while runner.is_running(id) {
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What a package on the host keeps.
struct Kept {
    skyhook: String,
    /// `name|version`.
    key: String,
    name: String,
    /// Name of its copy directory, when the agent made one.
    copy: Option<String>,
}

impl Agent {
    /// Removes what nothing needs any more. Best effort: it is tried again after the next lease.
    pub(super) fn keep_house(&self) {
        if let Err(error) = self.journal.prune() {
            tracing::warn!(error = %chain(&error), "old revisions cannot be removed");
        }
        let kept = self.kept();
        let steps = self.runner.steps().to_owned();
        let (files, copies) = (
            self.host.files.clone(),
            self.settings.layout.copy_root.clone(),
        );
        let store = self.images.store.clone();
        let kept = tokio::task::spawn_blocking(move || {
            for (id, directory) in step_directories(&steps) {
                if !is_running(&directory)
                    && let Err(error) = remove_tree(&directory)
                {
                    tracing::warn!(id, error = %chain(&error), "a step's directory cannot be removed");
                }
            }
            remove_old_copies(&files, &copies, &kept);
            match collect_images(&store, &kept) {
                Ok(bytes) => {
                    tracing::info!(image_bytes = bytes, "removed what nothing needs any more")
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "old images cannot be removed");
                }
            }
        });
        let (notes, ours) = (self.notes.clone(), self.directories());
        tokio::task::spawn_local(async move {
            if kept.await.is_ok() {
                count(notes, ours).await;
            }
        });
    }

    /// Counts what is on the host's disk, for the report of the next lease.
    pub(super) fn count_disk(&self) {
        tokio::task::spawn_local(count(self.notes.clone(), self.directories()));
    }

    /// The directories of ours, as this process names them.
    fn directories(&self) -> Vec<PathBuf> {
        let (settings, files) = (&self.settings, &self.host.files);
        let layout = &settings.layout;
        [
            settings.state_dir.as_path(),
            Path::new(&layout.copy_root),
            Path::new(&layout.log_root),
        ]
        .into_iter()
        .filter_map(|path| files.locate(path).ok())
        .collect()
    }

    fn kept(&self) -> Vec<Kept> {
        let run = self.run().map(|run| (&run.skyhook.name, &run.entries));
        let recorded = &self.journal.state.skyhooks;
        recorded
            .iter()
            .map(|(name, record)| (name, &record.entries))
            .chain(run)
            .flat_map(|(skyhook, entries)| {
                entries.iter().map(|(key, entry)| {
                    let package = Package {
                        name: entry.name.clone(),
                        version: entry.version.clone(),
                        ..Package::default()
                    };
                    let copy = entry.cycle.as_ref().map(|cycle| {
                        let whole = copy_dir(&self.settings.layout, &cycle.skyhook, &package);
                        whole.rsplit('/').next().unwrap_or_default().to_owned()
                    });
                    Kept {
                        skyhook: skyhook.clone(),
                        key: key.clone(),
                        name: entry.name.clone(),
                        copy,
                    }
                })
            })
            .collect()
    }
}

async fn count(notes: UnboundedSender<Note>, ours: Vec<PathBuf>) {
    let bytes = move || ours.iter().map(|d| disk_bytes(d)).sum();
    if let Ok(bytes) = tokio::task::spawn_blocking(bytes).await {
        let _sent = notes.send(Note::Disk(bytes));
    }
}

/// Bytes that the files below `directory` take on the disk; neither symlinks nor what is mounted there are followed.
fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    // The table of mounts has no symlinks in its paths.
    let Ok(directory) = fs::canonicalize(directory) else {
        return 0;
    };
    let mounted: BTreeSet<PathBuf> = mounts_below(&directory)
        .unwrap_or_default()
        .into_iter()
        .collect();
    let mut bytes = 0;
    let mut left = vec![directory];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if mounted.contains(&path) {
                continue;
            }
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    bytes
}

/// Unpins what is not on the host any more, and collects; the bytes that are left.
fn collect_images(store: &Store, kept: &[Kept]) -> Result<u64, StoreError> {
    let owners: BTreeSet<String> = kept
        .iter()
        .map(|k| format!("{}/{}", k.skyhook, k.key))
        .collect();
    for (owner, _) in store.pins()? {
        if !owners.contains(&owner) {
            store.unpin(&owner)?;
        }
    }
    store.collect()?;
    store.bytes()
}

fn remove_old_copies(files: &Root, copies: &str, kept: &[Kept]) {
    let skyhooks: BTreeSet<&String> = kept.iter().map(|k| &k.skyhook).collect();
    for skyhook in skyhooks {
        let Ok(directory) = files.directory(Path::new(copies).join(skyhook)) else {
            continue;
        };
        let mut there: Vec<(SystemTime, String)> = Vec::new();
        for name in directory.list("").unwrap_or_default() {
            if directory.exists(Path::new(&name).join("config.json"))
                && let Ok(time) = directory.metadata(&name).and_then(|m| m.modified())
            {
                there.push((time, name.to_string_lossy().into_owned()));
            }
        }
        let of_skyhook: Vec<&Kept> = kept.iter().filter(|k| k.skyhook == *skyhook).collect();
        for name in old_copies(there, &of_skyhook) {
            if let Err(error) = directory.remove_tree(&name) {
                tracing::warn!(copy = %name, error = %chain(&error), "an old copy cannot be removed");
            }
        }
    }
}

/// Copies that are neither in use nor the newest of the others of their package. A copy of a package that is not on
/// record is left alone.
fn old_copies(mut there: Vec<(SystemTime, String)>, kept: &[&Kept]) -> Vec<String> {
    there.sort();
    let in_use: BTreeSet<&String> = kept.iter().filter_map(|k| k.copy.as_ref()).collect();
    let package = |copy: &str| {
        kept.iter()
            .map(|k| k.name.as_str())
            .filter(|name| {
                copy.strip_prefix(name)
                    .and_then(|rest| rest.strip_prefix('-'))
                    .is_some_and(|rest| {
                        rest.trim_start_matches('v')
                            .starts_with(|c: char| c.is_ascii_digit())
                    })
            })
            .max_by_key(|name| name.len())
            .map(str::to_owned)
    };
    let mut previous = BTreeSet::new();
    let mut old = Vec::new();
    for (_, copy) in there.into_iter().rev() {
        if in_use.contains(&copy) {
            continue;
        }
        if let Some(name) = package(&copy)
            && !previous.insert(name)
        {
            old.push(copy);
        }
    }
    old
}

#[cfg(test)]
mod tests;
