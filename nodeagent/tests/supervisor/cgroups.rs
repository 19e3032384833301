//! Tests of the supervisor in its own cgroup, such as systemd creates for each step.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A cgroup that looks like a step's scope. It is removed when this value is dropped.
struct Scope(PathBuf);

impl Scope {
    /// Creates the cgroup. Returns `None` and prints a message if cgroups cannot be created here. In CI, this is a
    /// failure.
    fn new(test: &str, controller: &str) -> Option<Self> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "skyhook-{}-{}.scope",
            std::process::id(),
            LAST.fetch_add(1, Ordering::Relaxed)
        );
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        let made = if v1.join("cgroup.procs").exists() {
            make(&v1.join(name))
        } else {
            let root = Path::new("/sys/fs/cgroup");
            fs::write(
                root.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )
            .and_then(|()| make(&root.join(name)))
        };
        match made {
            Ok(path) => Some(Self(path)),
            Err(e) => {
                cannot_run(test, &format!("no {controller} cgroup can be made: {e}"));
                None
            }
        }
    }

    /// Writes to the first of these files that exists.
    fn set(&self, files: &[&str], value: &str) {
        let file = files.iter().map(|f| self.0.join(f)).find(|f| f.exists());
        fs::write(file.unwrap(), value).unwrap();
    }

    fn add(&self, pid: Pid) {
        self.set(&["cgroup.procs"], &pid.to_string());
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err_and(|e| e.kind() != io::ErrorKind::NotFound)
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn make(path: &Path) -> io::Result<PathBuf> {
    fs::create_dir(path).map(|()| path.to_owned())
}

/// A script that needs much memory: `tail` keeps a line of 300 MB in memory.
const EATER: &str = "head -c 300000000 /dev/zero | tail >/dev/null";

fn eat(test: &str, script: &str) -> Option<StepResult> {
    let scope = Scope::new(test, "memory")?;
    scope.set(&["memory.max", "memory.limit_in_bytes"], "32M");
    if scope.0.join("memory.swap.max").exists() {
        scope.set(&["memory.swap.max"], "0");
    }
    let mut supervisor = Supervisor::start_by(
        PLAINLY,
        |pid, _| scope.add(pid),
        script,
        |spec| spec.memory_limit = Some("32Mi".into()),
    );
    let result = supervisor.result();
    drop(supervisor);
    Some(result)
}

#[test]
fn a_step_over_its_memory_limit_says_so() {
    let script = format!("set -o pipefail; {EATER}");
    let Some(result) = eat("a_step_over_its_memory_limit_says_so", &script) else {
        return;
    };
    assert_eq!(result.code, Some(137), "{result:?}");
    let described = result.describe(None);
    assert!(
        described.starts_with("was killed: out of memory, memoryLimit 32Mi"),
        "{described}"
    );
}

#[test]
fn a_step_that_succeeds_although_a_child_was_killed_is_a_success() {
    let script = format!("set -o pipefail; {EATER} || echo 'did without'");
    let Some(result) = eat(
        "a_step_that_succeeds_although_a_child_was_killed_is_a_success",
        &script,
    ) else {
        return;
    };
    assert_eq!((result.code, result.ended), (Some(0), false));
    assert_eq!(
        result.out_of_memory,
        Some(OutOfMemory::Limit("32Mi".into()))
    );
}

#[test]
fn where_no_task_can_be_started_a_step_is_ended_all_the_same() {
    let test = "where_no_task_can_be_started_a_step_is_ended_all_the_same";
    let Some(scope) = Scope::new(test, "pids") else {
        return;
    };
    // Two processes: the supervisor and the step.
    scope.set(&["pids.max"], "2");
    let mut supervisor = Supervisor::start_by(
        PLAINLY,
        |pid, _| scope.add(pid),
        "exec sleep 60",
        |spec| spec.timeout_ms = Some(300),
    );
    let result = supervisor.result();
    assert!(result.timed_out, "{result:?}");
    assert_eq!(result.signal, Some(Signal::SIGTERM as i32));
    drop(supervisor);
}
