//! Tests of problems around a step: full disks, missing namespaces, signals at the wrong time.

use super::*;

#[test]
fn a_host_that_cannot_be_entered_is_a_result() {
    if !is_root("a_host_that_cannot_be_entered_is_a_result") {
        return;
    }
    let without_proc = "exec unshare -m --propagation private bash -c \
                        'mount -t tmpfs none /proc; exec \"$0\" supervise' \"$0\"";
    let mut supervisor = Supervisor::start_by(
        without_proc,
        |_, _| {},
        "touch ran",
        |spec| {
            spec.enter_host = true;
            spec.directory = "/no/such/directory".into();
        },
    );
    let described = supervisor.result().describe(None);
    assert!(
        described.starts_with("could not be run: the host's namespaces cannot be entered"),
        "{described}"
    );
}

#[test]
fn a_specification_that_cannot_be_read_is_told() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_skyhook-agent"))
        .arg("supervise")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{\"dir").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.starts_with("the specification of the step cannot be read, so it was not run: EOF"),
        "{errors}"
    );
}

#[test]
fn a_step_whose_log_cannot_be_opened_runs_without() {
    let mut supervisor = Supervisor::start("echo out; echo why >&2; exit 3", |spec| {
        let log = spec.log.as_mut().unwrap();
        log.step = "x".repeat(300);
    });
    let result = supervisor.result();
    assert_eq!(result.code, Some(3), "{result:?}");
    assert_eq!(
        result.describe(None),
        "exited with 3 (its log is missing or not complete: File name too long (os error 36)): why"
    );
}

#[test]
fn a_full_disk_for_logs_does_not_end_a_step() {
    if !is_root("a_full_disk_for_logs_does_not_end_a_step") {
        return;
    }
    let small_disk = "exec unshare -m --propagation private bash -c \
                      'mkdir \"$1\"/logs; mount -t tmpfs -o size=64k none \"$1\"/logs; \
                       exec \"$0\" supervise' \"$0\" \"$1\"";
    let mut supervisor = Supervisor::start_by(
        small_disk,
        |_, _| {},
        "head -c 1000000 /dev/zero | tr '\\0' x | fold -w 80; exit 3",
        |_| {},
    );
    let result = supervisor.result();
    assert_eq!(result.code, Some(3), "{result:?}");
    let problem = result.log_problem.unwrap();
    assert!(problem.contains("No space left on device"), "{problem}");
}

#[test]
fn a_log_directory_that_goes_away_does_not_end_a_step() {
    let mut supervisor = Supervisor::start("rm -rf \"$LOGS\"; echo gone; exit 4", |spec| {
        let logs = spec.log.as_ref().unwrap().directory.clone();
        let logs = logs.to_string_lossy().into_owned();
        spec.environment.push(("LOGS".into(), logs.into()));
    });
    let result = supervisor.result();
    assert_eq!((result.code, result.log_problem), (Some(4), None));
}

#[test]
fn the_supervisor_keeps_the_protection_that_its_step_loses() {
    // A process may raise its own value without any privilege. The test only needs two different values.
    let by = "echo 300 >/proc/self/oom_score_adj; exec \"$0\" supervise";
    let script = "cat /proc/self/oom_score_adj; exec sleep 60";
    let supervisor = Supervisor::start_by(by, |_, _| {}, script, |_| {});
    let until = Instant::now() + Duration::from_secs(10);
    let children = format!("/proc/{0}/task/{0}/children", supervisor.pid());
    let value = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok();
    loop {
        let step = fs::read_to_string(&children).unwrap_or_default();
        if value(step.trim()).as_deref() == Some("0\n") {
            break;
        }
        assert!(
            Instant::now() < until,
            "{step:?} has {:?}",
            value(step.trim())
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        value(&supervisor.pid().to_string()).as_deref(),
        Some("300\n")
    );
}

#[test]
fn a_step_that_ends_as_its_supervisor_is_told_to_end_was_not_ended() {
    // The step ends by itself while the supervisor is stopped (SIGSTOP). Then the supervisor sees the end of the step
    // and SIGTERM at the same time.
    let script = "while read -r _ _ state _ </proc/$PPID/stat; [ \"$state\" != T ]; do \
                  sleep 0.01; done; exit 7";
    let mut supervisor = Supervisor::start(script, |_| {});
    let until = Instant::now() + Duration::from_secs(10);
    let children = format!("/proc/{0}/task/{0}/children", supervisor.pid());
    let step = loop {
        let step = fs::read_to_string(&children).unwrap_or_default();
        if !step.is_empty() {
            break step.trim().to_owned();
        }
        assert!(Instant::now() < until, "the step was not started");
        std::thread::sleep(Duration::from_millis(10));
    };
    kill(supervisor.pid(), Signal::SIGSTOP).unwrap();
    let stat = || fs::read_to_string(format!("/proc/{step}/stat")).unwrap();
    while !stat().contains(") Z ") {
        assert!(Instant::now() < until, "{}", stat());
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(supervisor.pid(), Signal::SIGTERM).unwrap();
    kill(supervisor.pid(), Signal::SIGCONT).unwrap();
    let result = supervisor.result();
    assert_eq!((result.code, result.ended), (Some(7), false), "{result:?}");
}

#[test]
fn what_a_terminal_obeys_is_not_told() {
    let script = "printf '10%%\\r\\033[2J\\033[31mred\\033[0m\\r\\n' >&2; exit 1";
    let mut supervisor = Supervisor::start(script, |_| {});
    assert_eq!(supervisor.result().tail, "10%\nred");
}

/// Security guides recommend to mount `/var` with `noexec`.
#[test]
fn a_step_on_a_file_system_without_exec_says_so_and_what_to_do() {
    if !is_root("a_step_on_a_file_system_without_exec_says_so_and_what_to_do") {
        return;
    }
    let without_exec = "exec unshare -m --propagation private bash -c \
                        'mkdir \"$1\"/var; mount -t tmpfs -o noexec none \"$1\"/var; mkdir \"$1\"/var/lib; \
                         echo \"#!/bin/bash\" >\"$1\"/var/lib/apply.sh; chmod +x \"$1\"/var/lib/apply.sh; \
                         exec \"$0\" supervise' \"$0\" \"$1\"";
    let mut var = PathBuf::new();
    let mut supervisor = Supervisor::start_by(
        without_exec,
        |_, _| {},
        "",
        |spec| {
            var = spec.directory.join("var");
            spec.program = var.join("lib/apply.sh").to_string_lossy().into_owned();
        },
    );
    let described = supervisor.result().describe(None);
    let program = var.join("lib/apply.sh");
    let want = format!(
        "could not be run: {0} cannot be started: {0} is on the file system at {1}, which is mounted noexec: \
         have packages copied elsewhere: the chart's value copyDirRoot, or --copy-dir-root",
        program.display(),
        var.display()
    );
    assert_eq!(described, want);
}
