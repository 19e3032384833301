//! Tests of `logs` and `show` as processes: what they print, and when they end.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests are shell, and end at the first surprise"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A host with the log of one step.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let host = Self(root);
        fs::create_dir_all(host.log().parent().unwrap()).unwrap();
        fs::create_dir_all(host.0.path().join("var/lib")).unwrap();
        host.print("one");
        host
    }

    fn log(&self) -> PathBuf {
        let log = "var/log/skyhook/s/p/1.0.0/a.sh-2024-05-01-120000.log";
        self.0.path().join(log)
    }

    /// What the supervisor does.
    fn print(&self, line: &str) {
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        writeln!(file, "[out]2024-05-01T12:00:00.000000 {line}").unwrap();
    }

    fn agent(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skyhook-agent"));
        command.args(words).env("SKYHOOK_HOST_ROOT", self.0.path());
        command
    }
}

/// A child that is killed when a test fails.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    fn ends(mut self) {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "it goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

const HEAD: &str = "=== s/p 1.0.0 - 2024-05-01T12:00:00Z a.sh ===";

#[test]
fn following_ends_with_the_input_or_with_the_reader() {
    for ends_with in ["input", "reader"] {
        let host = Host::new();
        let words: &[&str] = match ends_with {
            "input" => &["logs", "--follow", "--while-stdin"],
            _ => &["logs", "--follow"],
        };
        let mut running = Running::start(&mut host.agent(words));
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let mut next = || lines.next().unwrap().unwrap();
        assert_eq!(
            [next(), next()],
            [HEAD, "[out]2024-05-01T12:00:00.000000 one"]
        );
        host.print("two");
        assert_eq!(next(), "[out]2024-05-01T12:00:00.000000 two");
        assert!(running.0.try_wait().unwrap().is_none(), "it goes on");
        match ends_with {
            "input" => drop(running.0.stdin.take()),
            _ => drop(lines),
        }
        running.ends();
    }
}

/// As in `kubectl exec` without `-i`: the input has ended before the start.
#[test]
fn following_does_not_need_an_input() {
    let host = Host::new();
    let mut command = host.agent(&["logs", "-f"]);
    let mut running = Running::start(&mut command);
    drop(running.0.stdin.take());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), HEAD);
    std::thread::sleep(Duration::from_millis(1200));
    assert!(running.0.try_wait().unwrap().is_none(), "it goes on");
}

#[test]
fn both_print_what_is_there_and_end() {
    let host = Host::new();
    let output = host.agent(&["logs", "--stage=apply"]).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(
        note.starts_with("1 runs are left out, because their stage is not known"),
        "{note}"
    );
    let output = host.agent(&["show", "-o", "json"]).output().unwrap();
    assert!(output.status.success());
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["journal"]["content"], serde_json::Value::Null);
    assert_eq!(shown["disk"][2]["path"], "/var/log/skyhook");
    let output = host.agent(&["logs", "--stage=interrupt"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
