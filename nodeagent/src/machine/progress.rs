//! What is on the host and what runs there: the part of the journal that [`super::step`] reads and writes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyhook_crds::installed::{PackageStates, hex};
use skyhook_crds::lease::{Phase, SkyhookRef, StopReason};
use skyhook_crds::package::{Interrupt, PackageStatus, key};
use skyhook_crds::revision::{RevisionData, config_digests, is_finished};
use skyhook_crds::{Package, Stage, State};

mod wave;

pub use wave::{Part, Permit, Wave, WaveAt};

/// Everything about one accepted lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// UID of the lease.
    pub lease: String,
    pub skyhook: SkyhookRef,
    /// Revision that the host is brought to.
    pub revision: String,
    #[serde(default)]
    pub serial: bool,
    /// Packages of the revision, by name.
    pub wanted: BTreeMap<String, Wanted>,
    /// Packages on the host, by `name|version`.
    pub entries: Entries,
    #[serde(default)]
    pub permit: Permit,
    /// Resource version of the lease that said `Drained`, as seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stopping>,
    /// Paused: nothing new starts.
    #[serde(default)]
    pub held: bool,
    /// Set when nothing more is done under the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Phase>,
    /// Number of the next supervisor; never used twice on a host.
    pub next_step: u64,
    /// Boot that this was written in.
    pub boot_id: String,
    /// How often a reboot was asked for, by `name|version`. Counted before it is asked for; forgotten when the package is
    /// complete, when somebody edits it, and with its version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reboots: BTreeMap<String, u32>,
    #[serde(default)]
    pub reboot_cap: RebootCap,
    /// Why this host cannot be worked on at all. Nothing starts while it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unable: Option<String>,
    /// Since when phase, package, stage and state are what they are.
    #[serde(default)]
    pub shown: Shown,
}

/// How many reboots one version of a package may ask for.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebootCap(pub u32);

impl Default for RebootCap {
    fn default() -> Self {
        Self(3)
    }
}

/// What a report shows of all packages, and since when.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub what: String,
    pub since: String,
}

/// Packages by `name|version`.
pub type Entries = BTreeMap<String, Entry>;

/// Why and until when running steps may go on after a stop.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    pub reason: StopReason,
    /// When running steps are ended, in Unix milliseconds; unset: they may take as long as they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_steps_at: Option<i64>,
}

/// What a revision says of a package, as far as decisions need it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    pub version: String,
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_sha: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub depends_on: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupt: Option<Interrupt>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_interrupts: BTreeMap<String, Interrupt>,
    /// Digests of the configuration, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Digest of what restarts a package in mid-cycle when it changes: image, env, resources, agent image.
    pub identity: String,
}

impl Wanted {
    /// The facts of `package`.
    #[must_use]
    pub fn of(package: &Package) -> Self {
        let identity = serde_json::json!([
            package.image,
            package.container_sha,
            package.env,
            package.resources,
            package.agent_image_override,
        ]);
        let digest = Sha256::digest(identity.to_string().as_bytes());
        Self {
            version: package.version.clone(),
            image: package.image.clone(),
            container_sha: package.container_sha.clone(),
            depends_on: package.depends_on.keys().cloned().collect(),
            interrupt: package.interrupt.clone(),
            config_interrupts: package.config_interrupts.clone(),
            config: config_digests(&package.config_map),
            identity: hex(&digest[..16]),
        }
    }

    /// The facts of every package of a revision.
    #[must_use]
    pub fn of_revision(data: &RevisionData) -> BTreeMap<String, Self> {
        data.packages
            .iter()
            .map(|(name, package)| (name.clone(), Self::of(package)))
            .collect()
    }
}

