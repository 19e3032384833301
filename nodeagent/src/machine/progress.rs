//! What is installed and what runs on the host: the part of the journal that [`super::step`] reads and writes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skyhook_crds::installed::PackageStates;
use skyhook_crds::lease::{Phase, SkyhookRef, StopReason};
use skyhook_crds::package::{Interrupt, key};
use skyhook_crds::{Stage, State};

mod entry;
mod wanted;
mod wave;

pub use wanted::{Limits, Wanted};
pub use wave::{Part, Permit, Wave, WaveAt};

/// The work on one accepted lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// UID of the lease.
    pub lease: String,
    pub skyhook: SkyhookRef,
    /// Revision that is installed.
    pub revision: String,
    /// `SKYHOOK_NODE_ORDER` of the steps, if the lease has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<i64>,
    #[serde(default)]
    pub serial: bool,
    /// Packages of the revision, by name.
    pub wanted: BTreeMap<String, Wanted>,
    /// Packages that the revision leaves on the host as they are.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left_behind: BTreeSet<String>,
    /// Packages on the host, by `name|version`.
    pub entries: Entries,
    #[serde(default)]
    pub permit: Permit,
    /// Resource version of the last lease that said `Drained`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stopping>,
    /// The Skyhook is paused: no step starts.
    #[serde(default)]
    pub held: bool,
    /// Set when the work on the lease has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Phase>,
    /// Number of the next step. No number is used twice on a host.
    pub next_step: u64,
    /// Boot ID of the boot in which this progress was written.
    pub boot_id: String,
    /// How often each package asked for a reboot, by `name|version`. Counted before systemd is asked. Removed when the
    /// package is complete, edited, or at another version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reboots: BTreeMap<String, u32>,
    #[serde(default)]
    pub reboot_cap: RebootCap,
    /// When the Node was last read, in Unix milliseconds.
    #[serde(default)]
    pub node_seen_at: i64,
    /// Limits of packages that set none themselves.
    #[serde(default, skip_serializing_if = "Limits::is_unset")]
    pub limits: Limits,
    /// Why the agent cannot work on this host. While this is set, no step starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unable: Option<String>,
    /// Why the lease needs a newer agent. While this is set, nothing is planned either, and the packages stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub too_old: Option<String>,
    /// When phase, package, stage and state last changed.
    #[serde(default)]
    pub shown: Shown,
    /// Whether a step has begun under the lease. `None`: an older agent took the lease, so nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<bool>,
}

/// How many reboots one version of a package may ask for.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebootCap(pub u32);

impl Default for RebootCap {
    fn default() -> Self {
        Self(3)
    }
}

/// What the lease's status shows, and since when it has shown this.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub what: String,
    pub since: String,
}

/// Packages by `name|version`.
pub type Entries = BTreeMap<String, Entry>;

/// Why the lease is stopped, and when steps that still run are ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    pub reason: StopReason,
    /// When running steps are ended, in Unix milliseconds. `None`: running steps have no time limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_steps_at: Option<i64>,
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
    /// The last cycle; `None` when the package is only in the Node's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<Cycle>,
    /// Digests of the configMap's values when the config stage last completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<BTreeMap<String, String>>,
    /// Whether the package had an interrupt when its last cycle started.
    #[serde(default)]
    pub had_interrupt: bool,
    #[serde(default)]
    pub doing: Doing,
    /// Failed attempts of the current stage in a row.
    #[serde(default)]
    pub failures: u32,
    /// Attempts of the current stage that have failed. Not each failure uses up an attempt.
    #[serde(default)]
    pub attempts: u32,
    /// How long the steps of the current attempt ran that have ended, in milliseconds.
    #[serde(default)]
    pub spent_ms: u64,
    /// Revision at which the attempts are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_at: Option<String>,
    #[serde(default)]
    pub image_state: ImageState,
    /// Whether a step of this version has started on the host. Before that the version is not in the Node's record,
    /// and it is dropped when it is no longer wanted.
    #[serde(rename = "begun")]
    pub started: bool,
    /// How often in a row the host went down while a step of the current stage ran.
    #[serde(default)]
    pub lost_with_host: u32,
    /// The version stays on the host, and a lower version of the package was installed over it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_behind: bool,
}

/// One run of a package through its stages.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Cycle {
    /// Revision whose content the steps use.
    pub revision: String,
    /// The Skyhook at the start of the cycle. Its UID and generation are in host paths and in the environment of
    /// steps.
    pub skyhook: SkyhookRef,
    pub identity: String,
    /// Digests of the configuration that the steps use.
    #[serde(default)]
    pub content: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Stage>,
    /// The interrupt that this cycle still has to perform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupt: Option<Interrupt>,
}

/// Whether the image of a package is in the store.
///
/// ```text
/// Unknown ── a stage needs the image ──────────────────────────────────► Pulling
/// Pulling ── the image is in the store ────────────────────────────────► Ready
/// Pulling ── failed ───────────────────────────────────────────────────► Failed
/// Failed  ── its time has come ────────────────────────────────────────► Pulling
/// Ready   ── the image cannot be used ─────────────────────────────────► Failed, and the package fails
/// Ready   ── a stage could not be prepared: the image may be damaged ──► Unknown
/// any     ── the agent is restarted, or a lease or a cycle starts ─────► Unknown
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
    /// The pull is tried again at `retry_at`, in Unix milliseconds, which is `delay_ms` after the failure.
    Failed {
        attempts: u32,
        retry_at: i64,
        #[serde(default)]
        delay_ms: i64,
    },
}

