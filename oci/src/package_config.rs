//! A package's `config.json`, schema v1, typed.
//!
//! Every problem is found and named by its field, not only the first one: the agent refuses a
//! package with any error and logs the warnings, `validate` prints them all.

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
    /// Keys of the config map that have to be there.
    pub expected_config_files: Vec<String>,
    /// Steps by mode (`apply`, `apply-check`, …). Modes without steps are left out.
    pub modes: BTreeMap<String, Vec<Step>>,
}

/// One step of a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    /// Below `skyhook_dir`.
    pub path: String,
    /// `env:NAME` stands for a variable's value.
    pub arguments: Vec<String>,
    /// Exit codes that mean success.
    pub returncodes: Vec<i64>,
    pub on_host: bool,
    /// The script itself sees to it that running again is harmless: it runs every time.
    pub idempotence: bool,
    /// Gets the previous and the new version as arguments.
    pub upgrade_step: bool,
    pub env: BTreeMap<String, String>,
}

/// Whether a problem makes the package unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Error,
    Warning,
}

/// Something wrong with a `config.json`.
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
    /// There unless a problem is an error.
    pub config: Option<PackageConfig>,
    /// In the order of the document.
    pub problems: Vec<Problem>,
}

/// A `config.json` with errors: all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub struct ConfigError(pub Vec<Problem>);

impl Report {
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
    }

    pub fn warnings(&self) -> impl Iterator<Item = &Problem> {
        self.problems
            .iter()
            .filter(|problem| problem.severity == Severity::Warning)
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

/// What a step's path leads to, as the check asks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepFile {
    Present,
    Missing,
    /// A symlink out of the package: it depends on the host whether it can run.
    Outside,
}

#[cfg(test)]
mod tests;
