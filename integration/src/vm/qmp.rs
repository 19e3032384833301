//! QEMU's own control channel: what happens to a virtual machine, and its power button.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::wire::Wire;

/// What QEMU tells that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The machine starts anew: it asked for it, or somebody pressed the button.
    Reset,
}

/// Sends commands to a machine whose [`Qmp`] is read.
pub(super) type Button = mpsc::Sender<(&'static str, oneshot::Sender<Result<()>>)>;

/// The reading end.
pub(super) struct Qmp {
    wire: Wire,
    commands: mpsc::Receiver<(&'static str, oneshot::Sender<Result<()>>)>,
    asked: Option<oneshot::Sender<Result<()>>>,
}

impl Qmp {
    pub(super) async fn connect(socket: &Path) -> Result<(Self, Button)> {
        let mut wire = Wire::connect(socket).await?;
        let greeting = wire.next().await?;
        if greeting.get("QMP").is_none() {
            bail!("not a QMP socket: {greeting}");
        }
        wire.send(&json!({"execute": "qmp_capabilities"})).await?;
        let (button, commands) = mpsc::channel(1);
        let asked = None;
        Ok((
            Self {
                wire,
                commands,
                asked,
            },
            button,
        ))
    }

    /// Hands commands on until something happens. It may not be dropped before that, or only
    /// together with the machine.
    pub(super) async fn event(&mut self) -> Result<Event> {
        loop {
            tokio::select! {
                said = self.wire.next() => match self.heard(&said?) {
                    Some(event) => return Ok(event),
                    None => continue,
                },
                Some((command, answer)) = self.commands.recv(), if self.asked.is_none() => {
                    self.asked = Some(answer);
                    self.wire.send(&json!({"execute": command})).await?;
                }
            }
        }
    }

    fn heard(&mut self, said: &Value) -> Option<Event> {
        let outcome = match said.get("error") {
            Some(error) => Err(anyhow::anyhow!("QEMU: {error}")),
            None => Ok(()),
        };
        if said.get("event").is_none()
            && let Some(asked) = self.asked.take()
        {
            // Who asked may have given up.
            let _given_up = asked.send(outcome);
        }
        (said["event"] == "RESET").then_some(Event::Reset)
    }
}

/// Carries out a command that has no arguments.
pub(super) async fn press(button: &Button, command: &'static str) -> Result<()> {
    let (answer, answered) = oneshot::channel();
    let sent = button.send((command, answer)).await;
    sent.ok().context("the virtual machine is off")?;
    answered.await.context("the virtual machine is off")?
}
