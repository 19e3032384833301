//! Tests of the probes with a running agent.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests are shell, and end at the first surprise"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

struct Agent {
    child: Child,
    root: TempDir,
    /// Whether the API answers.
    is_up: Arc<AtomicBool>,
}

impl Agent {
    /// Starts an agent on a host that is an empty directory.
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("etc/machine-id", "0123"),
            ("proc/sys/kernel/random/boot_id", "4567"),
        ] {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let is_up = Arc::new(AtomicBool::new(false));
        let config = root.path().join("kubeconfig");
        fs::write(&config, kubeconfig(serve(Arc::clone(&is_up)))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_skyhook-agent"))
            .args(["run", "--node-name=worker-1", "--host-root"])
            .arg(root.path())
            .env("KUBECONFIG", config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, root, is_up }
    }

    /// Runs a probe. Returns its error message if it fails.
    fn probe(&self, live: bool) -> Result<(), String> {
        let output = Command::new(env!("CARGO_BIN_EXE_skyhook-agent"))
            .arg("ready")
            .args(live.then_some("--live"))
            .arg("--host-root")
            .arg(self.root.path())
            .output()
            .unwrap();
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8(output.stderr).unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    fn state(&self) -> std::path::PathBuf {
        self.root.path().join("var/lib/skyhook-agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn kubeconfig(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{}}}}]\n"
    )
}

/// A Kubernetes API without a lease. It answers only while `is_up` is true.
fn serve(is_up: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if is_up.load(Ordering::Relaxed) {
                std::thread::spawn(move || answer(stream));
            }
        }
    });
    port
}

fn answer(mut stream: TcpStream) {
    const LIST: &str = r#"{"apiVersion":"skyhook.nvidia.com/v1alpha1","kind":"InterruptionLeaseList","metadata":{"resourceVersion":"1"},"items":[]}"#;
    let mut request = [0; 8192];
    while let Ok(n @ 1..) = stream.read(&mut request) {
        // A watch without events.
        if String::from_utf8_lossy(&request[..n]).contains("watch=1") {
            let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
            continue;
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            LIST.len()
        );
        if stream.write_all((head + LIST).as_bytes()).is_err() {
            return;
        }
    }
}

/// Repeats a probe until it has the wanted result.
fn until(agent: &Agent, live: bool, want: impl Fn(&Result<(), String>) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let said = agent.probe(live);
        if want(&said) {
            return;
        }
        assert!(Instant::now() < end, "{said:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_agent_without_an_api_lives_and_one_that_hangs_does_not() {
    let agent = Agent::start();
    until(&agent, false, |said| {
        said.as_ref()
            .is_err_and(|said| said.contains("the agent has not reached the API yet"))
    });
    assert_eq!(agent.probe(true), Ok(()));
    agent.is_up.store(true, Ordering::Relaxed);
    until(&agent, false, Result::is_ok);

    agent.signal(Signal::SIGSTOP);
    for live in [true, false] {
        let said = agent.probe(live).unwrap_err();
        assert!(
            said.contains("the agent's loop has not answered for 8 s: it hangs"),
            "{said}"
        );
    }
    agent.signal(Signal::SIGCONT);
    until(&agent, true, Result::is_ok);
    until(&agent, false, Result::is_ok);

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&agent.state()), 0o700);
    assert_eq!(mode(&agent.state().join("agent.lock")), 0o600);
    assert_eq!(mode(&agent.state().join("images/lock")), 0o600);
}

#[test]
fn one_that_was_killed_is_not_ready_and_the_next_one_is_asked_anew() {
    let mut agent = Agent::start();
    agent.is_up.store(true, Ordering::Relaxed);
    until(&agent, false, Result::is_ok);
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    assert!(agent.state().join("probe.sock").exists(), "it was killed");
    let said = agent.probe(false).unwrap_err();
    assert!(said.starts_with("no agent answers in"), "{said}");
    assert_eq!(agent.probe(true), Ok(()));
}
