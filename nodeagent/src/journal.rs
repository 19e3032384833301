//! The host's journal: what is installed, and what runs. Written before anything is done and before anything is reported.
//!
//! One file, replaced whole ([`skyhook_oci::replace_file`]), with a digest of its content on the first line: a file that does not
//! match is kept aside and never believed. Revisions stand beside it, each written once under its own name.
#![expect(clippy::disallowed_methods, reason = "this is the shell's journal")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyhook_crds::installed::hex;
use skyhook_crds::revision::RevisionData;
use skyhook_oci::{Durability, replace_file};

use crate::machine::{Entries, Progress};

const MAGIC: &str = "skyhook-journal 1";

/// What cannot be done with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{path}: {action} failed")]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} was written by a newer agent ({form:?}, this one knows {MAGIC:?}): run the newer version again"
    )]
    Newer { path: PathBuf, form: String },
    #[error("revision {name} is not in the journal at {path}")]
    NoRevision {
        name: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} cannot be written as JSON")]
    Encode {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// Content of the journal.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// Machine that this was written on.
    pub machine_id: String,
    /// Boot that this was written in.
    pub boot_id: String,
    /// The last boot that Skyhook did not ask for.
    pub epoch: String,
    /// Number of the next supervisor.
    pub next_step: u64,
    /// What is installed for each Skyhook that has no lease now.
    pub skyhooks: BTreeMap<String, Record>,
    /// The lease that is worked on, or was last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Progress>,
}

impl State {
    /// Puts what an earlier lease than `lease` left on record for its own Skyhook.
    pub fn put_aside(&mut self, lease: &str, now: i64) {
        let Some(run) = self.run.take_if(|run| run.lease != lease) else {
            return;
        };
        let record = Record {
            lease: run.lease,
            revision: run.revision,
            since: now,
            entries: run.entries,
        };
        self.skyhooks.insert(run.skyhook.name, record);
        while self.skyhooks.len() > RECORDS {
            let oldest = self.skyhooks.iter().min_by_key(|(_, record)| record.since);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else {
                return;
            };
            self.skyhooks.remove(&name);
        }
    }

    /// Forgets Skyhooks that are gone from the cluster and have left nothing on the host. True when there were any.
    pub fn forget(&mut self, gone: &BTreeSet<String>) -> bool {
        let before = self.skyhooks.len();
        self.skyhooks
            .retain(|name, record| !(gone.contains(name) && record.entries.is_empty()));
        self.skyhooks.len() < before
    }

    /// The epoch in the boot `boot_id`: a reboot that was asked for does not begin another.
    #[must_use]
    pub fn epoch_in(&self, boot_id: &str) -> String {
        let wave = self.run.as_ref().and_then(|run| run.wave.as_ref());
        let asked = wave.and_then(|wave| wave.reboot_asked.as_ref());
        let is_known = self.boot_id == boot_id || asked == Some(&self.boot_id);
        if is_known && !self.epoch.is_empty() {
            self.epoch.clone()
        } else {
            boot_id.to_owned()
        }
    }
}

/// What is installed for a Skyhook.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// UID of the lease that it was last reported under.
    pub lease: String,
    /// Revision of that lease.
    pub revision: String,
    /// When another lease took its place, in Unix milliseconds.
    pub since: i64,
    pub entries: Entries,
}

/// Skyhooks without a lease that a host remembers: the latest. For those before them the Node's record counts.
const RECORDS: usize = 64;

/// The journal's directory.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    pub state: State,
}

