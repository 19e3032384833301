//! `explain`: why a node or a Skyhook stands still: the whole chain of causes, and the command that helps.

mod advice;
mod chain;
mod failure;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde::Serialize;
use skyhook_crds::{InterruptionLease, Skyhook};

use crate::args::Named;
use crate::session::{Session, is_missing, list, said};

/// The objects that explain each other.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) namespace: String,
    pub(crate) skyhooks: BTreeMap<String, Skyhook>,
    /// By node.
    pub(crate) leases: BTreeMap<String, InterruptionLease>,
    pub(crate) nodes: BTreeMap<String, Node>,
}

impl Facts {
    pub(crate) fn new(
        namespace: &str,
        skyhooks: Vec<Skyhook>,
        leases: Vec<InterruptionLease>,
        nodes: Vec<Node>,
    ) -> Self {
        fn by_name<K: ResourceExt>(all: Vec<K>) -> BTreeMap<String, K> {
            all.into_iter().map(|one| (one.name_any(), one)).collect()
        }
        Self {
            namespace: namespace.to_owned(),
            skyhooks: by_name(skyhooks),
            leases: by_name(leases),
            nodes: by_name(nodes),
        }
    }
}

/// Why something stands still, and what that comes from.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The node and the Skyhook, or the Skyhook alone.
    pub(crate) subject: String,
    pub(crate) status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) since: String,
    /// What else is known, such as the pods that do not leave.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) details: Vec<String>,
    /// What helps: commands, each below the words that say what for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) help: Vec<String>,
    /// What it comes from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) because: Vec<Finding>,
}

/// Runs `explain`.
pub(crate) async fn run(session: &mut Session<'_>, args: &Named) -> Result<()> {
    let format = session.global.format()?;
    let facts = facts(session).await?;
    let mut findings = Vec::new();
    if facts.nodes.contains_key(&args.name) {
        findings.extend(chain::of_node(&facts, &args.name));
    }
    if facts.skyhooks.contains_key(&args.name) {
        findings.push(chain::of_skyhook(&facts, &args.name));
    }
    if findings.is_empty() {
        if facts.nodes.contains_key(&args.name) {
            let text = format!("No Skyhook has anything to do with node {:?}\n", args.name);
            return session.print(&text);
        }
        bail!("there is no node and no Skyhook {:?}", args.name);
    }
    let text = match format.data(&findings)? {
        Some(data) => data,
        None => text(&findings),
    };
    session.print(&text)
}

async fn facts(session: &Session<'_>) -> Result<Facts> {
    let client = session.client().await?;
    let all = ListParams::default();
    let skyhooks = list(&Api::<Skyhook>::all(client.clone()), &all).await?;
    let leases = match Api::<InterruptionLease>::all(client.clone())
        .list(&all)
        .await
    {
        Ok(leases) => leases.items,
        Err(error) if is_missing(&error) => Vec::new(),
        Err(error) => return Err(said(error)),
    };
    let nodes = list(&Api::<Node>::all(client), &all).await?;
    Ok(Facts::new(
        &session.global.namespace,
        skyhooks,
        leases,
        nodes,
    ))
}

/// Every Skyhook, explained.
pub(crate) fn everything(facts: &Facts) -> String {
    let names = facts.skyhooks.keys();
    let findings: Vec<Finding> = names.map(|name| chain::of_skyhook(facts, name)).collect();
    text(&findings)
}

/// Each finding, and below it, indented, what it comes from.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for (at, finding) in findings.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        write(&mut text, finding, 0);
    }
    text
}

fn write(text: &mut String, finding: &Finding, depth: usize) {
    let pad = "  ".repeat(depth);
    let because = if depth > 0 { "because " } else { "" };
    text.push_str(&format!(
        "{pad}{because}{}: {}",
        finding.subject, finding.status
    ));
    if !finding.since.is_empty() {
        text.push_str(&format!(" since {}", finding.since));
    }
    text.push('\n');
    let cause = match (finding.reason.as_str(), finding.message.as_str()) {
        ("", "") => String::new(),
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    };
    let lines = Some(&cause).filter(|cause| !cause.is_empty());
    for line in lines.into_iter().chain(&finding.details) {
        text.push_str(&format!("{pad}  {line}\n"));
    }
    for line in &finding.help {
        text.push_str(&format!("{pad}  > {line}\n"));
    }
    for cause in &finding.because {
        write(text, cause, depth + 1);
    }
}

#[cfg(test)]
mod tests;
