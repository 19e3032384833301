//! What tests of several crates need: to say that a test cannot run here, and to run a test again in another process.
#![expect(
    clippy::disallowed_methods,
    reason = "tests read their environment and start processes"
)]

use std::io::Write as _;
use std::process::{Command, Output};

/// Says that a test cannot run here.
///
/// # Panics
/// When `CI` is `true`: a test that does not run there is a failure.
pub fn cannot_run(test: &str, why: &str) {
    assert!(
        !std::env::var("CI").is_ok_and(|ci| ci == "true"),
        "{test} cannot run in CI: {why}"
    );
    skipped(test, why);
}

/// Says that a test did not run.
pub fn skipped(test: &str, why: &str) {
    aloud(&format!("!!!! SKIPPED {test}: {why}"));
}

/// Prints a line that is seen although the test passes. Then libtest hides what `println!` and `eprintln!` print.
pub fn aloud(line: &str) {
    // If stderr is closed, nobody wants to read the line.
    let _closed = writeln!(std::io::stderr().lock(), "\n{line}");
}

/// True if this process is root. If it is not, says that the test cannot run.
///
/// # Panics
/// When `CI` is `true` and this process is not root.
#[must_use]
pub fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        cannot_run(test, "it needs root");
    }
    is_root
}

/// The environment variable with the name of the test that runs again.
const AGAIN: &str = "SKYHOOK_TEST_AGAIN";

/// True in the process that [`again`] has started for this test.
#[must_use]
pub fn is_again(test: &str) -> bool {
    std::env::var(AGAIN).is_ok_and(|name| name == test)
}

/// Runs a test again, in the process that `command` starts: with the program of the test and its arguments as the last
/// arguments. `test` is the test's name with its modules, such as `room::tests::name`. Returns what the process printed.
///
/// # Panics
/// When the test fails in that process.
pub fn again(test: &str, mut command: Command) -> Output {
    let own = std::env::current_exe().expect("a test has a program");
    let output = command
        .arg(own)
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(AGAIN, test)
        .output()
        .expect("the program that runs the test again can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs the test again in a process with its own mount namespace, where it may mount file systems. Returns true in
/// that process. Without root, the test cannot run.
///
/// # Panics
/// When the test fails in that process, and when `CI` is `true` and this process is not root.
#[must_use]
pub fn in_own_mounts(test: &str) -> bool {
    if is_again(test) {
        return true;
    }
    if is_root(test) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        again(test, command);
    }
    false
}