/// One package at one version on the host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub name: String,
    pub version: String,
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_sha: Option<String>,
    pub stage: Stage,
    pub state: State,
    #[serde(default)]
    pub restarts: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default)]
    pub since: String,
    /// What the package was last begun with; `None` when only the Node's record tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<Cycle>,
    /// Digests of the configuration that it was last configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<BTreeMap<String, String>>,
    /// Whether the specification that it was last brought to had an interrupt.
    #[serde(default)]
    pub had_interrupt: bool,
    #[serde(default)]
    pub doing: Doing,
    /// Attempts of the current stage that failed in a row.
    #[serde(default)]
    pub failures: u32,
    #[serde(default)]
    pub image_state: ImageState,
    /// Whether a step of this version has begun on the host. Before that nothing of the version is there: it is not part
    /// of the Node's record, and it is forgotten when it is no longer wanted.
    pub begun: bool,
    /// How often in a row the host went down under a step of the current stage.
    #[serde(default)]
    pub lost_with_host: u32,
}

/// One way of a package through its stages.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Cycle {
    /// Revision whose content the steps use.
    pub revision: String,
    /// Skyhook as it was then: host paths and step environment carry UID and generation.
    pub skyhook: SkyhookRef,
    pub identity: String,
    /// Digests of the configuration that the steps use.
    #[serde(default)]
    pub content: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Stage>,
    /// The interrupt that is still to come in this cycle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupt: Option<Interrupt>,
}

/// Whether a package's image is at hand. Looked at anew after every restart of the agent, and for every lease.
///
/// ```text
/// Unknown ──► Pulling ──► Ready ──► Unknown   a stage could not be prepared: the image may be damaged
///                ▲  │
///                │  ▼
///               Failed                        also from Ready, when the image cannot be used
/// ```
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageState {
    #[default]
    Unknown,
    Pulling {
        #[serde(default)]
        attempts: u32,
    },
    Ready,
    /// Tried again at this time, in Unix milliseconds, which is so long after the failure.
    Failed {
        attempts: u32,
        retry_at: i64,
        #[serde(default)]
        delay_ms: i64,
    },
}

/// What runs for a package now.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum Doing {
    /// The stage has not begun.
    #[default]
    Idle,
    /// The stage's files are being put on the host, to run from `half` on.
    Preparing { half: Half },
    /// At a step boundary: the step at the cursor is next.
    Ready(Cursor),
    /// A supervisor runs the step at the cursor.
    Step(Cursor),
    /// Failed; tried again from `half` at `at`, in Unix milliseconds.
    Retry { at: i64, half: Half },
}

/// The two halves of a stage.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    #[default]
    Main,
    Check,
}

/// A step that a supervisor was, or is about to be, started for.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub id: u64,
    pub half: Half,
    pub index: usize,
    pub plan: StepPlan,
    /// Boot in which the supervisor was started; empty before that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// The supervisor was told to end the step.
    #[serde(default)]
    pub is_to_end: bool,
    /// Checks that failed so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// The steps of a stage.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// For each step of the mode, whether it is run; a step that the host has a flag of is passed over.
    pub main: Vec<bool>,
    /// Number of steps of the check mode.
    pub checks: usize,
}