/// What the agent does for a package now.
///
/// ```text
/// Idle      ── its turn ────────────────────────────────► Preparing
/// Preparing ── prepared, and a step has to run ─────────► Ready
/// Preparing ── prepared, and no step has to run ────────► Idle, at the next stage
/// Preparing ── cannot be prepared ──────────────────────► Retry, or Idle when the lease is stopped
/// Preparing ── the agent is restarted ──────────────────► Idle, or Retry at once for the checks
/// Ready     ── a supervisor is started ─────────────────► Step
/// Step      ── exited, and a step is left ──────────────► Ready
/// Step      ── exited, and was the last ────────────────► Idle, at the next stage
/// Step      ── failed, or could not be started ─────────► Retry, or Idle when the lease is stopped
/// Step      ── an earlier agent died before its start ──► Ready
/// Step      ── lost, with the host ─────────────────────► Ready, the third time Retry
/// Step      ── lost, in the same boot ──────────────────► Retry, or Idle when the lease is stopped
/// Step      ── failed, and this was the last attempt ───► GaveUp
/// Idle      ── its interrupt has failed, the same ──────► GaveUp
/// Retry     ── its time has come ───────────────────────► Preparing
/// GaveUp    ── a lease with another revision is taken ──► Retry at once
/// any       ── a lease starts another stage ────────────► Idle
/// ```
///
/// After a failed check the next check runs. The stage fails after the last one.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum Doing {
    /// No step of the stage has started.
    #[default]
    Idle,
    /// The files of the stage are put on the host. Then the steps of `half` run.
    Preparing { half: Half },
    /// The step at the cursor can start.
    Ready(Cursor),
    /// A supervisor runs the step at the cursor.
    Step(Cursor),
    /// An attempt failed. The steps of `half` run again at `at`, in Unix milliseconds.
    Retry { at: i64, half: Half },
    /// The last attempt failed at `at`, in Unix milliseconds. Nothing happens until somebody runs the package again or
    /// changes it.
    GaveUp { half: Half, at: i64 },
}

/// The two halves of a stage.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    #[default]
    Main,
    Check,
}

/// A position in the steps of a stage.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub id: u64,
    pub half: Half,
    pub index: usize,
    pub plan: StepPlan,
    /// Boot in which the supervisor was started. Empty before the start.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// The agent has ended the step, or is about to.
    #[serde(default)]
    pub is_to_end: bool,
    /// Why checks failed so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// The steps of a stage.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// For each step of the mode, whether it runs. A step whose flag is on the host is skipped.
    pub main: Vec<bool>,
    /// Number of steps of the check mode.
    pub checks: usize,
}

impl Progress {
    /// Why nothing runs under the lease: the agent cannot work on this host, or is too old for the lease.
    #[must_use]
    pub const fn hindrance(&self) -> Option<&String> {
        match &self.too_old {
            Some(why) => Some(why),
            None => self.unable.as_ref(),
        }
    }

    /// True while a step, a preparation or an interrupt is running.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let wave = match self.wave.as_ref().map(|w| &w.at) {
            Some(WaveAt::Interrupting { .. }) => true,
            None | Some(WaveAt::Gathering | WaveAt::Looking | WaveAt::Retry { .. }) => false,
        };
        wave || self.entries.values().any(|e| match e.doing {
            Doing::Preparing { .. } | Doing::Step(_) => true,
            Doing::Idle | Doing::Ready(_) | Doing::Retry { .. } | Doing::GaveUp { .. } => false,
        })
    }

    /// True while a package has used up its attempts.
    #[must_use]
    pub fn has_given_up(&self) -> bool {
        self.entries.values().any(Entry::has_given_up)
    }

    /// Numbers of the steps that have started and not ended.
    #[must_use]
    pub fn steps(&self) -> BTreeSet<u64> {
        let ids = self.entries.values().filter_map(|e| match &e.doing {
            Doing::Step(cursor) => Some(cursor.id),
            Doing::Idle
            | Doing::Preparing { .. }
            | Doing::Ready(_)
            | Doing::Retry { .. }
            | Doing::GaveUp { .. } => None,
        });
        ids.collect()
    }

    /// How long and how often the stages of a package are tried.
    #[must_use]
    pub fn limits_of(&self, entry: &Entry) -> Limits {
        let own = self.wanted.get(&entry.name).map(|wanted| wanted.limits);
        own.unwrap_or_default().or(self.limits)
    }

    /// True when the entry is of the version that the revision wants on the host.
    #[must_use]
    pub fn is_wanted(&self, entry: &Entry) -> bool {
        self.wanted
            .get(&entry.name)
            .is_some_and(|w| w.version == entry.version && !w.is_to_go())
    }

    /// Key of the wanted version of `name`.
    #[must_use]
    pub fn wanted_key(&self, name: &str) -> Option<String> {
        self.wanted.get(name).map(|w| key(name, &w.version))
    }

    /// True when the wanted version of `name` has completed its cycle.
    #[must_use]
    pub fn is_complete(&self, name: &str) -> bool {
        self.wanted_key(name)
            .and_then(|key| self.entries.get(&key))
            .is_some_and(Entry::is_done)
    }
}

/// The Node's record of these entries: versions that are on the host or parked.
#[must_use]
pub fn states(entries: &Entries) -> PackageStates {
    entries
        .iter()
        .filter(|(_, entry)| !entry.is_pending())
        .map(|(key, entry)| (key.clone(), entry.status()))
        .collect()
}

/// A time in Unix milliseconds as RFC 3339.
#[must_use]
pub fn time(now: i64) -> String {
    jiff::Timestamp::from_second(now.div_euclid(1000))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}
