//! Removes files on the host that are no longer needed: step directories, logs, copy directories, records, images and
//! revisions.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use skyhook_crds::Package;
use skyhook_oci::{Root, Store, StoreError, chain, remove_tree};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

mod copies;
mod missing;
mod records;

use super::agent::{Agent, now};
use super::note::Note;
use super::steps::step_directories;
use super::time::{next_look, next_sweep};
use crate::host::disk::disk_bytes;
use crate::host::exec::is_running;
use crate::journal::State;
use crate::logs::{Bounds, prune};
use crate::machine::Progress;
use crate::prepare::copy_dir;

/// A package in the journal. Its image and its copy directory must not be removed.
struct Kept {
    skyhook: String,
    /// `name|version`.
    key: String,
    name: String,
    /// Name of its copy directory, if the journal knows it.
    copy: Option<String>,
}

/// How often logs are pruned while steps run.
const PRUNE: Duration = Duration::from_secs(3600);

impl Agent {
    /// Removes the directories of steps that have ended. Must be called after the journal says that they have ended.
    /// `before` are the steps that ran according to the journal before that.
    pub(super) fn remove_finished_steps(&mut self, before: &BTreeSet<u64>) {
        let after = self.journal.state.run.as_ref().map(Progress::steps);
        let over: BTreeSet<u64> = before - &after.unwrap_or_default();
        if over.is_empty() {
            return;
        }
        self.prune_at.get_or_insert_with(|| Instant::now() + PRUNE);
        let (files, steps) = (self.host.files.clone(), self.steps());
        tokio::task::spawn_blocking(move || remove_steps(&files, &steps, |id| over.contains(&id)));
    }

    /// Removes the oldest logs until the rest is within the bounds.
    pub(super) fn prune_logs(&self) {
        let Ok(logs) = self.host.locate(&self.settings.layout.log_root) else {
            return;
        };
        tokio::task::spawn_blocking(move || prune(&logs, Bounds::default(), SystemTime::now()));
    }

    /// Collects garbage if it is time and there is no lease: at the end of a lease, the agent collects garbage anyway.
    /// Between two collections it looks for deleted Skyhooks: without leases, this is how an agent learns of them.
    pub(super) fn collect_garbage_when_due(&mut self) {
        let now = Instant::now();
        let (sweeps, looks) = (self.sweep_at <= now, self.look_at <= now);
        if sweeps {
            self.sweep_at = next_sweep(&self.settings.node);
        }
        if looks {
            self.look_at = next_look(&self.settings.node);
        }
        if self.lease.is_some() {
            return;
        }
        if sweeps {
            self.collect_garbage();
        } else if looks {
            self.look_for_deleted(false);
        }
    }

    fn steps(&self) -> PathBuf {
        self.runner.steps().to_owned()
    }

    /// Removes logs and revisions that are no longer needed. Then finds out which Skyhooks are deleted, so that
    /// [`Self::sweep`] can remove the rest. Failures are logged. The agent tries again at the end of the next lease, and
    /// once a day.
    pub(super) fn collect_garbage(&self) {
        self.prune_revisions();
        self.prune_logs();
        self.look_for_deleted(true);
    }

    fn prune_revisions(&self) {
        if let Err(error) = self.journal.prune() {
            tracing::warn!(error = %chain(&error), "old revisions cannot be removed");
        }
    }

    /// Looks for Skyhooks in the journal of which neither the Node nor the cluster knows anything. `collects`: garbage is
    /// collected then, whatever is found.
    fn look_for_deleted(&self, collects: bool) {
        let (api, notes) = (self.api.clone(), self.notes.clone());
        let remembered = remembered(&self.journal.state);
        tokio::task::spawn_local(async move {
            let missing = missing::look(&api, remembered).await;
            let _sent = notes.send(Note::Missing { missing, collects });
        });
    }

    /// Notes which Skyhooks nothing is seen of, and forgets those of which nothing was seen for long. `None` when the API
    /// does not answer: nobody knows then, and no time passes for any of them.
    pub(super) fn note_missing(&mut self, missing: Option<BTreeSet<String>>, collects: bool) {
        let mut gone = BTreeSet::new();
        if let Some(mut missing) = missing {
            // A Skyhook with the same name as a deleted one may have a lease now.
            for run in self.runs().filter(|run| run.ended.is_none()) {
                missing.remove(&run.skyhook.name);
            }
            if let Some(lease) = &self.lease {
                missing.remove(&lease.spec.skyhook.name);
            }
            let mut state = self.journal.state.clone();
            gone = state.note_missing(&missing, now());
            state.forget(&gone);
            // Nothing is removed before the journal says so.
            if let Err(error) = self.journal.save(state) {
                tracing::warn!(error = %chain(&error), "deleted Skyhooks cannot be removed from the journal");
                gone.clear();
            }
        }
        if !gone.is_empty() {
            tracing::info!(skyhooks = ?gone, "deleted Skyhooks are forgotten");
            self.prune_revisions();
        }
        if collects || !gone.is_empty() {
            self.sweep(gone);
        }
    }

