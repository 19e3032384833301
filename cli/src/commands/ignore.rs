//! `node ignore` and `node unignore`: a label that keeps every Skyhook away from a node.

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use skyhook_crds::names;

use super::node::{self, NO_MATCH};
use crate::edit;
use crate::session::Session;

/// Runs either.
pub(crate) async fn run(
    session: &mut Session<'_>,
    patterns: &[String],
    ignore: bool,
) -> Result<()> {
    let client = session.client().await?;
    let mut nodes = node::chosen(node::all(&client).await?, patterns)?;
    nodes.sort_by_key(Node::name_any);
    if nodes.is_empty() {
        return session.print(NO_MATCH);
    }
    session.print(&summary(&nodes, ignore))?;
    if session.global.dry_run {
        return session.print("\n[dry-run] No changes applied\n");
    }
    let (changed, same) = split(nodes, ignore);
    session.print(&same)?;
    let outcome = edit::nodes(&client, changed, |node| Ok(change(node, ignore))).await;
    session.print(&outcome.problems("Errors updating some nodes:"))?;
    if outcome.done > 0 {
        let verb = if ignore { "ignored" } else { "unignored" };
        session.print(&format!("\nSuccessfully {verb} {} node(s)\n", outcome.done))?;
    }
    outcome.result()
}

fn summary(nodes: &[Node], ignore: bool) -> String {
    let action = if ignore { "Ignoring" } else { "Unignoring" };
    let lines = nodes
        .iter()
        .map(|node| format!("  - {}\n", node.name_any()));
    format!(
        "{action} {} node(s):\n{}",
        nodes.len(),
        lines.collect::<String>()
    )
}

/// The nodes that change, and what is said about the others.
fn split(nodes: Vec<Node>, ignore: bool) -> (Vec<Node>, String) {
    let word = if ignore {
        "already ignored"
    } else {
        "not ignored"
    };
    let (changed, same): (Vec<Node>, Vec<Node>) = nodes
        .into_iter()
        .partition(|node| change(node, ignore).is_some());
    let lines = same
        .iter()
        .map(|node| format!("  {}: {word}\n", node.name_any()));
    (changed, lines.collect())
}

fn change(node: &Node, ignore: bool) -> Option<Value> {
    let is_ignored = node
        .labels()
        .get(names::IGNORE)
        .is_some_and(|value| value == "true");
    let value = ignore.then_some("true");
    (is_ignored != ignore).then(|| json!({ "metadata": { "labels": { names::IGNORE: value } } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;

    #[test]
    fn nodes_are_labelled_once() {
        let nodes = || {
            vec![
                node("a", &[], &[("ignore", "true")]),
                node("b", &[], &[("ignore", "false"), ("status_s", "complete")]),
                node("c", &[], &[]),
            ]
        };
        assert_eq!(
            summary(&nodes(), true),
            "Ignoring 3 node(s):\n  - a\n  - b\n  - c\n"
        );
        assert_eq!(
            summary(&nodes()[..1], false),
            "Unignoring 1 node(s):\n  - a\n"
        );
        for (ignore, changed, same) in [
            (true, vec!["b", "c"], "  a: already ignored\n"),
            (false, vec!["a"], "  b: not ignored\n  c: not ignored\n"),
        ] {
            let (given, text) = split(nodes(), ignore);
            let given: Vec<String> = given.iter().map(Node::name_any).collect();
            assert_eq!(
                (given, text.as_str()),
                (changed.iter().map(ToString::to_string).collect(), same)
            );
        }
        let patch = |value: Value| {
            Some(json!({ "metadata": { "labels": { "skyhook.nvidia.com/ignore": value } } }))
        };
        assert_eq!(change(&nodes()[1], true), patch("true".into()));
        assert_eq!(change(&nodes()[0], false), patch(Value::Null));
    }
}
