//! Tests of the supervisor as a separate process, without systemd and without root.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests are shell, and end at the first surprise"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skyhook_nodeagent::supervise::{
    LogFile, OutOfMemory, ProcessLimit, RESULT, Resource, Spec, StepResult,
};
use skyhook_testkit::{cannot_run, is_root};
use tempfile::TempDir;

mod cgroups;
mod faults;
mod secrets;

struct Supervisor {
    child: Child,
    directory: TempDir,
}

/// A script that ignores two signals and becomes the supervisor. The supervisor inherits ignored signals.
const PLAINLY: &str = "trap '' HUP USR1; exec \"$0\" supervise";

impl Supervisor {
    fn start(script: &str, change: impl FnOnce(&mut Spec)) -> Self {
        Self::start_by(PLAINLY, |_, _| {}, script, change)
    }

    /// Starts a supervisor with the shell script `by`, which must end with `exec "$0" supervise`. `$1` is the directory
    /// of the step. `place` is called before the specification is sent to the supervisor.
    fn start_by(
        by: &str,
        place: impl FnOnce(Pid, &Path),
        script: &str,
        change: impl FnOnce(&mut Spec),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = Spec {
            directory: directory.path().to_owned(),
            callers_directory: directory.path().to_owned(),
            root: PathBuf::from("/"),
            program: "/bin/bash".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            working_directory: "/tmp".into(),
            log: Some(LogFile {
                directory: directory.path().join("logs"),
                step: "step.sh".into(),
                package: "a".into(),
                mode: "apply".into(),
            }),
            buffer_limit: 8192,
            grace_ms: 500,
            ..Spec::default()
        };
        change(&mut spec);
        let mut child = Command::new("/bin/bash")
            .args(["-c", by])
            .arg(env!("CARGO_BIN_EXE_skyhook-agent"))
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        assert_eq!(&ready, b"r");
        place(
            Pid::from_raw(i32::try_from(child.id()).unwrap()),
            directory.path(),
        );
        let text = serde_json::to_vec(&spec).unwrap();
        child.stdin.take().unwrap().write_all(&text).unwrap();
        Self { child, directory }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Waits until the supervisor writes `d`, and reads the result.
    fn result(&mut self) -> StepResult {
        let mut done = [0];
        let stdout = self.child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut done).unwrap();
        assert_eq!(&done, b"d");
        serde_json::from_slice(&fs::read(self.directory.path().join(RESULT)).unwrap()).unwrap()
    }

