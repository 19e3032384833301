//! The state of interrupts in the journal: which packages wait for an interrupt, whether the host may be interrupted,
//! and how far the interrupt is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skyhook_crds::package::Interrupt;

/// The permission to interrupt the host. The agent has it after it wrote `phase: Running` to a lease that said
/// `Drained`.
///
/// ```text
/// None  ── the lease says Drained, and a package waits for that ────────────────► Asked
/// Asked ── Running is written ──────────────────────────────────────────────────► Granted
/// Asked ── the lease has changed, or the agent is restarted ────────────────────► None
/// None  ── the lease says Drained and Running: the answer to the write was lost ► Granted
/// ```
///
/// `Granted` stays until the end of the lease: after `Running`, the coordinator does not revoke `Drained`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permit {
    #[default]
    None,
    Asked,
    Granted,
}

/// Packages that run apply or upgrade and config together, and then interrupt the host once.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Wave {
    /// Keys of the packages.
    pub members: BTreeSet<String>,
    pub at: WaveAt,
    /// Every member has completed config. No package joins any more, no step starts on the host, and a reboot waits
    /// for running steps.
    #[serde(default)]
    pub due: bool,
    /// What the interrupt waits for while it is prepared or performed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
    /// Failed attempts of the interrupt in a row.
    #[serde(default)]
    pub failures: u32,
    /// Boot in which systemd was asked for a reboot. Any later boot counts as that reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot_asked: Option<String>,
    /// Units to restart, with their invocation IDs before the restart. Another invocation ID means that the unit was
    /// restarted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<String, String>,
    /// Members whose reboot is counted although systemd was not asked yet, or has not answered.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub counted: BTreeSet<String>,
}

/// How far a wave is.
///
/// ```text
/// Gathering             ── every member has completed config, and no step runs that a reboot would end ──► Looking
/// Gathering             ── every member has reached the reboot cap ──────────────────────────────────────► Retry
/// Looking               ── the lease still asks for this work ──────────────────────────► Interrupting, Prepare
/// Looking               ── the same, and an earlier attempt has found the units ────────► Interrupting, Perform
/// Looking               ── it does not, or is stopped or paused ─────────────────────────────────────────► Retry
/// Interrupting, Prepare ── units are found, or no inhibitor is left ────────────────────► Interrupting, Perform
/// Interrupting, Prepare ── stopped or paused ────────────────────────────────────────────────────────────► Retry
/// Interrupting          ── failed ───────────────────────────────────────────────────────────────────────► Retry
/// Interrupting, Perform ── units are restarted ─────────────────────────────────────────────► the wave is over
/// any                   ── the agent is restarted after the reboot that it asked for ───────► the wave is over
/// Looking, Interrupting ── the agent is restarted, without such a reboot ────────────────────────────► Gathering
/// Retry                 ── its time has come ────────────────────────────────────────────────────────► Gathering
/// Retry                 ── all members have reached the cap, and another package joins them ─────────► Gathering
/// ```
///
/// Members that have reached the reboot cap stay in `Retry` after the interrupt of the other members.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum WaveAt {
    /// Members run apply or upgrade, and config.
    #[default]
    #[serde(rename = "Staging")]
    Gathering,
    /// The agent reads the lease before it interrupts the host.
    Looking,
    /// The lease still asks for this work. The interrupt is prepared or performed, in the boot `boot_id`.
    Interrupting {
        owner: String,
        interrupt: Interrupt,
        boot_id: String,
        #[serde(default)]
        part: Part,
    },
    /// The interrupt failed, or could not start. It is tried again at this time, in Unix milliseconds.
    Retry { at: i64 },
}

/// The two parts of an interrupt.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// Nothing on the host has changed: the agent finds units, or reports the reboot and waits for inhibitors. A stop
    /// or a pause cancels the interrupt.
    Prepare,
    /// Units are restarted, or systemd is asked for the reboot. Journals of earlier agents do not distinguish the
    /// parts.
    #[default]
    Perform,
}
