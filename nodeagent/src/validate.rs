//! `skyhook-agent validate`: prints errors of a package, and warnings about common mistakes.
#![expect(
    clippy::disallowed_methods,
    reason = "this is shell: it reads the package"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use skyhook_oci::Root;
use skyhook_oci::package_config::{self, PackageConfig};

use crate::config::ValidateArgs;

/// Checks a package. Fails when the package has errors.
pub fn main(args: &ValidateArgs) -> anyhow::Result<()> {
    let directory = &args.directory;
    let report = Root::open(directory)
        .and_then(|package| package_config::load(&package))
        .with_context(|| format!("{} cannot be read", directory.display()))?;
    let mut errors = 0;
    let mut warnings = 0;
    for problem in &report.problems {
        match problem.severity {
            package_config::Severity::Error => {
                errors += 1;
                println!("error: {problem}");
            }
            package_config::Severity::Warning => {
                warnings += 1;
                println!("warning: {problem}");
            }
        }
    }
    if let Some(config) = &report.config {
        for warning in warn(config, directory) {
            warnings += 1;
            println!("warning: {warning}");
        }
        println!("{} {}", config.package_name, config.package_version);
    }
    println!("{errors} errors, {warnings} warnings");
    if errors > 0 {
        bail!("{} is not a valid package", directory.display());
    }
    Ok(())
}

/// Warnings about problems that `config.json` does not show: steps that may fail on a host.
fn warn(config: &PackageConfig, directory: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    for (mode, steps) in &config.modes {
        for (n, step) in steps.iter().enumerate() {
            let field = format!("modes.{mode}[{n}].path");
            let path = directory.join("skyhook_dir").join(&step.path);
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            // The report has an error for it, and to read a named pipe could take for ever.
            if !metadata.is_file() {
                continue;
            }
            if metadata.permissions().mode() & 0o111 == 0 {
                warnings.push(format!(
                    "{field}: {} is not executable: the agent makes it executable when it runs this step, and a script that calls it before that fails",
                    step.path
                ));
            }
            let Ok(content) = fs::read(&path) else {
                continue;
            };
            warnings.extend(
                script_problems(&content)
                    .into_iter()
                    .map(|problem| format!("{field}: {} {problem}", step.path)),
            );
        }
    }
    warnings
}

fn script_problems(content: &[u8]) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if content.starts_with(b"\x7fELF") {
        return problems;
    }
    let first = content.split(|b| *b == b'\n').next().unwrap_or_default();
    if !first.starts_with(b"#!") {
        problems.push("has no #! line: the host cannot execute it (write #!/bin/bash)");
    } else if !contains(first, b"bash") && contains(content, b"[[ ") {
        problems.push("uses [[ but is not run by bash (write #!/bin/bash)");
    }
    if contains(content, b"\r\n") {
        problems.push(
            "has CRLF line ends: the host looks for an interpreter that ends in a carriage return",
        );
    }
    problems
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
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
        let args = ValidateArgs { directory: package };
        std::thread::spawn(move || sender.send(main(&args).map_err(|e| format!("{e:#}"))));
        let judged = receiver.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(judged, Ok(Ok(())), "it waits for the pipe");
    }

    #[test]
    fn what_commonly_breaks() {
        for (content, want) in [
            ("#!/bin/bash\n[[ -f x ]]\n", vec![]),
            ("#!/bin/sh\necho\n", vec![]),
            ("#!/bin/sh\nif [[ -f x ]]; then :; fi\n", vec!["[["]),
            ("echo\n", vec!["#!"]),
            ("#!/bin/bash\r\necho\r\n", vec!["CRLF"]),
            ("\x7fELF\r\n", vec![]),
        ] {
            let problems = script_problems(content.as_bytes());
            assert_eq!(problems.len(), want.len(), "{content:?}: {problems:?}");
            for (problem, word) in problems.iter().zip(want) {
                assert!(problem.contains(word), "{problem}");
            }
        }
    }
}
