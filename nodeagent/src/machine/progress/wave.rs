//! Interrupts, as the journal has them: who waits for one, whether the host may be interrupted, and how far it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skyhook_crds::package::Interrupt;

/// The right to interrupt the host: `phase: Running`, written over the lease that said `Drained`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permit {
    #[default]
    None,
    Asked,
    Granted,
}

/// Packages that are brought up to their interrupt together, and then interrupt the host once.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Wave {
    /// Keys of the packages.
    pub members: BTreeSet<String>,
    pub at: WaveAt,
    /// Every member is through config: no package joins any more, no new step starts on the host, and a reboot waits for
    /// the steps that run.
    #[serde(default)]
    pub due: bool,
    /// What holds the interrupt up while it is carried out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
    /// Attempts of the interrupt that failed in a row.
    #[serde(default)]
    pub failures: u32,
    /// Boot in which a reboot was asked for: another one is that reboot, however it came about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot_asked: Option<String>,
    /// Units that are restarted, with their invocations before that: another one is the restart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<String, String>,
    /// Members whose reboot is counted, though it was not asked for yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub counted: BTreeSet<String>,
}

/// How far a wave is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub enum WaveAt {
    /// Members are on their way through apply or upgrade, and config.
    #[default]
    Staging,
    /// The lease is looked at before the host is interrupted.
    Looking,
    /// The lease stands: the interrupt is prepared, or carried out, in the boot `boot_id`.
    Interrupting {
        owner: String,
        interrupt: Interrupt,
        boot_id: String,
        #[serde(default)]
        part: Part,
    },
    /// The interrupt failed; tried again at this time, in Unix milliseconds.
    Retry { at: i64 },
}

/// The two parts of an interrupt.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// Nothing was touched yet: units are looked up, or a reboot is reported and whoever inhibits it is waited for. A
    /// stop or a pause calls the interrupt off.
    Prepare,
    /// Units are restarted, or the reboot is asked for. Journals of earlier agents do not tell the parts apart.
    #[default]
    Perform,
}
