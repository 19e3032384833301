//! `skyhook-agent validate`: prints errors of a package, and warnings about common mistakes.

use anyhow::{Context as _, bail};
use serde::Serialize;
use skyhook_oci::Root;
use skyhook_oci::package_config::{self, Severity};

use crate::config::{Form, ValidateArgs};

mod scripts;
mod secrets;

/// Something that is wrong, or that may be.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Found {
    severity: &'static str,
    /// The field of config.json, or the file.
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
    message: String,
}

impl Found {
    fn warning(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: "warning",
            field: field.into(),
            message: message.into(),
        }
    }

    fn line(&self) -> String {
        match self.field.as_str() {
            "" => format!("{}: {}", self.severity, self.message),
            field => format!("{}: {field}: {}", self.severity, self.message),
        }
    }
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Report<'a> {
    /// Not there if the package has errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    errors: usize,
    warnings: usize,
    problems: &'a [Found],
}

/// Checks a package. Fails when the package has errors.
pub fn main(args: &ValidateArgs) -> anyhow::Result<()> {
    let directory = &args.directory;
    let report = Root::open(directory)
        .and_then(|package| package_config::load(&package))
        .with_context(|| format!("{} cannot be read", directory.display()))?;
    let problems = report.problems.iter().map(|problem| Found {
        severity: match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        },
        field: problem.field.clone(),
        message: problem.message.clone(),
    });
    let mut problems: Vec<Found> = problems.collect();
    let errors = report.errors().count();
    if let Some(config) = &report.config {
        problems.extend(scripts::look(config, directory));
        problems.extend(secrets::look(config));
    }
    let warnings = problems.len() - errors;
    let config = report.config.as_ref();
    match args.output {
        Form::Text => {
            for problem in &problems {
                println!("{}", problem.line());
            }
            if let Some(config) = config {
                println!("{} {}", config.package_name, config.package_version);
            }
            println!("{errors} errors, {warnings} warnings");
        }
        Form::Json => {
            let report = Report {
                package: config.map(|config| config.package_name.as_str()),
                version: config.map(|config| config.package_version.as_str()),
                errors,
                warnings,
                problems: &problems,
            };
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
    }
    if errors > 0 {
        bail!("{} is not a valid package", directory.display());
    }
    if args.strict && warnings > 0 {
        bail!(
            "{} has warnings, and --strict is given",
            directory.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;

    use super::*;

    /// A symlink out of the package is a warning. Its target may be anything.
    #[test]
    fn a_named_pipe_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let package = directory.path().join("package");
        fs::create_dir_all(package.join("skyhook_dir")).unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        std::os::unix::fs::symlink(&pipe, package.join("skyhook_dir/a.sh")).unwrap();
        let step = serde_json::json!({"name": "s", "path": "a.sh", "arguments": [],
            "returncodes": [0], "on_host": true, "idempotence": true, "upgrade_step": false});
        let config = serde_json::json!({"schema_version": "v1", "package_name": "a",
            "package_version": "1.0.0", "expected_config_files": [],
            "modes": {"apply": [step], "apply-check": [step]}});
        fs::write(package.join("config.json"), config.to_string()).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let args = ValidateArgs {
            directory: package,
            output: Form::Text,
            strict: false,
        };
        std::thread::spawn(move || sender.send(main(&args).map_err(|e| format!("{e:#}"))));
        let judged = receiver.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(judged, Ok(Ok(())), "it waits for the pipe");
    }
}
