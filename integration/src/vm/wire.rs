//! JSON, a line per message, over one of the sockets of a virtual machine.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

pub(super) struct Wire {
    stream: BufReader<UnixStream>,
    /// What came of the next line so far.
    line: Vec<u8>,
}

impl Wire {
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.with_context(|| socket.display().to_string())?;
        Ok(Self {
            stream: BufReader::new(stream),
            line: Vec::new(),
        })
    }

    pub(super) async fn send(&mut self, message: &Value) -> Result<()> {
        self.send_bytes(message.to_string().as_bytes()).await
    }

    pub(super) async fn send_bytes(&mut self, line: &[u8]) -> Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(line).await?;
        Ok(stream.write_all(b"\n").await?)
    }

    /// The next message. Nothing is lost when this is dropped.
    pub(super) async fn next(&mut self) -> Result<Value> {
        let length = self.stream.read_until(b'\n', &mut self.line).await?;
        ensure!(length > 0, "the other end has closed");
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }
}
