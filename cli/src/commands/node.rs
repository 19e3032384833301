//! `node list` and `node status`: what the records of nodes say.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde::Serialize;
use skyhook_crds::names;

use crate::output::{Format, table};
use crate::patterns::matching;
use crate::record::{self, Read, Record, Summary};
use crate::session::{Session, list};

/// All nodes of the cluster.
pub(crate) async fn all(client: &kube::Client) -> Result<Vec<Node>> {
    let api: Api<Node> = Api::all(client.clone());
    list(&api, &ListParams::default())
        .await
        .context("listing nodes")
}

/// The nodes that patterns match, or all without patterns.
pub(crate) fn chosen(nodes: Vec<Node>, patterns: &[String]) -> Result<Vec<Node>> {
    if patterns.is_empty() {
        return Ok(nodes);
    }
    let names: Vec<String> = nodes.iter().map(Node::name_any).collect();
    let matched = matching(patterns, names.iter().map(String::as_str)).context("matching nodes")?;
    let mut nodes = nodes;
    nodes.retain(|node| matched.contains(&node.name_any()));
    Ok(nodes)
}

/// What is said when no node matches.
pub(crate) const NO_MATCH: &str = "No nodes matched the specified patterns\n";

/// Runs `node list`.
pub(crate) async fn list_nodes(session: &mut Session<'_>, skyhook: &str) -> Result<()> {
    let format = session.global.format()?;
    let nodes = all(&session.client().await?).await?;
    say_unreadable(session, &nodes, Some(skyhook))?;
    session.print(&listed(skyhook, &nodes, format)?)
}

/// With `--verbose`, says which records cannot be read. They are in no output.
fn say_unreadable(session: &mut Session<'_>, nodes: &[Node], only: Option<&str>) -> Result<()> {
    let lines = if session.global.verbose {
        unreadable(nodes, only)
    } else {
        Vec::new()
    };
    lines.iter().try_for_each(|line| session.say(line))
}

fn unreadable(nodes: &[Node], only: Option<&str>) -> Vec<String> {
    let records = nodes
        .iter()
        .flat_map(|node| record::skyhooks_of(node).map(move |skyhook| (node, skyhook)));
    let records = records.filter(|(_, skyhook)| only.is_none_or(|only| only == *skyhook));
    records
        .filter_map(|(node, skyhook)| match Read::of(node, skyhook) {
            Read::Unreadable(problem) => Some(format!(
                "Warning: skipping node {:?} - invalid annotation: {problem}",
                node.name_any()
            )),
            Read::Nothing | Read::Entries(_) => None,
        })
        .collect()
}

