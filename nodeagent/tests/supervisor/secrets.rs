//! Tests that secrets are masked in the output of a step, and that other users cannot read the logs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use skyhook_nodeagent::supervise::{RESULT, Spec};

use super::{Supervisor, peak_kib};

const PASSWORD: &str = "hunter2 isn't long";
const KEY: &str = "-----BEGIN KEY-----\nMIIEvQIBADAN\n-----END KEY-----\n";

fn with_secrets(spec: &mut Spec) {
    for (name, value) in [("PASSWORD", PASSWORD), ("KEY", KEY)] {
        spec.environment.push((name.into(), value.into()));
        spec.secrets.push(value.into());
    }
}

/// All files that a step leaves: its logs and its result.
fn all(supervisor: &Supervisor) -> String {
    let result = fs::read(supervisor.directory.path().join(RESULT)).unwrap();
    [supervisor.log(".log"), supervisor.log(".err"), result]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .join("\n")
}

#[test]
fn set_x_shows_no_secret() {
    let script = "set -x; : curl -u \"me:$PASSWORD\" http://r; echo \"$KEY\"; COPY=$KEY; \
                  echo \"$PASSWORD\" | base64; exit 3";
    let mut supervisor = Supervisor::start(script, with_secrets);
    let result = supervisor.result();
    assert_eq!(result.code, Some(3));
    assert!(
        result.tail.contains("+ : curl -u 'me:***' http://r"),
        "{}",
        result.tail
    );
    let all = all(&supervisor);
    for secret in ["hunter2", "isn", "MIIEvQIBADAN", "aHVudGVyMi"] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
    assert!(all.matches("***").count() >= 6, "{all}");
}

#[test]
fn a_value_that_comes_in_parts_is_masked() {
    for (name, script) in [
        (
            "in two writes",
            "printf 'a hunter2 is'; sleep 0.3; printf \"n't long b\\n\"",
        ),
        (
            "in two pieces of a long line",
            "head -c 90 /dev/zero | tr '\\0' x; printf \"$PASSWORD\"; head -c 300 /dev/zero | tr '\\0' x",
        ),
        ("at the very end", "printf \"a line\\n$PASSWORD\""),
        (
            "in the last words",
            "head -c 2000 /dev/zero | tr '\\0' y; printf \"$PASSWORD\"; head -c 2040 /dev/zero | tr '\\0' x; echo",
        ),
    ] {
        let mut supervisor = Supervisor::start(script, |spec| {
            with_secrets(spec);
            spec.buffer_limit = 100;
        });
        assert_eq!(supervisor.result().code, Some(0), "{name}");
        let all = all(&supervisor);
        for part in ["hunter", "nter2", "isn't", "t long", "n't l"] {
            assert!(!all.contains(part), "{name}: {part} in {all}");
        }
        assert!(all.contains("***"), "{name}: {all}");
    }
}

#[test]
fn a_long_secret_and_a_line_without_end_need_little_memory() {
    let long = "0123456789abcdef".repeat(6_000);
    let supervisor = Supervisor::start("tr '\\0' x < /dev/zero", |spec| {
        spec.secrets.push(long.into());
    });
    let peak = peak_kib(&supervisor);
    assert!(peak < 12 << 10, "{peak} KiB");
}

#[test]
fn other_users_cannot_read_logs() {
    let mut supervisor = Supervisor::start("echo x", |_| {});
    supervisor.result();
    let logs = supervisor.directory.path().join("logs");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(logs.clone()), 0o750);
    for entry in fs::read_dir(logs).unwrap() {
        assert_eq!(mode(entry.unwrap().path()), 0o640);
    }
}
