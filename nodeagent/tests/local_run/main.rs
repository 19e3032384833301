//! Tests of `local-run` and `validate`, under a directory.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests are shell, and end at the first surprise"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skyhook_testkit::is_root;
use tempfile::TempDir;

mod fresh;
mod output;
mod reboot;
mod skyhook;
mod validate;

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skyhook-agent"))
        .args(args)
        .output()
        .unwrap()
}

/// The command that runs a package under a root directory.
fn local_run(package: &Path, root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skyhook-agent"));
    command
        .arg("local-run")
        .arg(package)
        .args(["--env", "WHO=me", "--root"])
        .arg(root);
    command
}

/// Does the same, with a configMap that has the file `key` of the package's directory.
fn configured_run(package: &Path, root: &Path) -> Command {
    let config_map = format!("key={}", package.join("key").display());
    let mut command = local_run(package, root);
    command.args(["--config-map", &config_map]);
    command
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A package in which every mode runs the same script, with the mode's name as its argument.
fn package(script: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let step = |mode: &str| {
        serde_json::json!([{
            "name": mode, "path": "step.sh", "arguments": [mode, "env:WHO"], "returncodes": [0, 3],
            "on_host": true, "idempotence": true, "upgrade_step": false, "env": {"FROM_STEP": "yes"},
        }])
    };
    let upgrade = serde_json::json!([{
        "name": "upgrade", "path": "step.sh", "arguments": [], "returncodes": [0],
        "on_host": true, "idempotence": true, "upgrade_step": true,
    }]);
    let modes = serde_json::json!({
        "apply": step("apply"), "apply-check": step("apply-check"),
        "config": step("config"), "config-check": step("config-check"),
        "upgrade": upgrade, "upgrade-check": step("upgrade-check"),
    });
    let config = serde_json::json!({
        "schema_version": "v1", "package_name": "a_package", "package_version": "1.2.3",
        "expected_config_files": ["key"], "modes": modes,
    });
    fs::create_dir_all(directory.path().join("skyhook_dir")).unwrap();
    fs::create_dir_all(directory.path().join("root_dir/etc/a")).unwrap();
    fs::write(directory.path().join("root_dir/etc/a/file"), "laid over\n").unwrap();
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let path = directory.path().join("skyhook_dir/step.sh");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    directory
}

/// An empty root directory.
fn root() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_dry_run_says_what_would_run_and_runs_nothing() {
    let package = package("#!/bin/bash\n");
    let root = root();
    let output = local_run(package.path(), root.path())
        .args(["--interrupt", "service:cron", "--dry-run"])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for line in [
        "apply: apply (step.sh apply env:WHO)",
        "config-check: config-check",
        "interrupt: restart of cron",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    for folder in ["var/log/skyhook", "var/lib/skyhook"] {
        assert!(!root.path().join(folder).exists(), "{folder}");
    }
}

/// Copies a program and its shared libraries to a root directory.
fn install(root: &Path, program: &str) {
    let ldd = Command::new("ldd").arg(program).output().unwrap();
    let libraries = String::from_utf8_lossy(&ldd.stdout).into_owned();
    let files = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .chain([program]);
    for file in files {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

/// A root directory in which scripts run.
fn root_with_bash() -> TempDir {
    let root = root();
    install(root.path(), "/bin/bash");
    fs::create_dir_all(root.path().join("dev")).unwrap();
    root
}

#[test]
fn an_install_and_an_upgrade_under_a_root() {
    if !is_root("an_install_and_an_upgrade_under_a_root") {
        return;
    }
    let package = package(
        "#!/bin/bash\necho \"$* $FROM_STEP $PREVIOUS_VERSION $CURRENT_VERSION $(</etc/a/file) $(<configmaps/key) $SKYHOOK_NODE_ORDER\" >>/log\n\
         [[ $1 == apply ]] && exit 3\n[[ $FAIL != \"$1\" ]]\n",
    );
    let root = root_with_bash();
    fs::write(package.path().join("key"), "value").unwrap();
    let run = |more: &[&str]| {
        let mut command = configured_run(package.path(), root.path());
        command.args(more).output().unwrap()
    };
    let log = || fs::read_to_string(root.path().join("log")).unwrap_or_default();

    let output = local_run(package.path(), root.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(12), "{}", text(&output));
    assert!(
        text(&output).contains("expected config file key is missing"),
        "{}",
        text(&output)
    );

    let output = run(&[]);
    assert!(output.status.success(), "{}", text(&output));
    let want = ["apply", "apply-check", "config", "config-check"]
        .map(|mode| format!("{mode} me yes   laid over value 0\n"))
        .concat();
    assert_eq!(log(), want);
    let history = root
        .path()
        .join("var/lib/skyhook/local-run/history/a_package.json");
    assert!(fs::read_to_string(history).unwrap().contains("1.2.3"));

    fs::remove_file(root.path().join("log")).unwrap();
    let output = run(&["--upgrade-from", "1.0.0"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        log().starts_with("1.0.0 1.2.3  1.0.0 1.2.3 laid over value 0\n"),
        "{}",
        log()
    );

    fs::remove_file(root.path().join("log")).unwrap();
    let output = run(&["--env", "SKYHOOK_NODE_ORDER=7", "--stages", "config"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(log().ends_with(" value 7\n"), "{}", log());

    let output = run(&["--env", "FAIL=config"]);
    assert_eq!(output.status.code(), Some(13), "{}", text(&output));
    assert!(
        text(&output).contains("config step config exited with 1"),
        "{}",
        text(&output)
    );
}

/// A package and a root directory. The step of the package traps SIGTERM.
fn stubborn() -> (TempDir, TempDir) {
    let package = package(
        "#!/bin/bash\ntrap 'echo told >>/log; exit 0' TERM\n: >/begun\nwhile :; do sleep 0.1; done\n",
    );
    let root = root_with_bash();
    install(root.path(), "/bin/sleep");
    fs::write(package.path().join("key"), "value").unwrap();
    (package, root)
}

fn await_file(file: &Path) {
    let begin = Instant::now();
    while !file.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never began");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_step_that_takes_too_long_has_failed_even_if_it_exits_with_0() {
    if !is_root("a_step_that_takes_too_long_has_failed_even_if_it_exits_with_0") {
        return;
    }
    let (package, root) = stubborn();
    let temporary = tempfile::tempdir().unwrap();
    let output = configured_run(package.path(), root.path())
        .env("TMPDIR", temporary.path())
        .args(["--step-timeout-seconds", "1"])
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(12), "{said}");
    assert!(said.contains("took longer than 1s"), "{said}");
}

#[test]
fn a_signal_ends_the_step_and_leaves_nothing() {
    if !is_root("a_signal_ends_the_step_and_leaves_nothing") {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (package, root) = stubborn();
        let temporary = tempfile::tempdir().unwrap();
        let mut child = configured_run(package.path(), root.path())
            .env("TMPDIR", temporary.path())
            .spawn()
            .unwrap();
        await_file(&root.path().join("begun"));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{signal}");
        assert_eq!(
            fs::read_to_string(root.path().join("log")).unwrap(),
            "told\n"
        );
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
        assert!(left.is_empty(), "{signal}: {left:?}");
    }
}

/// Absolute symlinks below the root directory must be resolved inside it, so that all files are written below it.
#[test]
fn nothing_is_written_outside_of_the_root() {
    if !is_root("nothing_is_written_outside_of_the_root") {
        return;
    }
    let package = package("#!/bin/bash\necho \"$1 in $PWD\" >>/log\n");
    fs::write(package.path().join("root_dir/etc/a/more"), "more\n").unwrap();
    let root = root();
    install(root.path(), "/bin/bash");
    let outside = tempfile::tempdir().unwrap();
    for (name, link) in [
        ("copies", "var/lib/skyhook"),
        ("logs", "var/log/skyhook"),
        ("a", "etc/a"),
    ] {
        let (target, link) = (outside.path().join(name), root.path().join(link));
        fs::create_dir_all(&target).unwrap();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&target, link).unwrap();
        // The same path inside the root directory.
        let inside = root.path().join(target.strip_prefix("/").unwrap());
        fs::create_dir_all(inside).unwrap();
    }
    fs::create_dir_all(root.path().join("dev")).unwrap();
    fs::write(package.path().join("key"), "value").unwrap();
    let output = configured_run(package.path(), root.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    for name in ["copies", "logs", "a"] {
        let target = outside.path().join(name);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{name}");
        let inside = root.path().join(target.strip_prefix("/").unwrap());
        assert!(fs::read_dir(inside).unwrap().count() > 0, "{name}");
    }
    let log = fs::read_to_string(root.path().join("log")).unwrap();
    let copy = outside
        .path()
        .join("copies/local-run/a-package-1.2.3-local-1");
    assert!(
        log.starts_with(&format!("apply in {}\n", copy.display())),
        "{log}"
    );
}
