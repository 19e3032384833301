//! `update-state`: writes the state of a package into the records of nodes.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use serde_json::{Map, Value};
use skyhook_crds::Package;
use skyhook_crds::package::{key, name_of};
use skyhook_crds::stage::{Stage, State};

use super::package::skyhook;
use super::{leases, reset};
use crate::args::UpdateStateArgs;
use crate::edit;
use crate::record::{self, Entry, Read};
use crate::session::{Session, list};

const STATES: [State; 5] = [
    State::Complete,
    State::InProgress,
    State::Skipped,
    State::Erroring,
    State::Unknown,
];

/// Runs `update-state`.
pub(crate) async fn run(session: &mut Session<'_>, args: &UpdateStateArgs) -> Result<()> {
    check(args)?;
    let client = session.client().await?;
    let object = skyhook(&client, &args.name).await?;
    let package = object.spec.packages.get(&args.package);
    let Some(package) = package.filter(|package| package.version == args.package_version) else {
        bail!(
            "package {:?} (version {:?}) not found in spec of Skyhook {:?}",
            args.package,
            args.package_version,
            args.name
        );
    };
    let params = ListParams {
        label_selector: args.selector.clone(),
        ..ListParams::default()
    };
    let nodes = list(&Api::<Node>::all(client.clone()), &params).await?;
    let write = Write::new(args, package);
    let (nodes, warnings) = write.targets(nodes);
    for warning in warnings {
        session.say(&warning)?;
    }
    session.print(&write.summary(&nodes))?;
    if nodes.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = nodes.iter().map(Node::name_any).collect();
    leases::say(session, &client, &args.name, &names).await?;
    if session.global.dry_run {
        return session.print("\n[dry-run] No changes applied\n");
    }
    if !args.confirm.confirm && !session.ask_yes("\nContinue? [y/N]: ")? {
        return session.print("Aborted\n");
    }
    let outcome = edit::nodes(&client, nodes, |node| write.change(node)).await;
    for error in &outcome.errors {
        session.say(&format!("  - {error}"))?;
    }
    session.print(&format!(
        "\nSuccessfully updated {} node(s)\n",
        outcome.done
    ))?;
    outcome.result()
}

fn check(args: &UpdateStateArgs) -> Result<()> {
    let stages = Stage::ALL.map(Stage::as_str);
    if !stages.contains(&args.stage.as_str()) {
        bail!(
            "invalid stage {:?} (valid: [{}])",
            args.stage,
            stages.join(" ")
        );
    }
    let states = STATES.map(State::as_str);
    if !states.contains(&args.state.as_str()) {
        bail!(
            "invalid state {:?} (valid: [{}])",
            args.state,
            states.join(" ")
        );
    }
    if args.add && args.node.is_empty() && args.selector.is_none() {
        bail!("--add requires --node or --selector so the scope is explicit");
    }
    Ok(())
}

/// What is written.
struct Write<'a> {
    args: &'a UpdateStateArgs,
    image: &'a str,
    /// Key of the entry.
    key: String,
}

impl<'a> Write<'a> {
    fn new(args: &'a UpdateStateArgs, package: &'a Package) -> Self {
        Self {
            args,
            image: skyhook_crds::image::split(&package.image).repository,
            key: key(&args.package, &args.package_version),
        }
    }

    /// The nodes that are written, and why others are not.
    fn targets(&self, nodes: Vec<Node>) -> (Vec<Node>, Vec<String>) {
        let mut warnings = Vec::new();
        let mut by_name: BTreeMap<String, Node> = nodes
            .into_iter()
            .map(|node| (node.name_any(), node))
            .collect();
        if !self.args.node.is_empty() {
            for name in &self.args.node {
                let has_record = |node: &Node| Read::of(node, &self.args.name) != Read::Nothing;
                let node = by_name.get(name);
                if !node.is_some_and(|node| self.args.add || has_record(node)) {
                    let more = if self.args.add {
                        String::new()
                    } else {
                        format!(" or has no state for Skyhook {:?}", self.args.name)
                    };
                    warnings.push(format!("node {name:?} not found{more}"));
                }
            }
            by_name.retain(|name, _| self.args.node.contains(name));
        }
        let mut targets = Vec::new();
        for (name, node) in by_name {
            match self.refusal(&name, &node) {
                None => targets.push(node),
                Some(warning) => warnings.extend(Some(warning).filter(|text| !text.is_empty())),
            }
        }
        (targets, warnings)
    }

    /// Why a node is not written, if it is not. Some reasons need no words.
    fn refusal(&self, name: &str, node: &Node) -> Option<String> {
        let record = match Read::of(node, &self.args.name) {
            Read::Nothing if self.args.add => return None,
            Read::Nothing => return Some(String::new()),
            Read::Unreadable(problem) => {
                return Some(format!(
                    "Warning: node {name:?}: its record cannot be read: {problem}"
                ));
            }
            Read::Entries(record) => record,
        };
        if record::is_newer(node, &self.args.name) {
            return Some(reset::newer(name));
        }
        let there = record.contains_key(&self.key);
        if self.args.add && there {
            let key = &self.key;
            return Some(format!(
                "node {name:?}: entry already exists for {key:?}; skipping (use without --add to update)"
            ));
        }
        if self.args.add || there {
            return None;
        }
        let (package, target) = (&self.args.package, &self.args.package_version);
        let other = record.iter().find(|(key, _)| name_of(key) == package);
        Some(other.map_or_else(String::new, |(_, entry)| {
            let version = &entry.version;
            format!("node {name:?}: has {package} at version {version:?}; skipping (target was {target:?})")
        }))
    }

