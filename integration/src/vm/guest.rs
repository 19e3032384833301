//! Commands and files inside a virtual machine, by QEMU's own guest agent: it needs no network, no
//! login and no clock, and several commands may run at a time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::wire::Wire;

/// How long one answer may take. A command itself may take as long as it wants.
const ANSWER: Duration = Duration::from_secs(60);
/// How long an agent that may not be there yet has to answer.
const SYNC: Duration = Duration::from_secs(1);
const POLLS: [u64; 5] = [5, 20, 50, 100, 200];

/// The agent in one machine.
pub(super) struct Guest {
    socket: PathBuf,
    /// Taken while a question is open: one that is given up takes its connection with it.
    wire: Mutex<Option<Wire>>,
    next: AtomicU64,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Guest").field(&self.socket).finish()
    }
}

impl Guest {
    pub(super) fn at(socket: PathBuf) -> Self {
        Self {
            socket,
            wire: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }

    /// Runs a program to its end and returns its standard output; a failure carries what it printed.
    pub(super) async fn exec(&self, args: &[&str], input: &[u8]) -> Result<String> {
        let (program, rest) = args.split_first().context("no program")?;
        let started = json!({
            "path": program,
            "arg": rest,
            "capture-output": true,
            "input-data": ByteString(input.to_vec()),
        });
        let started = self.ask("guest-exec", &started).await?;
        let pid = json!({"pid": started["pid"]});
        let mut polls = POLLS.into_iter();
        let mut pause = 0;
        let ended = loop {
            pause = polls.next().unwrap_or(pause);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let now = self.ask("guest-exec-status", &pid).await?;
            if now["exited"] == true {
                break now;
            }
        };
        let text = |key: &str| -> Result<String> {
            let data = ended.get(key).cloned();
            let data: Option<ByteString> = data.map(serde_json::from_value).transpose()?;
            let data = data.map_or_else(Vec::new, |data| data.0);
            Ok(String::from_utf8_lossy(&data).into_owned())
        };
        let stdout = text("out-data")?;
        if ended["exitcode"] != 0 {
            let how = ended.get("exitcode").map_or_else(
                || format!("signal {}", ended["signal"]),
                |code| format!("status {code}"),
            );
            bail!("{args:?} ended with {how}:\n{stdout}{}", text("err-data")?);
        }
        ensure!(
            ended["out-truncated"] != true,
            "{args:?} prints more than the guest agent keeps"
        );
        Ok(stdout)
    }

    async fn ask(&self, command: &str, arguments: &Value) -> Result<Value> {
        let mut slot = self.wire.lock().await;
        let mut wire = match slot.take() {
            Some(wire) => wire,
            None => self.connect().await?,
        };
        let question = json!({"execute": command, "arguments": arguments});
        let exchange = async {
            wire.send(&question).await?;
            wire.next().await
        };
        let answer = tokio::time::timeout(ANSWER, exchange).await;
        let answer = answer.with_context(|| format!("{command}: the guest agent hangs"))??;
        *slot = Some(wire);
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => bail!("{command}: {answer}"),
        }
    }

    /// A connection with nothing of an earlier one in it.
    async fn connect(&self) -> Result<Wire> {
        let mut wire = Wire::connect(&self.socket).await?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let hello = json!({"execute": "guest-sync", "arguments": {"id": id}});
        let sync = async {
            // A byte that is in no JSON makes the agent forget a half-read question.
            wire.send_bytes(&[0xff]).await?;
            wire.send(&hello).await?;
            // What comes first are answers to questions that were given up.
            while !wire.next().await.is_ok_and(|said| said["return"] == id) {}
            anyhow::Ok(())
        };
        let synced = tokio::time::timeout(SYNC, sync).await;
        synced.context("no guest agent answers")??;
        Ok(wire)
    }

    /// Nothing of the boot before is of any use.
    pub(super) async fn forget(&self) {
        self.wire.lock().await.take();
    }
}