impl Journal {
    /// Opens the journal. A file that cannot be believed is renamed, and named in the second value.
    pub fn open(directory: &Path) -> Result<(Self, Option<PathBuf>), JournalError> {
        let failed = |action| {
            move |source| JournalError::Io {
                path: directory.to_owned(),
                action,
                source,
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory.join("revisions"))
            .map_err(failed("creating the directory"))?;
        let path = directory.join("journal");
        let (state, aside) = match fs::read(&path) {
            Ok(bytes) => match decode(&bytes) {
                Some(state) => (state, None),
                None => {
                    if let Some(form) = newer(&bytes) {
                        return Err(JournalError::Newer { path, form });
                    }
                    let aside = directory.join("journal.corrupt");
                    fs::rename(&path, &aside).map_err(failed("keeping a corrupt journal aside"))?;
                    (State::default(), Some(aside))
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => (State::default(), None),
            Err(e) => return Err(failed("reading the journal")(e)),
        };
        let journal = Self {
            directory: directory.to_owned(),
            state,
        };
        Ok((journal, aside))
    }

    /// Replaces the journal's content, on disk first.
    pub fn save(&mut self, state: State) -> Result<(), JournalError> {
        if state == self.state {
            return Ok(());
        }
        let path = self.directory.join("journal");
        let bytes = encode(&state).map_err(|source| JournalError::Encode {
            path: path.clone(),
            source,
        })?;
        replace_file(&path, &bytes, Durability::PowerCut).map_err(|source| JournalError::Io {
            path,
            action: "writing",
            source,
        })?;
        self.state = state;
        Ok(())
    }

    /// Keeps a copy of a revision. Names are content-addressed: one that is there is the same.
    pub fn keep_revision(&self, name: &str, data: &RevisionData) -> Result<(), JournalError> {
        let path = self.revision_path(name);
        if path.exists() {
            return Ok(());
        }
        let bytes = serde_json::to_vec(data).map_err(|source| JournalError::Encode {
            path: path.clone(),
            source,
        })?;
        replace_file(&path, &bytes, Durability::PowerCut).map_err(|source| JournalError::Io {
            path,
            action: "writing",
            source,
        })
    }

    /// The copy of a revision.
    pub fn revision(&self, name: &str) -> Result<RevisionData, JournalError> {
        let path = self.revision_path(name);
        let failed = |source| JournalError::NoRevision {
            name: name.to_owned(),
            path: path.clone(),
            source,
        };
        let bytes = fs::read(&path).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))
    }

    /// Removes revisions that no package on the host refers to.
    pub fn prune(&self) -> Result<(), JournalError> {
        let run = self.state.run.as_ref();
        let used: BTreeSet<&String> = self
            .state
            .skyhooks
            .values()
            .map(|record| &record.entries)
            .chain(run.map(|run| &run.entries))
            .flat_map(BTreeMap::values)
            .filter_map(|entry| entry.cycle.as_ref())
            .map(|cycle| &cycle.revision)
            .chain(run.map(|run| &run.revision))
            .collect();
        let directory = self.directory.join("revisions");
        let failed = |source| JournalError::Io {
            path: directory.clone(),
            action: "removing old revisions",
            source,
        };
        for file in fs::read_dir(&directory).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            let name = path.file_stem().map(|n| n.to_string_lossy().into_owned());
            if name.is_none_or(|name| !used.contains(&name)) {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn revision_path(&self, name: &str) -> PathBuf {
        self.directory
            .join("revisions")
            .join(format!("{}.json", name.replace('/', "_")))
    }
}

fn encode(state: &State) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec(state)?;
    let mut bytes = format!("{MAGIC} {}\n", digest(&body)).into_bytes();
    bytes.extend(body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<State> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    let expected = head.strip_prefix(MAGIC)?.trim();
    if expected != digest(body) {
        return None;
    }
    let mut state: serde_json::Value = serde_json::from_slice(body).ok()?;
    complete(&mut state);
    serde_json::from_value(state).ok()
}

/// Fills in what journals of earlier agents do not say: whether a step of the version has begun on the host. That was so for
/// all but new versions of a downgrade, which wait for the old one to be uninstalled; one of those that was on the host
/// before has been configured.
fn complete(state: &mut serde_json::Value) {
    let records = state
        .get_mut("skyhooks")
        .and_then(serde_json::Value::as_object_mut);
    for record in records.into_iter().flat_map(serde_json::Map::values_mut) {
        complete_entries(record);
    }
    if let Some(run) = state.get_mut("run") {
        complete_entries(run);
    }
}

fn complete_entries(holder: &mut serde_json::Value) {
    let entries = holder
        .get_mut("entries")
        .and_then(serde_json::Value::as_object_mut);
    for entry in entries.into_iter().flat_map(serde_json::Map::values_mut) {
        let Some(entry) = entry.as_object_mut() else {
            continue;
        };
        let says = |key: &str, value: &str| entry.get(key).is_some_and(|found| found == value);
        let is_parked = says("stage", "uninstall") && says("state", "skipped");
        let begun = !is_parked || entry.contains_key("configured");
        entry.entry("begun").or_insert(begun.into());
    }
}

/// The form of a journal that a newer version wrote: it is neither corrupt nor to be written over. One of the known form
/// that is whole, but holds what is not known here, was written by a newer version as well.
fn newer(bytes: &[u8]) -> Option<String> {
    let (name, known) = MAGIC.rsplit_once(' ')?;
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let (form, expected) = head.strip_prefix(name)?.trim_start().split_once(' ')?;
    let (form, known): (u32, u32) = (form.parse().ok()?, known.parse().ok()?);
    let is_whole = expected == digest(&bytes[end + 1..]);
    (form >= known && is_whole).then(|| format!("{name} {form}"))
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
