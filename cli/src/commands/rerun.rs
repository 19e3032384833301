//! `package rerun`: a package runs again on nodes, from the beginning or from one stage on.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde_json::Value;
use skyhook_crds::package::key;

use super::node::{self, NO_MATCH};
use super::package::skyhook;
use super::{leases, reset};
use crate::args::RerunArgs;
use crate::edit;
use crate::patterns::matching;
use crate::record::{self, Read};
use crate::session::Session;

/// Stages that a package can begin with.
const STAGES: [&str; 4] = ["apply", "config", "interrupt", "post-interrupt"];

/// Runs `package rerun`.
pub(crate) async fn run(session: &mut Session<'_>, args: &RerunArgs) -> Result<()> {
    if let Some(stage) = args
        .stage
        .as_deref()
        .filter(|stage| !STAGES.contains(stage))
    {
        bail!(
            "invalid stage {stage:?}: must be one of {}",
            STAGES.join(", ")
        );
    }
    let client = session.client().await?;
    let object = skyhook(&client, &args.skyhook).await?;
    let Some(package) = object.spec.packages.get(&args.package) else {
        bail!(
            "package {:?} not found in skyhook {:?}",
            args.package,
            args.skyhook
        );
    };
    let again = Again {
        args,
        version: &package.version,
        key: key(&args.package, &package.version),
    };
    let nodes = again.matching(node::all(&client).await?)?;
    if nodes.is_empty() {
        return session.print(NO_MATCH);
    }
    let (nodes, warnings) = again.with_package(nodes);
    for warning in warnings {
        session.say(&warning)?;
    }
    if nodes.is_empty() {
        let (package, version) = (&args.package, again.version);
        let text =
            format!("Package {package:?} (version {version}) has no state on matched nodes\n");
        return session.print(&text);
    }
    session.print(&again.summary(&nodes))?;
    let names: Vec<String> = nodes.iter().map(Node::name_any).collect();
    leases::say(session, &client, &args.skyhook, &names).await?;
    if session.global.dry_run {
        return session.print("\n[dry-run] No changes applied\n");
    }
    if !args.confirm.confirm && !session.ask_yes(&again.question())? {
        return session.print("Aborted\n");
    }
    let outcome = edit::nodes(&client, nodes, |node| again.change(node)).await;
    session.print(&outcome.problems("Errors updating some nodes:"))?;
    if outcome.done > 0 {
        let (package, done) = (&args.package, outcome.done);
        session.print(&format!(
            "\nSuccessfully reset package {package:?} on {done} node(s)\n"
        ))?;
    }
    outcome.result()
}

/// What is run again.
struct Again<'a> {
    args: &'a RerunArgs,
    version: &'a str,
    /// Key of the entry.
    key: String,
}