/// Runs `node status`.
pub(crate) async fn status(
    session: &mut Session<'_>,
    patterns: &[String],
    skyhook: Option<&str>,
) -> Result<()> {
    let format = session.global.format()?;
    let nodes = chosen(all(&session.client().await?).await?, patterns)?;
    say_unreadable(session, &nodes, skyhook)?;
    session.print(&shown(&nodes, !patterns.is_empty(), skyhook, format)?)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    skyhook_name: &'a str,
    nodes: Vec<ListedNode>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedNode {
    node_name: String,
    status: &'static str,
    packages_complete: usize,
    packages_total: usize,
    restarts: i32,
}

fn listed(skyhook: &str, nodes: &[Node], format: Format) -> Result<String> {
    let mut entries: Vec<ListedNode> = nodes
        .iter()
        .filter_map(|node| {
            let record = Read::of(node, skyhook).entries()?;
            let Summary {
                status,
                complete,
                total,
                restarts,
            } = record::summary(&record);
            Some(ListedNode {
                node_name: node.name_any(),
                status,
                packages_complete: complete,
                packages_total: total,
                restarts,
            })
        })
        .collect();
    entries.sort_by(|a, b| a.node_name.cmp(&b.node_name));
    if entries.is_empty() {
        return Ok(format!("No nodes found for Skyhook {skyhook:?}\n"));
    }
    let output = Listed {
        skyhook_name: skyhook,
        nodes: entries,
    };
    if let Some(data) = format.data(&output)? {
        return Ok(data);
    }
    let count = |status: &str| {
        let nodes = output.nodes.iter();
        nodes.filter(|node| node.status == status).count()
    };
    let (total, complete, erroring) = (output.nodes.len(), count("complete"), count("erroring"));
    let others = total - complete - erroring;
    let wide = format == Format::Wide;
    let mut header = vec!["NODE", "STATUS", "PACKAGES"];
    header.extend(wide.then_some("RESTARTS"));
    let rows = output.nodes.iter().map(|node| {
        let mut row = vec![
            node.node_name.clone(),
            if node.status == "erroring" {
                node.status.to_uppercase()
            } else {
                node.status.to_owned()
            },
            format!("{}/{}", node.packages_complete, node.packages_total),
        ];
        row.extend(wide.then(|| node.restarts.to_string()));
        row
    });
    let rows = table(&header, &rows.collect::<Vec<_>>());
    Ok(format!(
        "Skyhook: {skyhook}\n\nSummary: {total} nodes ({complete} complete, {erroring} erroring, {others} in progress)\n\n{rows}"
    ))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    node_name: String,
    skyhook_name: String,
    status: &'static str,
    packages_complete: usize,
    packages_total: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    packages: Vec<ShownPackage>,
    cordoned: bool,
    runtime_required_cordon: bool,
}

#[derive(Serialize)]
struct ShownPackage {
    name: String,
    version: String,
    stage: String,
    state: String,
    restarts: i32,
    #[serde(skip_serializing_if = "String::is_empty")]
    image: String,
}

impl Shown {
    fn new(node: &Node, skyhook: &str, record: &Record) -> Self {
        let Summary {
            status,
            complete,
            total,
            ..
        } = record::summary(record);
        let mut packages: Vec<ShownPackage> = record
            .values()
            .map(|entry| ShownPackage {
                name: entry.name.clone(),
                version: entry.version.clone(),
                stage: entry.stage.clone(),
                state: entry.state.clone(),
                restarts: entry.restarts,
                image: entry.image.clone(),
            })
            .collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        let mark = node.annotations().get(names::RUNTIME_REQUIRED_CORDON);
        Self {
            node_name: node.name_any(),
            skyhook_name: skyhook.to_owned(),
            status,
            packages_complete: complete,
            packages_total: total,
            packages,
            cordoned: is_cordoned(node),
            runtime_required_cordon: mark.is_some_and(|mark| mark == "true"),
        }
    }
}

/// True when no new pods are scheduled to a node.
pub(crate) fn is_cordoned(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.and_then(|spec| spec.unschedulable).unwrap_or(false)
}

fn shown(nodes: &[Node], by_pattern: bool, only: Option<&str>, format: Format) -> Result<String> {
    if by_pattern && nodes.is_empty() {
        return Ok(NO_MATCH.to_owned());
    }
    let mut all: Vec<Shown> = nodes
        .iter()
        .flat_map(|node| record::skyhooks_of(node).map(move |skyhook| (node, skyhook)))
        .filter(|(_, skyhook)| only.is_none_or(|only| only == *skyhook))
        .filter_map(|(node, skyhook)| {
            let record = Read::of(node, skyhook).entries()?;
            Some(Shown::new(node, skyhook, &record))
        })
        .collect();
    all.sort_by(|a, b| (&a.node_name, &a.skyhook_name).cmp(&(&b.node_name, &b.skyhook_name)));
    if all.is_empty() {
        return Ok("No Skyhook activity found on specified nodes\n".to_owned());
    }
    if let Some(data) = format.data(&all)? {
        return Ok(data);
    }
    const CORDONS: [&str; 2] = ["CORDONED", "RUNTIME-REQUIRED-CORDON"];
    let cordons = |one: &Shown| {
        [
            one.cordoned.to_string(),
            one.runtime_required_cordon.to_string(),
        ]
    };
    if format == Format::Wide {
        let header = [
            "NODE", "SKYHOOK", "PACKAGE", "VERSION", "STAGE", "STATE", "RESTARTS", "IMAGE",
        ];
        let header = [&header[..], &CORDONS].concat();
        let rows = all.iter().flat_map(|one| {
            one.packages.iter().map(move |package| {
                let mut row = vec![one.node_name.clone(), one.skyhook_name.clone()];
                row.extend([
                    package.name.clone(),
                    package.version.clone(),
                    package.stage.clone(),
                    package.state.clone(),
                    package.restarts.to_string(),
                    package.image.clone(),
                ]);
                row.extend(cordons(one));
                row
            })
        });
        return Ok(table(&header, &rows.collect::<Vec<_>>()));
    }
    let header = [&["NODE", "SKYHOOK", "STATUS", "PACKAGES"][..], &CORDONS].concat();
    let rows = all.iter().map(|one| {
        let packages = format!("{}/{}", one.packages_complete, one.packages_total);
        let mut row = vec![one.node_name.clone(), one.skyhook_name.clone()];
        row.extend([one.status.to_owned(), packages]);
        row.extend(cordons(one));
        row
    });
    Ok(table(&header, &rows.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests;
