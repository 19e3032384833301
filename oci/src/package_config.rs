//! The configuration of a package: its `config.json` with schema v1.
//!
//! The check finds all problems, not only the first one, and names the field of each. The agent refuses a package
//! with errors and logs the warnings. The command `validate` prints all problems.

use std::collections::BTreeMap;
use std::fmt;

mod check;
mod load;

pub use check::check;
pub use load::load;

/// A package's configuration that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageConfig {
    pub package_name: String,
    pub package_version: String,
    /// Keys that must be in the ConfigMap of the package.
    pub expected_config_files: Vec<String>,
    /// Steps by mode (`apply`, `apply-check`, …). Modes without steps are left out.
    pub modes: BTreeMap<String, Vec<Step>>,
}

/// One step of a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    /// Path of the script below `skyhook_dir`.
    pub path: String,
    /// An argument `env:NAME` is replaced with the value of the environment variable `NAME`.
    pub arguments: Vec<String>,
    /// Exit codes that mean success.
    pub returncodes: Vec<i64>,
    pub on_host: bool,
    /// The script does no harm if it runs again, so it is run every time.
    pub idempotence: bool,
    /// The script gets the previous and the new version as arguments.
    pub upgrade_step: bool,
    pub env: BTreeMap<String, String>,
}

/// Whether a problem makes the package unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Error,
    Warning,
}

/// One problem in a `config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// Path of the field, such as `modes.apply[0].name`; empty for the document itself.
    pub field: String,
    pub message: String,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `None` if one of the problems is an error.
    pub config: Option<PackageConfig>,
    /// In the order in which the check found them.
    pub problems: Vec<Problem>,
}

/// All errors of a `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub struct ConfigError(pub Vec<Problem>);

impl Report {
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
    }

    /// The configuration with its warnings, or all errors.
    pub fn into_result(self) -> Result<(PackageConfig, Vec<Problem>), ConfigError> {
        let (errors, warnings) = self
            .problems
            .into_iter()
            .partition(|problem| problem.severity == Severity::Error);
        match self.config {
            Some(config) => Ok((config, warnings)),
            None => Err(ConfigError(errors)),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

/// What exists at the path of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepFile {
    Present,
    Missing,
    /// A symlink that leads out of the package. It depends on the host whether the script exists.
    Outside,
}

#[cfg(test)]
mod tests;
