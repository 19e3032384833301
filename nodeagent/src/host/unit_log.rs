//! Reads the last lines of a unit in systemd's journal, with the host's own journalctl.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::text::plain;

const LINES: usize = 5;
/// Maximum number of characters of a line.
const WIDTH: usize = 300;
const PATIENCE: Duration = Duration::from_secs(5);

/// The last lines since `since` (Unix seconds) that were written by the unit, or by systemd about the unit. Empty if
/// there is no journal.
pub(super) async fn tail(root: &Path, unit: &str, since: i64) -> Vec<String> {
    // Without this, the last entries about a failure may not be in the journal yet.
    let _synced = journalctl(root, &["--sync".to_owned()]).await;
    let args = [
        format!("--unit={unit}"),
        format!("--since=@{since}"),
        format!("--lines={LINES}"),
        "--output=cat".to_owned(),
        "--no-pager".to_owned(),
        "--quiet".to_owned(),
    ];
    for wait_ms in [0, 300] {
        sleep(Duration::from_millis(wait_ms)).await;
        let lines = lines(&journalctl(root, &args).await);
        if !lines.is_empty() {
            return lines;
        }
    }
    Vec::new()
}

/// Runs the host's journalctl with the host's root directory as its root, and returns its output.
async fn journalctl(root: &Path, args: &[String]) -> String {
    let command = Command::new("/proc/self/exe")
        .arg("in-root")
        .arg(root)
        .arg("journalctl")
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(PATIENCE, command).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "journalctl cannot be run");
            String::new()
        }
        Err(_) => String::new(),
    }
}

/// The lines for a message: without empty lines and control sequences, and with long lines cut.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = plain(text)
        .lines()
        .map(|line| line.chars().take(WIDTH).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines.split_off(lines.len().saturating_sub(LINES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_fit_for_a_status() {
        let long = "x".repeat(1000);
        let text = format!("1\n2\n3\n\n4\x1b[31m\n{long}\n6\n");
        let got = lines(&text);
        assert_eq!(got[0], "2");
        assert_eq!(got[2], "4");
        assert_eq!(got[3].len(), WIDTH);
        assert_eq!(got.len(), 5);
    }
}
