//! `reset` and `node reset`: nodes forget what is installed, so that everything runs there again.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use serde_json::{Map, Value, json};
use skyhook_crds::{Skyhook, names};

use super::node::{self, NO_MATCH, is_cordoned};
use super::{leases, policy};
use crate::args::{Confirm, ResetArgs};
use crate::edit;
use crate::record::{self, Read, Record};
use crate::session::{Session, is_missing, said};

/// A node that is reset.
struct Target {
    node: Node,
    /// What is on record, in words.
    on_record: String,
}

/// What a reset is about.
struct Targets {
    targets: Vec<Target>,
    /// Nodes that are left out, and why.
    warnings: Vec<String>,
}

impl Targets {
    fn of(skyhook: &str, nodes: Vec<Node>) -> Self {
        let mut all = Self {
            targets: Vec::new(),
            warnings: Vec::new(),
        };
        for node in nodes {
            let on_record = match Read::of(&node, skyhook) {
                Read::Nothing => continue,
                Read::Entries(record) => format!("{} packages", record.len()),
                Read::Unreadable(_) => "the record cannot be read".to_owned(),
            };
            if record::is_newer(&node, skyhook) {
                all.warnings.push(newer(&node.name_any()));
            } else {
                all.targets.push(Target { node, on_record });
            }
        }
        all.targets.sort_by_key(|target| target.node.name_any());
        all
    }

    fn names(&self) -> Vec<String> {
        let names = self.targets.iter();
        names.map(|target| target.node.name_any()).collect()
    }

    /// What will be reset.
    fn summary(&self, skyhook: &str) -> String {
        let lines = self
            .targets
            .iter()
            .map(|target| format!("  - {} ({})\n", target.node.name_any(), target.on_record));
        format!(
            "Skyhook: {skyhook}\nNodes to reset ({}):\n{}",
            self.targets.len(),
            lines.collect::<String>()
        )
    }
}

/// Why a node is left out.
pub(crate) fn newer(node: &str) -> String {
    format!(
        "Warning: node {node:?} is left out: a newer version of Skyhook wrote its record; use the plugin of that version"
    )
}

/// What is said before the question, and what it is that is reset.
enum Extent {
    /// Everything that the Skyhook wrote on the node, and its batch state.
    Skyhook { batches: bool },
    /// The records alone.
    Nodes,
}

/// Runs `reset`.
pub(crate) async fn run(session: &mut Session<'_>, args: &ResetArgs) -> Result<()> {
    if let Some(package) = &args.package {
        return package::run(session, &args.name, package, args.confirm).await;
    }
    let client = session.client().await?;
    let nodes = node::all(&client).await?;
    let batches = !args.skip_batch_reset;
    let extent = Extent::Skyhook { batches };
    reset(session, &client, &args.name, nodes, args.confirm, &extent).await
}

/// Runs `node reset`.
pub(crate) async fn run_nodes(
    session: &mut Session<'_>,
    patterns: &[String],
    skyhook: &str,
    confirm: Confirm,
) -> Result<()> {
    let client = session.client().await?;
    let nodes = node::chosen(node::all(&client).await?, patterns)?;
    if nodes.is_empty() {
        return session.print(NO_MATCH);
    }
    reset(session, &client, skyhook, nodes, confirm, &Extent::Nodes).await
}