    fn log(&self, suffix: &str) -> Vec<u8> {
        let found = fs::read_dir(self.directory.path().join("logs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_string_lossy().ends_with(suffix));
        fs::read(found.unwrap()).unwrap()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // A supervisor that still reads the output of processes that the step left running ends on SIGTERM.
        let _told = kill(self.pid(), Signal::SIGTERM);
        let _ended = self.child.wait();
    }
}

#[test]
fn exit_codes_and_what_was_printed_last() {
    let mut supervisor = Supervisor::start("echo fine; echo the end >&2; exit 42", |_| {});
    let result = supervisor.result();
    assert_eq!((result.code, result.signal), (Some(42), None));
    assert_eq!(result.tail, "the end");
    assert_eq!(result.describe(None), "exited with 42: the end");
    assert!(supervisor.log(".log").ends_with(b" fine\n"));
    assert!(supervisor.log(".err").ends_with(b" the end\n"));
}

#[test]
fn a_program_that_is_not_there_is_a_result() {
    let mut supervisor = Supervisor::start("", |spec| spec.program = "/no/such/program".into());
    let result = supervisor.result();
    assert_eq!(result.code, None);
    assert!(result.error.unwrap().contains("/no/such/program"));
}

#[test]
fn an_agent_that_dies_before_it_sends_a_step_leaves_nothing() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_skyhook-agent"))
        .arg("supervise")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_gigabyte_of_output_costs_neither_memory_nor_disk() {
    let mut supervisor = Supervisor::start("head -c 1000000000 /dev/zero; echo; echo end", |_| {});
    let result = supervisor.result();
    assert_eq!(result.code, Some(0));
    assert!(result.tail.ends_with("end"), "{:?}", result.tail.len());
    assert!(supervisor.log(".log").len() < 33 << 20);
}

/// The most memory of its own, in KiB, that the supervisor uses within a second.
fn peak_kib(supervisor: &Supervisor) -> u64 {
    let begin = Instant::now();
    let mut peak = 0;
    while begin.elapsed() < Duration::from_secs(1) {
        let status = fs::read_to_string(format!("/proc/{}/status", supervisor.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon")).unwrap();
        peak = peak.max(line.split_whitespace().nth(1).unwrap().parse().unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    peak
}

#[test]
fn memory_while_it_prints() {
    let supervisor = Supervisor::start("yes", |_| {});
    let peak = peak_kib(&supervisor);
    assert!(peak < 3072, "{peak} KiB");
}

#[test]
fn one_that_ignores_sigterm_is_killed_after_its_grace_with_all_its_children() {
    let marker = format!("/tmp/skyhook-test-{}", std::process::id());
    let script = format!("trap '' TERM; (while :; do touch {marker}; sleep 0.1; done) & wait");
    let mut supervisor = Supervisor::start(&script, |_| {});
    while !Path::new(&marker).exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let begin = Instant::now();
    kill(supervisor.pid(), Signal::SIGTERM).unwrap();
    let result = supervisor.result();
    let took = begin.elapsed();
    assert!(result.ended);
    assert_eq!(result.signal, Some(Signal::SIGKILL as i32));
    assert!((450..5000).contains(&took.as_millis()), "{took:?}");
    fs::remove_file(&marker).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    assert!(!Path::new(&marker).exists(), "a child went on");
}

#[test]
fn one_that_heeds_sigterm_ends_at_once() {
    let mut supervisor = Supervisor::start("exec sleep 60", |spec| spec.grace_ms = 60_000);
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    kill(supervisor.pid(), Signal::SIGTERM).unwrap();
    let result = supervisor.result();
    assert_eq!((result.ended, result.signal), (true, Some(15)));
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_daemon_that_is_left_behind_holds_nothing_up() {
    let begin = Instant::now();
    let mut supervisor = Supervisor::start("sleep 30 & echo started", |_| {});
    let result = supervisor.result();
    assert_eq!(result.code, Some(0));
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(supervisor.log(".log").ends_with(b" started\n"));
}

#[test]
fn a_step_has_so_much_time() {
    let mut supervisor = Supervisor::start("sleep 60", |spec| spec.timeout_ms = Some(300));
    let result = supervisor.result();
    assert!(result.timed_out && !result.ended);
    assert!(
        (300..10_000).contains(&result.took_ms),
        "{}",
        result.took_ms
    );
    assert_eq!(
        result.describe(Some("300ms")),
        "took longer than 300ms, and was ended"
    );
}

#[test]
fn signals_that_the_agent_ignores_are_not_ignored_by_steps() {
    let mut supervisor = Supervisor::start("grep SigIgn /proc/self/status", |_| {});
    assert_eq!(supervisor.result().code, Some(0));
    let log = String::from_utf8(supervisor.log(".log")).unwrap();
    let ignored = u64::from_str_radix(log.trim().rsplit('\t').next().unwrap(), 16).unwrap();
    // Do not check real-time signals: the C library uses some of them.
    assert_eq!(ignored & 0x7fff_ffff, 0, "{log}");
}

#[test]
fn surroundings_are_fresh() {
    let script = "umask; grep SigBlk /proc/self/status; \
                  readlink /proc/self/fd/0; tty; ulimit -n; pwd; cat /proc/self/oom_score_adj; \
                  tr '\\0' '\\n' </proc/$$/environ; ls /proc/self/fd | wc -l";
    let mut supervisor = Supervisor::start(script, |spec| {
        spec.limits = vec![ProcessLimit {
            resource: Resource::Nofile,
            soft: 77,
            hard: 99,
        }];
        spec.environment.push(("MULTI".into(), "one\ntwo".into()));
    });
    assert_eq!(supervisor.result().code, Some(0));
    let log = String::from_utf8(supervisor.log(".log")).unwrap();
    let lines: Vec<&str> = log
        .lines()
        .map(|line| line.split_once(' ').unwrap().1)
        .collect();
    assert_eq!(
        lines,
        [
            "0022",
            "SigBlk:\t0000000000000000",
            "/dev/null",
            "not a tty",
            "77",
            "/tmp",
            "0",
            "MULTI=one",
            "two",
            "PATH=/usr/bin:/bin",
            // Standard input, output and error, and the directory that ls reads.
            "4",
        ]
    );
}
