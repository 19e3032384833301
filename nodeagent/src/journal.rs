//! The agent's journal on the host: the installed packages, and the running steps. It is written before effects are
//! performed and before the status is reported.
//!
//! The journal is one file, which is always replaced as a whole ([`skyhook_oci::replace_file`]). Its first line has a
//! digest of the content. A file whose digest is wrong is renamed and ignored. Each revision has its own file in the
//! directory `revisions`, which never changes.
#![expect(clippy::disallowed_methods, reason = "this is the shell's journal")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyhook_crds::revision::RevisionData;
use skyhook_oci::{Durability, replace_file};

use crate::located::Located;
use crate::machine::{self, Entries, Progress};

const MAGIC: &str = "skyhook-journal 1";

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{path}: {action} failed")]
    Io {
        path: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} was written by a newer agent ({form:?}, this one knows {MAGIC:?}): run the newer version again"
    )]
    Newer { path: String, form: String },
    #[error("{path} is corrupt: an agent that starts keeps it aside and uses the Node's record")]
    Corrupt { path: String },
    #[error("revision {name} is not in the journal at {path}")]
    NoRevision {
        name: String,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} cannot be written as JSON")]
    Encode {
        path: String,
        #[source]
        source: serde_json::Error,
    },
}

/// Content of the journal.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// Machine ID of the host.
    pub machine_id: String,
    /// Boot ID of the boot in which the journal was written.
    pub boot_id: String,
    /// ID of the last boot that Skyhook did not ask for.
    pub epoch: String,
    /// Number of the next step.
    pub next_step: u64,
    /// Packages of all Skyhooks except that of `run`, by the Skyhook's name.
    pub skyhooks: BTreeMap<String, Record>,
    /// The work on the current lease or, if there is none, on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Progress>,
    /// For how many milliseconds nothing was seen of a Skyhook, neither on the Node nor of its revisions, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, i64>,
    /// When the agent looked for them last, in Unix milliseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub looked: i64,
}

/// The longest time between two looks that counts. So a look counts little when the clock was set forward, or when the
/// agent did not run.
pub const LOOK_MS: i64 = 3_600_000;
/// How long nothing must be seen of a Skyhook before the host forgets it.
const FORGOTTEN_MS: i64 = 24 * 3_600_000;

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
const fn is_zero(time: &i64) -> bool {
    *time == 0
}