async fn reset(
    session: &mut Session<'_>,
    client: &Client,
    skyhook: &str,
    nodes: Vec<Node>,
    confirm: Confirm,
    extent: &Extent,
) -> Result<()> {
    let all = Targets::of(skyhook, nodes);
    for warning in &all.warnings {
        session.say(warning)?;
    }
    if all.targets.is_empty() {
        return session.print(&format!("No nodes have state for Skyhook {skyhook:?}\n"));
    }
    session.print(&all.summary(skyhook))?;
    leases::say(session, client, skyhook, &all.names()).await?;
    let batches = matches!(extent, Extent::Skyhook { batches: true });
    if batches {
        session.print("\nBatch state will also be reset (use --skip-batch-reset to keep it)\n")?;
    }
    if session.global.dry_run {
        return session.print("\n[dry-run] No changes applied\n");
    }
    if !confirm.confirm {
        let where_ = match extent {
            Extent::Skyhook { .. } => format!("on {} node(s)", all.targets.len()),
            Extent::Nodes => "on these nodes".to_owned(),
        };
        let question = format!(
            "\nThis will remove ALL package state for Skyhook {skyhook:?} {where_}.\nAll packages will re-run from the \
             beginning.\nContinue? [y/N]: "
        );
        if !session.ask_yes(&question)? {
            return session.print("Aborted\n");
        }
    }
    let nodes = all.targets.into_iter().map(|target| target.node).collect();
    let outcome = edit::nodes(client, nodes, |node| {
        Ok(match extent {
            Extent::Skyhook { .. } => forget(node, skyhook),
            Extent::Nodes => forget_record(node, skyhook),
        })
    })
    .await;
    session.print(&outcome.problems("Errors resetting some nodes:"))?;
    if outcome.done > 0 {
        let done = outcome.done;
        session.print(&format!(
            "\nSuccessfully reset {done} node(s) for Skyhook {skyhook:?}\n"
        ))?;
    }
    if batches {
        reset_batches(session, client, skyhook).await?;
    }
    outcome.result()
}

/// The batches, and the numbers of the nodes, begin anew.
async fn reset_batches(session: &mut Session<'_>, client: &Client, skyhook: &str) -> Result<()> {
    let api: Api<Skyhook> = Api::all(client.clone());
    let object = match api.get(skyhook).await {
        Ok(object) => object,
        Err(error) if is_missing(&error) => {
            let line = format!(
                "Note: there is no Skyhook {skyhook:?}, so there is no batch state to reset"
            );
            return session.say(&line);
        }
        Err(error) => {
            return Err(said(error)).with_context(|| format!("getting skyhook {skyhook:?}"));
        }
    };
    policy::write(client, object, policy::batches_and_order).await?;
    session.print(&format!("Batch state reset for Skyhook {skyhook:?}\n"))
}

/// Removes what a Skyhook has on a node. The mark of a cordon stays while the node is cordoned: without it, nobody would
/// know that the cordon is the Skyhook's, and the node would stay cordoned for ever.
fn forget(node: &Node, skyhook: &str) -> Option<Value> {
    let mut keys = vec![
        names::node_state(skyhook),
        names::status(skyhook),
        names::version(skyhook),
    ];
    keys.extend(names::drain_start(skyhook));
    keys.extend(names::drain_blocked(skyhook));
    if !is_cordoned(node) {
        keys.push(names::cordon(skyhook));
    }
    let labels = [names::status(skyhook)];
    without(node, &keys, &labels)
}

/// Removes the record of a node alone.
fn forget_record(node: &Node, skyhook: &str) -> Option<Value> {
    without(node, &[names::node_state(skyhook)], &[])
}

/// A patch that removes those of these annotations and labels that are there.
fn without(node: &Node, annotations: &[String], labels: &[String]) -> Option<Value> {
    let there = |keys: &[String], map: &std::collections::BTreeMap<String, String>| {
        let keys = keys.iter().filter(|key| map.contains_key(*key));
        keys.map(|key| (key.clone(), Value::Null))
            .collect::<Map<String, Value>>()
    };
    let annotations = there(annotations, node.annotations());
    let labels = there(labels, node.labels());
    if annotations.is_empty() && labels.is_empty() {
        return None;
    }
    let mut metadata = Map::new();
    for (field, keys) in [("annotations", annotations), ("labels", labels)] {
        if !keys.is_empty() {
            metadata.insert(field.to_owned(), keys.into());
        }
    }
    Some(json!({ "metadata": metadata }))
}

/// A patch that sets the record of a node. A record without entries is removed.
pub(crate) fn with_record(skyhook: &str, record: &Record) -> Result<Value> {
    let value = if record.is_empty() {
        Value::Null
    } else {
        record::render(record)?.into()
    };
    Ok(json!({ "metadata": { "annotations": { names::node_state(skyhook): value } } }))
}

mod package;
#[cfg(test)]
mod tests;