impl Entry {
    /// A package that the host has nothing of yet.
    #[must_use]
    pub fn new(name: &str, wanted: &Wanted, stage: Stage, state: State, since: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: wanted.version.clone(),
            image: wanted.image.clone(),
            container_sha: wanted.container_sha.clone(),
            stage,
            state,
            restarts: 0,
            image_digest: None,
            message: String::new(),
            since: since.to_owned(),
            cycle: None,
            configured: None,
            had_interrupt: false,
            doing: Doing::Idle,
            failures: 0,
            image_state: ImageState::Unknown,
            begun: false,
            lost_with_host: 0,
        }
    }

    /// A package that the Node's record tells of.
    #[must_use]
    pub fn adopted(status: &PackageStatus) -> Self {
        let wanted = Wanted {
            version: status.version.clone(),
            image: status.image.clone(),
            container_sha: status.container_sha.clone(),
            ..Wanted::default()
        };
        let entry = Self {
            restarts: status.restarts,
            ..Self::new(&status.name, &wanted, status.stage, status.state, "")
        };
        Self {
            // A package is put on record when its first step begins; the one exception is a parked version.
            begun: !entry.is_parked(),
            ..entry
        }
    }

    /// `name|version`.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.name, &self.version)
    }

    /// True when the package has been through its whole cycle.
    #[must_use]
    pub fn is_done(&self) -> bool {
        is_finished(self.stage, self.state)
    }

    /// True for the new version of a downgrade that waits for the old one to be uninstalled.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.stage == Stage::Uninstall && self.state == State::Skipped
    }

    /// True while nothing of the version is on the host and the Node's record does not list it.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.begun && !self.is_parked()
    }

    /// The interrupt that is still to come.
    #[must_use]
    pub fn interrupt(&self) -> Option<&Interrupt> {
        self.cycle.as_ref().and_then(|c| c.interrupt.as_ref())
    }

    /// The entry of the Node's annotation.
    #[must_use]
    pub fn status(&self) -> PackageStatus {
        PackageStatus {
            name: self.name.clone(),
            version: self.version.clone(),
            image: self.image.clone(),
            container_sha: self.container_sha.clone(),
            stage: self.stage,
            state: self.state,
            restarts: self.restarts,
        }
    }

    /// Puts the package at `stage` and `state`, with `since` moved when that is a change.
    pub(crate) fn set(&mut self, stage: Stage, state: State, now: i64) {
        if (self.stage, self.state) != (stage, state) {
            self.since = time(now);
        }
        self.stage = stage;
        self.state = state;
    }
}

impl Progress {
    /// True when a step, a preparation or an interrupt is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let wave = match self.wave.as_ref().map(|w| &w.at) {
            Some(WaveAt::Interrupting { .. }) => true,
            None | Some(WaveAt::Staging | WaveAt::Looking | WaveAt::Retry { .. }) => false,
        };
        wave || self.entries.values().any(|e| match e.doing {
            Doing::Preparing { .. } | Doing::Step(_) => true,
            Doing::Idle | Doing::Ready(_) | Doing::Retry { .. } => false,
        })
    }

    /// Numbers of the supervisors whose steps are not over.
    #[must_use]
    pub fn steps(&self) -> BTreeSet<u64> {
        let ids = self.entries.values().filter_map(|e| match &e.doing {
            Doing::Step(cursor) => Some(cursor.id),
            Doing::Idle | Doing::Preparing { .. } | Doing::Ready(_) | Doing::Retry { .. } => None,
        });
        ids.collect()
    }

    /// True when the entry is of the version that the revision wants.
    #[must_use]
    pub fn is_wanted(&self, entry: &Entry) -> bool {
        self.wanted
            .get(&entry.name)
            .is_some_and(|w| w.version == entry.version)
    }

    /// Key of the wanted version of `name`.
    #[must_use]
    pub fn wanted_key(&self, name: &str) -> Option<String> {
        self.wanted.get(name).map(|w| key(name, &w.version))
    }

    /// True when the wanted version of `name` has been through its whole cycle.
    #[must_use]
    pub fn is_complete(&self, name: &str) -> bool {
        self.wanted_key(name)
            .and_then(|key| self.entries.get(&key))
            .is_some_and(Entry::is_done)
    }
}

/// The Node's record of these entries: what is on the host, and versions that are parked.
#[must_use]
pub fn states(entries: &Entries) -> PackageStates {
    entries
        .iter()
        .filter(|(_, entry)| !entry.is_pending())
        .map(|(key, entry)| (key.clone(), entry.status()))
        .collect()
}

/// RFC 3339 of a time in Unix milliseconds.
#[must_use]
pub fn time(now: i64) -> String {
    jiff::Timestamp::from_second(now.div_euclid(1000))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}
