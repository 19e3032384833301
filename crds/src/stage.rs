//! What a package goes through on a node, and how NVIDIA Skyhook spells it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One stage of a package on a node.
///
/// ```text
/// install:    apply ──► config ──► [interrupt ──► post-interrupt]
/// upgrade:    upgrade ─► config ──► […]
/// downgrade:  uninstall (old) ──► apply (new) ──► config ──► […]
/// removal:    uninstall
/// asked for:  uninstall ─► [uninstall-interrupt]
/// ```
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Uninstall,
    /// The package is uninstalled, and the interrupt of that comes next. Then its entry is removed.
    UninstallInterrupt,
    Upgrade,
    Apply,
    Config,
    Interrupt,
    PostInterrupt,
    /// One of a later version. It is only read: this version writes none, and the schema has none.
    #[serde(other, skip_serializing)]
    #[schemars(skip)]
    Unknown,
}

impl Stage {
    /// Every stage that this version knows, in the order in which a package can meet them.
    pub const ALL: [Self; 7] = [
        Self::Uninstall,
        Self::UninstallInterrupt,
        Self::Upgrade,
        Self::Apply,
        Self::Config,
        Self::Interrupt,
        Self::PostInterrupt,
    ];

    /// The name in annotations, status and `config.json` modes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uninstall => "uninstall",
            Self::UninstallInterrupt => "uninstall-interrupt",
            Self::Upgrade => "upgrade",
            Self::Apply => "apply",
            Self::Config => "config",
            Self::Interrupt => "interrupt",
            Self::PostInterrupt => "post-interrupt",
            Self::Unknown => "unknown",
        }
    }

    /// The name of the check mode that follows the stage; an interrupt has none.
    #[must_use]
    pub const fn check(self) -> Option<&'static str> {
        match self {
            Self::Uninstall => Some("uninstall-check"),
            Self::Upgrade => Some("upgrade-check"),
            Self::Apply => Some("apply-check"),
            Self::Config => Some("config-check"),
            Self::PostInterrupt => Some("post-interrupt-check"),
            Self::UninstallInterrupt | Self::Interrupt | Self::Unknown => None,
        }
    }

    /// The stage after this one for a package that stays installed; `None` when the cycle ends here.
    #[must_use]
    pub const fn next(self, has_interrupt: bool) -> Option<Self> {
        match (self, has_interrupt) {
            (Self::Uninstall | Self::UninstallInterrupt, _) => Some(Self::Apply),
            (Self::Upgrade | Self::Apply, _) => Some(Self::Config),
            (Self::Config, true) => Some(Self::Interrupt),
            (Self::Interrupt, _) => Some(Self::PostInterrupt),
            (Self::Config, false) | (Self::PostInterrupt | Self::Unknown, _) => None,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a package fares in its stage.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Complete,
    InProgress,
    /// The package's interrupt is done by another package of the same wave.
    Skipped,
    Erroring,
    /// Written by NVIDIA Skyhook. A state of a later version is read as this one.
    #[serde(other)]
    Unknown,
}

impl State {
    /// The name in annotations and status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::InProgress => "in_progress",
            Self::Skipped => "skipped",
            Self::Erroring => "erroring",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Status of a Skyhook, or of a Skyhook on one node.
#[derive(
    Serialize,
    Deserialize,
    JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Unknown,
    Complete,
    /// Something outside the roll-out keeps it from starting: a taint, the ignore label, a missing policy.
    Blocked,
    /// Its turn has not come: an earlier Skyhook, or the budget.
    Waiting,
    Disabled,
    Paused,
    InProgress,
    Erroring,
}

impl Status {
    /// The name in annotations, labels, status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Complete => "complete",
            Self::Blocked => "blocked",
            Self::Waiting => "waiting",
            Self::Disabled => "disabled",
            Self::Paused => "paused",
            Self::InProgress => "in_progress",
            Self::Erroring => "erroring",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(from: Stage, has_interrupt: bool) -> Vec<&'static str> {
        std::iter::successors(Some(from), |s| s.next(has_interrupt))
            .map(Stage::as_str)
            .collect()
    }

    #[test]
    fn paths_are_those_of_nvidia_skyhook() {
        assert_eq!(path(Stage::Apply, false), ["apply", "config"]);
        assert_eq!(
            path(Stage::Apply, true),
            ["apply", "config", "interrupt", "post-interrupt"]
        );
        assert_eq!(path(Stage::Upgrade, false), ["upgrade", "config"]);
        assert_eq!(
            path(Stage::Upgrade, true),
            ["upgrade", "config", "interrupt", "post-interrupt"]
        );
        assert_eq!(
            path(Stage::Uninstall, false),
            ["uninstall", "apply", "config"]
        );
        assert_eq!(
            path(Stage::UninstallInterrupt, false),
            ["uninstall-interrupt", "apply", "config"]
        );
    }

    #[test]
    fn serde_and_as_str_agree() {
        for stage in Stage::ALL {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.as_str());
        }
        for state in [
            State::Complete,
            State::InProgress,
            State::Skipped,
            State::Erroring,
            State::Unknown,
        ] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        for status in [
            Status::Unknown,
            Status::Complete,
            Status::InProgress,
            Status::Erroring,
        ] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
    }
}