    fn summary(&self, nodes: &[Node]) -> String {
        let args = self.args;
        let add = if args.add { " (add)" } else { "" };
        let mut text = format!(
            "Skyhook: {}\nPackage: {}@{} -> stage={} state={}{add}\n",
            args.name, args.package, args.package_version, args.stage, args.state
        );
        if nodes.is_empty() {
            text.push_str("no matching nodes\n");
            return text;
        }
        text.push_str(&format!("Nodes to update ({}):\n", nodes.len()));
        for node in nodes {
            text.push_str(&format!("  - {}\n", node.name_any()));
        }
        text
    }

    /// Sets the entry. Every other entry stays as it is.
    fn change(&self, node: &Node) -> Result<Option<Value>> {
        if self.refusal(&node.name_any(), node).is_some() {
            return Ok(None);
        }
        let mut record = Read::of(node, &self.args.name)
            .entries()
            .unwrap_or_default();
        let entry = record.entry(self.key.clone()).or_insert_with(|| Entry {
            name: self.args.package.clone(),
            version: self.args.package_version.clone(),
            image: self.image.to_owned(),
            rest: Map::new(),
            ..Entry::default()
        });
        entry.stage.clone_from(&self.args.stage);
        entry.state.clone_from(&self.args.state);
        reset::with_record(&self.args.name, &record).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::Confirm;
    use crate::testing::{node, record};

    fn args(node: &[&str], add: bool) -> UpdateStateArgs {
        UpdateStateArgs {
            name: "s".into(),
            package: "aa".into(),
            package_version: "1.0".into(),
            stage: "config".into(),
            state: "complete".into(),
            node: node.iter().map(ToString::to_string).collect(),
            selector: None,
            confirm: Confirm { confirm: true },
            add,
        }
    }

    fn package() -> Package {
        Package {
            version: "1.0".into(),
            image: "r/aa:1.0".into(),
            ..Package::default()
        }
    }

    fn fleet() -> Vec<Node> {
        let one = |name: &str, entries: &str| node(name, &[("nodeState_s", &record(entries))], &[]);
        vec![
            one("w3", "aa 0.9 config complete"),
            one("w2", "bb 1 config complete"),
            one("w1", "aa 1.0 apply erroring, bb 1 config complete"),
            node("w4", &[], &[]),
        ]
    }

    #[test]
    fn what_is_no_stage_or_state_is_refused() {
        let wrong = |change: fn(&mut UpdateStateArgs)| {
            let mut args = args(&[], false);
            change(&mut args);
            check(&args).map_err(|error| error.to_string())
        };
        assert_eq!(wrong(|_| ()), Ok(()));
        let stages = "uninstall uninstall-interrupt upgrade apply config interrupt post-interrupt";
        assert_eq!(
            wrong(|a| a.stage = "x".into()),
            Err(format!("invalid stage \"x\" (valid: [{stages}])"))
        );
        let states = "complete in_progress skipped erroring unknown";
        assert_eq!(
            wrong(|a| a.state = "x".into()),
            Err(format!("invalid state \"x\" (valid: [{states}])"))
        );
        let add = "--add requires --node or --selector so the scope is explicit";
        assert_eq!(wrong(|a| a.add = true), Err(add.into()));
    }

    #[test]
    fn nodes_without_the_entry_are_left_out() {
        let skipped = "node \"w3\": has aa at version \"0.9\"; skipping (target was \"1.0\")";
        let unknown =
            |name: &str| format!("node {name:?} not found or has no state for Skyhook \"s\"");
        let exists = "node \"w1\": entry already exists for \"aa|1.0\"; skipping (use without --add to update)";
        for (given, targets, want) in [
            (args(&[], false), "w1", vec![skipped.to_owned()]),
            (
                args(&["w1", "w4", "w9"], false),
                "w1",
                vec![unknown("w4"), unknown("w9")],
            ),
            (
                args(&["w1", "w2", "w3", "w4", "w9"], true),
                "w2 w3 w4",
                vec!["node \"w9\" not found".into(), exists.into()],
            ),
        ] {
            let package = package();
            let (nodes, warnings) = Write::new(&given, &package).targets(fleet());
            let names: Vec<String> = nodes.iter().map(Node::name_any).collect();
            assert_eq!(
                (names.join(" ").as_str(), warnings),
                (targets, want),
                "{given:?}"
            );
        }
    }

    #[test]
    fn the_summary_names_what_is_written() {
        let (package, add, plain) = (package(), args(&["w4"], true), args(&[], false));
        let want = "Skyhook: s\nPackage: aa@1.0 -> stage=config state=complete (add)\nNodes to update (1):\n  - w4\n";
        assert_eq!(Write::new(&add, &package).summary(&fleet()[3..]), want);
        let want =
            "Skyhook: s\nPackage: aa@1.0 -> stage=config state=complete\nno matching nodes\n";
        assert_eq!(Write::new(&plain, &package).summary(&[]), want);
    }

    #[test]
    fn only_the_entry_is_set() {
        let (package, plain, add) = (package(), args(&[], false), args(&["w4"], true));
        let set = |entries: &str| {
            let key = "skyhook.nvidia.com/nodeState_s";
            Some(json!({ "metadata": { "annotations": { key: record(entries) } } }))
        };
        let change =
            |args: &UpdateStateArgs, node| Write::new(args, &package).change(node).unwrap();
        let [w3, w2, w1, w4] = &fleet()[..] else {
            unreachable!("four nodes")
        };
        assert_eq!(
            change(&plain, w1),
            set("aa 1.0 config complete, bb 1 config complete")
        );
        assert_eq!(change(&plain, w2), None);
        assert_eq!(
            change(&add, w3),
            set("aa 0.9 config complete, aa 1.0 config complete")
        );
        assert_eq!(change(&add, w4), set("aa 1.0 config complete"));
    }
}