    /// Removes step directories, copy directories, records and images that are no longer needed. The work on the next
    /// lease may have started already. Of the Skyhooks in `gone`, which the journal has forgotten, nothing stays but logs.
    fn sweep(&self, gone: BTreeSet<String>) {
        let known = &self.known() | &gone;
        let (kept, since) = (self.kept(), SystemTime::now());
        let steps = self.steps();
        let (next_step, running) = match self.run() {
            Some(run) => (run.next_step, run.steps()),
            None => (self.journal.state.next_step, BTreeSet::new()),
        };
        let (files, copies) = (
            self.host.files.clone(),
            self.settings.layout.copy_root.clone(),
        );
        let store = self.images.store.clone();
        let (notes, ours) = (self.notes.clone(), self.directories());
        let swept = tokio::task::spawn_blocking(move || {
            remove_steps(&files, &steps, |id| {
                id < next_step && !running.contains(&id)
            });
            copies::remove_left_overs(&files, &copies);
            copies::remove_old(&files, &copies, &known, &kept, since);
            records::remove_old(&files, &copies, &known, &kept, &gone, since);
            let collected = collect_images(&store, &kept, since);
            match collected.map_err(|error| error.shown_in(&files)) {
                Ok(bytes) => {
                    tracing::info!(image_bytes = bytes, "garbage collection has ended");
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "old images cannot be removed");
                }
            }
        });
        tokio::task::spawn_local(async move {
            if swept.await.is_ok() {
                count(notes, ours).await;
            }
        });
    }

    /// Removes temporary directories of unpacks that were killed with an earlier agent. Counts the bytes on the host's
    /// disk for the status of the next lease.
    pub(super) fn look_around(&self) {
        let (files, copies) = (
            self.host.files.clone(),
            self.settings.layout.copy_root.clone(),
        );
        tokio::task::spawn_blocking(move || copies::remove_left_overs(&files, &copies));
        tokio::task::spawn_local(count(self.notes.clone(), self.directories()));
    }

    /// The directories that belong to Skyhook, as this process sees them.
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

    /// The work in the journal, and the work that is not in the journal yet. They may belong to different leases.
    fn runs(&self) -> impl Iterator<Item = &Progress> {
        self.journal.state.run.iter().chain(self.run())
    }

    /// Names of the Skyhooks that the journal knows.
    fn known(&self) -> BTreeSet<String> {
        let recorded = self.journal.state.skyhooks.keys();
        let runs = self.runs().map(|run| &run.skyhook.name);
        recorded.chain(runs).cloned().collect()
    }

    fn kept(&self) -> Vec<Kept> {
        let runs = self.runs().map(|run| (&run.skyhook.name, &run.entries));
        // The record of an earlier lease does not count any more when a later one for the same Skyhook has ended.
        let is_old = |name: &String| {
            let mut ended = self.runs().filter(|run| run.ended.is_some());
            ended.any(|run| run.skyhook.name == *name)
        };
        let recorded = self.journal.state.skyhooks.iter();
        recorded
            .filter(|(name, _)| !is_old(name))
            .map(|(name, record)| (name, &record.entries))
            .chain(runs)
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

/// The Skyhooks in the journal whose work has ended, with the revisions of their packages.
fn remembered(state: &State) -> BTreeMap<String, BTreeSet<String>> {
    let records = state.skyhooks.iter();
    let records = records.map(|(name, record)| (name, &record.revision, &record.entries));
    let ended = state.run.iter().filter(|run| run.ended.is_some());
    let ended = ended.map(|run| (&run.skyhook.name, &run.revision, &run.entries));
    let mut remembered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, revision, entries) in records.chain(ended) {
        let cycles = entries.values().filter_map(|entry| entry.cycle.as_ref());
        let revisions = cycles.map(|cycle| &cycle.revision).chain([revision]);
        let named = revisions.filter(|revision| !revision.is_empty());
        remembered
            .entry(name.clone())
            .or_default()
            .extend(named.cloned());
    }
    remembered
}

/// Removes the directories of steps for which `is_over` returns true, unless their supervisor still runs.
fn remove_steps(files: &Root, steps: &Path, is_over: impl Fn(u64) -> bool) {
    for (id, directory) in step_directories(steps) {
        if is_over(id)
            && !is_running(&directory)
            && let Err(error) =
                remove_tree(&directory).map_err(|error| error.shown_as(|path| files.shown(path)))
        {
            tracing::warn!(id, error = %chain(&error), "a step's directory cannot be removed");
        }
    }
}

async fn count(notes: UnboundedSender<Note>, ours: Vec<PathBuf>) {
    let bytes = move || ours.iter().map(|d| disk_bytes(d)).sum();
    if let Ok(bytes) = tokio::task::spawn_blocking(bytes).await {
        let _sent = notes.send(Note::Disk(bytes));
    }
}

/// Unpins images of packages that are no longer installed, and runs the store's garbage collection. `kept` are the
/// packages in the journal at the time `since`. Images that were pinned later stay pinned. Returns the size of the
/// remaining images in bytes.
fn collect_images(store: &Store, kept: &[Kept], since: SystemTime) -> Result<u64, StoreError> {
    let owners = kept
        .iter()
        .map(|kept| format!("{}/{}", kept.skyhook, kept.key));
    store.unpin_others(&owners.collect(), since)?;
    store.collect(SystemTime::now())?;
    store.bytes()
}

#[cfg(test)]
mod tests;
