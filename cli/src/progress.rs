//! `status`: how far roll-outs are, who is being worked on, what they wait for, and how long the rest takes.
#![expect(
    clippy::disallowed_methods,
    reason = "the shell of this command reads the clock"
)]

mod fit;
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
/// Goes to the upper left corner of a terminal; clears the rest of the line; clears everything below.
const HOME: &str = "\u{1b}[H";
const REST_OF_LINE: &str = "\u{1b}[K";
const BELOW: &str = "\u{1b}[J";

/// Runs `status`.
pub(crate) async fn run(session: &mut Session<'_>, args: &StatusArgs) -> Result<()> {
    let format = session.global.format()?;
    let client = session.client().await?;
    let mut is_first = true;
    loop {
        let text = match once(session, &client, args.name.as_deref(), format).await {
            Ok(text) => text,
            // The API server may be away for a while. What is wrong from the beginning stays wrong.
            Err(error) if args.watch && !is_first => format!("Error: {error:#}\n"),
            Err(error) => return Err(error),
        };
        is_first = false;
        if args.watch && session.io.screen.is_terminal {
            session.print(&frame(&text, session.io.screen.height))?;
        } else {
            session.print(&text)?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// A text in the place of the one before. It is written over that one, because a terminal that is cleared first flickers, and
/// it has no more lines than the terminal, which would scroll.
fn frame(text: &str, height: usize) -> String {
    let all = text.lines().count();
    let room = height.saturating_sub(1).max(1);
    let shown = if all > room { room - 1 } else { all };
    let mut frame = HOME.to_owned();
    for line in text.lines().take(shown) {
        frame.push_str(&format!("{line}{REST_OF_LINE}\n"));
    }
    if all > shown {
        frame.push_str(&format!("… and {} more lines{REST_OF_LINE}\n", all - shown));
    }
    frame.push_str(BELOW);
    frame
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_written_over_the_one_before_and_does_not_scroll() {
        let text = "a\nb\nc\n";
        let all = "\u{1b}[Ha\u{1b}[K\nb\u{1b}[K\nc\u{1b}[K\n\u{1b}[J";
        assert_eq!(frame(text, 4), all);
        assert_eq!(frame(text, 100), all);
        let cut = "\u{1b}[Ha\u{1b}[K\n… and 2 more lines\u{1b}[K\n\u{1b}[J";
        assert_eq!(frame(text, 3), cut);
    }
}
