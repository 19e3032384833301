//! Nobody's machine is rebooted without a question. The runs are under a root directory, from where nothing is rebooted.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use super::*;

fn reboot(package: &Path, root: &Path) -> Command {
    let mut command = configured_run(package, root);
    command.args(["--interrupt", "reboot"]);
    command
}

#[test]
fn without_a_terminal_a_reboot_needs_a_flag() {
    if !is_root("without_a_terminal_a_reboot_needs_a_flag") {
        return;
    }
    let package = package("#!/bin/bash\n: >/ran\n");
    let root = root_with_bash();
    fs::write(package.path().join("key"), "value").unwrap();
    let run = |more: &[&str]| {
        let mut command = reboot(package.path(), root.path());
        command.args(more).stdin(Stdio::null()).output().unwrap()
    };
    let refused = run(&[]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(
        text(&refused).contains("give --allow-reboot"),
        "{}",
        text(&refused)
    );
    assert!(!root.path().join("ran").exists(), "nothing has run");
    for more in [&["--dry-run"][..], &["--stages", "apply,config"]] {
        let output = run(more);
        assert!(output.status.success(), "{}", text(&output));
    }
    let allowed = run(&["--allow-reboot"]);
    assert_eq!(allowed.status.code(), Some(14), "{}", text(&allowed));
    assert!(
        text(&allowed).contains("systemd cannot be reached from here"),
        "{}",
        text(&allowed)
    );
}

/// A pseudo terminal: its two ends.
fn terminal() -> (File, File) {
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
            .unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let slave = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    (File::from(master), slave)
}

#[test]
fn on_a_terminal_the_author_is_asked() {
    if !is_root("on_a_terminal_the_author_is_asked") {
        return;
    }
    let package = package("#!/bin/bash\n");
    let root = root_with_bash();
    fs::write(package.path().join("key"), "value").unwrap();
    for (answer, want) in [
        ("\n", "the machine was not rebooted"),
        ("n\n", "the machine was not rebooted"),
        ("yes\n", "systemd cannot be reached from here"),
    ] {
        let (mut master, slave) = terminal();
        let mut command = reboot(package.path(), root.path());
        let mut child = command
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(command);
        let mut seen = String::new();
        let mut byte = [0];
        while !seen.ends_with("Reboot it? [y/N]: ") {
            assert_eq!(master.read(&mut byte).unwrap(), 1);
            seen.push(char::from(byte[0]));
        }
        master.write_all(answer.as_bytes()).unwrap();
        let mut said = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(14), "{said}");
        assert!(said.contains(want), "{answer:?}: {said}");
    }
}
