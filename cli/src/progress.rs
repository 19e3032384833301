//! `status`: how far roll-outs are, who is being worked on, what they wait for, and how long the rest takes.
#![expect(
    clippy::disallowed_methods,
    reason = "the shell of this command reads the clock"
)]

mod view;

use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams};
use skyhook_crds::{InterruptionLease, Skyhook};

use crate::args::StatusArgs;
use crate::output::Format;
use crate::session::{Session, list};
use view::{Rollout, Shown};

/// How often a watched roll-out is looked at.
const EVERY: Duration = Duration::from_secs(2);
/// Clears a terminal, and goes to its upper left corner.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Runs `status`.
pub(crate) async fn run(session: &mut Session<'_>, args: &StatusArgs) -> Result<()> {
    let format = session.global.format()?;
    let client = session.client().await?;
    loop {
        let text = once(session, &client, args.name.as_deref(), format).await?;
        if args.watch && session.io.screen.is_terminal {
            session.print(&format!("{CLEAR}{text}"))?;
        } else {
            session.print(&text)?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn once(
    session: &Session<'_>,
    client: &Client,
    name: Option<&str>,
    format: Format,
) -> Result<String> {
    let all = ListParams::default();
    let mut skyhooks = list(&Api::<Skyhook>::all(client.clone()), &all).await?;
    skyhooks
        .retain(|skyhook| name.is_none_or(|name| skyhook.metadata.name.as_deref() == Some(name)));
    if let (Some(name), true) = (name, skyhooks.is_empty()) {
        bail!("there is no Skyhook {name:?}");
    }
    let leases = list(&Api::<InterruptionLease>::all(client.clone()), &all).await?;
    // The pace is told for one Skyhook: it needs all nodes.
    let nodes = if name.is_some() {
        list(&Api::<Node>::all(client.clone()), &all).await?
    } else {
        Vec::new()
    };
    let now = Timestamp::now();
    let rollouts = skyhooks
        .iter()
        .map(|skyhook| Rollout::new(skyhook, &leases, &nodes, now));
    let rollouts: Vec<Rollout> = rollouts.collect();
    if let Some(data) = format.data(&rollouts)? {
        return Ok(data);
    }
    let shown = Shown {
        screen: session.io.screen,
        now,
        with_nodes: name.is_some(),
    };
    Ok(shown.text(&rollouts))
}
