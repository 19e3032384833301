//! Completion of the command line: scripts for shells, and what kubectl asks a plugin for.

use std::io::Write;

use clap::{Command, CommandFactory as _, ValueEnum};

/// Who completes.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
    /// kubectl itself, for `kubectl skyhook`.
    Kubectl,
}

/// kubectl runs this file with the words of the command line.
const FOR_KUBECTL: &str = "#!/bin/sh\nexec kubectl-skyhook __complete \"$@\"\n";

impl Shell {
    /// Writes the script.
    pub fn script(self, out: &mut dyn Write) -> std::io::Result<()> {
        let shell = match self {
            Self::Bash => clap_complete::Shell::Bash,
            Self::Zsh => clap_complete::Shell::Zsh,
            Self::Fish => clap_complete::Shell::Fish,
            Self::Kubectl => return out.write_all(FOR_KUBECTL.as_bytes()),
        };
        let mut script = Vec::new();
        // A script for bash looks for nested commands under a name of the program without hyphens.
        let name = match self {
            Self::Bash => "kubectl_skyhook",
            Self::Zsh | Self::Fish | Self::Kubectl => PROGRAM,
        };
        let mut command = super::Cli::command().name(name);
        clap_complete::generate(shell, &mut command, name, &mut script);
        let script = String::from_utf8_lossy(&script);
        for line in script.lines() {
            let registers = line.trim_start().starts_with("complete -F");
            let head = line.strip_suffix(name).filter(|_| registers);
            match head {
                Some(head) => writeln!(out, "{head}{PROGRAM}")?,
                None => writeln!(out, "{line}")?,
            }
        }
        Ok(())
    }
}

/// The name of the program.
const PROGRAM: &str = "kubectl-skyhook";

/// Asks the shell to complete nothing itself, such as names of files.
const NO_FILES: &str = ":4";

/// What can come in place of the last word: one candidate and its description on each line, then a directive, as kubectl
/// expects it.
#[must_use]
pub(crate) fn candidates(words: &[String]) -> String {
    let mut root = super::Cli::command();
    root.build();
    let (last, before) = words
        .split_last()
        .map_or(("", words), |(last, before)| (last.as_str(), before));
    let mut command: &Command = &root;
    for word in before {
        if let Some(inner) = command.find_subcommand(word) {
            command = inner;
        }
    }
    let mut found: Vec<(String, String)> = Vec::new();
    if last.starts_with('-') {
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let help = arg.get_help().map(ToString::to_string);
            if let Some(long) = arg.get_long() {
                found.push((format!("--{long}"), help.unwrap_or_default()));
            }
        }
    } else {
        for inner in command
            .get_subcommands()
            .filter(|inner| !inner.is_hide_set())
        {
            let about = inner.get_about().map(ToString::to_string);
            found.push((inner.get_name().to_owned(), about.unwrap_or_default()));
        }
    }
    let mut text = String::new();
    for (name, about) in found.iter().filter(|(name, _)| name.starts_with(last)) {
        text.push_str(&format!("{name}\t{about}\n"));
    }
    text.push_str(NO_FILES);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn names(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let text = candidates(&words);
        let lines = text.lines().map(|line| line.split('\t').next());
        lines.flatten().map(str::to_owned).collect()
    }

    #[test]
    fn kubectl_gets_commands_and_flags() {
        for (words, want) in [
            (vec!["pa"], vec!["pause", "package", ":4"]),
            (
                vec!["node", ""],
                vec![
                    "list", "status", "reset", "ignore", "unignore", "help", ":4",
                ],
            ),
            (vec!["node", "un"], vec!["unignore", ":4"]),
            (vec!["dp", "r"], vec!["reset", ":4"]),
            (vec!["reset", "x", "--pack"], vec!["--package", ":4"]),
            (vec!["node", "list", "--kubec"], vec!["--kubeconfig", ":4"]),
            (vec!["__"], vec![":4"]),
        ] {
            assert_eq!(names(&words), want, "{words:?}");
        }
    }

    #[test]
    fn every_shell_has_a_script() {
        for (shell, want) in [
            (Shell::Bash, "-o default kubectl-skyhook\n"),
            (Shell::Zsh, "#compdef kubectl-skyhook"),
            (Shell::Fish, "complete -c kubectl-skyhook"),
            (Shell::Kubectl, "kubectl-skyhook __complete"),
        ] {
            let script = script(shell);
            assert!(script.contains(want), "{shell:?}: {script:.300}");
        }
    }

    fn script(shell: Shell) -> String {
        let mut script = Vec::new();
        shell.script(&mut script).unwrap();
        String::from_utf8(script).unwrap()
    }

    #[test]
    fn bash_completes_commands_and_flags() {
        for (words, want) in [
            (vec!["pa"], "pause package"),
            (vec!["node", "un"], "unignore"),
            (vec!["dp", "re"], "reset"),
            (vec!["reset", "--skip"], "--skip-batch-reset"),
        ] {
            let line = words.join(" ");
            let (last, at) = (words[words.len() - 1], words.len());
            let ask = format!(
                "{}\nCOMP_WORDS=(kubectl-skyhook {line}); COMP_CWORD={at}\n\
                 _kubectl_skyhook kubectl-skyhook {last} x\necho \"${{COMPREPLY[@]}}\"",
                script(Shell::Bash)
            );
            // The script is too long for an argument.
            let mut bash = std::process::Command::new("bash")
                .args(["--norc", "-s"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("bash runs");
            let mut input = bash.stdin.take().unwrap();
            input.write_all(ask.as_bytes()).unwrap();
            drop(input);
            let output = bash.wait_with_output().unwrap();
            let given = String::from_utf8(output.stdout).unwrap();
            assert_eq!(given.trim(), want, "{line}");
        }
    }
}
