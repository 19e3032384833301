//! Warnings about the scripts: what may fail on a host, and what NVIDIA Skyhook refuses.
#![expect(
    clippy::disallowed_methods,
    reason = "this is shell: it reads the package"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use skyhook_oci::package_config::PackageConfig;

use super::Found;

/// Interpreters that every host has.
const SHELLS: [&str; 3] = ["sh", "bash", "dash"];
/// Most levels of directories that are looked at.
const DEPTH: usize = 8;

/// Looks at the scripts of the steps, and at those that they may call.
pub(super) fn look(config: &PackageConfig, directory: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    let root = directory.join("skyhook_dir");
    let mut steps = BTreeSet::new();
    for (mode, all) in &config.modes {
        for (n, step) in all.iter().enumerate() {
            let field = format!("modes.{mode}[{n}].path");
            let path = root.join(&step.path);
            steps.insert(path.clone());
            let Some((content, is_executable)) = read(&path) else {
                continue;
            };
            let mut warn = |problem: &str| {
                found.push(Found::warning(&field, format!("{} {problem}", step.path)));
            };
            if !is_executable {
                warn(
                    "is not executable: the agent makes it executable when it runs this step, and a script that calls it before that fails",
                );
            }
            for problem in problems(&content) {
                warn(&problem);
            }
        }
    }
    let mut others = Vec::new();
    files(&root, DEPTH, &mut others);
    for path in others.into_iter().filter(|path| !steps.contains(path)) {
        let Some((content, false)) = read(&path) else {
            continue;
        };
        if content.starts_with(b"#!") {
            let name = path.strip_prefix(directory).unwrap_or(&path);
            found.push(Found::warning(
                name.display().to_string(),
                "is a script and not executable: a step that calls it by its path fails",
            ));
        }
    }
    found
}

/// The content of a regular file, and whether it is executable. To read a named pipe could take for ever.
fn read(path: &Path) -> Option<(Vec<u8>, bool)> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let content = fs::read(path).ok()?;
    Some((content, metadata.permissions().mode() & 0o111 != 0))
}

/// The regular files below a directory, in order. Symlinks are not followed.
fn files(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut entries: Vec<fs::DirEntry> = entries.collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => files(&entry.path(), depth - 1, found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
}

fn problems(content: &[u8]) -> Vec<String> {
    let mut problems = Vec::new();
    if content.starts_with(b"\x7fELF") {
        return problems;
    }
    let first = content.split(|b| *b == b'\n').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    let interpreter = interpreter(&first);
    match &interpreter {
        None => problems.push(
            "has no #! line: sh runs it here, and NVIDIA Skyhook cannot run it (write #!/bin/bash)"
                .to_owned(),
        ),
        Some(name) if !SHELLS.contains(&name.as_str()) => problems.push(format!(
            "is run by {name}, which not every host has: the step fails where it is missing"
        )),
        Some(_) => {}
    }
    if interpreter.is_some_and(|name| name != "bash") && contains(content, b"[[ ") {
        problems.push("uses [[ but is not run by bash (write #!/bin/bash)".to_owned());
    }
    if contains(content, b"\r\n") {
        problems.push(
            "has CRLF line ends: the host looks for an interpreter that ends in a carriage return"
                .to_owned(),
        );
    }
    problems
}

/// The name of the program that runs a script with this first line: `bash` in `#!/usr/bin/env -S bash -e`.
fn interpreter(first: &str) -> Option<String> {
    let mut words = first.strip_prefix("#!")?.split_whitespace();
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let program = name(words.next()?);
    if program != "env" {
        return Some(program);
    }
    let is_program = |word: &&str| !word.starts_with('-') && !word.contains('=');
    Some(words.find(is_program).map_or(program, name))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commonly_breaks() {
        for (content, want) in [
            ("#!/bin/bash\n[[ -f x ]]\n", vec![]),
            ("#!/usr/bin/env bash\n[[ -f x ]]\n", vec![]),
            ("#!/usr/bin/env -S A=b bash -e\n[[ -f x ]]\n", vec![]),
            ("#! /bin/sh -e\necho\n", vec![]),
            ("#!/bin/sh\nif [[ -f x ]]; then :; fi\n", vec!["[["]),
            ("#!/usr/bin/python3\n", vec!["python3"]),
            ("#!/usr/bin/env perl\n", vec!["perl"]),
            ("#!\n", vec!["#!"]),
            ("echo\n", vec!["#!"]),
            ("#!/bin/bash\r\necho\r\n", vec!["CRLF"]),
            ("\x7fELF\r\n", vec![]),
        ] {
            let problems = problems(content.as_bytes());
            assert_eq!(problems.len(), want.len(), "{content:?}: {problems:?}");
            for (problem, word) in problems.iter().zip(want) {
                assert!(problem.contains(word), "{problem}");
            }
        }
    }
}