impl State {
    /// If `run` belongs to another lease than `lease`, moves its packages to `skyhooks`.
    pub fn archive_run(&mut self, lease: &str, now: i64) {
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

    /// Notes that nothing is seen of the Skyhooks in `missing`. Returns those of which nothing was seen for so long that
    /// the host forgets them.
    pub fn note_missing(&mut self, missing: &BTreeSet<String>, now: i64) -> BTreeSet<String> {
        let passed = now.saturating_sub(self.looked).clamp(0, LOOK_MS);
        let before = std::mem::take(&mut self.missing);
        self.missing = missing
            .iter()
            .map(|name| {
                let so_far = before.get(name).map(|so_far| so_far.saturating_add(passed));
                (name.clone(), so_far.unwrap_or_default())
            })
            .collect();
        // A time that nobody needs is not written.
        self.looked = if missing.is_empty() { 0 } else { now };
        let forgotten = self.missing.iter().filter(|(_, ms)| **ms >= FORGOTTEN_MS);
        forgotten.map(|(name, _)| name.clone()).collect()
    }

    /// Removes all of the Skyhooks in `gone`, except of one that is worked on.
    pub fn forget(&mut self, gone: &BTreeSet<String>) {
        self.skyhooks.retain(|name, _| !gone.contains(name));
        self.missing.retain(|name, _| !gone.contains(name));
        self.run
            .take_if(|run| run.ended.is_some() && gone.contains(&run.skyhook.name));
    }

    /// All packages run again, after a reboot that Skyhook did not ask for and that undid their work: those of the last
    /// lease, and those of other Skyhooks with their next one.
    pub fn reapply(&mut self, now: i64) {
        if let Some(run) = &mut self.run {
            machine::reapply(run, now);
        }
        for record in self.skyhooks.values_mut() {
            record.entries.clear();
        }
    }

    /// The epoch in the boot `boot_id`. A reboot that Skyhook asked for keeps the epoch.
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

/// Packages of a Skyhook that the agent does not work on now.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// UID of its last lease.
    pub lease: String,
    /// Revision of that lease.
    pub revision: String,
    /// When its last lease was replaced by another, in Unix milliseconds.
    pub since: i64,
    pub entries: Entries,
}

/// Maximum number of records in the journal. The oldest record is dropped. For its Skyhook, the agent then uses the
/// Node's record.
const RECORDS: usize = 64;

/// The journal: its directory, and its content.
#[derive(Debug)]
pub struct Journal {
    directory: Located,
    pub state: State,
}

impl Journal {
    /// Opens the journal in a directory. A corrupt file is renamed, and the second value is its new name.
    pub fn open(directory: &Located) -> Result<(Self, Option<Located>), JournalError> {
        let failed = |action| {
            move |source| JournalError::Io {
                path: directory.to_string(),
                action,
                source,
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory.join("revisions").path())
            .map_err(failed("creating the directory"))?;
        let path = directory.join("journal");
        let (state, aside) = match found(&path)? {
            Found::Nothing => (State::default(), None),
            Found::Whole(state) => (*state, None),
            Found::Corrupt => {
                let aside = directory.join("journal.corrupt");
                fs::rename(path.path(), aside.path())
                    .map_err(failed("keeping a corrupt journal aside"))?;
                (State::default(), Some(aside))
            }
        };
        let journal = Self {
            directory: directory.clone(),
            state,
        };
        Ok((journal, aside))
    }

    /// The content of the journal in a directory; `None` if there is none. Changes nothing. An agent may write the
    /// journal at the same time: this is what it was before or after that.
    pub fn look(directory: &Located) -> Result<Option<State>, JournalError> {
        let path = directory.join("journal");
        match found(&path)? {
            Found::Nothing => Ok(None),
            Found::Whole(state) => Ok(Some(*state)),
            Found::Corrupt => Err(JournalError::Corrupt {
                path: path.to_string(),
            }),
        }
    }

    /// Replaces the content of the journal: first on the disk, then in memory.
    pub fn save(&mut self, state: State) -> Result<(), JournalError> {
        if state == self.state {
            return Ok(());
        }
        let path = self.directory.join("journal");
        let bytes = encode(&state).map_err(|source| JournalError::Encode {
            path: path.to_string(),
            source,
        })?;
        replace_file(path.path(), &bytes, Durability::PowerCut).map_err(|source| {
            JournalError::Io {
                path: path.to_string(),
                action: "writing",
                source,
            }
        })?;
        self.state = state;
        Ok(())
    }

    /// Keeps a copy of a revision. The name of a revision contains a digest of its content, so an existing file is not
    /// written again.
    pub fn keep_revision(&self, name: &str, data: &RevisionData) -> Result<(), JournalError> {
        let path = self.revision_path(name);
        if path.path().exists() {
            return Ok(());
        }
        let bytes = serde_json::to_vec(data).map_err(|source| JournalError::Encode {
            path: path.to_string(),
            source,
        })?;
        replace_file(path.path(), &bytes, Durability::PowerCut).map_err(|source| JournalError::Io {
            path: path.to_string(),
            action: "writing",
            source,
        })
    }

    /// Reads the copy of a revision.
    pub fn revision(&self, name: &str) -> Result<RevisionData, JournalError> {
        let path = self.revision_path(name);
        let failed = |source| JournalError::NoRevision {
            name: name.to_owned(),
            path: path.to_string(),
            source,
        };
        let bytes = fs::read(path.path()).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))
    }

    /// Removes copies of revisions that no package on the host uses.
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
            path: directory.to_string(),
            action: "removing old revisions",
            source,
        };
        for file in fs::read_dir(directory.path()).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            let name = path.file_stem().map(|n| n.to_string_lossy().into_owned());
            if name.is_none_or(|name| !used.contains(&name)) {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn revision_path(&self, name: &str) -> Located {
        self.directory
            .join("revisions")
            .join(format!("{}.json", name.replace('/', "_")))
    }
}

/// What is in the file of a journal.
enum Found {
    Nothing,
    Corrupt,
    Whole(Box<State>),
}

fn found(path: &Located) -> Result<Found, JournalError> {
    let bytes = match fs::read(path.path()) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => {
            return Err(JournalError::Io {
                path: path.to_string(),
                action: "reading the journal",
                source,
            });
        }
    };
    if let Some(state) = decode(&bytes) {
        return Ok(Found::Whole(Box::new(state)));
    }
    match newer(&bytes) {
        Some(form) => Err(JournalError::Newer {
            path: path.to_string(),
            form,
        }),
        None => Ok(Found::Corrupt),
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
    let state: State = serde_json::from_value(state).ok()?;
    // What a newer version calls by a name that this one does not know is read, and cannot be written again.
    encode(&state).is_ok().then_some(state)
}

/// Adds the field `begun` to entries that an earlier version of the agent wrote. It is true unless the version is
/// parked (waits for an uninstall) and was never installed. A parked version that was installed before has the field
/// `configured`.
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

/// The format of a journal that a newer version of the agent wrote; `None` for a corrupt journal. A newer journal must
/// not be overwritten. A journal in the known format with a correct digest that cannot be decoded also counts as newer.
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
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