impl Again<'_> {
    /// Nodes that have a record of the Skyhook and match the patterns.
    fn matching(&self, mut nodes: Vec<Node>) -> Result<Vec<Node>> {
        nodes.retain(|node| Read::of(node, &self.args.skyhook).entries().is_some());
        let names: Vec<String> = nodes.iter().map(Node::name_any).collect();
        let matched = matching(&self.args.node, names.iter().map(String::as_str));
        let matched = matched.context("matching nodes")?;
        nodes.retain(|node| matched.contains(&node.name_any()));
        nodes.sort_by_key(Node::name_any);
        Ok(nodes)
    }

    /// Nodes that have the package at its version, and warnings about others.
    fn with_package(&self, nodes: Vec<Node>) -> (Vec<Node>, Vec<String>) {
        let mut warnings = Vec::new();
        let mut with = Vec::new();
        for node in nodes {
            let record = Read::of(&node, &self.args.skyhook).entries();
            if !record.is_some_and(|record| record.contains_key(&self.key)) {
                continue;
            }
            if record::is_newer(&node, &self.args.skyhook) {
                warnings.push(reset::newer(&node.name_any()));
            } else {
                with.push(node);
            }
        }
        (with, warnings)
    }

    fn summary(&self, nodes: &[Node]) -> String {
        let (package, version, skyhook) = (&self.args.package, self.version, &self.args.skyhook);
        let mut text = format!("Package: {package} (version {version})\nSkyhook: {skyhook}\n");
        if let Some(stage) = &self.args.stage {
            text.push_str(&format!("Re-run from stage: {stage}\n"));
        }
        text.push_str(&format!("Nodes to reset ({}):\n", nodes.len()));
        for node in nodes {
            let record = Read::of(node, skyhook).entries().unwrap_or_default();
            let entry = record.get(&self.key).cloned().unwrap_or_default();
            let (name, state, stage) = (node.name_any(), entry.state, entry.stage);
            text.push_str(&format!(
                "  - {name} (current state: {state}, stage: {stage})\n"
            ));
        }
        text
    }

    fn question(&self) -> String {
        let what = match &self.args.stage {
            Some(stage) => format!("This will reset package state to re-run from the '{stage}' stage."),
            None => "This will remove package state from node annotations and cause the package to re-run from the beginning."
                .to_owned(),
        };
        format!("\n{what}\nContinue? [y/N]: ")
    }

    /// The entry goes, or is set back to the stage. Every other entry stays as it is.
    fn change(&self, node: &Node) -> Result<Option<Value>> {
        let mut record = Read::of(node, &self.args.skyhook)
            .entries()
            .unwrap_or_default();
        let Some(mut entry) = record.remove(&self.key) else {
            return Ok(None);
        };
        if let Some(stage) = &self.args.stage {
            entry.stage.clone_from(stage);
            entry.state = "in_progress".to_owned();
            record.insert(self.key.clone(), entry);
        }
        reset::with_record(&self.args.skyhook, &record).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::Confirm;
    use crate::testing::{node, record};

    fn args(stage: Option<&str>) -> RerunArgs {
        RerunArgs {
            package: "aa".into(),
            skyhook: "s".into(),
            node: vec!["w.*".into(), "x".into()],
            stage: stage.map(str::to_owned),
            confirm: Confirm { confirm: false },
        }
    }

    fn again(args: &RerunArgs) -> Again<'_> {
        Again {
            args,
            version: "1.0",
            key: "aa|1.0".into(),
        }
    }

    #[test]
    fn nodes_with_the_version_of_the_spec_run_it_again() {
        let one = |name: &str, entries: &str| node(name, &[("nodeState_s", &record(entries))], &[]);
        let nodes = vec![
            one("w2", "aa 1.0 apply erroring"),
            one("w1", "aa 1.0 config complete, bb 1 config complete"),
            one("w3", "aa 0.9 config complete"),
            one("v1", "aa 1.0 config complete"),
            node("w4", &[], &[]),
        ];
        let args = args(Some("config"));
        let again = again(&args);
        let matched = again.matching(nodes).unwrap();
        assert_eq!(matched.len(), 3);
        let (nodes, warnings) = again.with_package(matched);
        assert_eq!(warnings, Vec::<String>::new());
        let want = "\
Package: aa (version 1.0)
Skyhook: s
Re-run from stage: config
Nodes to reset (2):
  - w1 (current state: complete, stage: config)
  - w2 (current state: erroring, stage: apply)
";
        assert_eq!(again.summary(&nodes), want);
        let want =
            "\nThis will reset package state to re-run from the 'config' stage.\nContinue? [y/N]: ";
        assert_eq!(again.question(), want);
    }

    #[test]
    fn only_the_entry_changes() {
        let other = r#""bb|1":{"name":"bb","version":"1","image":"r/bb","stage":"config","state":"complete","x":1}"#;
        let entry = |stage: &str, state: &str| {
            format!(
                r#""aa|1.0":{{"name":"aa","version":"1.0","image":"r/aa","stage":"{stage}","state":"{state}","restarts":2,"y":2}}"#
            )
        };
        let before = format!("{{{},{other}}}", entry("post-interrupt", "erroring"));
        let node_ = node("w", &[("nodeState_s", &before)], &[]);
        let set = |value: Value| {
            Some(
                json!({ "metadata": { "annotations": { "skyhook.nvidia.com/nodeState_s": value } } }),
            )
        };
        let from = args(Some("apply"));
        let after = format!("{{{},{other}}}", entry("apply", "in_progress"));
        assert_eq!(again(&from).change(&node_).unwrap(), set(after.into()));
        let whole = args(None);
        assert_eq!(
            again(&whole).change(&node_).unwrap(),
            set(format!("{{{other}}}").into())
        );
        let last = node(
            "w",
            &[(
                "nodeState_s",
                &format!("{{{}}}", entry("apply", "erroring")),
            )],
            &[],
        );
        assert_eq!(again(&whole).change(&last).unwrap(), set(Value::Null));
        assert_eq!(again(&whole).change(&node("w", &[], &[])).unwrap(), None);
    }
}
